//! An opened image as a block device.

use std::sync::{Mutex, RwLock, RwLockReadGuard};

use super::alloc::Allocator;
use super::bitmap::{Bitmap, read_bitmaps};
use super::entry::EntryRules;
use super::fault::Fault;
use super::header::{Compression, Header};
use super::pack;
use super::snapshot::Snapshots;
use super::tables::Tables;
use crate::block::{BlockDevice, BlockSize, Caps, Change, Disk, Run, Span, Support};
use crate::check::Report;
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
    pub(super) rules: EntryRules,
    compression: Compression,
    pub(super) snapshots: Snapshots,
    pub(super) bitmaps: Vec<Bitmap>,
    state: RwLock<State>,
    /// Free clusters, once somebody has asked for one. Whoever changes the image holds this.
    pub(super) allocator: Mutex<Option<Allocator>>,
    recent: Recent,
}

/// What a commit changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) header: Header,
    pub(super) tables: Tables,
}

impl Qcow2 {
    /// Opens an image and the files that its header names.
    pub(super) fn open(file: Disk, opening: &mut Opening) -> Result<Self> {
        let header = Header::read(&file)?;
        let data_file = match &header.data_file {
            Some(reference) => Some(opening.follow_file(reference)?),
            None => None,
        };
        let parent = match &header.backing {
            Some(reference) => Some(opening.follow_image(reference)?.0),
            None => None,
        };
        Self::new(file, header, data_file, parent)
    }

    /// An image that was made just now. Nobody has said where its backing file may be looked for.
    pub(super) fn created(file: Disk) -> Result<Self> {
        let header = Header::read(&file)?;
        let parent = header.backing.as_ref().map(|_| Disk::new(NotOpen { size: header.size }));
        Self::new(file, header, None, parent)
    }

    /// Reads the L1 table and the lists.
    fn new(file: Disk, header: Header, data_file: Option<Disk>, parent: Option<Disk>) -> Result<Self> {
        let tables = Tables::read(&file, &header).within(|| "L1 table")?;
        let snapshots = Snapshots::read(&file, &header).within(|| "snapshot table")?;
        let bitmaps = read_bitmaps(&file, &header)?;
        Ok(Self {
            file,
            data_file,
            parent,
            rules: tables.rules,
            compression: header.compression,
            snapshots,
            bitmaps,
            state: RwLock::new(State { header, tables }),
            allocator: Mutex::new(None),
            recent: Recent::default(),
        })
    }

    /// What the image is like now.
    pub(super) fn state(&self) -> Result<RwLockReadGuard<'_, State>> {
        self.state.read().map_err(|_| Common::Poisoned.into())
    }

    /// Copies of the header and the L1 table as they are now.
    pub(super) fn header_and_l1(&self) -> Result<(Header, Vec<u64>)> {
        let state = self.state()?;
        Ok((state.header.clone(), state.tables.l1.clone()))
    }

    /// Turns to other tables, which are on disk already.
    pub(super) fn turn_to(&self, header: Header, l1: Vec<u64>) -> Result<()> {
        let mut state = self.state.write().map_err(|_| Common::Poisoned)?;
        state.tables.turn_to(l1, header.size)?;
        state.header = header;
        self.recent.clear()
    }

    /// The L2 table that the L1 entry `number` names.
    pub(super) fn l2_at(&self, number: u64) -> Result<Option<HostOffset>> {
        self.state()?.tables.l2_at(number)
    }
}

impl BlockMap for Qcow2 {
    fn block_size(&self) -> BlockSize {
        self.rules.geometry.cluster
    }

    fn data(&self) -> &Disk {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    fn lookup(&self, span: Span) -> Result<Mapping> {
        self.state()?.tables.lookup(&self.file, self.data().size(), span)
    }

    fn unpack(&self, packed: Packed, out: &mut [u8]) -> Result<()> {
        let Packed { host: HostOffset(host), stored } = packed;
        // The last sector may be cut off with the end of the file; the stream itself ends before.
        let there = stored.min(self.file.size().saturating_sub(host));
        let mut bytes = vec![0; index(there)?];
        self.file.read_at(host, &mut bytes)?;
        pack::unpack(self.compression, &bytes, out).map_err(|why| Fault::Unpack { host, stored, why }.into())
    }
}

impl BlockDevice for Qcow2 {
    fn size(&self) -> u64 {
        self.state().map_or(0, |s| s.tables.size)
    }

    fn caps(&self) -> Caps {
        let preferred = u32::try_from(self.rules.geometry.cluster.bytes()).unwrap_or(u32::MAX);
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

    fn check(&self, report: &mut Report) -> Result<()> {
        self.check_image(report)
    }

    fn applies(&self) -> bool {
        true
    }

    fn apply(&self, staged: &Disk, changes: &[Change]) -> Result<()> {
        self.land(staged, |edit| edit.stage(changes))
    }
}

/// Stands for a backing file that is named and not open.
#[derive(Debug)]
struct NotOpen {
    size: u64,
}

impl BlockDevice for NotOpen {
    fn size(&self) -> u64 {
        self.size
    }

    fn caps(&self) -> Caps {
        Caps { runs: Support::Native, ..Caps::READ_ONLY }
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Fault::ParentNotOpen.into())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, _: Span) -> Result<Run> {
        Err(Fault::ParentNotOpen.into())
    }
}
