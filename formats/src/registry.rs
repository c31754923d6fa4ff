//! What a format is, and how one is found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::block::{BlockDevice, Change, Disk, Span};
use crate::check::Report;
use crate::convert::{Beside, DiskSink, Sink};
use crate::drivers::FORMATS;
use crate::error::{Common, Result};
use crate::limits::{HEAD_BYTES, TAIL_BYTES};
use crate::map::Location;
use crate::measure::Growth;
use crate::opening::{OpenFault, Opening, Reference};
use crate::options::{Opt, Values};
use crate::wire::{bytes, len64};

/// The bytes that a probe may look at.
#[derive(Debug)]
pub struct Head<'a> {
    /// The first bytes: 68 KiB, or all of a smaller file.
    pub first: &'a [u8],
    /// The last bytes: 4 KiB, or all of a smaller file.
    pub last: &'a [u8],
    /// Size of the file in bytes.
    pub size: u64,
}

/// What a probe thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guess {
    /// Not this format.
    No,
    /// A bare signature or text that could be chance.
    Weak,
    /// A magic that agrees with a second field.
    Strong,
}

/// One image format.
pub trait Format: Sync {
    /// The word users type: `qcow2`.
    fn name(&self) -> &'static str;
    /// Other words for it: what `qemu-img` calls it.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }
    /// Endings of output names; never used to recognise a file.
    fn suffixes(&self) -> &'static [&'static str];
    /// Its kinds, and what is done with each.
    fn kinds(&self) -> &'static [SubKind];
    /// Looks at bytes, opens nothing, cannot fail.
    fn probe(&self, head: &Head<'_>) -> Guess;
    /// Opens an image. `file` is writable when the image shall be.
    fn open(&self, file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>>;
    /// Makes an empty image of `plan.size` bytes in the empty, writable `file`.
    fn create(&self, file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
        let _ = (file, plan);
        Err(Common::Unsupported { what: "creating an image", by: self.name().into() }.into())
    }
    /// Takes the pieces of a copy into a new image in the empty, writable `file`.
    fn sink(&self, file: Disk, plan: &Plan) -> Result<Box<dyn Sink>> {
        if plan.compress {
            return Err(Common::Unsupported { what: "compression (-c)", by: self.name().into() }.into());
        }
        Ok(Box::new(DiskSink::new(self.create(file, plan)?)))
    }
    /// Whether a new image by `plan` holds compressed data, so that its size depends on their bytes.
    fn packs(&self, plan: &Plan) -> bool {
        plan.compress
    }
    /// How large new images by `plan` become, where nothing counts but how many stretches of the disk hold data.
    fn growth(&self, plan: &Plan) -> Result<Option<Growth>> {
        let _ = plan;
        Ok(None)
    }
    /// Bytes of the file of a new image by `plan` once all of its disk was written, where there is a formula.
    fn full_size(&self, plan: &Plan) -> Result<Option<u64>> {
        Ok(self.growth(plan)?.map(|growth| growth.full()))
    }
    /// Whether a sink writes what `plan` asks for from beginning to end, so that it can go down a pipe.
    fn streams(&self, plan: &Plan) -> bool {
        let _ = plan;
        false
    }
    /// Bytes that these bitmaps take in a new image by `plan` at most; `None` if it can hold none.
    fn bitmaps_size(&self, plan: &Plan, bitmaps: &[BitmapFacts]) -> Result<Option<u64>> {
        let _ = (plan, bitmaps);
        Ok(None)
    }
    /// The options of `create`.
    fn options(&self) -> &'static [Opt] {
        &[]
    }
}

/// Some kinds of a format's images, and what the driver does with them: a line of `racker formats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubKind {
    /// As the field calls them: `fixed`.
    pub name: &'static str,
    /// Whether they are written in place.
    pub write: bool,
    /// Whether they are made.
    pub create: bool,
}

impl SubKind {
    /// Read, written in place, and made.
    pub(crate) const fn all(name: &'static str) -> Self {
        Self { name, write: true, create: true }
    }

    /// Read only.
    pub(crate) const fn read(name: &'static str) -> Self {
        Self { name, write: false, create: false }
    }

