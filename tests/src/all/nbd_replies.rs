//! The NBD client and servers that break the protocol, say too much, or nothing: in this process. The seeds are those of
//! the fuzz target `nbd_client`.

use std::io::{self, IoSlice, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use racker_formats::Result;
use racker_formats::block::{BlockDevice, Caps, Disk, MemDevice, Span};
use racker_formats::error::Kind;
use racker_nbd::client::connect_by;
use racker_nbd::client::dial::{Dial, Single};
use racker_nbd::client::fault::ClientFault;
use racker_nbd::client::limits::Patience;
use racker_nbd::limits::Limits;
use racker_nbd::stream::{Said, Stream};
use racker_nbd::{Export, Server};
use racker_tests::listener::await_listener;
use racker_tests::rng::Rng;

/// No test waits longer than this for a server that is stuck.
const SHORT: Patience = Patience {
    handshake: Duration::from_millis(400),
    answer: Duration::from_millis(400),
    slow: Duration::from_millis(900),
    whole: Duration::from_secs(2),
};

/// What a client does with a disk. The answers are those of the seeds, whatever is asked.
fn use_up(server: impl Dial + 'static) -> Result<usize> {
    let disk = connect_by(server, "a", SHORT)?;
    let mut sum = disk.runs(Span::first(disk.size())).take(100).map_while(Result::ok).count();
    let mut buf = vec![0; 20_000];
    let len = buf.len().min(usize::try_from(disk.size()).unwrap_or(usize::MAX));
    disk.read_at(0, &mut buf[..len])?;
    disk.read_at(1, &mut buf[1..len.max(2) - 1])?;
    sum += buf.iter().filter(|b| **b != 0).count();
    if disk.writable() {
        disk.write_at(3, &[1; 4000])?;
        disk.write_zeroes(Span::new(4096, 9000)?)?;
        disk.discard(Span::new(512, 8192)?)?;
        disk.flush()?;
    }
    sum += disk.runs(Span::first(disk.size())).take(100).map_while(Result::ok).count();
    disk.read_at(4000, &mut buf[..len / 2])?;
    Ok(sum)
}

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/nbd_client")
}

/// 800 of each; `RUNS=…` for more.
#[test]
fn damaged_answers() {
    let runs = std::env::var("RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(800u64);
    let mut count = 0;
    for seed in std::fs::read_dir(seeds()).unwrap() {
        let seed = seed.unwrap();
        let whole = std::fs::read(seed.path()).unwrap();
        let (_, said) = whole.split_first().unwrap();
        let sum = use_up(Single::new(Arc::new(Said::new(said, 100_000)))).unwrap();
        assert_eq!(sum, use_up(Single::new(Arc::new(Said::new(said, 1)))).unwrap());
        count += 1;
        let mut rng = Rng::new(whole.len() as u64);
        for run in 0..runs {
            let mut said = said.to_vec();
            // The frames are where it hurts, and few.
            let within = if rng.below(2) == 0 { 700 } else { u64::MAX };
            rng.damage(&mut said, within);
            let start = Instant::now();
            let _ = use_up(Single::new(Arc::new(Said::new(&said, 1 + rng.below(8192) as usize))));
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}, run {run}", seed.file_name());
        }
    }
    assert_eq!(count, 4);
}

/// Keeps what a server says.
#[derive(Debug)]
struct Tee(UnixStream, Arc<Mutex<Vec<u8>>>);

impl Stream for Tee {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let got = Stream::read(&self.0, buf)?;
        self.1.lock().unwrap().extend_from_slice(&buf[..got]);
        Ok(got)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Stream::write(&self.0, parts)
    }

    fn limit(&self, time: Option<Duration>) -> io::Result<()> {
        self.0.limit(time)
    }

    fn limit_input(&self, time: Duration) -> io::Result<()> {
        self.0.limit_input(time)
    }

    fn end_input(&self) {
        self.0.end_input();
    }

    fn end(&self) {
        self.0.end();
    }

    fn peer(&self) -> String {
        String::new()
    }
}

