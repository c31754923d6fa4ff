//! Where a copy goes: a new image, an image that is there already, standard output.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use racker_formats::block::{Disk, Span};
use racker_formats::convert::{self, Base, Copied, ExistingSink, Options, Pipe, Settle, Sink, Throttle};
use racker_formats::error::{Error, Kind};
use racker_formats::open::OpenOptions;
use racker_formats::opening::Policy;
use racker_formats::options::Values;
use racker_formats::registry::{Format, Image, Plan, by_name};

use super::super::bitmap;
use super::NewImage;
use super::source::{Named, Over};
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;
use crate::remote::{is_remote, new_file, open};
use crate::target::HowArgs;
use crate::typed;

/// Places that could not be read and are told of one by one.
const TOLD_MAX: u64 = 100;

/// One copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy<'a> {
    pub(super) disk: &'a Disk,
    pub(super) new: &'a NewImage,
    /// The image whose bitmaps go with it.
    pub(super) bitmaps: Option<&'a Arc<dyn Image>>,
    pub(super) skip_broken_bitmaps: bool,
    pub(super) salvage: bool,
    /// Bytes a second; 0 is no limit.
    pub(super) rate: u64,
    pub(super) verify: bool,
    /// New images are on stable storage before they appear.
    pub(super) durable: bool,
    pub(super) progress: ProgressArgs,
}

/// What was typed about a new image.
struct Wanted {
    format: &'static dyn Format,
    plan: Plan,
    backing: Option<String>,
    backing_format: Option<String>,
}

