//! The descriptor: text that says what a disk is made of. Parsed once, into enums.
//!
//! ```text
//! # Disk DescriptorFile
//! version=1
//! CID=6ec0692f
//! parentCID=ffffffff
//! createType="twoGbMaxExtentSparse"
//! RW 4192256 SPARSE "disk-s001.vmdk"
//! ddb.adapterType = "lsilogic"
//! ```

use std::collections::BTreeMap;

use super::fault::VmdkFault;
use super::header::in_bytes;
use super::layout::DESCRIPTOR_MARK;
use crate::error::Result;
use crate::limits::{MIB, REFERENCES_MAX};

/// A descriptor of as many extents as racker follows, with long names, has half of this.
pub(super) const DESCRIPTOR_BYTES_MAX: u64 = MIB;
/// Keys that are kept for `info`.
const DDB_KEYS_MAX: usize = 256;
/// The content ID that says "no parent".
pub(super) const NO_PARENT: u32 = 0xffff_ffff;

/// A descriptor that passed its checks.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    /// Changes whenever the disk's content does, so that a child can tell.
    pub(super) cid: u32,
    /// Where its digits stand in the text, and how many they are: QEMU leaves zeroes before them out.
    pub(super) cid_at: Option<(u64, usize)>,
    pub(super) parent: Option<Parent>,
    pub(super) create_type: CreateType,
    /// As it stands in the file.
    pub(super) text: String,
    /// Not empty.
    pub(super) extents: Vec<ExtentLine>,
    /// The disk data base: geometry, adapter, identifiers.
    pub(super) ddb: BTreeMap<String, String>,
}

/// The disk that unallocated grains fall through to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) cid: u32,
    /// Its file, as the child names it.
    pub(super) name: Option<String>,
    /// Where the digits of its content ID stand in the text, and how many they are.
    pub(super) cid_at: Option<(u64, usize)>,
}

/// What kind of disk it is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CreateType {
    MonolithicSparse,
    MonolithicFlat,
    TwoGbMaxExtentSparse,
    TwoGbMaxExtentFlat,
    StreamOptimized,
    Vmfs,
    VmfsThin,
    VmfsSparse,
    SeSparse,
    Custom,
    FullDevice,
    PartitionedDevice,
    VmfsRaw,
    VmfsRawDeviceMap,
    VmfsPassthroughRawDeviceMap,
}

/// The words of the specification; letter case is not significant in the files of some writers.
const CREATE_TYPES: &[(&str, CreateType)] = &[
    ("monolithicSparse", CreateType::MonolithicSparse),
    ("monolithicFlat", CreateType::MonolithicFlat),
    ("twoGbMaxExtentSparse", CreateType::TwoGbMaxExtentSparse),
    ("2GbMaxExtentSparse", CreateType::TwoGbMaxExtentSparse),
    ("twoGbMaxExtentFlat", CreateType::TwoGbMaxExtentFlat),
    ("2GbMaxExtentFlat", CreateType::TwoGbMaxExtentFlat),
    ("streamOptimized", CreateType::StreamOptimized),
    ("vmfs", CreateType::Vmfs),
    ("vmfsPreallocated", CreateType::Vmfs),
    ("vmfsEagerZeroedThick", CreateType::Vmfs),
    ("vmfsThin", CreateType::VmfsThin),
    ("vmfsSparse", CreateType::VmfsSparse),
    ("seSparse", CreateType::SeSparse),
    ("custom", CreateType::Custom),
    ("fullDevice", CreateType::FullDevice),
    ("partitionedDevice", CreateType::PartitionedDevice),
    ("vmfsRaw", CreateType::VmfsRaw),
    ("vmfsRDM", CreateType::VmfsRawDeviceMap),
    ("vmfsRawDeviceMap", CreateType::VmfsRawDeviceMap),
    ("vmfsRDMP", CreateType::VmfsPassthroughRawDeviceMap),
    ("vmfsPassthroughRawDeviceMap", CreateType::VmfsPassthroughRawDeviceMap),
];

