//! An edit that lands whole or not at all, whenever the program or the power dies.
//!
//! Two mechanisms, the first that fits:
//!
//! 1. The format can switch ([`Image::apply`]): changes of the *guest's* disk are staged, then the driver writes
//!    them to unreferenced places and turns one sector.
//! 2. Otherwise changes of the *host file* are staged under the driver. Where the file has the disk's bytes one by
//!    one, new content goes at once to space that nothing referred to before the edit ([`Disk::write_fresh`]). Then
//!    1. a filesystem with a journal lands its changes by that ([`Journal`]), if it is the only one that changed:
//!       whoever opens the disk next, racker or not, replays it;
//!    2. otherwise they are sealed into a redo file beside the image, and applied from there ([`redo`]). Whoever opens
//!       the image next with racker finishes or forgets it, and other programs do not recognise the disk meanwhile.
//!
//! A file on another machine has no place beside it. Where neither format nor journal helps, changes to it are held back
//! here until the edit is complete, and are written one after the other then: an edit that fails has changed nothing,
//! but one that is interrupted while it lands is on the disk in part.
//!
//! Whatever can write borrows from the [`Transaction`], and [`commit`](Transaction::commit) consumes it: a writer
//! that is still open then does not compile, and one that was dropped without being closed makes it refuse.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::OFlags;

use crate::block::redo::{self, Scope};
use crate::block::{Change, ChangeKind, Disk, FileDevice, LockMode, SliceDevice, Span, Staged, lock};
use crate::error::{Common, Fault, Kind, Result, Within};
use crate::registry::{self, Image};
use crate::wire::{index, len64, part_mut};

/// Bytes that are written to another machine at a time.
const STRAIGHT_BYTES: usize = 1 << 20;

/// Why an edit does not begin or does not land.
#[derive(Debug, thiserror::Error)]
pub enum TransactionFault {
    /// A writer was dropped instead of closed, so its caches are lost.
    #[error("a writer was not closed: nothing was written to the image")]
    WriterDropped,
    /// The edit would turn a disk that is raw only by guess into something that the next reader takes for a
    /// format of its own: then the image, not the user, says which files are opened.
    #[error("after this edit the raw disk would look like {0}: nothing was written")]
    Disguised(&'static str),
}

impl Fault for TransactionFault {
    fn kind(&self) -> Kind {
        match self {
            Self::WriterDropped => Kind::Invalid,
            Self::Disguised(_) => Kind::Denied,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::WriterDropped => None,
            Self::Disguised(_) => {
                Some("-f raw writes it all the same; then always open it with -f raw".into())
            }
        }
    }
}

/// A filesystem's own way to land an edit.
pub trait Journal: Debug + Send + Sync {
    /// Lands `changes` of the volume, whose bytes are read from `edited`, whole or not at all, and says so; or says
    /// that it cannot and has written nothing that counts. `decide` is called before the write that decides: an error
    /// after that leaves an edit that the journal finishes.
    fn land(
        &self,
        volume: &Disk,
        edited: &Disk,
        changes: &[Change],
        decide: &mut dyn FnMut(),
    ) -> Result<bool>;
}

/// A filesystem that an edit changes.
#[derive(Debug)]
struct Owner {
    /// The volume, where it is one piece of the host file.
    volume: Option<Span>,
    /// The sector by which it is recognised, in the host file.
    gate: Option<Span>,
    journal: Option<Box<dyn Journal>>,
}

impl Owner {
    /// Whether any of the changes may be its own.
    fn has_any(&self, changes: &[Change]) -> bool {
        self.volume.is_none_or(|volume| changes.iter().any(|c| volume.intersect(c.span).is_some()))
    }
}

/// What the writers of a transaction have said.
#[derive(Debug, Default)]
struct Writers {
    open: AtomicUsize,
    owners: Mutex<Vec<Owner>>,
}

/// Changes to one image, held back until [`commit`](Self::commit).
#[must_use = "an edit that is not committed is thrown away"]
#[derive(Debug)]
pub struct Transaction {
    staged: Arc<Staged>,
    /// What the writers above see.
    guest: Disk,
    landing: Landing,
    writers: Arc<Writers>,
    /// The host file is raw only because its content looks like nothing else, and must stay so.
    guessed_raw: bool,
}

/// Bytes of the unit that a disk writes whole.
const SECTOR: u64 = 512;

/// Edits that have stored something on a host file, perhaps.
static RUNNING: Mutex<Vec<Weak<Staged>>> = Mutex::new(Vec::new());

/// Gives the space back that edits have taken on the host, for a program that is told to end: none of them lands any
/// more, but for those that are landing.
pub fn abandon() {
    for edit in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
        if let Err(e) = edit.undo() {
            tracing::warn!("space that an edit had taken is not given back: {e}");
        }
    }
}

