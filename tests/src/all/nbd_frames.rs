//! Conversations with the NBD server, damaged at random, in this process: none of them crashes it or hangs. The seeds are
//! those of the fuzz target of the same name.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use racker_formats::block::{Disk, MemDevice};
use racker_nbd::context::DirtyBitmap;
use racker_nbd::limits::Limits;
use racker_nbd::stream::Said;
use racker_nbd::{Export, Server};
use racker_tests::rng::Rng;

/// What one client says; how many of its requests were read.
fn serve(said: &[u8], at_once: usize, read_only: bool) -> u64 {
    let disk = Disk::new(MemDevice::from_bytes(vec![7; 200_000]));
    let disk = if read_only { disk.read_only() } else { disk };
    let bits = Disk::new(MemDevice::from_bytes(vec![0xa5; 49])).read_only();
    let bitmap = Arc::new(DirtyBitmap::new("b", bits, 512).unwrap());
    let exports = vec![Export::new("a", disk.clone()).with_context(bitmap), Export::new("b", disk)];
    let told = |what: &str| assert!(!what.contains("panicked"), "{what}");
    let server = Server::new(exports, Some(0), Limits::default(), None, told).unwrap();
    server.serve(Arc::new(Said::new(said, at_once)));
    let summary = server.stop().unwrap();
    assert_eq!(summary.cut_off, 0);
    summary.requests
}

/// 2,000 of each; `RUNS=…` for more.
#[test]
fn damaged_conversations() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/nbd_frames");
    let runs = std::env::var("RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000u64);
    for seed in std::fs::read_dir(seeds).unwrap() {
        let seed = seed.unwrap();
        let whole = std::fs::read(seed.path()).unwrap();
        let (first, said) = whole.split_first().unwrap();
        let read_only = first & 0x80 != 0;
        let requests = serve(said, 100_000, read_only);
        assert_eq!(requests, serve(said, 1, read_only));
        assert!(requests > 8 || seed.file_name() == "refused", "{:?}: {requests}", seed.file_name());
        let mut rng = Rng::new(whole.len() as u64);
        for run in 0..runs {
            let mut said = said.to_vec();
            rng.damage(&mut said, u64::MAX);
            let start = Instant::now();
            serve(&said, 1 + rng.below(8192) as usize, read_only);
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}, run {run}", seed.file_name());
        }
    }
}
