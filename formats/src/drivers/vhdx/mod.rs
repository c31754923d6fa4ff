//! VHDX, the disks of Hyper-V: \[MS-VHDX\] "Virtual Hard Disk v2 (VHDX) File Format", version 6.0, format 1.
//!
//! Read, changed in place and created: dynamic, fixed and differencing disks, blocks of 1 to 256 MiB, logical sectors
//! of 512 and 4096 bytes. A log that was left is replayed when the image is opened: in memory when it is opened for
//! reading, for good when for writing. Every change of BAT, sector bitmaps, metadata and region tables goes through
//! the log; an atomic edit is one sequence of it.
//!
//! A parent is found by `relative_path`, and its `DataWriteGuid` must be what the child expects. Refused by name:
//! parents that are named by a volume or a drive only, parents that are no VHDX, unknown regions and items that an
//! image declares to be required, log versions but 0.
//!
//! Where implementations differ: QEMU reads no differencing disks and no sectors of 4096 bytes, looks at the first
//! region table only, and takes a sequence that fills the log to the last page for none. 7-Zip reads no image whose
//! log is not empty, none of whose headers is damaged, and none whose size is an odd number of sectors. A block that
//! is "not present", "undefined" or "unmapped" may read as anything; here it reads as zeroes, or as the parent in the
//! first case. After a crash in the middle of an edit that was too large for the log, whoever replays it keeps the
//! larger log of that edit.
//!
//! * [`layout`]: structures on disk; [`header`], [`regions`], [`metadata`], [`bat`]: bytes to checked values
//! * [`log`](mod@log): replay; [`append`]: writing entries; [`journal`]: changes that land whole
//! * [`image`]: the block device; [`space`]: writing; [`edit`]: atomic edits; [`resize`]: another size
//! * [`parent`]: what lies below; [`rebase`]: another parent; [`check`]: inconsistencies; [`create`]: new images; [`fault`]: what can be wrong

mod append;
mod bat;
mod check;
mod create;
mod edit;
mod fault;
mod header;
mod image;
mod journal;
mod layout;
mod log;
mod metadata;
mod parent;
mod rebase;
mod regions;
mod resize;
mod space;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use self::header::Headers;
use self::image::{State, Vhdx};
use self::layout::{FILE_SIGNATURE, HEADER, HEADERS_AT};
use self::metadata::Metadata;
use self::regions::Regions;
use crate::block::{BlockSize, Disk, Staged};
use crate::convert::{DiskSink, Sink};
use crate::error::{Common, Result, Within};
use crate::measure::Growth;
use crate::opening::Opening;
use crate::options::Opt;
use crate::registry::{Format, Guess, Head, Image, Plan, SubKind};
use crate::wire::index;

pub use self::fault::VhdxFault;

/// The format's entry in the list.
pub(super) const FORMAT: VhdxFormat = VhdxFormat;

/// Hyper-V's disks.
pub(super) struct VhdxFormat;

/// Sectors of new images; also what a new image is filled in: finer than a block, as fresh blocks read as zeroes.
const SECTOR: BlockSize = match BlockSize::from_shift(9) {
    Some(size) => size,
    None => panic!("9 is below 63"),
};

impl Format for VhdxFormat {
    fn name(&self) -> &'static str {
        "vhdx"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["vhdx", "avhdx"]
    }

    fn kinds(&self) -> &'static [SubKind] {
        const KINDS: &[SubKind] =
            &[SubKind::all("fixed"), SubKind::all("dynamic"), SubKind::all("differencing")];
        KINDS
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if head.at(0) != Some(FILE_SIGNATURE) {
            return Guess::No;
        }
        let first = HEADERS_AT.first().and_then(|at| index(*at).ok()).and_then(|at| head.at(at));
        if first == Some(HEADER) { Guess::Strong } else { Guess::Weak }
    }

    fn open(&self, file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>> {
        let mut headers = Headers::read(&file)?;
        let (file, dirty) = replayed(file, &mut headers).within(|| "log")?;
        let regions = Regions::read(&file)?;
        let metadata = Metadata::read(&file, regions.metadata)?;
        let parent = match &metadata.parent {
            Some(pairs) => Some(parent::open(pairs, opening)?),
            None => None,
        };
        let image = Vhdx::new(file, headers, State::new(metadata, regions)?, parent);
        image.marks.dirty.store(dirty, Ordering::Relaxed);
        Ok(Arc::new(image))
    }

    fn create(&self, file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
        create::create(file, plan)
    }

    fn sink(&self, file: Disk, plan: &Plan) -> Result<Box<dyn Sink>> {
        if plan.compress {
            return Err(Common::Unsupported { what: "compression (-c)", by: self.name().into() }.into());
        }
        Ok(Box::new(DiskSink::with_grain(self.create(file, plan)?, SECTOR)))
    }

    fn growth(&self, plan: &Plan) -> Result<Option<Growth>> {
        create::growth(plan).map(Some)
    }

    fn options(&self) -> &'static [Opt] {
        create::OPTIONS
    }
}

/// The file with its log replayed, and whether there was anything to replay.
fn replayed(file: Disk, headers: &mut Headers) -> Result<(Disk, bool)> {
    let header = &headers.current;
    if header.log_id.is_nil() || header.log.is_empty() {
        return Ok((file, false));
    }
    let Some(sequence) = log::find(&file, header.log, header.log_id)? else { return Ok((file, false)) };
    if !file.writable() {
        let over = Disk::new(Staged::new(file.clone()));
        sequence.replay(&over, true)?;
        return Ok((over.read_only(), true));
    }
    // 2.2.2: the file changes from here on.
    headers.turn(&file, |header| header.file_write = Uuid::new_v4())?;
    sequence.replay(&file, false)?;
    file.flush()?;
    headers.turn(&file, |header| header.log_id = Uuid::nil())?;
    headers.repeat(&file)?;
    Ok((file, true))
}
