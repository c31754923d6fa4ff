//! Operations as racker does them.

use racker_formats::block::Span;
use racker_formats::error::{Error, Kind, Result};
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Filesystem, Flags, Keeps, Name, New, NewKind, NodeId, Time};

use super::op::{Make, Op, Outcome, Place, split};

fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

/// The node at a place.
pub(super) fn find(fs: &dyn Filesystem, place: &[Vec<u8>]) -> NodeId {
    place.iter().fold(fs.root(), |dir, part| {
        fs.lookup(dir, &name(part)).unwrap().unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(part)))
    })
}

fn refused(e: &Error) -> bool {
    matches!(e.kind(), Kind::NoSpace | Kind::Unsupported)
}

/// Does an operation.
pub(super) fn apply(fs: &mut Writer<'_>, op: &Op, now: Time) -> Outcome {
    let done = match op {
        Op::Many { dir, names, node } => return many(fs, dir, names, node.as_ref(), now),
        Op::Few { dir, names } => {
            let dir = find(&**fs, dir);
            names.iter().try_for_each(|part| fs.unlink(dir, &name(part), now))
        }
        op => single(fs, op, now),
    };
    match done {
        Ok(()) => Outcome::Done,
        Err(e) if refused(&e) => Outcome::Refused,
        Err(e) => panic!("{e:?}: {e:#}"),
    }
}

fn many(fs: &mut Writer<'_>, dir: &Place, names: &[Vec<u8>], node: Option<&Place>, now: Time) -> Outcome {
    let (dir, node) = (find(&**fs, dir), node.map(|node| find(&**fs, node)));
    for (count, part) in names.iter().enumerate() {
        let new = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
        let done = match node {
            Some(node) => fs.link(node, dir, &name(part), now),
            None => fs.create(dir, &name(part), &new, now).map(drop),
        };
        match done {
            Ok(()) => {}
            Err(e) if refused(&e) && count == 0 => return Outcome::Refused,
            Err(e) if refused(&e) => return Outcome::Part(count),
            Err(e) => panic!("{e:?}: {e:#}"),
        }
    }
    Outcome::Done
}

fn single(fs: &mut Writer<'_>, op: &Op, now: Time) -> Result<()> {
    let at = |place: &Place| {
        let (dir, last) = split(place);
        (find(&**fs, dir), name(last))
    };
    match op {
        Op::Create { at: place, make, mode, owner } => {
            let (dir, last) = at(place);
            let kind = match make {
                Make::File => NewKind::File,
                Make::Dir => NewKind::Dir,
                Make::Link(to) => NewKind::Link(to),
                Make::Char(a, b) => NewKind::Char(*a, *b),
                Make::Block(a, b) => NewKind::Block(*a, *b),
                Make::Fifo => NewKind::Fifo,
                Make::Socket => NewKind::Socket,
            };
            fs.create(dir, &last, &New { kind, mode: *mode, uid: owner.0, gid: owner.1 }, now).map(drop)
        }
        Op::Write { file, at, data } => fs.write(find(&**fs, file), *at, &data.bytes(), now),
        Op::Truncate { file, size } => fs.truncate(find(&**fs, file), *size, now),
        Op::Punch { file, at, len } => fs.punch(find(&**fs, file), Span::new(*at, *len).unwrap(), now),
        Op::Replace { file, data } | Op::Ballast { file, data } => {
            let bytes = data.bytes();
            let content = Content { reader: &mut bytes.as_slice(), size: data.len };
            fs.replace(find(&**fs, file), content, now)
        }
        Op::Link { node, at: place } => {
            let (dir, last) = at(place);
            fs.link(find(&**fs, node), dir, &last, now)
        }
        Op::Remove { at: place } => {
            let (dir, last) = at(place);
            fs.unlink(dir, &last, now)
        }
        Op::Rename { from, to } => {
            let (from, to) = (at(from), at(to));
            fs.rename((from.0, &from.1), (to.0, &to.1), now)
        }
        Op::Exchange { one, other } => {
            let (one, other) = (at(one), at(other));
            fs.exchange((one.0, &one.1), (other.0, &other.1), now)
        }
        Op::Xattr { node, name, value } => fs.set_xattr(find(&**fs, node), name, value.as_deref(), now),
        op => attributes(fs, op, now),
    }
}

fn attributes(fs: &mut Writer<'_>, op: &Op, now: Time) -> Result<()> {
    let none = Change::default();
    let (node, change) = match op {
        Op::Owner { node, owner, mode } => {
            let owners = fs.keeps().contains(Keeps::OWNERS);
            let (uid, gid) = (owners.then_some(owner.0), owners.then_some(owner.1));
            (node, Change { uid, gid, mode: *mode, ..none })
        }
        Op::Times { node, atime, mtime } => {
            (node, Change { atime: Some(*atime), mtime: Some(*mtime), ..none })
        }
        Op::Flags { node, flags } => {
            (node, Change { flags: Some(Flags::from_bits_truncate(*flags)), ..none })
        }
        other => unreachable!("{other:?}"),
    };
    fs.set_attributes(find(&**fs, node), &change, now)
}
