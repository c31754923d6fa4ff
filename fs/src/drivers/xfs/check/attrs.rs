//! Extended attributes in all their forms.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part, take};

use super::super::attr::{Attr, AttrFlags, LEAF};
use super::super::da::{DaBlock, DaFork};
use super::super::edit::attrs::attr_hash;
use super::super::fault::Fault;
use super::super::inode::{Fork, ForkFormat, ForkKind, Inode};
use super::super::layout::{
    RawAttrFree, RawAttrLeafEntry, RawAttrLeafTail, RawAttrLocal, RawAttrRemote, RawAttrRemoteName,
    RawAttrShort, RawAttrShortEntry,
};
use super::super::units::FileBlock;
use super::Checker;
use super::datree::entries_at;

const WHAT: &str = "attribute leaf";
/// Names in a leaf take multiples of this.
const ALIGN: usize = 4;
/// What the kernel takes for the fixed part of a name whose value lies elsewhere: it counts padding.
const REMOTE_NAME: usize = 11;
/// Bytes of the largest value.
const VALUE_MAX: u32 = 64 << 10;

fn damaged<T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: WHAT, why }.into())
}

/// The flags of an attribute, which is in one space of names and was written whole.
fn flags_of(bits: u8) -> Result<AttrFlags> {
    let flags = AttrFlags::from_bits_retain(bits);
    let spaces = flags.difference(AttrFlags::LOCAL);
    if spaces.contains(AttrFlags::INCOMPLETE) {
        return damaged("an attribute was never finished");
    }
    if AttrFlags::from_bits(bits).is_none() || spaces.bits().count_ones() > 1 {
        let why = "not one space of names";
        return Err(Fault::Field { what: "flags", found: bits.into(), why }.into());
    }
    Ok(spaces)
}

/// A name in a leaf.
struct Placed {
    attr: Attr,
    /// Bytes it takes, from where on.
    at: usize,
    len: usize,
    /// First block of its value, if that lies elsewhere, and the value's length.
    remote: Option<(u32, u32)>,
}

impl Checker<'_> {
    /// Goes through the attributes of an inode.
    pub(super) fn attributes(&mut self, inode: &Inode) -> Result<()> {
        let Some(fork) = inode.attr else { return Ok(()) };
        let good = match fork.format {
            ForkFormat::Local => self.short_attrs(inode, &fork),
            ForkFormat::Extents if fork.extents == 0 => Ok(()),
            _ => self.attr_tree(inode),
        };
        self.notes.look(good.within(|| format!("attributes of inode {}", inode.ino.0)))?;
        Ok(())
    }

    fn short_attrs(&mut self, inode: &Inode, fork: &Fork) -> Result<()> {
        const SHORT: &str = "attributes in the inode";
        let bytes = inode.fork_bytes(fork)?;
        let head: RawAttrShort = take(bytes, 0, SHORT)?;
        let bytes = part(bytes, 0, head.totsize.get().into(), SHORT)?;
        let mut at = size_of::<RawAttrShort>();
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..head.count {
            let raw: RawAttrShortEntry = take(bytes, at, SHORT)?;
            let flags = flags_of(raw.flags)?;
            at = at.saturating_add(size_of::<RawAttrShortEntry>());
            let name = part(bytes, at, raw.namelen.into(), SHORT)?;
            at = at.saturating_add(name.len()).saturating_add(raw.valuelen.into());
            if name.is_empty() || name.contains(&0) {
                return Err(Fault::Structure { what: SHORT, why: "a name that cannot be" }.into());
            }
            let repeated = !names.insert((flags.bits(), name));
            if repeated && !flags.contains(AttrFlags::PARENT) {
                return Err(Fault::Structure { what: SHORT, why: "two have the same name" }.into());
            }
        }
        if at != bytes.len() {
            let why = "not where the last one ends";
            return Err(Fault::Field { what: "totsize", found: head.totsize.get().into(), why }.into());
        }
        Ok(())
    }

    fn attr_tree(&mut self, inode: &Inode) -> Result<()> {
        let block_bytes = self.volume.sb.block_size.bytes();
        let fork = DaFork { inode, kind: ForkKind::Attr, block_bytes };
        let mut values = 0u64;
        let blocks = self.da_tree(&fork, FileBlock(0), &LEAF, &mut |check, _, block| {
            check.attr_leaf(inode, block, &mut values).within(|| format!("block {}", block.at.0))
        })?;
        let all = self.volume.da_budget(&fork)?;
        let found = blocks.saturating_add(values);
        if found != all {
            let why = "has blocks that neither its tree nor a value has";
            return Err(Fault::Fork { ino: inode.ino.0, fork: "attribute", why }.into());
        }
        Ok(())
    }

    /// Goes through a leaf. Returns its last hash; blocks of values are added to `values`.
    fn attr_leaf(&mut self, inode: &Inode, block: &DaBlock, values: &mut u64) -> Result<u32> {
        let bytes = block.bytes.as_slice();
        let (head, first) = entries_at(self.volume.sb.v5, size_of::<RawAttrLeafTail>());
        let tail: RawAttrLeafTail = take(bytes, head, WHAT)?;
        let count = usize::from(tail.count.get());
        let end = first.saturating_add(count.saturating_mul(size_of::<RawAttrLeafEntry>()));
        let (mut last, mut used, mut before) = (0u32, Vec::new(), None::<Attr>);
        for i in 0..count {
            let at = first.saturating_add(i.saturating_mul(size_of::<RawAttrLeafEntry>()));
            let entry: RawAttrLeafEntry = take(bytes, at, WHAT)?;
            let placed = placed(bytes, &entry)?;
            let hash = entry.hashval.get();
            if hash < last {
                return damaged("hashes are out of order");
            }
            if attr_hash(&self.volume.sb, &placed.attr).is_ok_and(|right| right != hash) {
                return damaged("a hash is not that of its name");
            }
            let same =
                before.as_ref().is_some_and(|b| b.flags == placed.attr.flags && b.name == placed.attr.name);
            if same && !placed.attr.flags.contains(AttrFlags::PARENT) {
                return damaged("two have the same name");
            }
            last = hash;
            used.push((placed.at, placed.len));
            if let Some((at, len)) = placed.remote {
                *values = values.saturating_add(self.value(inode, at, len)?);
            }
            before = Some(placed.attr);
        }
        heap(bytes, &tail, end, used)?;
        Ok(last)
    }

    /// Reads a value that lies outside of the tree. Returns the blocks that it takes.
    fn value(&mut self, inode: &Inode, at: u32, len: u32) -> Result<u64> {
        if len == 0 || len > VALUE_MAX {
            let why = "a value outside of the tree has 1 to 65536 bytes";
            return Err(Fault::Field { what: "valuelen", found: len.into(), why }.into());
        }
        self.volume.remote_value(inode, at, len.into())?;
        let block = self.volume.sb.block_size.bytes();
        let head = if self.volume.sb.v5 { len64(size_of::<RawAttrRemote>()) } else { 0 };
        Ok(u64::from(len).div_ceil(block.saturating_sub(head).max(1)))
    }
}

