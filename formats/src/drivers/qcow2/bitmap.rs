//! The bitmap directory: which stretches of the disk were written since some point in time.

use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::extensions::BitmapDirectory;
use super::fault::Fault;
use super::header::{AUTOCLEAR_BITMAPS, Header, TablePlace};
use super::layout::{OFFSET_MASK, RawBitmap};
use crate::block::{BlockDevice, BlockSize, Caps, Disk, Run, RunKind, Span, Support};
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::registry::BitmapFacts;
use crate::wire::{bytes, index, len64, part, part_mut, table, take};

/// QEMU's limit for their number.
pub(super) const BITMAPS_MAX: u64 = 65_535;
/// Bytes of the directory: as many entries as that, each with a name of the usual length.
pub(super) const DIRECTORY_BYTES_MAX: u64 = 16 * MIB;

/// Bytes of one bitmap's table: 2^20 entries of 64 KiB each serve a disk of 32 PiB.
const TABLE_BYTES_MAX: u64 = 8 * MIB;

/// `flags`: not saved correctly.
const IN_USE: u32 = 1;
/// `flags`: every write to the disk belongs into it.
const AUTO: u32 = 1 << 1;

/// Byte of `flags` in an entry.
const FLAGS_AT: u64 = 12;
/// `type`: what was written is one.
const DIRTY_TRACKING: u8 = 1;
/// An entry of a table: the cluster that is not there is full of ones.
const ALL_ONES: u64 = 1;

/// One bitmap.
#[derive(Clone, Debug)]
pub(super) struct Bitmap {
    pub(super) name: String,
    pub(super) granularity_bits: u8,
    flags: u32,
    /// Where the flags stand in the file.
    flags_at: u64,
    /// The offsets of its data.
    pub(super) table: TablePlace,
    kind: u8,
    /// What else its entry has: extra data, and behind them the name.
    tail: Vec<u8>,
    extra_len: u32,
}

impl Bitmap {
    /// An empty one. Where its table lies is said later.
    pub(super) fn new(name: &str, granularity_bits: u8, enabled: bool) -> Self {
        Self {
            name: name.into(),
            granularity_bits,
            flags: if enabled { AUTO } else { 0 },
            flags_at: 0,
            table: TablePlace { at: 0, entries: 0 },
            kind: DIRTY_TRACKING,
            tail: name.into(),
            extra_len: 0,
        }
    }

    /// What callers are told.
    pub(super) fn public(&self) -> BitmapFacts {
        BitmapFacts {
            name: self.name.clone(),
            granularity: 1u64.wrapping_shl(self.granularity_bits.into()),
            enabled: self.flags & AUTO != 0,
            consistent: self.is_consistent(),
        }
    }

    /// Bytes of its bits over a disk of `size` bytes.
    pub(super) fn bytes(&self, size: u64) -> u64 {
        let unit = BlockSize::from_shift(self.granularity_bits.into());
        unit.map_or(u64::MAX, |unit| unit.count(size).div_ceil(8))
    }

    /// Whether writes are to be noted from now on; says so in the file at once.
    pub(super) fn set_enabled(&mut self, file: &Disk, enabled: bool) -> Result<()> {
        self.flags = if enabled { self.flags | AUTO } else { self.flags & !AUTO };
        file.write_at(self.flags_at, &self.flags.to_be_bytes()).within(|| "bitmap directory")?;
        file.flush()
    }

    /// Its entry in the directory.
    fn entry(&self) -> Result<Vec<u8>> {
        let entries = self.table.entries;
        let name_len = self.tail.len().saturating_sub(index(self.extra_len.into())?);
        let raw = RawBitmap {
            bitmap_table_offset: self.table.at.into(),
            bitmap_table_size: u32::try_from(entries).map_err(|_| Common::Index(entries))?.into(),
            flags: self.flags.into(),
            kind: self.kind,
            granularity_bits: self.granularity_bits,
            name_size: u16::try_from(name_len).map_err(|_| Common::Index(len64(name_len)))?.into(),
            extra_data_size: self.extra_len.into(),
        };
        let mut all = [raw.as_bytes(), &self.tail].concat();
        all.resize(all.len().next_multiple_of(8), 0);
        Ok(all)
    }

