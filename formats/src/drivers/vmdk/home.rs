//! Where the descriptor is, and another one in its place.

use super::descriptor::Descriptor;
use super::fault::VmdkFault;
use super::image::State;
use crate::block::{Disk, Span};
use crate::convert::Beside;
use crate::error::{Common, Result};
use crate::wire::{bytes, index, len64};

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
