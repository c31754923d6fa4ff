//! All that a client sends, from its first flags on; the server's answers go nowhere. The highest bit of the first byte
//! makes the export read-only, the others say how many bytes arrive at a time.
#![no_main]

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use racker_formats::block::{Disk, MemDevice};
use racker_nbd::context::DirtyBitmap;
use racker_nbd::limits::Limits;
use racker_nbd::stream::Stream;
use racker_nbd::{Export, Server};

/// A client that has said everything in advance.
#[derive(Debug)]
struct Said {
    bytes: Mutex<Vec<u8>>,
    at_once: usize,
}

impl Stream for Said {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.bytes.lock().expect("nobody panics with it");
        let len = buf.len().min(bytes.len()).min(self.at_once);
        buf[..len].copy_from_slice(&bytes[..len]);
        bytes.drain(..len);
        Ok(len)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|p| p.len()).sum())
    }

    fn limit(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn end_input(&self) {}

    fn end(&self) {}

    fn peer(&self) -> String {
        "the fuzzer".into()
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, said)) = input.split_first() else { return };
    let disk = Disk::new(MemDevice::from_bytes(vec![7; 200_000]));
    let disk = if first & 0x80 != 0 { disk.read_only() } else { disk };
    let bits = Disk::new(MemDevice::from_bytes(vec![0xa5; 49])).read_only();
    let bitmap = Arc::new(DirtyBitmap::new("b", bits, 512).expect("a power of two"));
    let exports =
        vec![Export::new("a", disk.clone()).resizable().with_context(bitmap), Export::new("b", disk)];
    let server = Server::new(exports, Some(0), Limits::default(), None, |_| {}).expect("two names");
    let at_once = usize::from(first & 0x7f) * 64 + 1;
    server.serve(Arc::new(Said { bytes: Mutex::new(said.to_vec()), at_once }));
    server.stop().expect("memory can be flushed");
});
