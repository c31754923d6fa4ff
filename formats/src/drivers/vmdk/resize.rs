//! Another size: the last extent grows or shrinks, extents come and go at the end of a split disk.
//!
//! Whoever looks between two steps sees the old size or the new one: files grow before the descriptor says so and
//! shrink after it, and a sparse extent turns to new tables by one sector, its header.

use std::collections::BTreeSet;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::create::{SIZE_MAX, SPLIT, Subformat, extent_file, split_extent};
use super::descriptor::{Access, CreateType, ExtentLine, Source, resized};
use super::fault::VmdkFault;
use super::grains::{GD_BYTES_MAX, SparseExtent};
use super::header::SparseHeader;
use super::image::{Body, Extent, State};
use super::layout::{RawSparseHeader, SECTOR};
use crate::block::{Disk, Span};
use crate::error::{Common, Result};
use crate::wire::{bytes, index, read};

/// Changes the size of the disk to `size` bytes, rounded up to sectors.
pub(super) fn resize(state: &mut State, size: u64) -> Result<()> {
    let size = size.checked_next_multiple_of(SECTOR).ok_or(Common::Index(size))?;
    if size == state.size {
        return Ok(());
    }
    let split = split_size(state)?;
    state.sync()?;
    if size > state.size { grow(state, size, split) } else { shrink(state, size) }
}

/// Bytes that an extent may have, or why the size is fixed.
fn split_size(state: &State) -> Result<u64> {
    let Some(descriptor) = &state.descriptor else {
        return Err(VmdkFault::FixedSize("one piece of a split disk").into());
    };
    let kind = descriptor.create_type;
    let mut names = BTreeSet::new();
    let plain = state.extents.iter().all(|e| {
        let at_start = matches!(e.body, Body::Sparse(_) | Body::Flat { at: 0, .. });
        at_start && e.access == Access::ReadWrite && names.insert(e.name.as_str())
    });
    match kind {
        CreateType::MonolithicSparse | CreateType::MonolithicFlat if plain && state.extents.len() == 1 => {
            Ok(u64::MAX)
        }
        CreateType::TwoGbMaxExtentSparse | CreateType::TwoGbMaxExtentFlat
            if plain && !state.extents.is_empty() =>
        {
            Ok(SPLIT)
        }
        other => Err(VmdkFault::FixedSize(other.name()).into()),
    }
}

fn grow(state: &mut State, size: u64, split: u64) -> Result<()> {
    let last = state.extents.last().ok_or(Common::Index(0))?;
    let room = split.saturating_sub(last.span.len());
    let len = last.span.len().saturating_add(room.min(size.saturating_sub(state.size)));
    let start = last.span.start();
    // Told before anything is changed.
    let text = text_for(state, size)?;
    state.home.has_room(&text)?;
    if len > last.span.len() {
        let body = longer(&last.body, last.span.len(), len)?;
        let span = Span::new(start, len)?;
        if let Some(last) = state.extents.last_mut() {
            (last.span, last.body) = (span, body);
        }
    }
    let mut at = start.saturating_add(len);
    let mut new = Vec::new();
    while at < size {
        let len = split.min(size.saturating_sub(at));
        new.push(another(state, new.len(), Span::new(at, len)?)?);
        at = at.saturating_add(len);
    }
    if let Some(beside) = &state.home.beside
        && !new.is_empty()
    {
        beside.publish()?;
    }
    state.extents.append(&mut new);
    state.size = size;
    let text = text_for(state, size)?;
    state.turn_descriptor(&text)
}

/// One more extent, in a file that has no name yet.
fn another(state: &State, made: usize, span: Span) -> Result<Extent> {
    let last = state.extents.last().ok_or(Common::Index(0))?;
    let flat = matches!(last.body, Body::Flat { .. });
    let kind = if flat { Subformat::SplitFlat } else { Subformat::SplitSparse };
    let beside = state.home.beside.as_ref().ok_or(VmdkFault::NowhereBeside(kind.name()))?;
    let number = state.extents.len().saturating_add(made).saturating_add(1);
    let name = next_name(&last.name, kind, number);
    let file = beside.create(&name)?;
    let body = match &last.body {
        Body::Sparse(sparse) => {
            split_extent(&file, span.len().div_euclid(SECTOR), sparse.header.zeroed_grains)?;
            let header = SparseHeader::read(&file)?;
            Body::Sparse(Box::new(SparseExtent::open(file, header)?))
        }
        Body::Flat { .. } | Body::Zero => {
            file.resize(span.len())?;
            Body::Flat { file, at: 0 }
        }
        Body::SeSparse(_) => return Err(VmdkFault::FixedSize("seSparse disks").into()),
    };
    Ok(Extent { span, access: Access::ReadWrite, name, body })
}

