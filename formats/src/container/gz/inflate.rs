//! The members of a gzip file one after the other, and the state of a decoder in the middle of one.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};

use crc32fast::Hasher;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::super::spool::SpoolFault;
use super::RESERVED;
use crate::block::{Disk, Reader};
use crate::wire::{len64, sum_holds};

/// How far back deflate refers.
const WINDOW: usize = 32 << 10;
/// Bytes that are decoded in one go.
const STEP: usize = 128 << 10;
/// Bytes read at once from below.
const INPUT: usize = 64 << 10;
/// Bytes of memory that one takes.
pub(super) const MEMORY: u64 = 256 << 10;

/// Flags of a member (RFC 1952, section 2.3.1).
const HEADER_SUM: u8 = 0x02;
const EXTRA: u8 = 0x04;
const NAME: u8 = 0x08;
const COMMENT: u8 = 0x10;

/// A decoder between two steps.
#[derive(Clone)]
pub(super) struct Point {
    /// Where the input goes on in the file.
    at: u64,
    inside: Option<Box<Inside>>,
}

/// A decoder inside a member.
#[derive(Clone)]
struct Inside {
    core: DecompressorOxide,
    /// What the member may refer back to, packed.
    window: Vec<u8>,
}

impl Point {
    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> u64 {
        let inside = self.inside.as_ref().map_or(0, |i| size_of::<Inside>().saturating_add(i.window.len()));
        len64(size_of::<Self>().saturating_add(inside))
    }
}

/// What comes next in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A member's header, padding, or the end.
    Between,
    Inside,
    End,
}

/// Goes through the members.
pub(super) struct Inflate {
    input: Input,
    place: Place,
    /// There was a member: padding may follow.
    had_member: bool,
    core: Box<DecompressorOxide>,
    /// What the member may refer back to, then what was decoded last, and how many bytes of each.
    buf: Vec<u8>,
    window: usize,
    given: usize,
    /// The checksum and the size of the member so far, if it was seen from its beginning.
    sum: Option<Hasher>,
    size: u64,
}

impl Inflate {
    /// At the beginning of `file`.
    pub(super) fn new(file: Disk) -> Self {
        Self {
            input: Input { from: BufReader::with_capacity(INPUT, Reader::new(file)), at: 0 },
            place: Place::Between,
            had_member: false,
            core: Box::default(),
            buf: vec![0; WINDOW.saturating_add(STEP)],
            window: 0,
            given: 0,
            sum: None,
            size: 0,
        }
    }

    /// Goes on in `file` where `point` was taken.
    pub(super) fn resume(file: Disk, point: &Point) -> io::Result<Self> {
        let mut inflate = Self::new(file);
        inflate.input.from.seek(SeekFrom::Start(point.at))?;
        inflate.input.at = point.at;
        inflate.had_member = point.at > 0;
        if let Some(inside) = &point.inside {
            let window = zstd::bulk::decompress(&inside.window, WINDOW)?;
            inflate.place = Place::Inside;
            *inflate.core = inside.core.clone();
            inflate.window = window.len();
            if let Some(to) = inflate.buf.get_mut(..window.len()) {
                to.copy_from_slice(&window);
            }
        }
        Ok(inflate)
    }

    /// What it takes to go on from here.
    pub(super) fn point(&mut self) -> io::Result<Point> {
        let inside = match self.place {
            Place::Inside => {
                self.slide();
                let window = zstd::bulk::compress(self.buf.get(..self.window).unwrap_or_default(), 1)?;
                Some(Box::new(Inside { core: (*self.core).clone(), window }))
            }
            _ => None,
        };
        Ok(Point { at: self.input.at, inside })
    }

