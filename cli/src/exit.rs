//! The exit codes.

use std::process::ExitCode;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything asked for was done.
    Done,
    /// Something failed.
    Failed,
    /// What was typed makes no sense.
    Usage,
    /// `check` found corruption; `compare` could not compare.
    Corrupt,
    /// `check` found lost space and nothing worse.
    Leaks,
    /// `check` has nothing to check in this format.
    Unsupported,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage | Exit::Corrupt => 2,
            Exit::Leaks => 3,
            Exit::Unsupported => 63,
        })
    }
}
