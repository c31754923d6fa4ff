//! Edits that land by ext4's own journal, cut off: whoever looks, the old filesystem is there, or the new one, or a
//! journal that makes the new one of it.

use std::path::Path;

use racker_formats::block::{BlockDevice, Disk};
use racker_tests::early::Before;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::sim::{CrashDisk, Medium, Sparse};
use racker_tests::tool::tool;

use super::{Kind, landing};

/// First sector of the superblock.
const HEAD: usize = 1024;
const SECTOR: usize = 512;
/// Where `s_log_block_size` is.
const BLOCK_SIZE_AT: u64 = HEAD as u64 + 0x18;
/// Where `s_feature_incompat` is, and `needs_recovery` in it.
const INCOMPAT_AT: usize = HEAD + 0x60;
const RECOVER: u8 = 4;
/// Where `s_start` is in the journal's superblock.
const START_AT: usize = 0x1c;

/// Where the journal lies.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    /// Bytes of its superblock's block, and of all others.
    head: usize,
    blocks: Vec<usize>,
    size: usize,
}

/// What is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Old,
    /// The old one, with something stored in what it calls free.
    Early,
    New,
    /// The new one, once the journal is replayed.
    ToReplay,
}

impl Journal {
    /// As `debugfs` sees it.
    pub(super) fn of(path: &Path) -> Self {
        let mut shift = [0; 4];
        let file = std::fs::File::open(path).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut shift, BLOCK_SIZE_AT).unwrap();
        let size = 1024 << u32::from_le_bytes(shift);
        let list = tool("debugfs").args(["-R", "blocks <8>"]).arg(path).ok();
        let numbers = list.split_whitespace().map(|n| n.parse::<usize>().expect("a block number") * size);
        let mut blocks: Vec<usize> = numbers.collect();
        let head = blocks.remove(0);
        Self { head, blocks, size }
    }

    /// What the log holds means nothing as long as it is empty.
    pub(super) fn is_spare(&self, before: &mut Before) {
        self.blocks.iter().for_each(|at| before.spare(*at as u64, self.size as u64));
    }

    fn has(&self, at: usize) -> bool {
        at - at % self.size == self.head || self.blocks.binary_search(&(at - at % self.size)).is_ok()
    }

    /// Judges what a cut has left, without the help of any redo file.
    pub(super) fn judge(
        &self,
        kind: Kind,
        before: &Before,
        new: &Sparse,
        found: &Sparse,
        when: &str,
    ) -> Found {
        let byte = |disk: &Sparse, at: usize| {
            let mut byte = [0];
            disk.read(at, &mut byte);
            byte[0]
        };
        let is_empty = (0..4).all(|i| byte(found, self.head + START_AT + i) == 0);
        if !is_empty {
            assert!(byte(found, INCOMPAT_AT) & RECOVER != 0, "{when}: a log that nobody is told to replay");
            self.is_new(&replayed(kind, found), new, 2 * SECTOR, when).unwrap();
            return Found::ToReplay;
        }
        if self.is_new(found, new, SECTOR, when).is_ok() {
            return Found::New;
        }
        // That an empty journal is to be replayed means nothing; whoever opens the disk verifies the checksum.
        kind.driver().open(Disk::new(CrashDisk::new(found.clone())).read_only()).unwrap();
        let (mut old, mut head) = (found.clone(), [0; SECTOR]);
        before.guest.read(HEAD, &mut head);
        old.put(HEAD, &head);
        if before.differs(&old, when) { Found::Early } else { Found::Old }
    }

    /// It is the new filesystem, whatever the journal and so many bytes of the superblock hold.
    fn is_new(&self, found: &Sparse, new: &Sparse, head: usize, when: &str) -> Result<(), String> {
        let mut wrong = Ok(());
        new.differences(found, |at, len| {
            let all = (at..at + len).all(|at| self.has(at) || (HEAD..HEAD + head).contains(&at));
            if !all && wrong.is_ok() {
                wrong = Err(format!("{when}: byte {at} is not the new one"));
            }
        });
        wrong
    }
}

/// As racker makes it when it opens it for writing.
fn replayed(kind: Kind, found: &Sparse) -> Sparse {
    let crash = std::sync::Arc::new(CrashDisk::new(found.clone()));
    let disk = Disk::from_arc(crash.clone() as std::sync::Arc<dyn BlockDevice>);
    kind.driver().open_mut(disk).unwrap().close().unwrap();
    crash.bytes()
}

/// Other programs replay it, the kernel or `e2fsck` in turn, and find a sound filesystem.
pub(super) fn others_agree(
    kind: Kind,
    found: &Sparse,
    states: [&Sparse; 2],
    dir: &Path,
    turn: u64,
    when: &str,
) {
    let path = dir.join("foreign.raw");
    landing::write(found, &path);
    if turn.is_multiple_of(2) {
        drop(Mounted::writable(&path, WHOLE));
    } else {
        let ran = tool("e2fsck").args(["-f", "-y"]).arg(&path).run();
        assert!(ran.status <= 1, "{when}: {ran}");
    }
    kind.is_clean(&path, when);
    let file = std::fs::File::open(&path).unwrap();
    let disk = Disk::new(racker_formats::block::FileDevice::new(file, false).unwrap());
    let now = racker_tests::manifest::Manifest::of_filesystem(kind.driver().open(disk).unwrap().as_ref());
    let wanted = states.map(|state| format!("{:?}", kind.manifest(state)));
    assert!(wanted.contains(&format!("{now:?}")), "{when}: neither the old tree nor the new one");
}
