//! What `serve` offers of an image: the disk, its volumes, its snapshots.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::{Disk, Staged};
use racker_formats::error::Kind;
use racker_formats::open::Opened;
use racker_fs::inspect::{Inspection, Volume};
use racker_nbd::Export;
use racker_nbd::context::{AllocationDepth, DirtyBitmap};

use crate::fault::{About, Failure, Outcome};
use crate::output::human;
use crate::overlay::open_overlay;
use crate::progress::ProgressArgs;
use crate::remote::{open, remote_name};
use crate::target::HowArgs;

/// What clients may do to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it.
    Read,
    /// Read it, and write to a copy that is thrown away.
    Snapshot,
    /// Write to it.
    Write {
        /// Make it larger as well.
        resize: bool,
    },
}

/// An image that is served.
#[derive(Debug)]
pub(crate) struct Offer {
    opened: Opened,
    path: PathBuf,
    /// What clients see, with what they write.
    disk: Disk,
    name: String,
    /// What the whole disk is called for people, instead of its format and size.
    description: Option<String>,
    access: Access,
}

/// Opens the image at `path` to be served under `name` and names below it. What clients write goes to `overlay`, if
/// there is one.
pub(crate) fn offer(
    path: PathBuf,
    name: Option<&str>,
    how: &HowArgs,
    access: Access,
    overlay: Option<&Path>,
) -> Outcome<Offer> {
    let (path, format) = how.described(path)?;
    let how = HowArgs { format, ..how.clone() };
    let opened = match overlay {
        Some(file) => open_overlay(&path, file, &how)?,
        None => opened(&path, &how, matches!(access, Access::Write { .. }))?,
    };
    let name = name.map(String::from).or_else(|| remote_name(&path)).unwrap_or_else(|| file_name(&path));
    let disk = match access {
        Access::Snapshot => Disk::new(Staged::new(opened.disk.clone())),
        _ => opened.disk.clone(),
    };
    Ok(Offer { opened, path, disk, name, description: None, access })
}

impl Offer {
    /// Has another text for people than format and size.
    pub(crate) fn described(self, description: Option<&str>) -> Self {
        Self { description: description.map(String::from), ..self }
    }

    /// The whole disk.
    pub(crate) fn whole(&self) -> Outcome<Export> {
        let export = whole(&self.opened, &self.disk, &self.name, self.access).about(&self.path)?;
        Ok(match &self.description {
            Some(text) => export.described(text),
            None => export,
        })
    }

    /// Everything that is served of the image, the whole disk first.
    pub(crate) fn all(&self, progress: ProgressArgs) -> Outcome<Vec<Export>> {
        let mut all = vec![self.whole()?];
        match Inspection::of(&self.disk) {
            Ok(inspection) => all.extend(inspection.volumes.iter().filter_map(|v| volume(v, &self.name))),
            Err(e) => progress.note(&format!("{}: only the whole disk is served: {e}", self.path.display())),
        }
        all.extend(snapshots(&self.opened, &self.name, &self.path, progress));
        Ok(all)
    }

    /// Whether what was written is in the image even if this program is killed: nothing but the disk's bytes is.
    pub(crate) fn outlives_us(&self) -> bool {
        self.access == Access::Read
            || (matches!(self.access, Access::Write { .. }) && self.opened.format == "raw")
    }
}

/// Opens the image itself.
fn opened(path: &Path, how: &HowArgs, is_write: bool) -> Outcome<Opened> {
    let opened = open(path, &how.options(is_write)).map_err(|e| match e.kind() {
        Kind::ReadOnly => e.with_hint("--read-only or --snapshot serves it"),
        _ => e,
    });
    let opened = opened.about(path)?;
    if is_write && opened.guessed_raw {
        let failure = Failure::new("it is taken for raw only because it looks like no other format");
        let hint =
            "a guest could make it look like one: -f raw serves it all the same, and so does --read-only";
        return Err(failure.hint(hint)).about(path);
    }
    Ok(opened)
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "disk".into(), |n| n.to_string_lossy().into_owned())
}

fn whole(opened: &Opened, disk: &Disk, name: &str, access: Access) -> Outcome<Export> {
    let facts = opened.image.facts();
    let text = format!("{}, {}", opened.format, human(disk.size()));
    let mut export = Export::new(name, disk.clone()).described(text);
    export = export.prefers(facts.cluster_size.unwrap_or(4096));
    if access == (Access::Write { resize: true }) {
        if !disk.caps().resize {
            return Err(Failure::new(format!(
                "{} images of this kind cannot change their size",
                opened.format
            )));
        }
        export = export.resizable();
    }
    if access == Access::Snapshot {
        // What is written lies in no image.
        return Ok(export);
    }
    export = export.with_context(Arc::new(AllocationDepth::of(Arc::clone(&opened.image))));
    if access != Access::Read {
        // What is written here makes bitmaps useless.
        return Ok(export);
    }
    let Some(bitmaps) = opened.image.bitmaps() else { return Ok(export) };
    for facts in bitmaps.list()?.into_iter().filter(|b| b.consistent) {
        let bits = bitmaps.bits(&facts.name)?;
        if let Some(bitmap) = DirtyBitmap::new(&facts.name, bits, facts.granularity) {
            export = export.with_context(Arc::new(bitmap));
        }
    }
    Ok(export)
}

/// A partition or a logical volume; the whole disk is there already.
fn volume(volume: &Volume, image: &str) -> Option<Export> {
    let name = match (&volume.logical, &volume.partition) {
        (Some(logical), _) => format!("{image}/{logical}"),
        (None, Some(p)) => format!("{image}/p{}", p.number),
        (None, None) => return None,
    };
    let mut words = vec![volume.place()];
    words.extend(volume.driver().map(|d| d.name().to_string()));
    words
        .extend(volume.facts().and_then(|f| f.label).filter(|l| !l.is_empty()).map(|l| format!("label {l}")));
    words.push(human(volume.disk.size()));
    Some(Export::new(name, volume.disk.clone()).described(words.join(", ")))
}

fn snapshots(opened: &Opened, image: &str, path: &Path, progress: ProgressArgs) -> Vec<Export> {
    let Some(snapshots) = opened.image.snapshots() else { return Vec::new() };
    let mut all: Vec<Export> = Vec::new();
    for snapshot in opened.image.facts().snapshots {
        let name = format!("{image}@{}", snapshot.name);
        if all.iter().any(|e| e.name() == name) {
            progress.note(&format!("{}: two snapshots are called {:?}", path.display(), snapshot.name));
            continue;
        }
        match snapshots.disk(&snapshot.id) {
            Ok(disk) => {
                let text = format!("snapshot {}, {}", snapshot.id, human(disk.size()));
                all.push(Export::new(name, disk.read_only()).described(text));
            }
            Err(e) => progress.note(&format!("{}: snapshot {:?}: {e}", path.display(), snapshot.name)),
        }
    }
    all
}
