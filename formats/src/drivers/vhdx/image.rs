//! The opened image.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use serde_json::json;

use super::bat::{Bits, Entry, Geometry, page_of};
use super::check;
use super::fault::VhdxFault;
use super::header::Headers;
use super::layout::{MEGABYTE, PAGE};
use super::metadata::{DiskType, Metadata};
use super::regions::Regions;
use super::space::Space;
use crate::block::{BlockSize, Change, Disk, RunKind, Span};
use crate::check::Report;
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::map::Location;
use crate::mapped::{self, BlockMap, Busy, HostOffset, InPlace, Mapping, Parts, Place, Recent, Sheets};
use crate::opening::Reference;
use crate::registry::{Backing, Facts, Image, below};
use crate::wire::index;

/// Pages of BAT and bitmaps that are kept: with blocks of 32 MiB, the BAT of 4 TiB.
const SHEETS: usize = 256;
/// Changed pages that may wait for a flush: what goes into a log of 1 MiB at once.
const WAITING_MAX: usize = 240;

/// A VHDX.
#[derive(Debug)]
pub(super) struct Vhdx {
    pub(super) file: Disk,
    pub(super) parent: Option<Disk>,
    parent_image: Option<Arc<dyn Image>>,
    backing: Option<Reference>,
    state: RwLock<State>,
    pub(super) headers: Mutex<Headers>,
    /// BAT and sector bitmaps.
    pub(super) sheets: Sheets,
    pub(super) busy: Busy,
    /// What writing needs to know, once somebody writes.
    pub(super) space: Mutex<Option<Space>>,
    /// Held by all who read or write, and alone by who changes the size or puts freed places to use.
    pub(super) gate: RwLock<()>,
    /// One edit after the other.
    pub(super) editing: Mutex<()>,
    pub(super) marks: Marks,
    /// Zeroes that are written are the image's own, for another parent is to come.
    leaving: AtomicBool,
    recent: Recent,
}

/// What happened to the image in this session.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Nobody has seen the image yet: tables need no log.
    pub(super) unborn: AtomicBool,
    /// The header says that the file changes.
    pub(super) file: AtomicBool,
    /// The header says that the data change.
    pub(super) data: AtomicBool,
    /// A change failed half way: memory and file may differ.
    pub(super) broken: AtomicBool,
    /// There was a log to replay.
    pub(super) dirty: AtomicBool,
}

/// What changes with the size.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) metadata: Metadata,
    pub(super) geometry: Geometry,
    pub(super) regions: Regions,
}

impl State {
    /// Checks that the regions have room for what the metadata describe.
    pub(super) fn new(metadata: Metadata, regions: Regions) -> Result<Self> {
        let geometry = Geometry::of(&metadata)?;
        let (found, need, size) = (regions.bat.len() / 8, geometry.entries(), metadata.size);
        if need > found {
            return Err(VhdxFault::BatShort { found, need, size }.into());
        }
        Ok(Self { metadata, geometry, regions })
    }
}

impl Vhdx {
    /// The disk in `file`.
    pub(super) fn new(
        file: Disk,
        headers: Headers,
        state: State,
        parent: Option<(Arc<dyn Image>, Reference)>,
    ) -> Self {
        let (parent_image, backing) = parent.unzip();
        Self {
            sheets: Sheets::new(file.clone(), SHEETS),
            file,
            parent: parent_image.as_ref().map(below),
            parent_image,
            backing,
            state: RwLock::new(state),
            headers: Mutex::new(headers),
            busy: Busy::default(),
            space: Mutex::new(None),
            gate: RwLock::new(()),
            editing: Mutex::new(()),
            marks: Marks::default(),
            leaving: AtomicBool::new(false),
            recent: Recent::default(),
        }
    }

