//! What is on this disk? The table, its volumes, and what each of them carries.

use std::sync::{Arc, OnceLock};

use racker_formats::block::redo::RedoFault;
use racker_formats::block::{Disk, Span};
use racker_formats::check::Report;
use racker_formats::error::{Error, Fault, Kind, Result, Within};
use racker_formats::transaction::EditDisk;

use crate::drivers;
use crate::edit::{Live, Writer};
use crate::filesystem::{Driver, Filesystem, FsFacts};
use crate::partition::{self, Partition, Table};
use crate::recognised::{self, Recognised};
use crate::volume::{self, Layout};

/// A disk, taken apart. Filesystems are opened when they are first asked for.
#[derive(Debug)]
pub struct Inspection {
    /// The partition table.
    pub table: Table,
    /// What may carry a filesystem: the partitions, or the whole disk where there is no table.
    pub volumes: Vec<Volume>,
}

/// One volume.
pub struct Volume {
    /// The partition; none for the whole disk and for logical volumes.
    pub partition: Option<Partition>,
    /// The logical volume, as `VG/LV`.
    pub logical: Option<String>,
    /// Where its bytes lie on the disk.
    pub layout: Layout,
    /// Its bytes.
    pub disk: Disk,
    driver: std::result::Result<Option<&'static dyn Driver>, Arc<Error>>,
    /// No other volume has a byte in common with it.
    alone: bool,
    /// Snapshots were taken of it, which show what it holds.
    is_origin: bool,
    opened: OnceLock<std::result::Result<Arc<Live>, Arc<Error>>>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:?}", self.place(), self.layout)
    }
}

/// Why a volume is not found or not opened.
#[derive(Debug, thiserror::Error)]
pub enum VolumeFault {
    /// Nothing matches what the user named.
    #[error("no partition or filesystem is called {name:?}")]
    NoSuch {
        /// As typed.
        name: String,
        /// What there is.
        there: String,
    },
    /// Several match.
    #[error("{name:?} names more than one filesystem")]
    Several {
        /// As typed.
        name: String,
        /// Those that match.
        there: String,
    },
    /// No filesystem that racker reads.
    #[error("{place} carries no filesystem that racker reads")]
    NoFilesystem {
        /// The volume.
        place: String,
    },
    /// Content that racker knows by name only.
    #[error("{place} carries {name}, which racker does not read")]
    NotRead {
        /// The volume.
        place: String,
        /// The content, as `blkid` calls it.
        name: &'static str,
    },
    /// The whole disk, which has a table.
    #[error("the whole disk carries a partition table: name a partition")]
    WholeDisk,
    /// One copy of several.
    #[error("{place} is a member of a software array: changing it alone would make the members differ")]
    ArrayMember {
        /// The volume.
        place: String,
    },
    /// What its snapshots show would change with it.
    #[error("snapshots were taken of {place}: they show what it holds, and writing to it would change them")]
    Origin {
        /// The volume.
        place: String,
    },
    /// Opening failed before; the same again.
    #[error("{0}")]
    Again(Arc<Error>),
}

impl Fault for VolumeFault {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSuch { .. } => Kind::NotFound,
            Self::Several { .. } | Self::WholeDisk => Kind::Invalid,
            Self::NoFilesystem { .. }
            | Self::NotRead { .. }
            | Self::ArrayMember { .. }
            | Self::Origin { .. } => Kind::Unsupported,
            Self::Again(e) => e.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuch { there, .. } | Self::Several { there, .. } => Some(format!("there is {there}")),
            Self::NoFilesystem { .. } | Self::NotRead { .. } | Self::WholeDisk => None,
            Self::Origin { .. } => Some("merge or remove its snapshots first, where LVM runs".into()),
            Self::ArrayMember { .. } => Some("let the system that runs the array change it".into()),
            Self::Again(e) => e.hint().map(String::from),
        }
    }
}

impl Volume {
    /// What `-p` calls it: the partition's number, `VG/LV`, or 0 for the whole disk.
    pub fn name(&self) -> String {
        match (&self.logical, &self.partition) {
            (Some(name), _) => name.clone(),
            (None, Some(p)) => p.number.to_string(),
            (None, None) => "0".into(),
        }
    }

    /// How errors call it.
    pub fn place(&self) -> String {
        match (&self.logical, &self.partition) {
            (Some(name), _) => format!("logical volume {name}"),
            (None, Some(p)) => format!("partition {}", p.number),
            (None, None) => "the whole disk".into(),
        }
    }

