//! LVM2: physical volumes on the partitions of one disk, and the linear and striped volumes on them.
//!
//! Specification: none is published; the structures are those of `lib/format_text/layout.h` and `lib/label/label.h`
//! of LVM2, the text that of `vgcfgbackup`. Every physical volume of a group must be on this disk. Thin, cached,
//! mirrored, RAID and snapshot volumes are named in a warning and left out.

mod text;

use std::collections::{BTreeMap, BTreeSet};

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Fault, Kind, Result};
use racker_formats::wire::{bytes, index, take};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Layout, Logical, Segment};
use text::Section;

const SECTOR: u64 = 512;
/// The label is in one of the first four sectors.
const LABEL_SECTORS: u64 = 4;
/// Start value of LVM2's CRC-32.
const CRC_START: u32 = 0xf597_a6cf;
/// Bytes of the header in front of a metadata area's ring.
const AREA_HEADER: u64 = 512;
/// Metadata of one group: 1 MiB is the default area, 64 MiB more than any real one.
const TEXT_BYTES_MAX: u64 = 64 << 20;
/// Areas that a physical volume lists; LVM2 makes one or two.
const AREAS_MAX: usize = 16;
/// Segments of all volumes of a group.
const SEGMENTS_MAX: usize = 1 << 20;
const MAGIC: [u8; 16] = *b" LVM2 x[5A%r0N*>";

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Label {
    id: [u8; 8],
    sector_xl: U64,
    crc_xl: U32,
    offset_xl: U32,
    kind: [u8; 8],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Locn {
    offset: U64,
    size: U64,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct AreaHeader {
    checksum_xl: U32,
    magic: [u8; 16],
    version: U32,
    start: U64,
    size: U64,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLocn {
    offset: U64,
    size: U64,
    checksum: U32,
    flags: U32,
}

/// What can be wrong with LVM2 metadata.
#[derive(Debug, thiserror::Error)]
pub enum Lvm2Fault {
    /// A checksum does not match.
    #[error("LVM2: the checksum of the {0} does not match")]
    Checksum(&'static str),
    /// A structure makes no sense.
    #[error("LVM2: {0}")]
    Structure(&'static str),
    /// The text does not parse.
    #[error("LVM2 metadata: {why} at byte {at}")]
    Text {
        /// Offset in the text.
        at: usize,
        /// What is wrong there.
        why: &'static str,
    },
    /// A field of the text is missing or of the wrong kind.
    #[error("LVM2 metadata: {place} has no usable {field}")]
    Field {
        /// The section.
        place: String,
        /// The field.
        field: &'static str,
    },
    /// A part of the group is elsewhere.
    #[error("volume group {group}: physical volume {missing} is not on this disk")]
    Missing {
        /// The group.
        group: String,
        /// The volume's UUID.
        missing: String,
    },
    /// A kind of volume that racker does not map.
    #[error("logical volume {name} is of type {kind}, which racker does not map")]
    SegmentType {
        /// `VG/LV`.
        name: String,
        /// LVM2's word.
        kind: String,
    },
}

impl Fault for Lvm2Fault {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing { .. } | Self::SegmentType { .. } => Kind::Unsupported,
            _ => Kind::Corrupt,
        }
    }
}

/// A physical volume: its UUID, where it begins on the disk, and the newest metadata it holds.
struct Physical {
    uuid: String,
    start: u64,
    text: Option<Vec<u8>>,
}

/// LVM2's CRC: the usual polynomial, another start, no final inversion.
fn crc(data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!CRC_START);
    hasher.update(data);
    !hasher.finalize()
}

/// Finds the groups whose physical volumes are among `spans` of the disk.
pub(super) fn find(disk: &Disk, spans: impl Iterator<Item = Span>) -> Logical {
    let mut found = Logical::default();
    let mut physical = Vec::new();
    for span in spans {
        match disk.slice(span).and_then(|d| read_physical(&d, span.start())) {
            Ok(pv) => physical.extend(pv),
            Err(e) => found.warnings.push(e.to_string()),
        }
    }
    let mut groups: BTreeMap<String, (u64, Section)> = BTreeMap::new();
    for pv in &physical {
        let Some(text) = &pv.text else { continue };
        match text::parse(text).and_then(|root| newest(root, &mut groups)) {
            Ok(()) => {}
            Err(e) => found.warnings.push(e.to_string()),
        }
    }
    for (name, (_, group)) in &groups {
        if let Err(e) = volumes(name, group, &physical, &mut found) {
            found.warnings.push(e.to_string());
        }
    }
    found
}

/// Keeps the group of one metadata text if none with a higher sequence number is known.
fn newest(root: Section, groups: &mut BTreeMap<String, (u64, Section)>) -> Result<()> {
    for (name, section) in root.into_sections() {
        let seqno = section.number("seqno", &name)?;
        if groups.get(&name).is_none_or(|(known, _)| *known < seqno) {
            groups.insert(name, (seqno, section));
        }
    }
    Ok(())
}

/// The physical volume on `part`, which begins at byte `start` of the disk; none if there is no label.
fn read_physical(part: &Disk, start: u64) -> Result<Option<Physical>> {
    let len = part.size().min(LABEL_SECTORS.saturating_mul(SECTOR));
    let head = bytes(part, 0, len, 4 * SECTOR, "LVM2 label")?;
    let found = head.chunks_exact(512).enumerate().find(|(_, s)| s.starts_with(b"LABELONE"));
    let Some((number, sector)) = found else { return Ok(None) };
    let label: Label = take(sector, 0, "LVM2 label")?;
    if &label.kind != b"LVM2 001" || label.sector_xl.get() != racker_formats::wire::len64(number) {
        return Err(Lvm2Fault::Structure("the label is not where it says, or of an unknown type").into());
    }
    if crc(sector.get(20..).unwrap_or_default()) != label.crc_xl.get() {
        return Err(Lvm2Fault::Checksum("label").into());
    }
    let at = index(label.offset_xl.get().into())?;
    let uuid: [u8; 32] = take(sector, at, "LVM2 physical volume header")?;
    let uuid = String::from_utf8_lossy(&uuid).into_owned();
    // Behind UUID and size: the data areas, an empty one, the metadata areas, an empty one.
    let mut at = at.saturating_add(40);
    let mut lists: [Vec<Locn>; 2] = [Vec::new(), Vec::new()];
    for list in &mut lists {
        loop {
            let locn: Locn = take(sector, at, "LVM2 area")?;
            at = at.saturating_add(size_of::<Locn>());
            if locn.offset.get() == 0 {
                break;
            }
            list.push(locn);
            if list.len() > AREAS_MAX {
                return Err(Lvm2Fault::Structure("too many areas").into());
            }
        }
    }
    let [_, areas] = lists;
    let mut text = None;
    let mut wrong = None;
    for area in areas {
        match read_area(part, area.offset.get()) {
            Ok(found) => text = text.or(found),
            Err(e) => wrong = Some(e),
        }
    }
    match (text, wrong) {
        (None, Some(e)) => Err(e),
        (text, _) => Ok(Some(Physical { uuid, start, text })),
    }
}

/// The text of a metadata area; none if it holds none.
fn read_area(part: &Disk, at: u64) -> Result<Option<Vec<u8>>> {
    let raw = bytes(part, at, AREA_HEADER, AREA_HEADER, "LVM2 metadata area")?;
    let header: AreaHeader = take(&raw, 0, "LVM2 metadata area")?;
    if header.magic != MAGIC || header.version.get() != 1 || header.start.get() != at {
        return Err(Lvm2Fault::Structure("a metadata area without its magic").into());
    }
    if crc(raw.get(4..).unwrap_or_default()) != header.checksum_xl.get() {
        return Err(Lvm2Fault::Checksum("metadata area").into());
    }
    let locn: RawLocn = take(&raw, size_of::<AreaHeader>(), "LVM2 metadata area")?;
    let (offset, len) = (locn.offset.get(), locn.size.get());
    // Bit 0: the area is ignored.
    if offset == 0 || locn.flags.get() & 1 != 0 {
        return Ok(None);
    }
    let size = header.size.get();
    let ring = size.checked_sub(AREA_HEADER).ok_or(Lvm2Fault::Structure("a metadata area without room"))?;
    if offset < AREA_HEADER || offset >= size || len > ring {
        return Err(Lvm2Fault::Structure("metadata outside their area").into());
    }
    // The text is written round a ring.
    let first = len.min(size.saturating_sub(offset));
    let mut text = bytes(part, at.saturating_add(offset), first, TEXT_BYTES_MAX, "LVM2 metadata")?;
    let rest = len.saturating_sub(first);
    text.extend(bytes(part, at.saturating_add(AREA_HEADER), rest, TEXT_BYTES_MAX, "LVM2 metadata")?);
    if crc(&text) != locn.checksum.get() {
        return Err(Lvm2Fault::Checksum("metadata").into());
    }
    Ok(Some(text))
}

/// The volumes of one group.
fn volumes(name: &str, group: &Section, physical: &[Physical], found: &mut Logical) -> Result<()> {
    let sectors = |n: u64| n.checked_mul(SECTOR).ok_or(Lvm2Fault::Structure("a size past 64 bits"));
    let extent = sectors(group.number("extent_size", name)?)?;
    // Where extent 0 of each physical volume lies on the disk.
    let mut origins: BTreeMap<String, u64> = BTreeMap::new();
    for (alias, pv) in group.section("physical_volumes").into_iter().flat_map(Section::sections) {
        let uuid = pv.string("id", alias)?;
        let plain: String = uuid.chars().filter(|c| *c != '-').collect();
        let Some(there) = physical.iter().find(|p| p.uuid == plain) else {
            return Err(Lvm2Fault::Missing { group: name.into(), missing: uuid.into() }.into());
        };
        let first = sectors(pv.number("pe_start", alias)?)?;
        let origin = there.start.checked_add(first).ok_or(Lvm2Fault::Structure("an extent past 64 bits"))?;
        origins.insert(alias.into(), origin);
    }
    let all = || group.section("logical_volumes").into_iter().flat_map(Section::sections);
    let (mut snapped, mut stores) = (BTreeSet::new(), BTreeSet::new());
    for (part, segment) in all().flat_map(|(_, section)| section.sections()) {
        // One without a type spoils its own volume only, below.
        if part.starts_with("segment") && segment.string("type", part).is_ok_and(|kind| kind == "snapshot") {
            snapped.insert(segment.string("origin", part)?);
            // A snapshot that is being merged back calls it otherwise.
            stores
                .extend(segment.string("cow_store", part).or_else(|_| segment.string("merging_store", part)));
        }
    }
    for (lv, section) in all() {
        let full = format!("{name}/{lv}");
        // Parts of other volumes are not visible.
        if !section.strings("status").any(|s| s == "VISIBLE") {
            continue;
        }
        if stores.contains(lv) {
            let kind = "snapshot".into();
            found.warnings.push(Lvm2Fault::SegmentType { name: full, kind }.to_string());
            continue;
        }
        if snapped.contains(lv) {
            found.origins.push(full.clone());
        }
        match segments(&full, section, extent, &origins) {
            Ok(segments) => found.volumes.push((full, Layout::Mapped(segments))),
            Err(e) => found.warnings.push(e.to_string()),
        }
    }
    Ok(())
}

fn segments(
    name: &str,
    volume: &Section,
    extent: u64,
    origins: &BTreeMap<String, u64>,
) -> Result<Vec<Segment>> {
    let wrong = |why| racker_formats::Error::from(Lvm2Fault::Structure(why));
    let bytes_of = |n: u64| n.checked_mul(extent).ok_or_else(|| wrong("an extent past 64 bits"));
    let mut all = Vec::new();
    for (part, section) in volume.sections() {
        if !part.starts_with("segment") {
            continue;
        }
        let kind = section.string("type", part)?;
        if kind != "striped" {
            return Err(Lvm2Fault::SegmentType { name: name.into(), kind: kind.into() }.into());
        }
        let stripes = section.pairs("stripes").map(|(alias, first)| {
            let origin = origins.get(alias).ok_or_else(|| wrong("a stripe on no physical volume"))?;
            origin.checked_add(bytes_of(first)?).ok_or_else(|| wrong("a stripe past 64 bits"))
        });
        let stripes: Vec<u64> = stripes.collect::<Result<_>>()?;
        let len = bytes_of(section.number("extent_count", part)?)?;
        let stripe_size = match stripes.len() {
            0 => return Err(wrong("a segment without stripes")),
            1 => 0,
            _ => section.number("stripe_size", part)?.saturating_mul(SECTOR),
        };
        let count = racker_formats::wire::len64(stripes.len());
        let even =
            count == 1 || stripe_size.checked_mul(count).is_some_and(|row| len.checked_rem(row) == Some(0));
        if len == 0 || !even {
            return Err(wrong("a segment of an odd size"));
        }
        all.push(Segment { at: bytes_of(section.number("start_extent", part)?)?, len, stripes, stripe_size });
        if all.len() > SEGMENTS_MAX {
            return Err(wrong("too many segments"));
        }
    }
    all.sort_by_key(|s| s.at);
    let mut next = 0u64;
    for segment in &all {
        if segment.at != next {
            return Err(wrong("segments with gaps or overlaps"));
        }
        next = next.checked_add(segment.len).ok_or_else(|| wrong("a volume past 64 bits"))?;
    }
    if all.is_empty() { Err(wrong("a volume without segments")) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_with_a_snapshot_is_known_and_what_the_snapshot_keeps_is_no_volume() {
        let text = r#"vg { id = "v" seqno = 4 extent_size = 8192
            physical_volumes { pv0 { id = "abc-def" pe_start = 2048 } }
            logical_volumes {
                root { status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
                    segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 1 stripes = ["pv0", 0] } }
                snap { status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
                    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 4] } }
                other { status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
                    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 6] } }
                snapshot0 { status = ["READ", "WRITE"] segment_count = 1
                    segment1 { start_extent = 0 extent_count = 4 type = "snapshot" chunk_size = 8 origin = "root" cow_store = "snap" } }
            } }"#;
        let root = text::parse(text.as_bytes()).unwrap();
        let physical = [Physical { uuid: "abcdef".into(), start: 1 << 20, text: None }];
        let mut found = Logical::default();
        volumes("vg", root.section("vg").unwrap(), &physical, &mut found).unwrap();
        let names: Vec<&str> = found.volumes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, found.origins), (vec!["vg/other", "vg/root"], vec!["vg/root".to_string()]));
        assert_eq!(found.warnings.len(), 1);
    }
}
