//! A file or block device of the host: positional reads and writes, holes.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, ioctl_ficlone, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::{BlockDevice, Caps, Run, RunKind, Span, Support};
use crate::error::{Common, Result};
use crate::wire::len64;

/// Bytes that are handed to the kernel at once. Its cache takes memory in pieces as large as a write. Large ones are, in
/// a virtual machine, what the host took back, and cost up to ten times the processor time for the same bytes
/// (measured on ext4, Linux 6.18: 0.2 s per GB in pieces up to 512 KiB, 0.8 s at 1 MiB, 2.3 s at 2 MiB).
const WRITE_BYTES_MAX: usize = 128 << 10;

/// A file of the host.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    size: AtomicU64,
    writable: bool,
    /// A block device keeps its size and knows no holes.
    is_block: bool,
    /// A flush means something.
    durable: bool,
}

impl FileDevice {
    /// A disk over an opened file, which must be a regular file or a block device.
    pub fn new(file: File, writable: bool) -> Result<Self> {
        let meta = file.metadata()?;
        let is_block = meta.file_type().is_block_device();
        if !is_block && !meta.is_file() {
            let by = "a file that is neither regular nor a block device".to_string();
            return Err(Common::Unsupported { what: "opening", by }.into());
        }
        // A block device's metadata say 0; its end is found by seeking.
        let size = if is_block { seek(&file, SeekFrom::End(0)).map_err(io)? } else { meta.len() };
        Ok(Self { file, size: AtomicU64::new(size), writable, is_block, durable: true })
    }

    /// Whether flushes put what was written on stable storage, as they do, or do nothing.
    pub fn durable(self, durable: bool) -> Self {
        Self { durable, ..self }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn punch(&self, span: Span, flags: FallocateFlags) -> Result<bool> {
        match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, span.start(), span.len()) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
            Err(e) => Err(io(e)),
        }
    }

    fn write_plain_zeroes(&self, span: Span) -> Result<()> {
        let zeroes = [0u8; 64 << 10];
        let mut rest = span;
        while !rest.is_empty() {
            let piece = rest.truncate(64 << 10);
            let len = usize::try_from(piece.len()).unwrap_or(zeroes.len());
            self.file.write_all_at(zeroes.get(..len).unwrap_or(&zeroes), piece.start())?;
            rest = rest.skip(piece.len());
        }
        Ok(())
    }
}

fn io(e: Errno) -> crate::error::Error {
    std::io::Error::from(e).into()
}

impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn caps(&self) -> Caps {
        Caps {
            write: self.writable,
            zero: Support::Native,
            discard: if self.is_block { Support::No } else { Support::Native },
            runs: if self.is_block { Support::No } else { Support::Native },
            resize: self.writable && !self.is_block,
            preferred: 256 << 10,
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, at).map_err(|e| {
            // The file shrank under us: say so instead of "failed to fill whole buffer".
            let shrank = || std::io::Error::other("the file is shorter than when it was opened");
            if e.kind() == ErrorKind::UnexpectedEof { shrank().into() } else { e.into() }
        })
    }

    fn flush(&self) -> Result<()> {
        if self.writable && self.durable {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let mut at = at;
        for piece in data.chunks(WRITE_BYTES_MAX) {
            self.file.write_all_at(piece, at)?;
            at = at.saturating_add(len64(piece.len()));
        }
        Ok(())
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        // A hole reads as zeroes and costs nothing; ZERO_RANGE serves block devices.
        if !self.is_block && self.punch(span, FallocateFlags::PUNCH_HOLE)? {
            return Ok(());
        }
        if self.punch(span, FallocateFlags::ZERO_RANGE)? { Ok(()) } else { self.write_plain_zeroes(span) }
    }

    fn discard(&self, span: Span) -> Result<()> {
        self.punch(span, FallocateFlags::PUNCH_HOLE).map(|_| ())
    }

    fn occupy(&self, span: Span) -> Result<bool> {
        if self.is_block { Ok(true) } else { self.punch(span, FallocateFlags::empty()) }
    }

    fn stored(&self) -> Option<u64> {
        if self.is_block { None } else { self.file.metadata().ok().map(|m| m.blocks().saturating_mul(512)) }
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        // The file's own position is never used, so moving it harms nobody.
        let whole = Run { len: span.len(), kind: RunKind::Data };
        match seek(&self.file, SeekFrom::Data(span.start())) {
            Ok(data) if data > span.start() => {
                let len = data.min(span.end()).saturating_sub(span.start());
                Ok(Run { len, kind: RunKind::Hole })
            }
            Ok(_) => match seek(&self.file, SeekFrom::Hole(span.start())) {
                Ok(hole) => {
                    let len = hole.min(span.end()).saturating_sub(span.start());
                    Ok(Run { len: if len == 0 { span.len() } else { len }, kind: RunKind::Data })
                }
                Err(_) => Ok(whole),
            },
            // No data behind this offset.
            Err(Errno::NXIO) => Ok(Run { len: span.len(), kind: RunKind::Hole }),
            Err(_) => Ok(whole),
        }
    }

    /// Whoever has read the end of a stretch has mostly read all of it.
    fn at_hand(&self, span: Span) -> bool {
        let mut byte = [0];
        let mut one = [IoSliceMut::new(&mut byte)];
        preadv2(&self.file, &mut one, span.end().saturating_sub(1), ReadWriteFlags::NOWAIT) == Ok(1)
    }

    fn pages(&self, span: Span) -> Option<(&File, u64)> {
        Some((&self.file, span.start()))
    }

    fn host_file(&self) -> Option<&File> {
        (!self.is_block).then_some(&self.file)
    }

    fn share(&self, file: &File) -> Result<bool> {
        // Space that was set aside is to be written to.
        if self.is_block || self.file.metadata()?.blocks() != 0 {
            return Ok(false);
        }
        let size = self.size();
        let is_shared = ioctl_ficlone(&self.file, file).is_ok() && self.file.metadata()?.len() == size;
        if !is_shared {
            let left = self.file.metadata()?;
            // It may have failed half-way. A file that was cut off to nothing is written down by some filesystems as
            // soon as it is closed, so that is not done for nothing.
            if left.blocks() != 0 || left.len() != size {
                self.file.set_len(0)?;
                self.file.set_len(size)?;
            }
        }
        Ok(is_shared)
    }

    fn resize(&self, size: u64) -> Result<()> {
        if self.is_block {
            return Err(Common::Unsupported { what: "resize", by: "a block device".into() }.into());
        }
        if size == self.size() {
            return Ok(());
        }
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Disk;

    #[test]
    fn holes_are_runs() {
        let file = tempfile::tempfile().unwrap();
        let disk = Disk::new(FileDevice::new(file, true).unwrap());
        disk.resize(1 << 20).unwrap();
        disk.write_at(512 << 10, &[1; 4096]).unwrap();
        let zero: u64 = disk
            .runs(Span::first(1 << 20))
            .map(|r| r.unwrap())
            .filter(|(_, k)| k.is_zero())
            .map(|(s, _)| s.len())
            .sum();
        // The host's filesystem decides how finely; at least the first half is a hole on every one we know.
        assert!(zero >= 512 << 10);
        let mut buf = [9; 16];
        disk.write_zeroes(Span::new(512 << 10, 4096).unwrap()).unwrap();
        disk.read_at(512 << 10, &mut buf).unwrap();
        assert_eq!(buf, [0; 16]);
    }
}
