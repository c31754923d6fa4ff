//! Parent pointers: attributes in which a node names the entries that name it, on filesystems that have them.

use racker_formats::error::Result;
use zerocopy::IntoBytes;

use super::super::attr::{Attr, AttrFlags};
use super::super::fault::Fault;
use super::super::inode::{DiFlags, Inode};
use super::super::layout::RawParent;
use super::super::superblock::Incompat;
use super::Edit;

impl Edit {
    fn has_parents(&self) -> bool {
        self.volume.sb.incompat.contains(Incompat::PARENT)
    }

    /// Blocks that one more parent may take.
    pub(super) fn parent_blocks(&self, node: &Inode) -> u64 {
        if self.has_parents() { node.raw.di_nblocks.get().min(1 << 16).saturating_mul(2) } else { 0 }
    }

    /// Whether a node can lose its entry, or its content change: its blocks have to be where racker reaches them, and
    /// no entry names what the filesystem keeps for itself.
    pub(super) fn removable(&self, node: &Inode) -> Result<()> {
        if node.flags.contains(DiFlags::REALTIME) {
            return Err(Fault::Realtime { ino: node.ino.0 }.into());
        }
        let raw = &self.volume.sb.raw;
        let own = [
            raw.sb_rootino,
            raw.sb_rbmino,
            raw.sb_rsumino,
            raw.sb_uquotino,
            raw.sb_gquotino,
            raw.sb_pquotino,
        ];
        if own.iter().any(|ino| ino.get() == node.ino.0) {
            let why = "an entry names what the filesystem keeps for itself";
            return Err(Fault::Structure { what: "directory", why }.into());
        }
        Ok(())
    }

    /// What an inode says about an entry `name` of `dir` that names it.
    pub(super) fn parent_of(&self, dir: &Inode, name: &[u8]) -> Option<Attr> {
        let value = RawParent { p_ino: dir.ino.0.into(), p_gen: dir.raw.di_gen };
        self.has_parents().then(|| Attr {
            flags: AttrFlags::PARENT,
            name: name.to_vec(),
            value: value.as_bytes().to_vec(),
        })
    }

    /// Makes `node` name the entry `name` of `dir`.
    pub(super) fn add_parent(&mut self, mut node: Inode, dir: &Inode, name: &[u8]) -> Result<Inode> {
        if let Some(parent) = self.parent_of(dir, name) {
            let mut attrs = self.volume.stored_attrs(&node)?;
            attrs.push(parent);
            self.rewrite_attrs(&mut node, &attrs)?;
        }
        Ok(node)
    }

    /// Makes `node` no longer name the entry `name` of `dir`.
    pub(super) fn drop_parent(&mut self, mut node: Inode, dir: &Inode, name: &[u8]) -> Result<Inode> {
        if let Some(parent) = self.parent_of(dir, name) {
            let mut attrs = self.volume.stored_attrs(&node)?;
            let Some(at) = attrs.iter().position(|attr| *attr == parent) else {
                let why = "no parent pointer for an entry that names the inode";
                return Err(Fault::Fork { ino: node.ino.0, fork: "attribute", why }.into());
            };
            attrs.remove(at);
            self.rewrite_attrs(&mut node, &attrs)?;
        }
        Ok(node)
    }
}