#[derive(Debug)]
enum Landing {
    /// The driver switches; the image's own lock lives in its file.
    Switch(Arc<dyn Image>),
    /// A redo file beside the host file at this path.
    Redo {
        file: Disk,
        path: PathBuf,
        /// The image over the staged file.
        image: Arc<dyn Image>,
        /// `file` is the image's file, or the disk in it where that lies in several files.
        scope: Scope,
    },
    /// Straight to the file, which lies on another machine.
    Straight { file: Disk },
    /// The changes stay in memory: somebody reads the edited disk and writes it elsewhere.
    Elsewhere,
}

/// The disk that an edit writes to, good for as long as its transaction.
#[derive(Clone, Debug)]
pub struct EditDisk<'t> {
    disk: Disk,
    writers: Arc<Writers>,
    transaction: PhantomData<&'t Transaction>,
}

/// Proof that a writer works on an [`EditDisk`]; a writer that ends without handing it back spoils the edit.
#[derive(Debug)]
#[must_use = "a writer that is not closed spoils the edit"]
pub struct OpenWriter(Arc<Writers>);

impl Transaction {
    /// Begins an edit of `image`, which was opened for writing over `file`, the host file at `path`, or one on
    /// another machine.
    ///
    /// `reopen` opens the image once more over a staged file: it is called for formats that cannot switch.
    pub fn begin(
        image: Arc<dyn Image>,
        file: &Disk,
        path: Option<&Path>,
        reopen: impl FnOnce(Disk) -> Result<Arc<dyn Image>>,
    ) -> Result<Self> {
        let writers = Arc::new(Writers::default());
        if image.applies() {
            image.may_edit()?;
            let staged = Arc::new(Staged::new(Disk::from_arc(image.clone())));
            let guest = Disk::from_arc(staged.clone());
            let landing = Landing::Switch(image);
            return Ok(Self { staged, guest, landing, writers, guessed_raw: false });
        }
        if let (Some(path), true) = (path, image.is_spread()) {
            // Drivers keep an order of their own for each write, so the disk can be written again and again.
            let file = Disk::from_arc(image.clone());
            let staged = Arc::new(Staged::over(file.clone()));
            let guest = Disk::from_arc(staged.clone());
            let landing = Landing::Redo { file, path: path.to_path_buf(), image, scope: Scope::Disk };
            return Ok(Self { staged, guest, landing, writers, guessed_raw: false });
        }
        drop(image);
        let Some(path) = path else {
            let staged = Arc::new(Staged::over(file.clone()));
            let guest = Disk::from_arc(reopen(Disk::from_arc(staged.clone()))?);
            let landing = Landing::Straight { file: file.clone() };
            return Ok(Self { staged, guest, landing, writers, guessed_raw: false });
        };
        let staged = Arc::new(Staged::through(file.clone()));
        let image = reopen(Disk::from_arc(staged.clone()))?;
        let guest = Disk::from_arc(image.clone());
        let landing =
            Landing::Redo { file: file.clone(), path: path.to_path_buf(), image, scope: Scope::File };
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|edit| edit.strong_count() > 0);
        running.push(Arc::downgrade(&staged));
        Ok(Self { staged, guest, landing, writers, guessed_raw: false })
    }

    /// Begins an edit that never lands on the image: [`finish`](Self::finish) gives the edited disk to be copied.
    pub fn overlay(guest: Disk) -> Self {
        let staged = Arc::new(Staged::new(guest.read_only()));
        let guest = Disk::from_arc(staged.clone());
        let writers = Arc::new(Writers::default());
        Self { staged, guest, landing: Landing::Elsewhere, writers, guessed_raw: false }
    }

    /// Refuses to commit if the file, which was found to be raw only by elimination, would look like a format.
    pub fn keep_raw(mut self) -> Self {
        self.guessed_raw = true;
        self
    }

    /// The disk as edited, for an edit that lands elsewhere.
    pub fn finish(self) -> Result<Disk> {
        self.all_closed()?;
        Ok(self.guest.read_only())
    }

    fn all_closed(&self) -> Result<()> {
        if self.writers.open.load(Ordering::Acquire) != 0 {
            return Err(TransactionFault::WriterDropped.into());
        }
        Ok(())
    }

    /// The disk to write to.
    pub fn disk(&self) -> EditDisk<'_> {
        EditDisk { disk: self.guest.clone(), writers: Arc::clone(&self.writers), transaction: PhantomData }
    }

    /// Whether nothing was changed so far.
    pub fn is_unchanged(&self) -> Result<bool> {
        self.staged.is_unchanged()
    }

    /// Lands the edit. On return it is on stable storage, on an error the image is as it was.
    pub fn commit(self) -> Result<()> {
        self.all_closed()?;
        // A driver over a staged file keeps tables of its own until it is flushed.
        self.guest.flush()?;
        if self.staged.is_unchanged()? {
            return Ok(());
        }
        let changes = self.staged.changes()?;
        let staged = Disk::from_arc(self.staged.clone());
        if self.guessed_raw {
            let found = registry::probe(&staged)?.name();
            if found != "raw" {
                return Err(TransactionFault::Disguised(found).into());
            }
        }
        match &self.landing {
            Landing::Switch(image) => image.apply(&staged, &changes),
            Landing::Redo { file, path, image, scope } => {
                // What was written already has to be there when the rest of the edit is decided.
                self.staged.settle()?;
                let owners = self.writers.owners.lock().map_err(|_| Common::Poisoned)?;
                let owners: Vec<&Owner> = owners.iter().filter(|o| o.has_any(&changes)).collect();
                if self.by_journal(file, &staged, &owners, &changes)? {
                    return Ok(());
                }
                let heads = if *scope == Scope::File { image.heads() } else { Vec::new() };
                let gates = gates(&self.guest, &owners, heads, &changes);
                land((file, *scope), path, &staged, (&changes, &gates), &|| self.staged.unsettle())
            }
            Landing::Straight { file } => {
                let owners = self.writers.owners.lock().map_err(|_| Common::Poisoned)?;
                let owners: Vec<&Owner> = owners.iter().filter(|o| o.has_any(&changes)).collect();
                if self.by_journal(file, &staged, &owners, &changes)? {
                    return Ok(());
                }
                land_straight(file, &staged, &changes)
            }
            Landing::Elsewhere => Ok(()),
        }
    }
}

