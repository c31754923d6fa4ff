//! TLS: certificates by rustls, 1.2 and 1.3. Keys that both sides know beforehand (PSK) are left out: rustls has none.
//!
//! One thread may read while another one writes. Records are made and opened under a lock that is held for no I/O, so
//! that a client that does not read cannot keep its own requests from being read.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use racker_formats::error::{Fault, Kind, Result, Within};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{Connection, RootCertStore, ServerConfig, ServerConnection};

use crate::connection::lock;
use crate::stream::{Stream, left, send};

/// The largest record with its header.
const RECORD_BYTES: usize = 5 + 16384 + 2048;

/// What is wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    /// A file that cannot be read, or holds something else.
    #[error("{0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// Certificate and key are of no use.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// The authority's certificates are of no use.
    #[error("{0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl Fault for TlsFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Pem(rustls::pki_types::pem::Error::Io(e)) => Fault::kind(e),
            _ => Kind::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        Some("the folder holds server-cert.pem, server-key.pem and, to verify clients, ca-cert.pem".into())
    }
}

/// A server's certificate, and whether clients need one.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    is_required: bool,
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
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(TlsFault::from)?;
        let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
            let all = CertificateDer::pem_file_iter(folder.join(name)).and_then(Iterator::collect);
            all.map_err(|e| TlsFault::from(e).into()).within(|| name.to_string())
        };
        let builder = if verify {
            let mut roots = RootCertStore::empty();
            for root in certificates("ca-cert.pem")? {
                roots.add(root).map_err(TlsFault::from)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(TlsFault::from)?)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(folder.join("server-key.pem"));
        let key = key.map_err(TlsFault::from).map_err(racker_formats::Error::from);
        let key = key.within(|| "server-key.pem")?;
        let config = builder.with_single_cert(certificates("server-cert.pem")?, key);
        Ok(Self { config: Arc::new(config.map_err(TlsFault::from)?), is_required: true })
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
        let connection = ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        TlsStream::begin(raw, connection.into(), until)
    }
}

/// A stream inside another one.
pub(crate) struct TlsStream {
    raw: Arc<dyn Stream>,
    connection: Mutex<Connection>,
    /// What has arrived and was not opened yet.
    incoming: Mutex<Vec<u8>>,
    /// Held while records are sent, so that they stay in order.
    outgoing: Mutex<()>,
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS over {:?}", self.raw)
    }
}

impl TlsStream {
    /// Shakes hands over `raw`, as the server or the client that `connection` is.
    pub(crate) fn begin(raw: Arc<dyn Stream>, connection: Connection, until: Instant) -> io::Result<Self> {
        let stream = Self {
            raw,
            connection: Mutex::new(connection),
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
        };
        stream.raw.limit(Some(left(until)?))?;
        // A client speaks first.
        stream.push(&[])?;
        while lock(&stream.connection).is_handshaking() {
            stream.raw.limit(Some(left(until)?))?;
            if !stream.advance(&mut lock(&stream.incoming))? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(stream)
    }

    /// Receives and opens some more; `false` at the end of the stream below.
    fn advance(&self, incoming: &mut Vec<u8>) -> io::Result<bool> {
        if incoming.is_empty() {
            incoming.resize(RECORD_BYTES, 0);
            let got = self.raw.read(incoming);
            incoming.truncate(*got.as_ref().unwrap_or(&0));
            if got? == 0 {
                return Ok(false);
            }
        }
        let (opened, wants_write) = {
            let mut connection = lock(&self.connection);
            let mut rest = incoming.as_slice();
            let taken = connection.read_tls(&mut rest)?;
            let opened = connection.process_new_packets();
            incoming.drain(..taken.min(incoming.len()));
            (opened.map(drop), connection.wants_write())
        };
        if wants_write {
            self.push(&[])?;
        }
        match opened {
            Ok(()) => Ok(true),
            Err(e) => Err(io::Error::new(io::ErrorKind::InvalidData, e)),
        }
    }

    /// Sends some of `parts`, and whatever else is to be sent.
    fn push(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let _outgoing = lock(&self.outgoing);
        let mut records = Vec::new();
        let done = {
            let mut connection = lock(&self.connection);
            let done = connection.writer().write_vectored(parts)?;
            while connection.wants_write() {
                connection.write_tls(&mut records)?;
            }
            done
        };
        send(self.raw.as_ref(), &records, &[])?;
        Ok(done)
    }
}

impl Stream for TlsStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            match lock(&self.connection).reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if !self.advance(&mut incoming)? {
                return Ok(0);
            }
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.push(parts)
    }

    fn limit(&self, time: Option<Duration>) -> io::Result<()> {
        self.raw.limit(time)
    }

    fn limit_input(&self, time: Duration) -> io::Result<()> {
        self.raw.limit_input(time)
    }

    fn end_input(&self) {
        self.raw.end_input();
    }

    fn finish(&self) {
        lock(&self.connection).send_close_notify();
        let _ = self.push(&[]);
    }

    fn end(&self) {
        self.raw.end();
    }

    fn takes_more(&self) -> bool {
        self.raw.takes_more()
    }

    fn peer(&self) -> String {
        self.raw.peer()
    }
}
