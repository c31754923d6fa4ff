//! A filesystem that is being edited: it lives no longer than its transaction, and must be closed.

use std::ops::{Deref, DerefMut};

use racker_formats::error::Result;
use racker_formats::transaction::{EditDisk, OpenWriter};

use crate::filesystem::{Driver, FilesystemMut};

/// A filesystem open for writing. One that is dropped without [`close`](Self::close) spoils the transaction.
#[derive(Debug)]
pub struct Writer<'t> {
    fs: Box<dyn FilesystemMut>,
    open: OpenWriter,
    disk: EditDisk<'t>,
}

impl<'t> Writer<'t> {
    /// Opens `volume` for writing.
    pub fn open(driver: &dyn Driver, volume: &EditDisk<'t>) -> Result<Self> {
        let open = volume.writer();
        let fs = driver.open_mut(volume.disk().clone())?;
        Ok(Self { fs, open, disk: volume.clone() })
    }

    /// Writes everything back to the transaction.
    pub fn close(self) -> Result<()> {
        self.fs.close()?;
        self.disk.disk().flush()?;
        self.open.close();
        Ok(())
    }
}

impl Deref for Writer<'_> {
    type Target = dyn FilesystemMut;

    fn deref(&self) -> &Self::Target {
        self.fs.as_ref()
    }
}

impl DerefMut for Writer<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.fs.as_mut()
    }
}
