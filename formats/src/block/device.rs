//! What a driver implements.

use std::fmt::Debug;
use std::fs::File;

use super::Span;
use crate::error::{Common, Result};

/// How well a device does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Not at all.
    No,
    /// By writing plain data.
    Emulated,
    /// In the format's own way.
    Native,
}

/// What a device can do.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Accepts writes.
    pub write: bool,
    /// Zeroing.
    pub zero: Support,
    /// Giving space back.
    pub discard: Support,
    /// Telling data from holes.
    pub runs: Support,
    /// Changing the size.
    pub resize: bool,
    /// The size in bytes of request it likes best.
    pub preferred: u32,
}

impl Caps {
    /// Reads, and nothing else.
    pub const READ_ONLY: Self = Self {
        write: false,
        zero: Support::No,
        discard: Support::No,
        runs: Support::No,
        resize: false,
        preferred: 64 << 10,
    };
}

/// What a stretch of disk reads as, as far as the device knows without reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Bytes are stored.
    Data,
    /// Reads as zeroes, and says so in its own tables.
    Zero,
    /// Not allocated, reads as zeroes.
    Hole,
    /// Not allocated here: the parent holds it.
    Parent,
}

impl RunKind {
    /// Whether it reads as zeroes.
    pub const fn is_zero(self) -> bool {
        matches!(self, Self::Zero | Self::Hole)
    }

    /// Whether the image says anything about it: stored bytes, or zeroes of its own.
    pub const fn is_allocated(self) -> bool {
        matches!(self, Self::Data | Self::Zero)
    }
}

/// A stretch of disk of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Length in bytes from the offset asked about.
    pub len: u64,
    /// What it is.
    pub kind: RunKind,
}

/// What a driver implements.
///
/// Requests arrive checked: not empty, inside [`size`](Self::size), and of a kind that
/// [`caps`](Self::caps) agrees to. [`Disk`](super::Disk) is the only caller.
pub trait BlockDevice: Debug + Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// What the device can do.
    fn caps(&self) -> Caps;
    /// Fills the whole buffer with the bytes at `at`, or fails.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()>;
    /// Everything written before this call is on stable storage afterwards.
    fn flush(&self) -> Result<()>;

    /// Writes all of `data` at `at`, or fails.
    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let _ = (at, data);
        Err(Common::ReadOnly.into())
    }

    /// Makes `span` read as zeroes; called only where `caps().zero` is native.
    fn write_zeroes(&self, span: Span) -> Result<()> {
        let _ = span;
        Err(Common::ReadOnly.into())
    }

    /// Gives the space of `span` back; it may read as anything until written again,
    /// which for every device of racker means zeroes or the old bytes.
    fn discard(&self, span: Span) -> Result<()> {
        let _ = span;
        Err(Common::ReadOnly.into())
    }

    /// Bytes of storage that the device takes on its host, where that is known; holes take none.
    fn stored(&self) -> Option<u64> {
        None
    }

    /// Sets the space for `span` aside, so that writing there cannot fail for want of it; `false` where the device
    /// cannot do that but by writing.
    fn occupy(&self, span: Span) -> Result<bool> {
        let _ = span;
        Ok(false)
    }

    /// Gives what reads as zeroes in `span` its place in the image's tables, without storing anything; `false` where
    /// the format has no such tables. Asked about no bytes at all, it only says whether it could.
    fn allot(&self, span: Span) -> Result<bool> {
        let _ = span;
        Ok(false)
    }

    /// The file of the host whose bytes are the disk's, one by one.
    fn host_file(&self) -> Option<&File> {
        None
    }

    /// Becomes a copy of `file`, which is as large, by sharing its space. `false` where the host's filesystem cannot
    /// do that; the device reads as zeroes then.
    fn share(&self, file: &File) -> Result<bool> {
        let _ = file;
        Ok(false)
    }

    /// Whether reading `span` would probably not wait for any device of the host, nor compute for long.
    fn at_hand(&self, span: Span) -> bool {
        let _ = span;
        false
    }

    /// The file of the host that has all bytes of `span` in one piece, and where: only if nothing but these bytes of
    /// the disk will ever lie there, whatever is written. Pages of the file can be passed on then as they are, even
    /// if it takes long until somebody looks at them.
    fn pages(&self, span: Span) -> Option<(&File, u64)> {
        let _ = span;
        None
    }

    /// Hears that from now on one writer alone writes inside `span`, and says by [`write_fresh`](Self::write_fresh)
    /// what may be stored at once. `true` where that makes a difference: where an edit is held back over a file that
    /// has the disk's bytes one by one, and nothing was changed so far but by writers that said the same of other
    /// spans.
    fn claim(&self, span: Span) -> Result<bool> {
        let _ = span;
        Ok(false)
    }

    /// Writes to what nothing refers to in the state of before the edit: inside a [claimed](Self::claim) span it need
    /// not be held back until the edit lands, as it is lost on nobody if the edit never does.
    fn write_fresh(&self, at: u64, data: &[u8]) -> Result<()> {
        self.write_at(at, data)
    }

    /// Where `span` lies in the file that an edit is held back over, if it has the disk's bytes one by one there, in
    /// one piece.
    fn place(&self, span: Span) -> Option<Span> {
        let _ = span;
        None
    }

    /// The first run of `span`: never empty, never past its end.
    fn first_run(&self, span: Span) -> Result<Run> {
        Ok(Run { len: span.len(), kind: RunKind::Data })
    }

    /// Changes the size to `size` bytes; new bytes read as zeroes.
    fn resize(&self, size: u64) -> Result<()> {
        let _ = size;
        Err(Common::Unsupported { what: "resize", by: format!("{self:?}") }.into())
    }
}
