//! Compressed clusters written while the disk is in use: those of one call lie close together, and share host clusters
//! with nobody else.

use super::entry::{Entry, Plain, RawEntry};
use super::fault::Fault;
use super::image::Qcow2;
use super::pack::ClusterPack;
use super::refcount::Clusters;
use crate::block::{BlockSize, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::mapped::Packed;
use crate::wire::{index, len64, part, part_mut};

/// Bytes of the disk that are packed together; one cluster if that is larger.
const BATCH_BYTES: u64 = 2 * MIB;

/// Packed clusters and where they lie behind the beginning of their room.
#[derive(Debug, Default)]
struct Batch {
    /// Where each cluster begins in the disk, where its bytes go, and how many they are.
    places: Vec<(u64, u64, u64)>,
    /// How often each host cluster of the room is referred to.
    counts: Vec<u64>,
    bytes: Vec<u8>,
}

impl Batch {
    /// Adds what is packed of the cluster at `at`: right behind the last one, unless a count is full.
    fn add(&mut self, at: u64, packed: &[u8], cluster: BlockSize, most: u64) -> Result<()> {
        let (last, within) = cluster.split(len64(self.bytes.len()));
        if within != 0 && self.counts.get(index(last)?).is_some_and(|count| *count >= most) {
            let next = cluster.start_of(last.saturating_add(1)).ok_or(Common::Index(last))?;
            self.bytes.resize(index(next)?, 0);
        }
        let (place, len) = (len64(self.bytes.len()), len64(packed.len()));
        self.bytes.extend_from_slice(packed);
        let run = Clusters::of(cluster, place, len);
        self.counts.resize(self.counts.len().max(index(run.end())?), 0);
        for count in self.counts.iter_mut().skip(index(run.first)?) {
            *count = count.saturating_add(1);
        }
        self.places.push((at, place, len));
        Ok(())
    }
}

impl Qcow2 {
    /// Writes whole clusters, packed where that makes them smaller; the last may be cut off by the end of the disk.
    pub(super) fn write_packed_live(&self, at: u64, data: &[u8]) -> Result<()> {
        let cluster = self.rules.geometry.cluster;
        let span = Span::new(at, len64(data.len()))?;
        let size = self.state()?.tables.size;
        if self.rules.data_file {
            return Err(Fault::DataFileShape.into());
        }
        if !cluster.aligned(at) || !(cluster.aligned(span.end()) || span.end() == size) {
            return Err(Fault::Unaligned { what: "packed data", at, cluster: cluster.bytes() }.into());
        }
        let mut rest = span;
        while !rest.is_empty() {
            let done = {
                let _moving = self.moving()?;
                let (now, _claims) = self.claim(rest, (BATCH_BYTES >> cluster.shift()).max(1))?;
                let from = index(now.start().saturating_sub(at))?;
                let plain = self.pack_some(now, part(data, from, index(now.len())?, "packed data")?)?;
                (now, plain)
            };
            // What does not get smaller is written as it is, once nobody is kept away any more.
            for piece in done.1 {
                let from = index(piece.start().saturating_sub(at))?;
                self.write_live(piece.start(), part(data, from, index(piece.len())?, "data")?)?;
            }
            rest = rest.skip(done.0.len());
            self.limit_waiting()?;
        }
        Ok(())
    }

    /// Packs the clusters of `span`, which are claimed; gives those that do not get smaller.
    fn pack_some(&self, span: Span, data: &[u8]) -> Result<Vec<Span>> {
        let cluster = self.rules.geometry.cluster;
        let most = self.with_allocator(|alloc| Ok(alloc.refcounts.most()))?;
        let packer = self.packer.get_or_init(|| ClusterPack::new(cluster, self.compression, 0));
        let mut batch = Batch::default();
        let mut plain = Vec::new();
        let mut whole = vec![0; index(cluster.bytes())?];
        let mut rest = span;
        for bytes in data.chunks(whole.len()) {
            let piece = rest.truncate(cluster.bytes());
            rest = rest.skip(piece.len());
            part_mut(&mut whole, 0, bytes.len(), "cluster")?.copy_from_slice(bytes);
            whole.iter_mut().skip(bytes.len()).for_each(|byte| *byte = 0);
            match packer.packed(&whole)? {
                Some(packed) => batch.add(piece.start(), &packed, cluster, most)?,
                None => plain.push(piece),
            }
        }
        if !batch.places.is_empty() {
            self.write_batch(&batch)?;
        }
        Ok(plain)
    }

    /// Puts a batch into new host clusters, and lets the tables in memory name them.
    fn write_batch(&self, batch: &Batch) -> Result<()> {
        let mut freed = Vec::new();
        for (at, ..) in &batch.places {
            freed.extend(self.place_of(*at)?);
        }
        let room = self.with_allocator(|alloc| {
            for run in &freed {
                alloc.check_counted(*run)?;
            }
            let room = alloc.all(len64(batch.counts.len()))?;
            for (number, count) in room.numbers().zip(&batch.counts) {
                alloc.refcounts.set(number, *count)?;
            }
            alloc.committed();
            alloc.offset(room.first)
        })?;
        // What was unpacked from there before is somebody else's.
        self.recent.clear()?;
        let mut entries = Vec::new();
        for (at, place, len) in &batch.places {
            let word = self.rules.packed_word(room.saturating_add(*place), *len)?;
            entries.push((*at, RawEntry { word, bitmap: 0 }));
        }
        match self.file.write_at(room, &batch.bytes).and_then(|()| self.change_entries(&entries, &freed)) {
            Ok(()) => Ok(()),
            Err(e) => {
                // Nothing names them.
                let cluster = self.rules.geometry.cluster;
                let host = |(_, place, len): &(u64, u64, u64)| {
                    Clusters::of(cluster, room.saturating_add(*place), *len)
                };
                let taken: Vec<Clusters> = batch.places.iter().map(host).collect();
                self.with_allocator(|alloc| alloc.release(&taken))?;
                Err(e)
            }
        }
    }

    /// The host clusters that the entry of the cluster at `at` refers to.
    fn place_of(&self, at: u64) -> Result<Option<Clusters>> {
        let cluster = self.rules.geometry.cluster;
        Ok(match self.state()?.tables.find(at)?.entry {
            Entry::Packed(Packed { host, stored }) => Some(Clusters::of(cluster, host.0, stored)),
            Entry::Plain(Plain { host, .. }) => host.map(|host| Clusters::of(cluster, host.0, 1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_shares_host_clusters_as_far_as_counts_reach() {
        let cluster = BlockSize::from_bytes(512).unwrap();
        let add = |most| {
            let mut batch = Batch::default();
            for (number, len) in (0..).zip([100usize, 200, 400, 10]) {
                batch.add(number * 512, &vec![1; len], cluster, most).unwrap();
            }
            let places: Vec<u64> = batch.places.iter().map(|(_, place, _)| *place).collect();
            (places, batch.counts)
        };
        assert_eq!(add(100), (vec![0, 100, 300, 700], vec![3, 2]));
        assert_eq!(add(2), (vec![0, 100, 512, 912], vec![2, 2]));
        assert_eq!(add(1), (vec![0, 512, 1024, 1536], vec![1, 1, 1, 1]));
    }
}
