//! Intents: what a transaction promised to do in later ones. One that was not done when the system died has to be
//! done now, in the order of the log.

use std::collections::BTreeMap;

use racker_formats::error::Result;
use racker_formats::wire::{Layout, index, part, take};

use super::super::fault::Fault;
use super::super::inode::ForkKind;
use super::super::superblock::{Incompat, Superblock};
use super::super::units::{FileBlock, FsBlock, InodeNo, Lsn};
use super::layout::{
    RawAttrIntent, RawExchangeIntent, RawFreeExtent, RawIntentItem, RawMapExtent, RawPhysExtent,
};
use super::transaction::Item;

/// Extents of one intent; the kernel writes at most 16 or so.
const EXTENTS_MAX: u32 = 4096;
/// Intents that can be open at one time: each belongs to a transaction under way.
const OPEN_MAX: usize = 1 << 17;
const WHAT: &str = "intent in the log";

/// Something that was promised and not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Intent {
    /// The transaction that promised it.
    pub(in super::super) lsn: Lsn,
    pub(in super::super) what: Promise,
}

/// What was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Promise {
    /// Free these blocks (EFI).
    Free(Vec<Run>),
    /// Change the reverse map (RUI).
    Rmap(Vec<RmapChange>),
    /// Change reference counts (CUI).
    Refcount(Vec<RefcountChange>),
    /// Map blocks into a file, or out of it (BUI).
    Map(Vec<MapChange>),
    /// Set or remove an attribute (ATTRI).
    Attr {
        /// The inode.
        ino: InodeNo,
        /// It is the filesystem's own and hidden from users: who names this inode.
        parent: bool,
    },
    /// Exchange mappings of two files (XMI).
    Exchange {
        /// One file.
        first: InodeNo,
        /// The other.
        second: InodeNo,
    },
    /// Something on the realtime device, with its type of item.
    Realtime(u16),
}

/// Blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Run {
    pub(in super::super) start: FsBlock,
    pub(in super::super) len: u32,
}

/// A change of the reverse map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct RmapChange {
    pub(in super::super) op: RmapOp,
    /// An inode, or one of the special owners.
    pub(in super::super) owner: u64,
    pub(in super::super) run: Run,
    pub(in super::super) at: FileBlock,
    pub(in super::super) fork: ForkKind,
    /// A block of the fork's extent tree.
    pub(in super::super) tree: bool,
    pub(in super::super) unwritten: bool,
}

/// What is done to the reverse map; the shared forms are for blocks with several owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum RmapOp {
    Map,
    MapShared,
    Unmap,
    UnmapShared,
    Convert,
    ConvertShared,
    Alloc,
    Free,
}

/// A change of reference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct RefcountChange {
    pub(in super::super) op: RefcountOp,
    pub(in super::super) run: Run,
}

/// What is done to reference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum RefcountOp {
    Increase,
    Decrease,
    /// Note blocks as a copy in the making.
    AllocCow,
    /// No longer so.
    FreeCow,
}

/// A change of a file's mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct MapChange {
    /// Into the file; otherwise out of it.
    pub(in super::super) map: bool,
    pub(in super::super) ino: InodeNo,
    pub(in super::super) fork: ForkKind,
    pub(in super::super) at: FileBlock,
    pub(in super::super) run: Run,
    pub(in super::super) unwritten: bool,
}

/// Log items: intents, each with what says that it was done.
const EFI: u16 = 0x1236;
const EFD: u16 = 0x1237;
const RUI: u16 = 0x1240;
const RUD: u16 = 0x1241;
const CUI: u16 = 0x1242;
const CUD: u16 = 0x1243;
const BUI: u16 = 0x1244;
const BUD: u16 = 0x1245;
const ATTRI: u16 = 0x1246;
const ATTRD: u16 = 0x1247;
const XMI: u16 = 0x1248;
const XMD: u16 = 0x1249;
const EFI_RT: u16 = 0x124a;
const EFD_RT: u16 = 0x124b;
const RUI_RT: u16 = 0x124c;
const RUD_RT: u16 = 0x124d;
const CUI_RT: u16 = 0x124e;
const CUD_RT: u16 = 0x124f;

