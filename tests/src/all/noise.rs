//! Bytes that nobody wrote on purpose: nothing panics, hangs or takes much memory.

use std::path::Path;

use racker_formats::Result;
use racker_formats::block::{BlockDevice, Caps, Disk, MemDevice, Span};
use racker_formats::check::Report;
use racker_formats::opening::{Opening, Policy};
use racker_formats::registry::by_name;
use racker_tests::image;

/// How long a file may become.
const SIZE_MAX: u64 = 256 << 20;

/// A file on a disk with little room.
#[derive(Debug)]
struct Small(MemDevice);

impl BlockDevice for Small {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(at, buf)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.0.write_at(at, data)
    }

    fn resize(&self, size: u64) -> Result<()> {
        if size > SIZE_MAX {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
        }
        self.0.resize(size)
    }
}

/// Reads, writes, resizes and checks whatever opens; says whether it opened. Parents are looked for beside `path`.
pub(crate) fn survives(format: &str, bytes: Vec<u8>, path: &Path) -> bool {
    let top = Disk::new(Small(MemDevice::from_bytes(bytes)));
    let mut opening = Opening::new(Some(path), Policy::SameFolder, true);
    let Ok(image) = by_name(format).unwrap().open(top, &mut opening) else { return false };
    let disk = image::disk(&image);
    let size = disk.size();
    let mut buf = vec![0; 70_000.min(size as usize)];
    for at in [0, size / 2, size.saturating_sub(buf.len() as u64)] {
        let _ = disk.read_at(at.min(size - buf.len() as u64), &mut buf);
    }
    let _ = disk.runs(Span::first(size.min(1 << 24))).take(2000).count();
    let _ = image.check(&mut Report::default());
    let _ = disk.write_at(size / 3, &buf[..buf.len() / 3]);
    let _ = disk.flush();
    let _ = image.check(&mut Report { repair: true, ..Report::default() });
    let _ = disk.resize(size / 2);
    true
}
