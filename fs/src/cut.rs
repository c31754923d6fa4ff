//! What may be cut off the end of a partition: what no filesystem has.

use racker_formats::block::RunKind;
use racker_formats::block::{Disk, Span};
use racker_formats::error::{Fault, Kind, Result};
use racker_formats::limits::MIB;
use racker_formats::wire::{index, is_zero};

use crate::inspect::Volume;

/// Bytes that are looked at in one go.
const PIECE: u64 = MIB;

/// Why the end of a partition is not cut off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CutFault {
    /// The filesystem is larger.
    #[error("the {kind} filesystem on {place} has {has} bytes, {size} are left to it")]
    Filesystem {
        /// Its kind.
        kind: &'static str,
        /// The volume.
        place: String,
        /// Bytes that it has.
        has: u64,
        /// Bytes that the volume would have.
        size: u64,
    },
    /// Something whose size racker does not know.
    #[error("{place} carries {name}, whose size racker does not know")]
    Unknown {
        /// The volume.
        place: String,
        /// What it carries.
        name: String,
    },
    /// No filesystem that is known, and data.
    #[error("there are data in what would be cut off {place}, at byte {at}")]
    Data {
        /// The volume.
        place: String,
        /// Byte offset in the volume.
        at: u64,
    },
}

impl Fault for CutFault {
    fn kind(&self) -> Kind {
        Kind::Denied
    }

    fn hint(&self) -> Option<String> {
        Some(
            "make the filesystem smaller first; --force cuts all the same, and what lies behind is lost"
                .into(),
        )
    }
}

/// Whether `volume` may lose all bytes from `size` on.
pub fn may_cut(volume: &Volume, size: u64) -> Result<()> {
    if size >= volume.disk.size() {
        return Ok(());
    }
    let place = volume.place();
    if let Some(found) = volume.recognised()? {
        return Err(CutFault::Unknown { place, name: found.name.into() }.into());
    }
    if let Some(driver) = volume.driver() {
        let Ok(facts) = volume.filesystem().and_then(|fs| fs.facts()) else {
            let name = format!("a damaged {} filesystem", driver.name());
            return Err(CutFault::Unknown { place, name }.into());
        };
        if facts.size > size {
            return Err(CutFault::Filesystem { kind: facts.kind, place, has: facts.size, size }.into());
        }
        return Ok(());
    }
    match first_data(&volume.disk, size)? {
        Some(at) => Err(CutFault::Data { place, at }.into()),
        None => Ok(()),
    }
}

/// The first piece from `from` on that does not read as zeroes.
fn first_data(disk: &Disk, from: u64) -> Result<Option<u64>> {
    let span = Span::new(from, disk.size().saturating_sub(from))?;
    let mut buf = vec![0; index(PIECE)?];
    for run in disk.runs(span) {
        let (run, kind) = run?;
        if matches!(kind, RunKind::Zero | RunKind::Hole) {
            continue;
        }
        let mut left = run;
        while !left.is_empty() {
            let piece = left.truncate(PIECE);
            let bytes = buf.get_mut(..index(piece.len())?).unwrap_or_default();
            disk.read_at(piece.start(), bytes)?;
            if !is_zero(bytes) {
                return Ok(Some(piece.start()));
            }
            left = left.skip(piece.len());
        }
    }
    Ok(None)
}
