//! What a new image is like: options to a header.

use zerocopy::IntoBytes;

use super::fault::Fault;
use super::header::{
    AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA, Compression, Geometry, Incompatible, L1_BYTES_MAX, LAZY_REFCOUNTS,
    TablePlace,
};
use super::layout::{
    EXT_BACKING_FORMAT, EXT_DATA_FILE, EXT_FEATURE_NAMES, MAGIC, RawExtension, RawFeatureName, RawHeader,
    RawHeaderV3,
};
use super::resize::SIZE_UNIT;
use crate::error::{Common, Result};
use crate::options::{Opt, OptKind};
use crate::registry::{Plan, by_name};
use crate::wire::{len64, part_mut};

/// The options of `create`, under `qemu-img`'s names.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        name: "cluster_size",
        help: "unit of allocation",
        kind: OptKind::Size { min: 512, max: 2 << 20, power_of_two: true },
    },
    Opt {
        name: "compat",
        help: "version: 0.10 is 2, 1.1 is 3",
        kind: OptKind::Choice(&["0.10", "v2", "1.1", "v3"]),
    },
    Opt {
        name: "refcount_bits",
        help: "width of a reference count in bits",
        kind: OptKind::Size { min: 1, max: 64, power_of_two: true },
    },
    Opt {
        name: "lazy_refcounts",
        help: "let other programs write reference counts late",
        kind: OptKind::Flag,
    },
    Opt { name: "extended_l2", help: "allocate 32nds of clusters", kind: OptKind::Flag },
    Opt { name: "compression_type", help: "how -c compresses", kind: OptKind::Choice(&["zlib", "zstd"]) },
    Opt {
        name: "compression_level",
        help: "how hard -c tries with zstd: 1 is fast, 19 is small (3)",
        kind: OptKind::Size { min: 1, max: 19, power_of_two: false },
    },
    Opt { name: "data_file", help: "the file to keep the data in", kind: OptKind::Text },
    Opt { name: "data_file_raw", help: "let the data file be a raw image of its own", kind: OptKind::Flag },
    Opt {
        name: "preallocation",
        help: "what is allocated at once: tables, or the file's space as well",
        kind: OptKind::Choice(&["off", "metadata", "falloc", "full"]),
    },
    Opt { name: "backing_file", help: "the image that holds what this one does not", kind: OptKind::Text },
    Opt { name: "backing_fmt", help: "the format of the backing file", kind: OptKind::Text },
];

/// Bytes of a header with all that version 3 defines.
const HEADER_LENGTH: u32 = 112;
/// The specification's limit for the length of the backing file's name.
pub(super) const BACKING_NAME_MAX: usize = 1023;

/// Names of features: kind, bit, name. A program that does not know one can say what it is.
const FEATURES: &[(u8, u8, &str)] = &[
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];
const _: () = assert!(AUTOCLEAR_BITMAPS == 1 && AUTOCLEAR_RAW_DATA == 2 && LAZY_REFCOUNTS == 1);

/// A new image.
#[derive(Clone, Debug)]
pub(super) struct Design {
    pub(super) version: u32,
    pub(super) geometry: Geometry,
    pub(super) compression: Compression,
    /// Level of zstd; 0 is its own default.
    pub(super) level: i32,
    /// Virtual size in bytes.
    pub(super) size: u64,
    lazy: bool,
    /// Name and format.
    pub(super) backing: Option<(String, String)>,
    /// Name of the external data file, and whether it shall be a raw image of its own.
    pub(super) data_file: Option<(String, bool)>,
    pub(super) preallocation: Preallocation,
}

/// What is allocated when the image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preallocation {
    /// Nothing.
    Off,
    /// All tables; the file may have holes.
    Metadata,
    /// All of the file's space.
    Falloc,
    /// The same, by writing zeroes.
    Full,
}

