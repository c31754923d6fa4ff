//! What is copied: one disk or several in a row.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::convert::{self, Base, Concat};
use racker_formats::error::Error;
use racker_formats::open::{OpenOptions, Opened, open_disk};
use racker_formats::registry::{Backing, Image, Snapshot};

use super::super::bitmap;
use super::pack::folder;
use super::{Convert, is_dash};
use crate::backing::open_backing;
use crate::fault::{About, Failure, Outcome};
use crate::remote::open;
use crate::typed;

/// Disks begin at sectors.
const SECTOR: u64 = 512;

/// What is copied.
pub(super) struct Source {
    pub(super) disk: Disk,
    /// The image, unless a snapshot of it is copied, and its path, if it is one only.
    image: Option<(Option<Arc<dyn Image>>, PathBuf)>,
}

impl Source {
    /// The image whose bitmaps are copied.
    pub(super) fn bitmaps(&self, skip_broken: bool) -> Outcome<Arc<dyn Image>> {
        let Some((Some(image), path)) = &self.image else {
            return Err(Failure::new("several disks in a row have no bitmaps in common (--bitmaps)"));
        };
        bitmap::may_copy(image.as_ref(), None, skip_broken).about(path)?;
        Ok(Arc::clone(image))
    }
}

/// Opens all sources.
pub(super) fn open_all(convert: &Convert) -> Outcome<Source> {
    let mut opened = Vec::new();
    if convert.sources.iter().filter(|s| is_dash(s)).count() > 1 {
        return Err(Failure::new("standard input can be copied once only"));
    }
    for (path, format) in convert.sources.iter().zip(&convert.formats) {
        opened.push(open_one(convert, path, format.as_deref())?);
        let same = path.canonicalize().ok().zip(convert.target.canonicalize().ok());
        if same.is_some_and(|(a, b)| a == b) {
            let failure = Failure::new("is the source as well");
            return Err(failure.hint("name another file for the new image")).about(&convert.target);
        }
    }
    if let Some(which) = &convert.snapshot {
        return match (opened.as_slice(), convert.sources.as_slice()) {
            ([only], [path]) => {
                let disk = snapshot(only.image.as_ref(), which).about(path)?;
                Ok(Source { disk, image: Some((None, path.clone())) })
            }
            _ => Err(Failure::new("a snapshot (-l) is one disk, and cannot be one of several in a row")),
        };
    }
    match (opened.pop(), convert.sources.as_slice()) {
        (Some(only), [path]) => Ok(Source { disk: only.disk, image: Some((Some(only.image), path.clone())) }),
        (Some(last), _) => {
            let disks = opened.into_iter().chain([last]).map(|o| o.disk).collect();
            Ok(Source { disk: Disk::new(Concat::new(disks, SECTOR)?), image: None })
        }
        (None, _) => Err(Failure::new("nothing to copy")),
    }
}

fn open_one(convert: &Convert, path: &Path, format: Option<&str>) -> Outcome<Opened> {
    let options = OpenOptions { format, ..convert.how.options(false) };
    if !is_dash(path) {
        return open(path, &options).about(path);
    }
    // What comes down a pipe is kept where there must be room anyway.
    let folder = folder(&convert.target);
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(Error::from).about(path)?;
    let disk = convert::from_input(File::from(input), &folder).about(path)?;
    open_disk(disk, None, &options).about(path)
}

/// The backing file of the copy, and how the source relates to it.
pub(super) type Over = (Backing, Base);

impl Convert {
    /// Opens the backing file: what `-B` and `-F` say, or what `-o` did.
    pub(super) fn base(&self, source: &Source, named: Named<'_>) -> Outcome<Option<Over>> {
        let name = named.0.or(self.backing.as_deref());
        let format = named.1.or(self.backing_format.as_deref());
        let Some(name) = name else {
            return match format {
                Some(_) => Err(Failure::new("-F is the format of a backing file: name that with -B")),
                None => Ok(None),
            };
        };
        let Some((image, path)) = &source.image else {
            let failure = Failure::new("several disks in a row cannot have a backing file (-B)");
            return Err(failure.hint("copy them into a new image, then make an overlay of that"));
        };
        let backing = open_backing(&self.target, name, format, self.how.allow_external)?;
        let there = self.target.parent().unwrap_or(Path::new("")).join(name);
        let disk = Disk::from_arc(backing.image.clone()).read_only();
        let is_parent = image.as_ref().is_some_and(|image| is_parent(image.as_ref(), path, &there));
        Ok(Some((backing, Base { image: image.clone(), disk, is_parent })))
    }
}

/// A backing file and its format, as `-o` has them.
pub(super) type Named<'a> = (Option<&'a str>, Option<&'a str>);

/// A snapshot inside an image, however it is typed.
pub(in super::super) fn snapshot(image: &dyn Image, which: &str) -> Outcome<Disk> {
    let missing = || {
        let names: Vec<String> =
            image.facts().snapshots.iter().map(|s| format!("{} ({})", s.name, s.id)).collect();
        let failure = Failure::new(format!("there is no snapshot {which:?} in it"));
        if names.is_empty() { failure } else { failure.hint(format!("there are {}", names.join(", "))) }
    };
    let format = image.facts().format;
    let snapshots = image
        .snapshots()
        .ok_or_else(|| Failure::new(format!("{format} images have no snapshots inside (-l)")))?;
    if !which.starts_with("snapshot.") {
        let is_it = |s: &Snapshot| s.id == which || s.name == which;
        return match image.facts().snapshots.iter().any(is_it) {
            true => Ok(snapshots.disk(which)?),
            false => Err(missing()),
        };
    }
    let (mut id, mut name) = (None, None);
    for (key, value) in typed::pairs(&[which.to_string()])? {
        match key.as_str() {
            "snapshot.id" => id = Some(value),
            "snapshot.name" => name = Some(value),
            _ => return Err(Failure::new(format!("-l knows snapshot.id and snapshot.name, not {key}"))),
        }
    }
    let fits = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
    let all = image.facts().snapshots;
    let found = all.iter().find(|s| fits(&id, &s.id) && fits(&name, &s.name)).ok_or_else(missing)?;
    Ok(snapshots.disk(&found.id)?)
}

/// Whether the file that an image names as its parent is the one at `there`.
fn is_parent(image: &dyn Image, path: &Path, there: &Path) -> bool {
    let Some(reference) = image.facts().backing else { return false };
    let named = path.parent().unwrap_or(Path::new("")).join(reference.path);
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    id(&named).is_some() && id(&named) == id(there)
}
