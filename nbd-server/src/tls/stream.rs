//! TLS over another stream.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::session::Session;
use crate::connection::lock;
use crate::stream::{Stream, left, send};

/// The largest record with its header.
const RECORD_BYTES: usize = 5 + 16384 + 2048;

/// A stream inside another one.
///
/// One thread may read while another one writes. Records are made and opened under a lock that is held for no I/O, so
/// that a client that does not read cannot keep its own requests from being read.
pub(crate) struct TlsStream {
    raw: Arc<dyn Stream>,
    session: Mutex<Box<dyn Session>>,
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
    /// Shakes hands over `raw`, as the server or the client that `session` is.
    pub(crate) fn begin(raw: Arc<dyn Stream>, session: Box<dyn Session>, until: Instant) -> io::Result<Self> {
        let stream = Self {
            raw,
            session: Mutex::new(session),
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
        };
        stream.raw.limit(Some(left(until)?))?;
        // A client speaks first.
        stream.push(&[])?;
        while lock(&stream.session).is_handshaking() {
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
        let (taken, wants_write) = {
            let mut session = lock(&self.session);
            (session.receive(incoming), session.wants_write())
        };
        // If something is wrong with what came, the other side is told so, if it listens.
        let told = if wants_write { self.push(&[]) } else { Ok(0) };
        incoming.drain(..taken?.min(incoming.len()));
        told?;
        Ok(true)
    }

    /// Sends some of `parts`, and whatever else is to be sent.
    fn push(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let _outgoing = lock(&self.outgoing);
        let (done, records) = {
            let mut session = lock(&self.session);
            (session.write(parts)?, session.outgoing()?)
        };
        send(self.raw.as_ref(), &records, &[])?;
        Ok(done)
    }
}

impl Stream for TlsStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        loop {
            match lock(&self.session).read(buf) {
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
        lock(&self.session).close();
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

#[cfg(test)]
#[cfg(feature = "psk")]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread::spawn;

    use super::*;
    use crate::stream::fill;
    use crate::tls::{Keys, Tls};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Two sides of a connection.
    fn pair() -> (Arc<TlsStream>, Arc<TlsStream>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("alice:{}\n", "17".repeat(32))).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let (tls, until) = (Tls::from_keys(file.path()).unwrap(), Instant::now() + PATIENCE);
        let key = Keys::client(file.path(), Some("alice")).unwrap();
        let client = spawn(move || TlsStream::begin(Arc::new(there), key.session().unwrap(), until).unwrap());
        (Arc::new(tls.accept(Arc::new(here), until).unwrap()), Arc::new(client.join().unwrap()))
    }

    #[test]
    fn who_does_not_read_is_read_from() {
        let (server, client) = pair();
        let data: Vec<u8> = (0..4 << 20).map(|i: u32| (i % 251) as u8).collect();
        let writes = |stream: &Arc<TlsStream>| {
            let (stream, data) = (Arc::clone(stream), data.clone());
            spawn(move || send(stream.as_ref(), &data, &[]).unwrap())
        };
        let (mut heard, mut asked) = (vec![0; data.len()], vec![0; data.len()]);
        let until = Some(Instant::now() + PATIENCE);
        // Sockets do not hold as much: these answers wait, and what the client asks for is read nevertheless.
        let answers = writes(&server);
        let questions = writes(&client);
        assert!(fill(server.as_ref(), &mut asked, until).unwrap() && asked == data);
        questions.join().unwrap();
        assert!(!answers.is_finished());
        assert!(fill(client.as_ref(), &mut heard, until).unwrap() && heard == data);
        answers.join().unwrap();
    }

    #[test]
    fn who_says_nothing_is_given_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("alice:{}\n", "17".repeat(32))).unwrap();
        let tls = Tls::from_keys(file.path()).unwrap();
        // Nothing, half a record, and something else.
        for said in [b"".as_slice(), &[0x16, 3, 1, 2, 0, 1], &[0x16, 3, 1, 0, 4, 1, 0, 1, 0]] {
            let (here, there) = UnixStream::pair().unwrap();
            send(&there, said, &[]).unwrap();
            let since = Instant::now();
            let failed = tls.accept(Arc::new(here), since + Duration::from_millis(300)).unwrap_err();
            assert!(since.elapsed() < PATIENCE, "{failed}");
        }
    }
}
