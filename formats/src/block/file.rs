//! A file or block device of the host: positional reads and writes, holes.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, FsWord, SeekFrom, fallocate, fstatfs, ioctl_ficlone, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::{BlockDevice, Caps, Run, RunKind, Span, Support};
use crate::error::{Common, Result};
use crate::wire::len64;

/// Bytes that are handed to the kernel at once. Its cache takes memory in pieces as large as a write. Large ones are, in
/// a virtual machine, what the host took back, and cost up to ten times the processor time for the same bytes
/// (measured on ext4, Linux 6.18: 0.2 s per GB in pieces up to 512 KiB, 0.8 s at 1 MiB, 2.3 s at 2 MiB).
const WRITE_BYTES_MAX: usize = 128 << 10;

/// The filesystem of files in memory, as Linux's statfs names it.
const TMPFS_MAGIC: FsWord = 0x0102_1994;

/// A file of the host.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    size: AtomicU64,
    writable: bool,
    /// A block device keeps its size and knows no holes.
    is_block: bool,
    /// A file in the host's memory: nothing of it is ever waited for, which its filesystem cannot be asked.
    is_memory: bool,
    /// A flush means something.
    durable: bool,
    known: Mutex<Known>,
}

/// What is known of where the file has data. The host's filesystems in memory look at every page of a stretch of data to
/// find its end: who asks for one piece of it after the other would have all that is left gone through each time.
#[derive(Debug, Default)]
struct Known {
    /// A stretch of data, from where it was asked for to the next hole. If somebody else has made a hole in it since,
    /// that is zeroes which are read, which is no harm.
    data: Option<Span>,
    /// How often holes were made: what was found out meanwhile may be past.
    holes_made: u64,
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
        let is_memory = fstatfs(&file).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC);
        Ok(Self {
            file,
            size: AtomicU64::new(size),
            writable,
            is_block,
            is_memory,
            durable: true,
            known: Mutex::default(),
        })
    }

    /// Whether flushes put what was written on stable storage, as they do, or do nothing.
    pub fn durable(self, durable: bool) -> Self {
        Self { durable, ..self }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after data may have become a hole.
    fn forget(&self) {
        let mut known = self.known();
        let holes_made = known.holes_made.wrapping_add(1);
        *known = Known { data: None, holes_made };
    }

    fn punch(&self, span: Span, flags: FallocateFlags) -> Result<bool> {
        let done = self.allocate(span, flags);
        self.forget();
        done
    }

    fn allocate(&self, span: Span, flags: FallocateFlags) -> Result<bool> {
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
        let at = span.start();
        let (known, holes_made) = {
            let known = self.known();
            (known.data, known.holes_made)
        };
        let here = known.and_then(|data| data.intersect(span)).filter(|here| here.start() == at);
        if let Some(here) = here {
            return Ok(Run { len: here.len(), kind: RunKind::Data });
        }
        // The file's own position is never used, so moving it harms nobody.
        match seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) if data > at => {
                let len = data.min(span.end()).saturating_sub(at);
                return Ok(Run { len, kind: RunKind::Hole });
            }
            // No data behind this offset.
            Err(Errno::NXIO) => return Ok(Run { len: span.len(), kind: RunKind::Hole }),
            _ => {}
        }
        let hole = seek(&self.file, SeekFrom::Hole(at)).ok().filter(|hole| *hole > at);
        let data = Span::new(at, hole.unwrap_or(span.end()).saturating_sub(at))?;
        let mut known = self.known();
        if known.holes_made == holes_made {
            known.data = Some(data);
        }
        Ok(Run { len: data.len().min(span.len()), kind: RunKind::Data })
    }

    /// Whoever has read the end of a stretch has mostly read all of it.
    fn at_hand(&self, span: Span) -> bool {
        if self.is_memory {
            return true;
        }
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
        let done = self.file.set_len(size);
        self.forget();
        done?;
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

    #[test]
    fn what_is_known_of_data_ends_with_it() {
        let file = tempfile::tempfile().unwrap();
        let disk = Disk::new(FileDevice::new(file, true).unwrap());
        disk.resize(8 << 20).unwrap();
        disk.write_at(1 << 20, &[1; 4 << 20]).unwrap();
        let runs = || -> Vec<_> {
            let all = disk.runs(Span::first(disk.size())).map(|run| run.unwrap());
            all.map(|(span, kind)| (span.start() >> 20, span.len() >> 20, kind.is_zero())).collect()
        };
        let data_at =
            |at: u64| disk.first_run(Span::new(at << 20, 1 << 20).unwrap()).unwrap().kind == RunKind::Data;
        assert_eq!(runs(), [(0, 1, true), (1, 4, false), (5, 3, true)]);
        assert!(data_at(4) && data_at(3) && !data_at(5));
        disk.discard(Span::new(2 << 20, 1 << 20).unwrap()).unwrap();
        assert_eq!(runs(), [(0, 1, true), (1, 1, false), (2, 1, true), (3, 2, false), (5, 3, true)]);
        assert!(data_at(3));
        disk.write_zeroes(Span::new(3 << 20, 1 << 20).unwrap()).unwrap();
        assert!(!data_at(3) && data_at(4));
        disk.write_at(6 << 20, &[1; 1 << 20]).unwrap();
        assert!(data_at(6));
        disk.resize(5 << 20).unwrap();
        disk.resize(8 << 20).unwrap();
        assert_eq!(runs(), [(0, 1, true), (1, 1, false), (2, 2, true), (4, 1, false), (5, 3, true)]);
    }
}
