//! qcow2, versions 2 and 3, as `docs/interop/qcow2.rst` of QEMU 10 describes it.
//!
//! Read: every cluster size and refcount width, zero clusters, extended L2, clusters compressed with zlib or zstd,
//! backing files, external data files, internal snapshots. Bitmaps are listed.
//!
//! Written: atomic edits on all of these but external data files; new images, compressed or not; snapshots; another
//! backing file; `check` mends counts and marks.
//!
//! Refused by name: encryption (AES, LUKS), incompatible features that nobody has told racker about.
//!
//! Where implementations differ: QEMU reads zeroes from a data cluster that lies behind the end of the file, and
//! calls it a corruption only in `check`; here reading it fails, because a file that was cut short would otherwise
//! be copied as good data.
//!
//! * [`layout`]: structures on disk; [`header`], [`extensions`], [`entry`]: bytes to checked values
//! * [`tables`]: lookup; [`pack`]: compressed clusters; [`snapshot`], [`bitmap`]: lists, [`bitmap_change`]
//! * [`refcount`], [`alloc`], [`owners`]: who uses what; [`edit`], [`rewrite`], [`l2`], [`land`]: atomic edits
//! * [`census`], [`tally`], [`check`], [`findings`], [`renew`]: counting anew; [`create`], [`stream`]: new images
//! * [`history`], [`view`]: snapshots made, gone back to, deleted, read; [`area`]: another backing file
//! * [`image`]: the block device; [`facts`]: what `info` prints; [`fault`]: what can be wrong

mod ahead;
mod alloc;
mod area;
mod bitmap;
mod bitmap_change;
mod census;
mod check;
mod create;
mod edit;
mod entry;
mod extensions;
mod facts;
mod fault;
mod findings;
mod flush;
mod header;
mod history;
mod image;
mod l2;
mod land;
mod layout;
mod live;
mod live_pack;
mod owners;
mod pack;
mod refcount;
mod renew;
mod resize;
mod rewrite;
mod snapshot;
mod stream;
mod tables;
mod tally;
mod view;

use std::sync::Arc;

use self::create::Design;
use self::stream::Stream;
use crate::block::Disk;
use crate::convert::{DiskSink, Sink};
use crate::error::Result;
use crate::opening::Opening;
use crate::options::Opt;
use crate::registry::{BitmapFacts, Format, Guess, Head, Image, Plan, SubKind};

/// The format's entry in the list.
pub(super) const FORMAT: Qcow2Format = Qcow2Format;

/// QEMU's copy-on-write images.
pub(super) struct Qcow2Format;

impl Format for Qcow2Format {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["qcow2"]
    }

    fn kinds(&self) -> &'static [SubKind] {
        const KINDS: &[SubKind] = &[
            SubKind::all("versions 2 and 3"),
            SubKind::all("compressed clusters: zlib, zstd"),
            SubKind::all("extended L2 entries"),
            SubKind::all("backing files"),
            SubKind::all("external data files"),
        ];
        KINDS
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if head.at::<4>(0) != Some(layout::MAGIC) {
            return Guess::No;
        }
        // Version 1 is another format of the same family: it is refused by name, not read as raw.
        match head.at::<4>(4).map(u32::from_be_bytes) {
            Some(1..=3) => Guess::Strong,
            _ => Guess::Weak,
        }
    }

    fn open(&self, file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>> {
        Ok(Arc::new(image::Qcow2::open(file, opening)?))
    }

    fn create(&self, file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
        let mut new = Stream::new(&file, plan.data_file.as_ref(), Design::new(plan)?, false)?;
        new.preallocate()?;
        new.complete()?;
        let parent = plan.backing.as_ref().map(|backing| Arc::clone(&backing.image));
        let data_file = plan.options.text("data_file").and(plan.data_file.clone());
        Ok(Arc::new(image::Qcow2::created(file, data_file, parent)?))
    }

    fn sink(&self, file: Disk, plan: &Plan) -> Result<Box<dyn Sink>> {
        let design = Design::new(plan)?;
        if design.preallocation != create::Preallocation::Off {
            // What is written later goes to the places that are there.
            return Ok(Box::new(DiskSink::new(self.create(file, plan)?)));
        }
        Ok(Box::new(Stream::new(&file, plan.data_file.as_ref(), design, plan.compress)?))
    }

    fn full_size(&self, plan: &Plan) -> Result<Option<u64>> {
        let design = Design::new(plan)?;
        Ok(design.data_file.is_none().then(|| design.full_size()))
    }

    fn bitmaps_size(&self, plan: &Plan, bitmaps: &[BitmapFacts]) -> Result<Option<u64>> {
        let design = Design::new(plan)?;
        Ok((design.version > 2).then(|| bitmap::size(design.geometry.cluster, design.size, bitmaps)))
    }

    fn options(&self) -> &'static [Opt] {
        create::OPTIONS
    }
}
