//! A snapshot as a disk of its own, to be read.

use super::header::{Compression, Header};
use super::image::{Qcow2, unpack};
use super::snapshot::Snapshot;
use super::tables::Tables;
use crate::block::{BlockDevice, BlockSize, Caps, Disk, Run, Span, Support};
use crate::error::{Result, Within};
use crate::mapped::{self, BlockMap, Mapping, Packed, Recent};

/// What the disk was when the snapshot was made; good for as long as the snapshot is there.
#[derive(Debug)]
pub(super) struct View {
    file: Disk,
    parent: Option<Disk>,
    compression: Compression,
    tables: Tables,
    recent: Recent,
}

impl View {
    /// Opens a snapshot of `image`.
    pub(super) fn new(image: &Qcow2, header: &Header, snapshot: &Snapshot) -> Result<Self> {
        let tables = Tables::of(&image.file, header, snapshot.l1, snapshot.size);
        Ok(Self {
            file: image.file.clone(),
            parent: image.parent.clone(),
            compression: image.compression,
            tables: tables.within(|| format!("snapshot {}", snapshot.id))?,
            recent: Recent::default(),
        })
    }
}

impl BlockMap for View {
    fn block_size(&self) -> BlockSize {
        self.tables.rules.geometry.cluster
    }

    fn data(&self) -> &Disk {
        &self.file
    }

    fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    fn lookup(&self, span: Span) -> Result<Mapping> {
        self.tables.lookup(&self.file, span)
    }

    fn unpack(&self, packed: Packed, out: &mut [u8]) -> Result<()> {
        unpack(&self.file, self.compression, packed, out)
    }
}

impl BlockDevice for View {
    fn size(&self) -> u64 {
        self.tables.size
    }

    fn caps(&self) -> Caps {
        let preferred = u32::try_from(self.block_size().bytes()).unwrap_or(u32::MAX);
        Caps { runs: Support::Native, preferred, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        mapped::read(self, &self.recent, at, buf)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        mapped::first_run(self, span)
    }
}
