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

/// Bytes that all compressed streams on the way to one disk may expand to whatever their size: a blank disk of
/// this size is a few MiB of xz or zstd, and legitimate.
pub const EXPANDED_FREE: u64 = 256 * GIB;
/// Beyond that, bytes out for each byte of the host file: four times what deflate can reach, so that only a
/// bomb (or streams nested for that purpose) meets it.
pub const EXPANDED_RATIO_MAX: u64 = 4096;
/// Bytes that expanding a stream leaves free on the filesystem of temporary files, for everybody else.
pub const SPOOL_FREE_MIN: u64 = 256 * MIB;
/// Memory of one decoder: `xz -9` needs 65 MiB, a header can ask for 4 GiB.
pub const DECODER_MEMORY_MAX: u64 = 256 * MIB;

/// Headers in one archive: a root filesystem has about 200,000 files, and an archive of disks a handful.
pub const ARCHIVE_MEMBERS_MAX: usize = 1 << 20;
/// Members that are looked into to find the one that is a disk; past that the user names it.
pub const ARCHIVE_PROBED_MAX: usize = 4096;
/// A long name in an archive: Linux paths end at 4 KiB.
pub const ARCHIVE_NAME_BYTES_MAX: u64 = 64 * KIB;
/// One extended header: it may hold the map of a sparse member (about 50 bytes for each region).
pub const PAX_BYTES_MAX: u64 = 32 * MIB;
/// Regions of one sparse member: data and hole in turn, 8 KiB each, in 8 GiB.
pub const SPARSE_REGIONS_MAX: usize = 1 << 20;
