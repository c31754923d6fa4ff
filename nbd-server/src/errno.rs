//! The protocol's error numbers.

use std::io;

use racker_formats::error::{Error, Kind};

/// Why a request fails, in the protocol's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// Not allowed.
    Perm,
    /// The disk failed.
    Io,
    /// The request makes no sense.
    Inval,
    /// No space, or a write past the end.
    NoSpc,
    /// Too long for an answer in one piece.
    Overflow,
    /// Not faster than writing.
    NotSup,
    /// The server is about to end.
    Shutdown,
}

impl Errno {
    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// A text for people: it names nothing of the host.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Perm => "not permitted on this export",
            Self::Io => "the disk failed; the server's messages tell why",
            Self::Inval => "the request is not valid",
            Self::NoSpc => "no space is left, or the request lies past the end",
            Self::Overflow => "the request is too long for an answer in one piece",
            Self::NotSup => "zeroes cannot be written faster than data here",
            Self::Shutdown => "the server is shutting down",
        }
    }
}

impl From<&Error> for Errno {
    fn from(e: &Error) -> Self {
        if let Some(e) = e.fault::<io::Error>()
            && matches!(e.kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
        {
            return Self::NoSpc;
        }
        match e.kind() {
            Kind::NoSpace => Self::NoSpc,
            Kind::ReadOnly | Kind::Denied => Self::Perm,
            Kind::Invalid | Kind::OutOfRange | Kind::Unsupported => Self::Inval,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racker_formats::error::Common;

    #[test]
    fn kinds_have_numbers() {
        let full = io::Error::from(io::ErrorKind::QuotaExceeded);
        assert_eq!(Errno::from(&Error::from(full)), Errno::NoSpc);
        assert_eq!(Errno::from(&Error::from(Common::ReadOnly)), Errno::Perm);
        assert_eq!(Errno::from(&Error::from(Common::Poisoned)), Errno::Io);
    }
}
