//! Clusters: which are free, taking them, giving them back.

use racker_formats::block::Span;
use racker_formats::error::{Common, Result};
use racker_formats::wire::index;

use super::fault::FatFault;
use super::table::Table;
use super::writer::FatMut;
use crate::fresh::Fresh;

/// Clusters that are counted together: 2^10.
const GROUP_SHIFT: u32 = 10;

/// How many clusters are free, and about where.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) free: u64,
    /// Free clusters in each group: half a megabyte for the largest filesystem.
    groups: Vec<u16>,
    /// Where the search begins.
    pub(super) next: u32,
    /// What was free at first.
    pub(super) fresh: Fresh,
}

impl Space {
    /// Nothing is free.
    pub(super) fn new(last: u32) -> Result<Self> {
        let count = index(u64::from(last >> GROUP_SHIFT).saturating_add(1))?;
        Ok(Self { free: 0, groups: vec![0; count], next: 2, fresh: Fresh::default() })
    }

    fn group(&mut self, cluster: u32) -> Result<&mut u16> {
        let group = index(u64::from(cluster >> GROUP_SHIFT))?;
        Ok(self.groups.get_mut(group).ok_or(Common::Index(cluster.into()))?)
    }

    /// Counts a cluster as free.
    pub(super) fn add(&mut self, cluster: u32) -> Result<()> {
        let group = self.group(cluster)?;
        *group = group.saturating_add(1);
        self.free = self.free.saturating_add(1);
        Ok(())
    }

    /// Counts clusters in a row as free.
    pub(super) fn add_run(&mut self, first: u32, count: u32) -> Result<()> {
        let end = first.saturating_add(count);
        let mut at = first;
        while at < end {
            let next = (at >> GROUP_SHIFT).saturating_add(1).saturating_mul(1 << GROUP_SHIFT).min(end);
            let more = next.saturating_sub(at);
            let group = self.group(at)?;
            *group = group.saturating_add(u16::try_from(more).unwrap_or(0));
            self.free = self.free.saturating_add(more.into());
            at = next;
        }
        Ok(())
    }

    fn remove(&mut self, cluster: u32) -> Result<()> {
        let group = self.group(cluster)?;
        *group = group.saturating_sub(1);
        self.free = self.free.saturating_sub(1);
        Ok(())
    }

    /// A free cluster, from `from` on and around.
    fn find(&self, table: &Table, from: u32) -> Result<Option<u32>> {
        let from = from.clamp(2, table.last());
        for (start, end) in [(from, table.last()), (2, from.saturating_sub(1))] {
            let mut cluster = start;
            while cluster <= end {
                let group = index(u64::from(cluster >> GROUP_SHIFT))?;
                if self.groups.get(group).copied().unwrap_or(0) == 0 {
                    let next = (cluster >> GROUP_SHIFT).saturating_add(1);
                    cluster = next.saturating_mul(1 << GROUP_SHIFT);
                } else if table.entry(cluster)? == 0 {
                    return Ok(Some(cluster));
                } else {
                    cluster = cluster.saturating_add(1);
                }
            }
        }
        Ok(None)
    }
}

impl FatMut {
    /// An error if there are less than `need` free clusters. Asked before anything changes.
    pub(super) fn need(&self, need: u64) -> Result<()> {
        let free = self.space.free;
        if need > free { Err(FatFault::Full { need, free }.into()) } else { Ok(()) }
    }

    /// Takes `count` clusters, at least one, behind the chain that ends with `after`. Returns the first.
    pub(super) fn allocate(&mut self, after: Option<u32>, count: u64) -> Result<u32> {
        let (mut first, mut last) = (None, after);
        for _ in 0..count {
            let from = last.map_or(self.space.next, |last| last.saturating_add(1));
            let full = FatFault::Full { need: count, free: 0 };
            let cluster = self.space.find(&self.fat.table, from)?.ok_or(full)?;
            self.fat.table.set_end(cluster)?;
            self.space.remove(cluster)?;
            if let Some(last) = last {
                self.fat.table.set(last, cluster)?;
            }
            first = first.or(Some(cluster));
            last = Some(cluster);
            self.space.next = cluster;
        }
        Ok(first.ok_or(Common::Index(count))?)
    }

    /// Gives a chain back from `first` on.
    pub(super) fn release(&mut self, first: u32) -> Result<()> {
        self.fat.table.forget_walk()?;
        let mut next = Some(first);
        for _ in 0..self.fat.boot.clusters {
            let Some(cluster) = next else { return Ok(()) };
            next = self.fat.table.next(cluster)?;
            self.fat.table.set(cluster, 0)?;
            self.space.add(cluster)?;
        }
        if next.is_some() { Err(FatFault::Loop.into()) } else { Ok(()) }
    }

    /// Fills a cluster with zeroes.
    pub(super) fn clear_cluster(&self, cluster: u32) -> Result<()> {
        let at = self.fat.byte_of(cluster)?;
        self.fat.disk.write_zeroes(Span::new(at, self.fat.boot.cluster.bytes())?)
    }
}