    /// Whether what is written to the disk belongs into it, and it is good so far.
    fn notes(&self) -> bool {
        self.flags & (IN_USE | AUTO) == AUTO
    }

    /// Whether it is good.
    pub(super) fn is_consistent(&self) -> bool {
        self.flags & IN_USE == 0
    }

    /// The words that `qemu-img info` prints.
    pub(super) fn flags(&self) -> Vec<&'static str> {
        let words = [(IN_USE, "in-use"), (AUTO, "auto")];
        words.into_iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, word)| word).collect()
    }
}

/// Says of every bitmap that was to note what is written that it has not: racker keeps none of them up to date. Those
/// that are switched off stay good.
pub(super) fn give_up(file: &Disk, bitmaps: &[Bitmap]) -> Result<Option<Vec<Bitmap>>> {
    if !bitmaps.iter().any(Bitmap::notes) {
        return Ok(None);
    }
    let mut new = bitmaps.to_vec();
    for bitmap in new.iter_mut().filter(|b| b.notes()) {
        bitmap.flags |= IN_USE;
        file.write_at(bitmap.flags_at, &bitmap.flags.to_be_bytes()).within(|| "bitmap directory")?;
    }
    file.flush()?;
    Ok(Some(new))
}

/// Reads the directory, if the image says that it can be relied on.
pub(super) fn read_bitmaps(file: &Disk, header: &Header) -> Result<Vec<Bitmap>> {
    match header.extensions.bitmaps {
        Some(directory) if header.autoclear & AUTOCLEAR_BITMAPS != 0 => {
            read_directory(file, header, directory).within(|| "bitmap directory")
        }
        _ => Ok(Vec::new()),
    }
}

fn read_directory(file: &Disk, header: &Header, place: BitmapDirectory) -> Result<Vec<Bitmap>> {
    let BitmapDirectory { count, at, len } = place;
    if count > BITMAPS_MAX {
        return Err(Fault::Many { what: "bitmaps", found: count, max: BITMAPS_MAX }.into());
    }
    let cluster = header.geometry.cluster;
    if !cluster.aligned(at) {
        return Err(Fault::Unaligned { what: "bitmap directory", at, cluster: cluster.bytes() }.into());
    }
    let all = bytes(file, at, len, DIRECTORY_BYTES_MAX, "bitmap directory")?;
    let mut list = Vec::new();
    let mut at = 0usize;
    while len64(list.len()) < count {
        let raw: RawBitmap = take(&all, at, "bitmap")?;
        let (extra, name_len) = (index(raw.extra_data_size.get().into())?, usize::from(raw.name_size.get()));
        let name_at = at.saturating_add(size_of::<RawBitmap>()).saturating_add(extra);
        let name = String::from_utf8_lossy(part(&all, name_at, name_len, "bitmap")?).into_owned();
        let granularity_bits = raw.granularity_bits;
        if granularity_bits > 63 {
            let found = granularity_bits.into();
            return Err(Fault::Many { what: "bits of granularity", found, max: 63 }.into());
        }
        let table =
            TablePlace { at: raw.bitmap_table_offset.get(), entries: raw.bitmap_table_size.get().into() };
        let flags_at = place.at.saturating_add(len64(at)).saturating_add(FLAGS_AT);
        let tail_at = at.saturating_add(size_of::<RawBitmap>());
        let tail = part(&all, tail_at, extra.saturating_add(name_len), "bitmap")?.to_vec();
        list.push(Bitmap {
            name,
            granularity_bits,
            flags: raw.flags.get(),
            flags_at,
            table,
            kind: raw.kind,
            tail,
            extra_len: raw.extra_data_size.get(),
        });
        at = name_at.saturating_add(name_len).next_multiple_of(8);
    }
    Ok(list)
}

/// Bytes that bitmaps of a disk of `size` bytes take when all of their data are there. Those that cannot be relied on
/// are not counted: nobody copies them.
pub(super) fn size(cluster: BlockSize, size: u64, bitmaps: &[BitmapFacts]) -> u64 {
    let (mut clusters, mut directory) = (0u64, 0u64);
    for bitmap in bitmaps.iter().filter(|bitmap| bitmap.consistent) {
        let bits = size.div_ceil(bitmap.granularity.max(1));
        let data = cluster.count(bits.div_ceil(8));
        let table = cluster.count(data.saturating_mul(8));
        clusters = clusters.saturating_add(data).saturating_add(table);
        let entry = len64(size_of::<RawBitmap>().saturating_add(bitmap.name.len())).next_multiple_of(8);
        directory = directory.saturating_add(entry);
    }
    cluster.start_of(clusters.saturating_add(cluster.count(directory))).unwrap_or(u64::MAX)
}