/// The name that follows `last`, which is extent number `number - 1` of the image.
fn next_name(last: &str, kind: Subformat, number: usize) -> String {
    let letter = if kind == Subformat::SplitFlat { "-f" } else { "-s" };
    match last.rsplit_once(letter) {
        Some((stem, tail)) => {
            let end = tail.trim_start_matches(|c: char| c.is_ascii_digit());
            extent_file(Some(&format!("{stem}{end}")), kind, number)
        }
        None => extent_file(Some(last), kind, number),
    }
}

fn shrink(state: &mut State, size: u64) -> Result<()> {
    let keep = state.extents.iter().take_while(|e| e.span.start() < size).count().max(1);
    let gone: Vec<Extent> = state.extents.drain(keep..).collect();
    let old = state.extents.last().map_or(0, |e| e.span.len());
    if let Some(last) = state.extents.last_mut() {
        last.span = Span::new(last.span.start(), size.saturating_sub(last.span.start()))?;
    }
    state.size = size;
    let text = text_for(state, size)?;
    state.home.has_room(&text)?;
    state.turn_descriptor(&text)?;
    if let Some(last) = state.extents.last_mut()
        && last.span.len() < old
    {
        last.body = shorter(&last.body, last.span.len())?;
    }
    if let Some(beside) = &state.home.beside {
        for extent in gone {
            beside.remove(&extent.name)?;
        }
    }
    Ok(())
}

/// The descriptor's text for the extents as they are now.
fn text_for(state: &State, size: u64) -> Result<String> {
    let descriptor = state.descriptor.as_ref().ok_or(VmdkFault::Missing("descriptor"))?;
    let own_name = descriptor.extents.first().map_or("", |line| match &line.source {
        Source::Sparse { name } | Source::SeSparse { name } | Source::Flat { name, .. } => name,
        Source::Zero | Source::Other { .. } => "",
    });
    let line = |e: &Extent| {
        let sectors = e.span.len().div_euclid(SECTOR);
        // A lone extent is the image itself.
        let name = if e.name.is_empty() { own_name } else { &e.name };
        match e.body {
            Body::Sparse(_) | Body::SeSparse(_) => ExtentLine::sparse(sectors, name),
            Body::Flat { .. } | Body::Zero => ExtentLine::flat(sectors, name),
        }
    };
    let lines: Vec<String> = state.extents.iter().map(line).collect();
    // The content ID may have changed since the descriptor was read.
    let now = state.home.text(descriptor)?;
    Ok(resized(&now, &lines, size.div_euclid(SECTOR), &descriptor.ddb))
}

/// An extent of `old` bytes, with `len` bytes.
fn longer(body: &Body, old: u64, len: u64) -> Result<Body> {
    match body {
        Body::Zero => Ok(Body::Zero),
        Body::Flat { file, at } => {
            // What the file has behind the disk's end is nobody's.
            let there = file.size().min(len).saturating_sub(old);
            if there > 0 {
                file.write_zeroes(Span::new(old, there)?)?;
            }
            if file.size() < len {
                file.resize(len)?;
            }
            file.flush()?;
            Ok(Body::Flat { file: file.clone(), at: *at })
        }
        Body::SeSparse(_) => Err(VmdkFault::FixedSize("seSparse disks").into()),
        Body::Sparse(sparse) => {
            grow_sparse(sparse, len)?;
            reopened(&sparse.file)
        }
    }
}

fn shorter(body: &Body, len: u64) -> Result<Body> {
    match body {
        Body::Zero => Ok(Body::Zero),
        Body::Flat { file, at } => {
            file.resize(len)?;
            file.flush()?;
            Ok(Body::Flat { file: file.clone(), at: *at })
        }
        Body::SeSparse(_) => Err(VmdkFault::FixedSize("seSparse disks").into()),
        Body::Sparse(sparse) => {
            shrink_sparse(sparse, len)?;
            reopened(&sparse.file)
        }
    }
}

fn reopened(file: &Disk) -> Result<Body> {
    let header = SparseHeader::read(file)?;
    Ok(Body::Sparse(Box::new(SparseExtent::open(file.clone(), header)?)))
}

/// Changes fields of the header: one sector, all or nothing.
fn turn_header(file: &Disk, change: impl FnOnce(&mut RawSparseHeader)) -> Result<()> {
    file.flush()?;
    let mut raw = read::<RawSparseHeader>(file, 0, "VMDK header")?;
    change(&mut raw);
    file.write_at(0, raw.as_bytes())?;
    file.flush()
}

