//! TLS by certificates: rustls, 1.2 and 1.3.

use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

use racker_formats::error::{Fault, Kind, Result, Within};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{Connection, RootCertStore, ServerConfig};

use super::session::Session;

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

/// What a server does with the files of a folder.
pub(super) fn server(folder: &Path, verify: bool) -> Result<Arc<ServerConfig>> {
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
    Ok(Arc::new(config.map_err(TlsFault::from)?))
}

impl Session for Connection {
    fn is_handshaking(&self) -> bool {
        (**self).is_handshaking()
    }

    fn receive(&mut self, arrived: &[u8]) -> io::Result<usize> {
        let mut rest = arrived;
        let taken = self.read_tls(&mut rest)?;
        let opened = self.process_new_packets();
        opened.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(taken)
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader().read(buf)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.writer().write_vectored(parts)
    }

    fn outgoing(&mut self) -> io::Result<Vec<u8>> {
        let mut records = Vec::new();
        while self.wants_write() {
            self.write_tls(&mut records)?;
        }
        Ok(records)
    }

    fn wants_write(&self) -> bool {
        (**self).wants_write()
    }

    fn close(&mut self) {
        self.send_close_notify();
    }
}