/// Intents that were not done so far.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// By their order in the log.
    open: BTreeMap<u64, Intent>,
    /// The last one of each kind and id.
    index: BTreeMap<(u16, u64), u64>,
    next: u64,
}

impl Promises {
    /// Takes note of an intent, or that one was done; says whether the item was either.
    pub(super) fn note(&mut self, sb: &Superblock, item: &Item<'_>, lsn: Lsn) -> Result<bool> {
        let kind = item.kind()?;
        let done = match kind {
            EFI | RUI | CUI | BUI | ATTRI | XMI | EFI_RT | RUI_RT | CUI_RT => None,
            EFD => Some(EFI),
            RUD => Some(RUI),
            CUD => Some(CUI),
            BUD => Some(BUI),
            ATTRD => Some(ATTRI),
            XMD => Some(XMI),
            EFD_RT => Some(EFI_RT),
            RUD_RT => Some(RUI_RT),
            CUD_RT => Some(CUI_RT),
            _ => return Ok(false),
        };
        let id = take::<RawIntentItem>(item.region(0)?, 0, WHAT)?.id.get();
        if let Some(intent) = done {
            if let Some(number) = self.index.remove(&(intent, id)) {
                self.open.remove(&number);
            }
            return Ok(true);
        }
        if self.open.len() >= OPEN_MAX {
            return Err(Fault::Structure { what: "log", why: "too many intents are not done" }.into());
        }
        self.open.insert(self.next, Intent { lsn, what: promise(sb, kind, item)? });
        self.index.insert((kind, id), self.next);
        self.next = self.next.saturating_add(1);
        Ok(true)
    }

    /// What was promised and not done, in the order of the log.
    pub(super) fn left(self) -> Vec<Intent> {
        self.open.into_values().collect()
    }
}

fn promise(sb: &Superblock, kind: u16, item: &Item<'_>) -> Result<Promise> {
    let region = item.region(0)?;
    Ok(match kind {
        EFI => Promise::Free(free_extents(sb, region)?),
        RUI => Promise::Rmap(extents(region, |raw| rmap_change(sb, raw))?),
        CUI => Promise::Refcount(extents(region, |raw| refcount_change(sb, raw))?),
        BUI => Promise::Map(extents(region, |raw| map_change(sb, raw))?),
        ATTRI => attr_intent(sb, region)?,
        XMI => {
            let raw: RawExchangeIntent = take(region, 0, WHAT)?;
            let (first, second) = (InodeNo(raw.xmi_inode1.get()), InodeNo(raw.xmi_inode2.get()));
            Promise::Exchange { first, second }
        }
        _ => Promise::Realtime(kind),
    })
}

/// The extents behind an intent's head.
fn extents<R: Layout, T>(region: &[u8], one: impl Fn(&R) -> Result<T>) -> Result<Vec<T>> {
    let count = extent_count(region)?;
    let mut all = Vec::with_capacity(count);
    for i in 0..count {
        let at = size_of::<RawIntentItem>().saturating_add(i.saturating_mul(size_of::<R>()));
        all.push(one(&take(region, at, WHAT)?)?);
    }
    Ok(all)
}

fn extent_count(region: &[u8]) -> Result<usize> {
    let head: RawIntentItem = take(region, 0, WHAT)?;
    let count = head.nextents.get();
    if count == 0 || count > EXTENTS_MAX {
        let why = "none, or more than there can be";
        return Err(Fault::Field { what: "extents of an intent", found: count.into(), why }.into());
    }
    index(count.into())
}

