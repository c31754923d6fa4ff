//! How large the file of a new image would be.
//!
//! Most formats grow by the same number of bytes for each block that holds data ([`Growth`]): the conversion runs as
//! far as that the blocks are counted.
//!
//! For others the conversion runs to its end, but its data go nowhere. The disk's bytes are looked at for zeroes and
//! handed on as a marker, and the file keeps only what is not marker: the tables. So the format is measured by its own
//! driver, in the memory that its tables take. What is compressed has to be compressed to be measured; it goes through
//! a temporary file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::block::{BlockDevice, BlockSize, Caps, Disk, FileDevice, Run, RunKind, Span, Support};
use crate::convert::{self, Options, Piece, Sink};
use crate::error::{Common, Result};
use crate::registry::{Format, Plan};
use crate::wire::{index, is_zero, len64};

/// Unit of what is told apart: the finest zeroes that a conversion leaves out.
const PAGE: usize = 4096;
const PAGES: BlockSize = match BlockSize::from_bytes(4096) {
    Some(size) => size,
    None => panic!("4096 is a power of two"),
};
/// What stands for data. No table is made of it.
const MARKER: u8 = 0xa5;
/// A page of it.
const MARKERS: &[u8] = &[MARKER; PAGE];
/// Largest disk, in bytes, whose full file is found by filling it where the format knows no shorter way.
const FILLED_MAX: u64 = 1 << 40;

/// Sizes of a file that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Bytes of the file that holds what the disk holds now.
    pub required: u64,
    /// Bytes of the file once every byte of the disk was written.
    pub fully_allocated: u64,
}

/// How an image's files grow with what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The stretch of disk that gets its place at once: a block, a grain.
    pub unit: BlockSize,
    /// Units of the whole disk.
    pub units: u64,
    /// Bytes of the files of an empty image.
    pub empty: u64,
    /// Bytes that the first unit adds.
    pub first: u64,
    /// Bytes that each further unit adds.
    pub each: u64,
}

impl Growth {
    /// For images whose size is always the same.
    pub(crate) const fn none(bytes: u64) -> Self {
        Self { unit: PAGES, units: 0, empty: bytes, first: 0, each: 0 }
    }

    /// Bytes of the files when all of the disk holds data.
    pub const fn full(&self) -> u64 {
        self.bytes(self.units)
    }

    /// Bytes of the files when `units` hold data.
    pub const fn bytes(&self, units: u64) -> u64 {
        match units.checked_sub(1) {
            Some(more) => {
                self.empty.saturating_add(self.first).saturating_add(more.saturating_mul(self.each))
            }
            None => self.empty,
        }
    }
}

/// Counts the units of what is written.
#[derive(Debug)]
struct Count {
    unit: BlockSize,
    /// Units counted, and the first that cannot have been.
    state: Arc<Mutex<(u64, u64)>>,
}

