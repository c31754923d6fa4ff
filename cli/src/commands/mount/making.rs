//! A node that the kernel wants made, on its way to the thread that makes it.

use fuser::{INodeNo, Request};
use racker_fs::filesystem::{Name, NewKind};

use super::meaning::Answer;
use super::tree::{Told, Tree, Wanted};

/// A node to be made.
pub(super) struct Making {
    kind: Kind,
    mode: u32,
    umask: u32,
    by: (u32, u32),
}

/// What it is, with all that belongs to it.
pub(super) enum Kind {
    /// Anything but a symbolic link.
    Plain(NewKind<'static>),
    /// A symbolic link with this target.
    Link(Vec<u8>),
}

impl Making {
    pub(super) fn new(req: &Request, kind: Kind, mode: u32, umask: u32) -> Self {
        Self { kind, mode, umask, by: (req.uid(), req.gid()) }
    }

    pub(super) fn make(&self, tree: &mut Tree<'_>, dir: INodeNo, name: Answer<Name>) -> Answer<Told> {
        let kind = match &self.kind {
            Kind::Plain(kind) => *kind,
            Kind::Link(target) => NewKind::Link(target),
        };
        tree.make(dir, &name?, &Wanted { kind, mode: self.mode, umask: self.umask, by: self.by })
    }
}
