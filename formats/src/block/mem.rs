//! A disk in memory, for tests and small things.

use std::sync::RwLock;

use super::{BlockDevice, Caps, Support};
use crate::error::{Common, Result};
use crate::wire::{index, part, part_mut};

/// Bytes in memory; grows when asked.
#[derive(Debug)]
pub struct MemDevice {
    bytes: RwLock<Vec<u8>>,
}

impl MemDevice {
    /// `size` bytes of zeroes.
    pub fn new(size: usize) -> Self {
        Self::from_bytes(vec![0; size])
    }

    /// A disk that holds `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes) }
    }

    /// A copy of what it holds.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.read().map(|b| b.clone()).unwrap_or_default()
    }
}

impl BlockDevice for MemDevice {
    fn size(&self) -> u64 {
        self.bytes.read().map_or(0, |b| crate::wire::len64(b.len()))
    }

    fn caps(&self) -> Caps {
        Caps {
            write: true,
            zero: Support::Emulated,
            discard: Support::No,
            runs: Support::No,
            resize: true,
            preferred: 4096,
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.read().map_err(|_| Common::Poisoned)?;
        buf.copy_from_slice(part(&bytes, index(at)?, buf.len(), "memory disk")?);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.write().map_err(|_| Common::Poisoned)?;
        part_mut(&mut bytes, index(at)?, data.len(), "memory disk")?.copy_from_slice(data);
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.bytes.write().map_err(|_| Common::Poisoned)?.resize(index(size)?, 0);
        Ok(())
    }
}