    /// Decodes the next step; nothing at the end.
    pub(super) fn step(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.place {
                Place::Between => self.between()?,
                Place::End => return Ok(&[]),
                Place::Inside => {
                    self.inside()?;
                    if self.given > 0 {
                        return Ok(self.last());
                    }
                }
            }
        }
    }

    /// Looks for the next member.
    fn between(&mut self) -> io::Result<()> {
        loop {
            let ahead = self.input.ahead()?;
            let zeroes = ahead.iter().position(|b| *b != 0 || !self.had_member);
            match zeroes {
                None if ahead.is_empty() && !self.had_member => return Err(ErrorKind::UnexpectedEof.into()),
                None if ahead.is_empty() => {
                    self.place = Place::End;
                    return Ok(());
                }
                None => {
                    let len = ahead.len();
                    self.input.take(len);
                }
                Some(zeroes) => {
                    let is_member = ahead.get(zeroes) == Some(&0x1f);
                    self.input.take(zeroes);
                    if !is_member {
                        return Err(io::Error::other(SpoolFault::Trailing("gzip")));
                    }
                    self.header()?;
                    (self.place, self.had_member) = (Place::Inside, true);
                    self.core.init();
                    (self.window, self.given, self.sum, self.size) = (0, 0, Some(Hasher::new()), 0);
                    return Ok(());
                }
            }
        }
    }

    fn header(&mut self) -> io::Result<()> {
        let mut sum = Hasher::new();
        let mut fixed = [0; 10];
        self.input.exact(&mut fixed, &mut sum)?;
        let [0x1f, 0x8b, 8, flags, ..] = fixed else { return Err(damaged("a member's header is none")) };
        if flags & RESERVED != 0 {
            return Err(damaged("a member has flags that RFC 1952 does not know"));
        }
        if flags & EXTRA != 0 {
            let mut len = [0; 2];
            self.input.exact(&mut len, &mut sum)?;
            let mut extra = vec![0; usize::from(u16::from_le_bytes(len))];
            self.input.exact(&mut extra, &mut sum)?;
        }
        for text in [NAME, COMMENT] {
            let mut byte = [u8::from(flags & text != 0)];
            while byte != [0] {
                self.input.exact(&mut byte, &mut sum)?;
            }
        }
        if flags & HEADER_SUM != 0 {
            let want = sum.clone().finalize() & 0xffff;
            let mut stored = [0; 2];
            self.input.exact(&mut stored, &mut sum)?;
            if !sum_holds(u32::from(u16::from_le_bytes(stored)), want) {
                return Err(damaged("the checksum of a member's header is wrong"));
            }
        }
        Ok(())
    }

    /// Decodes what fits behind the window.
    fn inside(&mut self) -> io::Result<()> {
        self.slide();
        let limit = self.window.saturating_add(STEP);
        loop {
            let ahead = self.input.ahead()?;
            let is_eof = ahead.is_empty();
            let more = if is_eof { 0 } else { TINFL_FLAG_HAS_MORE_INPUT };
            let out = self.buf.get_mut(..limit).unwrap_or_default();
            let end = self.window.saturating_add(self.given);
            let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | more;
            let (status, taken, given) = decompress(&mut self.core, ahead, out, end, flags);
            self.input.take(taken);
            self.given = self.given.saturating_add(given);
            match status {
                TINFLStatus::Done => {
                    self.account();
                    self.place = Place::Between;
                    return self.trailer();
                }
                TINFLStatus::HasMoreOutput => {
                    self.account();
                    return Ok(());
                }
                TINFLStatus::NeedsMoreInput if taken > 0 => {}
                _ if is_eof => return Err(ErrorKind::UnexpectedEof.into()),
                _ => return Err(damaged("it is not what deflate makes")),
            }
        }
    }

    /// Makes what was decoded last part of the window, and the window one at the front of its buffer.
    fn slide(&mut self) {
        let end = self.window.saturating_add(self.given);
        let window = end.min(WINDOW);
        self.buf.copy_within(end.saturating_sub(window)..end, 0);
        (self.window, self.given) = (window, 0);
    }

    fn last(&self) -> &[u8] {
        self.buf.get(self.window..self.window.saturating_add(self.given)).unwrap_or_default()
    }

    fn account(&mut self) {
        if let Some(mut sum) = self.sum.take() {
            sum.update(self.last());
            self.sum = Some(sum);
            self.size = self.size.saturating_add(len64(self.given));
        }
    }

    fn trailer(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        self.input.exact(&mut trailer, &mut Hasher::new())?;
        let Some(sum) = self.sum.take() else { return Ok(()) };
        let [s0, s1, s2, s3, n0, n1, n2, n3] = trailer;
        if !sum_holds(u32::from_le_bytes([s0, s1, s2, s3]), sum.finalize()) {
            return Err(damaged("the checksum of a member is wrong"));
        }
        // Modulo 2^32.
        let [z0, z1, z2, z3, ..] = self.size.to_le_bytes();
        if !sum_holds([n0, n1, n2, n3], [z0, z1, z2, z3]) {
            return Err(damaged("a member is not as long as it says"));
        }
        Ok(())
    }
}

pub(super) fn damaged(why: &str) -> io::Error {
    io::Error::other(SpoolFault::Damaged { what: "gzip", why: io::Error::other(why) })
}

/// The file, and how far it was used.
struct Input {
    from: BufReader<Reader>,
    at: u64,
}

impl Input {
    /// The bytes that come next; none at the end of the file.
    fn ahead(&mut self) -> io::Result<&[u8]> {
        self.from.fill_buf()
    }

    fn take(&mut self, len: usize) {
        self.from.consume(len);
        self.at = self.at.saturating_add(len64(len));
    }

    fn exact(&mut self, to: &mut [u8], sum: &mut Hasher) -> io::Result<()> {
        self.from.read_exact(to)?;
        self.at = self.at.saturating_add(len64(to.len()));
        sum.update(to);
        Ok(())
    }
}