impl Design {
    /// Reads the options of a plan; those that contradict each other are refused.
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let options = &plan.options;
        let flag = |name| options.flag(name).unwrap_or(false);
        let version = if matches!(options.text("compat"), Some("0.10" | "v2")) { 2 } else { 3 };
        let refcount_bits = options.size("refcount_bits").unwrap_or(16);
        let compression = match options.text("compression_type") {
            Some("zstd") => Compression::Zstd,
            _ => Compression::Zlib,
        };
        let level = options.size("compression_level").and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
        if level != 0 && compression == Compression::Zlib {
            return Err(Fault::LevelOfZlib.into());
        }
        let (lazy, extended) = (flag("lazy_refcounts"), flag("extended_l2"));
        let newer = [
            ("lazy_refcounts", lazy),
            ("extended_l2", extended),
            ("compression_type", compression != Compression::Zlib),
            ("refcount_bits", refcount_bits != 16),
            ("data_file", options.text("data_file").is_some()),
        ];
        if let Some((option, _)) = newer.iter().find(|(_, used)| *used && version == 2) {
            return Err(Fault::NeedsVersion3(option).into());
        }
        let cluster_bits = options.size("cluster_size").unwrap_or(65_536).trailing_zeros();
        let geometry = Geometry::new(cluster_bits, extended, refcount_bits.trailing_zeros())?;
        let backing = backing(plan)?;
        let data_file = options.text("data_file").map(|name| (name.to_string(), flag("data_file_raw")));
        check_data_file(plan, data_file.as_ref(), backing.is_some())?;
        let raw = data_file.as_ref().is_some_and(|(_, raw)| *raw);
        let preallocation = match options.text("preallocation") {
            Some("metadata") => Preallocation::Metadata,
            Some("falloc") => Preallocation::Falloc,
            Some("full") => Preallocation::Full,
            // Who reads the data file alone and who reads it by the tables must see the same, whatever it held.
            _ if raw => Preallocation::Metadata,
            _ => Preallocation::Off,
        };
        if preallocation != Preallocation::Off && plan.compress {
            return Err(Fault::PreallocatedPacked.into());
        }
        if preallocation != Preallocation::Off && backing.is_some() && !extended {
            return Err(Fault::PreallocatedChild.into());
        }
        let size = plan.size.checked_next_multiple_of(SIZE_UNIT).ok_or(Fault::TooLarge(plan.size))?;
        if geometry.l1_entries(size) > L1_BYTES_MAX / 8 {
            return Err(Fault::TooLarge(size).into());
        }
        Ok(Self { version, geometry, compression, level, size, lazy, backing, data_file, preallocation })
    }

    /// The first cluster.
    pub(super) fn header(&self, l1: TablePlace, counts: TablePlace) -> Result<Vec<u8>> {
        let cluster = usize::try_from(self.geometry.cluster.bytes()).unwrap_or(usize::MAX);
        let narrow = |n: u64| u32::try_from(n).map_err(|_| Common::Index(n));
        let count_clusters = self.geometry.cluster.count(counts.entries.saturating_mul(8));
        let mut raw = RawHeader {
            magic: MAGIC,
            version: self.version.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: self.geometry.cluster.shift().into(),
            size: self.size.into(),
            crypt_method: 0.into(),
            l1_size: narrow(l1.entries)?.into(),
            l1_table_offset: l1.at.into(),
            refcount_table_offset: counts.at.into(),
            refcount_table_clusters: narrow(count_clusters)?.into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
        };
        let tail = self.behind_header(cluster)?;
        let mut bytes = Vec::new();
        if let Some((name, _)) = &self.backing {
            let name_at = self.header_length().saturating_add(tail.len());
            raw.backing_file_offset = len64(name_at).into();
            raw.backing_file_size = narrow(len64(name.len()))?.into();
        }
        bytes.extend_from_slice(raw.as_bytes());
        if self.version > 2 {
            bytes.extend_from_slice(self.version3().as_bytes());
            let mut additional = [0u8; 8];
            additional[0] = u8::from(self.compression == Compression::Zstd);
            bytes.extend_from_slice(&additional);
        }
        bytes.extend_from_slice(&tail);
        if let Some((name, _)) = &self.backing {
            bytes.extend_from_slice(name.as_bytes());
        }
        let len = bytes.len();
        if len > cluster {
            return Err(Fault::HeaderFull { len, cluster }.into());
        }
        let mut whole = vec![0; cluster];
        part_mut(&mut whole, 0, len, "header")?.copy_from_slice(&bytes);
        Ok(whole)
    }

    fn version3(&self) -> RawHeaderV3 {
        let mut incompatible = Incompatible::empty();
        incompatible.set(Incompatible::EXTENDED_L2, self.geometry.extended());
        incompatible.set(Incompatible::DATA_FILE, self.data_file.is_some());
        let raw = self.data_file.as_ref().is_some_and(|(_, raw)| *raw);
        incompatible.set(Incompatible::COMPRESSION_TYPE, self.compression != Compression::Zlib);
        RawHeaderV3 {
            incompatible_features: incompatible.bits().into(),
            compatible_features: if self.lazy { LAZY_REFCOUNTS } else { 0 }.into(),
            autoclear_features: if raw { AUTOCLEAR_RAW_DATA } else { 0 }.into(),
            refcount_order: self.geometry.refcount_order.into(),
            header_length: HEADER_LENGTH.into(),
        }
    }

    /// Bytes of the file once all clusters are allocated: header, data, L2 and L1 tables, and the counts of all that.
    pub(super) fn full_size(&self) -> u64 {
        let cluster = self.geometry.cluster;
        let data = cluster.count(self.size);
        let l2 = self.geometry.l1_entries(self.size);
        let l1 = cluster.count(l2.saturating_mul(8));
        let counted = [1, l1, l2, data].into_iter().fold(0, u64::saturating_add);
        // Counts count themselves: more of them until they reach.
        let (mut blocks, mut table) = (0u64, 0u64);
        loop {
            let all = counted.saturating_add(blocks).saturating_add(table);
            let need = all.div_ceil(self.geometry.counts_per_block().max(1));
            let need_table = cluster.count(need.saturating_mul(8));
            if (need, need_table) == (blocks, table) {
                return cluster.start_of(all).unwrap_or(u64::MAX);
            }
            (blocks, table) = (need, need_table);
        }
    }

    fn header_length(&self) -> usize {
        if self.version == 2 { 72 } else { usize::try_from(HEADER_LENGTH).unwrap_or_default() }
    }

    /// The header extensions, their end included.
    fn behind_header(&self, cluster: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        if let Some((_, format)) = &self.backing {
            extension(&mut all, EXT_BACKING_FORMAT, format.as_bytes())?;
        }
        if let Some((name, _)) = &self.data_file {
            extension(&mut all, EXT_DATA_FILE, name.as_bytes())?;
        }
        let end = RawExtension { kind: 0.into(), length: 0.into() };
        if self.version > 2 {
            let mut names = Vec::new();
            for (kind, bit, name) in FEATURES {
                let mut raw = RawFeatureName { kind: *kind, bit: *bit, name: [0; 46] };
                part_mut(&mut raw.name, 0, name.len(), "feature name")?.copy_from_slice(name.as_bytes());
                names.extend_from_slice(raw.as_bytes());
            }
            let mut with_names = all.clone();
            extension(&mut with_names, EXT_FEATURE_NAMES, &names)?;
            // The names are a courtesy: the smallest clusters have no room for them and a backing file's name.
            let name = self.backing.as_ref().map_or(0, |(name, _)| name.len());
            let need = [self.header_length(), with_names.len(), end.as_bytes().len(), name];
            if need.iter().fold(0usize, |sum, n| sum.saturating_add(*n)) <= cluster {
                all = with_names;
            }
        }
        all.extend_from_slice(end.as_bytes());
        Ok(all)
    }
}

