//! Every ceiling in one place, with its reason. A number out of an image meets one of these before an allocator.

/// KiB, MiB, GiB, TiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;
/// 2^40 bytes.
pub const TIB: u64 = 1 << 40;

/// Bytes of a file's beginning that probes look at: btrfs keeps its magic at 64 KiB + 64.
pub const HEAD_BYTES: u64 = 68 * KIB;
/// Bytes of a file's end that probes look at: a VHD footer is the last 512.
pub const TAIL_BYTES: u64 = 4 * KIB;

/// Images in one backing chain: `qemu-img` users rarely pass ten, a loop never ends.
pub const CHAIN_DEPTH_MAX: usize = 64;
/// Files one image may name in all (a split VMDK of 8 TiB has 4,096 extents of 2 GiB).
pub const REFERENCES_MAX: usize = 8192;
/// Containers within containers: `.tar.gz` is two, a compressed OVA three.
pub const CONTAINER_DEPTH_MAX: usize = 4;

/// Pages a staged edit keeps in memory before it spills to a temporary file.
pub const STAGED_MEMORY_MAX: u64 = 32 * MIB;