impl Transaction {
    /// Lands the changes by the journal of the only filesystem that they belong to, if it has one that takes them.
    fn by_journal(&self, file: &Disk, staged: &Disk, owners: &[&Owner], changes: &[Change]) -> Result<bool> {
        let [Owner { volume: Some(volume), journal: Some(journal), .. }] = owners else { return Ok(false) };
        if staged.size() != file.size() || !changes.iter().all(|change| volume.contains(change.span)) {
            return Ok(false);
        }
        let inside = |change: &Change| -> Result<Change> {
            let start = change.span.start().saturating_sub(volume.start());
            Ok(Change { span: Span::new(start, change.span.len())?, kind: change.kind })
        };
        let changes = changes.iter().map(inside).collect::<Result<Vec<_>>>()?;
        let part = |disk: &Disk| Disk::new(SliceDevice::new(disk.clone(), *volume));
        let mut decided = false;
        let landed = journal.land(&part(file), &part(staged), &changes, &mut || decided = true);
        match landed {
            Err(e) if decided => Err(e.undecided()),
            Err(e) => {
                self.staged.unsettle()?;
                Err(e)
            }
            landed => landed,
        }
    }
}

/// The sectors that are shut while `changes` are applied: those of the filesystems that have changes; for the disk
/// outside of them its first; for a format that keeps the disk in its own way where that is recognised.
fn gates(guest: &Disk, owners: &[&Owner], heads: Vec<Span>, changes: &[Change]) -> Vec<Span> {
    let mut gates = heads;
    gates.extend(owners.iter().filter_map(|owner| owner.gate));
    let owned = |change: &Change| owners.iter().any(|o| o.volume.is_none_or(|v| v.contains(change.span)));
    if !changes.iter().all(owned) {
        gates.extend(Span::new(0, SECTOR).ok().and_then(|first| guest.place(first)));
    }
    gates.sort_by_key(|gate| gate.start());
    gates.dedup();
    gates
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Err(e) = self.staged.undo() {
            tracing::warn!("space that an edit had taken is not given back: {e}");
        }
    }
}

