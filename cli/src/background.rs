//! What outlives its command (a mount, an attached device): the command runs itself once more, and returns when that one
//! says that all is there.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use rustix::stdio::{dup2_stderr, dup2_stdout};

use crate::exit::Exit;
use crate::fault::{Failure, Outcome};

/// The variable by which the process in the background knows itself: it holds the number of who started it.
const STARTED_BY: &str = "RACKER_STARTED_BY";
/// Bytes of the longest word that it has to say.
const SAID_MAX: u64 = 64 << 10;

/// Starts the process in the background, and waits for what it says once it is [`ready`]; or for its end, after it has
/// said why.
pub(crate) fn start() -> Outcome<Result<String, Exit>> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(STARTED_BY, std::process::id().to_string());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        out.take(SAID_MAX).read_to_string(&mut said)?;
    }
    if !said.is_empty() {
        return Ok(Ok(said));
    }
    match child.wait()?.code() {
        Some(2) => Ok(Err(Exit::Usage)),
        Some(_) => Ok(Err(Exit::Failed)),
        None => Err(Failure::new("the process in the background was killed")),
    }
}

/// Whether this is the process in the background.
pub(crate) fn is_this() -> bool {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    parent.is_some() && std::env::var(STARTED_BY).ok() == parent
}

/// In the background: leaves the terminal's session.
pub(crate) fn enter() -> Outcome<()> {
    rustix::process::setsid().map_err(std::io::Error::from)?;
    Ok(())
}

/// In the background: says what there is now, and lets go of what the command was given.
pub(crate) fn ready(what: &str) -> Outcome<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{what}")?;
    out.flush()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    dup2_stdout(&null).map_err(std::io::Error::from)?;
    // Who waits for the end of a pipe must not wait for this process's; a terminal shall see how it ends.
    if !std::io::stderr().is_terminal() {
        dup2_stderr(&null).map_err(std::io::Error::from)?;
    }
    Ok(())
}

/// In the background: a failure that nobody may be there to read goes to the system's log as well.
pub(crate) fn log(text: &str) {
    let Ok(socket) = UnixDatagram::unbound() else { return };
    // Facility user, severity error.
    let line = format!("<11>racker[{}]: {}", std::process::id(), crate::clean::clean(text.trim_end()));
    // A machine without a log has nowhere to put it.
    let _ = socket.send_to(line.as_bytes(), "/dev/log");
}
