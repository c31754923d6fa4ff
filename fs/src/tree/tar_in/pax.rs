//! Extended headers (POSIX.1-2024, pax, "pax Extended Header"): `LENGTH KEYWORD=VALUE\n`, one after the other.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use racker_formats::error::Result;

use super::super::TreeFault;
use super::late::Unknown;
use super::{Names, acl};
use crate::filesystem::Time;

/// Names and values of extended attributes.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The records that hold for a member; later ones win.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    at: u64,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    /// Adds the records of one header, which ended at byte `at` of the stream.
    pub(super) fn add(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        let wrong = || TreeFault::Member { at, why: "an extended header has a record without end" };
        let mut rest = bytes;
        while !rest.is_empty() {
            let blank = rest.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
            let digits = rest.get(..blank).and_then(|d| std::str::from_utf8(d).ok());
            let len: usize = digits.and_then(|d| d.parse().ok()).ok_or_else(wrong)?;
            let (record, behind) = rest.split_at_checked(len).filter(|_| len > blank).ok_or_else(wrong)?;
            let record = record.get(blank.saturating_add(1)..).and_then(|r| r.strip_suffix(b"\n"));
            let record = record.ok_or_else(wrong)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
            let (key, value) = record.split_at_checked(equals).ok_or_else(wrong)?;
            self.records.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
            rest = behind;
        }
        self.at = at;
        Ok(())
    }

    /// The value of a keyword; an empty one takes it back.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (_, value) = self.records.iter().rev().find(|(k, _)| k == key)?;
        (!value.is_empty()).then_some(value.as_slice())
    }

    /// All values of a keyword, in order.
    pub(super) fn all<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.records.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_slice())
    }

    fn wrong(&self, why: &'static str) -> TreeFault {
        TreeFault::Member { at: self.at, why }
    }

    /// A decimal number.
    pub(super) fn number(&self, key: &[u8]) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        Ok(Some(number.ok_or_else(|| self.wrong("an extended header has a number that is none"))?))
    }

    /// A point in time: seconds with a fraction, negative before 1970.
    pub(super) fn time(&self, key: &[u8]) -> Result<Option<Time>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let parsed = std::str::from_utf8(value).ok().and_then(time);
        Ok(Some(parsed.ok_or_else(|| self.wrong("an extended header has a time that is none"))?))
    }

    /// Extended attributes, and the lists that are kept as such.
    ///
    /// The second value says whether a list had to be left out.
    pub(super) fn xattrs(&self, names: &dyn Names) -> (Xattrs, Unknown) {
        let mut all = Xattrs::new();
        let mut unknown = Unknown::new();
        let mut set = |name: Vec<u8>, value: Vec<u8>| match all.iter_mut().find(|(n, _)| *n == name) {
            Some(there) => there.1 = value,
            None => all.push((name, value)),
        };
        for (key, value) in &self.records {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                set(unescaped(name), value.clone());
            } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.")
                && let Some(value) = base64(value)
            {
                set(percent(name), value);
            }
        }
        for (key, name) in acl::KEYWORDS {
            if let Some(text) = self.get(key) {
                match acl::of_text(text, names) {
                    Some(list) => set(name.to_vec(), list),
                    None => unknown.push((name, text.to_vec())),
                }
            }
        }
        (all, unknown)
    }
}

fn time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let sec: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nsec: u32 = digits.parse().ok()?;
    if negative && nsec > 0 {
        return Some(Time { sec: sec.checked_sub(1)?, nsec: 1_000_000_000u32.checked_sub(nsec)? });
    }
    Some(Time { sec, nsec })
}

/// star and GNU tar write `=` and `%` of an attribute's name as `%3D` and `%25`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        let known =
            [(&b"%3D"[..], b'='), (b"%25", b'%')].into_iter().find(|(code, _)| rest.starts_with(code));
        match known {
            Some((code, byte)) => {
                out.push(byte);
                rest = rest.get(code.len()..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// libarchive writes names as in a URL.
fn percent(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%').then(|| tail.get(..2)).flatten();
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok());
        out.push(code.unwrap_or(*first));
        rest = if code.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    out
}

/// Takes padding and bits left over at the end as they come: programs differ in both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The bytes of base64, with its padding or without it, as libarchive writes it; none if it is not base64. White space
/// does not matter.
pub fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    BASE64.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_what_they_say() {
        let mut pax = Pax::default();
        pax.add(b"20 path=some/where\n\n18 mtime=-1.250000\n27 SCHILY.xattr.user.%3Da=x\n", 0).unwrap_err();
        let mut pax = Pax::default();
        pax.add(b"19 path=some/where\n19 mtime=-1.250000\n28 SCHILY.xattr.user.%3Da=x\n", 0).unwrap();
        assert_eq!(pax.get(b"path").unwrap(), b"some/where");
        assert_eq!(pax.time(b"mtime").unwrap(), Some(Time { sec: -2, nsec: 750_000_000 }));
        assert_eq!(pax.xattrs(&()), (vec![(b"user.=a".to_vec(), b"x".to_vec())], Unknown::new()));
        for text in ["aGVsbG8", "aGVsbG8=", "aGVs\nbG8 =", "aGVsbG9="] {
            assert_eq!(base64(text.as_bytes()).unwrap(), b"hello");
        }
        for text in ["aGVsb", "aGVsbG8!", "=aGVsbG8", "aGVs=bG8="] {
            assert_eq!(base64(text.as_bytes()), None, "{text}");
        }
        assert_eq!(base64(b"").unwrap(), b"");
        assert_eq!(percent(b"user.%41"), b"user.A");
    }
}
