//! A filesystem as it is now: as it was opened, or, once somebody edits it, as the edit has it.

use std::fmt::Debug;
use std::sync::{Arc, RwLock};

use racker_formats::block::Span;
use racker_formats::error::{Common, Result};

use super::EditFault;
use crate::filesystem::{
    DirEntry, Extent, Filesystem, FilesystemMut, FsFacts, Name, NodeId, Stat, Visit, VisitXattr,
};

/// A filesystem that one changes and others read; none once it was closed.
///
/// Visitors look at other nodes while they are told of one, so a thread may hold several guards for reading; nobody
/// waits for the guard to write, as one thread does all the writing and no reading at that time.
pub(super) type Core = RwLock<Option<Box<dyn FilesystemMut>>>;

/// What everybody who looks at a volume holds.
#[derive(Debug)]
pub(crate) struct Live {
    opened: Option<Arc<dyn Filesystem>>,
    edited: RwLock<Option<Arc<Core>>>,
}

impl Live {
    /// A filesystem that nobody edits so far.
    pub(crate) fn new(opened: Arc<dyn Filesystem>) -> Self {
        Self { opened: Some(opened), edited: RwLock::default() }
    }

    /// One that is being edited.
    pub(super) fn of(core: Arc<Core>) -> Self {
        Self { opened: None, edited: RwLock::new(Some(core)) }
    }

    /// From now on the edit is seen.
    pub(super) fn follow(&self, core: Arc<Core>) -> Result<()> {
        *self.edited.write().map_err(|_| Common::Poisoned)? = Some(core);
        Ok(())
    }

    fn with<T>(&self, look: impl FnOnce(&dyn Filesystem) -> Result<T>) -> Result<T> {
        let core = self.edited.read().map_err(|_| Common::Poisoned)?.clone();
        match (core, &self.opened) {
            (Some(core), _) => match core.read().map_err(|_| Common::Poisoned)?.as_deref() {
                Some(fs) => look(fs),
                None => Err(EditFault::Closed.into()),
            },
            (None, Some(opened)) => look(opened.as_ref()),
            (None, None) => Err(EditFault::Closed.into()),
        }
    }
}

impl Filesystem for Live {
    fn facts(&self) -> Result<FsFacts> {
        self.with(|fs| fs.facts())
    }

    fn root(&self) -> NodeId {
        // The root of a filesystem never changes.
        self.with(|fs| Ok(fs.root())).unwrap_or(NodeId(0))
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        self.with(|fs| fs.stat(node))
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        self.with(|fs| fs.lookup(dir, name))
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        self.with(|fs| fs.read_dir(dir, visit))
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.with(|fs| fs.read(file, at, buf))
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        self.with(|fs| fs.extents(file, visit))
    }

    fn free_space(&self, visit: &mut Visit<'_, Span>) -> Result<bool> {
        self.with(|fs| fs.free_space(visit))
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.with(|fs| fs.read_link(link))
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        self.with(|fs| fs.xattrs(node, visit))
    }
}
