//! A copy with an archive around it: OVA, box, and what Google Compute Engine imports.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use racker_formats::block::Disk;
use racker_formats::convert::{self, Copied, GzipSink, NewFile, Options, Pipe, Settle, Sink};
use racker_formats::open::{OpenOptions, open_disk};
use racker_formats::options::Values;
use racker_formats::package::{self, Package};
use racker_formats::registry::{self, by_name};

use super::is_dash;
use super::target::{Copy, output};
use crate::fault::{About, Failure, Outcome};
use crate::typed;

/// The only name that Google Compute Engine takes.
const GCE_NAME: &str = "disk.raw";

impl Copy<'_> {
    /// Makes the package `name`, an OVA or a box.
    pub(super) fn package(&self, target: &Path, name: &str) -> Outcome<()> {
        let pairs = typed::pairs(&self.new.options)?;
        let pairs = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let options = Values::parse(name, package::options(name).unwrap_or_default(), pairs)?;
        let file_name = target.file_name().unwrap_or_default().to_string_lossy();
        let package = Package::new(name, &options, file_name.trim_matches('-'), starts_with_efi(self.disk)?);
        let place = Place::prepare(target, self.durable)?;
        let scratch = convert::scratch(&folder(target)).about(target)?;
        let (format, options) = package.disk_format()?;
        let plan = registry::Plan {
            size: self.disk.size(),
            name: Some(package.disk_name()),
            options,
            compress: self.new.compress && format.name() == "qcow2",
            ..registry::Plan::default()
        };
        let sink = format.sink(scratch.clone(), &plan).about(target)?;
        let copied = self.copy(sink, None, None).about(target)?;
        let archive = package.wrap(&scratch.read_only(), self.disk.size(), now()).about(target)?;
        self.deliver(&archive, package.is_compressed(), place, copied).about(target)
    }

    /// Makes a tar.gz with the disk as one sparse file.
    pub(super) fn gce(&self, target: &Path) -> Outcome<()> {
        if !self.new.options.is_empty() {
            return Err(Failure::new("what Google Compute Engine imports has no options (-o)"));
        }
        let place = Place::prepare(target, self.durable)?;
        let archive = package::sparse_member(GCE_NAME, self.disk, now()).about(target)?;
        let copied = match self.verify {
            true => convert::digest(self.disk, Options { threads: self.new.threads, ..Options::default() })?,
            false => Copied::unknown(),
        };
        let inner = Copy { disk: &archive, verify: false, ..*self };
        let sink = place.gzip()?;
        inner.copy(sink, None, Some(&|| place.settle())).about(target)?;
        self.finish(place, copied).about(target)
    }

    /// Copies a finished archive to its place.
    fn deliver(&self, archive: &Disk, compressed: bool, place: Place, copied: Copied) -> Outcome<()> {
        let settle = || place.settle();
        let settle: Option<&Settle<'_>> = if self.durable { Some(&settle) } else { None };
        let options = Options { threads: self.new.threads, settle, ..Options::default() };
        let sink = match compressed {
            true => place.gzip()?,
            false => {
                let plan = registry::Plan { size: archive.size(), ..registry::Plan::default() };
                by_name("raw")?.sink(place.disk(), &plan)?
            }
        };
        let mut bar = self.progress.start("packing", archive.size());
        let done = convert::convert(archive, sink, options, &mut |n| bar.at(n));
        bar.finish();
        done?;
        self.finish(place, copied)
    }

    /// Reads the disk in the archive back, if that is asked for, and lets the archive appear.
    fn finish(&self, place: Place, copied: Copied) -> Outcome<()> {
        match place {
            Place::File(file) => {
                if self.verify {
                    let opened = open_disk(file.disk().read_only(), None, &OpenOptions::default())?;
                    self.check(copied, &opened.disk)?;
                }
                Ok(file.publish()?)
            }
            Place::Output(pipe) => {
                if self.verify {
                    return Err(Failure::new("what went down a pipe cannot be read back (--verify)"));
                }
                Ok(pipe.finish()?)
            }
        }
    }
}

/// Where an archive goes.
enum Place {
    File(NewFile),
    Output(Arc<Pipe>),
}

impl Place {
    fn prepare(target: &Path, durable: bool) -> Outcome<Self> {
        if is_dash(target) {
            return Ok(Self::Output(Arc::new(output().about(Path::new("standard output"))?)));
        }
        Ok(Self::File(NewFile::prepare_for(target, durable).about(target)?))
    }

    fn disk(&self) -> Disk {
        match self {
            Self::File(file) => file.disk().clone(),
            Self::Output(pipe) => Disk::from_arc(pipe.clone()),
        }
    }

    /// Puts what is there so far on stable storage.
    fn settle(&self) -> racker_formats::Result<()> {
        match self {
            Self::File(file) => file.settle(),
            Self::Output(_) => Ok(()),
        }
    }

    /// A sink that compresses.
    fn gzip(&self) -> Outcome<Box<dyn Sink>> {
        Ok(Box::new(GzipSink::new(self.disk(), None)?))
    }
}

/// The folder that has room for what `target` will hold.
pub(super) fn folder(target: &Path) -> PathBuf {
    match target.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(folder) => folder.to_path_buf(),
        None if is_dash(target) => std::env::temp_dir(),
        None => PathBuf::from("."),
    }
}

/// Whether a disk has a partition table and no program in front of it that a BIOS could start.
fn starts_with_efi(disk: &Disk) -> Outcome<bool> {
    let mut sector = [0; 512];
    if disk.size() < 512 {
        return Ok(false);
    }
    disk.read_at(0, &mut sector)?;
    let code = sector.get(..440).unwrap_or_default();
    Ok(sector.ends_with(&[0x55, 0xaa]) && code.iter().all(|b| *b == 0))
}

/// The time of the members: `SOURCE_DATE_EPOCH` makes it repeatable.
fn now() -> u64 {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|v| v.parse().ok());
    fixed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
