//! The footer: bytes to a checked value, and back.

use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use super::fault::VhdFault;
use super::geometry::Geometry;
use super::layout::{
    EPOCH, FEATURE_RESERVED, FOOTER_BYTES, FOOTER_COOKIE, NOWHERE, RawFooter, SECTOR, VERSION,
};
use crate::block::Disk;
use crate::error::Result;
use crate::wire::{bytes, len64, view};

/// 2040 GiB: what programs agree on. 32 bits of sectors end at 2 TiB, the file with its bitmaps included.
pub(super) const SIZE_MAX: u64 = 0xff00_0000 * SECTOR;

/// Creators whose disks have the size of their geometry. All others mean `current_size`.
const CHS_CREATORS: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];
/// What racker calls itself.
const CREATOR: [u8; 4] = *b"rckr";
/// "Wi2k": programs ask for one of the two that the specification knows.
const HOST_OS: [u8; 4] = *b"Wi2k";

/// The kinds of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

impl DiskType {
    /// The word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// A checked footer.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    raw: RawFooter,
    pub(super) disk_type: DiskType,
    /// Virtual size in bytes.
    pub(super) size: u64,
    pub(super) unique_id: Uuid,
    /// Where the dynamic disk header is.
    pub(super) header_at: u64,
}

/// One's complement of the sum of all bytes, those of the checksum left out.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |part: &[u8]| part.iter().fold(0u32, |sum, b| sum.wrapping_add((*b).into()));
    let (field_end, all) = (at.saturating_add(4), sum(bytes));
    !all.wrapping_sub(sum(bytes.get(at..field_end).unwrap_or_default()))
}

impl Footer {
    /// Checks what stands in the 512 bytes of a footer.
    pub(super) fn parse(sector: &[u8]) -> Result<Self> {
        let raw: &RawFooter = view(sector, "footer")?;
        if raw.cookie != FOOTER_COOKIE {
            return Err(VhdFault::NoFooter.into());
        }
        let (found, expected) = (raw.checksum.get(), checksum(raw.as_bytes(), 64));
        if found != expected {
            return Err(VhdFault::Checksum { what: "footer", found, expected }.into());
        }
        let version = raw.file_format_version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(VhdFault::Version { what: "footer", found: version }.into());
        }
        let disk_type = match raw.disk_type.get() {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(VhdFault::DiskType(other).into()),
        };
        let footer = Self {
            raw: *raw,
            disk_type,
            size: size(raw),
            unique_id: Uuid::from_bytes(raw.unique_id),
            header_at: raw.data_offset.get(),
        };
        if footer.size > SIZE_MAX {
            return Err(VhdFault::Size { bytes: footer.size, max: SIZE_MAX }.into());
        }
        Ok(footer)
    }

    /// The footer of a new disk.
    pub(super) fn new(disk_type: DiskType, size: u64, geometry: Geometry, seconds: u64) -> Self {
        let mut raw = RawFooter::new_zeroed();
        raw.cookie = FOOTER_COOKIE;
        raw.features = FEATURE_RESERVED.into();
        raw.file_format_version = VERSION.into();
        let header_at = if disk_type == DiskType::Fixed { NOWHERE } else { SECTOR };
        raw.data_offset = header_at.into();
        raw.time_stamp = time_stamp(seconds).into();
        raw.creator_application = CREATOR;
        raw.creator_version = VERSION.into();
        raw.creator_host_os = HOST_OS;
        raw.original_size = size.into();
        raw.disk_type = disk_type.number().into();
        let unique_id = Uuid::new_v4();
        raw.unique_id = *unique_id.as_bytes();
        let mut footer = Self { raw, disk_type, size, unique_id, header_at };
        footer.set_size(size, geometry);
        footer
    }

    /// The same for a disk of another size: `geometry` where it tells the size exactly, otherwise one that says that
    /// it does not.
    pub(super) fn resized(&self, size: u64) -> Self {
        let mut footer = self.clone();
        let exact = Geometry::of(size);
        footer.set_size(size, if exact.bytes() == size { exact } else { Geometry::MAX });
        footer
    }

    /// The same for a disk of another type, whose dynamic disk header lies elsewhere.
    pub(super) fn moved(&self, disk_type: DiskType, header_at: u64) -> Self {
        let mut footer = Self { disk_type, header_at, ..self.clone() };
        footer.raw.disk_type = disk_type.number().into();
        footer.raw.data_offset = header_at.into();
        footer.raw.checksum = checksum(footer.raw.as_bytes(), 64).into();
        footer
    }

    fn set_size(&mut self, size: u64, geometry: Geometry) {
        self.size = size;
        self.raw.current_size = size.into();
        self.raw.cylinders = geometry.cylinders.into();
        self.raw.heads = geometry.heads;
        self.raw.sectors_per_track = geometry.sectors;
        self.raw.checksum = checksum(self.raw.as_bytes(), 64).into();
    }

    /// As it lies on disk.
    pub(super) fn bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    /// The program that made the disk.
    pub(super) fn creator(&self) -> String {
        let text = |b: &u8| if b.is_ascii_graphic() { char::from(*b) } else { ' ' };
        self.raw.creator_application.iter().map(text).collect::<String>().trim_end().into()
    }

    /// Whether a virtual machine was put to sleep on this disk.
    pub(super) fn saved_state(&self) -> bool {
        self.raw.saved_state != 0
    }

    /// The field of that name, which is not always what counts.
    pub(super) fn current_size(&self) -> u64 {
        self.raw.current_size.get()
    }
}

