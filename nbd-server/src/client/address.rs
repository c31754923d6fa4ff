//! Addresses of exports: NBD's `doc/uri.md`, with the parameters `tls-certificates` and `tls-psk-file` of libnbd.
//!
//! Left out: sockets of virtual machines (`nbd+vsock`), TLS with anybody (`tls-type=anon`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::fault::ClientFault;
use super::limits::NAME_BYTES_MAX;

/// The port of NBD.
pub const PORT: u16 = 10809;
/// How addresses begin: where the server is reached, and whether with TLS. None: by something that is not supported.
const SCHEMES: [(&str, Option<(bool, bool)>); 6] = [
    ("nbd://", Some((false, false))),
    ("nbds://", Some((false, true))),
    ("nbd+unix://", Some((true, false))),
    ("nbds+unix://", Some((true, true))),
    ("nbd+vsock://", None),
    ("nbds+vsock://", None),
];

/// Where an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where its server is.
    pub place: Place,
    /// Its name.
    pub export: String,
    /// With TLS.
    pub tls: Option<TlsWanted>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the network.
    Tcp {
        /// A name or an address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A socket on this machine.
    Unix(PathBuf),
    /// The same by a name that is no path.
    Abstract(Vec<u8>),
}

/// What an address says about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsWanted {
    /// The folder with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` for servers that want them.
    pub certificates: Option<PathBuf>,
    /// The name in the server's certificate.
    pub hostname: String,
    /// The server has to prove that it has that name.
    pub verify: bool,
    /// Instead of certificates, a key that both sides know.
    pub key: Option<KeyWanted>,
}

/// Which of the keys that a server knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyWanted {
    /// The file with keys, as `psktool` makes it.
    pub file: PathBuf,
    /// Whose it is; the user's if nobody is named.
    pub identity: Option<String>,
}

/// Whether a text looks like an address.
pub fn is_address(text: &[u8]) -> bool {
    SCHEMES.iter().any(|(scheme, _)| text.starts_with(scheme.as_bytes()))
}

impl Address {
    /// Parses an address.
    pub fn parse(text: &str) -> Result<Self, ClientFault> {
        let found = SCHEMES.iter().find_map(|(scheme, what)| Some((text.strip_prefix(scheme)?, what)));
        let (rest, what) =
            found.ok_or_else(|| bad("begins with none of nbd:, nbds:, nbd+unix:, nbds+unix:"))?;
        let (is_unix, is_tls) = what.ok_or(ClientFault::Unsupported("a socket of virtual machines"))?;
        if text.contains('#') {
            return Err(bad("has a fragment: a # is typed as %23"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
        let export = plain_text(name)?;
        if export.len() > NAME_BYTES_MAX || export.contains('\0') {
            return Err(bad("names an export that no server can have"));
        }
        let query = Query::parse(query, is_tls)?;
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let identity = Some(plain_text(user)?).filter(|user| !user.is_empty());
        let place = match query.socket {
            Some(socket) if is_unix => socket_of(socket)?,
            None if is_unix => return Err(bad("names no socket: ?socket=PATH")),
            Some(_) => return Err(bad("names a socket: its scheme is nbd+unix:")),
            None => tcp(host)?,
        };
        let tls = is_tls.then(|| TlsWanted {
            certificates: query.certificates,
            hostname: query.hostname.unwrap_or_else(|| match &place {
                Place::Tcp { host, .. } => host.clone(),
                _ => "localhost".into(),
            }),
            verify: query.verify,
            key: query.keys.map(|file| KeyWanted { file, identity }),
        });
        Ok(Self { place, export, tls })
    }
}

/// The parameters behind an address.
struct Query {
    socket: Option<Vec<u8>>,
    certificates: Option<PathBuf>,
    hostname: Option<String>,
    verify: bool,
    keys: Option<PathBuf>,
}

impl Query {
    fn parse(text: &str, is_tls: bool) -> Result<Self, ClientFault> {
        let mut query = Self { socket: None, certificates: None, hostname: None, verify: true, keys: None };
        let mut kind = None;
        for pair in text.split(['&', ';']).filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if key.starts_with("tls-") && !is_tls {
                return Err(bad(&format!("has {key}: with TLS its scheme is nbds: or nbds+unix:")));
            }
            match key {
                "socket" => query.socket = Some(plain(value)?),
                "tls-certificates" => {
                    query.certificates = Some(OsString::from_vec(plain(value)?).into());
                }
                "tls-hostname" => query.hostname = Some(plain_text(value)?),
                "tls-verify-peer" => {
                    query.verify = match value {
                        "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(bad("has a tls-verify-peer that is neither 0 nor 1")),
                    };
                }
                "tls-type" if value == "x509" || value == "psk" => kind = Some(value),
                "tls-type" => return Err(ClientFault::Unsupported("TLS with anybody")),
                "tls-psk-file" => query.keys = Some(OsString::from_vec(plain(value)?).into()),
                _ => return Err(bad(&format!("has the parameter {key:?}, which nobody knows"))),
            }
        }
        if query.keys.is_some() && query.certificates.is_some() {
            return Err(bad("has certificates and keys: a server takes either"));
        }
        if kind.is_some_and(|kind| (kind == "psk") != query.keys.is_some()) {
            return Err(bad(
                "has a tls-type that does not go with the rest: psk goes with tls-psk-file=FILE",
            ));
        }
        Ok(query)
    }
}

fn socket_of(socket: Vec<u8>) -> Result<Place, ClientFault> {
    match socket.split_first() {
        None => Err(bad("names no socket: ?socket=PATH")),
        Some((0, name)) => Ok(Place::Abstract(name.to_vec())),
        Some(_) if socket.contains(&0) => Err(bad("names a socket that no path can be")),
        Some(_) => Ok(Place::Unix(OsString::from_vec(socket).into())),
    }
}

fn tcp(authority: &str) -> Result<Place, ClientFault> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(|| bad("has a [ without its ]"))?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or_else(|| bad("has something between ] and :"))?),
            };
            (host.to_string(), port)
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(bad("has a host with colons, which is typed in brackets: [::1]"));
            }
            Some((host, port)) => (plain_text(host)?, Some(port)),
            None => (plain_text(authority)?, None),
        },
    };
    let port = match port {
        None | Some("") => PORT,
        Some(port) => port.parse().map_err(|_| bad(&format!("has the port {port:?}, which is none")))?,
    };
    Ok(Place::Tcp { host: if host.is_empty() { "localhost".into() } else { host }, port })
}