impl<'t> EditDisk<'t> {
    /// The disk itself, for reading and for the writer that registers with [`writer`](Self::writer).
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// A disk made of it: a logical volume, whose parts lie here and there.
    pub fn map(&self, make: impl FnOnce(&Disk) -> Result<Disk>) -> Result<Self> {
        let disk = make(&self.disk)?;
        Ok(Self { disk, writers: Arc::clone(&self.writers), transaction: PhantomData })
    }

    /// Says that a filesystem on all of this disk is going to change: programs know it by the sector at byte `gate`,
    /// and `journal` lands its changes if it can.
    pub fn own(&self, gate: u64, journal: Option<Box<dyn Journal>>) -> Result<()> {
        let volume = self.disk.place(Span::first(self.disk.size()));
        let sector = Span::new(gate, SECTOR)?;
        let gate = self.disk.place(sector).filter(|place| place.start().is_multiple_of(SECTOR));
        let mut owners = self.writers.owners.lock().map_err(|_| Common::Poisoned)?;
        owners.push(Owner { volume, gate, journal });
        Ok(())
    }

    /// Registers a writer, which must end with [`OpenWriter::close`].
    pub fn writer(&self) -> OpenWriter {
        self.writers.open.fetch_add(1, Ordering::AcqRel);
        OpenWriter(Arc::clone(&self.writers))
    }
}

