//! Looks for tables and grains outside the file, for grains that two entries name, and for differences between
//! the two sets of tables.

use std::collections::HashMap;

use super::fault::VmdkFault;
use super::grains::{Mapping, SparseExtent};
use super::layout::SECTOR;
use crate::check::{Report, Severity};
use crate::error::{Error, Result};
use crate::wire::{index, len64};

/// Findings that are listed for one extent: a file cut in the middle has millions.
const FINDINGS_MAX: usize = 100;

/// Checks one extent and adds what it finds, with `name` before it.
pub(super) fn extent(extent: &SparseExtent, name: &str, report: &mut Report) -> Result<()> {
    let mut found = Vec::new();
    // The first grain that uses each place of the file. At most one entry for each grain that the file can hold.
    let mut owners: HashMap<u64, u64> = HashMap::new();
    let count = len64(extent.shared()?.directory.len());
    for table in 0..count {
        if found.len() >= FINDINGS_MAX {
            break;
        }
        if let Err(e) = table_of(extent, table, &mut owners, &mut found) {
            found.push(finding(e)?);
        }
    }
    for what in found.into_iter().take(FINDINGS_MAX) {
        report.add(Severity::Corruption, format!("{name}: {what}"));
    }
    Ok(())
}

/// What a fault of the image is in words; errors of another kind end the check.
fn finding(e: Error) -> Result<String> {
    if e.fault::<VmdkFault>().is_some() { Ok(e.to_string()) } else { Err(e) }
}

fn table_of(
    extent: &SparseExtent,
    table: u64,
    owners: &mut HashMap<u64, u64>,
    found: &mut Vec<String>,
) -> Result<()> {
    let header = &extent.header;
    extent.load(table)?;
    copies(extent, table, found)?;
    let end = table.saturating_add(1).saturating_mul(header.table_covers()).min(header.capacity);
    let mut at = table.saturating_mul(header.table_covers());
    while at < end && found.len() < FINDINGS_MAX {
        // A grain at a time: a run ends in an error where only its last grain is wrong.
        let (grain, _) = header.grain.split(at);
        match extent.map(at, header.grain.bytes()) {
            Ok((Mapping::Data { host }, _)) => {
                if host < header.overhead {
                    let (sector, end) = (host.div_euclid(SECTOR), header.overhead.div_euclid(SECTOR));
                    found.push(VmdkFault::GrainInTables { grain, sector, end }.to_string());
                }
                owner(owners, host, grain, found);
            }
            Ok((Mapping::Packed { sector }, _)) => owner(owners, sector, grain, found),
            Ok(_) => {}
            Err(e) => found.push(finding(e)?),
        }
        at = at.saturating_add(header.grain.bytes());
    }
    Ok(())
}

fn owner(owners: &mut HashMap<u64, u64>, place: u64, grain: u64, found: &mut Vec<String>) {
    if let Some(first) = owners.insert(place, grain) {
        found.push(format!("grains {first} and {grain} share the same place in the file"));
    }
}

/// Compares the two copies of a table.
fn copies(extent: &SparseExtent, table: u64, found: &mut Vec<String>) -> Result<()> {
    let (entries, sector) = {
        let state = extent.shared()?;
        let i = index(table)?;
        (state.loaded.get(&table).cloned(), state.redundant.get(i).copied())
    };
    if let (Some(entries), Some(sector @ 1..)) = (entries, sector) {
        match extent.read_table(table, sector.into()) {
            Ok(copy) if copy == entries => {}
            Ok(_) => found.push(format!("the two copies of grain table {table} differ")),
            Err(e) => found.push(finding(e)?),
        }
    }
    Ok(())
}
