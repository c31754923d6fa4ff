//! What everyone holds: a device behind one set of checks.

use std::fs::File;
use std::sync::Arc;

use super::{BlockDevice, Caps, Run, RunKind, SliceDevice, Span, Support};
use crate::error::{Common, Result};
use crate::wire::len64;

/// Zeroes are written in pieces of this many bytes where a device cannot zero by itself.
const ZERO_PIECE: usize = 256 << 10;

/// Anything with a size and bytes at offsets.
///
/// Range checks, read-only refusal, and the emulation of zero and discard live here and nowhere else.
/// A clone is the same disk.
#[derive(Clone, Debug)]
pub struct Disk {
    device: Arc<dyn BlockDevice>,
    read_only: bool,
}

impl Disk {
    /// A disk over `device`.
    pub fn new(device: impl BlockDevice + 'static) -> Self {
        Self::from_arc(Arc::new(device))
    }

    /// A disk over a shared device.
    pub fn from_arc(device: Arc<dyn BlockDevice>) -> Self {
        Self { device, read_only: false }
    }

    /// The same disk, refusing writes.
    #[must_use]
    pub fn read_only(&self) -> Self {
        Self { device: Arc::clone(&self.device), read_only: true }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.device.size()
    }

    /// What the disk can do.
    pub fn caps(&self) -> Caps {
        let caps = self.device.caps();
        if self.read_only { Caps { write: false, resize: false, ..caps } } else { caps }
    }

    /// Whether writes are accepted.
    pub fn writable(&self) -> bool {
        self.caps().write
    }

    /// The span of `len` bytes at `at`, if it lies inside the disk.
    pub fn check(&self, at: u64, len: u64) -> Result<Span> {
        let span = Span::new(at, len)?;
        let size = self.size();
        if span.end() > size {
            return Err(Common::PastEnd { start: at, len, size }.into());
        }
        Ok(span)
    }

