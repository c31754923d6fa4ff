//! Another parent: a new dynamic disk header at the end of the file, and one sector, the footer's copy at the beginning,
//! turns to it. The room of the old header stays unused.

use uuid::Uuid;

use super::fault::VhdFault;
use super::footer::{DiskType, time_stamp};
use super::header::Locator;
use super::layout::{FOOTER_BYTES, SECTOR, W2RU};
use super::parent::{PathText, unique_id};
use super::sparse::{SparseVhd, State};
use crate::block::Span;
use crate::error::{Common, Result};
use crate::mapped::{BlockMap, Place};
use crate::opening::Reference;
use crate::registry::Backing;
use crate::wire::len64;

impl SparseVhd {
    /// Refuses a parent that the disk cannot have.
    pub(super) fn may_have(&self, next: Option<&Backing>) -> Result<()> {
        if self.parent.is_none() {
            return Err(VhdFault::NoChild.into());
        }
        let Some(next) = next else { return Ok(()) };
        unique_id(next.image.as_ref()).ok_or(VhdFault::ParentFormat(next.image.facts().format))?;
        let (parent, size) = (next.image.size(), self.state()?.footer.size);
        if parent == size { Ok(()) } else { Err(VhdFault::ParentSize { parent, size }.into()) }
    }

    /// Names another parent, or none. The caller holds the gate.
    pub(super) fn turn_parent(&self, parent: Option<&Reference>, opened: Option<&Backing>) -> Result<()> {
        self.may_have(opened)?;
        self.prepare_to_write()?;
        self.sync()?;
        let State { footer, mut header } = self.state()?.clone();
        let len = len64(header.bytes().len());
        let path = parent.map(|p| PathText::of(&p.path)).transpose()?;
        let text = path.as_ref().map_or(0, |p| len64(p.text.len()));
        let room = text.next_multiple_of(SECTOR);
        if path.is_none() {
            self.clear_unset(footer.size)?;
        }
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        let space = space.as_mut().ok_or(Common::Poisoned)?;
        let at = self.take_space(space, footer.bytes(), 0, len.saturating_add(room))?;
        let disk_type = match &path {
            Some(path) => {
                let id = opened.and_then(|o| unique_id(o.image.as_ref())).unwrap_or(header.parent_id());
                let time = opened.map_or(header.parent_time(), |o| time_stamp(o.modified));
                let span = Span::new(at.saturating_add(len), text)?;
                self.file.write_at(span.start(), &path.text)?;
                header.name_parent(id, time, &path.name, &[(Locator { platform: W2RU, span }, room)]);
                DiskType::Differencing
            }
            None => {
                header.name_parent(Uuid::nil(), 0, "", &[]);
                DiskType::Dynamic
            }
        };
        self.file.write_at(at, header.bytes())?;
        self.file.flush()?;
        let footer = footer.moved(disk_type, at);
        self.file.write_at(0, footer.bytes())?;
        self.file.flush()?;
        self.file.write_at(space.end.saturating_sub(len64(FOOTER_BYTES)), footer.bytes())?;
        self.file.flush()
    }

    /// Zeroes what lies in blocks where the bitmap says that nothing is: without a parent, programs that do not look
    /// at bitmaps show it.
    fn clear_unset(&self, size: u64) -> Result<()> {
        let state = self.state()?;
        let mut rest = Span::first(size);
        while !rest.is_empty() {
            let (number, within) = state.header.block.split(rest.start());
            let mapping = self.lookup(rest)?;
            if mapping.place == Place::Absent
                && let Some(block) = self.block(&state.header, number)?
            {
                let there = block.data.skip(within).truncate(mapping.len);
                there
                    .intersect(Span::first(self.file.size()))
                    .map_or(Ok(()), |s| self.file.write_zeroes(s))?;
            }
            rest = rest.skip(mapping.len.max(1));
        }
        Ok(())
    }
}
