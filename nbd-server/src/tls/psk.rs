//! TLS by keys that both sides know beforehand (PSK): TLS 1.3 alone, with a Diffie-Hellman exchange, so that what was
//! recorded stays secret when a key gets lost. s2n-tls does it, by its interface for tokio, of which no more than the
//! traits is used: below it lies memory, which never waits, and so nothing is ever to be woken.
//!
//! GnuTLS binds keys to SHA-256 and to nothing else; so does this.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use racker_formats::error::{Result, Within};
use s2n_tls::config::Config;
use s2n_tls::connection::{Builder, Connection};
use s2n_tls::enums::{Mode, PskHmac};
use s2n_tls::error::{Error, ErrorType};
use s2n_tls::psk::Psk;
use s2n_tls::security::Policy;
use s2n_tls_tokio::{TlsAcceptor, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::fault::{KeysFault, REFUSED};
use super::keys;
use super::session::Session;
use crate::connection::lock;

/// Nothing but TLS 1.3: AES-GCM and ChaCha20-Poly1305, X25519 and NIST's curves.
const POLICY: &str = "AWS-CRT-SDK-TLSv1.3-2023";
/// The first bytes of records: from `change_cipher_spec` to `application_data`.
const RECORD_KINDS: std::ops::RangeInclusive<u8> = 20..=23;
/// Bytes of which records are made at a time, at most.
const AT_ONCE: usize = 64 << 10;

/// The keys of a server, or the one of a client.
#[derive(Clone)]
pub(crate) struct Keys(Arc<Party>);

struct Party {
    mode: Mode,
    config: Config,
    keys: Vec<Psk>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.keys.len())
    }
}

impl Keys {
    /// All of a file: each of them lets a client in.
    pub(super) fn server(file: &Path) -> Result<Self> {
        Self::new(Mode::Server, &keys::read(file)?)
    }

    /// The one of `identity`, as which a client comes; if nobody is named, it is the user, as with libnbd.
    pub(crate) fn client(file: &Path, identity: Option<&str>) -> Result<Self> {
        let user = || std::env::var("LOGNAME").or_else(|_| std::env::var("USER")).ok();
        let identity = identity.map(String::from).or_else(user).ok_or(KeysFault::Nobody)?;
        let mut all = keys::read(file).within(|| file.display())?;
        all.retain(|key| key.identity == identity.as_bytes());
        if all.is_empty() {
            return Err(KeysFault::Unknown(identity).into()).within(|| file.display());
        }
        Self::new(Mode::Client, &all)
    }

    fn new(mode: Mode, keys: &[keys::Key]) -> Result<Self> {
        let failed = |e: Error| KeysFault::Library(e.message().into());
        let psk = |key: &keys::Key| {
            let mut psk = Psk::builder()?;
            psk.set_identity(&key.identity)?.set_secret(&key.secret)?.set_hmac(PskHmac::SHA256)?;
            psk.build()
        };
        let keys = keys.iter().map(psk).collect::<std::result::Result<_, _>>().map_err(failed)?;
        Ok(Self(Arc::new(Party { mode, config: config().map_err(failed)?, keys })))
    }

    /// A connection of which nothing was heard yet.
    pub(crate) fn session(&self) -> io::Result<Box<dyn Session>> {
        Ok(Box::new(self.start()?))
    }

    fn start(&self) -> io::Result<PskSession> {
        let below = Below::default();
        let party = TlsAcceptor::new(self.clone());
        let wire = below.clone();
        let shaking = Box::pin(async move { party.accept(wire).await });
        let mut session = PskSession { below, state: State::Shaking(shaking), is_heard: false };
        session.shake()?;
        Ok(session)
    }
}

fn config() -> std::result::Result<Config, Error> {
    let mut config = Config::builder();
    config.set_security_policy(&Policy::from_version(POLICY)?)?;
    // Nobody has a certificate: a client that takes no key finds nothing else, and neither does a server.
    config.with_system_certs(false)?;
    // Otherwise s2n would wait for half a minute before it says what is wrong, for the sake of ciphers whose padding
    // tells something by the time that it takes to check it. TLS 1.3 has none of these. It would wait by a timer of
    // tokio, which panics where tokio does not run.
    config.set_max_blinding_delay(0)?;
    config.build()
}

impl Builder for Keys {
    type Output = Connection;

    /// Which side it is, the keys know: the acceptor takes anybody for a server, and a connector would send a name
    /// that nobody needs.
    fn build_connection(&self, _: Mode) -> std::result::Result<Connection, Error> {
        let mut connection = self.0.config.build_connection(self.0.mode)?;
        connection.prefer_throughput()?;
        for key in &self.0.keys {
            connection.append_psk(key)?;
        }
        Ok(connection)
    }
}

