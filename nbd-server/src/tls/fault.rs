//! What can be wrong with keys that both sides know.

use racker_formats::error::{Fault, Kind};

/// Who does not know a key may say so, or just go.
pub(crate) const REFUSED: &str = "the other side ended the handshake, as one does that has another key";

/// What is wrong with a file of keys. Nothing of a key is ever said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeysFault {
    /// A build without these keys.
    #[error("this build of racker has no TLS by keys that both sides know (PSK)")]
    Absent,
    /// No such file was ever made.
    #[error("the file has more than {0} bytes")]
    Long(u64),
    /// More than connections should have to look at.
    #[error("the file has more than {0} keys")]
    Many(usize),
    /// Not one.
    #[error("the file has no key")]
    Empty,
    /// Another kind of line.
    #[error("line {0} is no IDENTITY:KEY")]
    Line(usize),
    /// An identity that is empty, too long, or no text.
    #[error("line {line}: an identity is a text of 1 to {max} bytes")]
    Identity {
        /// The line, from 1.
        line: usize,
        /// Bytes of an identity, at most.
        max: usize,
    },
    /// An identity that has a key already.
    #[error("line {0}: the identity has a key already")]
    Twice(usize),
    /// A key of something else than pairs of hexadecimal digits, or of too many or too few of them.
    #[error("line {line}: a key is {min} to {max} bytes, each of two hexadecimal digits")]
    Key {
        /// The line, from 1.
        line: usize,
        /// Bytes of a key, at least.
        min: usize,
        /// Bytes of a key, at most.
        max: usize,
    },
    /// Whom a client wants to be is not there.
    #[error("the file has no key of {0:?}")]
    Unknown(String),
    /// A client that is nobody.
    #[error("nobody is named who has a key")]
    Nobody,
    /// Refused by the library.
    #[error("{0}")]
    Library(String),
}

impl Fault for KeysFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Absent => Kind::Unsupported,
            Self::Unknown(_) => Kind::NotFound,
            _ => Kind::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Absent => Some("--tls-certificates and tls-certificates= are there".into()),
            Self::Unknown(_) | Self::Nobody => Some(
                "the address names who has the key: nbds://IDENTITY@HOST or nbds+unix://IDENTITY@/".into(),
            ),
            Self::Library(_) => None,
            _ => Some("psktool makes such files: psktool -u IDENTITY -p FILE".into()),
        }
    }
}