/// Name and format of the backing file, as the header shall say them.
fn backing(plan: &Plan) -> Result<Option<(String, String)>> {
    let (name, format) = match &plan.backing {
        Some(backing) => (Some(backing.reference.path.as_str()), backing.reference.format.as_deref()),
        None => (plan.options.text("backing_file"), plan.options.text("backing_fmt")),
    };
    let Some(name) = name else { return Ok(None) };
    let format = format.ok_or(Fault::BackingFormatMissing)?;
    if name.is_empty() || name.len() > BACKING_NAME_MAX {
        return Err(Fault::NewBackingName(name.len()).into());
    }
    // Programs that are not racker shall know it as well.
    let known = by_name(format).ok().and_then(|f| f.aliases().first()).copied();
    Ok(Some((name.to_string(), known.unwrap_or(format).to_string())))
}

fn check_data_file(plan: &Plan, data_file: Option<&(String, bool)>, backing: bool) -> Result<()> {
    let raw = plan.options.flag("data_file_raw").unwrap_or(false);
    match data_file {
        None if raw => Err(Fault::RawDataWithoutFile.into()),
        None => Ok(()),
        Some(_) if plan.compress => Err(Fault::DataFileShape.into()),
        Some(_) if raw && backing => Err(Fault::RawDataAndBacking.into()),
        Some((name, _)) if plan.data_file.is_none() => Err(Fault::DataFileNotOpen(name.clone()).into()),
        Some(_) => Ok(()),
    }
}

/// Appends an extension, padded.
pub(super) fn extension(all: &mut Vec<u8>, kind: u32, data: &[u8]) -> Result<()> {
    let length = u32::try_from(data.len()).map_err(|_| Common::Index(len64(data.len())))?;
    let raw = RawExtension { kind: kind.into(), length: length.into() };
    all.extend_from_slice(raw.as_bytes());
    all.extend_from_slice(data);
    all.resize(all.len().next_multiple_of(8), 0);
    Ok(())
}
