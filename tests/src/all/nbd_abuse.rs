//! `racker disk serve` and clients that break the protocol: each hears so, or is cut off, and nobody else notices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::tool::tool;

use super::nbd::Served;

const REQUEST: u32 = 0x2560_9513;

/// A client that sends what it is told to.
pub(crate) struct Client(UnixStream);

impl Client {
    /// As far as the server's greeting, with these flags as the answer.
    fn greet(socket: &Path, flags: u32) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Self(stream);
        let greeting = client.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        client.put(&flags.to_be_bytes());
        client
    }

    /// As far as requests.
    pub(crate) fn go(socket: &Path, name: &[u8], options: &[u32]) -> Self {
        let mut client = Self::greet(socket, 3);
        for option in options {
            assert_eq!(client.option(*option, &[]).0, 1);
        }
        assert_eq!(client.option(7, &question(name)).0, 1);
        client
    }

    fn put(&mut self, bytes: &[u8]) {
        // A server that has cut us off does not take it.
        let _ = self.0.write_all(bytes);
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn put_option(&mut self, option: u32, len: u32, data: &[u8]) {
        let head = [b"IHAVEOPT".as_slice(), &option.to_be_bytes(), &len.to_be_bytes(), data].concat();
        self.put(&head);
    }

    /// The last answer to an option, and how many came before.
    fn option(&mut self, option: u32, data: &[u8]) -> (u32, usize) {
        self.put_option(option, data.len() as u32, data);
        self.answer(option)
    }

    fn answer(&mut self, option: u32) -> (u32, usize) {
        let mut before = 0;
        loop {
            assert_eq!(self.take(8), 0x0003_e889_0455_65a9u64.to_be_bytes());
            assert_eq!(self.number(), option);
            let (kind, len) = (self.number(), self.number());
            self.take(len as usize);
            if kind == 1 || kind >= 1 << 31 {
                return (kind, before);
            }
            before += 1;
        }
    }

    fn put_request(&mut self, command: u16, flags: u16, at: u64, len: u32, data: &[u8]) {
        self.put(&request(command, flags, at, len, data));
    }

    /// The error of a simple reply.
    pub(crate) fn request(&mut self, command: u16, flags: u16, at: u64, len: u32, data: &[u8]) -> u32 {
        self.put_request(command, flags, at, len, data);
        self.simple()
    }

    fn simple(&mut self) -> u32 {
        assert_eq!(self.number(), 0x6744_6698);
        let error = self.number();
        assert_eq!(self.take(8), 7u64.to_be_bytes());
        error
    }

    /// The server has ended the connection, and says no more.
    fn is_cut_off(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{rest:?}"),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

/// A compact request.
fn request(command: u16, flags: u16, at: u64, len: u32, data: &[u8]) -> Vec<u8> {
    let (flags, command, cookie) = (flags.to_be_bytes(), command.to_be_bytes(), 7u64.to_be_bytes());
    let magic = REQUEST.to_be_bytes();
    [magic.as_slice(), &flags, &command, &cookie, &at.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

/// The data of `INFO` and `GO` without any wish.
fn question(name: &[u8]) -> Vec<u8> {
    [(name.len() as u32).to_be_bytes().as_slice(), name, &[0, 0]].concat()
}

fn served(args: &[&str]) -> (tempfile::TempDir, Served) {
    let dir = tempfile::tempdir().unwrap();
    tool("qemu-img").args(["create", "-q", "-f", "qcow2", "a.qcow2", "16M"]).dir(dir.path()).ok();
    let served = Served::start(dir.path(), &[args, &["a.qcow2", "-n", "a"]].concat(), 1);
    (dir, served)
}

/// Somebody else is served as ever.
fn is_well(served: &Served) {
    assert_eq!(tool("nbdinfo").args(["--size", &served.uris[0]]).ok().trim(), "16777216");
}

#[test]
fn handshakes() {
    let (_dir, served) = served(&[]);
    let greet = || Client::greet(&served.socket, 3);
    // Flags that nobody knows.
    Client::greet(&served.socket, 4).is_cut_off();
    // No option where one is expected: a request, as if the handshake had ended.
    let mut client = greet();
    client.put_request(0, 0, 0, 512, &[]);
    client.is_cut_off();
    // An unknown option, with data; then the connection still is good.
    let mut client = greet();
    assert_eq!(client.option(77, &[1; 5000]), (0x8000_0001, 0));
    assert_eq!(client.option(3, &[]), (1, 1));
    // Options that carry no data.
    for option in [3, 5, 8, 11] {
        assert_eq!(client.option(option, &[0]), (0x8000_0003, 0));
    }
    // No certificate, no TLS; and what was sent behind it is an option as any other.
    assert_eq!(client.option(5, &[]), (0x8000_0002, 0));
    // Too long, and far too long.
    assert_eq!(client.option(10, &vec![0; 100_000]), (0x8000_0009, 0));
    client.put_option(6, u32::MAX, &[0; 64]);
    client.is_cut_off();
    // Names.
    let mut client = greet();
    assert_eq!(client.option(6, &question(b"b")), (0x8000_0006, 0));
    assert_eq!(client.option(7, &question(&[b'a'; 5000])), (0x8000_0009, 0));
    assert_eq!(client.option(7, &[0, 0, 0, 9, b'a', 0, 0]), (0x8000_0003, 0));
    assert_eq!(client.option(6, &[0, 0, 0, 1, b'a', 0, 9]), (0x8000_0003, 0));
    // The export and its block sizes, which nobody has to ask for.
    assert_eq!(client.option(6, &question(b"a")), (1, 2));
    // Contexts need replies that can carry them, and questions that fill their option.
    let contexts = [0, 0, 0, 1, b'a', 0, 0, 0, 1, 0, 0, 0, 5, b'b', b'a', b's', b'e', b':'];
    assert_eq!(client.option(10, &contexts), (0x8000_0003, 0));
    assert_eq!(client.option(8, &[]), (1, 0));
    assert_eq!(client.option(9, &contexts), (1, 1));
    assert_eq!(client.option(10, &contexts), (1, 0));
    assert_eq!(client.option(9, &contexts[..17]), (0x8000_0003, 0));
    assert_eq!(client.option(9, &[0, 0, 0, 1, b'a', 255, 255, 255, 255]), (0x8000_0003, 0));
    // Extended headers stay, and exclude the old way to choose.
    assert_eq!(client.option(11, &[]), (1, 0));
    assert_eq!(client.option(8, &[]), (0x8000_000a, 0));
    client.put_option(1, 1, b"a");
    client.is_cut_off();
    let mut client = greet();
    client.put_option(1, 1, b"b");
    client.is_cut_off();
    // The old way: size, flags, zeroes unless the client does without.
    for (flags, zeroes) in [(1, 124), (3, 0)] {
        let mut client = Client::greet(&served.socket, flags);
        client.put_option(1, 1, b"a");
        assert_eq!(client.take(8), (16u64 << 20).to_be_bytes());
        client.take(2 + zeroes);
        assert_eq!(client.request(3, 0, 0, 0, &[]), 0);
        client.put_request(2, 0, 0, 0, &[]);
        client.is_cut_off();
    }
    let mut client = greet();
    assert_eq!(client.option(2, &[1, 2, 3]), (1, 0));
    client.is_cut_off();
    is_well(&served);
    served.end();
}

#[test]
fn requests() {
    let (_dir, served) = served(&[]);
    let mut client = Client::go(&served.socket, b"a", &[]);
    let size = 16 << 20;
    assert_eq!(client.request(0, 0, size - 1, 2, &[]), 22);
    assert_eq!(client.request(0, 0, u64::MAX, 2, &[]), 22);
    assert_eq!(client.request(0, 0, 0, u32::MAX, &[]), 22);
    assert_eq!(client.request(1, 0, size - 1, 2, &[1, 2]), 28);
    assert_eq!(client.request(1, 0, u64::MAX - 1, 4, &[1; 4]), 28);
    assert_eq!(client.request(6, 0, size, 1, &[]), 28);
    assert_eq!(client.request(4, 0, 1, u32::MAX, &[]), 22);
    // Unknown commands and flags; flags of other commands; status without contexts; a size that may not change.
    assert_eq!(client.request(99, 0, 0, 0, &[]), 22);
    assert_eq!(client.request(0, 1 << 9, 0, 512, &[]), 22);
    assert_eq!(client.request(3, 2, 0, 0, &[]), 22);
    assert_eq!(client.request(3, 0, 1, 0, &[]), 22);
    assert_eq!(client.request(0, 4, 0, 512, &[]), 22);
    assert_eq!(client.request(7, 0, 0, 512, &[]), 22);
    assert_eq!(client.request(8, 0, 1 << 40, 0, &[]), 22);
    // More than is taken: read past, and refused.
    let long = vec![1; 65 << 20];
    assert_eq!(client.request(1, 0, 0, 65 << 20, &long), 22);
    assert_eq!(client.request(1, 1, 0, 4, &[1; 4]), 0);
    // Far more.
    client.put_request(1, 0, 0, u32::MAX, &[0; 64]);
    client.is_cut_off();
    let mut client = Client::go(&served.socket, b"a", &[]);
    client.put(b"IHAVEOPT____________________");
    client.is_cut_off();
    is_well(&served);
    served.end();
}

/// A reader that never reads, writers that stop half-way, and many who say nothing at all.
#[test]
fn slow_and_many() {
    let (dir, served) = served(&[]);
    let mut slow = Client::go(&served.socket, b"a", &[]);
    slow.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    for _ in 0..200 {
        slow.put_request(0, 0, 0, 16 << 20, &[]);
    }
    let mut half = Client::go(&served.socket, b"a", &[]);
    half.put_request(1, 0, 4096, 1 << 20, &[9; 1000]);
    // Writes are done while they arrive where that is quick.
    let mut begun = Client::go(&served.socket, b"a", &[]);
    for _ in 0..4 {
        assert_eq!(begun.request(1, 0, 8 << 20, 1 << 20, &vec![9; 1 << 20]), 0);
    }
    begun.put_request(1, 0, 8 << 20, 1 << 20, &[9; 100_000]);
    let silent: Vec<Client> = (0..200).map(|_| Client::go(&served.socket, b"a", &[])).collect();
    let greeted: Vec<Client> = (0..20).map(|_| Client::greet(&served.socket, 3)).collect();
    is_well(&served);
    // It ends in spite of them, and not before its time.
    drop((half, begun, silent, greeted));
    is_well(&served);
    drop(slow);
    let start = Instant::now();
    served.end();
    assert!(start.elapsed() < Duration::from_secs(20));
    // What arrived by half was not written, where nothing else was known of the client.
    let reads = ["-c", "read -P 0 0 8M", "-c", "read -P 9 8M 1M", "-c", "read -P 0 9M 7M"];
    tool("qemu-io").args(reads).arg("a.qcow2").dir(dir.path()).ok();
}

/// A full disk is an answer, in the middle of what is written as well, and what follows it is understood.
#[test]
fn a_full_disk_is_an_answer() {
    const LEN: u32 = 512 << 10;
    let dir = tempfile::tempdir().unwrap();
    tool("truncate").args(["-s", "4M", "host.img"]).dir(dir.path()).ok();
    tool("mke2fs").args(["-q", "-F", "host.img"]).dir(dir.path()).ok();
    let host = Mounted::writable(&dir.path().join("host.img"), WHOLE);
    tool("truncate").args(["-s", "16M", "a.raw"]).dir(host.path()).ok();
    let served = Served::start(host.path(), &["-f", "raw", "a.raw", "-n", "a"], 1);
    let mut client = Client::go(&served.socket, b"a", &[]);
    let data = vec![7; LEN as usize];
    let mut write = |i: u64| {
        // The disk is quick: the next write is done while it arrives.
        assert_eq!(client.request(1, 0, 0, 4096, &data[..4096]), 0);
        client.request(1, 0, i * u64::from(LEN), LEN, &data)
    };
    let errors: Vec<u32> = (0..24).map(&mut write).collect();
    assert!(errors.iter().all(|error| [0, 28].contains(error)), "{errors:?}");
    assert!(errors.contains(&28) && errors.contains(&0), "{errors:?}");
    assert_eq!(client.request(0, 0, 0, LEN, &[]), 0);
    assert_eq!(client.take(LEN as usize), data);
    is_well(&served);
    served.end();
}

/// A client that takes no answer before it has sent all that it has to say.
#[test]
fn sends_first_and_listens_later() {
    const LEN: u32 = 256 << 10;
    const READS: u64 = 12;
    let (_dir, served) = served(&[]);
    let mut client = Client::go(&served.socket, b"a", &[]);
    assert_eq!(client.request(1, 0, 0, 4 << 20, &vec![5; 4 << 20]), 0);
    client.0.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let with_cookie = |mut request: Vec<u8>, cookie: u64| {
        request[8..16].copy_from_slice(&cookie.to_be_bytes());
        request
    };
    for cookie in 0..READS {
        let read = with_cookie(request(0, 0, u64::from(LEN) * cookie, LEN, &[]), cookie);
        client.0.write_all(&read).unwrap();
    }
    let write = request(1, 0, 8 << 20, 4 << 20, &vec![6; 4 << 20]);
    client.0.write_all(&with_cookie(write, READS)).unwrap();
    let mut answered = 0u64;
    for _ in 0..=READS {
        assert_eq!((client.number(), client.number()), (0x6744_6698, 0));
        let cookie = u64::from_be_bytes(client.take(8).try_into().unwrap());
        if cookie < READS {
            assert!(client.take(LEN as usize).iter().all(|byte| *byte == 5));
        }
        answered |= 1 << cookie;
    }
    assert_eq!(answered, (1 << (READS + 1)) - 1);
    is_well(&served);
    served.end();
}

#[test]
fn more_than_are_allowed() {
    let (_dir, served) = served(&["--max-connections", "2", "--idle-timeout", "1"]);
    let mut one = Client::go(&served.socket, b"a", &[]);
    let _two = Client::go(&served.socket, b"a", &[]);
    let mut three = Client(UnixStream::connect(&served.socket).unwrap());
    three.is_cut_off();
    // Who asks for nothing makes room.
    one.is_cut_off();
    is_well(&served);
    served.end();
}

/// Frames of a fair conversation, cut off at every byte.
#[test]
fn cut_off_anywhere() {
    let (_dir, served) = served(&[]);
    let mut whole = 3u32.to_be_bytes().to_vec();
    let mut option = |number: u32, data: &[u8]| {
        whole.extend(
            [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data]
                .concat(),
        );
    };
    option(8, &[]);
    option(9, &[0, 0, 0, 1, b'a', 0, 0, 0, 0]);
    option(7, &question(b"a"));
    for (command, len, data) in
        [(1u16, 8u32, [5u8; 8].as_slice()), (0, 4096, &[]), (6, 4096, &[]), (3, 0, &[])]
    {
        whole.extend(request(command, 0, 0, len, data));
    }
    for len in 0..whole.len() {
        let mut stream = UnixStream::connect(&served.socket).unwrap();
        let _ = stream.write_all(&whole[..len]);
    }
    is_well(&served);
    served.end();
}

/// Nothing is told before TLS, and nothing that is sent before it counts as sent through it.
pub(crate) fn before_tls(socket: &Path) {
    let mut client = Client::greet(socket, 3);
    for (option, data) in
        [(3, vec![]), (6, question(b"a.raw")), (7, question(b"a.raw")), (8, vec![]), (77, vec![])]
    {
        assert_eq!(client.option(option, &data), (0x8000_0005, 0));
    }
    assert_eq!(client.option(5, &[1]), (0x8000_0003, 0));
    let mut client = Client::greet(socket, 3);
    client.put_option(1, 5, b"a.raw");
    client.is_cut_off();
    // Behind the option, in one piece with it, what a stranger would like to have said through TLS.
    let mut client = Client::greet(socket, 3);
    let mut both = [b"IHAVEOPT".as_slice(), &5u32.to_be_bytes(), &[0; 4]].concat();
    both.extend([b"IHAVEOPT".as_slice(), &3u32.to_be_bytes(), &[0; 4]].concat());
    client.put(&both);
    assert_eq!(client.answer(5), (1, 0));
    // An alert is all that comes back.
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest);
    assert!(rest.len() < 16 && rest.first().is_none_or(|b| *b == 21), "{rest:?}");
}
