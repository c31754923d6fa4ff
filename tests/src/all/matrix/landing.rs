//! Edits that land on an image, cut off at every operation of its file and of the redo file beside it.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, FileDevice, redo};
use racker_formats::open::{OpenOptions, open};
use racker_formats::transaction::{Transaction, recover, redo_path};
use racker_fs::inspect::Inspection;
use racker_tests::early::{Sealed, Watched};
use racker_tests::image::{disk, open_disk};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::{CrashDisk, FaultDisk, Medium, Sparse};
use racker_tests::tool::tool;

use super::edits::Edits;
use super::journal::{self, Found, Journal};
use super::{Count, Kind, Old};

/// One of so many states is recovered by the way that leads over the host's files.
const BY_FILE: u64 = 64;
/// One of so many states of a qcow2 file is shown to `qemu-img check`, where edits are judged at all.
const BY_QEMU: u64 = 40;
/// One of so many states of a raw image with content stored early is shown to the filesystem's checker.
const BY_CHECKER: u64 = 25;

/// An image in memory.
#[derive(Debug)]
pub(super) struct Image {
    format: &'static str,
    host: Sparse,
    /// Where its file would be.
    path: PathBuf,
    journal: Option<Journal>,
}

/// Writes a file with holes.
pub(super) fn write(bytes: &Sparse, path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    bytes.each(|at, data| {
        let data = &data[..data.len().min(bytes.len() - at)];
        file.write_all_at(data, at as u64).unwrap();
    });
}

fn memory(bytes: &Sparse) -> (Arc<CrashDisk<Sparse>>, Disk) {
    let crash = Arc::new(CrashDisk::new(bytes.clone()));
    let disk = Disk::from_arc(Arc::clone(&crash) as Arc<dyn BlockDevice>);
    (crash, disk)
}

impl Image {
    /// An image of the raw disk at `raw`, made by `qemu-img`.
    pub(super) fn of(kind: Kind, format: &'static str, raw: &Path, dir: &Path) -> Self {
        let path = dir.join(format!("image.{format}"));
        let (from, to) = (raw.display().to_string(), path.display().to_string());
        qemu::img(&["convert", "-q", "-f", "raw", "-O", format, &from, &to]);
        let file = std::fs::File::open(&path).unwrap();
        let host = Sparse::of(&Disk::new(FileDevice::new(file, false).unwrap())).unwrap();
        let journal = Self::has_journal(kind, format).then(|| Journal::of(raw));
        Self { format, host, path, journal }
    }

    fn has_journal(kind: Kind, format: &str) -> bool {
        kind.driver == "ext4" && format == "raw" && !kind.mkfs.contains("ext2")
    }

    fn guest_of(&self, host: &Sparse) -> Sparse {
        if self.format == "raw" {
            return host.clone();
        }
        let image = open_disk(self.format, memory(host).1, false).unwrap();
        Sparse::of(&disk(&image)).unwrap()
    }

    pub(super) fn guest(&self) -> Sparse {
        self.guest_of(&self.host)
    }

    /// The disk as it is. Another size may have moved its journal.
    pub(super) fn old(&mut self, kind: Kind) -> Old {
        if self.journal.is_some() {
            let path = self.path.with_extension("old");
            write(&self.host, &path);
            self.journal = Some(Journal::of(&path));
        }
        Old::of(kind, self.guest(), self.journal.as_ref())
    }

    fn begin(&self, file: &Disk) -> Transaction {
        let reopen = |disk: Disk| open_disk(self.format, disk, true);
        Transaction::begin(reopen(file.clone()).unwrap(), file, Some(&self.path), reopen).unwrap()
    }

    /// An edit that is thrown away: everything stays as it was.
    pub(super) fn give_up(&self, before: &Old, edits: &mut Edits, when: &str) {
        let (crash, file) = memory(&self.host);
        let transaction = self.begin(&file);
        edits.make(&transaction.disk()).unwrap();
        drop(transaction);
        assert!(!redo_path(&self.path).exists());
        before.differs(&self.guest_of(&crash.bytes()), when);
        before.judge(&self.guest_of(&crash.bytes()), self.path.parent().unwrap(), when);
    }

