//! Names: short ones in code page 437 with case bits, long ones in UTF-16 spread over several entries.

use super::layout::{RawEntry, RawLong};

/// The upper half of code page 437, the one that `mount` takes unless told otherwise.
const CODE_PAGE_437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// `nt_res`: the name before the dot is shown in lower case.
pub(super) const LOWER_BASE: u8 = 0x08;
/// `nt_res`: the extension is shown in lower case.
pub(super) const LOWER_EXTENSION: u8 = 0x10;

/// Units of a long name.
pub(super) const LONG_MAX: usize = 255;
/// Units in one entry.
pub(super) const UNITS: usize = 13;
/// Entries of the longest name.
const ENTRIES_MAX: u8 = 20;
/// Mark of the entry that holds a name's end.
pub(super) const LAST: u8 = 0x40;

/// The character of a byte.
fn decode(byte: u8) -> char {
    match byte.checked_sub(0x80) {
        None => char::from(byte),
        Some(high) => CODE_PAGE_437.chars().nth(high.into()).unwrap_or('?'),
    }
}

/// Bytes of half a short name as text, without the spaces that fill it.
fn text(bytes: &[u8]) -> String {
    let shown: String = bytes.iter().take_while(|b| **b != 0).map(|b| decode(*b)).collect();
    shown.trim_end_matches(' ').to_string()
}

/// The eleven bytes of a name; one that begins with 0xe5 would look deleted and begins with 5 instead.
fn stored(entry: &RawEntry) -> [u8; 11] {
    let mut bytes = entry.name;
    if bytes[0] == 0x05 {
        bytes[0] = 0xe5;
    }
    bytes
}

/// The volume's label, which has no dot.
pub(super) fn label(entry: &RawEntry) -> String {
    text(&stored(entry))
}

/// The short name as shown: `NAME.EXT`, each half in the case that its bit says.
pub(super) fn short(entry: &RawEntry) -> String {
    let bytes = stored(entry);
    let (base, extension) = bytes.split_at(8);
    let half = |bytes: &[u8], lower: u8| {
        let shown = text(bytes);
        if entry.nt_res & lower != 0 { shown.to_lowercase() } else { shown }
    };
    let (base, extension) = (half(base, LOWER_BASE), half(extension, LOWER_EXTENSION));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// The checksum that ties long entries to their short one.
pub(super) fn checksum(name: &[u8; 11]) -> u8 {
    name.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The entries of a long name as they come, last piece first.
#[derive(Debug, Default)]
pub(super) struct LongName {
    /// Units by place, as far as they are known.
    units: Vec<u16>,
    /// The entry that must come next; 0 when all are there.
    expected: u8,
    checksum: u8,
}

impl LongName {
    /// Takes one entry. One that does not go on with the entries before starts anew or is dropped.
    pub(super) fn push(&mut self, entry: &RawLong) {
        let number = entry.ord & !LAST;
        if entry.ord & LAST != 0 {
            *self = Self::default();
            if (1..=ENTRIES_MAX).contains(&number) {
                self.units = vec![0; usize::from(number).saturating_mul(UNITS)];
                (self.expected, self.checksum) = (number, entry.chksum);
            }
        }
        let goes_on = number != 0 && number == self.expected && entry.chksum == self.checksum;
        if !goes_on {
            *self = Self::default();
            return;
        }
        let start = usize::from(number.saturating_sub(1)).saturating_mul(UNITS);
        let pieces = entry.name1.iter().chain(&entry.name2).chain(&entry.name3);
        if let Some(slots) = self.units.get_mut(start..) {
            for (slot, unit) in slots.iter_mut().zip(pieces) {
                *slot = unit.get();
            }
        }
        self.expected = number.saturating_sub(1);
    }

    /// The name, if it is whole and belongs to this short entry.
    pub(super) fn finish(&mut self, entry: &RawEntry) -> Option<String> {
        let Self { units, expected, checksum: sum } = std::mem::take(self);
        if units.is_empty() || expected != 0 || sum != checksum(&entry.name) {
            return None;
        }
        let name: Vec<u16> = units.into_iter().take_while(|u| *u != 0).take(LONG_MAX).collect();
        (!name.is_empty()).then(|| String::from_utf16_lossy(&name))
    }
}

/// Whether two names are one to FAT, which does not look at case, nor at dots at the end.
pub(super) fn same(a: &str, b: &str) -> bool {
    fold(a) == fold(b)
}

/// What all names have in common that are one to FAT. As with Windows one letter stays one letter: `ß` is not `SS`.
pub(super) fn fold(name: &str) -> String {
    let upper = |c: char| {
        let mut letters = c.to_uppercase();
        letters.next().filter(|_| letters.next().is_none()).unwrap_or(c)
    };
    name.trim_end_matches('.').chars().map(upper).collect()
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    fn entry(name: &[u8; 11], nt_res: u8) -> RawEntry {
        let mut bytes = [0u8; 32];
        bytes[..11].copy_from_slice(name);
        bytes[12] = nt_res;
        RawEntry::read_from_bytes(&bytes).unwrap()
    }

    #[test]
    fn short_names_follow_their_case_bits() {
        assert_eq!(short(&entry(b"README  TXT", 0)), "README.TXT");
        assert_eq!(short(&entry(b"README  TXT", 0x18)), "readme.txt");
        assert_eq!(short(&entry(b"README  TXT", 0x08)), "readme.TXT");
        assert_eq!(short(&entry(b"KERNEL     ", 0x10)), "KERNEL");
        assert_eq!(short(&entry(b"\x05\x80\x90      TX", 0)), "σÇÉ. TX");
        assert_eq!(CODE_PAGE_437.chars().count(), 128);
    }

    #[test]
    fn long_names_need_all_their_entries() {
        let short = entry(b"LONGNA~1TXT", 0);
        let sum = checksum(&short.name);
        let piece = |ord: u8, text: &str| {
            let mut bytes = [0xffu8; 32];
            bytes[0] = ord;
            (bytes[11], bytes[13]) = (0x0f, sum);
            let at = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
            for (at, unit) in at.iter().zip(text.encode_utf16().chain([0])) {
                bytes[*at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            RawLong::read_from_bytes(&bytes).unwrap()
        };
        let mut long = LongName::default();
        long.push(&piece(0x42, "me.txt"));
        long.push(&piece(1, "a long file n"));
        assert_eq!(long.finish(&short).as_deref(), Some("a long file nme.txt"));
        long.push(&piece(0x42, "me.txt"));
        assert_eq!(long.finish(&short), None);
        long.push(&piece(1, "a long file n"));
        assert_eq!(long.finish(&short), None);
        long.push(&piece(0x41, "other"));
        assert_eq!(long.finish(&entry(b"OTHER      ", 0)), None);
    }
}
