//! An opened image as a block device.

use std::sync::{RwLock, RwLockReadGuard};

use super::bitmap::{Bitmap, read_bitmaps};
use super::fault::Fault;
use super::header::Header;
use super::pack;
use super::snapshot::Snapshots;
use super::tables::Tables;
use crate::block::{BlockDevice, BlockSize, Caps, Disk, Run, Span, Support};
use crate::error::{Common, Result, Within};
use crate::mapped::{self, BlockMap, HostOffset, Mapping, Packed, Recent};
use crate::registry::{Facts, Image, Opening};
use crate::wire::index;

/// A qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    pub(super) file: Disk,
    /// The external data file.
    data_file: Option<Disk>,
    parent: Option<Disk>,
    pub(super) header: Header,
    pub(super) snapshots: Snapshots,
    pub(super) bitmaps: Vec<Bitmap>,
    tables: RwLock<Tables>,
    recent: Recent,
}

impl Qcow2 {
    /// Reads the header, the L1 table and the lists; follows the files that the header names.
    pub(super) fn open(file: Disk, opening: &mut Opening) -> Result<Self> {
        let header = Header::read(&file)?;
        let tables = Tables::read(&file, &header).within(|| "L1 table")?;
        let snapshots = Snapshots::read(&file, &header).within(|| "snapshot table")?;
        let bitmaps = read_bitmaps(&file, &header)?;
        let data_file = match &header.data_file {
            Some(reference) => Some(opening.follow_file(reference)?),
            None => None,
        };
        let parent = match &header.backing {
            Some(reference) => Some(opening.follow_image(reference)?.0),
            None => None,
        };
        let (tables, recent) = (RwLock::new(tables), Recent::default());
        Ok(Self { file, data_file, parent, header, snapshots, bitmaps, tables, recent })
    }

    fn tables(&self) -> Result<RwLockReadGuard<'_, Tables>> {
        self.tables.read().map_err(|_| Common::Poisoned.into())
    }
}

impl BlockMap for Qcow2 {
    fn block_size(&self) -> BlockSize {
        self.header.geometry.cluster
    }

    fn data(&self) -> &Disk {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    fn lookup(&self, span: Span) -> Result<Mapping> {
        self.tables()?.lookup(&self.file, self.data().size(), span)
    }

    fn unpack(&self, packed: Packed, out: &mut [u8]) -> Result<()> {
        let Packed { host: HostOffset(host), stored } = packed;
        // The last sector may be cut off with the end of the file; the stream itself ends before.
        let there = stored.min(self.file.size().saturating_sub(host));
        let mut bytes = vec![0; index(there)?];
        self.file.read_at(host, &mut bytes)?;
        pack::unpack(self.header.compression, &bytes, out)
            .map_err(|why| Fault::Unpack { host, stored, why }.into())
    }
}

impl BlockDevice for Qcow2 {
    fn size(&self) -> u64 {
        self.tables().map_or(0, |t| t.size)
    }

    fn caps(&self) -> Caps {
        let preferred = u32::try_from(self.header.geometry.cluster.bytes()).unwrap_or(u32::MAX);
        Caps { runs: Support::Native, preferred, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        mapped::read(self, &self.recent, at, buf)
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        mapped::first_run(self, span)
    }
}

impl Image for Qcow2 {
    fn facts(&self) -> Facts {
        super::facts::facts(self)
    }
}
