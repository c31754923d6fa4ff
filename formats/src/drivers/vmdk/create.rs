//! New images that can be written in any order, and the descriptor of every new image.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::descriptor::{ExtentLine, cylinders};
use super::fault::VmdkFault;
use super::layout::{MAGIC, RawSparseHeader, SECTOR, flags};
use crate::block::{BlockSize, Disk, Span};
use crate::error::Result;
use crate::limits::{GIB, REFERENCES_MAX, TIB};
use crate::measure::Growth;
use crate::options::{Opt, OptKind, Values};
use crate::registry::{Backing, Plan};
use crate::wire::len64;

/// Sectors in a grain: what VMware makes.
pub(super) const GRAIN_SECTORS: u64 = 128;
/// Bytes in a grain.
pub(super) const GRAIN: BlockSize = match BlockSize::from_bytes(GRAIN_SECTORS.saturating_mul(SECTOR)) {
    Some(size) => size,
    None => panic!("64 KiB is a power of two"),
};
/// Entries in a grain table, by definition.
pub(super) const GT_ENTRIES: u32 = 512;
/// Sectors of a grain table.
pub(super) const GT_SECTORS: u64 = 4;
/// Sectors for the embedded descriptor.
const DESCRIPTOR_SECTORS: u64 = 20;
/// The largest disk that VMware makes. An extent can hold less than 2 TiB of data, as entries of 32 bits count sectors;
/// its disk may be larger, as long as no more of it is written.
pub(super) const SIZE_MAX: u64 = 62 * TIB;

/// The options of new images, under the names that `qemu-img` gives them.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        name: "subformat",
        help: "monolithicSparse: one growing file; …Flat: plain bytes; twoGb…: files of 2 GiB; streamOptimized: compressed, for OVA and upload",
        kind: OptKind::Choice(&[
            "monolithicSparse",
            "monolithicFlat",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
            "streamOptimized",
        ]),
    },
    Opt {
        name: "adapter_type",
        help: "the virtual disk controller",
        kind: OptKind::Choice(&["ide", "buslogic", "lsilogic", "legacyESX"]),
    },
    Opt { name: "hwversion", help: "VMware's virtual hardware version (4)", kind: OptKind::Text },
    Opt { name: "compat6", help: "VMware's virtual hardware version 6", kind: OptKind::Flag },
    Opt {
        name: "zeroed_grain",
        help: "zeroes are an entry in a table, and take no space",
        kind: OptKind::Flag,
    },
    Opt {
        name: "compression_level",
        help: "how hard streamOptimized tries: 1 is fast, 12 is small (4)",
        kind: OptKind::Size { min: 1, max: 12, power_of_two: false },
    },
    Opt { name: "toolsversion", help: "version of the guest's VMware tools", kind: OptKind::Text },
    Opt { name: "cid", help: "content ID, up to 8 hexadecimal digits (random)", kind: OptKind::Text },
];

/// Bytes of the disk in each file of a split one, as QEMU cuts it.
pub(super) const SPLIT: u64 = 2 * GIB;

/// Which kind is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subformat {
    MonolithicSparse,
    MonolithicFlat,
    SplitSparse,
    SplitFlat,
    StreamOptimized,
}

impl Subformat {
    pub(super) fn of(options: &Values) -> Self {
        match options.text("subformat") {
            Some("monolithicFlat") => Self::MonolithicFlat,
            Some("twoGbMaxExtentSparse") => Self::SplitSparse,
            Some("twoGbMaxExtentFlat") => Self::SplitFlat,
            Some("streamOptimized") => Self::StreamOptimized,
            _ => Self::MonolithicSparse,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::SplitSparse => "twoGbMaxExtentSparse",
            Self::SplitFlat => "twoGbMaxExtentFlat",
            Self::StreamOptimized => "streamOptimized",
        }
    }