impl Copy<'_> {
    fn wanted(&self, format: &str) -> Outcome<Wanted> {
        let format = by_name(format)?;
        let mut pairs = typed::pairs(&self.new.options)?;
        let backing = typed::take(&mut pairs, "backing_file");
        let backing_format = typed::take(&mut pairs, "backing_fmt");
        if typed::take(&mut pairs, "size").is_some() {
            self.progress.note("-o size is left out: the new disk is as large as the source");
        }
        let pairs = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let options = Values::parse(format.name(), format.options(), pairs)?;
        let compress = self.new.compress;
        if compress && options.text("preallocation").is_some_and(|how| how != "off") {
            let failure = Failure::new("compressed data (-c) and preallocation rule each other out");
            return Err(failure.hint("leave one of them out"));
        }
        let plan = Plan { size: self.disk.size(), options, compress, ..Plan::default() };
        Ok(Wanted { format, plan, backing, backing_format })
    }

    /// Copies into `sink`, with everything that was asked for.
    pub(super) fn copy(
        &self,
        sink: Box<dyn Sink>,
        base: Option<&Base>,
        settle: Option<&Settle<'_>>,
    ) -> Outcome<Copied> {
        let sink = if self.rate == 0 { sink } else { Box::new(Throttle::new(sink, self.rate)) };
        let lost = AtomicU64::new(0);
        let told = AtomicU64::new(0);
        let salvage = |span: Span, why: &Error| {
            lost.fetch_add(span.len(), Ordering::Relaxed);
            if told.fetch_add(1, Ordering::Relaxed) < TOLD_MAX {
                self.progress.note(&format!("{} bytes at {} are lost: {why}", span.len(), span.start()));
            }
        };
        let options = Options {
            threads: self.new.threads,
            sparse: self.new.sparse(),
            base,
            salvage: self.salvage.then_some(&salvage),
            digest: self.verify,
            settle: settle.filter(|_| self.durable),
        };
        let mut bar = self.progress.start("converting", self.disk.size());
        let done = convert::convert(self.disk, sink, options, &mut |n| bar.at(n));
        bar.finish();
        let lost = lost.into_inner();
        if lost > 0 {
            self.progress.note(&format!("{lost} bytes could not be read; the copy has zeroes there"));
        }
        Ok(done?)
    }

    /// Reads the copy back.
    pub(super) fn check(&self, copied: Copied, copy: &Disk) -> Outcome<()> {
        let options = Options { threads: self.new.threads, ..Options::default() };
        let mut bar = self.progress.start("verifying", self.disk.size());
        let same = copied.verify(self.disk, copy, options, &mut |n| bar.at(n));
        bar.finish();
        if same? {
            return Ok(());
        }
        let failure = Failure::new("what was written reads back differently");
        Err(failure.hint("the storage below, or the memory of this machine, is not to be trusted"))
    }

    /// Makes a new image at `target`. `base` opens the backing file, if there is to be one.
    pub(super) fn make(
        &self,
        target: &Path,
        format: &str,
        base: &mut dyn FnMut(Named<'_>) -> Outcome<Option<Over>>,
    ) -> Outcome<()> {
        let Wanted { format, mut plan, backing, backing_format } = self.wanted(format)?;
        let base = match base((backing.as_deref(), backing_format.as_deref()))? {
            Some((backing, base)) => {
                plan.backing = Some(backing);
                Some(base)
            }
            None => None,
        };
        if base.is_some() && format.name() == "raw" {
            return Err(Failure::new("raw images have no backing file (-B)")).about(target);
        }
        if self.bitmaps.is_some() && format.bitmaps_size(&plan, &[])?.is_none() {
            let what = format!("{} images as asked for hold no bitmaps (--bitmaps)", format.name());
            return Err(Failure::new(what)).about(target);
        }
        plan.name =
            target.file_name().filter(|_| !is_remote(target)).map(|n| n.to_string_lossy().into_owned());
        let file = new_file(target, self.durable).about(target)?;
        plan.beside = file.beside();
        if let (Some(name), Some(beside)) = (plan.options.text("data_file"), &plan.beside) {
            plan.data_file = Some(beside.create(name).about(Path::new(name))?);
        }
        let sink = match file.is_device() && format.name() == "raw" {
            true => self.over(file.disk(), false).about(target)?,
            false => format.sink(file.disk().clone(), &plan).about(target)?,
        };
        let copied = self.copy(sink, base.as_ref(), Some(&|| file.settle())).about(target)?;
        // The backing file was named by the user, and opened before.
        let policy = if base.is_some() { Policy::Any } else { Policy::SameFolder };
        if let Some(source) = self.bitmaps {
            let image = file.open_to_write(format, policy).about(target)?;
            self.copy_bitmaps(source, image.as_ref()).about(target)?;
        }
        if self.verify {
            let image = file.open(format, policy).about(target)?;
            self.check(copied, &Disk::from_arc(image)).about(target)?;
        }
        file.publish().about(target)
    }

    fn copy_bitmaps(&self, source: &Arc<dyn Image>, image: &dyn Image) -> Outcome<()> {
        bitmap::copy(source.as_ref(), image, |name| {
            self.progress.note(&format!("the bitmap {name:?} cannot be relied on, and is left out"));
        })
    }

    /// A sink over a disk that is there already.
    fn over(&self, disk: &Disk, is_zero: bool) -> Outcome<Box<dyn Sink>> {
        let (there, needed) = (disk.size(), self.disk.size());
        if there < needed {
            return Err(Failure::new(format!("is too small: it has {there} bytes, the source {needed}")));
        }
        Ok(Box::new(ExistingSink::new(disk.clone(), is_zero)))
    }

    /// Writes into the image at `target`.
    pub(super) fn overwrite(
        &self,
        target: &Path,
        format: Option<&str>,
        how: &HowArgs,
        is_zero: bool,
        over: Option<&Over>,
    ) -> Outcome<()> {
        if self.new.compress {
            return Err(Failure::new("-c is for new images; -n writes plain data into one that is there"));
        }
        if !self.new.options.is_empty() {
            return Err(Failure::new("-o is for new images; with -n there is none to be made"));
        }
        let policy = if how.allow_external { Policy::Any } else { Policy::SameFolder };
        let options = OpenOptions { format, policy, ..OpenOptions::default() };
        let opened = open(target, &OpenOptions { write: true, ..options }).about(target)?;
        if is_zero && opened.image.facts().backing.is_some() {
            let failure =
                Failure::new("has a backing file: nobody can say that it is zero (--target-is-zero)");
            return Err(failure).about(target);
        }
        if let Some(source) = self.bitmaps {
            let skip = self.skip_broken_bitmaps;
            bitmap::may_copy(source.as_ref(), Some(opened.image.as_ref()), skip).about(target)?;
        }
        let image = Arc::clone(&opened.image);
        if over.is_none() && opened.image.parent().is_some() {
            // The copy is the image's own, whatever becomes of its backing file.
            match opened.image.leave_parent(None) {
                Err(e) if e.kind() == Kind::Unsupported => {}
                done => done.about(target)?,
            }
        }
        let sink = self.over(&opened.disk, is_zero).about(target)?;
        drop(opened);
        let copied = self.copy(sink, over.map(|(_, base)| base), None).about(target)?;
        if let Some(source) = self.bitmaps {
            self.copy_bitmaps(source, image.as_ref()).about(target)?;
        }
        drop(image);
        if self.verify {
            let opened = open(target, &options).about(target)?;
            self.check(copied, &opened.disk).about(target)?;
        }
        Ok(())
    }

    /// Writes to standard output.
    pub(super) fn send(&self, format: &str) -> Outcome<()> {
        let target = Path::new("standard output");
        let Wanted { format, plan, .. } = self.wanted(format)?;
        if self.verify {
            return Err(Failure::new("what went down a pipe cannot be read back (--verify)")).about(target);
        }
        if !format.streams(&plan) {
            let failure =
                Failure::new(format!("{} as asked for is not written from beginning to end", format.name()));
            return Err(failure.hint("raw is, and vmdk with -o subformat=streamOptimized")).about(target);
        }
        let pipe = Arc::new(output().about(target)?);
        let sink = format.sink(Disk::from_arc(pipe.clone()), &plan).about(target)?;
        self.copy(sink, None, None).about(target)?;
        pipe.finish().about(target)
    }
}

/// Standard output, for a disk.
pub(super) fn output() -> Outcome<Pipe> {
    if std::io::stdout().is_terminal() {
        return Err(Failure::new("is a terminal, and a disk is not for reading"));
    }
    let out = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok(Pipe::new(File::from(out)))
}

/// Writes `disk` into a new image at `target`, for other commands.
pub(in super::super) fn write_new(
    disk: &Disk,
    target: &Path,
    format: &str,
    new: &NewImage,
    progress: ProgressArgs,
) -> Outcome<()> {
    let copy = Copy {
        disk,
        new,
        bitmaps: None,
        skip_broken_bitmaps: false,
        salvage: false,
        rate: 0,
        verify: false,
        durable: true,
        progress,
    };
    copy.make(target, format, &mut |_| Ok(None))
}