    /// Read and written in place.
    pub(crate) const fn write(name: &'static str) -> Self {
        Self { name, write: true, create: false }
    }

    /// Read, and made in one go.
    pub(crate) const fn create(name: &'static str) -> Self {
        Self { name, write: false, create: true }
    }
}

/// What a new image shall be.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Virtual size in bytes.
    pub size: u64,
    /// The file's name without folders, for formats that write their own name into the file.
    pub name: Option<String>,
    /// Checked options.
    pub options: Values,
    /// Compress the data, for `convert -c`.
    pub compress: bool,
    /// What shows through where nothing was written.
    pub backing: Option<Backing>,
    /// Where further files are made, for formats that need several.
    pub beside: Option<Beside>,
    /// The file that shall hold the data, writable, for formats with an option that names one.
    pub data_file: Option<Disk>,
}

/// The parent of a new image.
#[derive(Clone, Debug)]
pub struct Backing {
    /// How the new image shall name it: relative to its own folder.
    pub reference: Reference,
    /// The parent, opened.
    pub image: Arc<dyn Image>,
    /// When the parent's file was changed last, in seconds since 1970.
    pub modified: u64,
}

/// An opened image: a block device that can also talk about itself.
pub trait Image: BlockDevice {
    /// What `info` prints.
    fn facts(&self) -> Facts;

    /// Looks for inconsistencies, and mends them if `report.repair` says so.
    fn check(&self, report: &mut Report) -> Result<()> {
        let _ = report;
        Err(Common::Unsupported { what: "check", by: self.facts().format.into() }.into())
    }

    /// The parent, where the image was opened with one.
    fn parent(&self) -> Option<Arc<dyn Image>> {
        None
    }

    /// Where the image itself keeps the beginning of `span`, which is not empty: the first run, with
    /// [`RunKind::Parent`](crate::block::RunKind::Parent) for what shows through from the parent. Formats that know
    /// no parents hold all of their disk: what they did not allocate is zeroes of theirs, not a hole, as `qemu-img`
    /// has it. The default is for formats that have no parent and do not say where.
    fn locate(&self, span: Span) -> Result<Location> {
        Ok(Location::of(self.first_run(span)?))
    }

    /// The file that holds the byte at `at` of the disk, as the image names it, if that is not the image's own.
    fn file_at(&self, at: u64) -> Option<String> {
        let _ = at;
        None
    }

    /// Whether the image records something of its parent that changes with the parent's content, so that it has to
    /// [keep up](Self::keep_parent) with a commit; an error if a commit would leave it without its parent.
    fn follows_parent(&self) -> Result<bool> {
        let by = self.facts().format.into();
        Err(Common::Unsupported { what: "committing into the parent of an image", by }.into())
    }

    /// Gives the image a new identity now rather than before its content changes; on return it is on stable storage.
    fn renew_identity(&self) -> Result<()> {
        Ok(())
    }

    /// Records what `parent`, which is the same parent as ever, says of itself now; on return it is on stable storage.
    fn keep_parent(&self, parent: &dyn Image) -> Result<()> {
        let _ = parent;
        Ok(())
    }

    /// Makes ready for [another parent](Self::name_parent): from now on zeroes that are written are the image's own,
    /// even where its parent has zeroes too. Refuses a `next` parent that it cannot have.
    fn leave_parent(&self, next: Option<&Backing>) -> Result<()> {
        let _ = next;
        Err(Common::Unsupported { what: "naming another parent", by: self.facts().format.into() }.into())
    }

    /// Names another parent, or none, and leaves everything else as it is: where the image has nothing of its own,
    /// what the new parent holds shows through. `opened` is the new parent, for formats that record its identity;
    /// without it they keep the one that they have. Lands whole or not at all; then the image is to be opened anew.
    fn name_parent(&self, parent: Option<&Reference>, opened: Option<&Backing>) -> Result<()> {
        let _ = (parent, opened);
        Err(Common::Unsupported { what: "naming another parent", by: self.facts().format.into() }.into())
    }

    /// Forgets everything that the image has of its own, so that all of its parent shows through. Lands whole or not
    /// at all.
    fn empty(&self) -> Result<()> {
        Err(Common::Unsupported { what: "emptying an image", by: self.facts().format.into() }.into())
    }

