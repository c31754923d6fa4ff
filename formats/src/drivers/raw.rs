//! Raw: the file is the disk.

use std::fs::File;
use std::sync::Arc;

use crate::block::{BlockDevice, Caps, Disk, Run, Span};
use crate::error::Result;
use crate::map::Location;
use crate::mapped::locate_plain;
use crate::measure::Growth;
use crate::opening::Opening;
use crate::options::{Opt, OptKind};
use crate::registry::{Facts, Format, Guess, Head, Image, Plan, SubKind};

/// The format's entry in the list.
pub(super) const FORMAT: Raw = Raw;

const OPTIONS: &[Opt] = &[Opt {
    name: "preallocation",
    help: "off: space is taken as it is written (default); falloc: set aside; full: written",
    kind: OptKind::Choice(&["off", "falloc", "full"]),
}];

/// Raw disks.
pub(super) struct Raw;

impl Format for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["raw", "img"]
    }

    fn kinds(&self) -> &'static [SubKind] {
        const KINDS: &[SubKind] = &[SubKind::all("plain bytes")];
        KINDS
    }

    fn probe(&self, _: &Head<'_>) -> Guess {
        Guess::Weak
    }

    fn open(&self, file: Disk, _: &mut Opening) -> Result<Arc<dyn Image>> {
        Ok(Arc::new(RawImage { file }))
    }

    fn growth(&self, plan: &Plan) -> Result<Option<Growth>> {
        Ok(Some(Growth::none(plan.size)))
    }

    fn streams(&self, _: &Plan) -> bool {
        true
    }

    fn options(&self) -> &'static [Opt] {
        OPTIONS
    }

    fn create(&self, file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
        file.resize(plan.size)?;
        match plan.options.text("preallocation") {
            Some("falloc") if file.occupy(Span::first(plan.size))? => {}
            Some("falloc" | "full") => file.store_zeroes(Span::first(plan.size))?,
            _ => {}
        }
        Ok(Arc::new(RawImage { file }))
    }
}

#[derive(Debug)]
struct RawImage {
    file: Disk,
}

impl Image for RawImage {
    fn facts(&self) -> Facts {
        Facts { format: "raw", virtual_size: self.file.size(), ..Facts::default() }
    }

    fn heads(&self) -> Vec<Span> {
        Vec::new()
    }

    /// Holes are the disk's own.
    fn locate(&self, span: Span) -> Result<Location> {
        let location = locate_plain(&self.file, span.start(), span.len())?;
        Ok(Location { hollow: false, ..location })
    }
}

impl BlockDevice for RawImage {
    fn size(&self) -> u64 {
        self.file.size()
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

    fn claim(&self, span: Span) -> Result<bool> {
        self.file.claim(span)
    }

    fn write_fresh(&self, at: u64, data: &[u8]) -> Result<()> {
        self.file.write_fresh(at, data)
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

    fn occupy(&self, span: Span) -> Result<bool> {
        self.file.occupy(span)
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        self.file.first_run(span)
    }

    fn at_hand(&self, span: Span) -> bool {
        self.file.at_hand(span)
    }

    fn pages(&self, span: Span) -> Option<(&File, u64)> {
        self.file.pages(span)
    }

    fn host_file(&self) -> Option<&File> {
        self.file.host_file()
    }

    fn share(&self, file: &File) -> Result<bool> {
        self.file.share_file(file)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.file.resize(size)
    }
}
