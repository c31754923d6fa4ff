//! Hashes of names, by which an indexed directory is ordered.

use racker_formats::error::Result;

use super::super::casefold;
use super::super::fault::Ext4Fault;

/// `dx_root_info.hash_version`.
const LEGACY: u8 = 0;
const HALF_MD4: u8 = 1;
const TEA: u8 = 2;
/// What is added where characters count as unsigned.
const UNSIGNED: u8 = 3;
/// The hash that means the end of a directory, and so is no name's.
const END: u32 = 0x7fff_ffff << 1;

/// How one directory's names are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Hasher {
    version: u8,
    signed: bool,
    /// Case does not count.
    folds: bool,
    seed: [u32; 4],
}

impl Hasher {
    /// The hash of `version` with the filesystem's seed, whose characters are `signed` by default.
    pub(in super::super) fn new(version: u8, signed: bool, folds: bool, seed: [u32; 4]) -> Result<Self> {
        let (version, signed) = match version {
            LEGACY..=TEA => (version, signed),
            3..=5 => (version.saturating_sub(UNSIGNED), false),
            _ => return Err(Ext4Fault::HashVersion(version).into()),
        };
        let initial = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        Ok(Self { version, signed, folds, seed: if seed == [0; 4] { initial } else { seed } })
    }

    /// The hash of a name: an even number.
    pub(in super::super) fn hash(&self, name: &[u8]) -> u32 {
        match self.folds {
            true => self.hash_bytes(&casefold::hashed(name)),
            false => self.hash_bytes(name),
        }
    }

    fn hash_bytes(&self, name: &[u8]) -> u32 {
        let mut buf = self.seed;
        let hash = match self.version {
            LEGACY => self.legacy(name),
            HALF_MD4 => {
                let mut rest = name;
                while !rest.is_empty() {
                    half_md4(&mut buf, &self.words::<8>(rest));
                    rest = rest.get(32..).unwrap_or_default();
                }
                buf[1]
            }
            _ => {
                let mut rest = name;
                while !rest.is_empty() {
                    tea(&mut buf, &self.words::<4>(rest));
                    rest = rest.get(16..).unwrap_or_default();
                }
                buf[0]
            }
        };
        let even = hash & !1;
        if even == END { END.saturating_sub(2) } else { even }
    }

    fn byte(&self, byte: u8) -> u32 {
        if self.signed { i32::from(byte.cast_signed()).cast_unsigned() } else { u32::from(byte) }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut hash0, mut hash1) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
        for byte in name {
            let mut hash = hash1.wrapping_add(hash0 ^ self.byte(*byte).wrapping_mul(7_152_373));
            if hash & 0x8000_0000 != 0 {
                hash = hash.wrapping_sub(0x7fff_ffff);
            }
            hash1 = hash0;
            hash0 = hash;
        }
        hash0 << 1
    }

    /// The first bytes of what is left of a name, as words filled up with its length.
    fn words<const N: usize>(&self, rest: &[u8]) -> [u32; N] {
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let pair = len | len.wrapping_shl(8);
        let pad = pair | pair.wrapping_shl(16);
        let mut out = [pad; N];
        for (word, bytes) in out.iter_mut().zip(rest.chunks(4)) {
            *word = bytes.iter().fold(pad, |w, b| self.byte(*b).wrapping_add(w << 8));
        }
        out
    }
}

fn half_md4(buf: &mut [u32; 4], words: &[u32; 8]) {
    let f = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let g = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let h = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let mixes: [&dyn Fn(u32, u32, u32) -> u32; 3] = [&f, &g, &h];
    let rounds: [(u32, [usize; 8], [u32; 4]); 3] = [
        (0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *buf;
    for (mix, (add, order, shifts)) in mixes.iter().zip(rounds) {
        for (at, shift) in order.iter().zip(shifts.iter().cycle()) {
            let word = words.get(*at).copied().unwrap_or(0).wrapping_add(add);
            let new = a.wrapping_add(mix(b, c, d)).wrapping_add(word).rotate_left(*shift);
            (a, b, c, d) = (d, new, b, c);
        }
    }
    for (sum, part) in buf.iter_mut().zip([a, b, c, d]) {
        *sum = sum.wrapping_add(part);
    }
}

fn tea(buf: &mut [u32; 4], words: &[u32; 4]) {
    let [a, b, c, d] = *words;
    let [mut b0, mut b1, ..] = *buf;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        b0 = b0.wrapping_add((b1 << 4).wrapping_add(a) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(b));
        b1 = b1.wrapping_add((b0 << 4).wrapping_add(c) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(d));
    }
    buf[0] = buf[0].wrapping_add(b0);
    buf[1] = buf[1].wrapping_add(b1);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `debugfs -R "dx_hash -h VERSION [-s SEED] NAME"` of e2fsprogs 1.47 prints.
    #[test]
    fn hashes_are_those_of_debugfs() {
        let names: [&[u8]; 3] =
            [b"hello.txt", "café".as_bytes(), b"a0123456789012345678901234567890123456789"];
        let none = [0; 4];
        let seed = [0x6745_2301, 0xefcd_ab89, 0x6745_2301, 0xefcd_ab89];
        for (version, seed, hashes) in [
            (LEGACY, none, [0x65a0_5776, 0x96ca_5a2c, 0x087e_4ab6]),
            (HALF_MD4, none, [0xa26e_1d86, 0xfb9c_5e5c, 0x8ed5_1f7a]),
            (HALF_MD4, seed, [0x42a8_5304, 0xd6b4_ad14, 0xaeb5_e82c]),
            (TEA, none, [0x5107_c3f2, 0x1058_42ea, 0x9548_7340]),
        ] {
            let hasher = Hasher::new(version, true, false, seed).unwrap();
            assert_eq!(names.map(|name| hasher.hash(name)), hashes, "version {version}");
        }
        assert!(Hasher::new(6, true, false, none).is_err());
        let unsigned = Hasher::new(HALF_MD4, false, false, none).unwrap();
        assert_eq!(Hasher::new(4, true, false, none).unwrap(), unsigned);
        let folds = Hasher::new(HALF_MD4, true, true, none).unwrap();
        assert_eq!(folds.hash(b"HELLO.txt"), 0xa26e_1d86);
    }
}