/// Makes the seeds anew: `cargo test -p racker-tests --test all nbd_replies::make_seeds -- --ignored`.
#[test]
#[ignore = "writes to fuzz/seeds"]
fn make_seeds() {
    std::fs::create_dir_all(seeds()).unwrap();
    let keep = |name: &str, stream: UnixStream| {
        let said = Arc::new(Mutex::new(vec![0x7f]));
        use_up(Single::new(Arc::new(Tee(stream, said.clone())))).unwrap();
        std::fs::write(seeds().join(name), said.lock().unwrap().as_slice()).unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    let blocks =
        "--filter=blocksize-policy blocksize-minimum=512 blocksize-preferred=4096 blocksize-maximum=8192";
    for (name, options) in [("simple", "--no-sr"), ("structured", ""), ("blocks", blocks)] {
        let socket = dir.path().join(name);
        let [filter, parameters] = match options.split_once(' ') {
            Some((filter, parameters)) => [filter, parameters],
            None => [options, ""],
        };
        let script = format!(
            "nbdkit -f -U {} {filter} data size=32K data='@1024 1*700 @20000 2*3000' {parameters} & pid=$!; \
             read -r _; kill $pid",
            socket.display()
        );
        let mut child = racker_tests::tool::tool("sh").args(["-c", &script]).spawn();
        await_listener(&socket);
        keep(name, UnixStream::connect(&socket).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    let mut bytes = vec![0; 32 << 10];
    bytes[1024..1724].fill(1);
    let server = served(Disk::new(MemDevice::from_bytes(bytes)));
    let (ours, theirs) = UnixStream::pair().unwrap();
    server.connect(Arc::new(theirs), || {}).unwrap();
    keep("extended", ours);
}

fn served(disk: Disk) -> Server {
    Server::new(vec![Export::new("a", disk)], Some(0), Limits::default(), None, |_| {}).unwrap()
}

/// What a server says that goes as far as serving 1 MiB with structured replies and the context 1.
fn begun() -> Vec<u8> {
    let mut said = [b"NBDMAGICIHAVEOPT".as_slice(), &3u16.to_be_bytes()].concat();
    said.extend(answer(11, 0x8000_0001, b""));
    said.extend(answer(8, 1, b""));
    said.extend(answer(10, 4, b"\0\0\0\x01base:allocation"));
    said.extend(answer(10, 1, b""));
    // Flags, read-only, multi-conn.
    said.extend(answer(7, 3, &[b"\0\0".as_slice(), &(1u64 << 20).to_be_bytes(), &[0, 0x05]].concat()));
    said.extend(answer(7, 1, b""));
    said
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
    let len = (data.len() as u32).to_be_bytes();
    [magic.as_slice(), &option.to_be_bytes(), &kind.to_be_bytes(), &len, data].concat()
}

fn chunk(cookie: u64, kind: u16, is_last: bool, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    let flags = u16::from(is_last).to_be_bytes();
    [&0x668e_33efu32.to_be_bytes(), flags.as_slice(), &kind.to_be_bytes(), &cookie.to_be_bytes(), &len, data]
        .concat()
}

/// A server that says all of this at once and then nothing.
fn says(said: &[u8]) -> (Single, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(said).unwrap();
    (Single::new(Arc::new(ours)), theirs)
}

fn fault(e: &racker_formats::Error) -> ClientFault {
    e.fault::<ClientFault>().unwrap_or_else(|| panic!("{e:?}")).clone()
}

#[test]
fn answers_that_were_not_asked_for_end_the_connection() {
    let at = |at: u64, bytes: &[u8]| [at.to_be_bytes().as_slice(), bytes].concat();
    let hole = |at: u64, len: u32| [at.to_be_bytes().as_slice(), &len.to_be_bytes()].concat();
    let error =
        |n: u32, text: &[u8]| [n.to_be_bytes().as_slice(), &(text.len() as u16).to_be_bytes(), text].concat();
    let head = |len: u32| {
        let mut head = chunk(1, 1, true, &[]);
        head[16..20].copy_from_slice(&len.to_be_bytes());
        head
    };
    let simple = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1];
    for (what, reply) in [
        ("another cookie", chunk(2, 1, true, &at(0, &[7; 4096]))),
        ("too much", chunk(1, 1, true, &at(0, &[7; 4097]))),
        ("too little", chunk(1, 1, true, &at(0, &[7; 4095]))),
        ("elsewhere", chunk(1, 1, true, &at(1 << 40, &[7; 4096]))),
        ("before", chunk(1, 1, true, &at(u64::MAX, &[7; 4096]))),
        ("nothing", chunk(1, 0, true, &[])),
        ("endless nothing", chunk(1, 0, false, &[]).repeat(100)),
        ("no bytes", chunk(1, 1, true, &at(0, &[]))),
        ("a hole too long", chunk(1, 2, true, &hole(0, u32::MAX))),
        ("an empty hole", chunk(1, 2, true, &hole(0, 0))),
        ("twice", [chunk(1, 2, false, &hole(0, 4096)), chunk(1, 2, true, &hole(0, 4096))].concat()),
        (
            "one over the other",
            [chunk(1, 2, false, &hole(512, 3584)), chunk(1, 2, true, &hole(0, 4096))].concat(),
        ),
        ("extents", chunk(1, 5, true, &[0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0])),
        ("a strange chunk", chunk(1, 77, true, &[1; 16])),
        ("an error without number", chunk(1, 0x8001, true, &error(0, b"well"))),
        ("an error that is too short", chunk(1, 0x8001, true, &[0, 0, 0, 5])),
        ("an error that is too long", chunk(1, 0x8001, true, &error(5, &[b'x'; 5000]))),
        ("4 GiB", [head(u32::MAX), vec![0; 8]].concat()),
        ("a simple reply", simple.to_vec()),
        ("no reply", b"HTTP/1.1 400 Bad Request\r\n".to_vec()),
    ] {
        let (server, theirs) = says(&[begun(), reply].concat());
        let disk = connect_by(server, "", SHORT).unwrap();
        let e = disk.read_at(0, &mut [0; 4096]).unwrap_err();
        assert!(matches!(fault(&e), ClientFault::Broken(_)), "{what}: {e}");
        assert_eq!(e.kind(), Kind::Io, "{what}");
        // It is over, and stays so.
        assert!(disk.read_at(0, &mut [0; 512]).is_err(), "{what}");
        drop(theirs);
    }
    // An error is one, and the connection goes on.
    let replies =
        [chunk(1, 0x8001, true, &error(5, b"bad\x1b luck")), chunk(2, 2, true, &hole(0, 512))].concat();
    let (server, _theirs) = says(&[begun(), replies].concat());
    let disk = connect_by(server, "", SHORT).unwrap();
    let e = disk.read_at(0, &mut [0; 4096]).unwrap_err();
    assert_eq!(e.to_string(), "the server could not read: input/output error (bad luck)");
    let mut buf = [1; 512];
    disk.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [0; 512]);
}

#[test]
fn extents_are_believed_only_as_far_as_they_make_sense() {
    let whole = Span::first(1 << 20);
    for (what, payload) in [
        ("another context", vec![0, 0, 0, 2, 0, 0, 16, 0, 0, 0, 0, 3]),
        ("none", vec![0, 0, 0, 1]),
        ("an empty one", vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3]),
        ("half of one", vec![0, 0, 0, 1, 0, 0, 16, 0]),
    ] {
        let (server, _theirs) = says(&[begun(), chunk(1, 5, true, &payload)].concat());
        let disk = connect_by(server, "", SHORT).unwrap();
        assert!(matches!(fault(&disk.first_run(whole).unwrap_err()), ClientFault::Broken(_)), "{what}");
    }
    // One that reaches far past the disk's end ends there.
    let payload = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 3];
    let (server, _theirs) = says(&[begun(), chunk(1, 5, true, &payload)].concat());
    let disk = connect_by(server, "", SHORT).unwrap();
    let run = disk.first_run(whole).unwrap();
    assert_eq!((run.len, run.kind.is_zero()), (1 << 20, true));
}

