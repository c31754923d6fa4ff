//! What a disk can do without is given back: stretches that somebody calls free, and stored zeroes.
//!
//! Nothing that is read changes but for the free stretches, so a crash does no harm.

use crate::block::{BlockSize, Disk, RunKind, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::{index, is_zero, part_mut};

/// Bytes that are looked at for zeroes at once.
const CHUNK: u64 = 2 * MIB;
/// Zeroes are looked for in pieces of this many bytes, or of a unit of allocation if that is smaller.
const PIECE: u64 = 64 << 10;

/// What was given back, in bytes of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Free stretches.
    pub free: u64,
    /// Zeroes.
    pub zero: u64,
}

/// Gives back the space of `free`, which is in order and does not overlap, and of stored zeroes, as far as it is whole
/// units of allocation. `progress` is told how many bytes are done. On return all is on stable storage.
pub fn sparsify(disk: &Disk, unit: BlockSize, free: &[Span], progress: &mut dyn FnMut(u64)) -> Result<Given> {
    let piece = BlockSize::from_bytes(unit.bytes().min(PIECE)).ok_or(Common::Index(PIECE))?;
    let mut work = Work { disk, unit, piece, held: None, given: Given::default(), buf: Vec::new() };
    let mut free = free.iter().copied().peekable();
    for run in disk.runs(Span::first(disk.size())) {
        let (run, kind) = run?;
        let mut rest = if kind == RunKind::Data { run } else { run.skip(run.len()) };
        while !rest.is_empty() {
            while free.next_if(|span| span.end() <= rest.start()).is_some() {}
            let next = free.peek().and_then(|span| span.intersect(rest));
            let used = match next {
                Some(span) => rest.truncate(span.start().saturating_sub(rest.start())),
                None => rest,
            };
            work.zeroes_of(used, progress)?;
            rest = rest.skip(used.len());
            if let Some(span) = next {
                work.spare(span, true)?;
                rest = rest.skip(span.len());
            }
        }
        progress(run.end());
    }
    work.give()?;
    disk.flush()?;
    Ok(work.given)
}

struct Work<'a> {
    disk: &'a Disk,
    /// What is given back as a whole.
    unit: BlockSize,
    /// What is looked at as a whole.
    piece: BlockSize,
    /// What can be given back and may go on.
    held: Option<Held>,
    given: Given,
    buf: Vec<u8>,
}

/// A stretch that nobody needs, and how much of it is free rather than zero.
#[derive(Clone, Copy)]
struct Held {
    span: Span,
    free: u64,
}

impl Work<'_> {
    /// Looks for zeroes in `span`.
    fn zeroes_of(&mut self, span: Span, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut rest = span;
        while !rest.is_empty() {
            let end = self.piece.floor(rest.start()).saturating_add(CHUNK);
            let chunk = rest.truncate(end.saturating_sub(rest.start()));
            let len = index(chunk.len())?;
            let mut buf = std::mem::take(&mut self.buf);
            if buf.len() < len {
                buf.resize(len, 0);
            }
            let bytes = part_mut(&mut buf, 0, len, "chunk")?;
            self.disk.read_at(chunk.start(), bytes)?;
            let mut left = chunk;
            let mut later: &[u8] = bytes;
            while !left.is_empty() {
                let (_, within) = self.piece.split(left.start());
                let piece = left.truncate(self.piece.bytes().saturating_sub(within));
                let now;
                (now, later) = later.split_at_checked(index(piece.len())?).unwrap_or((later, &[]));
                if is_zero(now) {
                    self.spare(piece, false)?;
                }
                left = left.skip(piece.len());
            }
            self.buf = buf;
            rest = rest.skip(chunk.len());
            progress(chunk.end());
        }
        Ok(())
    }

    /// Notes that nobody needs `span`.
    fn spare(&mut self, span: Span, is_free: bool) -> Result<()> {
        let free = if is_free { span.len() } else { 0 };
        if let Some(held) = &mut self.held
            && held.span.end() == span.start()
        {
            held.span = Span::new(held.span.start(), held.span.len().saturating_add(span.len()))?;
            held.free = held.free.saturating_add(free);
            return Ok(());
        }
        self.give()?;
        self.held = Some(Held { span, free });
        Ok(())
    }

    /// Gives back what is held.
    fn give(&mut self) -> Result<()> {
        let Some(Held { span, free }) = self.held.take() else { return Ok(()) };
        let start = self.unit.ceil(span.start()).unwrap_or(u64::MAX).min(span.end());
        // The disk's end may cut off its last unit.
        let end = if span.end() == self.disk.size() { span.end() } else { self.unit.floor(span.end()) };
        let whole = Span::new(start, end.saturating_sub(start))?;
        if whole.is_empty() {
            return Ok(());
        }
        self.disk.discard(whole)?;
        let free = free.min(whole.len());
        self.given.free = self.given.free.saturating_add(free);
        self.given.zero = self.given.zero.saturating_add(whole.len().saturating_sub(free));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::FileDevice;

    #[test]
    fn only_whole_units_that_nobody_needs_go() {
        let unit = BlockSize::from_bytes(65_536).unwrap();
        let mut content = vec![7u8; 1_000_000];
        content[100_000..400_000].fill(0);
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &content, 0).unwrap();
        let disk = Disk::new(FileDevice::new(file, true).unwrap());
        let span = |start, end| Span::new(start, end - start).unwrap();
        // One inside a unit, one that goes on where zeroes end, one up to the end of the disk.
        let free = [span(10, 20_000), span(393_216, 600_000), span(900_000, 1_000_000)];
        let given = sparsify(&disk, unit, &free, &mut |_| ()).unwrap();
        let mut found = vec![0; content.len()];
        disk.read_at(0, &mut found).unwrap();
        // Units 2 to 8, and 14 to the end.
        content[131_072..589_824].fill(0);
        content[917_504..].fill(0);
        assert!(found == content);
        assert_eq!(given.free + given.zero, 589_824 - 131_072 + 1_000_000 - 917_504);
    }
}
