//! New names: what stands in the short entry, and in the long ones before it.
//!
//! As Windows and Linux do it: a name that is 8.3 and of one case in each half has a short entry only, whose bits say
//! which case. Any other has long entries, and a short name of its own: its first letters, `~1` to `~4`, then two
//! letters and four digits of a hash. Characters beyond ASCII become `_` there: which code page will read it is not
//! known.

use super::fault::FatFault;
use super::layout::{RawLong, attr};
use super::name::{LAST, LONG_MAX, LOWER_BASE, LOWER_EXTENSION, UNITS, checksum};
use crate::filesystem::Name;
use racker_formats::error::Result;

/// Characters that no name may have.
const FORBIDDEN: &str = "\"*/:<>?\\|";
/// Characters that a long name may have, and a short one not.
const LONG_ONLY: &str = "+,;=[]";
/// Numbers behind the first letters, before the hash comes.
const PLAIN_TAILS: u32 = 4;
/// Numbers behind the hash.
const HASHED_TAILS: u32 = 9;
/// More numbers than a directory has names.
const TAILS_MAX: u32 = 99_999;

/// How a name is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// The short name, filled up with spaces.
    pub(super) short: [u8; 11],
    /// Which halves are shown in lower case.
    pub(super) case: u8,
    /// The long name; empty if the short one says it all.
    pub(super) units: Vec<u16>,
}

/// The text of a new name, if FAT takes it.
pub(super) fn check(name: &Name) -> Result<&str> {
    let text = std::str::from_utf8(name.as_bytes());
    let refuse = |why| FatFault::Name { name: String::from_utf8_lossy(name.as_bytes()).into_owned(), why };
    let text = text.map_err(|_| refuse("it is not UTF-8"))?;
    if text.chars().any(|c| c < ' ' || FORBIDDEN.contains(c)) {
        return Err(refuse("control characters and \" * / : < > ? \\ | cannot be in it").into());
    }
    if text.ends_with(['.', ' ']) {
        return Err(refuse("it ends with a dot or a space").into());
    }
    if text.encode_utf16().count() > LONG_MAX {
        return Err(refuse("it is longer than 255 UTF-16 units").into());
    }
    Ok(text)
}

/// One half of a short name in the making.
#[derive(Debug)]
struct Half {
    letters: String,
    /// Nothing was left out or replaced.
    whole: bool,
    has_upper: bool,
    has_lower: bool,
}

impl Half {
    fn of(text: &str, room: usize) -> Self {
        let mut half = Self { letters: String::new(), whole: true, has_upper: false, has_lower: false };
        for c in text.chars() {
            let kept = match c {
                ' ' | '.' => None,
                c if c.is_ascii() && !LONG_ONLY.contains(c) => Some(c.to_ascii_uppercase()),
                _ => Some('_'),
            };
            half.has_upper |= c.is_ascii_uppercase();
            half.has_lower |= c.is_ascii_lowercase();
            half.whole &= kept.is_some_and(|k| k == c.to_ascii_uppercase());
            match kept {
                Some(k) if half.letters.len() < room => half.letters.push(k),
                Some(_) => half.whole = false,
                None => {}
            }
        }
        half
    }

    fn one_case(&self) -> bool {
        !(self.has_upper && self.has_lower)
    }
}

/// How `text` is stored; `is_free` says whether a short name can be taken.
pub(super) fn stored(text: &str, is_free: impl Fn(&[u8; 11]) -> bool) -> Result<Stored> {
    // What begins with its only dot is no extension.
    let (base, extension) = match text.rsplit_once('.') {
        Some((base, extension)) if base.chars().any(|c| c != '.' && c != ' ') => (base, extension),
        _ => (text, ""),
    };
    let (base, extension) = (Half::of(base, 8), Half::of(extension, 3));
    let fits = base.whole && extension.whole;
    let whole = fill(&base.letters, &extension.letters);
    if fits && base.one_case() && extension.one_case() && is_free(&whole) {
        let case = if base.has_lower { LOWER_BASE } else { 0 };
        let case = case | if extension.has_lower { LOWER_EXTENSION } else { 0 };
        return Ok(Stored { short: whole, case, units: Vec::new() });
    }
    let units: Vec<u16> = text.encode_utf16().collect();
    if fits && is_free(&whole) {
        return Ok(Stored { short: whole, case: 0, units });
    }
    let letters = if base.letters.is_empty() { "_" } else { &base.letters };
    let hash = format!("{:04X}", hash(&units));
    let cut = |room: usize| letters.get(..room.min(letters.len())).unwrap_or(letters);
    let plain = (1..=PLAIN_TAILS).map(|n| (cut(6).to_string(), n));
    let hashed = (1..=HASHED_TAILS).map(|n| (format!("{}{hash}", cut(2)), n));
    let more = (PLAIN_TAILS.saturating_add(1)..=TAILS_MAX).map(|n| {
        let digits = n.checked_ilog10().map_or(1, |n| usize::try_from(n).unwrap_or(5).saturating_add(1));
        (cut(7usize.saturating_sub(digits)).to_string(), n)
    });
    let mut all = plain.chain(hashed).chain(more);
    let short = all.find_map(|(letters, number)| {
        let short = fill(&format!("{letters}~{number}"), &extension.letters);
        is_free(&short).then_some(short)
    });
    Ok(Stored { short: short.ok_or(FatFault::DirFull)?, case: 0, units })
}