impl OpenWriter {
    /// The writer has written everything back.
    pub fn close(self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where the redo file of an image lies.
pub fn redo_path(image: &Path) -> PathBuf {
    let mut name = OsString::from(image.as_os_str());
    name.push(".racker-redo");
    PathBuf::from(name)
}

/// Lands an edit; `undecided` hears that no redo file is left that would be applied sooner or later.
fn land(
    (file, scope): (&Disk, Scope),
    path: &Path,
    staged: &Disk,
    (changes, gates): (&[Change], &[Span]),
    undecided: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let redo_path = redo_path(path);
    let place = || format!("redo file {}", redo_path.display());
    // It holds what the image holds: nobody else may read it. A leftover would have been dealt with at opening.
    let host = File::options().read(true).write(true).create_new(true).mode(0o600).open(&redo_path);
    let host = match host.map_err(crate::error::Error::from).within(place) {
        Ok(host) => host,
        Err(e) => {
            undecided()?;
            return Err(e);
        }
    };
    let redo = Disk::new(FileDevice::new(host, true)?);
    let sealed = redo::seal(&redo, (file, scope), staged, changes, gates)
        .and_then(|()| sync_folder(&redo_path))
        .and_then(|()| redo::sealed(&redo));
    let sealed = match sealed {
        Ok(Some(sealed)) => sealed,
        Ok(None) => {
            drop_redo(&redo_path)?;
            undecided()?;
            return Err(std::io::Error::other("the redo file does not read back as written").into());
        }
        Err(e) => {
            // Nothing is decided before the seal; nothing must be left of it.
            drop_redo(&redo_path)?;
            undecided()?;
            return Err(e.within(place()));
        }
    };
    redo::apply(&redo, file, &sealed)?;
    drop_redo(&redo_path)
}

/// Lands an edit on a file that has no place beside it.
fn land_straight(file: &Disk, staged: &Disk, changes: &[Change]) -> Result<()> {
    let (old, new) = (file.size(), staged.size());
    // What can be refused is refused before anything is written.
    if old != new {
        file.resize(old.max(new))?;
    }
    let mut buf = vec![0; STRAIGHT_BYTES];
    let mut write = |change: &Change| -> Result<()> {
        if change.kind == ChangeKind::Zero {
            return file.write_zeroes(change.span);
        }
        let mut rest = change.span;
        while !rest.is_empty() {
            let piece = rest.truncate(len64(STRAIGHT_BYTES));
            let bytes = part_mut(&mut buf, 0, index(piece.len())?, "piece")?;
            staged.read_at(piece.start(), bytes)?;
            file.write_at(piece.start(), bytes)?;
            rest = rest.skip(piece.len());
        }
        Ok(())
    };
    let done = changes.iter().try_for_each(&mut write);
    let done = done.and_then(|()| if new < old { file.resize(new) } else { Ok(()) });
    done.and_then(|()| file.flush()).map_err(|e| {
        let e = e.within("the edit is on the disk in part");
        e.with_hint("check the filesystems that it changed before they are used")
    })
}

fn drop_redo(path: &Path) -> Result<()> {
    std::fs::remove_file(path)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Finishes or forgets an edit that was interrupted while it was applied to the image at `path`.
///
/// `file` is the image's host file. When it is writable the edit is applied to it and the redo file removed;
/// otherwise the returned disk shows it as applied. Without a redo file the answer is `file` itself.
pub fn recover(path: &Path, file: Disk) -> Result<Disk> {
    recover_in(path, file, Scope::File)
}

/// The same for the disk in an image, where that lies in several files.
pub fn recover_disk(path: &Path, disk: Disk) -> Result<Disk> {
    recover_in(path, disk, Scope::Disk)
}

fn recover_in(path: &Path, file: Disk, scope: Scope) -> Result<Disk> {
    let redo_path = redo_path(path);
    let host = match File::open(&redo_path) {
        Ok(host) => host,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(file),
        Err(e) => return Err(e.into()),
    };
    let place = || format!("redo file {}", redo_path.display());
    // A live racker that is about to seal it holds the image's write lock, so we are alone here.
    let redo = Disk::new(FileDevice::new(host, false)?);
    let Some(sealed) = redo::sealed(&redo).within(place)? else {
        if file.writable() {
            drop_redo(&redo_path)?;
        }
        return Ok(file);
    };
    if sealed.scope != scope {
        return Ok(file);
    }
    if file.writable() {
        redo::apply(&redo, &file, &sealed).within(place)?;
        drop_redo(&redo_path)?;
        return Ok(file);
    }
    let over = Disk::new(Staged::new(file));
    redo::apply(&redo, &over, &sealed).within(place)?;
    Ok(over.read_only())
}

/// Opens a host file as a disk, locked for what is going to happen, with any interrupted edit finished.
pub fn open_file(path: &Path, write: bool) -> Result<Disk> {
    // NONBLOCK keeps a fifo from holding us forever; `FileDevice` refuses it.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).write(write).custom_flags(flags).open(path)?;
    lock(&file, if write { LockMode::Write } else { LockMode::Read })?;
    recover(path, Disk::new(FileDevice::new(file, write)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opening::{Opening, Policy};

    fn begin(path: &Path) -> Transaction {
        let file = open_file(path, true).unwrap();
        let open = |disk: Disk| {
            registry::by_name("raw").unwrap().open(disk, &mut Opening::new(None, Policy::Deny, true))
        };
        Transaction::begin(open(file.clone()).unwrap(), &file, Some(path), open).unwrap()
    }

    #[test]
    fn a_raw_edit_lands_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        let edit = begin(&path);
        edit.disk().disk().write_at(5000, &[2; 10]).unwrap();
        drop(edit);
        assert_eq!(std::fs::read(&path).unwrap(), vec![1; 100_000]);
        let edit = begin(&path);
        edit.disk().disk().write_at(5000, &[2; 10]).unwrap();
        edit.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[4999..5011], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_edit_of_another_machine_s_disk_lands_at_its_end() {
        let file = Disk::new(crate::block::MemDevice::from_bytes(vec![1; 3 << 20]));
        let begin = || {
            let open = |disk: Disk| {
                registry::by_name("raw").unwrap().open(disk, &mut Opening::new(None, Policy::Deny, true))
            };
            Transaction::begin(open(file.clone()).unwrap(), &file, None, open).unwrap()
        };
        let bytes = || {
            let mut bytes = vec![0; 3 << 20];
            file.read_at(0, &mut bytes).unwrap();
            bytes
        };
        let edit = begin();
        edit.disk().disk().write_at(5000, &[2; 10]).unwrap();
        drop(edit);
        assert_eq!(bytes(), vec![1; 3 << 20]);
        let edit = begin();
        edit.disk().disk().write_at(5000, &[2; 2 << 20]).unwrap();
        edit.disk().disk().write_zeroes(crate::block::Span::new((3 << 20) - 8192, 8192).unwrap()).unwrap();
        assert_eq!(bytes(), vec![1; 3 << 20]);
        edit.commit().unwrap();
        let mut expected = vec![1; 3 << 20];
        expected[5000..][..2 << 20].fill(2);
        expected[(3 << 20) - 8192..].fill(0);
        assert!(bytes() == expected);
    }

    #[test]
    fn a_dropped_writer_spoils_the_edit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![1; 10_000]).unwrap();
        let edit = begin(&path);
        edit.disk().disk().write_at(0, &[2]).unwrap();
        drop(edit.disk().writer());
        let e = edit.commit().unwrap_err();
        assert!(matches!(e.fault(), Some(TransactionFault::WriterDropped)));
        assert_eq!(std::fs::read(&path).unwrap()[0], 1);
    }

    #[test]
    fn an_interrupted_edit_is_shown_to_readers_and_finished_by_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, vec![1; 10_000]).unwrap();
        let file = open_file(&path, true).unwrap();
        let staged = Arc::new(Staged::through(file.clone()));
        let top = Disk::from_arc(staged.clone());
        top.write_at(100, &[9; 100]).unwrap();
        let redo = File::options().read(true).write(true).create_new(true).open(redo_path(&path)).unwrap();
        let redo = Disk::new(FileDevice::new(redo, true).unwrap());
        redo::seal(&redo, (&file, Scope::File), &top, &staged.changes().unwrap(), &[]).unwrap();
        drop((staged, top, file));
        let reader = open_file(&path, false).unwrap();
        let mut buf = [0; 2];
        reader.read_at(99, &mut buf).unwrap();
        assert_eq!(buf, [1, 9]);
        assert_eq!(std::fs::read(&path).unwrap()[100], 1, "a reader writes nothing");
        drop(reader);
        drop(open_file(&path, true).unwrap());
        assert_eq!(std::fs::read(&path).unwrap()[99..101], [1, 9]);
        assert!(!redo_path(&path).exists());
    }
}
