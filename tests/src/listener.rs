//! Waiting for a program's socket.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Waits until somebody listens at a Unix socket. Its file is there a moment earlier, and whoever connects just to find
/// out is a client.
///
/// # Panics
///
/// After 20 s.
pub fn await_listener(socket: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    let end = format!(" {}", socket.display());
    loop {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
        // Its flags say that it accepts connections.
        if sockets
            .lines()
            .any(|line| line.ends_with(&end) && line.split_whitespace().nth(3) == Some("00010000"))
        {
            return;
        }
        assert!(Instant::now() < until, "nobody listens at {}", socket.display());
        thread::sleep(Duration::from_millis(10));
    }
}