    pub(super) fn is_flat(self) -> bool {
        matches!(self, Self::MonolithicFlat | Self::SplitFlat)
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

/// Where the tables of an extent lie, in sectors.
struct Places {
    rgd: u64,
    first_rgt: u64,
    gd: u64,
    first_gt: u64,
    /// Where the first grain may lie.
    overhead: u64,
}

impl Layout {
    /// Lays out the image of one file that `plan` asks for.
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let capacity = plan.size.div_ceil(SECTOR);
        let name = extent_name(plan.name.as_deref().unwrap_or("disk.vmdk"));
        let line = ExtentLine::sparse(capacity, &name);
        let text = descriptor(plan, capacity, &[line])?;
        if len64(text.len()) > DESCRIPTOR_SECTORS.saturating_mul(SECTOR) {
            return Err(VmdkFault::Descriptor { line: 9, why: "the names do not fit" }.into());
        }
        Self::of_extent(capacity, text)
    }

    /// Lays out a sparse extent.
    fn of_extent(capacity: u64, descriptor: String) -> Result<Self> {
        if capacity.saturating_mul(SECTOR) > SIZE_MAX {
            return Err(VmdkFault::Full(capacity).into());
        }
        let tables = capacity.div_ceil(GRAIN_SECTORS.saturating_mul(GT_ENTRIES.into()));
        let gd_sectors = tables.saturating_mul(4).div_ceil(SECTOR);
        Ok(Self { capacity, tables, gd_sectors, descriptor })
    }

    /// Sectors of the directories and tables, and where they lie.
    fn places(&self) -> Places {
        let tables_sectors = self.tables.saturating_mul(GT_SECTORS);
        let rgd = DESCRIPTOR_SECTORS.saturating_add(1);
        let first_rgt = rgd.saturating_add(self.gd_sectors);
        let gd = first_rgt.saturating_add(tables_sectors);
        let first_gt = gd.saturating_add(self.gd_sectors);
        let end = first_gt.saturating_add(tables_sectors);
        Places { rgd, first_rgt, gd, first_gt, overhead: end.next_multiple_of(GRAIN_SECTORS) }
    }

    /// Bytes of an extent without grains.
    fn overhead(&self) -> u64 {
        self.places().overhead.saturating_mul(SECTOR)
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

/// Makes an empty image in `file`, and in those beside it, and flushes it.
pub(super) fn image(file: &Disk, plan: &Plan) -> Result<()> {
    let subformat = Subformat::of(&plan.options);
    match subformat {
        Subformat::MonolithicSparse => sparse_file(file, &Layout::new(plan)?, plan),
        Subformat::StreamOptimized => Err(VmdkFault::StreamOnly.into()),
        Subformat::MonolithicFlat | Subformat::SplitSparse | Subformat::SplitFlat => {
            described(file, plan, subformat)
        }
    }
}

/// Makes a descriptor and the extents that it names.
fn described(file: &Disk, plan: &Plan, subformat: Subformat) -> Result<()> {
    if subformat.is_flat() && plan.backing.is_some() {
        return Err(VmdkFault::FlatChild.into());
    }
    if subformat.is_flat() && plan.options.flag("zeroed_grain") == Some(true) {
        return Err(VmdkFault::FlatZeroed.into());
    }
    let beside = plan.beside.as_ref().ok_or(VmdkFault::NowhereBeside(subformat.name()))?;
    let (extents, text) = parts(plan, subformat)?;
    for (name, sectors) in extents {
        let extent = beside.create(&name)?;
        if subformat.is_flat() {
            extent.resize(sectors.saturating_mul(SECTOR))?;
        } else {
            sparse_file(&extent, &Layout::of_extent(sectors, String::new())?, plan)?;
        }
    }
    file.resize(0)?;
    file.resize(len64(text.len()))?;
    file.write_at(0, text.as_bytes())?;
    file.flush()
}

/// The files of an image of several, each with its name and sectors, and the descriptor that lists them.
fn parts(plan: &Plan, subformat: Subformat) -> Result<(Vec<(String, u64)>, String)> {
    let each = if subformat == Subformat::MonolithicFlat { u64::MAX } else { SPLIT };
    let capacity = plan.size.div_ceil(SECTOR);
    let mut rest = Span::first(capacity.checked_mul(SECTOR).ok_or(VmdkFault::Full(capacity))?);
    if rest.len().div_ceil(each) > len64(REFERENCES_MAX / 2) {
        return Err(VmdkFault::Full(capacity).into());
    }
    let (mut extents, mut lines) = (Vec::new(), Vec::new());
    while !rest.is_empty() || lines.is_empty() {
        let here = rest.truncate(each);
        rest = rest.skip(here.len());
        let sectors = here.len().div_euclid(SECTOR);
        let name = extent_file(plan.name.as_deref(), subformat, lines.len().saturating_add(1));
        lines.push(match subformat.is_flat() {
            true => ExtentLine::flat(sectors, &name),
            false => ExtentLine::sparse(sectors, &name),
        });
        extents.push((name, sectors));
    }
    let text = descriptor(plan, capacity, &lines)?;
    Ok((extents, text))
}

/// How large new images become, all of their files together; none for those whose data are packed.
pub(super) fn growth(plan: &Plan) -> Result<Option<Growth>> {
    let subformat = Subformat::of(&plan.options);
    let empty = match subformat {
        Subformat::StreamOptimized => return Ok(None),
        Subformat::MonolithicSparse => Layout::new(plan)?.overhead(),
        Subformat::MonolithicFlat | Subformat::SplitSparse | Subformat::SplitFlat => {
            let (extents, text) = parts(plan, subformat)?;
            let mut sum = len64(text.len());
            for (_, sectors) in extents {
                sum = sum.saturating_add(match subformat.is_flat() {
                    true => sectors.saturating_mul(SECTOR),
                    false => Layout::of_extent(sectors, String::new())?.overhead(),
                });
            }
            sum
        }
    };
    if subformat.is_flat() {
        return Ok(Some(Growth::none(empty)));
    }
    let each = GRAIN.bytes();
    Ok(Some(Growth { unit: GRAIN, units: GRAIN.count(plan.size), empty, first: each, each }))
}

/// What the file of extent `number`, from 1, is called.
pub(super) fn extent_file(image: Option<&str>, subformat: Subformat, number: usize) -> String {
    let image = extent_name(image.unwrap_or("disk.vmdk"));
    let (stem, end) = match image.rsplit_once('.') {
        Some((stem, end)) if !stem.is_empty() => (stem, format!(".{end}")),
        _ => (image.as_str(), String::new()),
    };
    match subformat {
        Subformat::SplitSparse => format!("{stem}-s{number:03}{end}"),
        Subformat::SplitFlat => format!("{stem}-f{number:03}{end}"),
        _ => format!("{stem}-flat{end}"),
    }
}

/// Makes an empty sparse extent of `sectors` for a split disk.
pub(super) fn split_extent(file: &Disk, sectors: u64, zeroed_grains: bool) -> Result<()> {
    let options =
        if zeroed_grains { Values::default().with_flag("zeroed_grain", true) } else { Values::default() };
    sparse_file(file, &Layout::of_extent(sectors, String::new())?, &Plan { options, ..Plan::default() })
}

/// Makes an empty sparse extent and flushes it.
fn sparse_file(file: &Disk, layout: &Layout, plan: &Plan) -> Result<()> {
    let Places { rgd, first_rgt, gd, first_gt, overhead } = layout.places();
    let mut header = layout.header();
    let zeroed = plan.options.flag("zeroed_grain").unwrap_or(false);
    header.version = U32::new(if zeroed { 2 } else { 1 });
    let zeroed = if zeroed { flags::ZEROED_GRAINS } else { 0 };
    header.flags = U32::new(flags::NEWLINES | flags::REDUNDANT | zeroed);
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

/// The descriptor of a new image with these extent lines.
fn descriptor(plan: &Plan, capacity: u64, extents: &[String]) -> Result<String> {
    let options = &plan.options;
    let subformat = Subformat::of(options).name();
    let adapter = options.text("adapter_type").unwrap_or("ide");
    let cid = match options.text("cid") {
        Some(text) => u32::from_str_radix(text, 16).ok().filter(|cid| *cid != u32::MAX),
        None => Some(random_cid()),
    };
    let cid = cid.ok_or(VmdkFault::Descriptor { line: 3, why: "the content ID is no number" })?;
    let heads = if adapter == "ide" { 16 } else { 255 };
    let cylinders = cylinders(capacity, heads, 63);
    let (parent_cid, hint) = match &plan.backing {
        None => (u32::MAX, String::new()),
        Some(backing) => {
            let name = extent_name(&backing.reference.path);
            (parent_cid(backing)?, format!("parentFileNameHint=\"{name}\"\n"))
        }
    };
    let plain = |text: Option<&str>, default: &str| extent_name(text.unwrap_or(default));
    let hardware = match (options.flag("compat6"), options.text("hwversion")) {
        (Some(true), Some(_)) => return Err(VmdkFault::TwoVersions.into()),
        (Some(true), None) => "6".into(),
        (_, version) => plain(version, "4"),
    };
    let tools = plain(options.text("toolsversion"), "2147483647");
    let lines = extents.join("\n");
    let encoding = if lines.is_ascii() && hint.is_ascii() { "" } else { "encoding=\"UTF-8\"\n" };
    Ok(format!(
        "# Disk DescriptorFile\nversion=1\n{encoding}CID={cid:08x}\nparentCID={parent_cid:08x}\n\
         createType=\"{subformat}\"\n{hint}\n\
         # Extent description\n{lines}\n\n\
         # The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"{hardware}\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"63\"\n\
         ddb.adapterType = \"{adapter}\"\n\
         ddb.toolsVersion = \"{tools}\"\n"
    ))
}

/// The content ID of a parent, which only a VMDK has.
pub(super) fn parent_cid(backing: &Backing) -> Result<u32> {
    let facts = backing.image.facts();
    let cid = facts.specific.get("cid").and_then(serde_json::Value::as_u64);
    let cid = cid.and_then(|c| u32::try_from(c).ok()).filter(|_| facts.format == "vmdk");
    Ok(cid.ok_or(VmdkFault::ParentFormat(facts.format))?)
}

/// A name that keeps the line it stands in whole.
pub(super) fn extent_name(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || c == '"' { '_' } else { c }).collect()
}