/// The name that an entry of a leaf points to.
fn placed(bytes: &[u8], entry: &RawAttrLeafEntry) -> Result<Placed> {
    let flags = flags_of(entry.flags)?;
    let at = usize::from(entry.nameidx.get());
    let local = AttrFlags::from_bits_retain(entry.flags).contains(AttrFlags::LOCAL);
    let (name_at, namelen, valuelen, fixed, remote) = if local {
        let raw: RawAttrLocal = take(bytes, at, WHAT)?;
        let fixed = size_of::<RawAttrLocal>();
        (at.saturating_add(fixed), raw.namelen, raw.valuelen.get(), fixed, None)
    } else {
        let raw: RawAttrRemoteName = take(bytes, at, WHAT)?;
        let remote = Some((raw.valueblk.get(), raw.valuelen.get()));
        (at.saturating_add(size_of::<RawAttrRemoteName>()), raw.namelen, 0, REMOTE_NAME, remote)
    };
    let name = part(bytes, name_at, namelen.into(), WHAT)?;
    let value = part(bytes, name_at.saturating_add(name.len()), valuelen.into(), WHAT)?;
    if name.is_empty() || name.contains(&0) {
        return damaged("a name that cannot be");
    }
    let len = fixed.saturating_add(name.len()).saturating_add(value.len()).next_multiple_of(ALIGN);
    Ok(Placed { attr: Attr { flags, name: name.to_vec(), value: value.to_vec() }, at, len, remote })
}

/// Compares what a leaf says of its room with the names that are there; its entries end at `end`.
fn heap(bytes: &[u8], tail: &RawAttrLeafTail, end: usize, mut used: Vec<(usize, usize)>) -> Result<()> {
    // With blocks of 64 KiB, 0 stands for the end.
    let first_used = match usize::from(tail.firstused.get()) {
        0 => bytes.len(),
        at => at,
    };
    used.sort_unstable();
    let (mut past, mut sum) = (end.max(first_used), 0usize);
    for (at, len) in &used {
        if *at < past || at.saturating_add(*len) > bytes.len() {
            return damaged("names overlap, or are not where they can be");
        }
        past = at.saturating_add(*len);
        sum = sum.saturating_add(*len);
    }
    if sum != usize::from(tail.usedbytes.get()) {
        let why = "not what its names take";
        return Err(Fault::Field { what: "usedbytes", found: tail.usedbytes.get().into(), why }.into());
    }
    for RawAttrFree { base, size } in tail.freemap {
        let (base, size) = (usize::from(base.get()), usize::from(size.get()));
        let behind = base.saturating_add(size);
        let taken = used.iter().any(|(at, len)| base < at.saturating_add(*len) && behind > *at);
        if size > 0 && (base < end || behind > bytes.len() || taken) {
            return damaged("what it calls free is not");
        }
    }
    index(len64(sum)).map(drop)
}