    /// Writes whole clusters, the last of which the end of the disk may cut off, compressed where that makes them
    /// smaller.
    fn write_packed(&self, at: u64, data: &[u8]) -> Result<()> {
        let _ = (at, data);
        let by = self.facts().format.into();
        Err(Common::Unsupported { what: "compression (-c) in an image that is there already", by }.into())
    }

    /// Snapshots inside the image, where the format has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Bitmaps inside the image, where the format has them.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }

    /// Whether the disk lies in other files than the one that the image was opened from.
    fn is_spread(&self) -> bool {
        false
    }

    /// The sectors of its file by which programs recognise the format; none where the file is the disk itself.
    fn heads(&self) -> Vec<Span> {
        Span::new(0, 512).into_iter().collect()
    }

    /// Whether [`apply`](Self::apply) is there.
    fn applies(&self) -> bool {
        false
    }

    /// Refuses an image that must not, or cannot, be edited by [`apply`](Self::apply): asked before anybody has
    /// spent time on the edit.
    fn may_edit(&self) -> Result<()> {
        Ok(())
    }

    /// Lands every change or none of them, whenever the program or the power dies, by the format's own means.
    /// The bytes of the changes are read from `staged`. On return all is on stable storage.
    fn apply(&self, staged: &Disk, changes: &[Change]) -> Result<()> {
        let _ = (staged, changes);
        Err(Common::Unsupported { what: "an atomic edit", by: self.facts().format.into() }.into())
    }
}

/// An image as a disk that cannot be written, for those above it.
pub(crate) fn below(image: &Arc<dyn Image>) -> Disk {
    let device: Arc<dyn BlockDevice> = image.clone();
    Disk::from_arc(device).read_only()
}

/// What an image says about itself.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The format's name.
    pub format: &'static str,
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Unit of allocation in bytes: cluster, grain, block.
    pub cluster_size: Option<u64>,
    /// The format's own word for its kind: `streamOptimized`, `dynamic`.
    pub subformat: Option<String>,
    /// The parent as the image names it.
    pub backing: Option<Reference>,
    /// Other files that hold part of the data.
    pub data_files: Vec<String>,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// The image was not closed cleanly.
    pub dirty: bool,
    /// The image is marked as corrupt.
    pub corrupt: bool,
    /// The data are encrypted.
    pub encrypted: bool,
    /// Everything else, under `qemu-img`'s names where it has them (`format-specific`).
    pub specific: BTreeMap<String, serde_json::Value>,
}

/// A snapshot inside an image.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Unique number or text.
    pub id: String,
    /// What the user called it.
    pub name: String,
    /// Seconds since 1970.
    pub date_sec: u64,
    /// Nanoseconds beyond these.
    pub date_nsec: u32,
    /// Nanoseconds that the virtual machine had been running.
    pub vm_clock_nsec: u64,
    /// Bytes of the virtual machine's state that were saved with the disk.
    pub vm_state_size: u64,
    /// Instructions that the virtual machine had run, where it counted them.
    pub icount: Option<u64>,
    /// Virtual size in bytes at that time.
    pub virtual_size: u64,
}

/// When a snapshot is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970; the format has 32 bits for them.
    pub date_sec: u32,
    /// Nanoseconds beyond these.
    pub date_nsec: u32,
    /// Nanoseconds that the virtual machine has been running.
    pub vm_clock_nsec: u64,
}

impl Moment {
    /// Now, of a disk that no virtual machine uses.
    pub fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let date_sec = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        Self { date_sec, date_nsec: now.subsec_nanos(), vm_clock_nsec: 0 }
    }
}

/// Snapshots inside an image, which [`Facts::snapshots`] lists. `which` is a snapshot's number or its name. Where one
/// has the other's name for a number, `qemu-img` takes the number, but for a snapshot to delete the name; so does this.
///
/// Each change lands whole or not at all, and is on stable storage on return.
pub trait Snapshots {
    /// Keeps the disk as it is now under `name`.
    fn create(&self, name: &str, moment: Moment) -> Result<Snapshot>;
    /// Turns the disk, its size included, back to what it was; what it is now is lost.
    fn apply(&self, which: &str) -> Result<()>;
    /// Forgets a snapshot. Disks that show it must not be read any more.
    fn delete(&self, which: &str) -> Result<()>;
    /// What the disk was, to be read.
    fn disk(&self, which: &str) -> Result<Disk>;
}

