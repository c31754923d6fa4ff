//! The 512-byte header of POSIX.1-1988 (`ustar`), which every member of the stream begins with.

use racker_formats::wire::len64;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::filesystem::NodeKind;

/// Everything in the stream is padded to this many bytes.
pub(super) const BLOCK: usize = 512;

/// The header as it lies in the stream (POSIX.1-2024, pax, "ustar Header Block").
#[derive(Clone, FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    name: [u8; 100],
    mode: [u8; 8],
    uid: [u8; 8],
    gid: [u8; 8],
    size: [u8; 12],
    mtime: [u8; 12],
    chksum: [u8; 8],
    typeflag: u8,
    linkname: [u8; 100],
    magic: [u8; 6],
    version: [u8; 2],
    uname: [u8; 32],
    gname: [u8; 32],
    devmajor: [u8; 8],
    devminor: [u8; 8],
    prefix: [u8; 155],
    pad: [u8; 12],
}

const _: () = assert!(size_of::<Header>() == BLOCK);

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// Another name of a member that came before.
    HardLink,
    /// Records that belong to the next member.
    Pax,
    /// A node by itself.
    Node(NodeKind),
}

impl Type {
    const fn flag(self) -> u8 {
        match self {
            Self::Node(NodeKind::File) => b'0',
            Self::HardLink => b'1',
            Self::Node(NodeKind::Link) => b'2',
            Self::Node(NodeKind::Char) => b'3',
            Self::Node(NodeKind::Block) => b'4',
            Self::Node(NodeKind::Dir) => b'5',
            // tar knows no sockets; the caller leaves them out.
            Self::Node(NodeKind::Fifo | NodeKind::Socket) => b'6',
            Self::Pax => b'x',
        }
    }
}

/// What goes into a header. Whatever does not fit is cut; the caller puts it into a pax record as well.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: Type,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) target: &'a [u8],
    pub(super) uname: &'a [u8],
    pub(super) gname: &'a [u8],
    pub(super) rdev: (u32, u32),
}

impl Fields<'_> {
    /// The header's bytes.
    pub(super) fn to_bytes(&self) -> [u8; BLOCK] {
        let mut header = Header::new_zeroed();
        match split(self.name) {
            Some((prefix, name)) => {
                text(&mut header.prefix, prefix);
                text(&mut header.name, name);
            }
            None => text(&mut header.name, self.name),
        }
        number(&mut header.mode, self.mode.into());
        number(&mut header.uid, self.uid.into());
        number(&mut header.gid, self.gid.into());
        number(&mut header.size, self.size);
        number(&mut header.mtime, u64::try_from(self.mtime).unwrap_or(0));
        header.typeflag = self.kind.flag();
        text(&mut header.linkname, self.target);
        header.magic = *b"ustar\0";
        header.version = *b"00";
        text(&mut header.uname, self.uname);
        text(&mut header.gname, self.gname);
        if matches!(self.kind, Type::Node(NodeKind::Char | NodeKind::Block)) {
            number(&mut header.devmajor, self.rdev.0.into());
            number(&mut header.devminor, self.rdev.1.into());
        }
        // "chksum: the sum of all bytes, taken as if the field were spaces", in six digits.
        header.chksum = [b' '; 8];
        let sum = header.as_bytes().iter().fold(0u64, |sum, b| sum.saturating_add((*b).into()));
        if let Some(digits) = header.chksum.first_chunk_mut::<7>() {
            number(digits, sum);
        }
        let mut out = [0; BLOCK];
        out.copy_from_slice(header.as_bytes());
        out
    }
}

/// Whether a number fits into the octal digits of a field of `len` bytes.
pub(super) fn fits(value: u64, len: u32) -> bool {
    // One byte ends the digits.
    let bits = len.saturating_sub(1).saturating_mul(3);
    value.checked_shr(bits).unwrap_or(0) == 0
}

/// Whether a path can stand in the header alone.
pub(super) fn name_fits(name: &[u8]) -> bool {
    name.len() <= 100 || split(name).is_some()
}

/// Cuts a path of more than 100 bytes at a slash, so that both sides fit into their fields.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 {
        return None;
    }
    // A directory's slash at the end is no place to cut.
    let inner = name.strip_suffix(b"/").unwrap_or(name);
    let slashes = inner.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    let cut = slashes.take_while(|i| *i <= 155).last()?;
    let (prefix, rest) = (name.get(..cut)?, name.get(cut.checked_add(1)?..)?);
    (!prefix.is_empty() && rest.len() <= 100).then_some((prefix, rest))
}

fn text(field: &mut [u8], bytes: &[u8]) {
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from;
    }
}

/// Writes octal digits and a NUL; a number too large for them in base 256, as GNU tar and star do, so that
/// readers who know no pax records do not lose their step.
fn number(field: &mut [u8], value: u64) {
    let len = field.len();
    if fits(value, u32::try_from(len).unwrap_or(u32::MAX)) {
        let digits = format!("{value:0width$o}", width = len.saturating_sub(1));
        text(field, digits.as_bytes());
        if let Some(last) = field.last_mut() {
            *last = 0;
        }
        return;
    }
    let bytes = value.to_be_bytes();
    let skip = len.saturating_sub(bytes.len());
    let low = bytes.get(bytes.len().saturating_sub(len)..).unwrap_or_default();
    for (to, from) in field.iter_mut().skip(skip).zip(low) {
        *to = *from;
    }
    if let Some(first) = field.first_mut() {
        *first |= 0x80;
    }
}

/// How many zero bytes follow `len` bytes of content.
pub(super) fn padding(len: u64) -> usize {
    let block = len64(BLOCK);
    let over = len.checked_rem(block).expect("the block's size is not zero");
    usize::try_from(block.saturating_sub(over)).map_or(0, |pad| if over == 0 { 0 } else { pad })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_at_a_slash() {
        let name = [vec![b'a'; 90], vec![b'/'], vec![b'b'; 90], b"/".to_vec()].concat();
        let (prefix, rest) = split(&name).unwrap();
        assert_eq!((prefix.len(), rest.len()), (90, 91));
        assert!(split(&[b'a'; 101]).is_none());
        assert!(!name_fits(&[vec![b'a'; 156], vec![b'/'], vec![b'b'; 3]].concat()));
        assert!(name_fits(&[b'a'; 100]));
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        let mut field = [0u8; 8];
        number(&mut field, 0o7_777_777);
        assert_eq!(&field, b"7777777\0");
        number(&mut field, 0o10_000_000);
        assert_eq!(field, [0x80, 0, 0, 0, 0, 0x20, 0, 0]);
        assert_eq!((padding(0), padding(1), padding(512), padding(513)), (0, 511, 0, 511));
    }
}
