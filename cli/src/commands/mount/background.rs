//! A mount that outlives the command: `mount` runs itself once more, and returns when that one answers.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use rustix::stdio::{dup2_stderr, dup2_stdout};

use crate::exit::Exit;
use crate::fault::{Failure, Outcome};

/// The variable by which the process in the background knows itself: it holds the number of who started it.
const STARTED_BY: &str = "RACKER_MOUNT_STARTED_BY";
/// What it says when the filesystem answers.
const READY: &str = "mounted";

/// Starts the process in the background, and waits until it is ready or has failed; it says itself why.
pub(super) fn start() -> Outcome<Exit> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(STARTED_BY, std::process::id().to_string());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(out) = child.stdout.as_mut() {
        out.read_to_string(&mut said)?;
    }
    if said.trim_end() == READY {
        return Ok(Exit::Done);
    }
    match child.wait()?.code() {
        Some(2) => Ok(Exit::Usage),
        Some(_) => Ok(Exit::Failed),
        None => Err(Failure::new("the mount's process was killed")),
    }
}

/// Whether this is the process in the background.
pub(super) fn is_this() -> bool {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    parent.is_some() && std::env::var(STARTED_BY).ok() == parent
}

/// In the background: leaves the terminal's session.
pub(super) fn enter() -> Outcome<()> {
    rustix::process::setsid().map_err(std::io::Error::from)?;
    Ok(())
}

/// In the background: says that the filesystem answers, and lets go of what the command was given.
pub(super) fn ready() -> Outcome<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    dup2_stdout(&null).map_err(std::io::Error::from)?;
    // Who waits for the end of a pipe must not wait for the mount's; a terminal shall see how it ends.
    if !std::io::stderr().is_terminal() {
        dup2_stderr(&null).map_err(std::io::Error::from)?;
    }
    Ok(())
}

/// In the background: a failure that nobody may be there to read goes to the system's log as well.
pub(super) fn log(text: &str) {
    let Ok(socket) = UnixDatagram::unbound() else { return };
    // Facility user, severity error.
    let line = format!("<11>racker[{}]: {}", std::process::id(), crate::clean::clean(text.trim_end()));
    // A machine without a log has nowhere to put it.
    let _ = socket.send_to(line.as_bytes(), "/dev/log");
}
