//! What changes a partition table.

use clap::{Args, ValueEnum};
use racker_formats::limits::MIB;
use racker_formats::options::parse_size;
use racker_fs::cut::may_cut;
use racker_fs::partition::Table;
use racker_fs::partition::edit::{Change, NewPartition, NewTable, Size, Want, init};

use super::On;
use super::ls::{partition, sentence};
use crate::fault::{About, Failure, Outcome};
use crate::output::{self, OutputArgs, size};

/// Attribute bits of a GPT entry: UEFI's, and those of the Discoverable Partitions Specification.
const ATTRIBUTES: &[(&str, u8)] = &[
    ("required", 0),
    ("no-block-io", 1),
    ("legacy-boot", 2),
    ("growfs", 59),
    ("read-only", 60),
    ("no-auto", 63),
];

/// The name of an attribute bit, or its number.
pub(super) fn attribute_name(bit: u8) -> String {
    let known = ATTRIBUTES.iter().find(|(_, b)| *b == bit);
    known.map_or_else(|| bit.to_string(), |(name, _)| (*name).to_string())
}

/// Make an empty partition table
///
/// A disk that has a table or a filesystem is refused.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk create new.raw 1G\n  racker disk part new.raw init gpt")]
pub(super) struct Init {
    /// Kind of table
    #[arg(value_name = "TABLE")]
    scheme: Scheme,
    /// Bytes of a sector as the machine sees the disk: 512, or 4096 (GPT)
    #[arg(long, value_name = "BYTES", default_value = "512")]
    sector_size: u32,
    /// Identifier of the disk: a GUID, or eight hexadecimal digits for an MBR; random if it is not given
    #[arg(long, value_name = "ID")]
    disk_uuid: Option<String>,
    /// Also on a disk that has a table or a filesystem, which is lost
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scheme {
    /// GUID partition table, guarded by a protective MBR
    Gpt,
    /// The table of old PCs, up to 2 TiB
    #[value(alias = "dos")]
    Mbr,
}

impl Init {
    pub(super) fn act(self, on: On<'_>) -> Outcome<()> {
        let new = NewTable {
            gpt: self.scheme == Scheme::Gpt,
            sector_size: self.sector_size,
            id: self.disk_uuid,
            force: self.force,
        };
        let ((), table) = on.change(|disk| init(disk, &new), |_| Ok(()))?;
        on.say(&format!("empty {} table, identifier {}", table.scheme, table.id.unwrap_or_default()))
    }
}

/// What an entry of the table says besides its place.
#[derive(Args, Debug)]
struct ChangeArgs {
    /// Type: a word (esp, xbootldr, linux, swap, lvm, root-x86-64, bios-boot, msr…), sgdisk's code, GUID or hex number
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Name (GPT)
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Identifier, PARTUUID: a GUID or `random` (GPT)
    #[arg(long, value_name = "GUID")]
    uuid: Option<String>,
    /// Active (MBR, then no other is), or bootable for an old BIOS (GPT); `off` takes it away
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    bootable: Option<Switch>,
    /// Attribute, or with =off none: read-only, no-auto, growfs, required, no-block-io, legacy-boot, 0 to 63 (GPT)
    #[arg(long = "attribute", value_name = "NAME[=off]", value_parser = attribute)]
    attributes: Vec<(u8, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl ChangeArgs {
    fn change(self) -> Change {
        Change {
            kind: self.kind,
            label: self.label,
            id: self.uuid,
            bootable: self.bootable.map(|b| b == Switch::On),
            attributes: self.attributes,
        }
    }
}

fn attribute(text: &str) -> Result<(u8, bool), String> {
    let (name, on) = match text.split_once('=') {
        None => (text, true),
        Some((name, "on")) => (name, true),
        Some((name, "off")) => (name, false),
        Some((_, other)) => return Err(format!("{other:?} is neither on nor off")),
    };
    let known = ATTRIBUTES.iter().find(|(n, _)| *n == name).map(|(_, bit)| *bit);
    let bit = known.or_else(|| name.parse().ok().filter(|bit| *bit < 64));
    bit.map(|bit| (bit, on)).ok_or_else(|| format!("{name:?} is no attribute: a name or 0 to 63"))
}

/// Add a partition
///
/// Without --start it begins in the largest gap, and without --size or --end it takes all of that. On an MBR it is a
/// primary one, unless --logical or a number from 5 on is given.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk create new.raw 1G\n  racker disk part new.raw init gpt\n  \
    racker disk part new.raw add --type esp --size 256M --label EFI")]
pub(super) struct Add {
    /// Size: 512M, 20G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    /// Where it begins, in bytes: 1M
    #[arg(long, value_name = "BYTE", value_parser = size)]
    start: Option<u64>,
    /// Where it ends, in bytes: the first byte behind it
    #[arg(long, value_name = "BYTE", value_parser = size)]
    end: Option<u64>,
    /// Without --start it begins at a multiple of this
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1M")]
    align: u64,
    /// Number, instead of the first that is free
    #[arg(long, value_name = "N")]
    number: Option<u32>,
    /// A logical partition, in the extended one (MBR)
    #[arg(long)]
    logical: bool,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl Add {
    pub(super) fn act(self, on: On<'_>) -> Outcome<()> {
        if self.start.is_some() && self.end.is_some() && self.size.is_some() {
            return Err(Failure::new("--start, --end and --size: two of them are enough"));
        }
        let new = NewPartition {
            want: Want { start: self.start, end: self.end, size: self.size, align: self.align },
            number: self.number,
            logical: self.logical,
            change: self.change.change(),
        };
        let (number, table) = on.edit(|table| table.add(&new))?;
        let added = table.partitions.iter().find(|p| p.number == number);
        let added = added.ok_or_else(|| Failure::new("the new partition is not in the table"))?;
        if self.output.is_json() {
            return output::json(&partition(added));
        }
        on.say(&format!("added partition {}", sentence(added)))
    }
}

/// Remove a partition from the table; what it holds stays on the disk, and no one finds it
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk part boot.qcow2 rm 1")]
pub(super) struct Rm {
    /// Number of the partition
    #[arg(value_name = "N")]
    number: u32,
}

impl Rm {
    pub(super) fn act(self, on: On<'_>) -> Outcome<()> {
        let before: &Table = &on.target.inspection.table;
        let later = |n: u32| n > self.number && self.number > 4 && before.scheme == "dos";
        let moved = before.partitions.iter().any(|p| later(p.number));
        let was = before.partitions.iter().find(|p| p.number == self.number).map(sentence);
        on.edit(|table| table.remove(self.number))?;
        let was = was.unwrap_or_else(|| self.number.to_string());
        on.say(&format!("removed partition {was}"))?;
        if moved {
            on.progress.note("the logical partitions behind it have other numbers now");
        }
        Ok(())
    }
}

/// Change where a partition ends; nothing moves, and the filesystem inside keeps its size
///
/// A partition is not made smaller than the filesystem inside, nor through data that racker does not know.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk resize boot.qcow2 +1G\n  \
    racker disk part boot.qcow2 resize 1 --max")]
pub(super) struct Resize {
    /// Number of the partition
    #[arg(value_name = "N")]
    number: u32,
    /// New size, or with + how much more: 20G, +512M
    #[arg(value_name = "SIZE", required_unless_present = "max")]
    size: Option<String>,
    /// Up to the next partition, or the end of the disk
    #[arg(long, visible_alias = "grow", conflicts_with = "size")]
    max: bool,
    /// Also if that cuts something off: what lies behind the new end is lost
    #[arg(long)]
    force: bool,
}

impl Resize {
    pub(super) fn act(self, on: On<'_>) -> Outcome<()> {
        let path = &on.target.path;
        let wanted = match self.size.as_deref() {
            None => Size::Max(MIB),
            Some(text) => {
                let (more, digits) = match text.strip_prefix('+') {
                    Some(rest) => (true, rest),
                    None => (false, text),
                };
                let bytes = parse_size(digits).ok_or_else(|| Failure::new(format!("{text:?} is no size")));
                let bytes = bytes.map_err(|e| e.hint("sizes are typed like 512M, 20G or +1G")).about(path)?;
                if more { Size::More(bytes) } else { Size::Bytes(bytes) }
            }
        };
        let mut volumes = on.target.inspection.volumes.iter();
        let volume = volumes.find(|v| v.partition.as_ref().is_some_and(|p| p.number == self.number));
        let (span, _) = on.edit(|table| {
            let span = table.resize(self.number, wanted)?;
            match volume {
                Some(volume) if !self.force => may_cut(volume, span.len()).map(|()| span),
                _ => Ok(span),
            }
        })?;
        let human = output::human(span.len());
        on.say(&format!("partition {} has {human} ({} bytes)", self.number, span.len()))
    }
}

/// Change what the table says of a partition, or of the disk
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk part boot.qcow2 set 1 --label boot --attribute no-auto\n  \
    racker disk part boot.qcow2 set --disk-uuid random")]
pub(super) struct Set {
    /// Number of the partition
    #[arg(value_name = "N")]
    number: Option<u32>,
    #[command(flatten)]
    change: ChangeArgs,
    /// Identifier of the disk: a GUID, `random`, or eight hexadecimal digits for an MBR
    #[arg(long, value_name = "ID")]
    disk_uuid: Option<String>,
}

impl Set {
    pub(super) fn act(self, on: On<'_>) -> Outcome<()> {
        let change = self.change.change();
        if change != Change::default() && self.number.is_none() {
            let failure = Failure::new("which partition is to change?");
            return Err(failure.hint("its number stands behind `set`")).about(&on.target.path);
        }
        if change == Change::default() && self.disk_uuid.is_none() {
            let failure = Failure::new("nothing is to change");
            let hint = "--type, --label, --uuid, --bootable, --attribute or --disk-uuid says what";
            return Err(failure.hint(hint)).about(&on.target.path);
        }
        on.edit(|table| {
            if let Some(number) = self.number {
                table.change(number, &change)?;
            }
            self.disk_uuid.as_deref().map_or(Ok(()), |id| table.set_id(id))
        })?;
        Ok(())
    }
}
