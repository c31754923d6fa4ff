//! One block of directory entries: found, put in, taken out.

use racker_formats::error::Result;
use racker_formats::wire::{len64, part, take};

use super::super::casefold::Wanted;
use super::super::fault::Ext4Fault;
use super::super::layout::RawDirEntry;
use super::bytes::{put, put16, put32};

/// Bytes of an entry before its name.
const HEAD: usize = 8;

/// An entry where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) inode: u32,
    name_len: usize,
    pub(super) file_type: u8,
}

impl Place {
    pub(super) fn name<'a>(&self, block: &'a [u8]) -> Result<&'a [u8]> {
        part(block, self.at.saturating_add(HEAD), self.name_len, "directory entry")
    }

    fn end(&self) -> usize {
        self.at.saturating_add(self.len)
    }
}

/// Bytes that an entry with a name of this length needs.
pub(super) fn need(name: usize) -> usize {
    name.saturating_add(HEAD).saturating_add(3) & !3
}

/// The length of an entry out of its field: lengths of 64 KiB have two forms.
fn length(raw: u16, block: usize) -> usize {
    let len = usize::from(raw);
    match (block >= 1 << 16, len) {
        (false, _) => len,
        (true, 0 | 65535) => block,
        (true, _) => (len & 65532) | ((len & 3) << 16),
    }
}

/// The field for an entry's length.
fn field(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(65535)
}

/// All entries of the first `usable` bytes, used or not.
pub(super) fn places(block: &[u8], usable: usize) -> Result<Vec<Place>> {
    let mut all = Vec::new();
    let mut at = 0usize;
    while at < usable {
        let raw = take::<RawDirEntry>(block, at, "directory entry")?;
        let len = length(raw.rec_len.get(), block.len());
        let name_len = usize::from(raw.name_len);
        let end = at.saturating_add(len);
        if len < need(name_len).max(12) || !len.is_multiple_of(4) || end > usable {
            let found = len64(len);
            return Err(Ext4Fault::DirEntry { block: 0, at, what: "length", found }.into());
        }
        all.push(Place { at, len, inode: raw.inode.get(), name_len, file_type: raw.file_type });
        at = end;
    }
    Ok(all)
}

/// The entry of this name.
pub(super) fn find(block: &[u8], usable: usize, wanted: &Wanted<'_>) -> Result<Option<Place>> {
    for place in places(block, usable)? {
        if place.inode != 0 && wanted.is(place.name(block)?) {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// An entry to be put in.
#[derive(Clone, Copy, Debug)]
pub(super) struct New<'a> {
    pub(super) inode: u32,
    pub(super) file_type: u8,
    pub(super) name: &'a [u8],
}

/// Puts an entry at `at`, which gets `len` bytes.
pub(super) fn put_entry(block: &mut [u8], at: usize, len: usize, new: New<'_>) -> Result<()> {
    put32(block, at, new.inode)?;
    put16(block, at.saturating_add(4), field(len))?;
    let name_len = u8::try_from(new.name.len()).map_err(|_| Ext4Fault::Directory("a name is too long"))?;
    put(block, at.saturating_add(6), &[name_len, new.file_type])?;
    put(block, at.saturating_add(HEAD), new.name)
}

/// Puts an entry into a gap that is large enough; tells whether there was one.
pub(super) fn insert(block: &mut [u8], usable: usize, new: New<'_>) -> Result<bool> {
    let wanted = need(new.name.len()).max(12);
    for place in places(block, usable)? {
        let used = if place.inode == 0 { 0 } else { need(place.name_len).max(12) };
        if place.len.saturating_sub(used) < wanted {
            continue;
        }
        if used > 0 {
            put16(block, place.at.saturating_add(4), field(used))?;
        }
        put_entry(block, place.at.saturating_add(used), place.len.saturating_sub(used), new)?;
        return Ok(true);
    }
    Ok(false)
}

/// Takes an entry out.
pub(super) fn remove(block: &mut [u8], usable: usize, gone: &Place) -> Result<()> {
    let mut before: Option<Place> = None;
    for place in places(block, usable)? {
        if place == *gone {
            // Nothing of it stays behind.
            let tail = place.at.saturating_add(HEAD)..place.end();
            block.get_mut(tail).unwrap_or_default().fill(0);
            match before {
                Some(before) => {
                    let joined = before.len.saturating_add(place.len);
                    put(block, place.at, &[0; HEAD])?;
                    put16(block, before.at.saturating_add(4), field(joined))?;
                }
                None => {
                    put32(block, place.at, 0)?;
                    put(block, place.at.saturating_add(6), &[0, 0])?;
                }
            }
            return Ok(());
        }
        before = Some(place);
    }
    Err(Ext4Fault::Directory("an entry is gone").into())
}

/// Makes an entry name another node.
pub(super) fn point(block: &mut [u8], place: &Place, inode: u32, file_type: u8) -> Result<()> {
    put32(block, place.at, inode)?;
    put(block, place.at.saturating_add(7), &[file_type])
}

/// Fills a block with entries without gaps, the last one up to `usable`.
pub(super) fn pack(block: &mut [u8], usable: usize, entries: &[New<'_>]) -> Result<()> {
    block.fill(0);
    let Some((last, rest)) = entries.split_last() else {
        return put16(block, 4, field(usable));
    };
    let mut at = 0usize;
    for new in rest {
        let len = need(new.name.len()).max(12);
        put_entry(block, at, len, *new)?;
        at = at.saturating_add(len);
    }
    let len = usable.saturating_sub(at);
    if len < need(last.name.len()) {
        return Err(Ext4Fault::Directory("entries do not fit into a block").into());
    }
    put_entry(block, at, len, *last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &[u8]) -> New<'_> {
        New { inode: 12, file_type: 1, name }
    }

    #[test]
    fn entries_come_and_go() {
        let mut block = vec![0u8; 64];
        pack(&mut block, 52, &[]).unwrap();
        assert!(insert(&mut block, 52, new(b"abcdefgh")).unwrap());
        assert!(insert(&mut block, 52, new(b"i")).unwrap());
        assert!(insert(&mut block, 52, new(b"j")).unwrap());
        assert!(!insert(&mut block, 52, new(b"long name")).unwrap());
        let find = |block: &[u8], name| find(block, 52, &Wanted::exactly(name)).unwrap();
        let gone = find(&block, b"i").unwrap();
        remove(&mut block, 52, &gone).unwrap();
        assert!(find(&block, b"i").is_none() && remove(&mut block, 52, &gone).is_err());
        let gone = find(&block, b"abcdefgh").unwrap();
        remove(&mut block, 52, &gone).unwrap();
        let all = places(&block, 52).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].inode, all[0].len), (0, 28));
        assert!(insert(&mut block, 52, new(b"a longer name 12")).unwrap());
        assert_eq!(find(&block, b"a longer name 12").unwrap().at, 0);
        assert!(find(&block, b"j").is_some());
        assert!(places(&[0; 64], 64).is_err());
    }

    #[test]
    fn entries_of_64_kib_have_their_own_form() {
        assert_eq!(length(field(65536), 65536), 65536);
        assert_eq!(length(field(65524), 65536), 65524);
        assert_eq!(length(0, 4096), 0);
    }
}