    pub(super) fn state(&self) -> Result<RwLockReadGuard<'_, State>> {
        self.state.read().map_err(|_| Common::Poisoned.into())
    }

    /// Turns to another size or BAT.
    pub(super) fn turn_to(&self, state: State) -> Result<()> {
        *self.state.write().map_err(|_| Common::Poisoned)? = state;
        self.sheets.clear()
    }

    /// Entry `number` of the BAT.
    pub(super) fn raw_entry(&self, state: &State, number: u64) -> Result<u64> {
        let (page, within) = page_of(state.regions.bat, number)?;
        let bytes = self.sheets.get(page).within(|| "BAT")?;
        let bytes = bytes.get(within..).and_then(|b| b.first_chunk::<8>());
        Ok(u64::from_le_bytes(*bytes.ok_or(Common::Index(number))?))
    }

    /// Changes entry `number` of the BAT.
    pub(super) fn set_raw_entry(&self, state: &State, number: u64, entry: u64) -> Result<()> {
        let (page, within) = page_of(state.regions.bat, number)?;
        self.sheets.change(page, |bytes| {
            let slot = bytes.get_mut(within..).and_then(|b| b.first_chunk_mut::<8>());
            *slot.ok_or(Common::Index(number))? = entry.to_le_bytes();
            Ok(())
        })
    }

    /// What the BAT says about a block.
    pub(super) fn entry(&self, state: &State, block: u64) -> Result<Entry> {
        let raw = self.raw_entry(state, state.geometry.entry_of(block))?;
        state.geometry.decode(block, raw)
    }

    /// Where the bitmap of a chunk lies, if it is there.
    pub(super) fn bitmap(&self, state: &State, chunk: u64) -> Result<Option<u64>> {
        let raw = self.raw_entry(state, state.geometry.bitmap_entry_of(chunk))?;
        state.geometry.decode_bitmap(chunk, raw)
    }

    /// The page of a chunk's bitmap, which lies at `host`, that describes a sector of the chunk; and the sector's
    /// number in the page.
    pub(super) fn bitmap_page(host: u64, sector: u64) -> Result<(Span, u64)> {
        let per_page = PAGE.bytes().saturating_mul(8);
        let (page, within) = (sector.div_euclid(per_page), sector.rem_euclid(per_page));
        let at = PAGE.start_of(page).and_then(|at| at.checked_add(host)).ok_or(Common::Index(host))?;
        Ok((Span::new(at, PAGE.bytes())?, within))
    }

    /// Where the first part of `span` lives inside a block that is there in part.
    fn in_part(&self, state: &State, block: u64, host: u64, span: Span) -> Result<Mapping> {
        let geometry = &state.geometry;
        let (chunk, _) = geometry.chunk.split(block);
        let missing = VhdxFault::Entry {
            what: "block",
            number: block,
            entry: Entry::Partial(host).raw(),
            why: "it is there in part, but its chunk has no sector bitmap",
        };
        let bitmap = self.bitmap(state, chunk)?.ok_or(missing)?;
        let (_, within) = geometry.block.split(span.start());
        let (first, _) = geometry.sectors_of(block);
        let sector = first.saturating_add(within >> geometry.sector.shift());
        let (page, number) = Self::bitmap_page(bitmap, sector)?;
        let bytes = self.sheets.get(page).within(|| format!("sector bitmap of chunk {chunk}"))?;
        let bits = Bits(&bytes);
        let is_set = bits.get(number);
        let (_, lead) = geometry.sector.split(within);
        let count = geometry.sector.count(lead.saturating_add(span.len()));
        let end = number.saturating_add(count).min(PAGE.bytes().saturating_mul(8));
        let run = bits.run_end(number, end, is_set).saturating_sub(number);
        let len = run.wrapping_shl(geometry.sector.shift()).saturating_sub(lead).min(span.len());
        if is_set { self.there(block, host, within, len) } else { Ok(Mapping { place: Place::Absent, len }) }
    }

    /// A stretch of a block that is there, if the file has it.
    fn there(&self, block: u64, host: u64, within: u64, len: u64) -> Result<Mapping> {
        let at = host.saturating_add(within);
        let file = self.file.size();
        if at.saturating_add(len) > file {
            return Err(VhdxFault::PastEnd { what: "block", number: block, host, file }.into());
        }
        Ok(Mapping { place: Place::Data(HostOffset(at)), len })
    }

    /// How many blocks from `block` on go on as `first` begins, as far as their entries are in one page.
    fn alike(&self, state: &State, block: u64, first: Entry, most: u64) -> Result<u64> {
        let geometry = &state.geometry;
        let (page, _) = page_of(state.regions.bat, geometry.entry_of(block))?;
        let bytes = self.sheets.get(page)?;
        let mut count = 1u64;
        while count < most {
            let next = block.saturating_add(count);
            let (its_page, within) = page_of(state.regions.bat, geometry.entry_of(next))?;
            let Some(raw) = bytes.get(within..).and_then(|b| b.first_chunk::<8>()) else { break };
            if its_page != page {
                break;
            }
            let expected = match first {
                Entry::Full(host) => {
                    Entry::Full(host.saturating_add(count.saturating_mul(geometry.block.bytes())))
                }
                other => other,
            };
            // A bad entry is told when it is its turn.
            if !geometry.decode(next, u64::from_le_bytes(*raw)).is_ok_and(|entry| entry == expected) {
                break;
            }
            count = count.saturating_add(1);
        }
        Ok(count)
    }
}

impl BlockMap for Vhdx {
    fn block_size(&self) -> BlockSize {
        self.state().map_or(MEGABYTE, |s| s.geometry.block)
    }

    fn data(&self) -> &Disk {
        &self.file
    }

    fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    fn holes_in_blocks(&self) -> bool {
        true
    }

    fn lookup(&self, span: Span) -> Result<Mapping> {
        let state = self.state()?;
        let geometry = &state.geometry;
        let (block, within) = geometry.block.split(span.start());
        let in_block = span.truncate(geometry.block.bytes().saturating_sub(within));
        let entry = self.entry(&state, block)?;
        if let Entry::Partial(host) = entry {
            return self.in_part(&state, block, host, in_block);
        }
        let most = geometry.block.count(within.saturating_add(span.len()));
        let count = self.alike(&state, block, entry, most)?;
        let len = count.saturating_mul(geometry.block.bytes()).saturating_sub(within).min(span.len());
        match entry {
            Entry::Absent => Ok(Mapping { place: Place::Absent, len }),
            Entry::Zero => Ok(Mapping { place: Place::Zero, len }),
            Entry::Full(host) | Entry::Partial(host) => match self.there(block, host, within, len) {
                // The file may end in a later block.
                Err(_) if count > 1 => self.there(block, host, within, in_block.len()),
                other => other,
            },
        }
    }
}

impl InPlace for Vhdx {
    const WAITING_MAX: usize = WAITING_MAX;
    const PREFERRED_MAX: u64 = 2 * MIB;

    fn parts(&self) -> Parts<'_> {
        Parts { gate: &self.gate, sheets: &self.sheets, recent: &self.recent }
    }

    fn prepare_to_write(&self) -> Result<()> {
        Self::prepare_to_write(self)
    }

    fn sync(&self) -> Result<()> {
        Self::sync(self)
    }

    fn flushed(&self) -> Result<()> {
        self.use_freed()
    }

    fn may_resize(&self) -> bool {
        true
    }

    fn change_size(&self, size: u64) -> Result<()> {
        Self::change_size(self, size)
    }
}

impl Image for Vhdx {
    fn facts(&self) -> Facts {
        let Ok(state) = self.state() else { return Facts::default() };
        let metadata = &state.metadata;
        let mut facts = Facts { format: "vhdx", virtual_size: metadata.size, ..Facts::default() };
        facts.cluster_size = Some(metadata.block.bytes());
        facts.subformat = Some(metadata.disk_type.name().into());
        facts.backing.clone_from(&self.backing);
        facts.dirty = self.marks.dirty.load(Ordering::Relaxed);
        let mut put = |name: &str, value| facts.specific.insert(name.to_string(), value);
        put("virtual-disk-id", json!(metadata.disk_id.to_string()));
        put("logical-sector-size", json!(metadata.sector.bytes()));
        put("physical-sector-size", json!(metadata.physical_sector));
        if let Ok(headers) = self.headers.lock() {
            put("data-write-guid", json!(headers.current.data_write.to_string()));
            put("log-size", json!(headers.current.log.len()));
        }
        if metadata.disk_type == DiskType::Differencing
            && let Some(linkage) = metadata.parent.as_ref().and_then(|p| p.get("parent_linkage"))
        {
            put("parent-linkage", json!(linkage));
        }
        facts
    }

    fn check(&self, report: &mut Report) -> Result<()> {
        let _gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        check::check(self, report)
    }

    fn follows_parent(&self) -> Result<bool> {
        self.may_have(None)?;
        Ok(true)
    }

    fn renew_identity(&self) -> Result<()> {
        let _gate = self.shared_gate()?;
        self.prepare_to_write()
    }

    fn keep_parent(&self, parent: &dyn Image) -> Result<()> {
        let _gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        self.follow(parent)
    }

    fn leave_parent(&self, next: Option<&Backing>) -> Result<()> {
        self.may_have(next)?;
        self.leaving.store(true, Ordering::Release);
        Ok(())
    }

    fn name_parent(&self, parent: Option<&Reference>, opened: Option<&Backing>) -> Result<()> {
        let _gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        self.turn_parent(parent, opened)
    }

    fn parent(&self) -> Option<Arc<dyn Image>> {
        self.parent_image.clone()
    }

    fn locate(&self, span: Span) -> Result<Location> {
        let _gate = self.shared_gate()?;
        let fixed = self.state()?.metadata.disk_type == DiskType::Fixed;
        mapped::locate(self, span, RunKind::Zero, fixed)
    }

    fn applies(&self) -> bool {
        true
    }

    fn apply(&self, staged: &Disk, changes: &[Change]) -> Result<()> {
        self.edit(staged, changes)
    }
}

/// A number of bytes as a number of megabytes, rounded up.
pub(super) fn megabytes(bytes: u64) -> Result<u32> {
    let count = MEGABYTE.count(bytes);
    Ok(u32::try_from(index(count)?).map_err(|_| Common::Index(count))?)
}
