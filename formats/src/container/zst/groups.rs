//! Frames that are decoded together: each start costs a decoder, so short frames are put together.

use std::io::{BufReader, Read};

use zstd::stream::read::Decoder;

use super::super::Expansion;
use super::super::segments::{Segments, Source, UNCHECKED_MAX, Zeroes};
use super::super::spool::{decode_error, fill};
use super::frames::{self, Frame};
use super::seek_table;
use crate::block::{Disk, Reader, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::{index, len64};

/// Bytes of content, or of the file where nobody knows the former, that are put together.
const TOGETHER: u64 = MIB;
/// Groups of a file: 32 MiB of memory, and 1 TiB of content at least.
const GROUPS_MAX: usize = 1 << 20;
/// Bytes read at once from below.
const INPUT: u64 = 256 << 10;
/// Bytes that are decoded in one go.
const PIECE: usize = 256 << 10;
/// Bytes of memory of a decoder besides the window.
const MEMORY: u64 = MIB;

/// Frames in a row, skippable ones between them.
#[derive(Clone, Copy, Debug)]
struct Group {
    span: Span,
    /// The largest window among them.
    window: u64,
}

/// The groups of a file.
#[derive(Debug)]
pub(super) struct Groups {
    file: Disk,
    groups: Vec<Group>,
}

/// Opens `file`, with one way through it if need be.
pub(super) fn open(file: &Disk, expansion: &mut Expansion) -> Result<Segments<Groups>> {
    let listed = seek_table::read(file)?;
    let found = match listed {
        Some(frames) => put_together(frames.into_iter().map(Ok))?,
        None => put_together(Walk { file, at: Some(0) })?,
    };
    if let Some(Listed { groups, starts, size }) = found {
        expansion.spend(size, "zstd")?;
        return Ok(Segments::unchecked(Groups { file: file.clone(), groups }, starts, size));
    }
    scan(file, expansion)
}

/// The frames of a file.
struct Walk<'a> {
    file: &'a Disk,
    at: Option<u64>,
}

impl Iterator for Walk<'_> {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        let next = frames::next(self.file, self.at?).transpose();
        self.at = match &next {
            Some(Ok(frame)) => Some(frame.span.end()),
            _ => None,
        };
        next
    }
}

/// Groups whose sizes are known.
#[derive(Default)]
struct Listed {
    groups: Vec<Group>,
    starts: Vec<u64>,
    size: u64,
}

/// Groups of frames that say what they expand to; `None` if one does not, or is too long to be decoded in one go.
fn put_together(frames: impl Iterator<Item = Result<Frame>>) -> Result<Option<Listed>> {
    let mut all = Listed::default();
    for frame in frames {
        let frame = frame?;
        let content = frame.header.content.filter(|c| *c <= UNCHECKED_MAX);
        let (Some(content), true) = (content, all.groups.len() < GROUPS_MAX) else { return Ok(None) };
        let so_far = all.starts.last().map(|start| all.size.saturating_sub(*start));
        let fits = |len: u64| len < TOGETHER && len.saturating_add(content) <= UNCHECKED_MAX;
        let Some(size) = all.size.checked_add(content) else { return Ok(None) };
        match all.groups.last_mut() {
            Some(last) if content == 0 || so_far.is_some_and(fits) => last.add(&frame)?,
            _ => {
                all.starts.push(all.size);
                all.groups.push(Group { span: frame.span, window: frame.header.window });
            }
        }
        all.size = size;
    }
    Ok(Some(all))
}

impl Group {
    fn add(&mut self, next: &Frame) -> Result<()> {
        let start = self.span.start();
        self.span = Span::new(start, next.span.end().saturating_sub(start))?;
        self.window = self.window.max(next.header.window);
        Ok(())
    }

    fn decoder(&self, file: &Disk) -> Result<Box<dyn Read + Send>> {
        let input = index(self.span.len().clamp(1, INPUT))?;
        let input = BufReader::with_capacity(input, Reader::new(file.slice(self.span)?));
        Ok(Box::new(Decoder::with_buffer(input).map_err(|e| decode_error("zstd", e))?))
    }
}

/// Goes through `file` once.
fn scan(file: &Disk, expansion: &mut Expansion) -> Result<Segments<Groups>> {
    let (mut groups, mut starts) = (Vec::<Group>::new(), Vec::new());
    let mut zeroes = Zeroes::new();
    let mut together = TOGETHER;
    let mut buf = vec![0; PIECE];
    let mut frames = Walk { file, at: Some(0) }.peekable();
    while let Some(first) = frames.next().transpose()? {
        let mut group = Group { span: first.span, window: first.header.window };
        while group.span.len() < together {
            match frames.next_if(|f| f.is_ok()).transpose()? {
                Some(frame) => group.add(&frame)?,
                None => break,
            }
        }
        starts.push(zeroes.seen());
        groups.push(group);
        let mut from = group.decoder(file)?;
        loop {
            let len = fill(&mut from, &mut buf).map_err(|e| decode_error("zstd", e))?;
            expansion.spend(len64(len), "zstd")?;
            zeroes.add(buf.get(..len).unwrap_or_default());
            if len < PIECE {
                break;
            }
        }
        if groups.len() > GROUPS_MAX {
            together = together.saturating_mul(2);
            (groups, starts) = thin(&groups, &starts)?;
        }
    }
    Ok(Segments::checked(Groups { file: file.clone(), groups }, starts, zeroes))
}

/// Two of them in one.
fn thin(groups: &[Group], starts: &[u64]) -> Result<(Vec<Group>, Vec<u64>)> {
    let starts = starts.iter().step_by(2).copied().collect();
    let both = groups.chunks(2).map(|two| match two {
        [a, b] => {
            let len = b.span.end().saturating_sub(a.span.start());
            Ok(Group { span: Span::new(a.span.start(), len)?, window: a.window.max(b.window) })
        }
        _ => two.first().copied().ok_or_else(|| Common::Index(0).into()),
    });
    Ok((both.collect::<Result<_>>()?, starts))
}

impl Source for Groups {
    fn what(&self) -> &'static str {
        "zstd"
    }

    fn start(&self, number: usize) -> Result<Box<dyn Read + Send>> {
        self.groups.get(number).ok_or(Common::Index(len64(number)))?.decoder(&self.file)
    }

    fn memory(&self, number: usize) -> u64 {
        self.groups.get(number).map_or(0, |g| g.window).saturating_add(MEMORY)
    }
}
