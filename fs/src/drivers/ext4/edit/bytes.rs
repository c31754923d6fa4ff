//! Little-endian numbers in blocks that are being changed.

use racker_formats::error::Result;
use racker_formats::wire::{part_mut, take};

/// The 16 bits at `at`.
pub(in super::super) fn get16(bytes: &[u8], at: usize) -> Result<u16> {
    take::<[u8; 2]>(bytes, at, "metadata block").map(u16::from_le_bytes)
}

/// The 32 bits at `at`.
pub(in super::super) fn get32(bytes: &[u8], at: usize) -> Result<u32> {
    take::<[u8; 4]>(bytes, at, "metadata block").map(u32::from_le_bytes)
}

/// Puts 16 bits at `at`.
pub(in super::super) fn put16(bytes: &mut [u8], at: usize, value: u16) -> Result<()> {
    put(bytes, at, &value.to_le_bytes())
}

/// Puts 32 bits at `at`.
pub(in super::super) fn put32(bytes: &mut [u8], at: usize, value: u32) -> Result<()> {
    put(bytes, at, &value.to_le_bytes())
}

/// Puts bytes at `at`.
pub(in super::super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<()> {
    part_mut(bytes, at, value.len(), "metadata block")?.copy_from_slice(value);
    Ok(())
}

/// The low 16 bits of a number.
pub(in super::super) fn low16(n: u64) -> u16 {
    u16::try_from(n & 0xffff).unwrap_or(0)
}

/// The low 32 bits of a number.
pub(in super::super) fn low32(n: u64) -> u32 {
    u32::try_from(n & 0xffff_ffff).unwrap_or(0)
}
