//! The opened image: a map of blocks.

use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use serde_json::json;
use uuid::Uuid;

use super::check;
use super::fault::VdiFault;
use super::header::{Header, ImageType};
use super::layout::{FREE, ZERO};
use super::space::Space;
use crate::block::{BlockSize, Disk, RunKind, Span};
use crate::check::Report;
use crate::error::{Common, Result, Within};
use crate::limits::{KIB, MIB};
use crate::map::Location;
use crate::mapped::{self, BlockMap, Busy, HostOffset, InPlace, Mapping, Parts, Place, Recent, Sheets};
use crate::opening::Reference;
use crate::registry::{Backing, Facts, Image, below};
use crate::wire::{index, len64};

/// The map is read in pieces.
const SHEET: u64 = 4 * KIB;
/// Pieces kept: the map of 256 GiB in blocks of 1 MiB.
const SHEETS: usize = 256;
/// Changed pieces that may wait for a flush: two megabytes.
const WAITING_MAX: usize = 512;

/// A VDI.
#[derive(Debug)]
pub(super) struct Vdi {
    pub(super) file: Disk,
    pub(super) parent: Option<Disk>,
    parent_image: Option<Arc<dyn Image>>,
    backing: Option<Reference>,
    header: RwLock<Header>,
    /// The map.
    pub(super) sheets: Sheets,
    pub(super) busy: Busy,
    /// What writing needs to know, once somebody writes.
    pub(super) space: Mutex<Option<Space>>,
    /// Held by all who read or write, and alone by who changes the size.
    pub(super) gate: RwLock<()>,
    recent: Recent,
}

impl Vdi {
    /// The disk in `file`.
    pub(super) fn new(file: Disk, header: Header, parent: Option<(Arc<dyn Image>, Reference)>) -> Self {
        let (parent_image, backing) = parent.unzip();
        Self {
            sheets: Sheets::new(file.clone(), SHEETS),
            file,
            parent: parent_image.as_ref().map(below),
            parent_image,
            backing,
            header: RwLock::new(header),
            busy: Busy::default(),
            space: Mutex::new(None),
            gate: RwLock::new(()),
            recent: Recent::default(),
        }
    }

