//! Names in directories: their hashes, and which of them are one.
//!
//! A filesystem made with `-n version=ci` keeps names as they were given and finds them whatever their case. What
//! letters are was never a matter of an encoding: ASCII's, and the bytes that are letters in Latin-1, in the middle
//! of a UTF-8 sequence too. Linux always had it so. The programs of xfsprogs before 6.4 know of ASCII only: they
//! call the hash of a name with a byte such as 0xc3 wrong, which the kernel looks up by it.

use super::super::da::hash;
use super::super::superblock::{Superblock, VersionBits};
use super::Entry;

/// What lies between a capital letter and its small one.
const CASE: u8 = b'a' - b'A';

/// The byte as it is compared and hashed where case is ignored.
fn folded(byte: u8) -> u8 {
    match byte {
        // Between the two rows of Latin-1 stands the sign of multiplication.
        b'A'..=b'Z' | 0xc0..=0xd6 | 0xd8..=0xde => byte.wrapping_add(CASE),
        _ => byte,
    }
}

impl Superblock {
    /// Whether names are found whatever their case.
    pub(in super::super) fn ignores_case(&self) -> bool {
        self.version_bits.contains(VersionBits::BORG)
    }

    /// The hash under which a directory has a name.
    pub(in super::super) fn name_hash(&self, name: &[u8]) -> u32 {
        if !self.ignores_case() {
            return hash(name);
        }
        name.iter().fold(0, |hash, byte| u32::from(folded(*byte)) ^ hash.rotate_left(7))
    }
}

/// A name that is looked up.
pub(super) struct Wanted<'a> {
    name: &'a [u8],
    any_case: bool,
    found: Option<Entry>,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(sb: &Superblock, name: &'a [u8]) -> Self {
        Self { name, any_case: sb.ignores_case(), found: None }
    }

    /// Looks at an entry. Returns whether no other can be meant: the very name goes before the same in another case.
    pub(super) fn meets(&mut self, entry: Entry) -> bool {
        let exact = entry.name == self.name;
        if exact || self.found.is_none() && self.any_case && self.is_alike(&entry.name) {
            self.found = Some(entry);
        }
        exact
    }

    fn is_alike(&self, other: &[u8]) -> bool {
        let fold = |name: &[u8]| name.iter().map(|byte| folded(*byte)).collect::<Vec<u8>>();
        self.name.len() == other.len() && fold(self.name) == fold(other)
    }

    /// What was found.
    pub(super) fn found(self) -> Option<Entry> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::superblock::tests::{parse, sample};
    use super::*;

    fn names_of(any_case: bool) -> Superblock {
        let mut raw = sample();
        if any_case {
            raw.sb_versionnum = (raw.sb_versionnum.get() | VersionBits::BORG.bits()).into();
        }
        parse(raw, 1 << 30).unwrap()
    }

    #[test]
    fn case_changes_a_hash_only_where_it_counts() {
        let (plain, any_case) = (names_of(false), names_of(true));
        assert_ne!(plain.name_hash(b"Makefile"), plain.name_hash(b"makefile"));
        assert_eq!(any_case.name_hash(b"Makefile"), any_case.name_hash(b"mAKEFILE"));
        assert_eq!(any_case.name_hash(b".."), 0x172e);
        for (one, other, same) in [
            (&b"a[z"[..], &b"A[Z"[..], true),
            (b"@", b"`", false),
            (b"\xc0", b"\xe0", true),
            (b"\xde", b"\xfe", true),
            (b"\xd7", b"\xf7", false),
            (b"\xdf", b"\xff", false),
        ] {
            assert_eq!(any_case.name_hash(one) == any_case.name_hash(other), same, "{one:?}");
            assert_eq!(Wanted::new(&any_case, one).is_alike(other), same, "{one:?}");
        }
    }
}
