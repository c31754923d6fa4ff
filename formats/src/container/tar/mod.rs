//! tar: ustar, pax and GNU, as Vagrant boxes, OVAs and archives of raw disks are made.
//!
//! * Members are slices of the archive. Sparse members, in GNU's old form and in the pax forms 0.0, 0.1 and 1.0,
//!   are disks with holes.
//! * Long names of both kinds, sizes in base 256 and in pax records.
//! * The archive ends at a block of zeroes, or where the file ends on a whole block.
//! * A member without the magic of ustar (the form of 1979) does not make a file a tar: too little to go by.
//! * Parts of members from other volumes are refused.
//!
//! Names are only names here: nothing is ever extracted to them.

mod fault;
mod header;
mod layout;
mod pax;
mod sparse;

use self::header::{Entry, Header, looks_like_header, sparse_block};
use self::layout::BLOCK;
use self::pax::Pax;
use self::sparse::{Map, read_map};
use super::{Container, ContainerFormat, Expansion, Member};
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Error, Result};
use crate::limits::{ARCHIVE_MEMBERS_MAX, ARCHIVE_NAME_BYTES_MAX, PAX_BYTES_MAX, SPARSE_REGIONS_MAX};
use crate::registry::Head;
use crate::wire::{bytes, is_zero};

pub use self::fault::TarFault;

/// The entry in the list.
pub(super) const FORMAT: Tar = Tar;

/// tar archives.
pub(super) struct Tar;

impl ContainerFormat for Tar {
    fn name(&self) -> &'static str {
        "tar"
    }

    fn probe(&self, head: &Head<'_>) -> bool {
        looks_like_header(head.first)
    }

    fn open(&self, file: Disk, _: &mut Expansion) -> Result<Box<dyn Container>> {
        let file = file.read_only();
        let mut walk = Walk { file: &file, at: 0, long_name: None, global: Pax::default(), local: None };
        let (mut members, mut places) = (Vec::new(), Vec::new());
        let mut headers = 0usize;
        while let Some(found) = walk.next()? {
            headers = headers.saturating_add(1);
            if headers > ARCHIVE_MEMBERS_MAX {
                return Err(TarFault::Many(ARCHIVE_MEMBERS_MAX).into());
            }
            if let Some((name, place)) = found {
                let name = String::from_utf8_lossy(&name).into_owned();
                members.push(Member { name, size: place.size() });
                places.push(place);
            }
        }
        Ok(Box::new(Archive { file, members, places }))
    }
}

/// Where a member's bytes are.
#[derive(Debug)]
enum Place {
    Plain(Span),
    Sparse(Map),
}

impl Place {
    fn size(&self) -> u64 {
        match self {
            Self::Plain(span) => span.len(),
            Self::Sparse(map) => map.size(),
        }
    }
}

#[derive(Debug)]
struct Archive {
    file: Disk,
    members: Vec<Member>,
    /// As many as members.
    places: Vec<Place>,
}

impl Container for Archive {
    fn members(&self) -> &[Member] {
        &self.members
    }

    fn open(&self, member: usize) -> Result<Disk> {
        match self.places.get(member) {
            Some(Place::Plain(span)) => self.file.slice(*span),
            Some(Place::Sparse(map)) => Ok(map.open(&self.file)),
            None => Err(Error::from(crate::error::Common::Index(crate::wire::len64(member)))),
        }
    }
}

/// A walk over the headers. It ends because every step moves forward in a file of finite size.
struct Walk<'a> {
    file: &'a Disk,
    at: u64,
    /// What GNU and pax headers said about the next member.
    long_name: Option<Vec<u8>>,
    global: Pax,
    local: Option<Pax>,
}

