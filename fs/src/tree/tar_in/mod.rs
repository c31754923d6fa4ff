//! A tar stream into a disk that is being edited: ustar, GNU and pax, as all of today's programs write them.
//!
//! Owners are taken as numbers. Kept are modes, nanosecond times, hard links, devices, extended attributes
//! (`SCHILY.xattr.`, `LIBARCHIVE.xattr.`), access control lists (`SCHILY.acl.`), and holes of all sparse forms. A
//! member's name cannot lead out of the directory.
//!
//! * [`stream`]: members out of a stream; [`pax`]: extended headers; [`sparse`]: where the holes are
//! * [`acl`]: access control lists as text; [`late`]: those that wait for the end of the stream

mod acl;
mod late;
mod pax;
mod sparse;
mod stream;

use std::io::Read;

use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;

use self::late::Late;
pub use self::pax::base64;
use self::stream::{Kind, Member, Stream};
use super::put::Put;
use super::report::Meter;
use super::{Notes, Progress, ProgressFn, TreeFault};
use crate::filesystem::{Name, NewKind};

/// Bytes of content in memory.
const PIECE: usize = 1 << 20;

/// What a tar stream put into the disk.
#[derive(Clone, Debug, Default)]
pub struct TarredIn {
    /// Entries and bytes of content.
    pub done: Progress,
    /// What could not be kept.
    pub notes: Notes,
}

/// Who is who, for access control lists that have names without numbers.
pub trait Names {
    /// The number of a user.
    fn user(&self, name: &str) -> Option<u32>;
    /// The number of a group.
    fn group(&self, name: &str) -> Option<u32>;

    /// Who is who after all was put; none if nobody can know more than before.
    fn again(&self) -> Option<Box<dyn Names + '_>> {
        None
    }
}

/// Knows nobody.
impl Names for () {
    fn user(&self, _: &str) -> Option<u32> {
        None
    }

    fn group(&self, _: &str) -> Option<u32> {
        None
    }
}

/// Puts all members of a tar stream.
pub fn tar_in(
    stream: &mut dyn Read,
    put: Put<'_, '_>,
    names: &dyn Names,
    tell: Option<ProgressFn<'_>>,
) -> Result<TarredIn> {
    let mut unpacking =
        Unpacking { stream: Stream::new(stream, names), put, buf: vec![0; PIECE], meter: Meter::new(tell) };
    let mut late = Late::default();
    while let Some(mut member) = unpacking.stream.next()? {
        let shown = || String::from_utf8_lossy(&member.path).into_owned();
        let path = components(&member.path)
            .ok_or_else(|| unpacking.wrong("a name leads out of the directory").into());
        let path = path.within(shown)?;
        unpacking.member(&member, &path).within(shown)?;
        late.member(&path, std::mem::take(&mut member.unknown), &mut unpacking.put);
        unpacking.stream.skip_rest()?;
        unpacking.meter.node()?;
    }
    let Unpacking { mut put, meter, .. } = unpacking;
    late.finish(names, &mut put)?;
    Ok(TarredIn { done: meter.done(), notes: put.finish()? })
}

/// A stream on its way to the disk.
struct Unpacking<'s, 'p, 't, 'm> {
    stream: Stream<'s>,
    put: Put<'p, 't>,
    buf: Vec<u8>,
    meter: Meter<'m>,
}

impl Unpacking<'_, '_, '_, '_> {
    fn wrong(&self, why: &'static str) -> TreeFault {
        TreeFault::Member { at: self.stream.at(), why }
    }

    fn member(&mut self, member: &Member, path: &[Name]) -> Result<()> {
        let Member { meta, kind, .. } = member;
        let kind = match kind {
            Kind::Link => {
                let target = components(&member.target)
                    .ok_or_else(|| self.wrong("a link leads out of the directory"))?;
                return self.put.link(path, &target);
            }
            Kind::File => return self.file(member, path),
            Kind::Dir => NewKind::Dir,
            Kind::Symlink => NewKind::Link(&member.target),
            Kind::Char(major, minor) => NewKind::Char(*major, *minor),
            Kind::Block(major, minor) => NewKind::Block(*major, *minor),
            Kind::Fifo => NewKind::Fifo,
        };
        self.put.node(path, kind, meta).map(drop)
    }

    fn file(&mut self, member: &Member, path: &[Name]) -> Result<()> {
        let Some(file) = self.put.node(path, NewKind::File, &member.meta)? else { return Ok(()) };
        for span in &member.regions {
            let mut rest = *span;
            while !rest.is_empty() {
                let want = usize::try_from(rest.len()).unwrap_or(PIECE).min(PIECE);
                let piece = self.buf.get_mut(..want).unwrap_or_default();
                self.stream.read(piece)?;
                self.put.write(file, rest.start(), piece)?;
                self.meter.bytes(len64(want))?;
                rest = rest.skip(len64(want));
            }
        }
        self.put.finish_file(file, member.size, &member.meta)
    }
}

/// The components of a member's name; none if it leads up. A slash in front does not matter, nor does `.`.
fn components(path: &[u8]) -> Option<Vec<Name>> {
    let parts = path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".");
    parts.map(|part| Name::new(part).ok()).collect()
}
