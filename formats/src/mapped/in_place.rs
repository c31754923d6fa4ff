//! Disks whose one table of blocks is written in place: VHDX, dynamic VHD and VDI. They differ in what has to happen
//! before the first change and in how tables land; what a request goes through is the same.

use std::fmt::Debug;
use std::sync::{RwLock, RwLockReadGuard};

use super::{Recent, Sheets, WriteMap, discard, first_run, read, write, write_zeroes};
use crate::block::{BlockDevice, Caps, Run, Span, Support};
use crate::error::{Common, Result};

/// What every disk of such a format has.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    /// Shared by requests, held alone by what changes the whole.
    pub(crate) gate: &'a RwLock<()>,
    /// Its tables.
    pub(crate) sheets: &'a Sheets,
    /// Blocks that were unpacked last.
    pub(crate) recent: &'a Recent,
}

/// What such a format answers.
pub(crate) trait InPlace: WriteMap + Debug + Send + Sync {
    /// Pieces of tables that may wait for a flush.
    const WAITING_MAX: usize;
    /// The largest request in bytes that it likes best.
    const PREFERRED_MAX: u64;

    /// What all of them have.
    fn parts(&self) -> Parts<'_>;
    /// What has to be looked at and written before the first change.
    fn prepare_to_write(&self) -> Result<()>;
    /// Brings data, then tables, to stable storage.
    fn sync(&self) -> Result<()>;
    /// What is left to do after a flush, when nobody is asked to wait at the gate.
    fn flushed(&self) -> Result<()> {
        Ok(())
    }
    /// Turns to another size; the gate is held alone.
    fn change_size(&self, size: u64) -> Result<()>;
    /// Whether the size can be changed, if the file can be written.
    fn may_resize(&self) -> bool {
        self.parent().is_none()
    }

    /// Holds the gate with others.
    fn shared_gate(&self) -> Result<RwLockReadGuard<'_, ()>> {
        self.parts().gate.read().map_err(|_| Common::Poisoned.into())
    }

    /// Keeps the memory for changed tables bounded.
    fn limit_waiting(&self) -> Result<()> {
        if self.parts().sheets.waiting()? < Self::WAITING_MAX { Ok(()) } else { self.sync() }
    }
}

impl<T: InPlace> BlockDevice for T {
    fn size(&self) -> u64 {
        self.disk_size()
    }

    fn caps(&self) -> Caps {
        let file = self.data();
        let write = file.writable();
        let preferred = self.block_size().bytes().min(Self::PREFERRED_MAX);
        Caps {
            write,
            zero: Support::Native,
            discard: Support::Native,
            runs: Support::Native,
            resize: write && self.may_resize() && file.caps().resize,
            preferred: u32::try_from(preferred).unwrap_or(64 << 10),
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let _gate = self.shared_gate()?;
        read(self, self.parts().recent, at, buf)
    }

    fn flush(&self) -> Result<()> {
        {
            let _gate = self.shared_gate()?;
            self.sync()?;
        }
        self.flushed()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let _gate = self.shared_gate()?;
        self.prepare_to_write()?;
        write(self, at, data)?;
        self.limit_waiting()
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        let _gate = self.shared_gate()?;
        self.prepare_to_write()?;
        write_zeroes(self, span)?;
        self.limit_waiting()
    }

    fn discard(&self, span: Span) -> Result<()> {
        let _gate = self.shared_gate()?;
        self.prepare_to_write()?;
        discard(self, span)?;
        self.limit_waiting()
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let _gate = self.shared_gate()?;
        first_run(self, span)
    }

    fn resize(&self, size: u64) -> Result<()> {
        let _gate = self.parts().gate.write().map_err(|_| Common::Poisoned)?;
        self.change_size(size)
    }
}
