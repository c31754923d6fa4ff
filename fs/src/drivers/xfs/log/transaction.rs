//! Operations of log records, put together to transactions: regions that were cut where a record was full,
//! transactions of which each record has a part. One counts when its commit operation is there.

use std::collections::BTreeMap;

use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part, take};

use super::super::fault::Fault;
use super::super::units::Lsn;
use super::head::OP_UNMOUNT;
use super::layout::{RawItemHead, RawLogOp, RawTransHeader, TRANS_MAGIC};
use super::record::{FORMAT_LE, Record};
use super::ring::Ring;

/// Bytes that transactions may take before they are committed. Linux writes a checkpoint at 64 MiB at the latest.
const BYTES_MAX: u64 = 192 << 20;
/// Transactions under way at one time; Linux has a handful of checkpoints, older systems had hundreds.
const OPEN_MAX: usize = 1 << 16;
/// What an operation counts for besides its bytes: its header in the log, its place in memory.
const OP_BYTES: u64 = 24;
/// Regions of an item, as the kernel limits them.
const ITEM_REGIONS_MAX: u16 = 512;

const OP_START: u8 = 0x01;
const OP_COMMIT: u8 = 0x02;
const OP_CONTINUE: u8 = 0x04;
const OP_WAS_CONTINUED: u8 = 0x08;
const OP_END: u8 = 0x10;
/// Who writes to the log: transactions, and the log itself.
const CLIENTS: [u8; 2] = [0x69, 0xaa];
const WHAT: &str = "log operation";

/// A transaction: items, each of one or more regions.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Of the record in which it begins.
    pub(super) lsn: Lsn,
    header: Vec<u8>,
    /// All regions one behind the other.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// The first region of each item.
    items: Vec<usize>,
    /// Regions that the last item still lacks.
    missing: u16,
    /// What it counts for against [`BYTES_MAX`].
    weight: u64,
}

/// One item of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'t> {
    transaction: &'t Transaction,
    first: usize,
    count: usize,
}

impl Transaction {
    fn new(lsn: Lsn) -> Self {
        Self {
            lsn,
            header: Vec::new(),
            bytes: Vec::new(),
            ends: Vec::new(),
            items: Vec::new(),
            missing: 0,
            weight: 0,
        }
    }

    fn header_done(&self) -> bool {
        self.header.len() == size_of::<RawTransHeader>()
    }

    /// Adds bytes to the header, which may be cut too.
    fn add_header(&mut self, data: &[u8]) -> Result<()> {
        self.header.extend_from_slice(data);
        if self.header.len() > size_of::<RawTransHeader>() {
            return Err(Fault::Structure { what: "transaction", why: "its header is too long" }.into());
        }
        if self.header_done() {
            let raw: RawTransHeader = take(&self.header, 0, "transaction")?;
            let (found, expected) = (raw.th_magic.get(), TRANS_MAGIC);
            if found != expected {
                return Err(Fault::Magic { what: "transaction", found, expected }.into());
            }
        }
        Ok(())
    }

    /// Adds a region, or the first part of one.
    fn add(&mut self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        if !self.header_done() {
            return self.add_header(data);
        }
        if self.missing == 0 {
            let head: RawItemHead = take(data, 0, "log item")?;
            let regions = head.size.get();
            if regions == 0 || regions > ITEM_REGIONS_MAX {
                let why = "no possible count of regions";
                return Err(Fault::Field { what: "size of a log item", found: regions.into(), why }.into());
            }
            self.items.push(self.ends.len());
            self.missing = regions;
        }
        self.missing = self.missing.saturating_sub(1);
        self.bytes.extend_from_slice(data);
        self.ends.push(self.bytes.len());
        Ok(())
    }

    /// Adds the next part of the last region.
    fn extend(&mut self, data: &[u8]) -> Result<()> {
        if !self.header_done() {
            return self.add_header(data);
        }
        self.bytes.extend_from_slice(data);
        let len = self.bytes.len();
        match self.ends.last_mut() {
            Some(end) => *end = len,
            None if data.is_empty() => {}
            None => return Err(Fault::Structure { what: WHAT, why: "continues nothing" }.into()),
        }
        Ok(())
    }

    /// Its items in order.
    pub(super) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let ends = self.items.iter().skip(1).copied().chain([self.ends.len()]);
        self.items.iter().zip(ends).map(|(first, end)| Item {
            transaction: self,
            first: *first,
            count: end.saturating_sub(*first),
        })
    }
}

impl<'t> Item<'t> {
    /// Region `i`; the first says what the item is.
    pub(super) fn region(&self, i: usize) -> Result<&'t [u8]> {
        let missing = || Fault::Structure { what: "log item", why: "a region is missing" };
        let at = self.first.checked_add(i).filter(|_| i < self.count).ok_or_else(missing)?;
        let ends = &self.transaction.ends;
        let start = at.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
        let end = ends.get(at).copied().ok_or_else(missing)?;
        part(&self.transaction.bytes, start, end.saturating_sub(start), "log item")
    }

    /// What it is.
    pub(super) fn kind(&self) -> Result<u16> {
        Ok(take::<RawItemHead>(self.region(0)?, 0, "log item")?.type_.get())
    }
}

/// Puts transactions together from records in order.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    open: BTreeMap<u32, Transaction>,
    bytes: u64,
}

