//! Extended headers (POSIX pax): records of the form "length key=value".

use super::fault::TarFault;
use crate::error::Result;
use crate::limits::SPARSE_REGIONS_MAX;

/// The records that matter for finding a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    /// Bytes that follow the member's header.
    pub(super) size: Option<u64>,
    pub(super) sparse: Sparse,
}

/// GNU's records about a sparse member: three forms over the years.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` (1.0) or `GNU.sparse.size` (0.0, 0.1).
    pub(super) real_size: Option<u64>,
    /// The regions of 0.0 and 0.1; 1.0 keeps them before the data.
    pub(super) regions: Vec<(u64, u64)>,
    /// The offset that waits for its length.
    pending: Option<u64>,
}

impl Pax {
    /// Adds the records of the header at `at` to what is known.
    pub(super) fn add(&mut self, records: &[u8], at: u64) -> Result<()> {
        let mut rest = records;
        // Zero bytes fill some writers' last block.
        while rest.first().is_some_and(|b| *b != 0) {
            let (key, value, after) = record(rest).ok_or(TarFault::Pax { at })?;
            self.set(key, value, at)?;
            rest = after;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], at: u64) -> Result<()> {
        let number = || decimal(value).ok_or(TarFault::Pax { at });
        let sparse = &mut self.sparse;
        match key {
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = if value.is_empty() { None } else { Some(number()?) },
            b"GNU.sparse.major" => sparse.major = Some(number()?),
            b"GNU.sparse.minor" => sparse.minor = Some(number()?),
            b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => sparse.real_size = Some(number()?),
            b"GNU.sparse.offset" => sparse.pending = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = sparse.pending.take().ok_or(TarFault::Map { at })?;
                push(&mut sparse.regions, offset, number()?, at)?;
            }
            b"GNU.sparse.map" => {
                sparse.regions.clear();
                let mut numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty());
                while let Some(offset) = numbers.next() {
                    let len = numbers.next().and_then(decimal).ok_or(TarFault::Map { at })?;
                    push(&mut sparse.regions, decimal(offset).ok_or(TarFault::Map { at })?, len, at)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Adds a region unless there are too many.
pub(super) fn push(regions: &mut Vec<(u64, u64)>, offset: u64, len: u64, at: u64) -> Result<()> {
    if regions.len() >= SPARSE_REGIONS_MAX {
        return Err(TarFault::Regions { at, max: SPARSE_REGIONS_MAX }.into());
    }
    regions.push((offset, len));
    Ok(())
}

/// Key and value of the first record, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // The length counts its own digits, the space and the newline.
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, after) = bytes.split_at_checked(len)?;
    let body = record.get(space.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((body.get(..equals)?, body.get(equals.checked_add(1)?..)?, after))
}

/// Decimal digits, at least one, and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, b| match b {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(b.wrapping_sub(b'0'))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> Vec<u8> {
        let one = |(key, value): &(&str, &str)| {
            let rest = format!(" {key}={value}\n");
            let len = (1..).find(|n| n.to_string().len() + rest.len() == *n).unwrap();
            format!("{len}{rest}")
        };
        pairs.iter().map(one).collect::<String>().into_bytes()
    }

    #[test]
    fn records_of_all_sparse_forms() {
        let mut pax = Pax::default();
        let of_0_0 = [("path", "a/bc"), ("GNU.sparse.offset", "10"), ("GNU.sparse.numbytes", "5")];
        pax.add(&records(&of_0_0), 0).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/bc"[..]));
        assert_eq!(pax.sparse.regions, [(10, 5)]);
        let mut of_0_1 = records(&[("GNU.sparse.map", "0,1,512,100")]);
        of_0_1.extend([0; 3]);
        pax.add(&of_0_1, 0).unwrap();
        assert_eq!(pax.sparse.regions, [(0, 1), (512, 100)]);
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [
            b"x".to_vec(),
            b"0 \n".to_vec(),
            b"3 a\n".to_vec(),
            b"99999999999999999999 a=b\n".to_vec(),
            b"100 a=b\n".to_vec(),
            b"6 a=b\n6 size=1\n".to_vec(),
            records(&[("size", "x")]),
            records(&[("GNU.sparse.numbytes", "5")]),
            records(&[("GNU.sparse.map", "1")]),
        ] {
            assert!(Pax::default().add(&bad, 0).is_err(), "{}", String::from_utf8_lossy(&bad));
        }
    }
}
