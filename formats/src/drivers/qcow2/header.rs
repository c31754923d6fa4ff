//! The header: bytes to checked values, and back into the sector they came from, of which nothing else is changed.

use bitflags::bitflags;
use zerocopy::IntoBytes;

use super::extensions::{BitmapDirectory, Extensions, feature_names};
use super::fault::Fault;
use super::layout::{COMPRESSION_TYPE_AT, MAGIC, RawHeader, RawHeaderV3};
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::{KIB, MIB};
use crate::opening::{Reference, Role};
use crate::wire::{bytes, len64, part_mut, take};

/// A header is written as one sector: nothing smaller is torn by a power cut.
pub(super) const SECTOR: usize = 512;

/// QEMU makes and opens no larger L1 table; it covers 2 EiB with the largest clusters.
pub(super) const L1_BYTES_MAX: u64 = 32 * MIB;
/// QEMU's limit for the refcount table as well.
pub(super) const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 * MIB;
/// QEMU's limit.
pub(super) const SNAPSHOTS_MAX: u64 = 65_536;
/// The specification's limit for the length of the backing file's name.
const BACKING_NAME_MAX: u32 = 1023;
/// First bytes that are read: in practice they hold every extension, whatever the cluster size.
const FIRST_READ: u64 = 64 * KIB;
/// The largest cluster, thus the largest header area.
const CLUSTER_MAX: u64 = 2 * MIB;
/// `header_length` of version 2, and the least of version 3.
const HEADER_V2: u32 = 72;
const HEADER_V3: u32 = 104;

bitflags! {
    /// Features without which the image cannot be understood.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Incompatible: u64 {
        /// Reference counts may be wrong.
        const DIRTY = 1;
        /// Anything may be wrong: not to be written.
        const CORRUPT = 1 << 1;
        /// Data lie in another file.
        const DATA_FILE = 1 << 2;
        /// `compression_type` is not 0.
        const COMPRESSION_TYPE = 1 << 3;
        /// L2 entries of 128 bits.
        const EXTENDED_L2 = 1 << 4;
    }
}

/// `compatible_features`: reference counts may be written late.
pub(super) const LAZY_REFCOUNTS: u64 = 1;
/// `autoclear_features`: the bitmaps extension is consistent.
pub(super) const AUTOCLEAR_BITMAPS: u64 = 1;
/// `autoclear_features`: the external data file is a raw image of its own.
pub(super) const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The word users type.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// Sizes that follow from the header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Unit of allocation, 512 bytes to 2 MiB.
    pub(super) cluster: BlockSize,
    /// Unit within a cluster that can be allocated by itself: 1/32 with extended L2, else all of it.
    pub(super) subcluster: BlockSize,
    /// Entries of an L2 table.
    pub(super) l2_entries: BlockSize,
    /// Bytes of the disk that one L2 table maps.
    pub(super) l2_reach: BlockSize,
    /// A reference count has `1 << refcount_order` bits.
    pub(super) refcount_order: u32,
}

impl Geometry {
    /// Checks the two exponents.
    pub(super) fn new(cluster_bits: u32, extended: bool, refcount_order: u32) -> Result<Self> {
        if !(9..=21).contains(&cluster_bits) {
            return Err(Fault::ClusterBits(cluster_bits).into());
        }
        if extended && cluster_bits < 14 {
            return Err(Fault::SubclusterSize(cluster_bits).into());
        }
        if refcount_order > 6 {
            return Err(Fault::RefcountOrder(refcount_order).into());
        }
        let size = |bits: u32| BlockSize::from_shift(bits).ok_or(Fault::ClusterBits(cluster_bits));
        let l2_bits = cluster_bits.saturating_sub(if extended { 4 } else { 3 });
        Ok(Self {
            cluster: size(cluster_bits)?,
            subcluster: size(cluster_bits.saturating_sub(if extended { 5 } else { 0 }))?,
            l2_entries: size(l2_bits)?,
            l2_reach: size(cluster_bits.saturating_add(l2_bits))?,
            refcount_order,
        })
    }

    /// Whether L2 entries have 128 bits.
    pub(super) const fn extended(&self) -> bool {
        self.subcluster.shift() != self.cluster.shift()
    }

    /// Reference counts in one block of them.
    pub(super) const fn counts_per_block(&self) -> u64 {
        self.cluster.bytes().wrapping_shl(3).wrapping_shr(self.refcount_order)
    }

    /// Entries that the L1 table of a disk of `size` bytes needs.
    pub(super) const fn l1_entries(&self, size: u64) -> u64 {
        self.l2_reach.count(size)
    }
}

/// A table: where it starts and how many entries it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TablePlace {
    /// First byte in the file.
    pub(super) at: u64,
    /// How many entries.
    pub(super) entries: u64,
}

