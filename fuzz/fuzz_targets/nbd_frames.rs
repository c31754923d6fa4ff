//! All that a client sends, from its first flags on; the server's answers go nowhere. The highest bit of the first byte
//! makes the exports read-only, the others say how many bytes arrive at a time.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use racker_formats::block::{Disk, MemDevice};
use racker_nbd::context::DirtyBitmap;
use racker_nbd::limits::Limits;
use racker_nbd::stream::Said;
use racker_nbd::{Export, Server};

fuzz_target!(|input: &[u8]| {
    let Some((first, said)) = input.split_first() else { return };
    let disk = Disk::new(MemDevice::from_bytes(vec![7; 200_000]));
    let disk = if first & 0x80 != 0 { disk.read_only() } else { disk };
    let bits = Disk::new(MemDevice::from_bytes(vec![0xa5; 49])).read_only();
    let bitmap = Arc::new(DirtyBitmap::new("b", bits, 512).expect("a power of two"));
    let exports = vec![Export::new("a", disk.clone()).with_context(bitmap), Export::new("b", disk)];
    let server = Server::new(exports, Some(0), Limits::default(), None, |_| {}).expect("two names");
    server.serve(Arc::new(Said::new(said, usize::from(first & 0x7f) * 64 + 1)));
    server.stop().expect("memory can be flushed");
});
