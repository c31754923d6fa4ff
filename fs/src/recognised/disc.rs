//! Optical discs: ISO 9660 with its Joliet label, and UDF.

use racker_formats::registry::Head;

use super::Recognised;
use super::text::until_zero;

/// Descriptors begin with the 17th sector.
const FIRST: usize = 32 << 10;
const SECTOR: usize = 2048;
/// Bytes of a label.
const LABEL_BYTES: usize = 32;
/// Characters of a Joliet label, which is in UTF-16.
const JOLIET_CHARS: usize = LABEL_BYTES / 2;

/// The descriptor sectors that are at hand.
fn sectors<'a>(head: &'a Head<'_>) -> impl Iterator<Item = &'a [u8]> {
    head.first.get(FIRST..).unwrap_or_default().chunks_exact(SECTOR)
}

pub(super) fn by_head(head: &Head<'_>) -> Option<Recognised> {
    iso9660(head).or_else(|| udf(head))
}

/// A disc with only UDF on it; its label lies further behind than a probe looks.
fn udf(head: &Head<'_>) -> Option<Recognised> {
    let is = |sector: &&[u8], what: &[u8]| sector.get(1..6) == Some(what);
    let begins = sectors(head).next().is_some_and(|s| is(&s, b"BEA01"));
    let named = sectors(head).any(|s| is(&s, b"NSR02") || is(&s, b"NSR03"));
    (begins && named).then(|| Recognised::new("udf"))
}

fn iso9660(head: &Head<'_>) -> Option<Recognised> {
    let mut all =
        sectors(head).take_while(|s| s.get(1..6) == Some(b"CD001")).take_while(|s| s.first() != Some(&255));
    let primary = all.next().filter(|s| s.first() == Some(&1))?;
    let short = until_zero(primary.get(40..40 + LABEL_BYTES)?).trim_end().to_string();
    let joliet = all.find_map(joliet_label);
    let label = match joliet {
        // A label that does not fit goes on in the other one, which has room for twice as many characters.
        Some(long) if long.chars().count() == JOLIET_CHARS => {
            format!("{long}{}", short.chars().skip(JOLIET_CHARS).collect::<String>())
        }
        Some(long) if !long.is_empty() => long,
        _ => short,
    };
    // The UUID is the time of the last change, or of the making, to hundredths of a second.
    let time = [830usize, 813].into_iter().find_map(|at| {
        let digits = primary.get(at..)?.first_chunk::<16>()?;
        let sound = digits.iter().all(u8::is_ascii_digit) && digits.iter().any(|d| *d != b'0');
        sound.then(|| until_zero(digits))
    });
    let shown = time.map(|t| {
        let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16];
        parts.map(|p| t.get(p).unwrap_or_default().to_string()).join("-")
    });
    Some(Recognised::new("iso9660").label(Some(label)).uuid(shown))
}

/// The label in a supplementary descriptor, if its escape sequence says Joliet.
fn joliet_label(sector: &[u8]) -> Option<String> {
    let is_joliet =
        sector.first() == Some(&2) && matches!(sector.get(88..91), Some(b"%/@" | b"%/C" | b"%/E"));
    let units = sector.get(40..40 + LABEL_BYTES).filter(|_| is_joliet)?.as_chunks::<2>().0;
    let units: Vec<u16> = units.iter().map(|u| u16::from_be_bytes(*u)).take_while(|u| *u != 0).collect();
    Some(String::from_utf16_lossy(&units).trim_end().to_string())
}
