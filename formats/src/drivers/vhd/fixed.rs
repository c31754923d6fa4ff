//! Fixed disks: the file is the disk, and a footer behind it.

use std::sync::{RwLock, RwLockReadGuard};

use super::facts;
use super::fault::VhdFault;
use super::footer::{Footer, Footers, SIZE_MAX};
use super::layout::SECTOR;
use crate::block::{BlockDevice, Caps, Disk, Run, Span};
use crate::check::{Finding, Report, Severity};
use crate::error::{Common, Result};
use crate::map::Location;
use crate::mapped::locate_plain;
use crate::registry::{Facts, Image};
use crate::wire::len64;

/// A fixed VHD.
#[derive(Debug)]
pub(super) struct FixedVhd {
    file: Disk,
    footer: RwLock<Footer>,
}

impl FixedVhd {
    /// The disk in `file`, whose footer was found at `footer_at`.
    pub(super) fn new(file: Disk, footer: Footer, footer_at: u64) -> Result<Self> {
        if footer.size > footer_at {
            return Err(VhdFault::Truncated { size: footer.size, there: footer_at }.into());
        }
        Ok(Self { file, footer: RwLock::new(footer) })
    }

    fn footer(&self) -> Result<RwLockReadGuard<'_, Footer>> {
        self.footer.read().map_err(|_| Common::Poisoned.into())
    }
}

impl BlockDevice for FixedVhd {
    fn size(&self) -> u64 {
        self.footer().map_or(0, |f| f.size)
    }

    fn caps(&self) -> Caps {
        self.file.caps()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_at(at, buf)
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.file.write_at(at, data)
    }

    fn place(&self, span: Span) -> Option<Span> {
        self.file.place(span)
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        self.file.write_zeroes(span)
    }

    fn discard(&self, span: Span) -> Result<()> {
        self.file.discard(span)
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        self.file.first_run(span)
    }

    /// The new footer is there before the old one goes, so that the file always ends with one when it is whole.
    fn resize(&self, size: u64) -> Result<()> {
        let size = size.next_multiple_of(SECTOR);
        if size > SIZE_MAX {
            return Err(VhdFault::Size { bytes: size, max: SIZE_MAX }.into());
        }
        let mut footer = self.footer.write().map_err(|_| Common::Poisoned)?;
        let new = footer.resized(size);
        let end = size.saturating_add(len64(new.bytes().len()));
        let old_size = footer.size;
        if end > self.file.size() {
            self.file.resize(end)?;
        }
        self.file.write_at(size, new.bytes())?;
        self.file.flush()?;
        if size > old_size {
            // The old footer, and whatever else was behind the old end.
            self.file.write_zeroes(Span::new(old_size, size.saturating_sub(old_size))?)?;
        }
        self.file.resize(end)?;
        *footer = new;
        self.file.flush()
    }
}

impl Image for FixedVhd {
    /// The footer is hardly ever changed, and what lies before it is the disk.
    fn heads(&self) -> Vec<Span> {
        Vec::new()
    }

    fn locate(&self, span: Span) -> Result<Location> {
        locate_plain(&self.file, span.start(), span.len())
    }

    fn facts(&self) -> Facts {
        self.footer().map_or_else(|_| Facts::default(), |footer| facts::of_footer(&footer))
    }

    fn check(&self, report: &mut Report) -> Result<()> {
        let footer = self.footer()?;
        let footers = Footers::read(&self.file)?;
        if footers.last.is_err() || footers.last_at != footer.current_size() {
            let (at, expected) = (footers.last_at, footer.current_size());
            let what = format!("the footer is at {at:#x}, a disk of this size has it at {expected:#x}");
            let repaired = false;
            report.findings.push(Finding { count: 1, what, severity: Severity::Corruption, repaired });
        }
        Ok(())
    }
}
