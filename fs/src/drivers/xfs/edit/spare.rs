//! The AGFL: blocks that a group keeps aside so that its free space trees and its reverse map can grow while
//! space is being allocated. A ring in a sector of its own; its ends are in the AGF.

use std::collections::BTreeSet;

use racker_formats::error::Result;
use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use super::super::fault::Fault;
use super::super::layout::{RawAgf, RawAgfl};
use super::btree::Pool;
use super::ground::Ground;
use super::header::Header;

/// Bytes of a slot.
const SLOT: usize = size_of::<U32>();

/// Which slots are in use.
#[derive(Clone, Copy, Debug)]
pub(in crate::drivers::xfs) struct Ring {
    /// Slots there are.
    size: u32,
    first: u32,
    last: u32,
    count: u32,
}

impl Ring {
    /// The ends that `agf` has of a ring of `size` slots.
    pub(in crate::drivers::xfs) fn of(agf: &RawAgf, size: usize) -> Result<Self> {
        let size = u32::try_from(size).unwrap_or(0);
        let (first, last, count) = (agf.agf_flfirst.get(), agf.agf_fllast.get(), agf.agf_flcount.get());
        let active = match count {
            0 => 0,
            _ if first <= last => last.saturating_sub(first).saturating_add(1),
            _ => size.saturating_sub(first).saturating_add(last).saturating_add(1),
        };
        if first >= size || last >= size || count > size || active != count {
            // Linux before 4.17 laid the ring out one slot shorter; the kernel then starts a new ring.
            return Err(Fault::Spares { count, first, last, size }.into());
        }
        Ok(Self { size, first, last, count })
    }

    fn next(&self, slot: u32) -> u32 {
        let next = slot.saturating_add(1);
        if next >= self.size { 0 } else { next }
    }

    /// The slots in use, the oldest first.
    pub(in crate::drivers::xfs) fn slots(self) -> impl Iterator<Item = u32> {
        let all = std::iter::successors(Some(self.first), move |slot| Some(self.next(*slot)));
        all.take(usize::try_from(self.count).unwrap_or(0))
    }
}

/// The spare blocks of a group.
#[derive(Debug)]
pub(super) struct Spare {
    ground: Ground,
    header: Header<RawAgfl>,
    ring: Ring,
    /// Changed since it was read.
    dirty: bool,
}

impl Spare {
    /// Reads the ring whose ends `agf` has.
    pub(super) fn read(ground: &Ground, agf: &RawAgf) -> Result<Self> {
        let header: Header<RawAgfl> = Header::read(ground)?;
        let ring = Ring::of(agf, header.rest().len().checked_div(SLOT).unwrap_or(0))?;
        Ok(Self { ground: ground.clone(), header, ring, dirty: false })
    }

    /// Blocks in the ring.
    pub(super) fn count(&self) -> u32 {
        self.ring.count
    }

    fn slots(&mut self) -> &mut [U32] {
        let rest = self.header.rest_mut();
        let odd = rest.len().checked_rem(SLOT).unwrap_or(0);
        let (slots, _) = rest.split_at_mut(rest.len().saturating_sub(odd));
        <[U32]>::mut_from_bytes(slots).unwrap_or_default()
    }

    /// The blocks in the ring.
    pub(super) fn blocks(&mut self) -> Result<BTreeSet<u32>> {
        let mut all = BTreeSet::new();
        for slot in self.ring.slots() {
            let at = racker_formats::wire::index(slot.into())?;
            let block = self.slots().get(at).map_or(0, |b| b.get());
            self.ground.check(block, 1)?;
            if !all.insert(block) {
                return Err(Fault::Structure { what: "AGFL", why: "a block is there twice" }.into());
            }
        }
        Ok(all)
    }

    /// Takes the oldest block out of the ring.
    pub(super) fn take(&mut self) -> Result<u32> {
        if self.ring.count == 0 {
            return Err(Fault::NoSpace.into());
        }
        let slot = racker_formats::wire::index(self.ring.first.into())?;
        let block = self.slots().get(slot).map_or(0, |b| b.get());
        self.ground.check(block, 1)?;
        self.ring.first = self.ring.next(self.ring.first);
        self.ring.count = self.ring.count.saturating_sub(1);
        self.dirty = true;
        Ok(block)
    }

    /// Puts a block into the ring.
    pub(super) fn put(&mut self, block: u32) -> Result<()> {
        if self.ring.count >= self.ring.size {
            return Err(Fault::Structure { what: "AGFL", why: "no slot is left for a spare block" }.into());
        }
        self.ring.last = self.ring.next(self.ring.last);
        let slot = racker_formats::wire::index(self.ring.last.into())?;
        if let Some(place) = self.slots().get_mut(slot) {
            *place = block.into();
        }
        self.ring.count = self.ring.count.saturating_add(1);
        self.dirty = true;
        Ok(())
    }

    /// Writes the ring, and its ends into `agf`.
    pub(super) fn write_back(&mut self, agf: &mut RawAgf) -> Result<()> {
        agf.agf_flfirst = self.ring.first.into();
        agf.agf_fllast = self.ring.last.into();
        agf.agf_flcount = self.ring.count.into();
        if self.dirty {
            self.header.write(&self.ground)?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// The ring as the place where a tree gets its blocks, with the counts that go with it.
pub(super) struct SparePool<'a> {
    pub(super) spare: &'a mut Spare,
    /// `agf_btreeblks`.
    pub(super) tree_blocks: &'a mut u32,
    /// `agf_rmap_blocks`, if it is the reverse map that grows.
    pub(super) map_blocks: Option<&'a mut u32>,
}

impl Pool for SparePool<'_> {
    fn take(&mut self) -> Result<u32> {
        let block = self.spare.take()?;
        *self.tree_blocks = self.tree_blocks.saturating_add(1);
        if let Some(blocks) = self.map_blocks.as_deref_mut() {
            *blocks = blocks.saturating_add(1);
        }
        Ok(block)
    }

    fn give(&mut self, block: u32) -> Result<()> {
        let fewer = |count: u32| -> Result<u32> {
            let why = "a group has more tree blocks than it counts";
            count.checked_sub(1).ok_or_else(|| Fault::Structure { what: "AGF", why }.into())
        };
        *self.tree_blocks = fewer(*self.tree_blocks)?;
        if let Some(blocks) = self.map_blocks.as_deref_mut() {
            *blocks = fewer(*blocks)?;
        }
        self.spare.put(block)
    }
}