/// Blocks to be freed; 32-bit systems log 12 bytes for each.
fn free_extents(sb: &Superblock, region: &[u8]) -> Result<Vec<Run>> {
    let count = extent_count(region)?;
    let body = region.len().saturating_sub(size_of::<RawIntentItem>());
    let each = if body >= count.saturating_mul(size_of::<RawFreeExtent>()) { 16 } else { 12 };
    let mut all = Vec::with_capacity(count);
    for i in 0..count {
        let at = size_of::<RawIntentItem>().saturating_add(i.saturating_mul(each));
        let bytes = [part(region, at, each.min(12), WHAT)?, &[0; 4]].concat();
        let raw: RawFreeExtent = take(&bytes, 0, WHAT)?;
        all.push(run(sb, raw.ext_start.get(), raw.ext_len.get())?);
    }
    Ok(all)
}

fn run(sb: &Superblock, start: u64, len: u32) -> Result<Run> {
    sb.span(FsBlock(start), len.into())?;
    Ok(Run { start: FsBlock(start), len })
}

fn fork_of(flags: u32) -> ForkKind {
    if flags >> 31 == 1 { ForkKind::Attr } else { ForkKind::Data }
}

fn unknown(found: u32) -> racker_formats::error::Error {
    Fault::Field { what: "flags of an intent", found: found.into(), why: "unknown" }.into()
}

fn rmap_change(sb: &Superblock, raw: &RawMapExtent) -> Result<RmapChange> {
    let flags = raw.me_flags.get();
    let op = match flags & 0xff {
        1 => RmapOp::Map,
        2 => RmapOp::MapShared,
        3 => RmapOp::Unmap,
        4 => RmapOp::UnmapShared,
        5 => RmapOp::Convert,
        6 => RmapOp::ConvertShared,
        7 => RmapOp::Alloc,
        8 => RmapOp::Free,
        _ => return Err(unknown(flags)),
    };
    Ok(RmapChange {
        op,
        owner: raw.me_owner.get(),
        run: run(sb, raw.me_startblock.get(), raw.me_len.get())?,
        at: FileBlock(raw.me_startoff.get()),
        fork: fork_of(flags),
        tree: flags >> 30 & 1 == 1,
        unwritten: flags >> 29 & 1 == 1,
    })
}

fn refcount_change(sb: &Superblock, raw: &RawPhysExtent) -> Result<RefcountChange> {
    let flags = raw.pe_flags.get();
    let op = match flags & 0xff {
        1 => RefcountOp::Increase,
        2 => RefcountOp::Decrease,
        3 => RefcountOp::AllocCow,
        4 => RefcountOp::FreeCow,
        _ => return Err(unknown(flags)),
    };
    Ok(RefcountChange { op, run: run(sb, raw.pe_startblock.get(), raw.pe_len.get())? })
}

fn map_change(sb: &Superblock, raw: &RawMapExtent) -> Result<MapChange> {
    let flags = raw.me_flags.get();
    let map = match flags & 0xff {
        1 => true,
        2 => false,
        _ => return Err(unknown(flags)),
    };
    let ino = InodeNo(raw.me_owner.get());
    sb.inode_offset(ino)?;
    if flags >> 29 & 1 == 1 {
        return Err(Fault::Realtime { ino: ino.0 }.into());
    }
    Ok(MapChange {
        map,
        ino,
        fork: fork_of(flags),
        at: FileBlock(raw.me_startoff.get()),
        run: run(sb, raw.me_startblock.get(), raw.me_len.get())?,
        unwritten: flags >> 30 & 1 == 1,
    })
}

fn attr_intent(sb: &Superblock, region: &[u8]) -> Result<Promise> {
    /// The flag of a parent pointer among those of an attribute's name.
    const PARENT: u32 = 1 << 3;
    let raw: RawAttrIntent = take(region, 0, WHAT)?;
    let parent = sb.incompat.contains(Incompat::PARENT) && raw.alfi_attr_filter.get() & PARENT != 0;
    Ok(Promise::Attr { ino: InodeNo(raw.alfi_ino.get()), parent })
}
