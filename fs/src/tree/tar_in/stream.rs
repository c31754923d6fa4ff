//! Members out of a tar stream, which is read once from front to end.

use std::io::Read;

use racker_formats::block::Span;
use racker_formats::error::{Common, Result};
use racker_formats::wire::len64;
use tar::{EntryType, Header};

use super::super::TreeFault;
use super::super::put::Meta;
use super::late::Unknown;
use super::pax::Pax;
use super::{Names, sparse};
use crate::filesystem::Time;

const BLOCK: u64 = 512;
/// Bytes of an extended header or a long name: attributes of one file, twice in two forms.
const HEADER_BYTES_MAX: u64 = 160 << 20;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Dir,
    Symlink,
    /// One more name of an earlier member.
    Link,
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Of links of both kinds.
    pub(super) target: Vec<u8>,
    pub(super) meta: Meta,
    /// Bytes of the file, holes included.
    pub(super) size: u64,
    /// Where the bytes of the stream belong in the file.
    pub(super) regions: Vec<Span>,
    /// Its access control lists that name somebody whom nobody knows: the attribute, and the text.
    pub(super) unknown: Unknown,
}

/// The stream.
pub(super) struct Stream<'a> {
    from: &'a mut dyn Read,
    at: u64,
    /// Bytes of the member at hand that were not read so far.
    left: u64,
    /// Zeroes behind them.
    padding: u64,
    global: Pax,
    names: &'a dyn Names,
}