/// The bytes of a directory.
pub(super) fn directory_bytes(list: &[Bitmap]) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for bitmap in list {
        all.extend_from_slice(&bitmap.entry()?);
    }
    let found = len64(all.len());
    if found > DIRECTORY_BYTES_MAX {
        return Err(Fault::Many { what: "bytes of bitmap directory", found, max: DIRECTORY_BYTES_MAX }.into());
    }
    Ok(all)
}

fn read_table(file: &Disk, bitmap: &Bitmap) -> Result<Vec<u64>> {
    let TablePlace { at, entries } = bitmap.table;
    let raw: Vec<U64> = table(file, at, entries, TABLE_BYTES_MAX, "bitmap table")?;
    Ok(raw.into_iter().map(U64::get).collect())
}

/// Where the clusters with a bitmap's data lie.
pub(super) fn data_clusters(file: &Disk, bitmap: &Bitmap) -> Result<Vec<u64>> {
    let all = read_table(file, bitmap)?.into_iter().map(|entry| entry & OFFSET_MASK);
    Ok(all.filter(|at| *at != 0).collect())
}

/// A bitmap's bits, the lowest of each byte first.
#[derive(Debug)]
pub(super) struct Bits {
    file: Disk,
    cluster: BlockSize,
    table: Vec<u64>,
    size: u64,
}

impl Bits {
    /// Those of a bitmap over a disk of `size` bytes.
    pub(super) fn open(file: &Disk, cluster: BlockSize, bitmap: &Bitmap, size: u64) -> Result<Self> {
        let size = bitmap.bytes(size);
        let table = read_table(file, bitmap)?;
        let (found, need) = (len64(table.len()), cluster.count(size));
        if found != need {
            return Err(Fault::BitmapTable { name: bitmap.name.clone(), found, need }.into());
        }
        let file_size = file.size();
        for at in table.iter().map(|entry| entry & OFFSET_MASK).filter(|at| *at != 0) {
            let (what, len) = ("bitmap data", cluster.bytes());
            if !cluster.aligned(at) {
                return Err(Fault::Unaligned { what, at, cluster: len }.into());
            }
            if at.saturating_add(len) > file_size {
                return Err(Fault::OutsideFile { what, at, len, file: file_size }.into());
            }
        }
        Ok(Self { file: file.read_only(), cluster, table, size })
    }

    /// The entry of the table for the byte at `at`, and what is left of its cluster there.
    fn entry(&self, span: Span) -> Result<(u64, Span)> {
        let (number, within) = self.cluster.split(span.start());
        let entry = self.table.get(index(number)?).copied().unwrap_or_default();
        Ok((entry, span.truncate(self.cluster.bytes().saturating_sub(within))))
    }
}

impl BlockDevice for Bits {
    fn size(&self) -> u64 {
        self.size
    }

    fn caps(&self) -> Caps {
        Caps { runs: Support::Native, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut rest = Span::new(at, len64(buf.len()))?;
        while !rest.is_empty() {
            let (entry, now) = self.entry(rest)?;
            let to = index(rest.start().saturating_sub(at))?;
            let to = part_mut(buf, to, index(now.len())?, "bitmap")?;
            match entry & OFFSET_MASK {
                0 => to.fill(if entry & ALL_ONES == 0 { 0 } else { u8::MAX }),
                host => {
                    let (_, within) = self.cluster.split(now.start());
                    self.file.read_at(host.saturating_add(within), to).within(|| "bitmap data")?;
                }
            }
            rest = rest.skip(now.len());
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let (entry, first) = self.entry(span)?;
        let kind = if entry == 0 { RunKind::Zero } else { RunKind::Data };
        let mut len = first.len();
        while len < span.len() {
            let (next, now) = self.entry(span.skip(len))?;
            if (next == 0) != (entry == 0) {
                break;
            }
            len = len.saturating_add(now.len());
        }
        Ok(Run { len, kind })
    }
}
