//! What a new image can be: options under `qemu-img`'s names, checked against each other.

use crate::block::BlockSize;
use crate::error::Result;
use crate::limits::MIB;
use crate::options::{Opt, OptFault, OptKind, Values};

/// The options of a new image.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        name: "cluster_size",
        help: "unit of allocation (64k)",
        kind: OptKind::Size { min: 512, max: 2 * MIB, power_of_two: true },
    },
    Opt {
        name: "compat",
        help: "version: 1.1 (v3) or 0.10 (v2)",
        kind: OptKind::Choice(&["1.1", "v3", "0.10", "v2"]),
    },
    Opt {
        name: "refcount_bits",
        help: "width of a reference count (16)",
        kind: OptKind::Size { min: 1, max: 64, power_of_two: true },
    },
    Opt {
        name: "compression_type",
        help: "how -c compresses: zlib or zstd",
        kind: OptKind::Choice(&["zlib", "zstd"]),
    },
    Opt {
        name: "lazy_refcounts",
        help: "the guest's writes may postpone reference counts",
        kind: OptKind::Flag,
    },
    Opt { name: "extended_l2", help: "32 subclusters for each cluster", kind: OptKind::Flag },
];

/// What compresses clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// A checked choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// Cluster size.
    pub(super) cluster: BlockSize,
    /// Version 2 or 3.
    pub(super) version: u32,
    /// Binary logarithm of the width of a reference count.
    pub(super) refcount_order: u32,
    /// How clusters are compressed.
    pub(super) packing: Packing,
    /// Whether the dirty bit may stand for reference counts.
    pub(super) lazy_refcounts: bool,
    /// Whether L2 entries have subclusters.
    pub(super) extended_l2: bool,
}

impl Choice {
    /// Checks the options against each other, as `qemu-img create` does.
    pub(super) fn of(values: &Values) -> Result<Self> {
        let bytes = values.size("cluster_size").unwrap_or(64 << 10);
        let version = if matches!(values.text("compat"), Some("0.10" | "v2")) { 2 } else { 3 };
        let refcount_order = values.size("refcount_bits").unwrap_or(16).trailing_zeros();
        let packing =
            if values.text("compression_type") == Some("zstd") { Packing::Zstd } else { Packing::Zlib };
        let lazy_refcounts = values.flag("lazy_refcounts").unwrap_or(false);
        let extended_l2 = values.flag("extended_l2").unwrap_or(false);
        let wrong = |name, value: &str, expected: &str| {
            Err(OptFault::Value { name, value: value.into(), expected: expected.into() }.into())
        };
        if version == 2 {
            let needs_v3 = "only with compat=1.1";
            if refcount_order != 4 {
                return wrong("refcount_bits", "other than 16", needs_v3);
            }
            if packing == Packing::Zstd {
                return wrong("compression_type", "zstd", needs_v3);
            }
            if lazy_refcounts {
                return wrong("lazy_refcounts", "on", needs_v3);
            }
            if extended_l2 {
                return wrong("extended_l2", "on", needs_v3);
            }
        }
        if extended_l2 && bytes < 16 << 10 {
            return wrong("cluster_size", "below 16k", "at least 16k with extended_l2");
        }
        match BlockSize::from_bytes(bytes) {
            Some(cluster) => {
                Ok(Self { cluster, version, refcount_order, packing, lazy_refcounts, extended_l2 })
            }
            None => wrong("cluster_size", "this", "a power of two"),
        }
    }
}