#[test]
fn handshakes_that_make_no_sense_are_refused() {
    let greeting = |flags: u16| [b"NBDMAGICIHAVEOPT".as_slice(), &flags.to_be_bytes()].concat();
    let export = |size: u64| [b"\0\0".as_slice(), &size.to_be_bytes(), &[0, 1]].concat();
    let go = |answers: &[u8]| {
        let no = [answer(11, 0x8000_0001, b""), answer(8, 0x8000_0001, b"")].concat();
        [greeting(3).as_slice(), &no, answers].concat()
    };
    let sized = |block: [u32; 3]| {
        let block: Vec<u8> = block.iter().flat_map(|n| n.to_be_bytes()).collect();
        go(&[
            answer(7, 3, &export(1 << 20)),
            answer(7, 3, &[b"\0\x03".as_slice(), &block].concat()),
            answer(7, 1, b""),
        ]
        .concat())
    };
    let list = [answer(3, 2, b"\0\0\0\x05one\x1b2and more"), answer(3, 1, b"")].concat();
    type Is = fn(&ClientFault) -> bool;
    let cases: [(&str, Vec<u8>, Is); 12] = [
        ("something else", b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec(), |f| *f == ClientFault::NotNbd),
        (
            "an old server",
            [b"NBDMAGIC".as_slice(), &[0, 0, 0x42, 2, 0x81, 0x86, 0x12, 0x53], &[0; 140]].concat(),
            |f| *f == ClientFault::Old,
        ),
        ("not fixed", greeting(0), |f| *f == ClientFault::Old),
        ("another option", go(&answer(6, 1, b"")), |f| matches!(f, ClientFault::Broken(_))),
        ("no size", go(&answer(7, 1, b"")), |f| matches!(f, ClientFault::Broken(_))),
        ("half a size", go(&answer(7, 3, &export(1)[..7])), |f| matches!(f, ClientFault::Broken(_))),
        ("an impossible size", go(&[answer(7, 3, &export(u64::MAX)), answer(7, 1, b"")].concat()), |f| {
            matches!(f, ClientFault::Disk(_))
        }),
        ("odd blocks", sized([3, 4096, 1 << 20]), |f| matches!(f, ClientFault::Disk(_))),
        ("no block at all", sized([512, 4096, 0]), |f| matches!(f, ClientFault::Disk(_))),
        ("TLS", go(&answer(7, 0x8000_0005, b"")), |f| *f == ClientFault::TlsRequired),
        (
            "no such export",
            go(&[answer(7, 0x8000_0006, b""), list].concat()),
            |f| matches!(f, ClientFault::NoExport { offered, .. } if offered == &["\"one2\""]),
        ),
        (
            "a long answer",
            go(&{
                let mut long = answer(7, 3, b"");
                long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
                long
            }),
            |f| matches!(f, ClientFault::Broken(_)),
        ),
    ];
    for (what, said, is) in cases {
        let (server, _theirs) = says(&said);
        let e = connect_by(server, "x", SHORT).unwrap_err();
        assert!(is(&fault(&e)), "{what}: {e:?}");
    }
}