    /// The kind of filesystem it carries, if racker reads it.
    pub fn driver(&self) -> Option<&'static dyn Driver> {
        self.driver.as_ref().ok().copied().flatten()
    }

    /// Why nobody knows what it carries, if it could not be looked at.
    pub fn unknown(&self) -> Option<Error> {
        self.driver.as_ref().err().map(|e| VolumeFault::Again(Arc::clone(e)).into())
    }

    /// What it holds beside or instead of a filesystem that racker reads: swap, a member of an array, btrfs…
    pub fn recognised(&self) -> Result<Option<Recognised>> {
        match self.driver() {
            Some(_) => recognised::array_member(&self.disk),
            None => recognised::recognise(&self.disk),
        }
    }

    fn no_filesystem(&self) -> Error {
        let place = self.place();
        match self.recognised() {
            Ok(Some(found)) if found.name == recognised::UNFINISHED => {
                Error::from(RedoFault::Lost).within(place)
            }
            Ok(Some(found)) => VolumeFault::NotRead { place, name: found.name }.into(),
            _ => VolumeFault::NoFilesystem { place }.into(),
        }
    }

    /// Its filesystem; a log that is not empty is replayed in memory. During an [edit](Self::edit) it shows what the
    /// edit has done so far.
    pub fn filesystem(&self) -> Result<Arc<dyn Filesystem>> {
        let live: Arc<dyn Filesystem> = self.live()?;
        Ok(live)
    }

    fn live(&self) -> Result<Arc<Live>> {
        let Some(driver) = self.driver() else {
            return Err(self.unknown().unwrap_or_else(|| self.no_filesystem()));
        };
        let opened = self.opened.get_or_init(|| {
            let place = || format!("{} ▸ {}", self.place(), driver.name());
            driver
                .open(self.disk.read_only())
                .map(|fs| Arc::new(Live::new(fs)))
                .within(place)
                .map_err(Arc::new)
        });
        opened.as_ref().map(Arc::clone).map_err(|e| VolumeFault::Again(Arc::clone(e)).into())
    }

    /// What its filesystem says about itself, if there is one that can be opened.
    pub fn facts(&self) -> Option<FsFacts> {
        self.driver()?;
        self.filesystem().ok()?.facts().ok()
    }
}

impl Inspection {
    /// Takes a disk apart.
    pub fn of(disk: &Disk) -> Result<Self> {
        let mut table = partition::read(disk)?;
        let mut volumes = Vec::new();
        for p in table.partitions.iter().filter(|p| !p.container) {
            volumes.push(Volume::new(disk, Layout::Span(p.span), Some(p.clone()), None)?);
        }
        if table.scheme == "none" {
            volumes.push(Volume::new(disk, Layout::Span(Span::first(disk.size())), None, None)?);
        }
        let found =
            volume::logical(disk, volumes.iter().filter(|v| v.driver().is_none()).filter_map(Volume::span));
        table.warnings.extend(found.warnings);
        for (name, layout) in found.volumes {
            let is_origin = found.origins.contains(&name);
            volumes.push(Volume { is_origin, ..Volume::new(disk, layout, None, Some(name))? });
        }
        let crowded = volume::crowded(&volumes);
        for (volume, crowded) in volumes.iter_mut().zip(crowded) {
            volume.alone = !crowded;
        }
        Ok(Self { table, volumes })
    }

    /// The volume that the user calls `name`: a number, label, UUID or PARTUUID; `0` is the whole disk.
    pub fn find(&self, disk: &Disk, name: &str) -> Result<Found<'_>> {
        if name == "0" {
            let whole = Layout::Span(Span::first(disk.size()));
            // What is listed shows an edit as it goes on; opened anew, the disk would show what was before it.
            if let Some(v) = self.volumes.iter().find(|v| v.layout == whole) {
                return Ok(Found::Listed(v));
            }
            return Ok(Found::Whole(Box::new(Volume::new(disk, whole, None, None)?)));
        }
        let typed = name.strip_prefix("/dev/").unwrap_or(name);
        if let Some(v) = self.volumes.iter().find(|v| v.name() == typed) {
            return Ok(Found::Listed(v));
        }
        let same = |a: Option<&String>| a.is_some_and(|a| a.eq_ignore_ascii_case(name));
        let by_name = |v: &&Volume| {
            let p = v.partition.as_ref();
            if same(p.and_then(|p| p.id.as_ref())) || p.and_then(|p| p.label.as_deref()) == Some(name) {
                return true;
            }
            v.facts().is_some_and(|f| f.label.as_deref() == Some(name) || same(f.uuid.as_ref()))
        };
        let found: Vec<&Volume> = self.volumes.iter().filter(by_name).collect();
        let there = |all: &[&Volume]| all.iter().map(|v| describe(v)).collect::<Vec<_>>().join(", ");
        match found.as_slice() {
            [one] => Ok(Found::Listed(one)),
            [] => {
                let all: Vec<&Volume> = self.volumes.iter().collect();
                Err(VolumeFault::NoSuch { name: name.into(), there: there(&all) }.into())
            }
            several => Err(VolumeFault::Several { name: name.into(), there: there(several) }.into()),
        }
    }
}

