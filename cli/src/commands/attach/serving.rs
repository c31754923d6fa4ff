//! The process behind an attached device: serves the image until the kernel lets go of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use racker_formats::error::Kind;
use racker_fs::partition;
use racker_nbd::Server;
use racker_nbd::kernel::{Attachment, Kernel, shake_hands};
use racker_nbd::limits::Limits;

use super::{Attach, Attached, device};
use crate::background;
use crate::control::Control;
use crate::exit::Exit;
use crate::exports::{Access, offer};
use crate::fault::{About, Failure, Outcome};
use crate::interrupt;

/// How long requests wait for another server.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long partitions may take to appear.
const PARTITIONS: Duration = Duration::from_secs(10);
/// Bytes of the blocks that the device has: what tables of partitions count in.
const BLOCK: u64 = 512;

/// Why it ends.
enum Event {
    Asked,
    /// The kernel has let go of the device.
    Left,
}

/// Serves it, and says on standard output when the device is there.
pub(super) fn serve(attach: &Attach) -> Outcome<Exit> {
    let kernel = kernel()?;
    let wanted = attach.device.as_deref().map(device::number).transpose()?;
    let access = match (attach.read_only, attach.snapshot) {
        (true, _) => Access::Read,
        (_, true) => Access::Snapshot,
        _ => Access::Write { resize: false },
    };
    let (events, happened) = channel();
    let asked = events.clone();
    // Before there are other threads, which would be ended by a signal.
    interrupt::hear(move || drop(asked.send(Event::Asked)));
    let offer = offer(attach.image.clone(), Some("disk"), &attach.how, access, None)?;
    if attach.reconnect && !offer.outlives_us() {
        let failure =
            Failure::new("what its server had in memory when it died is lost, and the device must not go on");
        return Err(failure
            .hint("unmount it, detach it, and look at its filesystems; raw images have no such tables"))
        .about(&attach.image);
    }
    let whole = offer.whole()?;
    let expected = partition::read(whole.disk()).map_or(0, |table| table.partitions.len());
    let limits = Limits { idle: None, ..Limits::default() };
    let server = Server::new(vec![whole], Some(0), limits, None, |_| ())?;
    let (size, flags, sockets) = connections(&server, attach.connections)?;
    let backend = backend(&attach.image);
    let disk = Attachment {
        index: wanted,
        size,
        block: BLOCK,
        flags,
        sockets: &sockets,
        patience: if offer.outlives_us() { PATIENCE } else { Duration::ZERO },
        backend: &backend,
    };
    let number = match (attach.reconnect, wanted) {
        (true, Some(number)) => {
            kernel.reconnect(&disk)?;
            number
        }
        _ => kernel.connect(&disk)?,
    };
    // The kernel has them; when it lets go of them the server shall see it.
    drop(sockets);
    let control = announce(number, expected).inspect_err(|_| {
        // A device that nobody was told of would stay for ever.
        let _ = kernel.disconnect(number);
    })?;
    server.when_left(move || drop(events.send(Event::Left)))?;

    if let Ok(Event::Asked) = happened.recv() {
        // Asked to end: the kernel lets go first, so that what it holds back comes here.
        kernel.disconnect(number)?;
        let _ = happened.recv();
    }
    let ended = server.stop();
    let what = match (attach.snapshot, attach.read_only) {
        (true, _) => "what was written is thrown away, the image is as it was:",
        (_, true) => "nothing was written to",
        _ => "all that was written is on stable storage in",
    };
    let told = match &ended {
        Ok(_) => Ok(format!("{what} {}", attach.image.display())),
        Err(e) => Err(e.to_string()),
    };
    if let Err(e) = &told {
        background::log(e);
    }
    control.tell(&told);
    ended?;
    Ok(Exit::Done)
}

/// Listens to who wants to know the end, waits for the partitions, and says that all is there.
fn announce(number: u32, expected: usize) -> Outcome<Control> {
    let control = Control::listen_at(device::control(number))?;
    let partitions = appear(number, expected);
    let attached = Attached { device: device::path(number).display().to_string(), partitions };
    background::ready(&serde_json::to_string(&attached).map_err(std::io::Error::from)?)?;
    Ok(control)
}

/// The kernel's client, whose module is loaded if it is not.
fn kernel() -> Outcome<Kernel> {
    match Kernel::open() {
        Err(e) if e.kind() == Kind::Unsupported => {
            let _ = Command::new("modprobe").arg("nbd").stderr(std::process::Stdio::null()).status();
            Ok(Kernel::open()?)
        }
        opened => Ok(opened?),
    }
}

/// What the kernel remembers of who serves a device: who serves it again has to say the same.
fn backend(image: &Path) -> String {
    let path = std::path::absolute(image).unwrap_or_else(|_| image.to_path_buf());
    format!("racker {}", path.display())
}

/// Connections to the server on which the handshake is over: size, flags, and the ends for the kernel.
fn connections(server: &Server, count: u8) -> Outcome<(u64, u16, Vec<OwnedFd>)> {
    let mut sockets = Vec::new();
    let mut said = (0, 0);
    for _ in 0..count {
        let (ours, mut theirs) = UnixStream::pair()?;
        server.connect(Arc::new(ours), || ())?;
        said = shake_hands(&mut theirs)?;
        sockets.push(theirs.into());
    }
    Ok((said.0, said.1, sockets))
}

/// Waits until the kernel has found the partitions, as far as it does: it looks when the device is first opened.
fn appear(number: u32, expected: usize) -> Vec<String> {
    let path = device::path(number);
    let began = Instant::now();
    loop {
        let opened = File::open(&path);
        let there = device::partitions(number);
        let nodes = there.iter().filter(|p| Path::new(p).exists()).count();
        let enough = opened.is_ok() && nodes >= expected && nodes == there.len();
        if enough || began.elapsed() > PARTITIONS {
            return there;
        }
        drop(opened);
        thread::sleep(Duration::from_millis(20));
    }
}
