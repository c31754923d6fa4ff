//! Where the holes of a file are: GNU's old form, and the pax forms 0.0, 0.1 and 1.0 (GNU tar's manual, appendix
//! "Storing Sparse Files").

use racker_formats::block::Span;
use racker_formats::error::Result;
use tar::GnuHeader;

use super::super::TreeFault;
use super::pax::Pax;

/// Stretches of data of one file.
const REGIONS_MAX: usize = 1 << 20;

/// Offset and length.
pub(super) type Regions = Vec<(u64, u64)>;

/// A map that extended headers speak of.
pub(super) struct Map {
    /// Bytes of the file.
    pub(super) size: u64,
    /// None if it stands in front of the content.
    pub(super) regions: Option<Regions>,
}

fn wrong(at: u64, why: &'static str) -> TreeFault {
    TreeFault::Member { at, why }
}

/// GNU's old form: regions, whether a block with more follows, and the size of the file.
pub(super) fn in_header(header: &GnuHeader, at: u64) -> Result<(Regions, bool, u64)> {
    let mut regions = Regions::new();
    for part in &header.sparse {
        if part.offset.first() != Some(&0) || part.numbytes.first() != Some(&0) {
            add(&mut regions, number(&part.offset, at)?, number(&part.numbytes, at)?, at)?;
        }
    }
    let size = header.real_size().map_err(|_| wrong(at, "a size is no number"))?;
    Ok((regions, header.is_extended(), size))
}

/// A block with 21 regions more; whether another one follows.
pub(super) fn in_block(block: &[u8; 512], regions: &mut Regions, at: u64) -> Result<bool> {
    for part in block.get(..504).unwrap_or_default().chunks_exact(24) {
        let (offset, len) = part.split_at_checked(12).unwrap_or_default();
        if offset.first() != Some(&0) || len.first() != Some(&0) {
            add(regions, number(offset, at)?, number(len, at)?, at)?;
        }
    }
    Ok(block.get(504).is_some_and(|more| *more != 0))
}

/// A number of a header: octal digits, or binary behind a set bit.
fn number(field: &[u8], at: u64) -> Result<u64> {
    let bad = || wrong(at, "a map of holes has a number that is none");
    if field.first().is_some_and(|b| *b & 0x80 != 0) {
        let tail = field.last_chunk::<8>().ok_or_else(bad)?;
        return Ok(u64::from_be_bytes(*tail));
    }
    let digits = field.iter().copied().filter(|b| !matches!(*b, b' ' | 0));
    digits.map(|b| (b'0'..=b'7').contains(&b).then(|| u64::from(b & 7))).try_fold(0u64, |sum, digit| {
        Ok(sum.checked_mul(8).and_then(|s| s.checked_add(digit?)).ok_or_else(bad)?)
    })
}

fn add(regions: &mut Regions, start: u64, len: u64, at: u64) -> Result<()> {
    if regions.len() >= REGIONS_MAX {
        return Err(wrong(at, "a map of holes is longer than racker reads").into());
    }
    regions.push((start, len));
    Ok(())
}

/// The map that extended headers have or promise, if the member is sparse.
pub(super) fn in_pax(pax: &Pax, at: u64) -> Result<Option<Map>> {
    if pax.number(b"GNU.sparse.major")? == Some(1) {
        let size =
            pax.number(b"GNU.sparse.realsize")?.ok_or_else(|| wrong(at, "a sparse file has no size"))?;
        return Ok(Some(Map { size, regions: None }));
    }
    let Some(size) = pax.number(b"GNU.sparse.size")? else { return Ok(None) };
    let decimal = |text: &[u8]| -> Result<u64> {
        let number = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
        Ok(number.ok_or_else(|| wrong(at, "a map of holes has a number that is none"))?)
    };
    let mut regions = Regions::new();
    if let Some(map) = pax.get(b"GNU.sparse.map") {
        let numbers = map.split(|b| *b == b',').map(decimal).collect::<Result<Vec<u64>>>()?;
        for pair in numbers.chunks(2) {
            let [start, len] = *pair else { return Err(wrong(at, "a map of holes is cut off").into()) };
            add(&mut regions, start, len, at)?;
        }
    } else {
        let (starts, lens) = (pax.all(b"GNU.sparse.offset"), pax.all(b"GNU.sparse.numbytes"));
        for (start, len) in starts.zip(lens) {
            add(&mut regions, decimal(start)?, decimal(len)?, at)?;
        }
    }
    Ok(Some(Map { size, regions: Some(regions) }))
}

/// The map in front of the content: decimal numbers, a line each, the first says how many pairs; filled up to a block.
pub(super) fn in_content(read: &mut dyn FnMut(&mut [u8]) -> Result<()>, at: u64) -> Result<Regions> {
    let mut block = [0; 512];
    let mut have = block.len();
    let mut next = |first: bool| -> Result<u64> {
        let bad = || wrong(at, "a map of holes has a number that is none");
        let mut value = None;
        loop {
            if have == block.len() {
                read(&mut block)?;
                have = 0;
            }
            let byte = block.get(have).copied().unwrap_or(0);
            have = have.saturating_add(1);
            match byte {
                b'\n' => return Ok(value.ok_or_else(bad)?),
                b'0'..=b'9' => {
                    let digit = u64::from(byte.wrapping_sub(b'0'));
                    let more = value.unwrap_or(0u64).checked_mul(10).and_then(|v| v.checked_add(digit));
                    value = Some(more.ok_or_else(bad)?);
                }
                _ if first => return Err(wrong(at, "a sparse file has no map").into()),
                _ => return Err(bad().into()),
            }
        }
    };
    let count = next(true)?;
    let mut regions = Regions::new();
    for _ in 0..count {
        let (start, len) = (next(false)?, next(false)?);
        add(&mut regions, start, len, at)?;
    }
    Ok(regions)
}

/// Regions in order, inside the file, without those that are empty.
pub(super) fn spans(regions: &Regions, size: u64, at: u64) -> Result<Vec<Span>> {
    let mut end = 0u64;
    let mut spans = Vec::with_capacity(regions.len());
    for (start, len) in regions {
        let span = Span::new(*start, *len)?;
        if span.start() < end || span.end() > size {
            return Err(wrong(at, "a map of holes is out of order").into());
        }
        end = span.end();
        if !span.is_empty() {
            spans.push(span);
        }
    }
    Ok(spans)
}
