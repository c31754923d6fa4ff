//! What can go wrong: a [`Kind`] for callers, a trail of places for people, a typed [`Fault`] for tests.

use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::io;

/// The result of everything that can fail in racker's libraries.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The host failed to read or write.
    Io,
    /// The image contradicts itself or its specification.
    Corrupt,
    /// The image is sound, but racker does not handle it.
    Unsupported,
    /// The caller asked for something that makes no sense.
    Invalid,
    /// Policy forbids it.
    Denied,
    /// Outside the disk or the file.
    OutOfRange,
    /// No room is left.
    NoSpace,
    /// The thing cannot be written.
    ReadOnly,
    /// Nothing of that name.
    NotFound,
    /// Something of that name exists already.
    Exists,
    /// Not a directory.
    NotDir,
    /// Is a directory.
    IsDir,
    /// A directory that is not empty.
    NotEmpty,
    /// Somebody else holds it.
    Busy,
}

/// A cause: a typed value with the numbers that matter, defined by the layer that found it.
pub trait Fault: StdError + Send + Sync + 'static {
    /// What a caller can do about it.
    fn kind(&self) -> Kind;
    /// One line of advice, where there is something to try.
    fn hint(&self) -> Option<String> {
        None
    }
}

impl Fault for io::Error {
    fn kind(&self) -> Kind {
        match io::Error::kind(self) {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::AlreadyExists => Kind::Exists,
            io::ErrorKind::StorageFull => Kind::NoSpace,
            io::ErrorKind::IsADirectory => Kind::IsDir,
            io::ErrorKind::NotADirectory => Kind::NotDir,
            io::ErrorKind::DirectoryNotEmpty => Kind::NotEmpty,
            io::ErrorKind::ReadOnlyFilesystem => Kind::ReadOnly,
            _ => Kind::Io,
        }
    }
}

/// Faults that any layer can meet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Common {
    /// A range whose end does not fit into 64 bits.
    #[error("the range of {len} bytes at {start} wraps around")]
    RangeWraps {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A range past the end of a disk.
    #[error("{len} bytes at {start} are past the end of a disk of {size} bytes")]
    PastEnd {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// A structure needs more bytes than there are.
    #[error("{what} needs {need} bytes, only {have} are there")]
    Short {
        /// The structure.
        what: &'static str,
        /// Bytes it takes.
        need: usize,
        /// Bytes at hand.
        have: usize,
    },
    /// A number out of an image chose more memory than the limit allows.
    #[error("{what} would take {need} bytes, the limit is {max}")]
    TooLarge {
        /// The structure.
        what: &'static str,
        /// Bytes asked for.
        need: u64,
        /// The ceiling in bytes.
        max: u64,
    },
    /// A number does not fit into memory's address range.
    #[error("{0} does not fit into an index")]
    Index(u64),
    /// A write to something opened for reading.
    #[error("opened read-only")]
    ReadOnly,
    /// An operation that this layer does not have.
    #[error("{what} is not supported by {by}")]
    Unsupported {
        /// The operation.
        what: &'static str,
        /// Who refuses.
        by: String,
    },
    /// A lock that a panicking thread left behind.
    #[error("an internal lock was left by a failed thread")]
    Poisoned,
    /// An edit that was told to end.
    #[error("the edit was given up, and nothing of it lands")]
    GivenUp,
}

impl Fault for Common {
    fn kind(&self) -> Kind {
        match self {
            Self::RangeWraps { .. } | Self::Short { .. } | Self::TooLarge { .. } | Self::Index(_) => {
                Kind::Corrupt
            }
            Self::PastEnd { .. } => Kind::OutOfRange,
            Self::ReadOnly => Kind::ReadOnly,
            Self::Unsupported { .. } => Kind::Unsupported,
            Self::Poisoned | Self::GivenUp => Kind::Io,
        }
    }
}

/// An error: kind, trail of places, cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    /// Innermost place first.
    trail: Vec<String>,
    cause: Box<dyn StdError + Send + Sync + 'static>,
    hint: Option<String>,
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The cause, if it is of type `F`.
    pub fn fault<F: StdError + 'static>(&self) -> Option<&F> {
        self.0.cause.downcast_ref::<F>()
    }

    /// Adds a place on the way up.
    #[must_use]
    pub fn within(mut self, place: impl Display) -> Self {
        self.0.trail.push(place.to_string());
        self
    }

    /// One line of advice, where there is something to try.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Replaces the advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same, of the write that decides whether an edit is there: nobody can tell.
    pub fn undecided(self) -> Self {
        let e = self.within("the edit is on the disk whole or not at all");
        e.with_hint("look again when the image can be opened: whoever opens it finds one or the other")
    }

    /// The places from the outermost to the innermost.
    pub fn trail(&self) -> impl Iterator<Item = &str> {
        self.0.trail.iter().rev().map(String::as_str)
    }
}

impl<F: Fault> From<F> for Error {
    fn from(fault: F) -> Self {
        let (kind, hint) = (Fault::kind(&fault), fault.hint());
        Self(Box::new(Inner { kind, trail: Vec::new(), cause: Box::new(fault), hint }))
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, place) in self.trail().enumerate() {
            if i > 0 {
                f.write_str(" ▸ ")?;
            }
            f.write_str(place)?;
        }
        if !self.0.trail.is_empty() {
            f.write_str(": ")?;
        }
        write!(f, "{}", self.0.cause)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self} ({:?})", self.0.kind, self.0.cause)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.source()
    }
}

/// Adds the place to an error on its way up.
pub trait Within {
    /// Adds `place()` to the error's trail.
    #[must_use]
    fn within<P: Display>(self, place: impl FnOnce() -> P) -> Self;
}

impl<T> Within for Result<T> {
    fn within<P: Display>(self, place: impl FnOnce() -> P) -> Self {
        self.map_err(|e| e.within(place()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trail_reads_from_the_outside_in() {
        let e = Error::from(Common::ReadOnly).within("L2 table 3").within("a.qcow2");
        assert_eq!(e.to_string(), "a.qcow2 ▸ L2 table 3: opened read-only");
        assert_eq!(e.kind(), Kind::ReadOnly);
        assert!(matches!(e.fault::<Common>(), Some(Common::ReadOnly)));
    }
}