impl<'a> Stream<'a> {
    pub(super) fn new(from: &'a mut dyn Read, names: &'a dyn Names) -> Self {
        Self { from, at: 0, left: 0, padding: 0, global: Pax::default(), names }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    fn wrong(&self, why: &'static str) -> TreeFault {
        TreeFault::Member { at: self.at, why }
    }

    /// Fills `buf` with content of the member.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let Some(left) = self.left.checked_sub(len64(buf.len())) else {
            return Err(self.wrong("its map of holes has more data than the member").into());
        };
        self.exact(buf)?;
        self.left = left;
        Ok(())
    }

    /// Passes over what is left of the member.
    pub(super) fn skip_rest(&mut self) -> Result<()> {
        let mut rest = self.left.saturating_add(self.padding);
        let mut buf = [0; 64 << 10];
        while rest > 0 {
            let want = usize::try_from(rest).unwrap_or(buf.len()).min(buf.len());
            self.exact(buf.get_mut(..want).unwrap_or_default())?;
            rest = rest.saturating_sub(len64(want));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn exact(&mut self, buf: &mut [u8]) -> Result<()> {
        self.from.read_exact(buf).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.wrong("it ends too early").into(),
            _ => racker_formats::error::Error::from(e),
        })?;
        self.at = self.at.saturating_add(len64(buf.len()));
        Ok(())
    }

    /// A block; none at the end of the stream, which some programs leave without its two empty blocks.
    fn block(&mut self) -> Result<Option<[u8; 512]>> {
        let mut block = [0; 512];
        let mut have = 0usize;
        while let Some(rest) = block.get_mut(have..).filter(|r| !r.is_empty()) {
            match self.from.read(rest) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(self.wrong("it ends in the middle of a block").into()),
                Ok(n) => have = have.saturating_add(n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.at = self.at.saturating_add(BLOCK);
        Ok(Some(block))
    }

    /// The whole content of a header that describes the next member.
    fn whole(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > HEADER_BYTES_MAX {
            return Err(Common::TooLarge { what: "a tar header", need: size, max: HEADER_BYTES_MAX }.into());
        }
        let mut bytes = Vec::new();
        self.from.take(size).read_to_end(&mut bytes)?;
        if len64(bytes.len()) < size {
            return Err(self.wrong("it ends too early").into());
        }
        self.at = self.at.saturating_add(size);
        (self.left, self.padding) = (0, padding(size));
        self.skip_rest()?;
        Ok(bytes)
    }

    /// The next member; its content is read, or passed over, before the one after it.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        let mut pax = self.global.clone();
        let (mut long_name, mut long_target) = (None, None);
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            if block == [0; 512] {
                // What follows the end is padding.
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            if !sum_holds(&block) {
                return Err(self.wrong("no tar header where one should be").into());
            }
            let size = header.entry_size().map_err(|_| self.wrong("a size is no number"))?;
            match header.entry_type() {
                EntryType::XHeader => pax.add(&self.whole(size)?, self.at)?,
                EntryType::XGlobalHeader => {
                    let bytes = self.whole(size)?;
                    self.global.add(&bytes, self.at)?;
                    pax.add(&bytes, self.at)?;
                }
                EntryType::GNULongName => long_name = Some(text(self.whole(size)?)),
                EntryType::GNULongLink => long_target = Some(text(self.whole(size)?)),
                kind => {
                    // Labels of volumes and the like are nothing that could be put anywhere.
                    let known = matches!(kind.as_byte(), 0 | b'0'..=b'7' | b'S' | b'D');
                    let member =
                        self.member(header, kind, size, &pax, long_name.take(), long_target.take())?;
                    if known {
                        return Ok(Some(member));
                    }
                    self.skip_rest()?;
                    pax = self.global.clone();
                }
            }
        }
    }

    fn member(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        pax: &Pax,
        long_name: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Member> {
        let bad = |why| TreeFault::Member { at: self.at, why };
        let stored = pax.number(b"size")?.unwrap_or(size);
        let named = pax.get(b"GNU.sparse.name").or(pax.get(b"path")).map(<[u8]>::to_vec).or(long_name);
        let path = named.unwrap_or_else(|| header.path_bytes().into_owned());
        let target = pax.get(b"linkpath").map(<[u8]>::to_vec).or(long_target);
        let target = target.or_else(|| header.link_name_bytes().map(|t| t.into_owned())).unwrap_or_default();
        let number = |key: &[u8], field: std::io::Result<u64>, why| -> Result<u32> {
            let number = match pax.number(key)? {
                Some(number) => number,
                None => field.map_err(|_| bad(why))?,
            };
            u32::try_from(number).map_err(|_| bad(why).into())
        };
        let device = || -> Result<(u32, u32)> {
            let part =
                |n: std::io::Result<Option<u32>>| n.ok().flatten().ok_or_else(|| bad("no device number"));
            Ok((part(header.device_major())?, part(header.device_minor())?))
        };
        let what = match kind.as_byte() {
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => device().map(|(major, minor)| Kind::Char(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' | b'D' => Kind::Dir,
            b'6' => Kind::Fifo,
            // The oldest form says "directory" by a slash.
            0 | b'0' if path.ends_with(b"/") => Kind::Dir,
            _ => Kind::File,
        };
        let mtime = match pax.time(b"mtime")? {
            Some(time) => time,
            None => header.mtime().map(seconds).map_err(|_| bad("a time is no number"))?,
        };
        let (xattrs, unknown) = pax.xattrs(self.names);
        let meta = Meta {
            mode: header.mode().map_err(|_| bad("a mode is no number"))? & 0o7777,
            uid: number(b"uid", header.uid(), "an owner is no number")?,
            gid: number(b"gid", header.gid(), "a group is no number")?,
            atime: pax.time(b"atime")?,
            mtime,
            xattrs,
        };
        // Other kinds have no content, whatever their size says, but for the listing of an incremental archive.
        let stored = if what == Kind::File || kind.as_byte() == b'D' { stored } else { 0 };
        (self.left, self.padding) = (stored, padding(stored));
        let mut member =
            Member { path, kind: what, target, meta, size: stored, regions: Vec::new(), unknown };
        if what == Kind::File {
            self.lay_out(&mut member, header, kind, pax)?;
        }
        Ok(member)
    }

    /// Says where the content belongs.
    fn lay_out(&mut self, member: &mut Member, header: &Header, kind: EntryType, pax: &Pax) -> Result<()> {
        let at = self.at;
        if kind.as_byte() == b'S' {
            let gnu = header.as_gnu().ok_or_else(|| self.wrong("a sparse member that is not GNU's"))?;
            let (mut regions, mut more, size) = sparse::in_header(gnu, at)?;
            while more {
                let block = self.block()?.ok_or_else(|| self.wrong("it ends in a map of holes"))?;
                more = sparse::in_block(&block, &mut regions, at)?;
            }
            (member.regions, member.size) = (sparse::spans(&regions, size, at)?, size);
        } else if let Some(map) = sparse::in_pax(pax, at)? {
            let regions = match map.regions {
                Some(regions) => regions,
                None => sparse::in_content(&mut |block| self.read(block), at)?,
            };
            (member.regions, member.size) = (sparse::spans(&regions, map.size, at)?, map.size);
        } else {
            member.regions = vec![Span::first(member.size)];
        }
        let data = member.regions.iter().fold(0u64, |sum, span| sum.saturating_add(span.len()));
        if data != self.left {
            return Err(self.wrong("a map of holes contradicts the member's size").into());
        }
        Ok(())
    }
}

/// Bytes behind a member up to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() & 511
}

/// A long name ends with a zero byte.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
    bytes
}

fn seconds(sec: u64) -> Time {
    // Times before 1970 come as numbers of two's complement.
    Time { sec: sec.cast_signed(), nsec: 0 }
}

/// Whether a header's checksum holds: the sum of its bytes, its own field taken as blanks, as unsigned or, by some old
/// programs, as signed numbers.
fn sum_holds(block: &[u8; 512]) -> bool {
    let field = block.get(148..156).unwrap_or_default();
    let digits = field.iter().skip_while(|b| **b == b' ').take_while(|b| (b'0'..=b'7').contains(*b));
    let want = digits.fold(0i64, |sum, b| sum.wrapping_mul(8).wrapping_add(i64::from(*b & 7)));
    let bytes = || block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
    let unsigned = bytes().fold(0i64, |sum, b| sum.wrapping_add(i64::from(b)));
    let signed = bytes().fold(0i64, |sum, b| sum.wrapping_add(i64::from(b.cast_signed())));
    racker_formats::wire::sum_holds(want, unsigned) || want == signed
}
