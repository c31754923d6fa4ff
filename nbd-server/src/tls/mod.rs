//! TLS: by certificates (rustls, 1.2 and 1.3), or by keys that both sides know beforehand (PSK: s2n-tls, 1.3), as rustls
//! has none of these. `session` is what the rest sees of both libraries.

mod certificates;
mod fault;
#[cfg(feature = "psk")]
mod keys;
#[cfg(feature = "psk")]
mod psk;
#[cfg(not(feature = "psk"))]
#[path = "no_psk.rs"]
mod psk;
mod session;
mod stream;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use racker_formats::error::Result;
use rustls::{ServerConfig, ServerConnection};

pub use self::certificates::TlsFault;
pub use self::fault::KeysFault;
pub(crate) use self::fault::REFUSED;
pub(crate) use self::psk::Keys;
pub(crate) use self::session::Session;
pub(crate) use self::stream::TlsStream;
use crate::stream::Stream;

/// How a server shows who it is, and whether clients have to begin TLS.
#[derive(Clone)]
pub struct Tls {
    by: By,
    is_required: bool,
}

#[derive(Clone)]
enum By {
    Certificates(Arc<ServerConfig>),
    Keys(Keys),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TLS")
    }
}

impl Tls {
    /// Takes `server-cert.pem` and `server-key.pem` of a folder; with `verify`, clients need a certificate that is
    /// signed by `ca-cert.pem`. So QEMU, nbdkit and libnbd name these files.
    pub fn from_folder(folder: &Path, verify: bool) -> Result<Self> {
        Ok(Self { by: By::Certificates(certificates::server(folder, verify)?), is_required: true })
    }

    /// Takes a file of keys that both sides know: clients need one of them. `psktool` of GnuTLS makes such files.
    pub fn from_keys(file: &Path) -> Result<Self> {
        Ok(Self { by: By::Keys(Keys::server(file)?), is_required: true })
    }

    /// Serves those as well who do not begin TLS. Whoever sits between a client and this server can then make both do
    /// without, unless the client insists.
    #[must_use]
    pub fn optional(self) -> Self {
        Self { is_required: false, ..self }
    }

    /// Whether nothing happens without it.
    pub(crate) fn is_required(&self) -> bool {
        self.is_required
    }

    /// Makes a stream safe: the client speaks first, until then it has time.
    pub(crate) fn accept(&self, raw: Arc<dyn Stream>, until: Instant) -> io::Result<TlsStream> {
        let session: Box<dyn Session> = match &self.by {
            By::Certificates(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                Box::new(rustls::Connection::from(connection))
            }
            By::Keys(keys) => keys.session()?,
        };
        TlsStream::begin(raw, session, until)
    }
}