    /// The host fails at one operation of an edit, at so many places one after the other: it did not happen, or the
    /// redo file is there to finish it. Returns how often the host failed.
    pub(super) fn fail(&self, before: &Old, edits: &Edits, places: u64, when: &str) -> u64 {
        let attempt = |good: u64| {
            let (crash, file) = memory(&self.host);
            let fault = Arc::new(FaultDisk::new(file, good, good.is_multiple_of(2)));
            let file = Disk::from_arc(fault.clone() as Arc<dyn BlockDevice>);
            let reopen = |disk: Disk| open_disk(self.format, disk, true);
            let done = reopen(file.clone()).and_then(|image| {
                let transaction = Transaction::begin(image, &file, Some(&self.path), reopen)?;
                edits.clone().make(&transaction.disk())?;
                transaction.commit()
            });
            (crash.bytes(), fault, done)
        };
        let (new, whole, done) = attempt(u64::MAX / 2);
        done.unwrap();
        let step = (whole.done() / places).max(1);
        let mut failed = 0;
        for good in (0..whole.done()).step_by(step as usize | 1) {
            let (found, fault, done) = attempt(good);
            assert!(fault.failed(), "{when}: operation {good}");
            if done.is_ok() {
                // Nobody needed what could not be read: a second table of partitions, say.
                assert!(found == new, "{when}: operation {good}");
                continue;
            }
            failed += 1;
            if redo_path(&self.path).exists() {
                let (crash, disk) = memory(&found);
                recover(&self.path, disk).unwrap();
                assert!(!redo_path(&self.path).exists());
                if crash.bytes() == new {
                    continue;
                }
            }
            if let Some(journal) = &self.journal {
                journal.judge(
                    before.kind,
                    &before.before,
                    &new,
                    &found,
                    &format!("{when}, operation {good}"),
                );
                continue;
            }
            before.differs(&found, &format!("{when}, operation {good} fails"));
        }
        failed
    }

    /// An edit that lands, cut off at every operation.
    pub(super) fn edit(
        &mut self,
        before: &Old,
        edits: &mut Edits,
        (torn, foreign): (u32, bool),
        rng: &mut Rng,
        count: &mut Count,
        when: &str,
    ) {
        let (crash, file) = memory(&self.host);
        if ["qcow2", "vhdx"].contains(&self.format) {
            let transaction = self.begin(&file);
            edits.make(&transaction.disk()).unwrap();
            transaction.commit().unwrap();
            self.cut_switch(before, &crash, (torn, foreign), rng, count, when);
        } else {
            let watched = Arc::new(Watched::new(crash.clone(), &self.path));
            let transaction = self.begin(&Disk::from_arc(watched.clone() as Arc<dyn BlockDevice>));
            edits.make(&transaction.disk()).unwrap();
            transaction.commit().unwrap();
            assert!(!redo_path(&self.path).exists());
            // An edit can come to nothing.
            if let Some(sealed) = watched.sealed() {
                self.cut_sealing(before, &sealed, torn, rng, count, when);
                self.cut_landing(before, &crash, &sealed, (torn, foreign), rng, count, when);
            } else if let Some(journal) = &self.journal {
                self.cut_journal(before, &crash, journal, (torn, foreign), rng, count, when);
            }
        }
        self.host = crash.bytes();
    }

    /// The format switches: the file holds the old disk or the new one.
    fn cut_switch(
        &self,
        before: &Old,
        crash: &CrashDisk<Sparse>,
        (torn, foreign): (u32, bool),
        rng: &mut Rng,
        count: &mut Count,
        when: &str,
    ) {
        let new = self.guest_of(&crash.bytes());
        let mut last: Option<Sparse> = None;
        crash.cuts(rng, torn, |cut, host| {
            count.cuts += 1;
            if last.as_ref() == Some(host) {
                return;
            }
            let guest = self.guest_of(host);
            assert!(
                guest == *before.guest() || guest == new,
                "{when}: neither old nor new after {cut} operations"
            );
            if foreign && count.cuts.is_multiple_of(BY_QEMU) {
                write(host, &self.path);
                self.qemu_agrees(&guest);
                count.judged += 1;
            }
            last = Some(host.clone());
        });
        assert!(self.guest_of(&crash.bytes()) == new);
    }

    /// QEMU finds the file sound, having replayed its log if it has one, and the same disk in it.
    fn qemu_agrees(&self, guest: &Sparse) {
        if self.format == "qcow2" {
            return qemu::check_leaks_only(&self.path);
        }
        let path = self.path.display().to_string();
        let (status, said) = qemu::img_status(&["check", "-f", self.format, "-r", "all", &path]);
        assert_eq!(status, 0, "{said}");
        let file = std::fs::File::open(&self.path).unwrap();
        let file = Disk::new(FileDevice::new(file, false).unwrap());
        assert!(self.guest_of(&Sparse::of(&file).unwrap()) == *guest);
    }

    /// While the redo file is written, the image does not change: the file decides or is nothing.
    fn cut_sealing(
        &self,
        before: &Old,
        sealed: &Sealed,
        torn: u32,
        rng: &mut Rng,
        count: &mut Count,
        when: &str,
    ) {
        before.differs(&self.guest_of(&sealed.image), when);
        // Appended piece by piece, flushed, ended, flushed.
        let (crash, redo) = memory(&Sparse::default());
        let (records, trailer) = sealed.bytes.split_at(sealed.bytes.len() - 32);
        let (piece, mut at) = (records.len() / 40 + 4097, 0);
        for bytes in records.chunks(piece).chain([trailer]) {
            if bytes.len() == trailer.len() && at == records.len() {
                redo.flush().unwrap();
            }
            redo.resize((at + bytes.len()) as u64).unwrap();
            redo.write_at(at as u64, bytes).unwrap();
            at += bytes.len();
        }
        redo.flush().unwrap();
        let mut decided = 0;
        crash.cuts(rng, torn, |cut, found| {
            count.cuts += 1;
            let (_, found) = memory(found);
            match redo::sealed(&found).unwrap() {
                Some(_) => decided += 1,
                None => assert!(cut < crash.len(), "{when}: the whole redo file decides nothing"),
            }
        });
        assert!(decided > 0);
    }