/// A volume that was named.
#[derive(Debug)]
pub enum Found<'a> {
    /// One of the inspection's.
    Listed(&'a Volume),
    /// The whole disk, whatever table it has.
    Whole(Box<Volume>),
}

impl std::ops::Deref for Found<'_> {
    type Target = Volume;

    fn deref(&self) -> &Volume {
        match self {
            Found::Listed(v) => v,
            Found::Whole(v) => v,
        }
    }
}

/// A volume in a few words: `-p 2 (xfs, label boot)`.
pub fn describe(volume: &Volume) -> String {
    let known = || volume.recognised().ok().flatten().map_or("no known filesystem", |r| r.name);
    let kind = volume.driver().map_or_else(known, |d| d.name());
    let label = volume.facts().and_then(|f| f.label).filter(|l| !l.is_empty());
    match label {
        Some(label) => format!("-p {} ({kind}, label {label})", volume.name()),
        None => format!("-p {} ({kind})", volume.name()),
    }
}

impl Volume {
    fn new(
        disk: &Disk,
        layout: Layout,
        partition: Option<Partition>,
        logical: Option<String>,
    ) -> Result<Self> {
        let disk = layout.over(disk)?;
        let driver = drivers::probe(&disk).map_err(Arc::new);
        Ok(Self {
            partition,
            logical,
            layout,
            disk,
            driver,
            alone: false,
            is_origin: false,
            opened: OnceLock::new(),
        })
    }

    /// Its bytes on the disk, if they are in one piece.
    pub fn span(&self) -> Option<Span> {
        match &self.layout {
            Layout::Span(span) => Some(*span),
            Layout::Mapped(_) => None,
        }
    }

    /// Goes through all metadata of its filesystem, as it is; what is found is in the report.
    pub fn check(&self, report: &mut Report) -> Result<()> {
        let driver = self.driver().ok_or_else(|| self.no_filesystem())?;
        let mut look = Report { repair: false, ..std::mem::take(report) };
        let checked = driver.check(self.disk.read_only(), &mut look);
        *report = look;
        checked.within(|| format!("{} ▸ {}", self.place(), driver.name()))
    }

    /// The same on the disk of an edit, where what is safe to mend is mended.
    pub fn repair(&self, disk: &EditDisk<'_>, report: &mut Report) -> Result<()> {
        let driver = self.may_change()?;
        let part = disk.map(|d| self.layout.over(d))?;
        let open = part.writer();
        let mut mend = Report { repair: true, ..std::mem::take(report) };
        let checked = driver.check(part.disk().clone(), &mut mend);
        *report = mend;
        checked.within(|| format!("{} ▸ {}", self.place(), driver.name()))?;
        open.close();
        Ok(())
    }

    /// The driver of a volume that may be changed.
    fn may_change(&self) -> Result<&'static dyn Driver> {
        let driver = self.driver().ok_or_else(|| self.no_filesystem())?;
        if recognised::array_member(&self.disk)?.is_some() {
            return Err(VolumeFault::ArrayMember { place: self.place() }.into());
        }
        if self.is_origin {
            return Err(VolumeFault::Origin { place: self.place() }.into());
        }
        Ok(driver)
    }

    /// Opens its filesystem for an edit, on the same bytes of the edit's disk.
    pub fn edit<'t>(&self, disk: &EditDisk<'t>) -> Result<Writer<'t>> {
        let driver = self.may_change()?;
        let place = || format!("{} ▸ {}", self.place(), driver.name());
        let part = disk.map(|d| self.layout.over(d))?;
        if self.alone {
            part.disk().claim(Span::first(part.disk().size()))?;
        }
        let writer = Writer::open(driver, &part).within(place)?;
        writer.show(self.live()?.as_ref())?;
        Ok(writer)
    }
}
