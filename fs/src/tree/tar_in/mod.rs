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
    mut put: Put<'_, '_>,
    names: &dyn Names,
    tell: Option<ProgressFn<'_>>,
) -> Result<TarredIn> {
    let mut meter = Meter::new(tell);
    let mut stream = Stream::new(stream, names);
    let mut buf = vec![0; PIECE];
    let mut late = Late::default();
    while let Some(mut member) = stream.next()? {
        let shown = || String::from_utf8_lossy(&member.path).into_owned();
        let leads_out = TreeFault::Member { at: stream.at(), why: "a name leads out of the directory" };
        let path = components(&member.path).ok_or_else(|| leads_out.into()).within(shown)?;
        put_member(&mut stream, &member, &path, &mut put, &mut buf, &mut meter).within(shown)?;
        late.member(&path, std::mem::take(&mut member.unknown), &mut put);
        stream.skip_rest()?;
        meter.node()?;
    }
    late.finish(names, &mut put)?;
    Ok(TarredIn { done: meter.done(), notes: put.finish()? })
}

fn put_member(
    stream: &mut Stream<'_>,
    member: &Member,
    path: &[Name],
    put: &mut Put<'_, '_>,
    buf: &mut [u8],
    meter: &mut Meter<'_>,
) -> Result<()> {
    let Member { meta, kind, .. } = member;
    let kind = match kind {
        Kind::Link => {
            let wrong = || TreeFault::Member { at: stream.at(), why: "a link leads out of the directory" };
            return put.link(path, &components(&member.target).ok_or_else(wrong)?);
        }
        Kind::File => return put_file(stream, member, path, put, buf, meter),
        Kind::Dir => NewKind::Dir,
        Kind::Symlink => NewKind::Link(&member.target),
        Kind::Char(major, minor) => NewKind::Char(*major, *minor),
        Kind::Block(major, minor) => NewKind::Block(*major, *minor),
        Kind::Fifo => NewKind::Fifo,
    };
    put.node(path, kind, meta).map(drop)
}

fn put_file(
    stream: &mut Stream<'_>,
    member: &Member,
    path: &[Name],
    put: &mut Put<'_, '_>,
    buf: &mut [u8],
    meter: &mut Meter<'_>,
) -> Result<()> {
    let Some(file) = put.node(path, NewKind::File, &member.meta)? else { return Ok(()) };
    for span in &member.regions {
        let mut rest = *span;
        while !rest.is_empty() {
            let want = usize::try_from(rest.len()).unwrap_or(buf.len()).min(buf.len());
            let piece = buf.get_mut(..want).unwrap_or_default();
            stream.read(piece)?;
            put.write(file, rest.start(), piece)?;
            meter.bytes(len64(want))?;
            rest = rest.skip(len64(want));
        }
    }
    put.finish_file(file, member.size, &member.meta)
}

/// The components of a member's name; none if it leads up. A slash in front does not matter, nor does `.`.
fn components(path: &[u8]) -> Option<Vec<Name>> {
    let parts = path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".");
    parts.map(|part| Name::new(part).ok()).collect()
}
