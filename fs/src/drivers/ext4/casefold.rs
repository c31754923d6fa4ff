//! Names in directories that ignore case (`casefold`), with the one encoding that there is: UTF-8 of Unicode 12.1.
//!
//! Two names are the same if their canonical decompositions, with cases folded and code points left out that show
//! nothing (Default_Ignorable_Code_Point), are. What Unicode 12.1 has not assigned stands for itself, as to the
//! kernel, whatever later versions made of it. A name that is not UTF-8 is a row of bytes, or in strict
//! filesystems none.

mod assigned;

use std::borrow::Cow;

use caseless::Caseless;
use unicode_normalization::char::{canonical_combining_class, decompose_canonical};

use self::assigned::is_assigned;
use super::features::Incompat;
use super::layout::inode_flags;
use super::superblock::Superblock;

/// `s_encoding`: UTF-8 of Unicode 12.1.
const UTF8_12_1: u16 = 1;
/// `s_encoding_flags`: names that are not in the encoding are refused.
const STRICT: u16 = 1;

/// Code points that show nothing, as of Unicode 12.1: first and last.
const IGNORABLE: [(u32, u32); 17] = [
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x61c, 0x61c),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180e),
    (0x200b, 0x200f),
    (0x202a, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfff8),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0xe0000, 0xe0fff),
];

impl Superblock {
    /// Whether names can be folded as the superblock says, if any are.
    pub(super) fn folding_is_known(&self) -> bool {
        !self.features.incompat.contains(Incompat::CASEFOLD) || self.raw.encoding.get() == UTF8_12_1
    }

    /// Whether directories that ignore case hold names only that are in the encoding.
    fn is_strict(&self) -> bool {
        self.raw.encoding_flags.get() & STRICT != 0
    }

    /// Whether a directory with these flags ignores case, in a way that is known.
    pub(super) fn folds(&self, flags: u32) -> bool {
        let feature = self.features.incompat.contains(Incompat::CASEFOLD);
        flags & inode_flags::CASEFOLD != 0 && feature && self.folding_is_known()
    }

    /// A name to look for in a directory with these flags.
    pub(super) fn wanted<'n>(&self, flags: u32, name: &'n [u8]) -> Wanted<'n> {
        let folded = if self.folds(flags) { fold(name) } else { None };
        Wanted { name, folded }
    }

    /// Whether a directory with these flags can hold a name.
    pub(super) fn takes(&self, flags: u32, name: &[u8]) -> bool {
        !(self.folds(flags) && self.is_strict()) || str::from_utf8(name).is_ok()
    }
}

/// A name that is looked for.
pub(super) struct Wanted<'n> {
    name: &'n [u8],
    /// What it is without its case, where that counts.
    folded: Option<Vec<u8>>,
}

#[cfg(test)]
impl<'n> Wanted<'n> {
    pub(super) fn exactly(name: &'n [u8]) -> Self {
        Self { name, folded: None }
    }
}

impl Wanted<'_> {
    /// Whether it is the stored name's entry that is looked for.
    pub(super) fn is(&self, stored: &[u8]) -> bool {
        if stored == self.name {
            return true;
        }
        match &self.folded {
            None => false,
            Some(_) if stored.is_ascii() && self.name.is_ascii() => stored.eq_ignore_ascii_case(self.name),
            Some(folded) => fold(stored).as_ref() == Some(folded),
        }
    }
}

/// What is hashed for a name where case does not count.
pub(super) fn hashed(name: &[u8]) -> Cow<'_, [u8]> {
    fold(name).map_or(Cow::Borrowed(name), Cow::Owned)
}

/// A code point of a name, or less than one.
#[derive(Clone, Copy)]
enum Item {
    Plain(char),
    /// Moves behind those of a lower combining class.
    Mark(u8, char),
    /// Shows nothing, but marks do not move across it.
    Nothing,
    /// A byte that would continue a code point, and has none.
    Stray(u8),
}

/// A name without its case; nothing if it is a row of bytes.
pub(super) fn fold(name: &[u8]) -> Option<Vec<u8>> {
    if name.is_ascii() {
        return Some(name.to_ascii_lowercase());
    }
    let items = items(name)?;
    let mut out = Vec::with_capacity(name.len());
    let mut rest = items.as_slice();
    while let Some((item, behind)) = rest.split_first() {
        match *item {
            Item::Plain(c) => put(&mut out, c),
            Item::Stray(byte) => out.push(byte),
            Item::Nothing => {}
            Item::Mark(..) => {
                let is_end = |item: &Item| matches!(item, Item::Plain(_) | Item::Nothing);
                let (marks, behind) = rest.split_at(rest.iter().position(is_end).unwrap_or(rest.len()));
                put_marks(&mut out, marks);
                rest = behind;
                continue;
            }
        }
        rest = behind;
    }
    Some(out)
}

/// A name in pieces; nothing if it is not UTF-8. Bytes that continue nothing pass, as to the kernel, but for the first.
fn items(name: &[u8]) -> Option<Vec<Item>> {
    let mut items = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            add(&mut items, c);
        }
        for byte in chunk.invalid() {
            let may_stand =
                (0x80..0xc0).contains(byte) && name.first().is_some_and(|b| !(0x80..0xc0).contains(b));
            items.push(may_stand.then_some(Item::Stray(*byte))?);
        }
    }
    Some(items)
}

