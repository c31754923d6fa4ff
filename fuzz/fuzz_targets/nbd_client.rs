//! All that a server says to a client, from its greeting on; what the client asks goes nowhere. The first byte says how
//! many bytes arrive at a time.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use racker_formats::Result;
use racker_formats::block::Span;
use racker_nbd::client::connect_by;
use racker_nbd::client::dial::Single;
use racker_nbd::client::limits::Patience;
use racker_nbd::stream::Said;

/// The requests whose answers the seeds are.
fn use_up(said: Said) -> Result<()> {
    let disk = connect_by(Single::new(Arc::new(said)), "a", Patience::default())?;
    let whole = Span::first(disk.size());
    let _ = disk.runs(whole).take(100).map_while(Result::ok).count();
    let mut buf = vec![0; 20_000];
    let len = buf.len().min(usize::try_from(disk.size()).unwrap_or(usize::MAX));
    disk.read_at(0, &mut buf[..len])?;
    disk.read_at(1, &mut buf[1..len.max(2) - 1])?;
    if disk.writable() {
        disk.write_at(3, &[1; 4000])?;
        disk.write_zeroes(Span::new(4096, 9000)?)?;
        disk.discard(Span::new(512, 8192)?)?;
        disk.flush()?;
    }
    let _ = disk.runs(whole).take(100).map_while(Result::ok).count();
    disk.read_at(4000, &mut buf[..len / 2])
}

fuzz_target!(|input: &[u8]| {
    let Some((first, said)) = input.split_first() else { return };
    let _ = use_up(Said::new(said, usize::from(first & 0x7f) * 64 + 1));
});
