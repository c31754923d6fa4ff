//! What a volume holds that racker knows by name and does not read: filesystems without a driver here, encrypted
//! volumes, members of arrays and volume groups, swap. Names, labels and UUIDs are those of `blkid`.
//!
//! Nothing of this opens anything: a signature, a second field that agrees, and the few bytes of the label.

mod disc;
mod exfat;
mod ntfs;
mod raid;
mod text;
mod zfs;

use racker_formats::block::Disk;
use racker_formats::block::redo::GATE;
use racker_formats::error::Result;
use racker_formats::registry::{Head, with_head};

use text::{uuid, windows};

/// A volume whose content has a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recognised {
    /// The type as `blkid` prints it: `btrfs`, `crypto_LUKS`, `LVM2_member`.
    pub name: &'static str,
    /// Label, if there is one.
    pub label: Option<String>,
    /// UUID or serial number as `blkid` prints it.
    pub uuid: Option<String>,
}

impl Recognised {
    fn new(name: &'static str) -> Self {
        Self { name, label: None, uuid: None }
    }

    fn label(mut self, label: Option<String>) -> Self {
        self.label = label.filter(|l| !l.is_empty());
        self
    }

    fn uuid(mut self, uuid: Option<String>) -> Self {
        self.uuid = uuid.filter(|u| !u.is_empty());
        self
    }
}

