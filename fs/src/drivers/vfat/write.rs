//! The content of files.

use racker_formats::block::Span;
use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part, part_mut};

use super::fault::FatFault;
use super::layout::RawEntry;
use super::writer::{FatMut, set_times};
use crate::filesystem::{Content, NodeId, Time};

/// Bytes of new content that are read at once.
const PIECE: u64 = 256 << 10;
/// The largest file.
const SIZE_MAX: u64 = 0xffff_ffff;

/// A file as it is.
struct File {
    place: u64,
    raw: RawEntry,
    /// Its first cluster, if it has any.
    first: u32,
    size: u64,
}

fn check_size(size: u64) -> Result<()> {
    if size > SIZE_MAX { Err(FatFault::FileSize(size).into()) } else { Ok(()) }
}

impl FatMut {
    fn open_file(&self, node: NodeId) -> Result<File> {
        let (first, size) = self.fat.file(node)?;
        let (place, raw) = self.own_entry(node)?;
        Ok(File { place, raw, first, size })
    }

    /// How many clusters a file has, and the last one. It may have more than its size needs.
    fn chain(&self, file: &File) -> Result<(u64, Option<u32>)> {
        if file.first == 0 {
            return if file.size == 0 { Ok((0, None)) } else { Err(self.too_short(0, file.size)) };
        }
        let (clusters, last) = self.fat.table.end(file.first)?;
        if clusters < self.fat.boot.cluster.count(file.size) {
            return Err(self.too_short(clusters, file.size));
        }
        Ok((clusters, Some(last)))
    }

    fn too_short(&self, clusters: u64, size: u64) -> racker_formats::Error {
        FatFault::ChainEnds { clusters, size }.into()
    }

    /// Writes bytes; the file grows if they reach past its end.
    pub(super) fn write_file(&mut self, node: NodeId, at: u64, data: &[u8], now: Time) -> Result<()> {
        let mut file = self.open_file(node)?;
        let end = at.saturating_add(len64(data.len()));
        check_size(end)?;
        let grown = end > file.size;
        let more = if grown { Some(self.missing(&file, end)?) } else { None };
        self.begin()?;
        if let Some(more) = more {
            self.extend(&mut file, more)?;
            let (size, gap) = (file.size, at.saturating_sub(file.size));
            file.size = end;
            self.clear(&file, size, gap)?;
        }
        self.put(&file, at, data)?;
        self.put_file(&file, now)?;
        self.end();
        Ok(())
    }

    /// Gives a file another size; there are no holes, so what is new takes its space.
    pub(super) fn resize_file(&mut self, node: NodeId, size: u64, now: Time) -> Result<()> {
        check_size(size)?;
        let mut file = self.open_file(node)?;
        let more = if size > file.size { Some(self.missing(&file, size)?) } else { None };
        self.begin()?;
        if let Some(more) = more {
            self.extend(&mut file, more)?;
            let old = std::mem::replace(&mut file.size, size);
            self.clear(&file, old, size.saturating_sub(old))?;
        } else {
            self.cut(&mut file, size)?;
        }
        self.put_file(&file, now)?;
        self.end();
        Ok(())
    }

    /// Zeroes a stretch of a file.
    pub(super) fn zero_file(&mut self, node: NodeId, span: Span, now: Time) -> Result<()> {
        let file = self.open_file(node)?;
        self.begin()?;
        self.clear(&file, span.start(), span.len())?;
        self.put_file(&file, now)?;
        self.end();
        Ok(())
    }

    /// Gives a file all its bytes anew.
    pub(super) fn refill_file(&mut self, node: NodeId, content: Content<'_>, now: Time) -> Result<()> {
        check_size(content.size)?;
        let mut file = self.open_file(node)?;
        let more = self.missing(&file, content.size)?;
        self.begin()?;
        if content.size < file.size {
            self.cut(&mut file, content.size)?;
        }
        self.extend(&mut file, more)?;
        file.size = content.size;
        let mut buf = vec![0; index(PIECE.min(content.size))?];
        let mut at = 0u64;
        while at < content.size {
            let len = index(PIECE.min(content.size.saturating_sub(at)))?;
            let piece = part_mut(&mut buf, 0, len, "content")?;
            content.reader.read_exact(piece)?;
            self.put(&file, at, piece)?;
            at = at.saturating_add(len64(len));
        }
        self.put_file(&file, now)?;
        self.end();
        Ok(())
    }

    /// How many clusters a file lacks for a size, and where its chain ends; an error if they are not to be had.
    fn missing(&self, file: &File, size: u64) -> Result<(u64, Option<u32>)> {
        let (clusters, last) = self.chain(file)?;
        let need = self.fat.boot.cluster.count(size).saturating_sub(clusters);
        self.need(need)?;
        Ok((need, last))
    }

    fn extend(&mut self, file: &mut File, (count, last): (u64, Option<u32>)) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        // A chain that was cut since ends elsewhere, but then nothing is missing.
        let first = self.allocate(last, count)?;
        if last.is_none() {
            file.first = first;
        }
        Ok(())
    }

    /// Cuts a file off, its chain with it.
    fn cut(&mut self, file: &mut File, size: u64) -> Result<()> {
        let keep = self.fat.boot.cluster.count(size);
        file.size = size;
        if keep == 0 {
            if file.first != 0 {
                self.release(file.first)?;
            }
            file.first = 0;
            return Ok(());
        }
        let table = &self.fat.table;
        let ends = FatFault::ChainEnds { clusters: keep, size };
        let last = table.seek(file.first, keep.saturating_sub(1))?.ok_or(ends)?;
        if let Some(next) = table.next(last)? {
            table.set_end(last)?;
            self.release(next)?;
        }
        Ok(())
    }

    /// Writes the entry of a file that has changed.
    fn put_file(&self, file: &File, now: Time) -> Result<()> {
        let mut raw = file.raw;
        set_times(&mut raw, now);
        self.set_first(&mut raw, file.first);
        raw.file_size = u32::try_from(file.size).map_err(|_| FatFault::FileSize(file.size))?.into();
        self.put_raw(file.place, &raw)
    }

    /// Calls `each` with the place on the volume of every piece of a stretch, its place in the stretch, its length.
    fn pieces(
        &self,
        file: &File,
        at: u64,
        len: u64,
        mut each: impl FnMut(u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0u64;
        while done < len {
            let (skip, within) = self.fat.boot.cluster.split(at.saturating_add(done));
            let rest = len.saturating_sub(done);
            let (start, there) = self.fat.run(file.first, file.size, skip, within.saturating_add(rest))?;
            let take = there.saturating_sub(within).min(rest);
            each(start.saturating_add(within), done, take)?;
            done = done.saturating_add(take);
        }
        Ok(())
    }

    fn put(&self, file: &File, at: u64, data: &[u8]) -> Result<()> {
        self.pieces(file, at, len64(data.len()), |host, done, len| {
            self.space.fresh.write(&self.fat.disk, host, part(data, index(done)?, index(len)?, "write")?)
        })
    }

    fn clear(&self, file: &File, at: u64, len: u64) -> Result<()> {
        self.pieces(file, at, len, |host, _, len| self.fat.disk.write_zeroes(Span::new(host, len)?))
    }
}
