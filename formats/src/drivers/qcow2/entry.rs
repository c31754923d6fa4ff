//! L2 entries: bits to meaning and back.

use super::fault::Fault;
use super::header::{Geometry, Header, Incompatible};
use super::layout::{COMPRESSED, COPIED, OFFSET_MASK, READS_ZERO};
use crate::error::Result;
use crate::mapped::{HostOffset, Packed, Place};

/// An L2 entry as it lies on disk; the bitmap is there only with extended L2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RawEntry {
    pub(super) word: u64,
    pub(super) bitmap: u64,
}

/// What the checks of an entry depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryRules {
    pub(super) geometry: Geometry,
    /// Version 2 has no zero clusters.
    pub(super) version2: bool,
    /// Offsets point into an external data file.
    pub(super) data_file: bool,
}

/// What an L2 entry says about one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Compressed.
    Packed(Packed),
    /// Anything else.
    Plain(Plain),
}

/// A cluster that is not compressed. Without extended L2 it has one subcluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plain {
    /// The host cluster, which may be there even if nothing is read from it.
    pub(super) host: Option<HostOffset>,
    /// Nobody else refers to the host cluster.
    pub(super) copied: bool,
    /// Subclusters whose bytes are in the host cluster, one bit each.
    pub(super) allocated: u32,
    /// Subclusters that read as zeroes.
    pub(super) zero: u32,
}

impl Entry {
    /// Where subcluster `number` lives.
    pub(super) fn place(&self, number: u32, geometry: &Geometry) -> Place {
        match self {
            Self::Packed(packed) => Place::Packed(*packed),
            Self::Plain(plain) => {
                let bit = 1u32.wrapping_shl(number);
                match plain.host {
                    _ if plain.zero & bit != 0 => Place::Zero,
                    Some(host) if plain.allocated & bit != 0 => {
                        // Inside one cluster, and host offsets have 56 bits.
                        let within = u64::from(number).wrapping_shl(geometry.subcluster.shift());
                        Place::Data(HostOffset(host.0.saturating_add(within)))
                    }
                    _ => Place::Absent,
                }
            }
        }
    }
}

impl Entry {
    /// The space that is set aside for subcluster `number`, whatever is read from it.
    pub(super) fn host(&self, number: u32, geometry: &Geometry) -> Option<HostOffset> {
        let Self::Plain(Plain { host, .. }) = self else { return None };
        let within = u64::from(number).wrapping_shl(geometry.subcluster.shift());
        host.map(|host| HostOffset(host.0.saturating_add(within)))
    }
}

impl EntryRules {
    /// Those of an image.
    pub(super) fn of(header: &Header) -> Self {
        Self {
            geometry: header.geometry,
            version2: header.version == 2,
            data_file: header.incompatible.contains(Incompatible::DATA_FILE),
        }
    }

    /// Checks an entry.
    pub(super) fn decode(&self, raw: RawEntry) -> Result<Entry> {
        let RawEntry { word, bitmap } = raw;
        if word & COMPRESSED != 0 {
            if self.data_file {
                return Err(Fault::DataFileShape.into());
            }
            return Ok(Entry::Packed(self.packed(word)));
        }
        let at = word & OFFSET_MASK;
        let cluster = self.geometry.cluster;
        if !cluster.aligned(at) {
            return Err(Fault::Unaligned { what: "data cluster", at, cluster: cluster.bytes() }.into());
        }
        let copied = word & COPIED != 0;
        // Only the first cluster of an external data file lies at 0.
        let host = (at != 0 || (self.data_file && copied)).then_some(HostOffset(at));
        let mut plain = Plain { host, copied, allocated: 0, zero: 0 };
        if self.geometry.extended() {
            let (low, high) = (bitmap & u64::from(u32::MAX), bitmap >> 32);
            if low & high != 0 || (low != 0 && host.is_none()) {
                return Err(Fault::Subclusters { entry: word, bitmap }.into());
            }
            plain.allocated = u32::try_from(low).unwrap_or_default();
            plain.zero = u32::try_from(high).unwrap_or_default();
        } else if word & READS_ZERO != 0 {
            if self.version2 {
                return Err(Fault::ZeroInVersion2(word).into());
            }
            plain.zero = 1;
        } else if host.is_some() {
            plain.allocated = 1;
        }
        Ok(Entry::Plain(plain))
    }

    /// The descriptor of a compressed cluster: offset below, further sectors above.
    fn packed(&self, word: u64) -> Packed {
        let offset_bits = self.offset_bits();
        let low = |bits: u32| 1u64.wrapping_shl(bits).wrapping_sub(1);
        // The specification wants zeroes in the offset from bit 56 on.
        let host = word & low(offset_bits.min(56));
        let sectors = (word & low(62)) >> offset_bits;
        let in_first = 512u64.saturating_sub(host & 511);
        Packed { host: HostOffset(host), stored: sectors.wrapping_mul(512).saturating_add(in_first) }
    }

    /// The descriptor of `len` compressed bytes at `host`.
    pub(super) fn packed_word(&self, host: u64, len: u64) -> Result<u64> {
        let offset_bits = self.offset_bits();
        if host >> offset_bits.min(56) != 0 {
            return Err(Fault::NoCluster.into());
        }
        let last = host.saturating_add(len).saturating_sub(1);
        let sectors = (last >> 9).saturating_sub(host >> 9);
        Ok(COMPRESSED | sectors.wrapping_shl(offset_bits) | host)
    }

    /// Bits of a compressed cluster's host offset: 61 to 49.
    fn offset_bits(&self) -> u32 {
        70u32.saturating_sub(self.geometry.cluster.shift())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(bits: u32, extended: bool) -> EntryRules {
        EntryRules { geometry: Geometry::new(bits, extended, 4).unwrap(), version2: false, data_file: false }
    }

    #[test]
    fn compressed_descriptors_split_where_the_cluster_size_says() {
        // 64 KiB clusters: the offset has 54 bits, the sectors eight.
        let word = COMPRESSED | 3 << 54 | 0x1234;
        let Entry::Packed(p) = rules(16, false).decode(RawEntry { word, bitmap: 0 }).unwrap() else {
            panic!()
        };
        assert_eq!((p.host.0, p.stored), (0x1234, 3 * 512 + 512 - 0x34));
        let word = COMPRESSED | 1 << 61 | 0x200;
        let Entry::Packed(p) = rules(9, false).decode(RawEntry { word, bitmap: 0 }).unwrap() else {
            panic!()
        };
        assert_eq!((p.host.0, p.stored), (0x200, 1024));
    }

    #[test]
    fn contradictions_in_subclusters_are_refused() {
        let r = rules(16, true);
        assert!(r.decode(RawEntry { word: 0x10000, bitmap: 1 | 1 << 32 }).is_err());
        assert!(r.decode(RawEntry { word: 0, bitmap: 1 }).is_err());
        let entry = r.decode(RawEntry { word: 0x10000, bitmap: 2 | 1 << 32 }).unwrap();
        assert_eq!(entry.place(0, &r.geometry), Place::Zero);
        assert_eq!(entry.place(1, &r.geometry), Place::Data(HostOffset(0x10800)));
        assert_eq!(entry.place(2, &r.geometry), Place::Absent);
    }
}
