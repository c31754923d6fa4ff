//! A number for each host cluster, of which most are zero in a file with holes.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::refcount::Clusters;
use crate::block::BlockSize;
use crate::error::Result;
use crate::limits::MIB;
use crate::wire::{index, len64};

/// Numbers that are kept together.
const PAGE: BlockSize = match BlockSize::from_bytes(1 << 16) {
    Some(size) => size,
    None => panic!("65536 is a power of two"),
};
/// Bytes of one such page.
const PAGE_BYTES: u64 = PAGE.bytes().saturating_mul(4);
/// Bytes of numbers in memory: enough for 8 TiB in clusters of 64 KiB, and as many again as there are holes.
const BYTES_MAX: u64 = 512 * MIB;

/// How often each host cluster is referred to.
#[derive(Debug)]
pub(super) struct Tally {
    pages: BTreeMap<u64, Box<[u32]>>,
    len: u64,
}

impl Tally {
    /// Zero for each of `len` clusters.
    pub(super) fn new(len: u64) -> Self {
        Self { pages: BTreeMap::new(), len }
    }

    /// How many clusters there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The number of a cluster; 0 behind the end.
    pub(super) fn get(&self, cluster: u64) -> u32 {
        let (page, within) = PAGE.split(cluster);
        let at = usize::try_from(within).unwrap_or(usize::MAX);
        self.pages.get(&page).and_then(|numbers| numbers.get(at)).copied().unwrap_or_default()
    }

    /// Adds `times` to the clusters of `run`, which do not reach behind the end.
    pub(super) fn add(&mut self, run: Clusters, times: u32) -> Result<()> {
        let mut rest =
            Clusters { first: run.first, count: run.end().min(self.len).saturating_sub(run.first) };
        while rest.count > 0 {
            let (page, within) = PAGE.split(rest.first);
            let now = rest.count.min(PAGE.bytes().saturating_sub(within));
            let from = index(within)?;
            let numbers = self.page(page)?.get_mut(from..from.saturating_add(index(now)?));
            for number in numbers.into_iter().flatten() {
                *number = number.saturating_add(times);
            }
            rest = Clusters { first: rest.first.saturating_add(now), count: rest.count.saturating_sub(now) };
        }
        Ok(())
    }

    /// The number of a cluster, and the first cluster behind it that may have another.
    pub(super) fn run(&self, cluster: u64) -> (u32, u64) {
        let (page, within) = PAGE.split(cluster);
        let Some(numbers) = self.pages.get(&page) else {
            let next = self.pages.range(page..).next().map(|(next, _)| *next);
            return (0, next.and_then(|page| PAGE.start_of(page)).unwrap_or(u64::MAX));
        };
        let from = usize::try_from(within).unwrap_or(usize::MAX);
        let rest = numbers.get(from..).unwrap_or_default();
        let value = rest.first().copied().unwrap_or_default();
        let same = rest.iter().position(|number| *number != value).unwrap_or(rest.len());
        (value, cluster.saturating_add(len64(same).max(1)))
    }

    /// All runs of clusters whose number is not zero, in order; neighbours may come apart.
    pub(super) fn used(&self) -> impl Iterator<Item = (Clusters, u32)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.len {
                let (value, end) = self.run(at);
                let run = Clusters { first: at, count: end.min(self.len).saturating_sub(at) };
                at = end;
                if value != 0 {
                    return Some((run, value));
                }
            }
            None
        })
    }

    /// The number behind the last cluster whose number is not zero.
    pub(super) fn end(&self) -> u64 {
        let last = self.pages.iter().rev().find_map(|(page, numbers)| {
            let last = numbers.iter().rposition(|number| *number != 0)?;
            Some(PAGE.start_of(*page)?.saturating_add(len64(last)).saturating_add(1))
        });
        last.unwrap_or_default()
    }

    fn page(&mut self, number: u64) -> Result<&mut Box<[u32]>> {
        if !self.pages.contains_key(&number)
            && len64(self.pages.len()).saturating_mul(PAGE_BYTES) >= BYTES_MAX
        {
            let (what, max) = ("host clusters to count", BYTES_MAX / 4);
            return Err(Fault::Many { what, found: self.len, max }.into());
        }
        let len = usize::try_from(PAGE.bytes()).unwrap_or_default();
        Ok(self.pages.entry(number).or_insert_with(|| vec![0; len].into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_over_pages_and_holes() {
        let mut tally = Tally::new(1 << 40);
        let run = |first, count| Clusters { first, count };
        tally.add(run(3, 2), 1).unwrap();
        tally.add(run(65_530, 10), 2).unwrap();
        tally.add(run((1 << 40) - 1, 5), 7).unwrap();
        assert_eq!((tally.get(2), tally.get(4), tally.get(65_536), tally.get(1 << 40)), (0, 1, 2, 0));
        assert_eq!((tally.run(0), tally.run(4)), ((0, 3), (1, 5)));
        assert_eq!(tally.run(200_000).0, 0);
        let all: Vec<_> = tally.used().collect();
        let last = (1 << 40) - 1;
        assert_eq!(all, [(run(3, 2), 1), (run(65_530, 6), 2), (run(65_536, 4), 2), (run(last, 1), 7)]);
        assert_eq!(tally.end(), 1 << 40);
    }

    #[test]
    fn memory_is_limited() {
        let mut tally = Tally::new(u64::MAX);
        let far = (0u64..).map(|n| tally.add(Clusters { first: n << 20, count: 1 }, 1));
        assert_eq!(far.take_while(Result::is_ok).count() as u64, BYTES_MAX / PAGE_BYTES);
    }
}
