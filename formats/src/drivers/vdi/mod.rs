//! VDI, VirtualBox's disks, version 1.1. There is no specification; VirtualBox's own reader and QEMU's are the measure.
//!
//! Read and changed in place: dynamic, fixed and differencing disks, blocks of any size. Created: dynamic and fixed. A
//! VDI knows its parent by UUID only: the parent is looked for among the files beside the image, and must be as it was
//! when the difference was begun.
//!
//! Refused by name: version 0 (before 2007), "undo" images, unknown flags. Not made: differencing disks, of which
//! VirtualBox keeps a list elsewhere; their size cannot be changed.
//!
//! Where implementations differ: a block that was never written (0xFFFFFFFF) is the parent's, one that was discarded
//! (0xFFFFFFFE) is zeroes; QEMU reads zeroes for both, and takes blocks of 1 MiB only. VirtualBox puts a discarded
//! block's place to use by moving the last block there; here its place stays and becomes a hole of the file.
//!
//! * [`layout`]: the structure on disk; [`header`]: bytes to a checked value; [`parent`]: what lies below
//! * [`image`]: the block device; [`space`]: writing; [`compact`]: moving blocks; [`resize`]: another size
//! * [`check`]: inconsistencies; [`create`]: new images; [`fault`]: what can be wrong

mod check;
mod compact;
mod create;
mod fault;
mod header;
mod image;
mod layout;
mod parent;
mod resize;
mod space;

use std::sync::Arc;

use self::header::{Header, ImageType, header_bytes};
use self::image::Vdi;
use self::layout::{SIGNATURE, SIGNATURE_AT, VERSION};
use crate::block::{BlockSize, Disk};
use crate::convert::{DiskSink, Sink};
use crate::error::{Common, Result};
use crate::measure::Growth;
use crate::opening::Opening;
use crate::options::Opt;
use crate::registry::{Format, Guess, Head, Image, Plan, SubKind};

pub use self::fault::VdiFault;

/// The format's entry in the list.
pub(super) const FORMAT: VdiFormat = VdiFormat;

/// VirtualBox's disks.
pub(super) struct VdiFormat;

/// What a new image is filled in: finer than a block, as fresh blocks read as zeroes.
const SECTORS: BlockSize = match BlockSize::from_shift(9) {
    Some(size) => size,
    None => panic!("9 is below 63"),
};

impl Format for VdiFormat {
    fn name(&self) -> &'static str {
        "vdi"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["vdi"]
    }

    fn kinds(&self) -> &'static [SubKind] {
        const KINDS: &[SubKind] =
            &[SubKind::all("static"), SubKind::all("dynamic"), SubKind::write("differencing")];
        KINDS
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if head.at(SIGNATURE_AT).map(u32::from_le_bytes) != Some(SIGNATURE) {
            return Guess::No;
        }
        match head.at(SIGNATURE_AT.saturating_add(4)).map(u32::from_le_bytes) {
            Some(VERSION) if head.size >= header_bytes() => Guess::Strong,
            _ => Guess::Weak,
        }
    }

    fn open(&self, file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>> {
        let header = Header::read(&file)?;
        let parent = match header.image_type {
            ImageType::Differencing => Some(parent::open(&header, opening)?),
            ImageType::Dynamic | ImageType::Fixed => None,
        };
        Ok(Arc::new(Vdi::new(file, header, parent)))
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