impl CreateType {
    /// The specification's word.
    pub(super) fn name(self) -> &'static str {
        CREATE_TYPES.iter().find(|(_, t)| *t == self).map_or("unknown", |(name, _)| name)
    }
}

/// One extent line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub(super) access: Access,
    /// Bytes of the guest's disk.
    pub(super) len: u64,
    pub(super) source: Source,
}

/// What may be done with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
    /// Not even reading.
    None,
}

/// Where an extent's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Zero,
    /// As they are, from byte `at` of a file.
    Flat {
        name: String,
        at: u64,
    },
    /// In a file with grain tables of either kind.
    Sparse {
        name: String,
    },
    /// In a seSparse file.
    SeSparse {
        name: String,
    },
    /// Something that racker does not read.
    Other {
        kind: String,
    },
}

impl ExtentLine {
    /// The line of a sparse extent.
    pub(super) fn sparse(sectors: u64, name: &str) -> String {
        format!("RW {sectors} SPARSE \"{name}\"")
    }

    /// The line of a file that holds nothing but an extent's bytes.
    pub(super) fn flat(sectors: u64, name: &str) -> String {
        format!("RW {sectors} FLAT \"{name}\" 0")
    }
}

impl Descriptor {
    /// Parses the text up to its first zero byte, which is how an embedded one is filled up.
    ///
    /// An embedded one is told by the header; not every writer begins it with the line that tells a text file
    /// (VMDKstream has "# Disk Descriptor File").
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        Self::of_text(std::str::from_utf8(bytes).map_err(|_| VmdkFault::Encoding)?)
    }

    /// The same for a disk that is not written: older programs of VMware write names in the code page of their
    /// machine. Each byte becomes a character then, which is right for most of Europe; the name that an extent
    /// gives itself is of no use anyway.
    pub(super) fn parse_to_read(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::of_text(text),
            Err(_) => Self::of_text(&bytes.iter().map(|b| char::from(*b)).collect::<String>()),
        }
    }

    fn of_text(text: &str) -> Result<Self> {
        let mut parser = Parser::default();
        for (i, line) in text.split('\n').enumerate() {
            parser.line(line, i.saturating_add(1))?;
            parser.at = parser.at.saturating_add(line.len()).saturating_add(1);
        }
        parser.finish(text)
    }

    /// Bytes of the guest's disk.
    pub(super) fn size(&self) -> Result<u64> {
        let sum = self.extents.iter().try_fold(0u64, |sum, e| sum.checked_add(e.len));
        sum.ok_or_else(|| VmdkFault::Sectors { what: "disk", sectors: u64::MAX }.into())
    }
}

/// The descriptor's text for a disk of another size: its `extents` (lines without an end) stand where those of `text`
/// were, the number of cylinders fits, and everything else stays.
pub(super) fn resized(
    text: &str,
    extents: &[String],
    capacity: u64,
    ddb: &BTreeMap<String, String>,
) -> String {
    let number = |key: &str, default: u64| {
        ddb.get(key).and_then(|v| v.parse().ok()).filter(|n| *n > 0).unwrap_or(default)
    };
    let heads: u64 = number("ddb.geometry.heads", 16);
    let sectors = number("ddb.geometry.sectors", 63);
    let cylinders = cylinders(capacity, heads, sectors);
    let mut out = String::with_capacity(text.len());
    let mut waiting = Some(extents);
    for line in text.split_inclusive('\n') {
        let word = line.split_whitespace().next().unwrap_or_default();
        if access(word).is_some() {
            for extent in waiting.take().unwrap_or_default() {
                out.push_str(extent);
                out.push('\n');
            }
        } else if line.trim_start().to_ascii_lowercase().starts_with("ddb.geometry.cylinders") {
            out.push_str("ddb.geometry.cylinders = \"");
            out.push_str(&cylinders.to_string());
            out.push_str("\"\n");
        } else {
            out.push_str(line);
        }
    }
    out
}

