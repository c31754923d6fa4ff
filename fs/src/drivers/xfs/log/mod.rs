//! The log: what it holds of changes that may not have reached their places, and how it is ended cleanly.
//!
//! Specification: "XFS Algorithms & Data Structures", "Journaling Log", and the items of later versions: inode
//! creation (3.10), reverse map, reference count and mapping intents (4.8), attribute intents (5.19), exchange
//! intents (6.10). Records of versions 1 and 2, with and without checksums, of little-endian hosts are read;
//! those of big-endian hosts are refused. Where the records end is found as the kernel finds it ([`head`]).
//!
//! | file | holds |
//! | --- | --- |
//! | `layout` | records and items as they lie on disk |
//! | `ring` | blocks, and the round each was written in |
//! | `record` | header, checksum, data of one write |
//! | `head` | where the log begins and ends |
//! | `transaction` | operations put together |
//! | `replay` | the two passes, and which item goes when |
//! | `buffers` | blocks being replayed |
//! | `buf_item`, `inode_item`, `icreate`, `dquot`, `owner` | replay of each kind of item |
//! | `pieces` | directory blocks that lie in several extents |
//! | `intent` | what was promised and not done |
//! | `orphans` | inodes without a name, to be freed after a replay |
//! | `counters` | the superblock's counters after a replay |
//! | `unmount` | the clean end |

mod buf_item;
mod buffers;
mod counters;
mod dquot;
mod head;
mod icreate;
mod inode_item;
mod intent;
mod layout;
mod orphans;
mod owner;
mod pieces;
mod record;
mod replay;
mod ring;
mod transaction;
mod unmount;

use racker_formats::error::{Result, Within};

use super::fault::Fault;
use super::layout::RawUuid;
use super::superblock::{LogIncompat, Superblock, names};
use super::units::Lsn;
use super::volume::Volume;
use head::State;
use ring::Ring;
use unmount::Behind;

pub(super) use intent::{Intent, MapChange, Promise, RefcountChange, RefcountOp, RmapChange, RmapOp, Run};
pub(super) use orphans::unlinked;

/// The log of a volume, and what it says about itself.
#[derive(Debug)]
pub(super) struct Log {
    ring: Ring,
    state: State,
}

/// What is left to do after a replay.
#[derive(Debug)]
pub(super) struct Recovery {
    /// What was promised and not done, in the order of the log.
    pub(super) intents: Vec<Intent>,
}

impl Log {
    /// Finds the log's head and tail.
    pub(super) fn open(volume: &Volume) -> Result<Self> {
        let ring = Ring::new(volume)?;
        let state = State::find(&ring)?;
        // A number ahead of the log is of another time: a replay would take older changes for newer ones.
        let (found, head) = (volume.sb.lsn(), state.head);
        if found > head {
            return Err(Fault::LsnAhead { found: found.to_string(), head: head.to_string() }.into());
        }
        Ok(Self { ring, state })
    }

    /// Whether nothing has to be replayed.
    pub(super) fn is_clean(&self) -> bool {
        self.state.clean
    }

    /// Where the next record goes: no block was changed later.
    pub(super) fn head(&self) -> Lsn {
        self.state.head
    }

    /// Replays the log into the volume and reads the superblock again.
    pub(super) fn replay(&self, volume: &mut Volume) -> Result<Recovery> {
        let known = LogIncompat::all().bits();
        let unknown = LogIncompat::from_bits_retain(volume.sb.log_incompat.bits() & !known);
        if !unknown.is_empty() {
            return Err(Fault::Features { features: format!("log: {}", names(&unknown)) }.into());
        }
        if self.state.clean || self.state.tail == self.state.head.block() {
            return Ok(Recovery { intents: Vec::new() });
        }
        let intents = replay::replay(volume, &self.ring, &self.state).within(|| "log")?;
        volume.sb = Superblock::read(&volume.disk)?;
        counters::recount(volume).within(|| "counters after the log's replay")?;
        Ok(Recovery { intents })
    }

    /// Ends the log, which is clean, once more with a record that carries the filesystem's new UUID.
    pub(super) fn rename(&mut self, uuid: RawUuid) -> Result<()> {
        self.ring.uuid = uuid;
        unmount::write(&self.ring, &self.state, Behind::Other).within(|| "log")?;
        self.state = State::find(&self.ring)?;
        self.must_be_clean()
    }

    fn must_be_clean(&self) -> Result<()> {
        if !self.state.clean {
            return Err(Fault::Structure { what: "log", why: "does not end in its unmount record" }.into());
        }
        Ok(())
    }

    /// Ends the log with an unmount record, after everything in it was replayed, all of the [`Recovery`] was done,
    /// the [`unlinked`] inodes were freed, and all of it is on the volume. The superblock's counters are counted again.
    pub(super) fn end(&mut self, volume: &mut Volume) -> Result<()> {
        counters::recount(volume).within(|| "counters after the log's replay")?;
        let lsn = unmount::write(&self.ring, &self.state, Behind::Newer).within(|| "log")?;
        counters::store(volume, lsn)?;
        self.state = State::find(&self.ring)?;
        self.must_be_clean()
    }
}