/// What lies below a connection: bytes that have arrived, and bytes to be sent.
#[derive(Clone, Default)]
struct Below(Arc<Mutex<Buffers>>);

#[derive(Default)]
struct Buffers {
    arrived: VecDeque<u8>,
    to_send: Vec<u8>,
}

impl AsyncRead for Below {
    fn poll_read(self: Pin<&mut Self>, now: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let arrived = &mut lock(&self.0).arrived;
        if arrived.is_empty() {
            // Nobody sleeps, but it is checked whether somebody would be woken.
            now.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (front, _) = arrived.as_slices();
        let len = front.len().min(buf.remaining());
        buf.put_slice(front.get(..len).unwrap_or_default());
        arrived.drain(..len);
        if arrived.is_empty() {
            *arrived = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Below {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.0).to_send.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

type Open = TlsStream<Below, Connection>;

enum State {
    Shaking(Pin<Box<dyn Future<Output = std::result::Result<Open, Error>> + Send>>),
    Open(Open),
    Over,
}

struct PskSession {
    below: Below,
    state: State,
    /// Something has arrived.
    is_heard: bool,
}

impl PskSession {
    /// Goes on with the handshake as far as what has arrived allows it.
    fn shake(&mut self) -> io::Result<()> {
        let State::Shaking(shaking) = &mut self.state else { return Ok(()) };
        let Poll::Ready(done) = shaking.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            return Ok(());
        };
        self.state = State::Over;
        let open = done.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, why(&e)))?;
        // Who has shown no key has shown nothing.
        if !open.as_ref().negotiated_psk_identity_length().is_ok_and(|len| len > 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no key was agreed on"));
        }
        self.state = State::Open(open);
        Ok(())
    }

    /// Does something with an open connection; after an error nothing is done with it any more.
    fn with<T>(
        &mut self,
        action: impl FnOnce(Pin<&mut Open>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> io::Result<T> {
        let State::Open(open) = &mut self.state else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match action(Pin::new(open), &mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(Ok(done)) => Ok(done),
            Poll::Ready(Err(e)) => {
                self.state = State::Over;
                Err(io::Error::new(io::ErrorKind::InvalidData, e))
            }
        }
    }
}

/// What went wrong in a handshake, for people.
fn why(e: &Error) -> String {
    match e.kind() {
        ErrorType::Alert | ErrorType::ConnectionClosed => REFUSED.into(),
        _ => format!("no key was agreed on ({})", e.message()),
    }
}

impl Session for PskSession {
    fn is_handshaking(&self) -> bool {
        matches!(self.state, State::Shaking(_))
    }

    fn receive(&mut self, arrived: &[u8]) -> io::Result<usize> {
        // s2n-tls waits for as many bytes as the first ones would mean in a record, even if these begin none.
        if !self.is_heard && arrived.first().is_some_and(|kind| !RECORD_KINDS.contains(kind)) {
            self.state = State::Over;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the other side speaks something else"));
        }
        self.is_heard = true;
        // All that came before has been looked at: there is at most one more record than what is here.
        lock(&self.below.0).arrived.extend(arrived);
        self.shake()?;
        Ok(arrived.len())
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        self.with(|open, now| open.poll_read(now, &mut buf))?;
        Ok(buf.filled().len())
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // Small parts go into one record. Nothing of this is kept: idle connections are to be small.
        let len = parts.iter().map(|part| part.len()).fold(0, usize::saturating_add);
        let mut plain = Vec::with_capacity(len.min(AT_ONCE));
        for part in parts {
            let room = AT_ONCE.saturating_sub(plain.len());
            plain.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
        }
        if plain.is_empty() {
            return Ok(0);
        }
        self.with(|open, now| open.poll_write(now, &plain))
    }

    fn outgoing(&mut self) -> io::Result<Vec<u8>> {
        Ok(std::mem::take(&mut lock(&self.below.0).to_send))
    }

    fn wants_write(&self) -> bool {
        !lock(&self.below.0).to_send.is_empty()
    }

    fn close(&mut self) {
        // Nothing can be done about a good-bye that fails.
        let _ = self.with(|open, now| open.poll_shutdown(now));
    }
}

#[cfg(test)]
mod tests {
    use s2n_tls::enums::PeerKeyUpdate;

    use super::*;

    fn keys(mode: Mode, all: &[(&str, u8)]) -> Keys {
        let key = |(identity, byte): &(&str, u8)| keys::Key {
            identity: identity.as_bytes().to_vec(),
            secret: vec![*byte; 32].into(),
        };
        Keys::new(mode, &all.iter().map(key).collect::<Vec<_>>()).unwrap()
    }

    fn start(keys: &Keys) -> PskSession {
        keys.start().unwrap()
    }

    /// Moves what is to be sent to the other side, `at_once` bytes at a time.
    fn send(from: &mut PskSession, to: &mut PskSession, at_once: usize) -> io::Result<usize> {
        let records = from.outgoing()?;
        for part in records.chunks(at_once) {
            assert_eq!(to.receive(part)?, part.len());
        }
        Ok(records.len())
    }

    fn shake(client: &mut PskSession, server: &mut PskSession, at_once: usize) -> io::Result<()> {
        while send(client, server, at_once)? + send(server, client, at_once)? > 0 {}
        Ok(())
    }

    /// A client and a server that have shaken hands.
    fn pair(at_once: usize) -> (PskSession, PskSession) {
        let mut client = start(&keys(Mode::Client, &[("bob", 2)]));
        let mut server = start(&keys(Mode::Server, &[("alice", 1), ("bob", 2)]));
        shake(&mut client, &mut server, at_once).unwrap();
        assert!(!client.is_handshaking() && !server.is_handshaking());
        (client, server)
    }

    /// Says something, so much of it arriving at once, and hears it.
    fn say(from: &mut PskSession, to: &mut PskSession, at_once: usize) {
        let said: Vec<u8> = (0..AT_ONCE).map(|i| i as u8).collect();
        let parts =
            [IoSlice::new(&said[..28]), IoSlice::new(&[]), IoSlice::new(&said[28..]), IoSlice::new(&[0; 9])];
        assert_eq!(from.write(&parts).unwrap(), AT_ONCE);
        let mut heard = Vec::new();
        for part in from.outgoing().unwrap().chunks(at_once) {
            to.receive(part).unwrap();
            let mut buf = [0; 5000];
            loop {
                match to.read(&mut buf) {
                    Ok(len) => heard.extend_from_slice(&buf[..len]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => panic!("{e}"),
                }
            }
            // Nothing is kept that was not looked at.
            assert!(lock(&to.below.0).arrived.is_empty());
        }
        assert!(heard == said);
    }

    #[test]
    fn both_sides_hear_what_the_other_says() {
        for at_once in [1, 100, 1 << 20] {
            let (mut client, mut server) = pair(at_once);
            for _ in 0..3 {
                say(&mut client, &mut server, at_once.max(7));
                say(&mut server, &mut client, at_once.max(7));
            }
            client.close();
            send(&mut client, &mut server, at_once).unwrap();
            assert_eq!(server.read(&mut [0; 9]).unwrap(), 0);
            server.close();
        }
    }

    #[test]
    fn keys_of_records_are_renewed() {
        let (mut client, mut server) = pair(1 << 20);
        for _ in 0..3 {
            let State::Open(open) = &mut client.state else { panic!() };
            open.as_mut().request_key_update(PeerKeyUpdate::KeyUpdateNotRequested).unwrap();
            say(&mut client, &mut server, 1000);
            say(&mut server, &mut client, 1000);
        }
    }

    #[test]
    fn other_keys_and_none_let_nobody_in() {
        let server = keys(Mode::Server, &[("alice", 1), ("bob", 2)]);
        for all in [&[("alice", 2)], &[("carol", 1)], &[("alic", 1)], &[("alice ", 1)]] {
            let (mut client, mut server) = (start(&keys(Mode::Client, all)), start(&server));
            let failed = shake(&mut client, &mut server, 1 << 20).unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::InvalidData);
            assert!(!server.is_handshaking() && server.write(&[IoSlice::new(b"x")]).is_err());
            assert_eq!(server.read(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            server.close();
        }
        for rubbish in [b"\0".as_slice(), b"\xff", b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0, 4, 9, 9, 9, 9]]
        {
            assert!(start(&server).receive(rubbish).is_err(), "{rubbish:?}");
        }
        // A record's length is believed before what is in it: no more than 64 KiB are waited for.
        assert!(start(&server).receive(&[0x16; 70_000]).is_err());
    }

    #[test]
    fn what_was_changed_on_the_way_is_found() {
        let (client, server) = (keys(Mode::Client, &[("a", 1)]), keys(Mode::Server, &[("a", 1)]));
        let first = start(&client).outgoing().unwrap().len();
        // All but the version before the first record, at which nobody looks.
        for at in (0..first).filter(|at| ![1, 2].contains(at)) {
            let (mut client, mut server) = (start(&client), start(&server));
            let mut hello = client.outgoing().unwrap();
            hello[at] ^= 1 << (at % 8);
            if server.receive(&hello).is_ok() {
                let _ = shake(&mut client, &mut server, 1 << 20);
                assert!(!matches!(server.state, State::Open(_)), "{at}");
            }
        }
        let (mut client, mut server) = pair(1 << 20);
        client.write(&[IoSlice::new(b"hello")]).unwrap();
        let mut record = client.outgoing().unwrap();
        *record.last_mut().unwrap() ^= 1;
        server.receive(&record).unwrap();
        assert_eq!(server.read(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        server.close();
    }
}