/// The size of the disk in bytes, by QEMU's rule: Virtual PC goes by the geometry, everybody else by `current_size`;
/// the largest geometry says nothing.
fn size(raw: &RawFooter) -> u64 {
    let geometry =
        Geometry { cylinders: raw.cylinders.get(), heads: raw.heads, sectors: raw.sectors_per_track };
    if CHS_CREATORS.contains(&raw.creator_application) && geometry.bytes() != Geometry::MAX.bytes() {
        return geometry.bytes();
    }
    let current = raw.current_size.get();
    current.saturating_sub(current.rem_euclid(SECTOR))
}

/// Seconds since 1970 as a time stamp of the format.
pub(super) fn time_stamp(seconds: u64) -> u32 {
    u32::try_from(seconds.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// The footers of a file.
#[derive(Debug)]
pub(super) struct Footers {
    /// At the beginning: the copy of disks that are not fixed, or a guest's bytes.
    pub(super) first: Result<Footer>,
    /// At the end.
    pub(super) last: Result<Footer>,
    /// Where the last one begins, had it its full length.
    pub(super) last_at: u64,
}

impl Footers {
    /// Looks at both ends of the file.
    pub(super) fn read(file: &Disk) -> Result<Self> {
        let footer = len64(FOOTER_BYTES);
        let first = bytes(file, 0, footer.min(file.size()), footer, "footer")?;
        let mut last_at = file.size().saturating_sub(footer);
        let mut last = bytes(file, last_at, footer.min(file.size()), footer, "footer")?;
        // Before 2004 Virtual PC wrote a byte less.
        if file.size().rem_euclid(SECTOR) == footer.saturating_sub(1) {
            last.rotate_left(1);
            if let Some(end) = last.last_mut() {
                *end = 0;
            }
            last_at = last_at.saturating_add(1);
        }
        Ok(Self { first: Footer::parse(&first), last: Footer::parse(&last), last_at })
    }

    /// The footer that holds.
    ///
    /// A fixed disk has its only footer at the end, and a guest can write whatever it likes where other disks have
    /// their copy. So a fixed disk's footer whose size agrees with the file's wins.
    pub(super) fn choose(self) -> Result<Footer> {
        match (self.first, self.last) {
            (_, Ok(last)) if last.disk_type == DiskType::Fixed && last.current_size() == self.last_at => {
                Ok(last)
            }
            (Ok(first), _) if first.disk_type != DiskType::Fixed => Ok(first),
            (_, Ok(last)) => Ok(last),
            // A fixed disk's footer has no business at the beginning.
            (Ok(_), Err(e)) => Err(e),
            (Err(first), Err(last)) => {
                let no_cookie = matches!(last.fault(), Some(VhdFault::NoFooter));
                Err(if no_cookie { first } else { last })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    fn file(first: Option<&Footer>, middle: usize, last: &Footer) -> Disk {
        let mut bytes = first.map(|f| f.bytes().to_vec()).unwrap_or_default();
        bytes.resize(middle, 0);
        bytes.extend(last.bytes());
        Disk::new(MemDevice::from_bytes(bytes))
    }

    #[test]
    fn a_guest_cannot_make_a_fixed_disk_look_dynamic() {
        let fixed = Footer::new(DiskType::Fixed, 4096, Geometry::of(4096), EPOCH);
        let fake = Footer::new(DiskType::Differencing, 4096, Geometry::of(4096), EPOCH);
        let found = Footers::read(&file(Some(&fake), 4096, &fixed)).unwrap().choose().unwrap();
        assert_eq!(found.unique_id, fixed.unique_id);
        let found = Footers::read(&file(Some(&fake), 4096, &fake)).unwrap().choose().unwrap();
        assert_eq!(found.disk_type, DiskType::Differencing);
    }

    #[test]
    fn a_damaged_footer_is_made_up_for_by_the_other() {
        let dynamic = Footer::new(DiskType::Dynamic, 4096, Geometry::of(4096), EPOCH);
        let mut broken = dynamic.clone();
        broken.raw.unique_id = [9; 16];
        let read =
            |first: &Footer, last: &Footer| Footers::read(&file(Some(first), 4096, last)).unwrap().choose();
        assert_eq!(read(&broken, &dynamic).unwrap().unique_id, dynamic.unique_id);
        assert_eq!(read(&dynamic, &broken).unwrap().unique_id, dynamic.unique_id);
        let e = read(&broken, &broken).unwrap_err();
        assert!(matches!(e.fault(), Some(VhdFault::Checksum { .. })), "{e}");
    }

    #[test]
    fn footers_of_511_bytes_are_read() {
        let fixed = Footer::new(DiskType::Fixed, 4096, Geometry::of(4096), EPOCH);
        let disk = file(None, 4096, &fixed);
        disk.resize(4096 + 511).unwrap();
        let footers = Footers::read(&disk).unwrap();
        assert_eq!(footers.last_at, 4096);
        assert_eq!(footers.choose().unwrap().unique_id, fixed.unique_id);
    }
}
