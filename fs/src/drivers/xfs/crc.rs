//! CRC-32C over a structure that carries its own checksum: the four bytes count as zero, and lie little-endian.

use racker_formats::error::Result;
use racker_formats::wire::{part, part_mut, sum_holds};

use super::fault::Fault;

const ZEROES: [u8; 4] = [0; 4];

/// The checksum of `bytes`, whose own field is at `at`.
pub(super) fn compute(bytes: &[u8], at: usize) -> Result<u32> {
    let crc = crc32c::crc32c(part(bytes, 0, at, "checksum")?);
    let crc = crc32c::crc32c_append(crc, &ZEROES);
    let rest = at.saturating_add(ZEROES.len());
    part(bytes, at, ZEROES.len(), "checksum")?;
    Ok(crc32c::crc32c_append(crc, bytes.get(rest..).unwrap_or_default()))
}

/// Checks the checksum at `at`; `what` names the structure.
pub(super) fn check(bytes: &[u8], at: usize, what: &'static str) -> Result<()> {
    let computed = compute(bytes, at)?;
    let stored = part(bytes, at, ZEROES.len(), what)?;
    if !sum_holds(stored, &computed.to_le_bytes()) {
        let mut found = [0; 4];
        found.copy_from_slice(stored);
        return Err(Fault::Checksum { what, stored: u32::from_le_bytes(found), computed }.into());
    }
    Ok(())
}

/// Writes the checksum at `at`.
pub(super) fn stamp(bytes: &mut [u8], at: usize) -> Result<()> {
    let computed = compute(bytes, at)?;
    part_mut(bytes, at, ZEROES.len(), "checksum")?.copy_from_slice(&computed.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamped_structure_checks_and_a_changed_one_does_not() {
        let mut bytes = *b"0123456789abcdef";
        assert!(check(&bytes, 4, "test").is_err());
        stamp(&mut bytes, 4).unwrap();
        check(&bytes, 4, "test").unwrap();
        bytes[15] ^= 1;
        assert!(check(&bytes, 4, "test").is_err());
        assert!(stamp(&mut bytes, 13).is_err());
    }
}