/// The descriptor's text for a child of another parent: its content ID and its name, or none. Blank lines come and go,
/// so that what is behind stays where it is if it can.
pub(super) fn reparented(text: &str, cid: u32, name: Option<&str>) -> String {
    let mut out = String::with_capacity(text.len().saturating_add(name.map_or(0, str::len)));
    let mut hint = name.map(|name| format!("parentFileNameHint=\"{name}\"\n"));
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_ascii_lowercase();
    let named = text.lines().any(|line| key(line) == "parentfilenamehint");
    let mut seen = 0usize;
    for line in text.split_inclusive('\n') {
        match key(line).as_str() {
            "parentcid" => {
                out.push_str(&format!("parentCID={cid:08x}\n"));
                out.extend(hint.take_if(|_| !named));
            }
            "parentfilenamehint" => out.extend(hint.take()),
            "" if line.trim().is_empty() && out.len() >= seen.saturating_add(line.len()) => {}
            key => {
                if key.is_empty() || access(line.split_whitespace().next().unwrap_or_default()).is_some() {
                    out.extend(std::iter::repeat_n('\n', seen.saturating_sub(out.len())));
                }
                out.push_str(line);
            }
        }
        seen = seen.saturating_add(line.len());
    }
    out
}

/// Cylinders of a disk, as far as its controller can count: ATA ends at 16383, others at 65535.
pub(super) fn cylinders(capacity: u64, heads: u64, sectors: u64) -> u64 {
    let max = if heads <= 16 { 16383 } else { 65535 };
    capacity.checked_div(heads.saturating_mul(sectors)).unwrap_or(0).min(max)
}

/// Whether bytes begin as a descriptor does.
pub(super) fn looks_like_descriptor(bytes: &[u8]) -> bool {
    // A byte-order mark and blank lines may come first.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    bytes.get(..DESCRIPTOR_MARK.len()).is_some_and(|b| b.eq_ignore_ascii_case(DESCRIPTOR_MARK))
}

#[derive(Default)]
struct Parser {
    /// Byte offset of the line at hand.
    at: usize,
    version: Option<u32>,
    cid: Option<u32>,
    cid_at: Option<(u64, usize)>,
    parent_cid: Option<u32>,
    parent_cid_at: Option<(u64, usize)>,
    parent_name: Option<String>,
    create_type: Option<CreateType>,
    extents: Vec<ExtentLine>,
    ddb: BTreeMap<String, String>,
}

impl Parser {
    fn line(&mut self, raw: &str, number: usize) -> Result<()> {
        let line = raw.trim_start_matches('\u{feff}').trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let wrong = |why| VmdkFault::Descriptor { line: number, why };
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some(access) = access(first) {
            if self.extents.len() >= REFERENCES_MAX {
                return Err(wrong("more extents than racker follows").into());
            }
            self.extents.push(extent(line, first, access, number)?);
            return Ok(());
        }
        // What has no `=` is nothing that matters: other writers put remarks there.
        let Some((key, value)) = line.split_once('=') else { return Ok(()) };
        let (key, value) = (key.trim(), value.trim());
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        match key.to_ascii_lowercase().as_str() {
            "version" => self.version = Some(value.parse().map_err(|_| wrong("version is no number"))?),
            "cid" => {
                self.cid = Some(hex(value).ok_or_else(|| wrong("CID is no number"))?);
                self.cid_at = self.digits(raw, value);
            }
            "parentcid" => {
                self.parent_cid = Some(hex(value).ok_or_else(|| wrong("parentCID is no number"))?);
                self.parent_cid_at = self.digits(raw, value);
            }
            "parentfilenamehint" => self.parent_name = Some(value.to_string()),
            "createtype" => {
                let known = CREATE_TYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(value));
                let (_, kind) = known.ok_or_else(|| wrong("unknown createType"))?;
                self.create_type = Some(*kind);
            }
            // UTF-8 was checked; names in ASCII read the same in all the others that VMware writes.
            "encoding" => {}
            key if key.starts_with("ddb.") && self.ddb.len() < DDB_KEYS_MAX => {
                self.ddb.insert(key.to_string(), value.to_string());
            }
            _ => {}
        }
        Ok(())
    }

    /// Where the digits of a content ID stand in the text, and how many they are.
    fn digits(&self, line: &str, value: &str) -> Option<(u64, usize)> {
        let within = line.rfind(value).filter(|_| (1..=8).contains(&value.len()))?;
        let at = u64::try_from(self.at.checked_add(within)?).ok()?;
        Some((at, value.len()))
    }

    fn finish(self, text: &str) -> Result<Descriptor> {
        match self.version {
            Some(1..=3) => {}
            Some(other) => return Err(VmdkFault::Version(other).into()),
            None => return Err(VmdkFault::Missing("version").into()),
        }
        if self.extents.is_empty() {
            return Err(VmdkFault::Missing("extent").into());
        }
        let name = self.parent_name;
        let cid_at = self.parent_cid_at;
        let parent = self.parent_cid.filter(|cid| *cid != NO_PARENT).map(|cid| Parent { cid, name, cid_at });
        Ok(Descriptor {
            cid: self.cid.ok_or(VmdkFault::Missing("CID"))?,
            cid_at: self.cid_at,
            text: text.into(),
            parent,
            create_type: self.create_type.ok_or(VmdkFault::Missing("createType"))?,
            extents: self.extents,
            ddb: self.ddb,
        })
    }
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 16).ok()
}