/// What a bitmap inside an image says about itself: it tells which stretches of the disk were written since some point
/// in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapFacts {
    /// What the user called it.
    pub name: String,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// What is written belongs into it.
    pub enabled: bool,
    /// It can be relied on: nobody left it in the middle of a change, or wrote without it.
    pub consistent: bool,
}

/// The bits of a bitmap that another one takes in.
#[derive(Clone, Copy, Debug)]
pub struct BitmapSource<'a> {
    /// The bits, the lowest of each byte first.
    pub bits: &'a Disk,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// Bytes of the disk that they are of.
    pub disk_size: u64,
}

/// What can be done to a bitmap.
#[derive(Clone, Copy, Debug)]
pub enum BitmapChange<'a> {
    /// Makes it, without a bit set; the format chooses a granularity where none is given.
    Add {
        /// Bytes of the disk that one bit stands for.
        granularity: Option<u64>,
        /// What is written from now on belongs into it.
        enabled: bool,
    },
    /// Takes it away.
    Remove,
    /// Clears all bits.
    Clear,
    /// Whether what is written from now on belongs into it.
    Enable(bool),
    /// Sets the bits that another bitmap has as well.
    Merge(BitmapSource<'a>),
}

/// Bitmaps inside an image. Each change lands whole or not at all, and is on stable storage on return.
pub trait Bitmaps {
    /// All of them.
    fn list(&self) -> Result<Vec<BitmapFacts>>;
    /// The bits of a bitmap that is consistent, the lowest of each byte first.
    fn bits(&self, name: &str) -> Result<Disk>;
    /// Changes the bitmap `name`.
    fn change(&self, name: &str, change: BitmapChange<'_>) -> Result<()>;
}

/// Reads what probes look at.
pub fn with_head<T>(file: &Disk, look: impl FnOnce(&Head<'_>) -> T) -> Result<T> {
    let size = file.size();
    let first = bytes(file, 0, size.min(HEAD_BYTES), HEAD_BYTES, "first bytes")?;
    let tail = size.min(TAIL_BYTES);
    let last = bytes(file, size.saturating_sub(tail), tail, TAIL_BYTES, "last bytes")?;
    Ok(look(&Head { first: &first, last: &last, size }))
}

/// Finds the format of a file by its content; `raw` is the answer when no other fits.
pub fn probe(file: &Disk) -> Result<&'static dyn Format> {
    with_head(file, |head| {
        let mut best: Option<(Guess, &'static dyn Format)> = None;
        for format in FORMATS {
            let guess = format.probe(head);
            match best {
                _ if guess == Guess::No => {}
                Some((Guess::Strong, first)) if guess == Guess::Strong => {
                    return Err(OpenFault::Ambiguous(first.name(), format.name()).into());
                }
                Some((found, _)) if found >= guess => {}
                _ => best = Some((guess, *format)),
            }
        }
        best.map(|(_, f)| f).ok_or_else(|| OpenFault::UnknownFormat("empty list".into()).into())
    })?
}

/// The format that users call `name`.
pub fn by_name(name: &str) -> Result<&'static dyn Format> {
    // What QEMU calls the files and devices themselves, and images name as the format of what has none.
    let name = if matches!(name, "file" | "host_device") { "raw" } else { name };
    FORMATS
        .iter()
        .find(|f| f.name() == name || f.aliases().contains(&name))
        .copied()
        .ok_or_else(|| OpenFault::UnknownFormat(name.into()).into())
}

impl Head<'_> {
    /// The `N` bytes at `at` of the beginning, if they are there.
    pub fn at<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.first.get(at..)?.first_chunk::<N>().copied()
    }

    /// The `N` bytes that lie `back` bytes before the end, if they are there.
    pub fn from_end<const N: usize>(&self, back: u64) -> Option<[u8; N]> {
        let start = len64(self.last.len()).checked_sub(back)?;
        self.last.get(usize::try_from(start).ok()?..)?.first_chunk::<N>().copied()
    }
}