impl Assembler {
    /// Adds the operations of a record; calls `commit` for each transaction that ends in it.
    pub(super) fn add(
        &mut self,
        ring: &Ring,
        record: Record,
        commit: &mut dyn FnMut(&Transaction) -> Result<()>,
    ) -> Result<()> {
        record.check_replayed(ring)?;
        let (header, data) = record.unpack()?;
        header.check_uuid(ring)?;
        if header.raw.h_fmt.get() != FORMAT_LE {
            return Err(Fault::Unsupported { what: "a log of a big-endian system" }.into());
        }
        let mut at = 0usize;
        for _ in 0..header.raw.h_num_logops.get() {
            if at >= data.len() {
                break;
            }
            let op: RawLogOp = take(&data, at, WHAT)?;
            at = at.saturating_add(size_of::<RawLogOp>());
            let bytes = part(&data, at, index(op.oh_len.get().into())?, WHAT)?;
            at = at.saturating_add(bytes.len());
            self.operation(header.lsn(), &op, bytes, commit)?;
        }
        Ok(())
    }

    fn operation(
        &mut self,
        lsn: Lsn,
        op: &RawLogOp,
        data: &[u8],
        commit: &mut dyn FnMut(&Transaction) -> Result<()>,
    ) -> Result<()> {
        if !CLIENTS.contains(&op.oh_clientid) {
            let found = op.oh_clientid.into();
            return Err(Fault::Field { what: "oh_clientid", found, why: "unknown" }.into());
        }
        let id = op.oh_tid.get();
        let Some(transaction) = self.open.get_mut(&id) else {
            // What has no beginning belongs to a transaction from before the tail.
            if op.oh_flags & OP_START != 0 {
                if self.open.len() >= OPEN_MAX {
                    return Err(Fault::Structure { what: "log", why: "too many transactions" }.into());
                }
                self.open.insert(id, Transaction::new(lsn));
            }
            return Ok(());
        };
        let mut flags = op.oh_flags & !OP_END;
        if flags & OP_WAS_CONTINUED != 0 {
            flags &= !OP_CONTINUE;
        }
        match flags {
            0 | OP_CONTINUE | OP_WAS_CONTINUED => {
                let weight = len64(data.len()).saturating_add(OP_BYTES);
                transaction.weight = transaction.weight.saturating_add(weight);
                self.bytes = self.bytes.saturating_add(weight);
                if self.bytes > BYTES_MAX {
                    return Err(
                        Fault::Structure { what: "log", why: "its transactions are too large" }.into()
                    );
                }
                if flags == OP_WAS_CONTINUED { transaction.extend(data) } else { transaction.add(data) }
            }
            OP_COMMIT => {
                let Some(whole) = self.open.remove(&id) else { return Ok(()) };
                self.bytes = self.bytes.saturating_sub(whole.weight);
                if whole.missing != 0 {
                    return Err(
                        Fault::Structure { what: "transaction", why: "an item is not complete" }.into()
                    );
                }
                commit(&whole)
            }
            OP_UNMOUNT => {
                let weight = self.open.remove(&id).map_or(0, |t| t.weight);
                self.bytes = self.bytes.saturating_sub(weight);
                Ok(())
            }
            _ => Err(Fault::Field { what: "oh_flags", found: op.oh_flags.into(), why: "unknown" }.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(flags: u8) -> RawLogOp {
        RawLogOp { oh_tid: 7.into(), oh_len: 0.into(), oh_clientid: 0x69, oh_flags: flags, oh_res2: 0.into() }
    }

    #[test]
    fn regions_come_together_over_cuts() {
        let mut all = Assembler::default();
        let mut seen = Vec::new();
        let mut run = |all: &mut Assembler, flags: u8, data: &[u8]| {
            all.operation(Lsn::new(1, 2), &op(flags), data, &mut |t| {
                for item in t.items() {
                    seen.push((t.lsn, item.kind()?, item.region(item.count - 1)?.to_vec()));
                }
                Ok(())
            })
        };
        run(&mut all, OP_COMMIT, b"").unwrap();
        run(&mut all, OP_START, b"").unwrap();
        let mut header = TRANS_MAGIC.to_le_bytes().to_vec();
        header.extend_from_slice(&[0; 12]);
        run(&mut all, OP_CONTINUE, &header[..6]).unwrap();
        run(&mut all, OP_WAS_CONTINUED | OP_END, &header[6..]).unwrap();
        run(&mut all, 0, &[0x3c, 0x12, 2, 0]).unwrap();
        run(&mut all, OP_CONTINUE, b"abc").unwrap();
        run(&mut all, OP_WAS_CONTINUED | OP_CONTINUE, b"def").unwrap();
        run(&mut all, OP_WAS_CONTINUED | OP_END, b"g").unwrap();
        run(&mut all, 0, &[0x3f, 0x12, 1, 0]).unwrap();
        run(&mut all, OP_COMMIT, b"").unwrap();
        assert_eq!(
            seen,
            [(Lsn::new(1, 2), 0x123c, b"abcdefg".to_vec()), (Lsn::new(1, 2), 0x123f, vec![0x3f, 0x12, 1, 0])]
        );
        assert_eq!(all.bytes, 0);
    }

    #[test]
    fn an_item_without_all_regions_is_refused() {
        let mut all = Assembler::default();
        let mut run =
            |flags: u8, data: &[u8]| all.operation(Lsn::new(1, 2), &op(flags), data, &mut |_| Ok(()));
        run(OP_START, b"").unwrap();
        let mut header = TRANS_MAGIC.to_le_bytes().to_vec();
        header.extend_from_slice(&[0; 12]);
        run(0, &header).unwrap();
        assert!(run(0, &[0x3c, 0x12, 0, 0]).is_err());
        run(0, &[0x3c, 0x12, 2, 0]).unwrap();
        assert!(run(OP_COMMIT, b"").is_err());
    }
}