/// One kind of content, told by the first 68 KiB.
type ByHead = fn(&Head<'_>) -> Option<Recognised>;

/// In order: what encrypts or holds other volumes may be in front of remnants of what was there before.
const BY_HEAD: &[ByHead] = &[
    unfinished,
    luks,
    bitlocker,
    lvm2,
    raid::by_head,
    btrfs,
    ntfs::by_head,
    exfat::by_head,
    f2fs,
    erofs,
    squashfs,
    disc::by_head,
    jbd,
    swap,
];

/// The array that a volume is a member of, where the filesystem's beginning may be the volume's too.
pub fn array_member(volume: &Disk) -> Result<Option<Recognised>> {
    raid::by_end(volume)
}

/// The content of a volume that no driver reads, if it is one of those that have a name here.
pub fn recognise(volume: &Disk) -> Result<Option<Recognised>> {
    if let Some(found) = array_member(volume)? {
        return Ok(Some(found));
    }
    let by_head = with_head(volume, |head| BY_HEAD.iter().find_map(|look| look(head)))?;
    let Some(found) = by_head else { return zfs::recognise(volume) };
    // The labels of these two lie somewhere else; a damaged filesystem has none.
    Ok(Some(match found.name {
        "ntfs" => found.label(ntfs::label(volume).unwrap_or_default()),
        "exfat" => found.label(exfat::label(volume).unwrap_or_default()),
        _ => found,
    }))
}

/// Text of at most `max` bytes at `at`, up to the first zero byte.
fn label_at(head: &Head<'_>, at: usize, max: usize) -> Option<String> {
    let bytes = head.first.get(at..)?;
    Some(text::until_zero(bytes.get(..max.min(bytes.len()))?))
}

fn luks(head: &Head<'_>) -> Option<Recognised> {
    // The second copy of a LUKS2 header begins with the letters the other way round; it is no beginning of a volume.
    if head.at::<6>(0)? != *b"LUKS\xba\xbe" {
        return None;
    }
    let found = Recognised::new("crypto_LUKS").uuid(label_at(head, 168, 40));
    match u16::from_be_bytes(head.at(6)?) {
        1 => Some(found),
        2 => Some(found.label(label_at(head, 24, 48))),
        _ => None,
    }
}

fn lvm2(head: &Head<'_>) -> Option<Recognised> {
    // The label is in one of the first four sectors.
    let at = (0..4usize).map(|s| s.wrapping_mul(512)).find(|at| {
        head.at::<8>(*at) == Some(*b"LABELONE") && head.at::<8>(at.saturating_add(24)) == Some(*b"LVM2 001")
    })?;
    let offset = usize::try_from(u32::from_le_bytes(head.at(at.checked_add(20)?)?)).ok()?;
    let id: [u8; 32] = head.at(at.checked_add(offset)?)?;
    let mut shown = String::new();
    for (place, byte) in id.iter().enumerate() {
        if !byte.is_ascii_alphanumeric() {
            return None;
        }
        // Groups of 6, 4, 4, 4, 4, 4 and 6.
        if matches!(place, 6 | 10 | 14 | 18 | 22 | 26) {
            shown.push('-');
        }
        shown.push(char::from(*byte));
    }
    Some(Recognised::new("LVM2_member").uuid(Some(shown)))
}

fn btrfs(head: &Head<'_>) -> Option<Recognised> {
    const AT: usize = 64 << 10;
    if head.at::<8>(AT + 0x40)? != *b"_BHRfS_M" {
        return None;
    }
    let found = Recognised::new("btrfs").uuid(uuid(&head.at(AT + 0x20)?));
    Some(found.label(label_at(head, AT + 0x12b, 256)))
}

fn bitlocker(head: &Head<'_>) -> Option<Recognised> {
    (head.at::<8>(3)? == *b"-FVE-FS-").then(|| Recognised::new("BitLocker"))
}

fn f2fs(head: &Head<'_>) -> Option<Recognised> {
    if u32::from_le_bytes(head.at(1024)?) != 0xf2f5_2010 {
        return None;
    }
    let name = windows(head.first.get(1024 + 124..)?.get(..1024)?);
    Some(Recognised::new("f2fs").uuid(uuid(&head.at(1024 + 108)?)).label(Some(name)))
}

fn erofs(head: &Head<'_>) -> Option<Recognised> {
    if u32::from_le_bytes(head.at(1024)?) != 0xe0f5_e1e2 {
        return None;
    }
    Some(Recognised::new("erofs").uuid(uuid(&head.at(1024 + 48)?)).label(label_at(head, 1024 + 64, 16)))
}

fn squashfs(head: &Head<'_>) -> Option<Recognised> {
    let major = u16::from_le_bytes(head.at(28)?);
    let is_new = head.at::<4>(0)? == *b"hsqs" && major >= 4;
    is_new.then(|| Recognised::new("squashfs"))
}

/// A journal of ext3 or ext4 on a volume of its own.
fn jbd(head: &Head<'_>) -> Option<Recognised> {
    let word = |at: usize| head.at::<4>(1024usize.saturating_add(at)).map(u32::from_le_bytes);
    let is_journal = word(56)? & 0xffff == 0xef53 && word(96)? & 0x8 != 0;
    is_journal.then(|| {
        let found = Recognised::new("jbd").label(label_at(head, 1024 + 120, 16));
        found.uuid(head.at(1024 + 104).and_then(|u| uuid(&u)))
    })
}

/// The name of a filesystem that an interrupted edit of racker has left half-way.
pub const UNFINISHED: &str = "unfinished_edit";

/// The notice stands where a superblock was.
fn unfinished(head: &Head<'_>) -> Option<Recognised> {
    let at = |start: usize| head.first.get(start..).is_some_and(|bytes| bytes.starts_with(GATE));
    (at(0) || at(1024)).then(|| Recognised::new(UNFINISHED))
}

fn swap(head: &Head<'_>) -> Option<Recognised> {
    // The signature ends the first page, whose size is the machine's. That of TuxOnIce begins it.
    let signatures: Vec<[u8; 10]> = [4096usize, 8192, 16384, 32768, 65536]
        .into_iter()
        .filter_map(|page| head.at::<10>(page.saturating_sub(10)))
        .collect();
    let has = |what: &[u8]| signatures.iter().any(|s| s.starts_with(what));
    let sleeps = [&b"S1SUSPEND"[..], b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
    let named = |name| {
        let found = Recognised::new(name).uuid(head.at(1024 + 12).and_then(|u| uuid(&u)));
        Some(found.label(label_at(head, 1024 + 28, 16)))
    };
    if sleeps.into_iter().any(has) || head.at::<8>(0)? == *b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c" {
        return named("swsuspend");
    }
    if has(b"SWAPSPACE2") {
        return named("swap");
    }
    has(b"SWAP-SPACE").then(|| Recognised::new("swap"))
}

#[cfg(test)]
mod tests {
    use racker_formats::block::MemDevice;

    use super::*;

    fn see(size: usize, pieces: &[(usize, &[u8])]) -> Option<Recognised> {
        let mut bytes = vec![0u8; size];
        for (at, piece) in pieces {
            bytes[*at..at + piece.len()].copy_from_slice(piece);
        }
        recognise(&Disk::new(MemDevice::from_bytes(bytes))).unwrap()
    }

    #[test]
    fn signatures_are_told_apart() {
        let id = [0x12u8; 16];
        let shown = Some("12121212-1212-1212-1212-121212121212".to_string());
        let found =
            see(1 << 20, &[(65536 + 64, b"_BHRfS_M"), (65536 + 32, &id), (65536 + 0x12b, b"root")]).unwrap();
        assert_eq!(found, Recognised { name: "btrfs", label: Some("root".into()), uuid: shown.clone() });
        let found = see(1 << 20, &[(4086, b"SWAPSPACE2"), (1036, &id)]).unwrap();
        assert_eq!(found, Recognised { name: "swap", label: None, uuid: shown });
        let pv = b"abcdef0123456789ABCDEFGHIJKLMNOP";
        let found = see(1 << 20, &[(512, b"LABELONE"), (532, &[32]), (536, b"LVM2 001"), (544, pv)]).unwrap();
        assert_eq!(found.uuid.as_deref(), Some("abcdef-0123-4567-89AB-CDEF-GHIJ-KLMNOP"));
        assert_eq!(see(1 << 20, &[]), None);
        assert_eq!(see(0, &[]), None);
        assert_eq!(see(700, &[(0, b"LUKS\xba\xbe\0\x09")]), None);
    }
}