/// Everything the header says, checked.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) geometry: Geometry,
    /// Virtual size in bytes.
    pub(super) size: u64,
    pub(super) l1: TablePlace,
    pub(super) refcount_table: TablePlace,
    pub(super) snapshots: TablePlace,
    pub(super) incompatible: Incompatible,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) compression: Compression,
    pub(super) backing: Option<Reference>,
    pub(super) data_file: Option<Reference>,
    pub(super) extensions: Extensions,
    /// The first sector as it lies on disk.
    sector: [u8; SECTOR],
}

impl Header {
    /// The autoclear bits that may stay when the image is written to: those of features that are kept up.
    pub(super) fn kept_promises(&self) -> u64 {
        self.autoclear & (AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA)
    }

    /// Reads and checks the header of the image in `file`.
    pub(super) fn read(file: &Disk) -> Result<Self> {
        let first = bytes(file, 0, file.size().min(FIRST_READ), FIRST_READ, "header")?;
        let raw: RawHeader = take(&first, 0, "header")?;
        if raw.magic != MAGIC {
            return Err(Fault::Magic.into());
        }
        if !matches!(raw.version.get(), 2 | 3) {
            return Err(Fault::Version(raw.version.get()).into());
        }
        let bits = raw.cluster_bits.get();
        let cluster = Geometry::new(bits, false, 4)?.cluster.bytes();
        // The header area ends with the first cluster, or with the file that has not even that.
        let area = if cluster > FIRST_READ {
            bytes(file, 0, file.size().min(cluster), CLUSTER_MAX, "header")?
        } else {
            let whole = usize::try_from(cluster).unwrap_or(first.len());
            first.get(..whole).unwrap_or(&first).to_vec()
        };
        Self::parse(&raw, &area, file.size()).within(|| "header")
    }

    fn parse(raw: &RawHeader, area: &[u8], file_size: u64) -> Result<Self> {
        let version = raw.version.get();
        let v3 = if version == 2 { None } else { Some(take::<RawHeaderV3>(area, 72, "header")?) };
        let length = v3.map_or(HEADER_V2, |v| v.header_length.get());
        let cluster_bits = raw.cluster_bits.get();
        let cluster = Geometry::new(cluster_bits, false, 4)?.cluster;
        if v3.is_some() && (length < HEADER_V3 || u64::from(length) > cluster.bytes()) {
            let max = cluster.bytes();
            return Err(Fault::HeaderLength { found: length, min: HEADER_V3, max }.into());
        }

        let backing_at = raw.backing_file_offset.get();
        let area_end = if backing_at == 0 { cluster.bytes() } else { backing_at.min(cluster.bytes()) };
        let extensions = Extensions::parse(area, length, area_end)?;
        let bits = v3.map_or(0, |v| v.incompatible_features.get());
        let Some(incompatible) = Incompatible::from_bits(bits) else {
            let unknown = bits & !Incompatible::all().bits();
            return Err(Fault::Features(feature_names(&extensions, unknown)).into());
        };
        let extended = incompatible.contains(Incompatible::EXTENDED_L2);
        let order = v3.map_or(4, |v| v.refcount_order.get());
        let geometry = Geometry::new(cluster_bits, extended, order)?;
        match raw.crypt_method.get() {
            0 if extensions.encryption => return Err(Fault::Encrypted("full disk encryption header").into()),
            0 => {}
            1 => return Err(Fault::Encrypted("AES").into()),
            2 => return Err(Fault::Encrypted("LUKS").into()),
            other => return Err(Fault::CryptMethod(other).into()),
        }
        let autoclear = v3.map_or(0, |v| v.autoclear_features.get());
        let mut header = Self {
            version,
            geometry,
            size: raw.size.get(),
            l1: TablePlace { at: raw.l1_table_offset.get(), entries: raw.l1_size.get().into() },
            refcount_table: TablePlace {
                at: raw.refcount_table_offset.get(),
                // At most 2^32 clusters of 2^18 entries.
                entries: u64::from(raw.refcount_table_clusters.get()).saturating_mul(cluster.bytes() / 8),
            },
            snapshots: TablePlace { at: raw.snapshots_offset.get(), entries: raw.nb_snapshots.get().into() },
            incompatible,
            compatible: v3.map_or(0, |v| v.compatible_features.get()),
            autoclear,
            compression: compression(area, length, incompatible)?,
            backing: backing(raw, area, cluster.bytes(), extensions.backing_format.clone())?,
            data_file: None,
            extensions,
            sector: take(area, 0, "header")?,
        };
        header.check_tables(file_size)?;
        header.check_data_file()?;
        Ok(header)
    }

    /// The same with another first sector, which names this parent and these bitmaps.
    pub(super) fn with_area(
        &self,
        sector: [u8; SECTOR],
        backing: Option<Reference>,
        bitmaps: Option<BitmapDirectory>,
    ) -> Self {
        let mut new = Self { sector, backing, ..self.clone() };
        new.extensions.backing_format = new.backing.as_ref().and_then(|b| b.format.clone());
        new.extensions.bitmaps = bitmaps;
        new
    }