fn grow_sparse(sparse: &SparseExtent, len: u64) -> Result<()> {
    if len > SIZE_MAX {
        return Err(VmdkFault::Full(len.div_euclid(SECTOR)).into());
    }
    sparse.prepare()?;
    clean_end(sparse)?;
    sparse.sync()?;
    let header = &sparse.header;
    let table_bytes = u64::from(header.gt_entries).saturating_mul(4);
    let (old, new) = (header.gd_entries(), len.div_ceil(header.table_covers().max(1)));
    let need = new.saturating_mul(4);
    if need > GD_BYTES_MAX {
        return Err(VmdkFault::Full(len.div_euclid(SECTOR)).into());
    }
    let fits = need <= old.saturating_mul(4).next_multiple_of(SECTOR);
    let mut places = Vec::new();
    for at in [Some(header.gd_at), header.rgd_at].into_iter().flatten() {
        let added = new.saturating_sub(old);
        let mut entries = bytes(&sparse.file, at, old.saturating_mul(4), GD_BYTES_MAX, "grain directory")?;
        if added > 0 {
            let first = sparse.reserve_behind(added.saturating_mul(table_bytes))?;
            for i in 0..added {
                let sector = first.saturating_add(i.saturating_mul(table_bytes)).div_euclid(SECTOR);
                let sector = u32::try_from(sector).map_err(|_| VmdkFault::Full(sector))?;
                entries.extend(sector.to_le_bytes());
            }
        }
        // Entries behind the old end mean nothing until the header says so.
        let to = if fits { at } else { sparse.reserve_behind(need)? };
        sparse.file.write_at(to, &entries)?;
        places.push(to.div_euclid(SECTOR));
    }
    turn_header(&sparse.file, |raw| {
        raw.capacity = U64::new(len.div_euclid(SECTOR));
        if let Some(at) = places.first() {
            raw.gd_offset = U64::new(*at);
        }
        if let Some(at) = places.get(1) {
            raw.rgd_offset = U64::new(*at);
        }
    })?;
    give_back(&sparse.file)
}

/// Sees to it that nothing old comes to light behind the end: a last grain that is cut moves to a whole place, and
/// entries behind it go.
fn clean_end(sparse: &SparseExtent) -> Result<()> {
    let header = &sparse.header;
    let Some(last) = header.grain.count(header.capacity).checked_sub(1) else { return Ok(()) };
    let (table, entry) = sparse.locate(last);
    sparse.load(table)?;
    let Some(entries) = sparse.shared()?.loaded.get(&table).cloned() else { return Ok(()) };
    let entry = index(entry)?;
    let sector = entries.get(entry).copied().unwrap_or(0);
    let cut = header.capacity.rem_euclid(header.grain.bytes()) != 0;
    let mut moved = None;
    if cut && sector > u32::from(header.zeroed_grains) {
        let place = sparse.grain_place(last, sector.into())?;
        let held = bytes(&sparse.file, place.start(), place.len(), header.grain.bytes(), "grain")?;
        let to = sparse.reserve_behind(header.grain.bytes())?;
        sparse.file.write_at(to, &held)?;
        let to = to.div_euclid(SECTOR);
        moved = Some(u32::try_from(to).map_err(|_| VmdkFault::Full(to))?);
    }
    let stale = entries.iter().skip(entry.saturating_add(1)).any(|e| *e != 0);
    if moved.is_none() && !stale {
        return Ok(());
    }
    sparse.change_table(table, |entries| {
        if let (Some(slot), Some(moved)) = (entries.get_mut(entry), moved) {
            *slot = moved;
        }
        entries.iter_mut().skip(entry.saturating_add(1)).for_each(|e| *e = 0);
        Ok(())
    })
}

fn shrink_sparse(sparse: &SparseExtent, len: u64) -> Result<()> {
    sparse.prepare()?;
    turn_header(&sparse.file, |raw| raw.capacity = U64::new(len.div_euclid(SECTOR)))?;
    let header = &sparse.header;
    let keep = header.grain.count(len);
    let (first_table, _) = sparse.locate(keep);
    for table in first_table..header.gd_entries() {
        let mut gone = false;
        sparse.each_grain_of(table, |grain, _| {
            gone |= grain >= keep;
            Ok(())
        })?;
        if !gone {
            continue;
        }
        let first = table.saturating_mul(header.gt_entries.into());
        let from = index(keep.saturating_sub(first))?;
        sparse.change_table(table, |entries| {
            entries.iter_mut().skip(from).for_each(|e| *e = 0);
            Ok(())
        })?;
        sparse.sync()?;
    }
    give_back(&sparse.file)
}

/// Gives back what no table names any more: old tables, and what is behind the last grain.
fn give_back(file: &Disk) -> Result<()> {
    let now = SparseExtent::open(file.clone(), SparseHeader::read(file)?)?;
    let (size, grain) = (file.size(), now.header.grain);
    let mut end = size;
    now.census()?.each_free(now.header.overhead, size, |free| {
        if free.end() >= grain.floor(size) {
            end = grain.ceil(free.start()).unwrap_or(size);
        }
        file.discard(free)
    })?;
    file.resize(end.min(size))?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_on() {
        assert_eq!(next_name("a-s001.vmdk", Subformat::SplitSparse, 2), "a-s002.vmdk");
        assert_eq!(next_name("a-f-f999.img", Subformat::SplitFlat, 1000), "a-f-f1000.img");
        assert_eq!(next_name("odd", Subformat::SplitFlat, 3), "odd-f003");
    }
}