/// Two halves with the spaces between and behind them.
fn fill(base: &str, extension: &str) -> [u8; 11] {
    let mut short = [b' '; 11];
    let (left, right) = short.split_at_mut(8);
    left.iter_mut().zip(base.bytes()).for_each(|(to, from)| *to = from);
    right.iter_mut().zip(extension.bytes()).for_each(|(to, from)| *to = from);
    short
}

/// The hash that Windows puts into short names since version 7.
fn hash(units: &[u16]) -> u16 {
    let sum = units.iter().fold(0u16, |sum, unit| sum.wrapping_mul(0x25).wrapping_add(*unit));
    let product = i64::from(u32::from(sum).wrapping_mul(314_159_269).cast_signed()).abs();
    let times = i128::from(product).wrapping_mul(1_152_921_497) >> 60;
    let rest = i128::from(product).wrapping_sub(times.wrapping_mul(1_000_000_007));
    let [a, b, ..] = rest.to_le_bytes();
    // The four digits in reverse order.
    u16::from_be_bytes([a.rotate_left(4), b.rotate_left(4)])
}

impl Stored {
    /// Entries of the directory that the name takes, the short one included.
    pub(super) fn slots(&self) -> usize {
        self.units.len().div_ceil(UNITS).saturating_add(1)
    }

    /// The long entries, in the order in which they lie there: the end of the name first.
    pub(super) fn long(&self) -> Vec<RawLong> {
        let sum = checksum(&self.short);
        let last = self.units.len().div_ceil(UNITS);
        let piece = |(number, units): (usize, &[u16])| {
            // A zero ends the name where there is room for one, and nothing follows.
            let unit = |i: usize| match units.get(i) {
                Some(unit) => *unit,
                None if i == units.len() => 0,
                None => 0xffff,
            };
            let ord = u8::try_from(number.saturating_add(1)).unwrap_or(LAST);
            let ord = if number.saturating_add(1) == last { ord | LAST } else { ord };
            RawLong {
                ord,
                name1: std::array::from_fn(|i| unit(i).into()),
                attr: attr::LONG_NAME,
                kind: 0,
                chksum: sum,
                name2: std::array::from_fn(|i| unit(i.saturating_add(5)).into()),
                fst_clus_lo: 0.into(),
                name3: std::array::from_fn(|i| unit(i.saturating_add(11)).into()),
            }
        };
        self.units.chunks(UNITS).enumerate().map(piece).rev().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str, taken: &[&[u8; 11]]) -> (String, u8, bool) {
        let stored = stored(text, |short| !taken.contains(&short)).unwrap();
        (String::from_utf8(stored.short.to_vec()).unwrap(), stored.case, !stored.units.is_empty())
    }

    #[test]
    fn names_of_one_case_need_no_long_entries() {
        assert_eq!(made("README.TXT", &[]), ("README  TXT".into(), 0, false));
        assert_eq!(made("readme.txt", &[]), ("README  TXT".into(), 0x18, false));
        assert_eq!(made("readme.TXT", &[]), ("README  TXT".into(), 0x08, false));
        assert_eq!(made("12345678", &[]), ("12345678   ".into(), 0, false));
        assert_eq!(made("ReadMe.txt", &[]), ("README  TXT".into(), 0, true));
    }

    #[test]
    fn other_names_get_a_number_and_then_a_hash() {
        assert_eq!(made("long file name.text", &[]).0, "LONGFI~1TEX");
        assert_eq!(made("long file name.text", &[b"LONGFI~1TEX"]).0, "LONGFI~2TEX");
        assert_eq!(made(".bashrc", &[]), ("BASHRC~1   ".into(), 0, true));
        assert_eq!(made("...test", &[]).0, "TEST~1     ");
        assert_eq!(made("a.b.c", &[]).0, "AB~1    C  ");
        assert_eq!(made("a+b", &[]).0, "A_B~1      ");
        assert_eq!(made("é", &[]).0, "_~1        ");
        assert_eq!(made("a b", &[]).0, "AB~1       ");
        let taken: [&[u8; 11]; 4] = [b"LONGFI~1TEX", b"LONGFI~2TEX", b"LONGFI~3TEX", b"LONGFI~4TEX"];
        let (name, ..) = made("long file name.text", &taken);
        assert!(name.starts_with("LO") && &name[6..] == "~1TEX", "{name}");
    }

    #[test]
    fn long_entries_are_filled_up() {
        let stored = stored("twenty-six letters, no end", |_| true).unwrap();
        assert_eq!((stored.units.len(), stored.slots()), (26, 3));
        let long = stored.long();
        assert_eq!((long[0].ord, long[1].ord, long[0].name3[1].get()), (0x42, 1, u16::from(b'd')));
        let stored = super::stored("fourteen chars", |_| true).unwrap();
        let long = stored.long();
        assert_eq!([0, 1, 2].map(|i| long[0].name1[i].get()), [u16::from(b's'), 0, 0xffff]);
    }

    #[test]
    fn what_fat_does_not_take_is_refused() {
        let check = |text: &str| check(&Name::new(text.as_bytes()).unwrap()).is_ok();
        for good in ["a", " a", ".a", "a~1", "ü", "a+b", &"x".repeat(255), &"😀".repeat(127)] {
            assert!(check(good), "{good}");
        }
        for bad in ["a.", "a ", "a:b", "a\u{1}", "...", &"x".repeat(256), &"😀".repeat(128)] {
            assert!(!check(bad), "{bad}");
        }
    }
}