    /// The image's file: first what is stored early, then the redo file is applied to it.
    #[allow(clippy::too_many_arguments)]
    fn cut_landing(
        &self,
        before: &Old,
        crash: &CrashDisk<Sparse>,
        sealed: &Sealed,
        (torn, foreign): (u32, bool),
        rng: &mut Rng,
        count: &mut Count,
        when: &str,
    ) {
        let new = crash.bytes();
        let (_, redo) = memory(&{
            let mut bytes = Sparse::default();
            bytes.put(0, &sealed.bytes);
            bytes
        });
        let decided = redo::sealed(&redo).unwrap().unwrap();
        let new_guest = self.guest_of(&new);
        let mut early = 0;
        crash.cuts(rng, torn, |cut, host| {
            count.cuts += 1;
            let when = format!("{when}, after {cut} of {} operations", crash.len());
            // Without the redo file, as others see it.
            if *host != new && self.is_shut(before.kind, host) {
                count.shut += 1;
                if count.shut % BY_CHECKER == 1 {
                    self.is_refused(host, &when);
                }
            } else if *host != new {
                // The last gate that opens is not the one that decides what is seen.
                let guest = self.guest_of(host);
                if guest != new_guest {
                    before.differs(&guest, &when);
                }
            }
            if cut <= sealed.operations {
                let found = self.guest_of(host);
                if before.differs(&found, &when) {
                    early += 1;
                    if foreign && early % BY_CHECKER == 1 {
                        before.judge(&found, self.path.parent().unwrap(), &when);
                        count.judged += 1;
                    }
                }
                return;
            }
            let (found, disk) = memory(host);
            if count.cuts.is_multiple_of(BY_FILE) {
                std::fs::write(redo_path(&self.path), &sealed.bytes).unwrap();
                recover(&self.path, disk).unwrap();
                assert!(!redo_path(&self.path).exists());
            } else {
                redo::apply(&redo, &disk, &decided).unwrap();
            }
            assert!(found.bytes() == new, "{when}: what was decided does not come about");
        });
        count.early += early;
        assert!(self.format == "raw" || early == 0);
    }

    /// The image's file, into which the filesystem's journal goes first.
    #[allow(clippy::too_many_arguments)]
    fn cut_journal(
        &self,
        before: &Old,
        crash: &CrashDisk<Sparse>,
        journal: &Journal,
        (torn, foreign): (u32, bool),
        rng: &mut Rng,
        count: &mut Count,
        when: &str,
    ) {
        let new = crash.bytes();
        let (mut last, mut replayed) = (None, 0);
        crash.cuts(rng, torn, |cut, host| {
            count.cuts += 1;
            // In haste, some of them stand for all.
            if last.as_ref() == Some(host) || (torn < 2 && !count.cuts.is_multiple_of(3)) {
                return;
            }
            let when = format!("{when}, after {cut} of {} operations", crash.len());
            let found = journal.judge(before.kind, &before.before, &new, host, &when);
            match found {
                Found::ToReplay => (count.to_replay, replayed) = (count.to_replay + 1, replayed + 1),
                Found::Early => count.early += 1,
                Found::Old | Found::New => {}
            }
            let turn = if found == Found::ToReplay { replayed } else { count.cuts };
            if foreign && turn % BY_CHECKER == 1 {
                let dir = self.path.parent().unwrap();
                journal::others_agree(before.kind, host, [before.guest(), &new], dir, count.judged, &when);
                count.judged += 1;
            }
            last = Some(host.clone());
        });
    }

    /// Whether other programs do not take it for a filesystem, and are told why.
    fn is_shut(&self, kind: Kind, host: &Sparse) -> bool {
        let mut head = vec![0; redo::GATE.len()];
        let at = if kind.driver == "ext4" && self.format == "raw" { 1024 } else { 0 };
        host.read(at, &mut head);
        // A VHD says at both ends what it is.
        head == redo::GATE && (self.format != "vpc" || open_disk("vpc", memory(host).1, false).is_err())
    }

    /// Another program does not read it, and racker says what it is.
    fn is_refused(&self, host: &Sparse, when: &str) {
        let path = self.path.with_extension("shut");
        write(host, &path);
        if self.format == "raw" {
            let ran = tool("blkid").args(["-p", "-o", "value", "-s", "TYPE"]).arg(&path).run();
            assert!(ran.status == 2 && ran.out.is_empty(), "{when}: {ran}");
        } else {
            let (status, said) = qemu::img_status(&["check", "-f", self.format, &path.display().to_string()]);
            assert_ne!(status, 0, "{when}: {said}");
        }
        let opened = open(&path, &OpenOptions::default());
        let said = match opened.and_then(|image| Inspection::of(&image.disk)?.volumes[0].filesystem()) {
            Ok(_) => panic!("{when}: racker reads it"),
            Err(e) => e.to_string(),
        };
        assert!(said.contains("interrupted"), "{when}: {said}");
    }
}
