//! What can go wrong with a server.

use std::io;

use racker_formats::error::{Fault, Kind};

use crate::wire::reply;

/// What is wrong with a server, or with its address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientFault {
    /// An address that makes no sense.
    #[error("the address {0}")]
    Address(String),
    /// Something that an address may ask for, and that is not there.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The other side speaks something else.
    #[error("this is no NBD server")]
    NotNbd,
    /// The handshake of before 2012.
    #[error("the server speaks the old handshake only, which racker leaves out")]
    Old,
    /// TLS was asked for.
    #[error("the server speaks no TLS: {0}")]
    NoTls(String),
    /// TLS was not asked for.
    #[error("the server wants TLS")]
    TlsRequired,
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// No export of that name.
    #[error("the server has no export {name:?}")]
    NoExport {
        /// The name that was asked for.
        name: String,
        /// Some that there are.
        offered: Vec<String>,
    },
    /// An option was refused.
    #[error("the server refuses {what}: {why}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// In the server's words.
        why: String,
    },
    /// A disk that cannot be.
    #[error("the server's disk {0}")]
    Disk(String),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Broken(&'static str),
    /// The connection is over.
    #[error("the server ended the connection")]
    Ended,
    /// Nothing comes.
    #[error("the server has not answered for {0} seconds")]
    Stuck(u64),
    /// The connection failed.
    #[error("the connection failed: {text}")]
    Io {
        /// What the system says.
        text: String,
    },
    /// A request failed at the server.
    #[error("the server could not {doing}: {why}")]
    Answer {
        /// What was asked for.
        doing: &'static str,
        /// The protocol's number of the error.
        number: u32,
        /// In words, the server's where it has some.
        why: String,
    },
}

impl ClientFault {
    /// A connection that failed.
    pub(super) fn io(e: &io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Self::Ended
            }
            _ => Self::Io { text: e.to_string() },
        }
    }

    /// A request that failed with the error `number`, of which the server says `text`.
    pub(super) fn answer(doing: &'static str, number: u32, text: &str) -> Self {
        let why = match (errno(number), text) {
            (Some(known), "") => known.to_string(),
            (None, "") => format!("error {number}"),
            (Some(known), text) => format!("{known} ({text})"),
            (None, text) => format!("error {number} ({text})"),
        };
        Self::Answer { doing, number, why }
    }
}

/// What an error number of the protocol means.
fn errno(number: u32) -> Option<&'static str> {
    Some(match number {
        1 => "not permitted",
        5 => "input/output error",
        12 => "out of memory",
        22 => "the request is not valid",
        28 => "no space is left",
        75 => "too much was asked",
        95 => "not supported",
        108 => "the server is shutting down",
        _ => return None,
    })
}

/// What the refusal of an option means.
pub(super) fn refusal(kind: u32) -> &'static str {
    match kind {
        reply::ERR_UNSUP => "it does not know this",
        reply::ERR_POLICY => "it is not allowed",
        reply::ERR_INVALID => "it makes no sense to it",
        reply::ERR_PLATFORM => "it was built without",
        reply::ERR_TLS_REQD => "TLS comes first",
        reply::ERR_UNKNOWN => "there is no such export",
        reply::ERR_SHUTDOWN => "it is shutting down",
        reply::ERR_BLOCK_SIZE_REQD => "it wants its block size to be known",
        reply::ERR_TOO_BIG => "it is too much",
        _ => "it does not say why",
    }
}

impl Fault for ClientFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Address(_) => Kind::Invalid,
            Self::Unsupported(_) | Self::Old => Kind::Unsupported,
            Self::NoTls(_) | Self::TlsRequired | Self::Tls(_) | Self::Refused { .. } => Kind::Denied,
            Self::NoExport { .. } => Kind::NotFound,
            Self::Disk(_) => Kind::Unsupported,
            Self::NotNbd | Self::Broken(_) | Self::Ended | Self::Stuck(_) | Self::Io { .. } => Kind::Io,
            Self::Answer { number, .. } => match number {
                1 => Kind::Denied,
                22 => Kind::Invalid,
                28 => Kind::NoSpace,
                95 => Kind::Unsupported,
                _ => Kind::Io,
            },
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TlsRequired => Some("addresses with TLS begin with nbds: or nbds+unix:".into()),
            Self::NoTls(_) => Some("if nobody can read along, nbd: or nbd+unix: goes without".into()),
            Self::NoExport { offered, .. } if !offered.is_empty() => {
                Some(format!("it has {}", offered.join(", ")))
            }
            Self::Address(_) => {
                Some("addresses are nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH".into())
            }
            // What failed at the server may have changed something there.
            Self::Answer { number: 28, .. } => Some("make room at the server, and try again".into()),
            _ => None,
        }
    }
}