fn access(word: &str) -> Option<Access> {
    match word {
        "RW" => Some(Access::ReadWrite),
        "RDONLY" => Some(Access::ReadOnly),
        "NOACCESS" => Some(Access::None),
        _ => None,
    }
}

/// `RW 4192256 SPARSE "name"`, `RW 4192256 FLAT "name" 0`, `RW 63 ZERO`.
fn extent(line: &str, first: &str, access: Access, number: usize) -> Result<ExtentLine> {
    let wrong = |why| VmdkFault::Descriptor { line: number, why };
    let rest = line.strip_prefix(first).unwrap_or(line).trim_start();
    let (sectors, rest) = rest.split_once(char::is_whitespace).ok_or_else(|| wrong("no kind of extent"))?;
    let sectors = sectors.parse().map_err(|_| wrong("the extent's size is no number"))?;
    let rest = rest.trim_start();
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    // A name ends at the last quote: it may hold some.
    let named = || {
        let (_, tail) = rest.split_once('"').ok_or_else(|| wrong("the extent has no name in quotes"))?;
        let (name, tail) = tail.rsplit_once('"').ok_or_else(|| wrong("the extent's name has no end"))?;
        if name.is_empty() { Err(wrong("the extent's name is empty")) } else { Ok((name.to_string(), tail)) }
    };
    let source = match kind {
        "ZERO" => Source::Zero,
        "SPARSE" | "VMFSSPARSE" => Source::Sparse { name: named()?.0 },
        "FLAT" | "VMFS" => {
            let (name, tail) = named()?;
            let offset = match tail.split_whitespace().next() {
                Some(offset) => offset.parse().map_err(|_| wrong("the extent's offset is no number"))?,
                None => 0,
            };
            Source::Flat { name, at: in_bytes("extent offset", offset)? }
        }
        "SESPARSE" => Source::SeSparse { name: named()?.0 },
        other => Source::Other { kind: other.to_string() },
    };
    Ok(ExtentLine { access, len: in_bytes("extent", sectors)?, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# Disk DescriptorFile\nversion=1\nCID=6ec0692f\nparentCID=ffffffff\n";

    #[test]
    fn a_split_disk_with_names_of_all_sorts() {
        let text = format!(
            "{HEAD}isNativeSnapshot=\"no\"\r\ncreateType=\"custom\"\r\n\
             RW 100 SPARSE \"a b-s001.vmdk\"\r\nRDONLY 7 FLAT \"x\"y\" 63\r\nRW 8 ZERO\r\n\
             ddb.adapterType = \"lsilogic\"\r\n"
        );
        let d = Descriptor::parse(text.as_bytes()).unwrap();
        assert_eq!((d.cid, d.parent.is_none(), d.create_type), (0x6ec0_692f, true, CreateType::Custom));
        let (at, len) = d.cid_at.unwrap();
        assert_eq!(&text[at as usize..at as usize + len], "6ec0692f");
        assert_eq!(d.size().unwrap(), 115 * 512);
        assert_eq!(d.extents[0].source, Source::Sparse { name: "a b-s001.vmdk".into() });
        assert_eq!(d.extents[1].source, Source::Flat { name: "x\"y".into(), at: 63 * 512 });
        assert_eq!(d.extents[1].access, Access::ReadOnly);
        assert_eq!(d.extents[2].source, Source::Zero);
        assert_eq!(d.ddb["ddb.adaptertype"], "lsilogic");
    }

    #[test]
    fn another_parent_moves_as_little_as_it_can() {
        let tail = "\n# Extent description\nRW 100 SPARSE \"a\"\n";
        let head = HEAD.replace("ffffffff", "2b") + "createType=\"custom\"\n";
        let long = format!("{head}parentFileNameHint=\"long.vmdk\"\n{tail}");
        let short = reparented(&long, 0x1234_5678, Some("b.vmdk"));
        let d = Descriptor::parse(short.as_bytes()).unwrap();
        let parent = d.parent.clone().unwrap();
        assert_eq!((parent.cid, parent.name.as_deref()), (0x1234_5678, Some("b.vmdk")));
        // Six digits more in one line make up for three letters less.
        assert_eq!(short.len(), long.len() + 2, "{short}");
        let none = reparented(&short, u32::MAX, None);
        assert!(Descriptor::parse(none.as_bytes()).unwrap().parent.is_none());
        assert_eq!((none.len(), none.ends_with("RW 100 SPARSE \"a\"\n")), (short.len(), true), "{none}");
        let again = reparented(&none, 1, Some("b.vmdk"));
        assert_eq!(again.len(), short.len());
        assert_eq!(Descriptor::parse(again.as_bytes()).unwrap().parent.unwrap().cid, 1);
    }

    #[test]
    fn another_size_changes_extents_and_geometry_only() {
        let text = format!(
            "{HEAD}createType=\"custom\"\nRW 100 SPARSE \"a\"\n\nRW 8 ZERO\n# end\n\
             ddb.geometry.cylinders = \"1\"\nddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\n"
        );
        let d = Descriptor::parse(text.as_bytes()).unwrap();
        let lines = ["RW 160650 SPARSE \"a\"".to_string()];
        let new = resized(&text, &lines, 160_650, &d.ddb);
        let want = text.replace("RW 100", "RW 160650").replace("RW 8 ZERO\n", "");
        assert_eq!(new, want.replace("cylinders = \"1\"", "cylinders = \"10\""));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line() {
        for (bad, line) in [
            ("createType=\"monolithicFlat\"\nRW x FLAT \"a\" 0\n", 6),
            ("createType=\"monolithicFlat\"\nRW 9 FLAT a 0\n", 6),
            ("createType=\"monolithicFlat\"\nRW 9 FLAT \"\" 0\n", 6),
            ("createType=\"monolithicFlat\"\nRW 9\n", 6),
            ("createType=\"nonsense\"\n", 5),
        ] {
            let e = Descriptor::parse(format!("{HEAD}{bad}").as_bytes()).unwrap_err();
            assert!(matches!(e.fault(), Some(VmdkFault::Descriptor { line: l, .. }) if *l == line), "{e}");
        }
        let e = Descriptor::parse(format!("{HEAD}createType=\"custom\"\n").as_bytes()).unwrap_err();
        assert_eq!(e.fault(), Some(&VmdkFault::Missing("extent")));
        let huge = format!("{HEAD}createType=\"custom\"\nRW 36028797018963968 ZERO\n");
        assert!(Descriptor::parse(huge.as_bytes()).is_err());
        let huge = format!("{HEAD}createType=\"custom\"\n{}", "RW 36028797018963967 ZERO\n".repeat(2));
        assert!(Descriptor::parse(huge.as_bytes()).unwrap().size().is_err());
    }
}
