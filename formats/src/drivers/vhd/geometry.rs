//! Cylinders, heads and sectors: "Appendix: CHS Calculation" of the specification.

use super::layout::SECTOR;

/// A disk's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
}

impl Geometry {
    /// The largest geometry: it says that the disk is larger than a geometry can tell, and that `current_size` holds.
    pub(super) const MAX: Self = Self { cylinders: u16::MAX, heads: 16, sectors: 255 };

    /// Bytes of a disk with this geometry.
    pub(super) fn bytes(self) -> u64 {
        // 65535 × 255 × 255 × 512 is below 2^42.
        u64::from(self.cylinders)
            .saturating_mul(self.heads.into())
            .saturating_mul(self.sectors.into())
            .saturating_mul(SECTOR)
    }

    /// The geometry of a disk of `size` bytes, which may hold a little less.
    pub(super) fn of(size: u64) -> Self {
        let total = size.min(Self::MAX.bytes()).div_euclid(SECTOR);
        let (tracks, heads, sectors) =
            if total >= 65535 * 16 * 63 { (total.div_euclid(255), 16, 255u8) } else { Self::small(total) };
        let cylinders = tracks.div_euclid(u64::from(heads).max(1));
        Self { cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX), heads, sectors }
    }

    fn small(total: u64) -> (u64, u8, u8) {
        let tracks = total.div_euclid(17);
        let heads = tracks.div_ceil(1024).max(4);
        // With 17 sectors a track, 16 heads and 1024 cylinders at most; then 31 and 63 sectors.
        if heads <= 16 && tracks < heads.saturating_mul(1024) {
            return (tracks, u8::try_from(heads).unwrap_or(16), 17);
        }
        let tracks = total.div_euclid(31);
        if tracks < 16 * 1024 { (tracks, 16, 31) } else { (total.div_euclid(63), 16, 63) }
    }

    /// The smallest geometry that holds `size` bytes.
    pub(super) fn holding(size: u64) -> Self {
        let mut sectors = size.div_ceil(SECTOR);
        loop {
            let geometry = Self::of(sectors.saturating_mul(SECTOR));
            // A cylinder has at most 16 × 255 sectors, so this ends soon.
            if geometry.bytes() >= size || geometry == Self::MAX {
                return geometry;
            }
            sectors = sectors.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_qemu_img_rounds() {
        // Measured: qemu-img create -f vpc, then info.
        for (asked, made) in [
            (0u64, 0u64),
            (512, 34_816),
            (1 << 20, 1_079_296),
            (5_000_000, 5_013_504),
            (500 << 20, 524_353_536),
            (528_482_304, 528_482_304),
            (1 << 30, 1_073_995_776),
            (10 << 30, 10_737_893_376),
            (33 << 30, 35_435_028_480),
            (127 << 30, 136_365_219_840),
        ] {
            assert_eq!(Geometry::holding(asked).bytes(), made, "{asked}");
        }
        assert_eq!(Geometry::holding(128 << 30), Geometry::MAX);
    }
}
