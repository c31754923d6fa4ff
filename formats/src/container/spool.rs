//! The temporary file, without a name, that parts of compressed streams are expanded into, once.
//!
//! Filesystems are read at random, many times over, while a decoder only goes forward. What is read again and again
//! is decoded once more and then read from the host's page cache, which takes no memory of ours; blocks of xz go there
//! when they are read first.
//! Zero blocks stay holes, so a blank disk of any size takes no space.
//!
//! The file lies in `$TMPDIR`, or in `/var/tmp`: `/tmp` is memory on many systems. It has no name, so nothing is
//! left behind however the program ends.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::fstatvfs;

use crate::error::{Error, Fault, Kind, Result};
use crate::limits::{EXPANDED_FREE, EXPANDED_RATIO_MAX, MIB, SPOOL_FREE_MIN};
use crate::wire::{data_runs, len64};

/// Blocks of this many bytes stay holes when they are zero: the block of common filesystems.
const BLOCK: usize = 4096;
/// How many bytes are written before the free space is looked at again.
const LOOK_EVERY: u64 = 64 * MIB;

/// What is wrong with a compressed stream, or with expanding it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolFault {
    /// The stream ends before its end mark.
    #[error("the {0} stream ends early: the file is truncated")]
    Truncated(&'static str),
    /// The decoder or a checksum says no.
    #[error("the {what} stream is damaged: {why}")]
    Damaged {
        /// The kind of stream.
        what: &'static str,
        /// What the decoder says.
        why: io::Error,
    },
    /// Bytes that belong to no stream follow.
    #[error("something that is not {0} follows the {0} stream")]
    Trailing(&'static str),
    /// The stream expands past the limit.
    #[error("the {what} stream expands to more than {max} bytes, which is the limit")]
    Bomb {
        /// The kind of stream.
        what: &'static str,
        /// The ceiling in bytes.
        max: u64,
    },
    /// The decoder would need too much memory.
    #[error("the {what} stream needs a decoder of more than {max} bytes")]
    Memory {
        /// The kind of stream.
        what: &'static str,
        /// The ceiling in bytes.
        max: u64,
    },
    /// The filesystem of temporary files is full, or nearly.
    #[error("no room in {} to expand the {what} stream: {free} bytes are free", folder.display())]
    NoRoom {
        /// The kind of stream.
        what: &'static str,
        /// Where the temporary file is.
        folder: PathBuf,
        /// Bytes that are free there.
        free: u64,
    },
    /// The temporary file cannot be made or written.
    #[error("cannot expand the {what} stream into a temporary file in {}: {why}", folder.display())]
    Temporary {
        /// The kind of stream.
        what: &'static str,
        /// Where the temporary file is.
        folder: PathBuf,
        /// What the system says.
        why: io::Error,
    },
}

impl Fault for SpoolFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Truncated(_) | Self::Damaged { .. } | Self::Trailing(_) => Kind::Corrupt,
            Self::Bomb { .. } | Self::Memory { .. } => Kind::Unsupported,
            Self::NoRoom { .. } => Kind::NoSpace,
            Self::Temporary { why, .. } => Fault::kind(why),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoRoom { .. } | Self::Temporary { .. } => {
                Some("set TMPDIR to a folder with more room".into())
            }
            Self::Trailing(_) | Self::Bomb { .. } | Self::Memory { .. } => {
                Some("expand the file with the program that made it, and use the result".into())
            }
            _ => None,
        }
    }
}

/// How many bytes the streams on the way to one disk may still expand to.
#[derive(Debug)]
pub struct Expansion {
    left: u64,
    max: u64,
}

impl Expansion {
    /// For a host file of `file_size` bytes.
    pub fn for_file(file_size: u64) -> Self {
        Self::at_most(file_size.saturating_mul(EXPANDED_RATIO_MAX).max(EXPANDED_FREE))
    }

    /// At most `max` bytes.
    pub fn at_most(max: u64) -> Self {
        Self { left: max, max }
    }

    pub(super) fn spend(&mut self, bytes: u64, what: &'static str) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or(SpoolFault::Bomb { what, max: self.max })?;
        Ok(())
    }
}

/// Reads until `buf` is full or the stream ends.
pub(super) fn fill(from: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0usize;
    while let Some(rest) = buf.get_mut(len..).filter(|r| !r.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(n) => len = len.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// What a decoder's error means; one from the file below is passed on as it is.
pub(super) fn decode_error(what: &'static str, e: io::Error) -> Error {
    let (kind, text) = (e.kind(), e.to_string());
    match e.downcast::<Error>() {
        Ok(below) => below,
        Err(_) if kind == io::ErrorKind::UnexpectedEof => SpoolFault::Truncated(what).into(),
        Err(e) => match e.downcast::<SpoolFault>() {
            Ok(fault) => fault.into(),
            Err(_) => SpoolFault::Damaged { what, why: io::Error::new(kind, text) }.into(),
        },
    }
}

/// The temporary file.
#[derive(Debug)]
pub(super) struct Out {
    what: &'static str,
    folder: PathBuf,
    file: File,
    /// Bytes written, and how many there may be before the free space is looked at.
    written: AtomicU64,
    look_at: AtomicU64,
}

impl Out {
    /// One for a stream of the kind `what`.
    pub(super) fn new(what: &'static str) -> Result<Self> {
        let folder = match std::env::var_os("TMPDIR") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => PathBuf::from("/var/tmp"),
        };
        match tempfile::tempfile_in(&folder) {
            Ok(file) => {
                Ok(Self { what, folder, file, written: AtomicU64::new(0), look_at: AtomicU64::new(0) })
            }
            Err(why) => Err(SpoolFault::Temporary { what, folder, why }.into()),
        }
    }

    /// Another handle to the file, which has `size` bytes now, all holes.
    pub(super) fn sized(&self, size: u64) -> Result<File> {
        let sized = self.file.set_len(size).and_then(|()| self.file.try_clone());
        Ok(sized.map_err(|why| self.error(why))?)
    }

    fn error(&self, why: io::Error) -> SpoolFault {
        SpoolFault::Temporary { what: self.what, folder: self.folder.clone(), why }
    }

    /// Writes what is not zero.
    pub(super) fn write(&self, at: u64, piece: &[u8]) -> Result<()> {
        for run in data_runs(piece, BLOCK) {
            let data = piece.get(run.clone()).unwrap_or_default();
            self.make_room(len64(data.len()))?;
            let to = at.saturating_add(len64(run.start));
            self.file.write_all_at(data, to).map_err(|why| self.error(why))?;
        }
        Ok(())
    }

    fn make_room(&self, bytes: u64) -> Result<()> {
        let written = self.written.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if written < self.look_at.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.look_at.store(written.saturating_add(LOOK_EVERY), Ordering::Relaxed);
        let stat = fstatvfs(&self.file).map_err(|e| self.error(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < LOOK_EVERY.saturating_add(SPOOL_FREE_MIN) {
            return Err(SpoolFault::NoRoom { what: self.what, folder: self.folder.clone(), free }.into());
        }
        Ok(())
    }
}
