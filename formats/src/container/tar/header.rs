//! A header: raw bytes to checked meaning.

use super::fault::TarFault;
use super::layout::{RawGnuTail, RawHeader, RawRegion, RawSparseBlock};
use crate::error::Result;
use crate::wire::view;

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A file's content.
    Regular,
    /// Regions of a file (GNU's old form).
    GnuSparse,
    /// The name of the next entry (GNU).
    LongName,
    /// Records about the next entry, or about all that follow (POSIX).
    Pax {
        /// For all that follow.
        global: bool,
    },
    /// A link, device or folder: nothing follows, whatever the size says.
    Bare,
    /// Something else whose bytes are passed over: a link's long target, a volume's label.
    Other,
    /// A piece of a file from another archive (GNU).
    MultiVolume,
}

/// A header that passed its checks.
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    /// Bytes that follow in the archive.
    pub(super) size: u64,
    pub(super) entry: Entry,
    tail: RawGnuTail,
}

/// The first part of a sparse map.
pub(super) struct GnuSparse {
    /// Size of the member in bytes.
    pub(super) real_size: u64,
    pub(super) more: bool,
}

impl Header {
    /// Checks the header that lies at `at` of the archive.
    pub(super) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let raw = view::<RawHeader>(bytes, "tar header")?;
        let found = number(&raw.chksum).ok_or(TarFault::Number { at, field: "the checksum" })?;
        let (sum, signed) = checksums(bytes);
        // Some old programs summed up signed bytes.
        if found != sum && i64::try_from(found) != Ok(signed) {
            return Err(TarFault::Checksum { at, found, sum }.into());
        }
        let is_gnu = raw.magic == *b"ustar ";
        let tail = *view::<RawGnuTail>(&raw.tail, "tar header")?;
        let mut name = text(&raw.name).to_vec();
        let prefix = text(raw.tail.first_chunk::<155>().unwrap_or(&[0; 155]));
        if !is_gnu && raw.magic == *b"ustar\0" && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let entry = match raw.typeflag {
            b'S' => Entry::GnuSparse,
            b'L' => Entry::LongName,
            b'x' => Entry::Pax { global: false },
            b'g' => Entry::Pax { global: true },
            b'1'..=b'6' => Entry::Bare,
            b'M' => Entry::MultiVolume,
            b'K' | b'V' | b'D' | b'N' => Entry::Other,
            // A name that ends in a slash is how a folder was written before there was a type for it.
            0 if name.ends_with(b"/") => Entry::Bare,
            // POSIX: unknown types are files.
            _ => Entry::Regular,
        };
        let size = match entry {
            Entry::Bare => 0,
            _ => number(&raw.size).ok_or(TarFault::Number { at, field: "the size" })?,
        };
        Ok(Self { name, size, entry, tail })
    }

    /// Size and first regions of a GNU sparse member.
    pub(super) fn gnu_sparse(&self, at: u64, regions: &mut Vec<(u64, u64)>) -> Result<GnuSparse> {
        let real_size = number(&self.tail.realsize).ok_or(TarFault::Number { at, field: "the real size" })?;
        push_regions(&self.tail.sparse, at, regions)?;
        Ok(GnuSparse { real_size, more: self.tail.isextended != 0 })
    }
}

/// The regions of one extension block; says whether another one follows.
pub(super) fn sparse_block(bytes: &[u8], at: u64, regions: &mut Vec<(u64, u64)>) -> Result<bool> {
    let raw = view::<RawSparseBlock>(bytes, "tar sparse block")?;
    push_regions(&raw.sparse, at, regions)?;
    Ok(raw.isextended != 0)
}

fn push_regions(raw: &[RawRegion], at: u64, regions: &mut Vec<(u64, u64)>) -> Result<()> {
    // An empty pair of fields ends the list; "0 bytes at the end" is a region like others.
    for region in raw.iter().take_while(|r| r.offset[0] != 0 || r.numbytes[0] != 0) {
        let offset = number(&region.offset).ok_or(TarFault::Number { at, field: "a region's offset" })?;
        let len = number(&region.numbytes).ok_or(TarFault::Number { at, field: "a region's size" })?;
        regions.push((offset, len));
    }
    Ok(())
}

/// Whether these 512 bytes are a header: the magic, a matching checksum, and no boot sector's mark.
pub(super) fn looks_like_header(bytes: &[u8]) -> bool {
    let Ok(raw) = view::<RawHeader>(bytes, "tar header") else { return false };
    // A disk whose guest wrote a tar header into its boot code still has the mark of a boot sector,
    // which lies where a tar header has padding.
    let is_boot_sector = bytes.get(510..512) == Some(&[0x55, 0xaa]);
    let is_tar = raw.magic == *b"ustar\0" || raw.magic == *b"ustar ";
    is_tar && !is_boot_sector && Header::parse(bytes, 0).is_ok()
}

/// The sum of all bytes, taken as unsigned and as signed, the checksum itself counted as spaces.
fn checksums(bytes: &[u8]) -> (u64, i64) {
    let field = 148..156;
    bytes.iter().take(512).enumerate().fold((0u64, 0i64), |(unsigned, signed), (i, b)| {
        let b = if field.contains(&i) { b' ' } else { *b };
        let s = i64::from(i8::from_ne_bytes([b]));
        (unsigned.saturating_add(u64::from(b)), signed.saturating_add(s))
    })
}

/// The bytes up to the first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number: octal digits between spaces, ended by a space or zero byte; or binary where the first bit is set.
/// An empty field is 0. `None` for anything else, negative numbers included.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // Base 256, two's complement: the bit below the mark is the sign.
        if first & 0x40 != 0 {
            return None;
        }
        return rest
            .iter()
            .try_fold(u64::from(first & 0x3f), |n, b| n.checked_mul(256)?.checked_add((*b).into()));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |n, b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(u64::from(b.wrapping_sub(b'0'))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_forms() {
        assert_eq!(number(b"00000000644\0"), Some(0o644));
        assert_eq!(number(b"    644 \0\0\0\0"), Some(0o644));
        assert_eq!(number(&[0; 12]), Some(0));
        assert_eq!(number(b"9"), None);
        assert_eq!(number(b"777777777777777777777777777"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0]), Some(5 << 32));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(&[0xbf; 12]), None);
    }
}
