//! The client's side of TLS: by certificates (rustls, 1.2 and 1.3), or by a key that the server knows as well.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use racker_formats::error::{Error, Result, Within};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::address::TlsWanted;
use super::fault::ClientFault;
use crate::stream::Stream;
use crate::tls::{Keys, REFUSED, Session, TlsStream};

/// What is wrong with the files of a folder of certificates.
fn bad(name: &str, e: impl std::fmt::Display) -> Error {
    Error::from(ClientFault::Tls(e.to_string())).within(name).with_hint(
        "the folder holds ca-cert.pem and, for servers that want to know clients, client-cert.pem and client-key.pem",
    )
}

/// How the server is known, and how this client is.
#[derive(Clone, Debug)]
pub(super) enum ClientTls {
    Certificates { config: Arc<ClientConfig>, name: ServerName<'static> },
    Key(Keys),
}

impl ClientTls {
    /// As an address wants it.
    pub(super) fn new(wanted: &TlsWanted) -> Result<Self> {
        match &wanted.key {
            Some(key) => Ok(Self::Key(Keys::client(&key.file, key.identity.as_deref())?)),
            None => Self::by_certificates(wanted),
        }
    }

    /// The server is known by `ca-cert.pem` of its folder, or to the authorities of this system where no folder is
    /// named.
    fn by_certificates(wanted: &TlsWanted) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|e| bad("TLS", e))?;
        let builder = if wanted.verify {
            builder.with_root_certificates(roots(wanted.certificates.as_deref())?)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        };
        let config = match wanted.certificates.as_deref().filter(|f| f.join("client-cert.pem").exists()) {
            Some(folder) => {
                let own = certificates(folder, "client-cert.pem")?;
                let key = PrivateKeyDer::from_pem_file(folder.join("client-key.pem"));
                let key = key.map_err(|e| bad("client-key.pem", e))?;
                builder.with_client_auth_cert(own, key).map_err(|e| bad("client-cert.pem", e))?
            }
            None => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from(wanted.hostname.clone());
        let name =
            name.map_err(|_| ClientFault::Address("has no name that a certificate could have".into()))?;
        Ok(Self::Certificates { config: Arc::new(config), name })
    }

    /// Makes a stream safe.
    pub(super) fn begin(
        &self,
        raw: Arc<dyn Stream>,
        until: Instant,
    ) -> std::result::Result<Arc<dyn Stream>, ClientFault> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidData => ClientFault::Tls(e.to_string()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientFault::Tls("the server does not answer".into())
            }
            _ => match (ClientFault::io(&e), self) {
                (ClientFault::Ended, Self::Key(_)) => ClientFault::Tls(REFUSED.into()),
                (fault, _) => fault,
            },
        };
        let session: Box<dyn Session> = match self {
            Self::Certificates { config, name } => {
                let connection = ClientConnection::new(Arc::clone(config), name.clone());
                let connection = connection.map_err(|e| ClientFault::Tls(e.to_string()))?;
                Box::new(rustls::Connection::from(connection))
            }
            Self::Key(key) => key.session().map_err(failed)?,
        };
        Ok(Arc::new(TlsStream::begin(raw, session, until).map_err(failed)?))
    }
}

fn certificates(folder: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(folder.join(name)).and_then(Iterator::collect);
    all.map_err(|e| bad(name, e))
}

/// The authorities that servers are known to.
fn roots(folder: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(folder) = folder else {
        // One that cannot be used takes nothing away from the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            let e = ClientFault::Tls("this system knows no authorities".into());
            return Err(Error::from(e).with_hint("tls-certificates=FOLDER names a folder with ca-cert.pem"));
        }
        return Ok(roots);
    };
    for root in certificates(folder, "ca-cert.pem").within(|| folder.display())? {
        roots.add(root).map_err(|e| bad("ca-cert.pem", e))?;
    }
    Ok(roots)
}

type Checked<T> = std::result::Result<T, rustls::Error>;

/// Takes every server for the right one, as `tls-verify-peer=0` wants it.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Checked<ServerCertVerified> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Checked<HandshakeSignatureValid> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Checked<HandshakeSignatureValid> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