impl Walk<'_> {
    /// One header: `None` at the end, `Some(None)` where it is no regular file.
    #[expect(clippy::type_complexity, reason = "only the loop above sees it")]
    fn next(&mut self) -> Result<Option<Option<(Vec<u8>, Place)>>> {
        let at = self.at;
        let left = self.file.size().saturating_sub(at);
        if left < BLOCK {
            let rest = bytes(self.file, at, left, BLOCK, "end of tar")?;
            return if is_zero(&rest) { Ok(None) } else { Err(TarFault::CutHeader { at }.into()) };
        }
        let block = bytes(self.file, at, BLOCK, BLOCK, "tar header")?;
        if is_zero(&block) {
            return Ok(None);
        }
        let mut header = Header::parse(&block, at)?;
        if matches!(header.entry, Entry::Regular | Entry::GnuSparse | Entry::Other)
            && let Some(size) = self.local.as_ref().unwrap_or(&self.global).size
        {
            header.size = size;
        }
        let mut regions = Vec::new();
        let mut data = at.saturating_add(BLOCK);
        let mut real_size = header.size;
        if header.entry == Entry::GnuSparse {
            (real_size, data) = self.gnu_map(&header, at, &mut regions)?;
        }
        self.at = self.behind(at, data, header.size)?;
        let stored = Span::new(data, header.size)?;
        match header.entry {
            Entry::Pax { global } => self.pax(at, stored, global).map(|()| Some(None)),
            Entry::LongName => {
                let name = bytes(self.file, data, header.size, ARCHIVE_NAME_BYTES_MAX, "long name")?;
                self.long_name = name.split(|b| *b == 0).next().map(<[u8]>::to_vec);
                Ok(Some(None))
            }
            Entry::Other => Ok(Some(None)),
            Entry::MultiVolume => Err(TarFault::MultiVolume { at }.into()),
            Entry::Bare => {
                (self.local, self.long_name) = (None, None);
                Ok(Some(None))
            }
            Entry::GnuSparse => {
                let map = Map::new(at, real_size, &regions, data, header.size)?;
                let name = self.name(header.name);
                Ok(Some(Some((name, Place::Sparse(map)))))
            }
            Entry::Regular => self.regular(at, header.name, stored).map(|found| Some(Some(found))),
        }
    }

    /// Where the next header is; an error if the member ends behind the file.
    fn behind(&self, at: u64, data: u64, len: u64) -> Result<u64> {
        let file_size = self.file.size();
        let fault = TarFault::PastEnd { at, len, file_size };
        match data.checked_add(len) {
            // The last block of an archive may have been cut where the data end.
            Some(end) if end <= file_size => Ok(BLOCKS.ceil(end).ok_or(fault)?.min(file_size)),
            _ => Err(fault.into()),
        }
    }

    /// Real size of a GNU sparse member and where its data begin, behind the blocks of its map.
    fn gnu_map(&self, header: &Header, at: u64, regions: &mut Vec<(u64, u64)>) -> Result<(u64, u64)> {
        let first = header.gnu_sparse(at, regions)?;
        let mut data = at.saturating_add(BLOCK);
        let mut more = first.more;
        while more {
            if regions.len() >= SPARSE_REGIONS_MAX {
                return Err(TarFault::Regions { at, max: SPARSE_REGIONS_MAX }.into());
            }
            self.behind(at, data, BLOCK)?;
            let block = bytes(self.file, data, BLOCK, BLOCK, "tar sparse block")?;
            more = sparse_block(&block, at, regions)?;
            data = data.saturating_add(BLOCK);
        }
        Ok((first.real_size, data))
    }

    fn pax(&mut self, at: u64, stored: Span, global: bool) -> Result<()> {
        let records = bytes(self.file, stored.start(), stored.len(), PAX_BYTES_MAX, "pax header")?;
        if global {
            return self.global.add(&records, at);
        }
        let mut local = self.local.take().unwrap_or_else(|| self.global.clone());
        local.add(&records, at)?;
        self.local = Some(local);
        Ok(())
    }

    /// A plain member, or a sparse one in a form of pax.
    fn regular(&mut self, at: u64, name: Vec<u8>, stored: Span) -> Result<(Vec<u8>, Place)> {
        let sparse = self.local.as_mut().map(|l| std::mem::take(&mut l.sparse)).unwrap_or_default();
        let name = self.name(name);
        let (data, len) = (stored.start(), stored.len());
        let map = match (sparse.major, sparse.minor, sparse.real_size) {
            (Some(1), Some(0), Some(size)) => {
                let (regions, taken) = read_map(self.file, at, data, len)?;
                let (data, len) = (data.saturating_add(taken), len.saturating_sub(taken));
                Map::new(at, size, &regions, data, len)?
            }
            (None | Some(0), None | Some(0 | 1), Some(size)) => {
                Map::new(at, size, &sparse.regions, data, len)?
            }
            (None, _, None) => return Ok((name, Place::Plain(stored))),
            (Some(1), Some(0), None) | (Some(0), _, None) => return Err(TarFault::Map { at }.into()),
            (major, minor, _) => {
                let (major, minor) = (major.unwrap_or(0), minor.unwrap_or(0));
                return Err(TarFault::SparseVersion { at, major, minor }.into());
            }
        };
        Ok((sparse.name.unwrap_or(name), Place::Sparse(map)))
    }

    /// The name of the member whose header is at hand, the most specific first.
    fn name(&mut self, short: Vec<u8>) -> Vec<u8> {
        let long = self.long_name.take();
        let local = self.local.take().and_then(|l| l.path);
        local.or(long).or_else(|| self.global.path.clone()).unwrap_or(short)
    }
}

const BLOCKS: BlockSize = match BlockSize::from_bytes(BLOCK) {
    Some(size) => size,
    None => panic!("512 is a power of two"),
};