/// The bytes that an escaped text stands for.
fn plain(text: &str) -> Result<Vec<u8>, ClientFault> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let both = digit(bytes.next()).zip(digit(bytes.next()));
        let value = both.and_then(|(high, low)| u8::try_from(high.checked_mul(16)?.checked_add(low)?).ok());
        out.push(value.ok_or_else(|| bad("has a % without two digits behind it"))?);
    }
    Ok(out)
}

fn plain_text(text: &str) -> Result<String, ClientFault> {
    String::from_utf8(plain(text)?).map_err(|_| bad("has a name that is no text"))
}

fn bad(what: &str) -> ClientFault {
    ClientFault::Address(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Place {
        Place::Tcp { host: host.into(), port }
    }

    #[test]
    fn addresses_as_the_specification_has_them() {
        for (text, place, export) in [
            ("nbd://example.com/disk", tcp("example.com", PORT), "disk"),
            ("nbd://example.com", tcp("example.com", PORT), ""),
            ("nbd://example.com/", tcp("example.com", PORT), ""),
            ("nbd://example.com//disk", tcp("example.com", PORT), "/disk"),
            ("nbd://example.com:7/hello%20world", tcp("example.com", 7), "hello world"),
            ("nbd://[::1]:7/a/b?", tcp("::1", 7), "a/b"),
            ("nbd://[::1]", tcp("::1", PORT), ""),
            ("nbd:///x", tcp("localhost", PORT), "x"),
            ("nbd://alice@host/x", tcp("host", PORT), "x"),
            ("nbd+unix:///disk?socket=sock", Place::Unix("sock".into()), "disk"),
            ("nbd+unix:///?socket=/a%2Fb%26", Place::Unix("/a/b&".into()), ""),
            ("nbd+unix:///?socket=%00/abstract", Place::Abstract(b"/abstract".to_vec()), ""),
        ] {
            let found = Address::parse(text).unwrap();
            assert_eq!((found.place, found.export.as_str(), found.tls), (place, export, None), "{text}");
        }
    }

    #[test]
    fn tls_is_what_the_scheme_says() {
        let found = Address::parse("nbds://h/?tls-certificates=/c&tls-verify-peer=0").unwrap().tls.unwrap();
        assert_eq!(found.certificates, Some("/c".into()));
        assert_eq!((found.hostname.as_str(), found.verify), ("h", false));
        let found = Address::parse("nbds+unix:///?socket=s&tls-hostname=n").unwrap().tls.unwrap();
        assert_eq!((found.hostname.as_str(), found.verify), ("n", true));
        assert!(Address::parse("nbd://h/?tls-certificates=/c").is_err());
    }

    #[test]
    fn keys_belong_to_somebody() {
        let key = |text: &str| Address::parse(text).unwrap().tls.unwrap().key;
        let wanted = |file: &str, identity: Option<&str>| {
            Some(KeyWanted { file: file.into(), identity: identity.map(String::from) })
        };
        assert_eq!(key("nbds://h/?tls-psk-file=/a%20b"), wanted("/a b", None));
        assert_eq!(key("nbds://@h/?tls-psk-file=f&tls-type=psk"), wanted("f", None));
        assert_eq!(key("nbds://al%40ice@h:1/?tls-psk-file=f"), wanted("f", Some("al@ice")));
        assert_eq!(key("nbds+unix://alice@/x?socket=s&tls-psk-file=f"), wanted("f", Some("alice")));
        assert_eq!(key("nbds://alice@h/"), None);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "http://a/",
            "nbd:a",
            "nbd://a:70000/",
            "nbd://a:x/",
            "nbd://::1/",
            "nbd://[::1/",
            "nbd://[::1]7/",
            "nbd+unix:///x",
            "nbd+unix:///x?socket=",
            "nbd://a/?socket=x",
            "nbd://a/%4",
            "nbd://a/%zz",
            "nbd://a/%ff",
            "nbd://a/x#y",
            "nbd://a/?colour=red",
            "nbd://a/%00",
            "nbd+vsock://2/",
            "nbd+unix:///?socket=a%00b",
            "nbds://a/?tls-type=anon",
            "nbds://a/?tls-verify-peer=maybe",
            "nbd://a/?tls-psk-file=f",
            "nbds://a/?tls-type=psk",
            "nbds://a/?tls-type=x509&tls-psk-file=f",
            "nbds://a/?tls-certificates=c&tls-psk-file=f",
            "nbds://%ff@a/?tls-psk-file=f",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        assert!(is_address(b"nbd+unix:///x") && !is_address(b"nbd.qcow2") && !is_address(b"./nbd://x"));
    }
}