    pub(super) fn header(&self) -> Result<RwLockReadGuard<'_, Header>> {
        self.header.read().map_err(|_| Common::Poisoned.into())
    }

    /// Writes the header with changes, and turns to it.
    pub(super) fn turn_to(&self, mut header: Header) -> Result<()> {
        let mut now = self.header.write().map_err(|_| Common::Poisoned)?;
        header.seal();
        self.file.write_at(0, header.bytes())?;
        self.file.flush()?;
        let other_map = now.map != header.map;
        *now = header;
        drop(now);
        // Pieces of a map of another length are other pieces.
        if other_map { self.sheets.clear() } else { Ok(()) }
    }

    /// The map entry of a block.
    pub(super) fn entry(&self, header: &Header, block: u64) -> Result<u32> {
        let (sheet, within) = sheet(header, block)?;
        let piece = self.sheets.get(sheet).within(|| "block map")?;
        let bytes = piece.get(within..).and_then(|b| b.first_chunk::<4>());
        Ok(u32::from_le_bytes(*bytes.ok_or(Common::Index(block))?))
    }

    /// Changes the map entry of a block.
    pub(super) fn set_entry(&self, header: &Header, block: u64, entry: u32) -> Result<()> {
        let (sheet, within) = sheet(header, block)?;
        self.sheets.change(sheet, |bytes| {
            let slot = bytes.get_mut(within..).and_then(|b| b.first_chunk_mut::<4>());
            *slot.ok_or(Common::Index(block))? = entry.to_le_bytes();
            Ok(())
        })
    }

    /// Calls `each` with the number and the entry of every block below `count`.
    pub(super) fn each_entry(
        &self,
        header: &Header,
        count: u64,
        mut each: impl FnMut(u64, u32) -> Result<()>,
    ) -> Result<()> {
        let mut number = 0;
        while number < count {
            let (sheet, _) = sheet(header, number)?;
            let piece = self.sheets.get(sheet).within(|| "block map")?;
            for entry in piece.as_chunks::<4>().0 {
                if number < count {
                    each(number, u32::from_le_bytes(*entry))?;
                }
                number = number.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Brings data, count and map to stable storage, in this order.
    pub(super) fn sync(&self) -> Result<()> {
        if !self.file.writable() {
            return self.file.flush();
        }
        self.sheets.land(|pieces| {
            self.write_count()?;
            self.sheets.write_home(pieces)
        })
    }

    /// The count of blocks goes before the entries: the next program puts its first new block where the count says,
    /// which must not be where an entry says that a block is.
    fn write_count(&self) -> Result<()> {
        let next = match self.space.lock().map_err(|_| Common::Poisoned)?.as_ref() {
            Some(space) => space.next(),
            None => return Ok(()),
        };
        let header = self.header()?.clone();
        if header.allocated == next {
            return Ok(());
        }
        self.turn_to(header.with(|h| h.allocated = next))
    }
}

/// The piece of the map that holds the entry of a block, and the entry's place in it.
fn sheet(header: &Header, block: u64) -> Result<(Span, usize)> {
    let at = block.saturating_mul(4);
    if at >= header.map.len() {
        return Err(Common::Index(block).into());
    }
    let within = at.rem_euclid(SHEET);
    Ok((header.map.skip(at.saturating_sub(within)).truncate(SHEET), index(within)?))
}

impl BlockMap for Vdi {
    fn block_size(&self) -> BlockSize {
        self.header().map_or(super::SECTORS, |h| h.block)
    }

    fn data(&self) -> &Disk {
        &self.file
    }

    fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    fn holes_in_blocks(&self) -> bool {
        true
    }

    fn lookup(&self, span: Span) -> Result<Mapping> {
        let header = self.header()?;
        let (number, within) = header.block.split(span.start());
        let (sheet, at) = sheet(&header, number)?;
        let piece = self.sheets.get(sheet).within(|| "block map")?;
        let mut entries =
            piece.get(at..).unwrap_or_default().as_chunks::<4>().0.iter().map(|e| u32::from_le_bytes(*e));
        let first = entries.next().ok_or(Common::Index(number))?;
        // Blocks that lie behind one another in the file as in the disk are one stretch, those that are nowhere too.
        let stretches = header.extra == 0;
        let goes_on = |n: &(u32, u32)| match first {
            FREE | ZERO => n.1 == first,
            _ => stretches && n.1 < ZERO && n.1 == first.wrapping_add(n.0),
        };
        let more = (1u32..).zip(entries).take_while(goes_on).count();
        let whole = len64(more).saturating_add(1).saturating_mul(header.block.bytes());
        let len = whole.saturating_sub(within).min(span.len());
        let place = match first {
            FREE => Place::Absent,
            ZERO => Place::Zero,
            place => {
                let host = header.place(place)?.skip(within).start();
                let file = self.file.size();
                if host.saturating_add(len) > file {
                    return self.cut(&header, number, place, span, within);
                }
                Place::Data(HostOffset(host))
            }
        };
        Ok(Mapping { place, len })
    }
}

impl Vdi {
    /// A stretch that is not all in the file: its first block may be.
    fn cut(&self, header: &Header, block: u64, place: u32, span: Span, within: u64) -> Result<Mapping> {
        let host = header.place(place)?.skip(within);
        let len = host.len().min(span.len());
        let file = self.file.size();
        if host.start().saturating_add(len) > file {
            return Err(VdiFault::BlockPastEnd { block, host: header.place(place)?.start(), file }.into());
        }
        Ok(Mapping { place: Place::Data(HostOffset(host.start())), len })
    }
}

impl InPlace for Vdi {
    const WAITING_MAX: usize = WAITING_MAX;
    const PREFERRED_MAX: u64 = MIB;

    fn parts(&self) -> Parts<'_> {
        Parts { gate: &self.gate, sheets: &self.sheets, recent: &self.recent }
    }

    fn prepare_to_write(&self) -> Result<()> {
        Self::prepare_to_write(self)
    }

    fn sync(&self) -> Result<()> {
        Self::sync(self)
    }

    fn change_size(&self, size: u64) -> Result<()> {
        Self::change_size(self, size)
    }
}

/// What a VDI says of itself: its UUID and that of its last change.
fn identity(image: &dyn Image) -> Option<(Uuid, Uuid)> {
    let facts = image.facts();
    let of = |key: &str| Uuid::parse_str(facts.specific.get(key)?.as_str()?).ok();
    (facts.format == "vdi").then(|| Some((of("uuid")?, of("uuid-modify")?)))?
}

impl Image for Vdi {
    fn facts(&self) -> Facts {
        let Ok(header) = self.header() else { return Facts::default() };
        let mut facts = Facts { format: "vdi", virtual_size: header.size, ..Facts::default() };
        facts.cluster_size = Some(header.block.bytes());
        facts.subformat = Some(header.image_type.name().into());
        facts.backing.clone_from(&self.backing);
        let mut put = |name: &str, value| facts.specific.insert(name.to_string(), value);
        put("uuid", json!(header.uuid().to_string()));
        put("uuid-modify", json!(header.modified().to_string()));
        if header.image_type == ImageType::Differencing {
            put("parent-uuid", json!(header.parent().0.to_string()));
        }
        let comment = header.comment();
        if !comment.is_empty() {
            put("comment", json!(comment));
        }
        facts
    }

    fn check(&self, report: &mut Report) -> Result<()> {
        let _gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        check::check(self, report)
    }

    fn follows_parent(&self) -> Result<bool> {
        Ok(true)
    }

    fn renew_identity(&self) -> Result<()> {
        let _gate = self.shared_gate()?;
        self.prepare_to_write()
    }

    fn keep_parent(&self, parent: &dyn Image) -> Result<()> {
        let header = self.header()?.clone();
        let (uuid, _) = header.parent();
        let (_, modified) = identity(parent).ok_or(VdiFault::NoParent(uuid))?;
        self.turn_to(header.with(|h| h.follow(uuid, modified)))
    }

    fn name_parent(&self, parent: Option<&Reference>, opened: Option<&Backing>) -> Result<()> {
        let unsupported = |what| Common::Unsupported { what, by: "vdi".into() };
        let _gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        let header = self.header()?.clone();
        if header.image_type != ImageType::Differencing {
            return Err(unsupported("giving a disk a parent that had none").into());
        }
        let parent = parent.ok_or_else(|| unsupported("taking the parent away"))?;
        let name = parent.path.strip_prefix("./").unwrap_or(&parent.path);
        if name.contains('/') {
            return Err(unsupported("a parent in another folder, as its name is not recorded,").into());
        }
        let opened = opened.ok_or_else(|| unsupported("naming a parent that is not there"))?;
        let found = identity(opened.image.as_ref());
        let (uuid, modified) = found.ok_or_else(|| unsupported("a parent that is no VDI"))?;
        self.turn_to(header.with(|h| h.follow(uuid, modified)))
    }

    fn parent(&self) -> Option<Arc<dyn Image>> {
        self.parent_image.clone()
    }

    fn locate(&self, span: Span) -> Result<Location> {
        let _gate = self.shared_gate()?;
        let fixed = self.header()?.image_type == ImageType::Fixed;
        mapped::locate(self, span, RunKind::Zero, fixed)
    }
}
