//! Whether a filesystem contradicts itself: what e2fsck looks at in its five passes, read once from front to end.
//!
//! 1. [`tables`]: superblock, group descriptors, where the filesystem's own tables lie; [`resize`]: room to grow
//! 2. [`inodes`], [`inode`]: every inode in use; [`blocks`]: the blocks it names; [`xattrs`]: its attributes
//! 3. [`dirs`], [`entries`]: directories; [`htree`]: their indexes
//! 4. [`connect`]: whether everything has a name, and as many as it counts
//! 5. [`bitmaps`]: bitmaps and counts against all of this; [`quota`]: what owners take
//!
//! The journal is replayed before, in memory where nothing may be written; orphans are as they are, since to have
//! some is no damage. Memory: a bit for each block and six bytes for each inode, of groups that have any in use, and
//! twelve bytes for each directory: 32 MiB for each TiB of blocks of 4 KiB, and 6 MB for each million of inodes.
//!
//! What is found is of two kinds. Where one side of a contradiction follows from everything else (bitmaps, counts),
//! [`mend`] can put it right, and does so only if there is nothing of the other kind, which is for e2fsck. A writer
//! runs the same walk and refuses at the first finding ([`refuse_unsound`]): lost space alone is none.

mod bitmaps;
mod bits;
mod blocks;
mod connect;
mod dirs;
mod entries;
mod finds;
mod htree;
mod inode;
mod inodes;
mod mend;
mod orphans;
mod quota;
mod resize;
mod tables;
mod xattrs;

use std::collections::{BTreeMap, HashMap, HashSet};

use racker_formats::block::Disk;
use racker_formats::check::Report;
use racker_formats::error::Result;

use self::bits::Bits;
use self::finds::Finds;
use self::inodes::Notes;
use self::quota::Owners;
use self::xattrs::Shared;
use super::edit::groups::Desc;
use super::fault::Ext4Fault;
use super::recover;
use super::volume::Ext4;

/// A directory, as far as it is known.
#[derive(Clone, Copy, Debug)]
struct Dir {
    number: u32,
    /// The directory whose entry names it.
    parent: u32,
    /// What its `..` names.
    up: u32,
}

/// Everything that is gathered on the way.
#[derive(Debug)]
struct Checker<'a> {
    fs: &'a Ext4,
    finds: Finds,
    descs: Vec<Desc>,
    /// Blocks of the filesystem's own tables.
    own: Bits,
    /// Clusters that something refers to.
    used: Bits,
    /// All owners of blocks are known: what the bitmaps say can be compared with them.
    all_known: bool,
    notes: Notes,
    /// In order of their numbers.
    dirs: Vec<Dir>,
    /// Blocks of attributes.
    shared: BTreeMap<u64, Shared>,
    /// Inodes that hold values of attributes, and how many entries name them.
    values: BTreeMap<u32, u64>,
    /// The policies of encrypted inodes, those that differ: a number for each.
    policies: HashMap<Vec<u8>, u32>,
    policy_of: BTreeMap<u32, u32>,
    orphans: HashSet<u32>,
    owners: Owners,
    /// Groups whose bitmaps or counts are wrong.
    to_mend: Vec<u64>,
    /// So are the counts of the superblock.
    mend_totals: bool,
    /// The journal's superblock has values in fields that stand for nothing there.
    mend_journal: bool,
}

impl<'a> Checker<'a> {
    fn new(fs: &'a Ext4, strict: bool) -> Self {
        Self {
            fs,
            finds: Finds::new(strict),
            descs: Vec::new(),
            own: Bits::default(),
            used: Bits::default(),
            all_known: true,
            notes: Notes::new(&fs.sb),
            dirs: Vec::new(),
            shared: BTreeMap::new(),
            values: BTreeMap::new(),
            policies: HashMap::new(),
            policy_of: BTreeMap::new(),
            orphans: HashSet::new(),
            owners: Owners::default(),
            to_mend: Vec::new(),
            mend_totals: false,
            mend_journal: false,
        }
    }

    /// Goes through everything.
    fn walk(&mut self) -> Result<()> {
        self.check_superblock()?;
        // Where tables are in doubt, nothing else is known.
        if !self.read_tables()? {
            return Ok(());
        }
        self.check_resize_inode()?;
        self.find_orphans()?;
        self.check_inodes()?;
        self.check_shared()?;
        self.check_dirs()?;
        self.check_names()?;
        self.check_bitmaps()?;
        self.check_quotas()
    }
}

fn refuse_fast_commits(fs: &Ext4) -> Result<()> {
    if fs.fast.is_empty() {
        return Ok(());
    }
    let what =
        "its journal holds fast commits, after which nothing can be checked; mount it once, or run e2fsck";
    Err(Ext4Fault::Unwritable(what.into()).into())
}

/// Checks the filesystem on `volume`, and mends it if that is asked for and safe.
pub(super) fn check(volume: Disk, report: &mut Report) -> Result<()> {
    let repair = report.repair;
    let fs = if repair { super::edit::replayed(volume)? } else { recover::open(volume)? };
    refuse_fast_commits(&fs)?;
    let mut checker = Checker::new(&fs, false);
    checker.walk()?;
    let doubtful = checker.finds.doubtful;
    let mend = repair && !doubtful && !checker.finds.is_empty();
    if mend {
        checker.mend()?;
        // What was mended must hold.
        let mut again = Ext4::new(fs.disk.clone(), super::superblock::Superblock::read(&fs.disk)?);
        again.replayed = fs.replayed;
        let mut second = Checker::new(&again, true);
        second.walk()?;
    }
    checker.finds.tell(report, mend);
    Ok(())
}

/// An error that names the first contradiction, if there is one. Space that is only lost is none.
pub(super) fn refuse_unsound(fs: &Ext4) -> Result<()> {
    refuse_fast_commits(fs)?;
    Checker::new(fs, true).walk()
}
