//! What is copied: one disk or several in a row.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::convert::{self, Base, Concat};
use racker_formats::error::Error;
use racker_formats::open::{Opened, open, open_disk};
use racker_formats::registry::{Backing, Image, Policy};

use super::{Convert, is_dash};
use crate::backing::open_backing;
use crate::fault::{About, Failure, Outcome};

/// Disks begin at sectors.
const SECTOR: u64 = 512;

/// What is copied.
pub(super) struct Source {
    pub(super) disk: Disk,
    /// The image, if it is one only, and its path.
    image: Option<(Arc<dyn Image>, PathBuf)>,
}

/// Opens all sources.
pub(super) fn open_all(convert: &Convert) -> Outcome<Source> {
    let mut opened = Vec::new();
    if convert.sources.iter().filter(|s| is_dash(s)).count() > 1 {
        return Err(Failure::new("standard input can be copied once only"));
    }
    for path in &convert.sources {
        opened.push(open_one(convert, path)?);
        let same = path.canonicalize().ok().zip(convert.target.canonicalize().ok());
        if same.is_some_and(|(a, b)| a == b) {
            let failure = Failure::new("is the source as well");
            return Err(failure.hint("name another file for the new image")).about(&convert.target);
        }
    }
    match (opened.pop(), convert.sources.as_slice()) {
        (Some(only), [path]) => Ok(Source { disk: only.disk, image: Some((only.image, path.clone())) }),
        (Some(last), _) => {
            let disks = opened.into_iter().chain([last]).map(|o| o.disk).collect();
            Ok(Source { disk: Disk::new(Concat::new(disks, SECTOR)?), image: None })
        }
        (None, _) => Err(Failure::new("nothing to copy")),
    }
}

fn open_one(convert: &Convert, path: &Path) -> Outcome<Opened> {
    let options = convert.how.options(false);
    if !is_dash(path) {
        return open(path, &options).about(path);
    }
    // What comes down a pipe is kept where there must be room anyway.
    let beside = convert.target.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = match beside {
        Some(folder) => folder.to_path_buf(),
        None if is_dash(&convert.target) => std::env::temp_dir(),
        None => PathBuf::from("."),
    };
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
        let policy = if self.how.allow_external { Policy::Any } else { Policy::SameFolder };
        let backing = open_backing(&self.target, name, format, policy)?;
        let there = self.target.parent().unwrap_or(Path::new("")).join(name);
        let disk = Disk::from_arc(backing.image.clone()).read_only();
        let is_parent = is_parent(image.as_ref(), path, &there);
        Ok(Some((backing, Base { image: image.clone(), disk, is_parent })))
    }
}

/// A backing file and its format, as `-o` has them.
pub(super) type Named<'a> = (Option<&'a str>, Option<&'a str>);

/// Whether the file that an image names as its parent is the one at `there`.
fn is_parent(image: &dyn Image, path: &Path, there: &Path) -> bool {
    let Some(reference) = image.facts().backing else { return false };
    let named = path.parent().unwrap_or(Path::new("")).join(reference.path);
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    id(&named).is_some() && id(&named) == id(there)
}
