//! A new monolithicSparse image, and the descriptor of every new image.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::fault::VmdkFault;
use super::layout::{MAGIC, RawSparseHeader, SECTOR, flags};
use crate::block::Disk;
use crate::error::Result;
use crate::limits::{GIB, MIB};
use crate::options::{Opt, OptKind, Values};
use crate::registry::Plan;
use crate::wire::len64;

/// Sectors in a grain: what VMware makes.
pub(super) const GRAIN_SECTORS: u64 = 128;
/// Entries in a grain table, by definition.
pub(super) const GT_ENTRIES: u32 = 512;
/// Sectors of a grain table.
pub(super) const GT_SECTORS: u64 = 4;
/// Sectors for the embedded descriptor.
const DESCRIPTOR_SECTORS: u64 = 20;
/// Entries of 32 bits count sectors: no more can be named.
const SIZE_MAX: u64 = (2048 * GIB).saturating_sub(64 * MIB);

/// The options of new images, under the names that `qemu-img` gives them.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        name: "subformat",
        help: "monolithicSparse: one growing file; streamOptimized: compressed, for OVA and upload",
        kind: OptKind::Choice(&["monolithicSparse", "streamOptimized"]),
    },
    Opt {
        name: "adapter_type",
        help: "the virtual disk controller",
        kind: OptKind::Choice(&["ide", "buslogic", "lsilogic", "legacyESX"]),
    },
    Opt { name: "hwversion", help: "VMware's virtual hardware version (4)", kind: OptKind::Text },
    Opt { name: "toolsversion", help: "version of the guest's VMware tools", kind: OptKind::Text },
    Opt { name: "cid", help: "content ID, up to 8 hexadecimal digits (random)", kind: OptKind::Text },
];

/// Which of the two kinds is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subformat {
    MonolithicSparse,
    StreamOptimized,
}

impl Subformat {
    pub(super) fn of(options: &Values) -> Self {
        match options.text("subformat") {
            Some("streamOptimized") => Self::StreamOptimized,
            _ => Self::MonolithicSparse,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::StreamOptimized => "streamOptimized",
        }
    }
}

/// What is fixed before the first byte is written.
#[derive(Debug)]
pub(super) struct Layout {
    /// Sectors of the disk.
    pub(super) capacity: u64,
    pub(super) tables: u64,
    pub(super) gd_sectors: u64,
    pub(super) descriptor: String,
}

impl Layout {
    /// Lays out the image that `plan` asks for.
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let capacity = plan.size.div_ceil(SECTOR);
        if plan.size > SIZE_MAX {
            return Err(VmdkFault::Full(capacity).into());
        }
        let tables = capacity.div_ceil(GRAIN_SECTORS.saturating_mul(GT_ENTRIES.into()));
        let gd_sectors = tables.saturating_mul(4).div_ceil(SECTOR);
        let descriptor = descriptor(plan, capacity)?;
        Ok(Self { capacity, tables, gd_sectors, descriptor })
    }

    /// The header, without what differs between the kinds.
    pub(super) fn header(&self) -> RawSparseHeader {
        let mut raw = RawSparseHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.capacity = U64::new(self.capacity);
        raw.grain_size = U64::new(GRAIN_SECTORS);
        raw.descriptor_offset = U64::new(1);
        raw.descriptor_size = U64::new(DESCRIPTOR_SECTORS);
        raw.num_gtes_per_gt = U32::new(GT_ENTRIES);
        raw.newlines = *b"\n \r\n";
        raw
    }
}

/// Makes an empty image in `file` and flushes it.
pub(super) fn monolithic_sparse(file: &Disk, plan: &Plan) -> Result<()> {
    let layout = Layout::new(plan)?;
    let tables_sectors = layout.tables.saturating_mul(GT_SECTORS);
    let rgd = DESCRIPTOR_SECTORS.saturating_add(1);
    let first_rgt = rgd.saturating_add(layout.gd_sectors);
    let gd = first_rgt.saturating_add(tables_sectors);
    let first_gt = gd.saturating_add(layout.gd_sectors);
    let end = first_gt.saturating_add(tables_sectors);
    let overhead = end.next_multiple_of(GRAIN_SECTORS);
    let mut header = layout.header();
    header.version = U32::new(1);
    header.flags = U32::new(flags::NEWLINES | flags::REDUNDANT);
    header.rgd_offset = U64::new(rgd);
    header.gd_offset = U64::new(gd);
    header.over_head = U64::new(overhead);
    header.compress_algorithm = U16::new(0);
    // Shrinking first makes sure that nothing old shows through where nothing is written.
    file.resize(0)?;
    file.resize(overhead.saturating_mul(SECTOR))?;
    for (directory, first) in [(rgd, first_rgt), (gd, first_gt)] {
        let entries = (0..layout.tables).map(|i| first.saturating_add(i.saturating_mul(GT_SECTORS)));
        let bytes: Vec<u8> = entries.flat_map(|s| u32::try_from(s).unwrap_or(0).to_le_bytes()).collect();
        file.write_at(directory.saturating_mul(SECTOR), &bytes)?;
    }
    file.write_at(SECTOR, layout.descriptor.as_bytes())?;
    file.write_at(0, header.as_bytes())?;
    file.flush()
}

/// A content ID: any number but the one that says "no parent".
pub(super) fn random_cid() -> u32 {
    let bytes = *uuid::Uuid::new_v4().as_bytes();
    let cid = u32::from_le_bytes(bytes.first_chunk::<4>().copied().unwrap_or_default());
    if cid == u32::MAX { 1 } else { cid }
}

/// The descriptor of a new image with one extent.
fn descriptor(plan: &Plan, capacity: u64) -> Result<String> {
    let options = &plan.options;
    let subformat = Subformat::of(options).name();
    let adapter = options.text("adapter_type").unwrap_or("ide");
    let cid = match options.text("cid") {
        Some(text) => u32::from_str_radix(text, 16).ok().filter(|cid| *cid != u32::MAX),
        None => Some(random_cid()),
    };
    let cid = cid.ok_or(VmdkFault::Descriptor { line: 3, why: "the content ID is no number" })?;
    // What ATA can address at most; other controllers are told 255 heads.
    let (heads, heads_times_sectors, cylinders_max) =
        if adapter == "ide" { (16, 16 * 63, 16383) } else { (255, 255 * 63, 65535) };
    let cylinders = capacity.div_euclid(heads_times_sectors).min(cylinders_max);
    let name = extent_name(plan.name.as_deref().unwrap_or("disk.vmdk"));
    let encoding = if name.is_ascii() { "" } else { "encoding=\"UTF-8\"\n" };
    let plain = |text: Option<&str>, default: &str| extent_name(text.unwrap_or(default));
    let hardware = plain(options.text("hwversion"), "4");
    let tools = plain(options.text("toolsversion"), "2147483647");
    let text = format!(
        "# Disk DescriptorFile\nversion=1\n{encoding}CID={cid:08x}\nparentCID=ffffffff\n\
         createType=\"{subformat}\"\n\n\
         # Extent description\nRW {capacity} SPARSE \"{name}\"\n\n\
         # The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"{hardware}\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"63\"\n\
         ddb.adapterType = \"{adapter}\"\n\
         ddb.toolsVersion = \"{tools}\"\n"
    );
    let room = DESCRIPTOR_SECTORS.saturating_mul(SECTOR);
    if len64(text.len()) > room {
        return Err(VmdkFault::Descriptor { line: 9, why: "the names do not fit" }.into());
    }
    Ok(text)
}

/// A name that keeps the line it stands in whole.
fn extent_name(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || c == '"' { '_' } else { c }).collect()
}