/// Decomposes a code point, and folds its case.
fn add(items: &mut Vec<Item>, c: char) {
    if is_ignorable(c) {
        return items.push(Item::Nothing);
    }
    if !is_assigned(c.into()) {
        return items.push(Item::Plain(c));
    }
    decompose_canonical(c, |part| {
        for folded in std::iter::once(part).default_case_fold() {
            decompose_canonical(folded, |part| {
                items.push(match canonical_combining_class(part) {
                    0 => Item::Plain(part),
                    class => Item::Mark(class, part),
                });
            });
        }
    });
}

/// Puts marks in the order of their classes. The kernel goes through them once to find the lowest class and once for
/// each, and takes every stray byte along each time.
fn put_marks(out: &mut Vec<u8>, marks: &[Item]) {
    let mut lowest = Some(0);
    while let Some(class) = lowest {
        lowest = None;
        for item in marks {
            match *item {
                Item::Stray(byte) => out.push(byte),
                Item::Mark(of, c) if of == class => put(out, c),
                Item::Mark(of, _) if of > class => lowest = Some(lowest.map_or(of, |low| of.min(low))),
                _ => {}
            }
        }
    }
}

fn put(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn is_ignorable(c: char) -> bool {
    let code = u32::from(c);
    IGNORABLE.iter().any(|(first, last)| (*first..=*last).contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u32) -> u32 {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            u32::try_from(self.0 >> 33).unwrap() % end
        }
    }

    /// A checksum over what names become.
    fn sum(names: impl Iterator<Item = Vec<u8>>) -> u32 {
        names.fold(0, |sum, name| match fold(&name) {
            Some(folded) => crc32c::crc32c_append(crc32c::crc32c_append(sum, &folded), &[0]),
            None => crc32c::crc32c_append(sum, &[0xff]),
        })
    }

    #[test]
    fn names_fold_as_with_the_kernel() {
        for (name, folded) in [
            ("Foo", "foo"),
            ("\u{c9}t\u{c9}", "e\u{301}te\u{301}"),
            ("STRASSE", "strasse"),
            ("Stra\u{df}e", "strasse"),
            ("\u{1e9e}", "ss"),
            ("\u{3a3}\u{3c3}\u{3c2}", "\u{3c3}\u{3c3}\u{3c3}"),
            ("a\u{ad}b\u{200d}", "ab"),
            ("a\u{301}\u{323}", "a\u{323}\u{301}"),
            // The one in between shows nothing, and keeps the marks apart.
            ("a\u{301}\u{34f}\u{323}", "a\u{301}\u{323}"),
            // Of Unicode 14: a capital letter since then.
            ("\u{2c2f}", "\u{2c2f}"),
            ("\u{ad}", ""),
        ] {
            assert_eq!(fold(name.as_bytes()).unwrap(), folded.as_bytes(), "{name:?}");
        }
        assert!(fold(b"caf\xe9").is_none() && fold(b"\x80a").is_none() && fold(b"\xed\xa0\x80").is_none());
        assert_eq!(fold(b"IT\x92S").unwrap(), b"it\x92s");
    }

    /// The sums are those of what `ext2fs_casefold` of e2fsprogs 1.47 makes of the same names, with the tables that
    /// the kernel has too.
    #[test]
    fn every_code_point_and_rows_of_them_fold_as_with_e2fsprogs() {
        let every = (1..=0x10_ffff).filter_map(char::from_u32).map(|c| c.to_string().into_bytes());
        assert_eq!(sum(every), 0xf026_4c55);
        let kinds = [
            (0x41, 0x7a),
            (0xc0, 0x17f),
            (0x300, 0x36f),
            (0x370, 0x3ff),
            (0x5b0, 0x5c7),
            (0x1e00, 0x1fff),
            (0xac00, 0xd7a3),
            (0x1100, 0x11ff),
            (0x200b, 0x200f),
            (0x34f, 0x34f),
            (0x1_d160, 0x1_d180),
            (0xad, 0xad),
            (0x1dc0, 0x1dff),
            (0x378, 0x379),
            (0x1_0570, 0x1_0580),
            (0x1abf, 0x1ace),
        ];
        let mut dice = Dice(1);
        let mut name = || {
            let len = dice.below(12) + 1;
            let mut one = |_| {
                let (first, last) = kinds[usize::try_from(dice.below(16)).unwrap()];
                char::from_u32(first + dice.below(last - first + 1)).unwrap()
            };
            (0..len).map(&mut one).collect::<String>().into_bytes()
        };
        assert_eq!(sum((0..20_000).map(|_| name())), 0x879e_40a5);
        let bytes =
            [0x41, 0x80, 0xbf, 0xc0, 0xc2, 0xcc, 0x81, 0xa3, 0xe1, 0xbd, 0xed, 0xa0, 0xf0, 0x90, 0xf4, 0xff];
        let mut dice = Dice(2);
        let mut name = || {
            let len = dice.below(8) + 1;
            (0..len).map(|_| bytes[usize::try_from(dice.below(16)).unwrap()]).collect::<Vec<u8>>()
        };
        assert_eq!(sum((0..100_000).map(|_| name())), 0x381d_1680);
    }
}