    /// Fills the whole buffer with the bytes at `at`, or fails.
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.check(at, len64(buf.len()))?;
        if buf.is_empty() {
            return Ok(());
        }
        self.device.read_at(at, buf)
    }

    /// Writes all of `data` at `at`, or fails.
    pub fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.for_write()?;
        self.check(at, len64(data.len()))?;
        if data.is_empty() {
            return Ok(());
        }
        self.device.write_at(at, data)
    }

    /// Says that from now on one writer alone writes inside `span`; `true` where an edit is held back that lets it
    /// [write at once](Self::write_fresh) what nothing refers to.
    pub fn claim(&self, span: Span) -> Result<bool> {
        self.for_write()?;
        self.check(span.start(), span.len())?;
        if span.is_empty() { Ok(false) } else { self.device.claim(span) }
    }

    /// Writes all of `data` at `at`, where nothing refers to in the state of before the edit: what was free then, and
    /// is given to a file. It need not be held back until the edit lands.
    pub fn write_fresh(&self, at: u64, data: &[u8]) -> Result<()> {
        self.for_write()?;
        self.check(at, len64(data.len()))?;
        if data.is_empty() {
            return Ok(());
        }
        self.device.write_fresh(at, data)
    }

    /// Where `span` lies in the file that an edit is held back over, if its bytes are there one by one and in one
    /// piece.
    pub fn place(&self, span: Span) -> Option<Span> {
        self.check(span.start(), span.len()).ok()?;
        self.device.place(span)
    }

    /// Makes `span` read as zeroes; falls back to writing them.
    pub fn write_zeroes(&self, span: Span) -> Result<()> {
        self.for_write()?;
        self.check(span.start(), span.len())?;
        if span.is_empty() {
            return Ok(());
        }
        if self.device.caps().zero == Support::Native {
            return self.device.write_zeroes(span);
        }
        self.store_zeroes(span)
    }

    /// Writes zeroes as the bytes that they are, so that they take space.
    pub fn store_zeroes(&self, span: Span) -> Result<()> {
        self.for_write()?;
        self.check(span.start(), span.len())?;
        let zeroes = vec![0u8; ZERO_PIECE.min(usize::try_from(span.len()).unwrap_or(ZERO_PIECE))];
        let mut rest = span;
        while !rest.is_empty() {
            let piece = rest.truncate(len64(zeroes.len()));
            let len = usize::try_from(piece.len()).unwrap_or(zeroes.len());
            self.device.write_at(piece.start(), zeroes.get(..len).unwrap_or(&zeroes))?;
            rest = rest.skip(piece.len());
        }
        Ok(())
    }

    /// Gives the space of `span` back, where the device can; does nothing elsewhere.
    pub fn discard(&self, span: Span) -> Result<()> {
        self.for_write()?;
        self.check(span.start(), span.len())?;
        if span.is_empty() || self.device.caps().discard != Support::Native {
            return Ok(());
        }
        self.device.discard(span)
    }

    /// Bytes of storage that the disk takes on its host, where that is known; holes take none.
    pub fn stored(&self) -> Option<u64> {
        self.device.stored()
    }

    /// Sets the space for `span` aside; `false` where the device cannot do that but by writing.
    pub fn occupy(&self, span: Span) -> Result<bool> {
        self.for_write()?;
        self.check(span.start(), span.len())?;
        if span.is_empty() { Ok(true) } else { self.device.occupy(span) }
    }

    /// Gives what reads as zeroes in `span` its place in the image's tables, without storing anything; `false` where
    /// the format has no such tables. Asked about no bytes at all, it only says whether it could.
    pub fn allot(&self, span: Span) -> Result<bool> {
        self.for_write()?;
        self.check(span.start(), span.len())?;
        self.device.allot(span)
    }

    /// Makes a fresh disk that reads as zeroes a copy of `source`, as large, if both are files of one filesystem of
    /// the host and it lets files share space (reflink). `false` if it cannot: nothing has changed then.
    pub fn share(&self, source: &Self) -> Result<bool> {
        self.for_write()?;
        match source.device.host_file() {
            Some(file) if source.size() == self.size() => self.device.share(file),
            _ => Ok(false),
        }
    }

    /// The file of the host whose bytes are the disk's, one by one.
    pub(crate) fn host_file(&self) -> Option<&File> {
        self.device.host_file()
    }

    /// Hands [`share`](Self::share) down to the file below.
    pub(crate) fn share_file(&self, file: &File) -> Result<bool> {
        self.for_write()?;
        self.device.share(file)
    }

    /// Whether reading `span` would probably not wait for any device of the host, nor compute for long: a guess, for
    /// those who decide which thread reads.
    pub fn at_hand(&self, span: Span) -> bool {
        !span.is_empty() && self.check(span.start(), span.len()).is_ok() && self.device.at_hand(span)
    }

    /// The file of the host that has all bytes of `span` in one piece, and where: only if nothing but these bytes of
    /// the disk will ever lie there, whatever is written. Pages of the file can be passed on then as they are, even
    /// if it takes long until somebody looks at them: that is a read which takes as long.
    pub fn pages(&self, span: Span) -> Option<(&File, u64)> {
        self.check(span.start(), span.len()).ok()?;
        self.device.pages(span)
    }

    /// The runs of `span` in order; together they cover it exactly.
    pub fn runs(&self, span: Span) -> impl Iterator<Item = Result<(Span, RunKind)>> + use<> {
        let disk = self.clone();
        let mut rest = Some(span);
        std::iter::from_fn(move || {
            let now = rest.filter(|s| !s.is_empty())?;
            match disk.first_run(now) {
                Ok(run) => {
                    let piece = now.truncate(run.len);
                    rest = Some(now.skip(run.len));
                    Some(Ok((piece, run.kind)))
                }
                Err(e) => {
                    rest = None;
                    Some(Err(e))
                }
            }
        })
    }

    /// The first run of `span`: never empty, never past its end. `span` is not empty.
    pub fn first_run(&self, span: Span) -> Result<Run> {
        self.check(span.start(), span.len())?;
        let run = if self.device.caps().runs == Support::No {
            Run { len: span.len(), kind: RunKind::Data }
        } else {
            self.device.first_run(span)?
        };
        // A driver that answers nothing would hang every caller.
        Ok(Run { len: run.len.clamp(1, span.len().max(1)), kind: run.kind })
    }

    /// Part of the disk as a disk.
    pub fn slice(&self, span: Span) -> Result<Self> {
        self.check(span.start(), span.len())?;
        let read_only = self.read_only;
        Ok(Self { device: Arc::new(SliceDevice::new(self.clone(), span)), read_only })
    }

    /// Everything written before this call is on stable storage afterwards.
    pub fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    /// Changes the size to `size` bytes; new bytes read as zeroes.
    pub fn resize(&self, size: u64) -> Result<()> {
        self.for_write()?;
        self.device.resize(size)
    }

    fn for_write(&self) -> Result<()> {
        if self.read_only || !self.device.caps().write {
            return Err(Common::ReadOnly.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemDevice;
    use super::*;
    use crate::error::Kind;

    #[test]
    fn requests_outside_the_disk_are_refused() {
        let disk = Disk::new(MemDevice::new(1024));
        assert_eq!(disk.read_at(1020, &mut [0; 5]).unwrap_err().kind(), Kind::OutOfRange);
        assert!(disk.write_at(u64::MAX, &[0; 5]).is_err());
        assert!(disk.write_at(1019, &[0; 5]).is_ok());
        assert_eq!(disk.read_only().write_at(0, &[1]).unwrap_err().kind(), Kind::ReadOnly);
    }

    #[test]
    fn slices_stay_inside_themselves() {
        let disk = Disk::new(MemDevice::new(1024));
        let part = disk.slice(Span::new(512, 256).unwrap()).unwrap();
        part.write_at(0, &[7; 256]).unwrap();
        assert!(part.write_at(255, &[7; 2]).is_err());
        let mut buf = [0; 2];
        disk.read_at(511, &mut buf).unwrap();
        assert_eq!(buf, [0, 7]);
    }
}
