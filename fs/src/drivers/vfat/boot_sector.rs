//! The boot sector, checked: where everything is.

use racker_formats::block::{BlockSize, Disk};
use racker_formats::error::Result;
use racker_formats::wire::{bytes, len64, take, view};

use super::fault::FatFault;
use super::layout::{ENTRY_BYTES, EXTENDED16_AT, RawBoot, RawExtended};

/// Bytes of the boot sector that count, whatever the sector size.
pub(super) const BOOT_BYTES: u64 = 512;

/// The largest numbers of clusters (fatgen103, "FAT Type Determination").
pub(super) const CLUSTERS_MAX_FAT12: u64 = 4084;
pub(super) const CLUSTERS_MAX_FAT16: u64 = 65524;
pub(super) const CLUSTERS_MAX_FAT32: u64 = 0x0fff_fff4;

/// How wide an entry of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Where the root directory is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Root {
    /// At this byte, of that many bytes.
    Fixed(u64, u64),
    /// In the chain that begins with this cluster.
    Chain(u32),
}

/// A boot sector whose fields make sense together.
#[derive(Clone, Copy, Debug)]
pub(super) struct BootSector {
    pub(super) width: Width,
    pub(super) sector: u64,
    pub(super) cluster: BlockSize,
    pub(super) media: u8,
    /// First bytes of the tables.
    pub(super) fat_start: u64,
    /// Bytes of one table.
    pub(super) fat_bytes: u64,
    pub(super) fats: u8,
    /// The table that counts, where the others are no copies of it.
    pub(super) active_fat: Option<u8>,
    pub(super) root: Root,
    /// First byte of cluster 2.
    pub(super) data_start: u64,
    /// Number of clusters.
    pub(super) clusters: u32,
    /// Size in bytes of the filesystem.
    pub(super) size: u64,
    /// Sector with hints about free space, FAT32 only.
    pub(super) info_sector: Option<u64>,
    pub(super) is_dirty: bool,
    pub(super) volume_id: u32,
}

fn require(ok: bool, field: &'static str, found: u64, expected: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(FatFault::BootSector { field, found, expected }.into()) }
}

/// Whether the first sector of a volume is the boot sector of a FAT filesystem, and not a master boot record or
/// the boot sector of NTFS or exFAT, whose parameter blocks have zeroes where FAT may not have them.
pub(crate) fn is_boot_sector(sector: &[u8]) -> bool {
    let Ok(raw) = view::<RawBoot>(sector, "boot sector") else { return false };
    let jumps = (raw.jmp_boot[0] == 0xeb && raw.jmp_boot[2] == 0x90) || raw.jmp_boot[0] == 0xe9;
    let signed = sector.get(510..512) == Some(&[0x55, 0xaa]);
    let old = take::<RawExtended>(sector, EXTENDED16_AT, "boot sector");
    let named = raw.extended.fil_sys_type.starts_with(b"FAT32")
        || old.is_ok_and(|e| e.fil_sys_type.starts_with(b"FAT") || e.fil_sys_type.starts_with(b"MSDOS"));
    (named || (jumps && signed)) && BootSector::parse(sector).is_ok()
}

impl BootSector {
    /// Reads and checks the boot sector of a volume.
    pub(super) fn read(disk: &Disk) -> Result<Self> {
        Self::parse(&bytes(disk, 0, BOOT_BYTES, BOOT_BYTES, "boot sector")?)
    }

