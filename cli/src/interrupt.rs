//! Ctrl-C while something is written: nothing is left behind, nor the space that an edit had taken, and the program
//! ends as the signal has it.

use std::thread;

use nix::libc::{SIGHUP, SIGINT, SIGTERM};
use nix::sys::signal::{SigSet, Signal, raise};
use racker_formats::{convert, transaction};

/// The signals that ask a program to end.
const SIGNALS: [(Signal, i32); 3] =
    [(Signal::SIGINT, SIGINT), (Signal::SIGTERM, SIGTERM), (Signal::SIGHUP, SIGHUP)];

/// From here on, and in all threads started from here on, a signal to end removes unfinished files first, and ends
/// edits. Not for commands that start other programs: those would not hear of the signals.
pub(crate) fn clean_up() {
    let set = wanted();
    // Without any of this a signal leaves a temporary file on file systems that know no files without names.
    if set.iter().next().is_none() || set.thread_block().is_err() {
        return;
    }
    let watch = move || {
        if let Ok(signal) = set.wait() {
            convert::abandon();
            transaction::abandon();
            let _ = set.thread_unblock();
            let _ = raise(signal);
        }
    };
    if thread::Builder::new().name("signals".into()).spawn(watch).is_err() {
        let _ = set.thread_unblock();
    }
}

/// From here on, and in all threads started from here on, a signal to end calls `ended`, and the next one ends the
/// program at once.
pub(crate) fn hear(ended: impl FnOnce() + Send + 'static) {
    let set = wanted();
    if set.iter().next().is_none() || set.thread_block().is_err() {
        return;
    }
    let watch = move || {
        if set.wait().is_ok() {
            ended();
        }
        if let Ok(signal) = set.wait() {
            let _ = set.thread_unblock();
            let _ = raise(signal);
        }
    };
    if thread::Builder::new().name("signals".into()).spawn(watch).is_err() {
        let _ = set.thread_unblock();
    }
}

/// The signals to end that this program was not told to ignore.
fn wanted() -> SigSet {
    let mut set = SigSet::empty();
    for (signal, number) in SIGNALS {
        if !is_ignored(number) {
            set.add(signal);
        }
    }
    set
}

/// Whether the program was told to ignore a signal, as `nohup` does.
fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0);
    let bit = 1u64.checked_shl(number.unsigned_abs().saturating_sub(1)).unwrap_or(0);
    mask & bit != 0
}