#[test]
fn servers_that_do_not_answer_are_given_up() {
    // Before the handshake, within it, and after it.
    for said in [&[][..], b"NBDMAGICIHAVEOPT", &begun()[..60]] {
        let (server, _theirs) = says(said);
        let start = Instant::now();
        let e = connect_by(server, "", SHORT).unwrap_err();
        assert!(e.to_string().contains("takes too long"), "{e}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    let (server, _theirs) = says(&begun());
    let disk = connect_by(server, "", SHORT).unwrap();
    let start = Instant::now();
    // Several wait, one of them for nothing that came yet.
    std::thread::scope(|s| {
        for at in 0..4 {
            let disk = disk.clone();
            s.spawn(move || {
                let e = disk.read_at(at * 4096, &mut [0; 4096]).unwrap_err();
                assert!(matches!(fault(&e), ClientFault::Stuck(_)), "{e}");
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(20));
    // One that drips takes no longer than an answer may take as a whole.
    let (server, mut theirs) = says(&begun());
    let disk = connect_by(server, "", SHORT).unwrap();
    let drip = std::thread::spawn(move || {
        let mut reply = chunk(1, 1, true, &[0; 8 + 4096]).into_iter();
        while theirs.write_all(&[reply.next().unwrap_or(0)]).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let start = Instant::now();
    let e = disk.read_at(0, &mut [0; 4096]).unwrap_err();
    assert!(matches!(fault(&e), ClientFault::Stuck(_)), "{e}");
    assert!(start.elapsed() < Duration::from_secs(20));
    drop(disk);
    drip.join().unwrap();
}

/// A disk that takes its time to read.
#[derive(Debug)]
struct Slow(MemDevice);

impl BlockDevice for Slow {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        std::thread::sleep(Duration::from_millis(5));
        self.0.read_at(at, buf)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.0.write_at(at, data)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
}

/// Connections to a server in this process.
#[derive(Debug)]
struct Local(Arc<Server>);

impl Dial for Local {
    fn dial(&self, _: Instant) -> Result<Arc<dyn Stream>> {
        let (ours, theirs) = UnixStream::pair()?;
        self.0.connect(Arc::new(theirs), || {})?;
        Ok(Arc::new(ours))
    }
}

#[test]
fn many_threads_share_several_connections() {
    const SIZE: u64 = 8 << 20;
    let mut bytes = vec![0; SIZE as usize];
    Rng::new(1).fill(&mut bytes);
    let server = Arc::new(served(Disk::new(Slow(MemDevice::from_bytes(bytes.clone())))));
    let disk = connect_by(Local(server.clone()), "a", Patience::default()).unwrap();
    std::thread::scope(|s| {
        for thread in 0..8 {
            let (disk, bytes) = (disk.clone(), &bytes);
            s.spawn(move || {
                // Each has a part of its own, which it writes to as well.
                let mut rng = Rng::new(thread + 10);
                let base = thread * (SIZE / 8);
                let mut mine = bytes[base as usize..][..(SIZE / 8) as usize].to_vec();
                for _ in 0..60 {
                    let at = rng.below(SIZE / 8 - 100_000);
                    let len = 1 + rng.below(100_000);
                    let part = &mut mine[at as usize..][..len as usize];
                    if rng.below(3) == 0 {
                        rng.fill(part);
                        disk.write_at(base + at, part).unwrap();
                    } else {
                        let mut buf = vec![0; len as usize];
                        disk.read_at(base + at, &mut buf).unwrap();
                        assert!(buf == part, "{len} bytes at {at} of part {thread}");
                    }
                }
            });
        }
    });
    assert_eq!(server.connections(), 4);
    disk.flush().unwrap();
    drop(disk);
    let until = Instant::now() + Duration::from_secs(5);
    while server.connections() > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(server.connections(), 0, "clients say good-bye");
}
