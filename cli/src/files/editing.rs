//! One transaction over the files of an image.

use std::cell::OnceCell;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use racker_formats::error::Kind;
use racker_fs::edit::{Session, Writer};
use racker_fs::filesystem::{Name, New, NodeId, NodeKind, Stat, Time};
use racker_fs::guest::{Guest, locate_entry};
use racker_fs::path::{Entry, Place, View};
use racker_fs::selinux::Labels;
use racker_fs::tree::put::Put;

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
    /// The operating system whose policy labels new files, if it has one; looked for when the first is made.
    policy: OnceCell<Option<(Guest, Labels)>>,
}

/// How an edit is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) progress: ProgressArgs,
    /// New files get no label of SELinux.
    pub(crate) no_selinux: bool,
}

/// Runs `work` in a transaction that lands if it succeeds.
pub(crate) fn edit(
    target: &Target,
    which: &PartitionArgs,
    how: How,
    work: impl FnOnce(&mut Editing<'_>) -> Outcome<()>,
) -> Outcome<()> {
    let transaction = target.opened.begin().about(&target.path)?;
    let session = Session::new(&target.inspection, transaction.disk());
    let guest = target.guest(which);
    let policy = OnceCell::new();
    if how.no_selinux {
        // A fresh cell takes it.
        let _ = policy.set(None);
    }
    let mut editing = Editing { target, which, progress: how.progress, now: now(), session, guest, policy };
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
        Ok(self.place_in(path, follow)?.0)
    }

    /// What a path leads to, and the tree that it is in.
    pub(crate) fn place_in(&self, path: &Path, follow: bool) -> Outcome<(Place, View)> {
        self.target.place_by(self.which, self.guest.as_ref(), path, follow)
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

    /// Everything about a node.
    pub(crate) fn stat(&self, place: &Place) -> Outcome<Stat> {
        self.about(place.fs.stat(place.node))
    }

    /// Whether a path leads to a directory.
    pub(crate) fn is_dir(&self, path: &Path) -> Outcome<bool> {
        match self.place(path, true) {
            Err(e) if e.kind() == Some(Kind::NotFound) => Ok(false),
            place => Ok(self.stat(&place?)?.kind == NodeKind::Dir),
        }
    }

    /// The writer of a volume.
    pub(crate) fn writer(&mut self, volume: usize) -> Outcome<&mut Writer<'t>> {
        let path = &self.target.path;
        self.session.writer(volume).about(path)
    }

    /// Makes a node, with the label that the policy of the system on the disk has for it.
    pub(crate) fn create(
        &mut self,
        path: &Path,
        (entry, view): &(Entry, View),
        new: &New<'_>,
    ) -> Outcome<NodeId> {
        let label = self.labels(view, entry.dir.volume).and_then(|(labels, prefix)| {
            let names = prefix.iter().chain(&entry.dir.path).chain([&entry.name]);
            let path = names.fold(Vec::new(), |path, name| [path.as_slice(), b"/", name.as_bytes()].concat());
            labels.label(&path, new.kind.kind())
        });
        self.change(path, entry.dir.volume, |writer, now| {
            let node = writer.create(entry.dir.node, &entry.name, new, now)?;
            writer.inherit_list(entry.dir.node, node, now)?;
            if let Some(label) = label {
                writer.give_label(node, &label, now)?;
            }
            Ok(node)
        })
    }

    /// The labels for what is made on a volume, and where the system has the root of `view`.
    fn labels(&self, view: &View, volume: usize) -> Option<(&Labels, Vec<Name>)> {
        let policy = self.policy.get_or_init(|| {
            let guest = Guest::find(&self.target.inspection)?;
            let labels = Labels::of(&guest.view).ok()??;
            Some((guest, labels))
        });
        let (guest, labels) = policy.as_ref()?;
        let first = view.mounts().first()?;
        let mounts = guest.view.mounts();
        let same =
            mounts.iter().find(|m| m.volume == volume && m.volume == first.volume && m.root == first.root);
        let whole =
            mounts.len() == view.mounts().len() && mounts.first().is_some_and(|m| m.root == first.root);
        if whole { Some((labels, Vec::new())) } else { Some((labels, same?.at.clone())) }
    }

    /// Puts trees below a directory.
    pub(crate) fn put<T>(
        &mut self,
        base: Place,
        view: &View,
        work: impl FnOnce(Put<'_, 't>) -> Outcome<T>,
    ) -> Outcome<T> {
        // The labels are taken out for a while: the session is borrowed as well.
        let prefix = self.labels(view, base.volume).map(|(_, prefix)| prefix);
        let policy = std::mem::take(&mut self.policy);
        let labels = policy.get().and_then(Option::as_ref).map(|(_, labels)| labels).zip(prefix);
        let done = work(Put::new(&mut self.session, view, base, self.now).with_labels(labels));
        self.policy = policy;
        done
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