    /// Checks the bytes of a boot sector.
    fn parse(sector: &[u8]) -> Result<Self> {
        let raw = *view::<RawBoot>(sector, "boot sector")?;
        let sector_bytes = u64::from(raw.byts_per_sec.get());
        let fits = matches!(sector_bytes, 512 | 1024 | 2048 | 4096);
        require(fits, "BytsPerSec", sector_bytes, "512, 1024, 2048 or 4096")?;
        let per_cluster = u64::from(raw.sec_per_clus);
        require(per_cluster.is_power_of_two(), "SecPerClus", per_cluster, "a power of two")?;
        let reserved = u64::from(raw.rsvd_sec_cnt.get());
        require(reserved != 0, "RsvdSecCnt", reserved, "1 or more")?;
        let fats = u64::from(raw.num_fats);
        // The specification allows more; all drivers but some want one or two.
        require((1..=4).contains(&fats), "NumFATs", fats, "1 to 4")?;
        require(raw.media == 0xf0 || raw.media >= 0xf8, "Media", raw.media.into(), "0xf0 or 0xf8 to 0xff")?;

        let is_fat32 = raw.fat_sz16.get() == 0;
        let fat_sectors = if is_fat32 { raw.fat_sz32.get() } else { raw.fat_sz16.get().into() };
        require(fat_sectors != 0, "FATSz32", 0, "1 or more")?;
        let sectors = match raw.tot_sec16.get() {
            0 => raw.tot_sec32.get(),
            n => n.into(),
        };
        let root_bytes = u64::from(raw.root_ent_cnt.get()).saturating_mul(len64(ENTRY_BYTES));
        let fat_bytes = u64::from(fat_sectors).saturating_mul(sector_bytes);
        let fat_start = reserved.saturating_mul(sector_bytes);
        let root_start = fat_start.saturating_add(fats.saturating_mul(fat_bytes));
        let root_sectors = root_bytes.div_ceil(sector_bytes);
        let data_start = root_start.saturating_add(root_sectors.saturating_mul(sector_bytes));
        let size = u64::from(sectors).saturating_mul(sector_bytes);
        let cluster_bytes = per_cluster.saturating_mul(sector_bytes);
        let cluster = BlockSize::from_bytes(cluster_bytes).ok_or(FatFault::BootSector {
            field: "SecPerClus",
            found: per_cluster,
            expected: "a power of two",
        })?;
        require(size > data_start, "TotSec32", sectors.into(), "more sectors than the tables take")?;
        let counted = size.saturating_sub(data_start) >> cluster.shift();

        let (width, max) = match counted {
            _ if is_fat32 => (Width::Fat32, CLUSTERS_MAX_FAT32),
            0..=CLUSTERS_MAX_FAT12 => (Width::Fat12, CLUSTERS_MAX_FAT12),
            _ => (Width::Fat16, CLUSTERS_MAX_FAT16),
        };
        // The table may have room for less than the volume has; nothing beyond it can be used.
        let entries = match width {
            Width::Fat12 => fat_bytes.saturating_mul(2).checked_div(3).unwrap_or(0),
            Width::Fat16 => fat_bytes >> 1,
            Width::Fat32 => fat_bytes >> 2,
        };
        let counted = counted.min(entries.saturating_sub(2));
        require(counted >= 1 && counted <= max, "clusters", counted, "1 to the most that the width allows")?;
        let clusters = u32::try_from(counted).unwrap_or(u32::MAX);
        if !is_fat32 {
            require(root_bytes != 0, "RootEntCnt", 0, "1 or more")?;
        }
        let extended = if is_fat32 { raw.extended } else { take(sector, EXTENDED16_AT, "boot sector")? };
        let flags = raw.ext_flags.get();
        let active_fat = (is_fat32 && flags & 0x80 != 0).then_some(u8::try_from(flags & 0xf).unwrap_or(0));
        if let Some(active) = active_fat {
            require(active < raw.num_fats, "ExtFlags", flags.into(), "the number of a table")?;
        }
        let info = u64::from(raw.fs_info.get());
        Ok(Self {
            width,
            sector: sector_bytes,
            cluster,
            media: raw.media,
            fat_start,
            fat_bytes,
            fats: raw.num_fats,
            active_fat,
            root: if is_fat32 {
                Root::Chain(raw.root_clus.get())
            } else {
                Root::Fixed(root_start, root_bytes)
            },
            data_start,
            clusters,
            size,
            info_sector: (is_fat32 && info != 0 && info < reserved).then_some(info),
            is_dirty: extended.state & 1 != 0,
            volume_id: extended.vol_id.get(),
        })
    }
}
