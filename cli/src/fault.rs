//! An error of the command line: one line, and a hint where there is something to try.

use std::fmt::Display;
use std::path::Path;

use racker_formats::error::{Error, Kind};

use crate::clean::clean;
use crate::exit::Exit;

/// What a command fails with.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    broken_pipe: bool,
    kind: Option<Kind>,
    thrown_away: bool,
    exit: Exit,
}

/// The result of a command.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure that has no cause below the command line.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            broken_pipe: false,
            kind: None,
            thrown_away: false,
            exit: Exit::Failed,
        }
    }

    /// Adds something to try.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What a caller can do about it, if it is known.
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// Says what a caller can do about it.
    #[must_use]
    pub(crate) fn of(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Work that was not wanted after all: no failure, but what was done is not kept.
    pub(crate) fn thrown_away() -> Self {
        Self { thrown_away: true, ..Self::new("nothing was written") }
    }

    /// Whether it only means that what was done is not kept.
    pub(crate) fn is_thrown_away(&self) -> bool {
        self.thrown_away
    }

    /// Whether the reader of standard output went away, which is no failure.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }

    /// Ends the program with another status than that of every failure.
    #[must_use]
    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The status that the program ends with.
    pub(crate) fn status(&self) -> Exit {
        self.exit
    }

    /// What goes to standard error.
    pub(crate) fn report(&self) -> String {
        let mut text = format!("racker: {}\n", clean(&without_errno(&self.message)));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {}\n", clean(hint)));
        }
        text
    }

    /// Puts a place before the message.
    pub(crate) fn at(mut self, place: impl Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let pipe = e.fault::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
        let hint = e.hint().map(String::from).or_else(|| general_hint(&e));
        Self {
            message: e.to_string(),
            hint,
            broken_pipe: pipe,
            kind: Some(e.kind()),
            thrown_away: false,
            exit: Exit::Failed,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Error::from(e).into()
    }
}

/// The library's system errors end in a number that means nothing to people.
fn without_errno(message: &str) -> String {
    match message.rsplit_once(" (os error ") {
        Some((text, number)) if number.trim_end_matches(')').chars().all(|c| c.is_ascii_digit()) => {
            text.into()
        }
        _ => message.into(),
    }
}

/// What one can try whatever the layer that failed.
fn general_hint(e: &Error) -> Option<String> {
    match e.kind() {
        Kind::NoSpace => Some("nothing was changed; make room and try again".into()),
        Kind::Corrupt => Some("nothing was changed; `racker disk info` shows what can be read".into()),
        _ => None,
    }
}

/// Names the file that an error is about.
pub(crate) trait About<T> {
    /// Puts the file's name before the message.
    fn about(self, path: &Path) -> Outcome<T>;
}

impl<T, E: Into<Failure>> About<T> for Result<T, E> {
    fn about(self, path: &Path) -> Outcome<T> {
        self.map_err(|e| e.into().at(path.display()))
    }
}
