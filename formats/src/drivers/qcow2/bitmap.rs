//! The bitmap directory: which stretches of the disk were written since some point in time.

use super::extensions::BitmapDirectory;
use super::fault::Fault;
use super::header::{AUTOCLEAR_BITMAPS, Header};
use super::layout::RawBitmap;
use crate::block::Disk;
use crate::error::{Result, Within};
use crate::limits::MIB;
use crate::wire::{bytes, index, len64, part, take};

/// QEMU's limit for their number.
const BITMAPS_MAX: u64 = 65_535;
/// Bytes of the directory: as many entries as that, each with a name of the usual length.
const DIRECTORY_BYTES_MAX: u64 = 16 * MIB;

/// `flags`: not saved correctly.
const IN_USE: u32 = 1;
/// `flags`: every write to the disk belongs into it.
const AUTO: u32 = 1 << 1;

/// One bitmap.
#[derive(Clone, Debug)]
pub(super) struct Bitmap {
    pub(super) name: String,
    pub(super) granularity_bits: u8,
    flags: u32,
}

impl Bitmap {
    /// The words that `qemu-img info` prints.
    pub(super) fn flags(&self) -> Vec<&'static str> {
        let words = [(IN_USE, "in-use"), (AUTO, "auto")];
        words.into_iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, word)| word).collect()
    }
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
        list.push(Bitmap { name, granularity_bits, flags: raw.flags.get() });
        at = name_at.saturating_add(name_len).next_multiple_of(8);
    }
    Ok(list)
}
