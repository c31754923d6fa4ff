//! The bitmap directory: which stretches of the disk were written since some point in time.

use zerocopy::big_endian::U64;

use super::extensions::BitmapDirectory;
use super::fault::Fault;
use super::header::{AUTOCLEAR_BITMAPS, Header, TablePlace};
use super::layout::{OFFSET_MASK, RawBitmap};
use crate::block::Disk;
use crate::error::{Result, Within};
use crate::limits::MIB;
use crate::wire::{bytes, index, len64, part, table, take};

/// QEMU's limit for their number.
const BITMAPS_MAX: u64 = 65_535;
/// Bytes of the directory: as many entries as that, each with a name of the usual length.
const DIRECTORY_BYTES_MAX: u64 = 16 * MIB;

/// Bytes of one bitmap's table: 2^20 entries of 64 KiB each serve a disk of 32 PiB.
const TABLE_BYTES_MAX: u64 = 8 * MIB;

/// `flags`: not saved correctly.
const IN_USE: u32 = 1;
/// `flags`: every write to the disk belongs into it.
const AUTO: u32 = 1 << 1;

/// Byte of `flags` in an entry.
const FLAGS_AT: u64 = 12;

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
}

impl Bitmap {
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
        list.push(Bitmap { name, granularity_bits, flags: raw.flags.get(), flags_at, table });
        at = name_at.saturating_add(name_len).next_multiple_of(8);
    }
    Ok(list)
}

/// Where the clusters with a bitmap's data lie.
pub(super) fn data_clusters(file: &Disk, bitmap: &Bitmap) -> Result<Vec<u64>> {
    let TablePlace { at, entries } = bitmap.table;
    let raw: Vec<U64> = table(file, at, entries, TABLE_BYTES_MAX, "bitmap table")?;
    Ok(raw.into_iter().map(|entry| entry.get() & OFFSET_MASK).filter(|at| *at != 0).collect())
}
