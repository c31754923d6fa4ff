//! One transaction over the files of an image.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use racker_formats::error::Kind;
use racker_fs::edit::{Session, Writer};
use racker_fs::filesystem::{NodeKind, Stat, Time};
use racker_fs::guest::{Guest, locate, locate_entry};
use racker_fs::path::{Entry, Place, View};

use super::On;
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;
use crate::target::{PartitionArgs, Target};

/// Changes that have not landed so far.
#[derive(Debug)]
pub(crate) struct Editing<'t> {
    pub(crate) target: &'t Target,
    pub(crate) which: &'t PartitionArgs,
    pub(crate) progress: ProgressArgs,
    /// The time of the edit.
    pub(crate) now: Time,
    session: Session<'t>,
    guest: Option<Guest>,
}

/// Runs `work` in a transaction that lands if it succeeds.
pub(crate) fn edit(
    target: &Target,
    which: &PartitionArgs,
    progress: ProgressArgs,
    work: impl FnOnce(&mut Editing<'_>) -> Outcome<()>,
) -> Outcome<()> {
    let transaction = target.opened.begin().about(&target.path)?;
    let session = Session::new(&target.inspection, transaction.disk());
    let guest = if which.partition.is_none() { Guest::find(&target.inspection) } else { None };
    let mut editing = Editing { target, which, progress, now: now(), session, guest };
    work(&mut editing)?;
    editing.session.close().about(&target.path)?;
    transaction.commit().about(&target.path)
}

impl<'t> Editing<'t> {
    /// The image, to look at what was done so far.
    pub(crate) fn on(&self) -> On<'t> {
        On { target: self.target, which: self.which }
    }

    /// Adds the image to an error.
    pub(crate) fn about<T>(&self, result: racker_formats::Result<T>) -> Outcome<T> {
        result.about(&self.target.path)
    }

    /// A failure about a path.
    pub(crate) fn failure(&self, path: &Path, why: &str) -> Failure {
        let failure = Failure::new(format!("{}: {why}", path.display()));
        Err::<(), _>(failure).about(&self.target.path).err().unwrap_or_else(|| Failure::new(why))
    }

    /// What a path leads to.
    pub(crate) fn place(&self, path: &Path, follow: bool) -> Outcome<Place> {
        let bytes = path.as_os_str().as_bytes();
        self.about(match &self.which.partition {
            Some(name) => self.target.view_of(name)?.resolve(bytes, follow),
            None => locate(&self.target.inspection, self.guest.as_ref(), bytes, follow),
        })
    }

    /// The entry that a path means, whether it is there or not, and the tree that it is in.
    pub(crate) fn entry(&self, path: &Path) -> Outcome<(Entry, View)> {
        let bytes = path.as_os_str().as_bytes();
        if let Some(name) = &self.which.partition {
            let view = self.target.view_of(name)?;
            return Ok((self.about(view.entry(bytes))?, view));
        }
        self.about(locate_entry(&self.target.inspection, self.guest.as_ref(), bytes))
    }

    /// The entry that a path means if the path leads into a directory that is there: `name` in it.
    pub(crate) fn below(&self, dir: &Path, name: &Path) -> Outcome<(Entry, View)> {
        self.entry(&dir.join(name.file_name().unwrap_or(name.as_os_str())))
    }

    /// A place that is there, and the tree that it is in.
    pub(crate) fn place_in(&self, path: &Path) -> Outcome<(Place, View)> {
        let place = self.place(path, true)?;
        let view = match (&self.which.partition, &self.guest) {
            (Some(name), _) => self.target.view_of(name)?,
            (None, Some(guest))
                if guest.view.mounts().iter().any(|m| std::sync::Arc::ptr_eq(&m.fs, &place.fs)) =>
            {
                guest.view.clone()
            }
            _ => View::single(place.volume, place.fs.clone()),
        };
        Ok((place, view))
    }

    /// Everything about a node.
    pub(crate) fn stat(&self, place: &Place) -> Outcome<Stat> {
        self.about(place.fs.stat(place.node))
    }

    /// Whether a path leads to a directory.
    pub(crate) fn is_dir(&self, path: &Path) -> Outcome<bool> {
        let bytes = path.as_os_str().as_bytes();
        let found = match &self.which.partition {
            Some(name) => self.target.view_of(name)?.resolve(bytes, true),
            None => locate(&self.target.inspection, self.guest.as_ref(), bytes, true),
        };
        match found {
            Ok(place) => Ok(self.stat(&place)?.kind == NodeKind::Dir),
            Err(e) if e.kind() == Kind::NotFound => Ok(false),
            Err(e) => self.about(Err(e)),
        }
    }

    /// The writer of a volume.
    pub(crate) fn writer(&mut self, volume: usize) -> Outcome<&mut Writer<'t>> {
        let path = &self.target.path;
        self.session.writer(volume).about(path)
    }

    /// All writers, for whole trees.
    pub(crate) fn session(&mut self) -> &mut Session<'t> {
        &mut self.session
    }

    /// Changes something on a volume.
    pub(crate) fn change<T>(
        &mut self,
        path: &Path,
        volume: usize,
        work: impl FnOnce(&mut Writer<'t>, Time) -> racker_formats::Result<T>,
    ) -> Outcome<T> {
        let (now, image) = (self.now, &self.target.path);
        let writer = self.session.writer(volume).about(image)?;
        work(writer, now).about(path).about(image)
    }
}

/// The time that an edit stamps: `SOURCE_DATE_EPOCH` makes it repeatable.
pub(crate) fn now() -> Time {
    let fixed = std::env::var_os("SOURCE_DATE_EPOCH");
    if let Some(sec) = fixed.and_then(|v| std::str::from_utf8(v.as_bytes()).ok()?.parse().ok()) {
        return Time { sec, nsec: 0 };
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: i64::try_from(since.as_secs()).unwrap_or_default(), nsec: since.subsec_nanos() }
}