    /// Bytes of the fixed part, behind which the extensions begin.
    pub(super) fn fixed_length(&self) -> Result<u32> {
        if self.version == 2 {
            return Ok(HEADER_V2);
        }
        Ok(take::<RawHeaderV3>(&self.sector, 72, "header")?.header_length.get())
    }

    /// The first sector with what can change in an image's life: sizes, tables, feature bits.
    pub(super) fn to_sector(&self) -> Result<[u8; SECTOR]> {
        let narrow = |n: u64| u32::try_from(n).map_err(|_| Common::Index(n));
        let mut sector = self.sector;
        let mut raw: RawHeader = take(&sector, 0, "header")?;
        raw.size = self.size.into();
        raw.l1_size = narrow(self.l1.entries)?.into();
        raw.l1_table_offset = self.l1.at.into();
        raw.refcount_table_offset = self.refcount_table.at.into();
        let per_cluster = self.geometry.cluster.bytes() / 8;
        let clusters = self.refcount_table.entries.checked_div(per_cluster).unwrap_or_default();
        raw.refcount_table_clusters = narrow(clusters)?.into();
        raw.nb_snapshots = narrow(self.snapshots.entries)?.into();
        raw.snapshots_offset = self.snapshots.at.into();
        part_mut(&mut sector, 0, 72, "header")?.copy_from_slice(raw.as_bytes());
        if self.version > 2 {
            let mut raw: RawHeaderV3 = take(&sector, 72, "header")?;
            raw.incompatible_features = self.incompatible.bits().into();
            raw.autoclear_features = self.autoclear.into();
            part_mut(&mut sector, 72, 32, "header")?.copy_from_slice(raw.as_bytes());
        }
        Ok(sector)
    }

    fn check_tables(&self, file_size: u64) -> Result<()> {
        let cluster = self.geometry.cluster;
        let tables = [
            ("L1 table", self.l1, L1_BYTES_MAX / 8, 8),
            ("refcount table", self.refcount_table, REFCOUNT_TABLE_BYTES_MAX / 8, 8),
            ("snapshot table", self.snapshots, SNAPSHOTS_MAX, 0),
        ];
        for (what, place, max, each) in tables {
            if place.entries > max {
                return Err(Fault::Many { what, found: place.entries, max }.into());
            }
            if place.entries == 0 {
                continue;
            }
            if !cluster.aligned(place.at) {
                return Err(Fault::Unaligned { what, at: place.at, cluster: cluster.bytes() }.into());
            }
            let len = place.entries.saturating_mul(each);
            if Span::new(place.at, len)?.end() > file_size {
                return Err(Fault::OutsideFile { what, at: place.at, len, file: file_size }.into());
            }
        }
        let need = self.geometry.l1_entries(self.size);
        if need > self.l1.entries {
            return Err(Fault::L1Short { found: self.l1.entries, need, size: self.size }.into());
        }
        Ok(())
    }

    fn check_data_file(&mut self) -> Result<()> {
        if !self.incompatible.contains(Incompatible::DATA_FILE) {
            return Ok(());
        }
        let Some(name) = self.extensions.data_file.clone() else {
            return Err(Fault::DataFileUnnamed.into());
        };
        if self.autoclear & AUTOCLEAR_RAW_DATA != 0 && self.backing.is_some() {
            return Err(Fault::RawDataAndBacking.into());
        }
        if self.snapshots.entries > 0 {
            return Err(Fault::DataFileShape.into());
        }
        self.data_file = Some(Reference { path: name, format: Some("raw".into()), role: Role::DataFile });
        Ok(())
    }
}

fn compression(area: &[u8], length: u32, incompatible: Incompatible) -> Result<Compression> {
    let there = len64(COMPRESSION_TYPE_AT) < u64::from(length);
    let found = if there { area.get(COMPRESSION_TYPE_AT).copied().unwrap_or(0) } else { 0 };
    let bit = incompatible.contains(Incompatible::COMPRESSION_TYPE);
    if bit != (found != 0) {
        return Err(Fault::CompressionBit { found, bit }.into());
    }
    match found {
        0 => Ok(Compression::Zlib),
        1 => Ok(Compression::Zstd),
        other => Err(Fault::CompressionType(other).into()),
    }
}

fn backing(raw: &RawHeader, area: &[u8], cluster: u64, format: Option<String>) -> Result<Option<Reference>> {
    let (at, len) = (raw.backing_file_offset.get(), raw.backing_file_size.get());
    if at == 0 {
        return Ok(None);
    }
    let outside = Fault::BackingName { at, len, cluster };
    let Some(name) = usize::try_from(at)
        .ok()
        .zip(usize::try_from(len).ok())
        .and_then(|(from, len)| area.get(from..from.checked_add(len)?))
    else {
        return Err(outside.into());
    };
    if len > BACKING_NAME_MAX {
        return Err(outside.into());
    }
    if name.is_empty() {
        return Ok(None);
    }
    let path = String::from_utf8(name.to_vec()).map_err(|_| Fault::NotText("backing file's name"))?;
    Ok(Some(Reference { path, format, role: Role::Backing }))
}
