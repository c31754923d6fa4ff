//! Where the descriptor is, and another one in its place.

use super::create::extent_name;
use super::descriptor::{Descriptor, NO_PARENT, reparented};
use super::fault::VmdkFault;
use super::image::State;
use crate::block::{Disk, Span};
use crate::convert::Beside;
use crate::error::{Common, Result};
use crate::wire::{bytes, index, len64};

/// What is written as a whole.
const SECTOR: usize = 512;
/// Bytes that an embedded descriptor keeps free: a few digits more are to come.
const SPARE: u64 = 40;

/// Where the descriptor is.
#[derive(Clone, Debug)]
pub(super) struct Home {
    pub(super) file: Disk,
    /// Its place in a sparse extent; none if it is the file.
    pub(super) embedded: Option<Span>,
    /// Where further extents are made.
    pub(super) beside: Option<Beside>,
}

impl Home {
    /// Byte offset of the descriptor in its file.
    pub(super) fn start(&self) -> u64 {
        self.embedded.map_or(0, |e| e.start())
    }

    /// The text as it is now: the content ID may have changed since `descriptor` was read.
    pub(super) fn text(&self, descriptor: &Descriptor) -> Result<String> {
        let len = len64(descriptor.text.len());
        let raw = bytes(&self.file, self.start(), len, len, "descriptor")?;
        Ok(String::from_utf8(raw).map_err(|_| VmdkFault::Encoding)?)
    }

    /// Whether the descriptor's place takes the text.
    pub(super) fn has_room(&self, text: &str) -> Result<()> {
        match self.embedded {
            Some(span) if len64(text.len()).saturating_add(SPARE) > span.len() => {
                Err(VmdkFault::Descriptor { line: 1, why: "there is no room for a longer one" }.into())
            }
            _ => Ok(()),
        }
    }

    /// Writes bytes over those at `at` of the descriptor, for good.
    pub(super) fn overwrite(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(self.start().saturating_add(at), bytes)?;
        self.file.flush()
    }

    /// Turns from one text to another, whole or not at all where it can be: by one sector if all that differs is in
    /// one; otherwise by a first sector that says it all but for the disk data base, which comes back behind it.
    fn turn(&self, old: &str, new: &str) -> Result<()> {
        self.has_room(new)?;
        let room = old.len().max(new.len()).next_multiple_of(SECTOR);
        let padded = |text: &str| {
            let mut raw = text.as_bytes().to_vec();
            raw.resize(room, 0);
            raw
        };
        let (before, after) = (padded(old), padded(new));
        let pairs = before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate();
        let changed: Vec<_> = pairs.filter(|(_, (a, b))| a != b).map(|(i, (_, b))| (i, b)).collect();
        let short: String = new.split_inclusive('\n').filter(|l| !l.starts_with("ddb.")).collect();
        let end = len64(room).saturating_add(self.start());
        if end > self.file.size() {
            self.file.resize(end)?;
        }
        let put = |number: usize, sector: &[u8]| {
            let at = len64(number.saturating_mul(SECTOR)).saturating_add(self.start());
            self.file.write_at(at, sector)?;
            self.file.flush()
        };
        if let [(_, _), _, ..] = changed.as_slice()
            && short.len() <= SECTOR
        {
            let mut first = short.into_bytes();
            first.resize(SECTOR, 0);
            put(0, &first)?;
        }
        for (number, sector) in changed.into_iter().filter(|(number, _)| *number > 0) {
            put(number, sector)?;
        }
        // Until now the short one held.
        put(0, after.get(..SECTOR).ok_or(Common::Index(0))?)?;
        if self.embedded.is_none() {
            self.file.resize(len64(new.len()))?;
        }
        self.file.flush()
    }

    /// Writes a whole text over one of `old` bytes, for good.
    fn replace(&self, old: usize, text: &str) -> Result<()> {
        self.has_room(text)?;
        let file = &self.file;
        let mut raw = text.as_bytes().to_vec();
        match self.embedded {
            Some(span) => {
                raw.resize(raw.len().max(old), 0);
                file.write_at(span.start(), &raw)?;
            }
            None => {
                if len64(raw.len()) > file.size() {
                    file.resize(len64(raw.len()))?;
                }
                file.write_at(0, &raw)?;
                file.resize(len64(raw.len()))?;
            }
        }
        file.flush()
    }
}

impl State {
    /// Names another parent, or none; without `cid` the parent's content ID stays.
    pub(super) fn turn_parent(&self, name: Option<&str>, cid: Option<u32>) -> Result<()> {
        let descriptor = self.descriptor.as_ref().ok_or(VmdkFault::Missing("descriptor"))?;
        let old = descriptor.parent.as_ref().ok_or(VmdkFault::Missing("parentCID"))?;
        let text = self.home.text(descriptor)?;
        let name = name.map(extent_name);
        let cid = if name.is_none() { NO_PARENT } else { cid.unwrap_or(old.cid) };
        let new = reparented(&text, cid, name.as_deref());
        Descriptor::parse(new.as_bytes())?;
        self.home.turn(&text, &new)
    }

    /// Writes the descriptor, and turns to it.
    pub(super) fn turn_descriptor(&mut self, text: &str) -> Result<()> {
        let old = self.descriptor.as_ref().map_or(0, |d| d.text.len());
        self.home.replace(old, text)?;
        self.descriptor = Some(Descriptor::parse(text.as_bytes())?);
        Ok(())
    }

    /// The descriptor's text with another content ID of the parent in all its eight digits, and where those begin:
    /// QEMU leaves zeroes before them out.
    pub(super) fn with_parent_cid(&self, cid: u32) -> Result<(u64, String)> {
        let descriptor = self.descriptor.as_ref().ok_or(VmdkFault::Missing("descriptor"))?;
        let parent = descriptor.parent.as_ref().and_then(|p| p.cid_at);
        let (at, len) = parent.ok_or(VmdkFault::Missing("parentCID"))?;
        let text = self.home.text(descriptor)?;
        let start = index(at)?;
        let (before, rest) = text.split_at_checked(start).ok_or(Common::Index(at))?;
        let behind = rest.get(len..).ok_or(Common::Index(at))?;
        Ok((at, format!("{before}{cid:08x}{behind}")))
    }
}
