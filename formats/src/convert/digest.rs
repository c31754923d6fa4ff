//! A digest of what a disk reads as, whoever computes it and however many at once.
//!
//! The disk is cut at multiples of a chunk. A chunk that is not zero all over adds its place and its SHA-256 to the
//! digest, in order; zeroes add nothing, so that nobody has to read holes.

use sha2::{Digest as _, Sha256};

use crate::wire::is_zero;

/// The digest of a disk; equal only for disks that read the same and were cut the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; 32]);

/// A digest under way.
#[derive(Debug, Default)]
pub(super) struct Tally(Sha256);

/// What one chunk adds; none for zeroes.
pub(super) fn of_chunk(bytes: &[u8]) -> Option<[u8; 32]> {
    (!is_zero(bytes)).then(|| Sha256::digest(bytes).into())
}

impl Tally {
    /// Adds the chunk at `at`.
    pub(super) fn add(&mut self, at: u64, chunk: [u8; 32]) {
        self.0.update(at.to_le_bytes());
        self.0.update(chunk);
    }

    pub(super) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}
