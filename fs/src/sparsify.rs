//! Which parts of a disk its filesystems call free.
//!
//! A filesystem is believed only if it was closed cleanly, its own checks hold, no other partition overlaps it, and
//! none of its files, which are all looked at, lies in what it calls free.

use std::collections::HashSet;
use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::error::{Error, Fault, Kind, Result};

use crate::filesystem::{ExtentKind, Filesystem, NodeId, NodeKind};
use crate::inspect::{Inspection, Volume};

/// Free stretches of one filesystem that are kept in memory: 128 MiB.
const FREE_MAX: usize = 8 << 20;

/// What a disk can do without.
#[derive(Debug, Default)]
pub struct Spare {
    /// Free stretches of the disk, in order; they do not overlap.
    pub free: Vec<Span>,
    /// Volumes whose free space is not known, as errors call them, and why.
    pub left: Vec<(String, Error)>,
}

/// Why a filesystem's free space is left alone.
#[derive(Debug, thiserror::Error)]
pub enum SpareFault {
    /// Its driver cannot tell, or its log has to be replayed first.
    #[error("it was not closed cleanly, or racker cannot tell what is free in it")]
    Unknown,
    /// Two partitions share bytes.
    #[error("another partition overlaps it")]
    Overlap,
    /// The filesystem contradicts itself.
    #[error("node {0} has content in space that is called free")]
    InUse(u64),
    /// Not in order, overlapping, or outside.
    #[error("the free space at {0} is out of order or outside")]
    Order(u64),
    /// Too many pieces.
    #[error("its free space is in more than {0} pieces")]
    Many(usize),
    /// Logical volumes.
    #[error("it is a logical volume")]
    Logical,
}

impl Fault for SpareFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Unknown | Self::Many(_) | Self::Logical => Kind::Unsupported,
            Self::Overlap | Self::InUse(_) | Self::Order(_) => Kind::Corrupt,
        }
    }
}

/// Asks all filesystems of a disk what is free.
pub fn spare(inspection: &Inspection) -> Spare {
    let mut all = Spare::default();
    for volume in inspection.volumes.iter().filter(|volume| volume.driver().is_some()) {
        match free_of(inspection, volume) {
            Ok(free) => all.free.extend(free),
            Err(why) => all.left.push((volume.place(), why)),
        }
    }
    all.free.sort_unstable();
    all
}

/// Free stretches of one volume, in bytes of the disk.
fn free_of(inspection: &Inspection, volume: &Volume) -> Result<Vec<Span>> {
    let place = volume.span().ok_or(SpareFault::Logical)?;
    let is_other = |number: u32| volume.partition.as_ref().is_none_or(|own| own.number != number);
    let others = inspection.table.partitions.iter().filter(|p| !p.container && is_other(p.number));
    if others.map(|p| p.span).any(|span| span.intersect(place).is_some()) {
        return Err(SpareFault::Overlap.into());
    }
    let fs = volume.filesystem()?;
    let mut free: Vec<Span> = Vec::new();
    let inside = Span::first(place.len());
    let known = fs.free_space(&mut |span| {
        let before = free.last().map_or(0, |last| last.end());
        if span.start() < before || span.is_empty() || !inside.contains(span) {
            return Err(SpareFault::Order(span.start()).into());
        }
        if free.len() >= FREE_MAX {
            return Err(SpareFault::Many(FREE_MAX).into());
        }
        free.push(span);
        Ok(ControlFlow::Continue(()))
    })?;
    if !known {
        return Err(SpareFault::Unknown.into());
    }
    no_file_in(fs.as_ref(), &free)?;
    free.into_iter().map(|span| Span::new(place.start().saturating_add(span.start()), span.len())).collect()
}

/// Makes sure that no file has anything in `free`, which is in order.
fn no_file_in(fs: &dyn Filesystem, free: &[Span]) -> Result<()> {
    let mut seen = HashSet::from([fs.root()]);
    let mut dirs = vec![fs.root()];
    while let Some(dir) = dirs.pop() {
        let mut files = Vec::new();
        fs.read_dir(dir, &mut |entry| {
            let kind = match entry.kind {
                Some(kind) => kind,
                None => fs.stat(entry.node)?.kind,
            };
            match kind {
                NodeKind::Dir if seen.insert(entry.node) => dirs.push(entry.node),
                NodeKind::File => files.push(entry.node),
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for file in files {
            check_file(fs, file, free)?;
        }
    }
    Ok(())
}

fn check_file(fs: &dyn Filesystem, file: NodeId, free: &[Span]) -> Result<()> {
    fs.extents(file, &mut |extent| {
        if let ExtentKind::Data(at) | ExtentKind::Unwritten(at) = extent.kind {
            let span = Span::new(at, extent.len)?;
            let next = free.partition_point(|free| free.end() <= at);
            if free.get(next).is_some_and(|free| free.intersect(span).is_some()) {
                return Err(SpareFault::InUse(file.0).into());
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}