impl Sink for Count {
    fn block_size(&self) -> BlockSize {
        PAGES
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        let (at, len) = match piece {
            Piece::Zero(_) => return Ok(()),
            Piece::Data { at, bytes } => (at, len64(bytes.len())),
            Piece::Packed { at, len, .. } => (at, len),
        };
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        let (first, _) = self.unit.split(at);
        let (first, end) = (first.max(state.1), self.unit.count(at.saturating_add(len)));
        *state = (state.0.saturating_add(end.saturating_sub(first)), end.max(state.1));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Measures a new image made by `plan`, of what `source` holds, or empty. `sparse` is as for a conversion.
pub fn measure(
    format: &'static dyn Format,
    plan: &Plan,
    source: Option<&Disk>,
    sparse: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Measure> {
    let marked = |all: bool| {
        let source = source.filter(|_| !all).cloned();
        Disk::new(Marked { source, size: plan.size, all })
    };
    let options = Options { sparse, ..Options::default() };
    let size_of = |disk: &Disk, file: Disk, plan: &Plan, progress: &mut dyn FnMut(u64)| -> Result<u64> {
        convert::convert(disk, format.sink(file.clone(), plan)?, options, progress)?;
        Ok(file.size())
    };
    let plain = Disk::new(Tables::default());
    let packed = plan.compress || format.packs(plan);
    let required = match source {
        None if packed => size_of(&marked(false), plain, plan, progress)?,
        Some(disk) if !packed && let Some(growth) = format.growth(plan)? => {
            let state = Arc::default();
            let count = Count { unit: growth.unit, state: Arc::clone(&state) };
            convert::convert(disk, Box::new(count), options, progress)?;
            let (units, _) = *state.lock().map_err(|_| Common::Poisoned)?;
            growth.bytes(units)
        }
        None if let Some(growth) = format.growth(plan)? => growth.bytes(0),
        Some(disk) if plan.compress || format.packs(plan) => {
            let file = FileDevice::new(tempfile::tempfile()?, true)?;
            size_of(disk, Disk::new(file), plan, progress)?
        }
        _ => size_of(&marked(false), plain, plan, progress)?,
    };
    let fully_allocated = match format.full_size(plan)? {
        Some(bytes) => bytes,
        None if plan.size > FILLED_MAX => {
            let what = "the full size of a disk of more than 1 TiB";
            return Err(Common::Unsupported { what, by: format.name().into() }.into());
        }
        None => {
            let plan = Plan { compress: false, ..plan.clone() };
            size_of(&marked(true), Disk::new(Tables::default()), &plan, &mut |_| ())?
        }
    };
    Ok(Measure { required, fully_allocated: fully_allocated.max(required) })
}

/// A disk whose data read as the marker.
#[derive(Debug)]
struct Marked {
    source: Option<Disk>,
    size: u64,
    /// Every byte is data.
    all: bool,
}

impl BlockDevice for Marked {
    fn size(&self) -> u64 {
        self.size
    }

    fn caps(&self) -> Caps {
        let preferred = self.source.as_ref().map_or(64 << 10, |d| d.caps().preferred);
        Caps { runs: Support::Native, preferred, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match &self.source {
            Some(disk) => {
                disk.read_at(at, buf)?;
                // Only the marker itself could be taken for something that it is not.
                let first = index(len64(PAGE).saturating_sub(at.checked_rem(len64(PAGE)).unwrap_or(0)))?
                    .min(buf.len());
                let (head, rest) = buf.split_at_mut(first);
                for page in std::iter::once(head).chain(rest.chunks_mut(PAGE)).filter(|p| !is_zero(p)) {
                    page.fill(MARKER);
                }
            }
            None => buf.fill(if self.all { MARKER } else { 0 }),
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        match &self.source {
            Some(disk) => disk.first_run(span),
            None if self.all => Ok(Run { len: span.len(), kind: RunKind::Data }),
            None => Ok(Run { len: span.len(), kind: RunKind::Hole }),
        }
    }
}

/// A file that forgets data and keeps tables.
#[derive(Debug, Default)]
struct Tables(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    size: u64,
    pages: HashMap<u64, Box<[u8]>>,
}

impl Tables {
    fn kept(&self) -> Result<MutexGuard<'_, Kept>> {
        self.0.lock().map_err(|_| Common::Poisoned.into())
    }
}

/// The pages of `len` bytes at `at`: number, offset in the page, and how many bytes.
fn pages(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let (mut at, mut len) = (at, len);
    std::iter::from_fn(move || {
        let page = len64(PAGE);
        let within = usize::try_from(at.checked_rem(page)?).ok()?;
        let now = PAGE.saturating_sub(within).min(len);
        let number = at.checked_div(page)?;
        at = at.saturating_add(len64(now));
        len = len.saturating_sub(now);
        (now > 0).then_some((number, within, now))
    })
}

impl BlockDevice for Tables {
    fn size(&self) -> u64 {
        self.kept().map_or(0, |k| k.size)
    }

    fn caps(&self) -> Caps {
        Caps { write: true, zero: Support::Native, discard: Support::Native, resize: true, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let kept = self.kept()?;
        let mut rest = buf;
        for (number, within, len) in pages(at, rest.len()) {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            match kept.pages.get(&number).and_then(|p| p.get(within..within.saturating_add(len))) {
                Some(bytes) => now.copy_from_slice(bytes),
                None => now.fill(0),
            }
            rest = later;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let mut kept = self.kept()?;
        let mut rest = data;
        for (number, within, len) in pages(at, rest.len()) {
            let (now, later) = rest.split_at(len);
            rest = later;
            let is_data = MARKERS.get(..len) == Some(now);
            if is_data || is_zero(now) && !kept.pages.contains_key(&number) {
                continue;
            }
            let page = kept.pages.entry(number).or_insert_with(|| vec![0; PAGE].into());
            if let Some(place) = page.get_mut(within..within.saturating_add(len)) {
                place.copy_from_slice(now);
            }
        }
        kept.size = kept.size.max(at.saturating_add(len64(data.len())));
        Ok(())
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        let mut kept = self.kept()?;
        let page = len64(PAGE);
        let pages = span.start().div_ceil(page)..span.end().checked_div(page).unwrap_or(0);
        if pages.end.saturating_sub(pages.start) > len64(kept.pages.len()) {
            kept.pages.retain(|n, _| !pages.contains(n));
        } else {
            for number in pages {
                kept.pages.remove(&number);
            }
        }
        kept.size = kept.size.max(span.end());
        Ok(())
    }

    fn discard(&self, span: Span) -> Result<()> {
        self.write_zeroes(span)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.kept()?.size = size;
        Ok(())
    }
}
