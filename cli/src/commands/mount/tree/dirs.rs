//! Directories as they are read.

use std::ops::ControlFlow;
use std::sync::Arc;

use fuser::{Errno, FileHandle, INodeNo};
use racker_fs::filesystem::{DirEntry, NodeKind};

use super::super::meaning::Answer;
use super::{Reading, Told, Tree, said};

impl Tree<'_> {
    /// Begins to read a directory.
    pub(in super::super) fn open_dir(&mut self, dir: INodeNo) -> Answer<FileHandle> {
        let entries = self.entries(dir)?;
        let handle = self.memory.next_dir;
        self.memory.next_dir = handle.wrapping_add(1);
        self.memory.dirs.insert(handle, entries);
        Ok(FileHandle(handle))
    }

    fn entries(&self, dir: INodeNo) -> Answer<Reading> {
        self.lookup_self(dir)?;
        let node = self.numbers.node(dir);
        let is_root = node == self.fs.root();
        let mut all = Vec::new();
        self.fs
            .read_dir(node, &mut |entry| {
                if !is_root || !self.memory.hidden.values().any(|hidden| *hidden == entry.name) {
                    all.push(entry);
                }
                Ok(ControlFlow::Continue(()))
            })
            .map_err(said)?;
        Ok(Reading { entries: Arc::new(all), is_old: false, removals: self.memory.removals })
    }

    /// The entries of a directory as they were when its reading began; read anew if it begins `anew`.
    pub(in super::super) fn read_dir(
        &mut self,
        dir: INodeNo,
        handle: FileHandle,
        anew: bool,
    ) -> Answer<Reading> {
        if anew {
            let entries = self.entries(dir)?;
            self.memory.dirs.insert(handle.0, entries);
        }
        let reading = self.memory.dirs.get(&handle.0).cloned().ok_or(Errno::EBADF)?;
        let is_old = reading.removals != self.memory.removals;
        Ok(Reading { is_old, ..reading })
    }

    /// The kind of an entry's node.
    pub(in super::super) fn kind(&self, entry: &DirEntry) -> NodeKind {
        let kind = entry.kind.or_else(|| Some(self.fs.stat(entry.node).ok()?.kind));
        kind.unwrap_or(NodeKind::File)
    }

    /// An entry's node as it is told to the kernel. The number of a node that went may be another's by now, so the
    /// entry of an `old` reading is looked up.
    pub(in super::super) fn told(&self, dir: INodeNo, entry: &DirEntry, old: bool) -> Answer<Told> {
        if old && self.find(self.numbers.node(dir), &entry.name)? != entry.node {
            return Err(Errno::ENOENT);
        }
        self.tell(entry.node)
    }

    pub(in super::super) fn close_dir(&mut self, handle: FileHandle) {
        self.memory.dirs.remove(&handle.0);
    }
}
