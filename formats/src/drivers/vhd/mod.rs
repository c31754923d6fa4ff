//! VHD, the disks of Virtual PC, older Hyper-V and Azure: "Virtual Hard Disk Image Format Specification" (Microsoft,
//! version 1.0, 2006). QEMU calls it `vpc`.
//!
//! Read, changed in place and created: fixed, dynamic and differencing disks, blocks of any size, bitmaps of sectors
//! honoured. A parent is found by the relative path, the URL or the bare name that the child records, and must have
//! the unique ID that the child expects. Read: footers of 511 bytes, which Virtual PC wrote before 2004.
//!
//! Refused by name: parents that are named by an absolute path of Windows; other types of disk and other versions.
//! Not supported: another size for a differencing disk, whose size is its parent's.
//!
//! The size is what QEMU takes: cylinders, heads and sectors where the creator is `vpc ` or `qemu` and they are not
//! the largest possible; else `current_size`. New images are rounded up to a size that both agree on, as
//! `qemu-img` does; `force_size=on` keeps the size and writes the largest geometry.
//!
//! Where implementations differ: QEMU does not look at bitmaps when it reads, here a sector whose bit is not set
//! reads as zeroes or as the parent, as the specification has it. QEMU takes a footer at the beginning of the file
//! for the image's, also where a fixed disk's footer ends the file: a guest could make its disk another one. QEMU
//! reads a differencing disk as if it had no parent. `current_size` of a locator's room is in sectors by the text
//! and in bytes by Microsoft's practice: it is not used here, and written in bytes.
//!
//! * [`layout`]: structures on disk; [`footer`], [`header`], [`geometry`]: bytes to checked values
//! * [`fixed`]: disks without a table; [`sparse`]: those with one; [`parent`]: what lies below
//! * [`space`]: writing; [`resize`]: another size; [`rebase`]: another parent; [`check`]: inconsistencies; [`create`]: new images

mod check;
mod create;
mod facts;
mod fault;
mod fixed;
mod footer;
mod geometry;
mod header;
mod layout;
mod parent;
mod rebase;
mod resize;
mod space;
mod sparse;

use std::sync::Arc;

use self::fixed::FixedVhd;
use self::footer::{DiskType, Footer, Footers};
use self::header::Header;
use self::layout::{FOOTER_BYTES, FOOTER_COOKIE, SECTOR};
use self::sparse::{SECTORS, SparseVhd};
use crate::block::Disk;
use crate::convert::{DiskSink, Sink};
use crate::error::{Common, Result};
use crate::measure::Growth;
use crate::opening::Opening;
use crate::options::Opt;
use crate::registry::{Format, Guess, Head, Image, Plan, SubKind};
use crate::wire::len64;

pub use self::fault::VhdFault;

/// The format's entry in the list.
pub(super) const FORMAT: Vhd = Vhd;

/// Virtual PC's disks.
pub(super) struct Vhd;

impl Format for Vhd {
    fn name(&self) -> &'static str {
        "vhd"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["vpc"]
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["vhd", "vpc"]
    }

    fn kinds(&self) -> &'static [SubKind] {
        const KINDS: &[SubKind] =
            &[SubKind::all("fixed"), SubKind::all("dynamic"), SubKind::all("differencing")];
        KINDS
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        let footer_len = len64(FOOTER_BYTES);
        let last = if head.size.rem_euclid(SECTOR) == footer_len.saturating_sub(1) {
            footer_len.saturating_sub(1)
        } else {
            footer_len
        };
        let guess = |cookie: Option<[u8; 8]>, footer: Option<[u8; FOOTER_BYTES]>| match cookie {
            Some(FOOTER_COOKIE) if footer.is_some_and(|f| Footer::parse(&f).is_ok()) => Guess::Strong,
            Some(FOOTER_COOKIE) => Guess::Weak,
            _ => Guess::No,
        };
        guess(head.at(0), head.at(0)).max(guess(head.from_end(last), head.from_end(last)))
    }

    fn open(&self, file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>> {
        let footers = Footers::read(&file)?;
        let footer_at = footers.last_at;
        let footer = footers.choose()?;
        if footer.disk_type == DiskType::Fixed {
            return Ok(Arc::new(FixedVhd::new(file, footer, footer_at)?));
        }
        let header = Header::read(&file, &footer)?;
        if footer.disk_type == DiskType::Dynamic {
            return Ok(Arc::new(SparseVhd::new(file, footer, header, None, None)));
        }
        let reference = parent::reference(&file, &header)?;
        let parent = parent::open(&reference, header.parent_id(), opening)?;
        Ok(Arc::new(SparseVhd::new(file, footer, header, Some(parent), Some(reference))))
    }

    fn create(&self, file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
        create::create(file, plan)
    }

    fn sink(&self, file: Disk, plan: &Plan) -> Result<Box<dyn Sink>> {
        if plan.compress {
            return Err(Common::Unsupported { what: "compression (-c)", by: self.name().into() }.into());
        }
        Ok(Box::new(DiskSink::with_grain(self.create(file, plan)?, SECTORS)))
    }

    fn growth(&self, plan: &Plan) -> Result<Option<Growth>> {
        create::growth(plan).map(Some)
    }

    fn options(&self) -> &'static [Opt] {
        create::OPTIONS
    }
}
