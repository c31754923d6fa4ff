//! The filesystem as callers see it.

use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::error::{Common, Error, Fault, Kind, Result, Within};
use racker_formats::wire::{index, len64};

use super::dir::Entry;
use super::fault::Ext4Fault;
use super::features::Compat;
use super::inode::Inode;
use super::layout::inode_flags;
use super::volume::{Ext4, ROOT_INODE};
use crate::filesystem::{
    DirEntry, Extent, ExtentKind, Filesystem, FsFacts, Name, NodeId, NodeKind, Stat, Visit, VisitXattr,
};

/// Bytes of a link's target: no more than a page of the kernel's is ever followed.
const LINK_BYTES_MAX: u64 = 64 << 10;
/// Groups whose descriptors are added up for the free space: those of 8 TiB with 4 KiB blocks.
const GROUPS_SUMMED_MAX: u64 = 65536;

/// A node of the wrong kind for what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct WrongKind {
    kind: Kind,
    what: &'static str,
}

impl Fault for WrongKind {
    fn kind(&self) -> Kind {
        self.kind
    }
}

fn wrong_kind(kind: Kind, what: &'static str) -> Error {
    WrongKind { kind, what }.into()
}

impl Ext4 {
    pub(super) fn dir(&self, dir: NodeId) -> Result<Inode> {
        let inode = self.inode(dir.0)?;
        if inode.kind != Some(NodeKind::Dir) {
            return Err(wrong_kind(Kind::NotDir, "not a directory"));
        }
        inode.check_plain()?;
        Ok(inode)
    }

    fn file(&self, file: NodeId) -> Result<Inode> {
        let inode = self.inode(file.0)?;
        match inode.kind {
            Some(NodeKind::File) => Ok(inode),
            Some(NodeKind::Dir) => Err(wrong_kind(Kind::IsDir, "is a directory")),
            _ => Err(wrong_kind(Kind::Invalid, "not a regular file")),
        }
    }

    /// All entries of a directory as they are now.
    fn entries_now(&self, dir: &Inode, visit: &mut super::dir::VisitEntry<'_>) -> Result<()> {
        let changes = self.fast.dir(dir.number);
        let mut stopped = false;
        if !changes.is_some_and(|c| c.is_new) {
            self.stored_entries(dir, &mut |entry| {
                if changes.is_some_and(|c| c.names.contains_key(entry.name)) {
                    return Ok(ControlFlow::Continue(()));
                }
                let flow = visit(entry)?;
                stopped = flow.is_break();
                Ok(flow)
            })?;
        }
        let added = changes.into_iter().flat_map(|c| &c.names);
        for (name, inode) in added {
            let Some(inode) = *inode else { continue };
            if stopped || visit(Entry { inode, name, kind: None })?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64> {
        if self.sb.groups > GROUPS_SUMMED_MAX {
            return Ok(self.sb.free_blocks() << self.sb.block_size.shift());
        }
        let mut clusters = 0u64;
        for group in 0..self.sb.groups {
            clusters = clusters.saturating_add(self.group(group)?.free);
        }
        let blocks = clusters.checked_shl(self.sb.cluster_shift).unwrap_or(u64::MAX).min(self.sb.blocks);
        Ok(blocks << self.sb.block_size.shift())
    }
}

impl Filesystem for Ext4 {
    fn free_space(&self, visit: &mut Visit<'_, Span>) -> Result<bool> {
        if !self.is_clean() {
            return Ok(false);
        }
        self.visit_free(visit)?;
        Ok(true)
    }

    fn facts(&self) -> Result<FsFacts> {
        let raw = &self.sb.raw;
        let label: Vec<u8> = raw.volume_name.iter().copied().take_while(|b| *b != 0).collect();
        let uuid = uuid::Uuid::from_bytes(raw.uuid);
        Ok(FsFacts {
            kind: self.sb.features.kind(),
            label: (!label.is_empty()).then(|| String::from_utf8_lossy(&label).into_owned()),
            uuid: (!uuid.is_nil()).then(|| uuid.to_string()),
            size: self.sb.blocks << self.sb.block_size.shift(),
            free: self.free_bytes()?,
            block_size: u32::try_from(self.sb.block_size.bytes()).unwrap_or(u32::MAX),
            features: self.sb.features.names(),
            replayed: self.replayed,
            read_only: super::edit::unwritable(&self.sb),
        })
    }

    fn root(&self) -> NodeId {
        NodeId(ROOT_INODE.into())
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        let inode = self.inode(node.0)?;
        inode.stat(&self.sb).within(|| format!("inode {}", node.0))
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let inode = self.dir(dir)?;
        let wanted = self.sb.wanted(inode.raw.flags.get(), name.as_bytes());
        let mut found = None;
        self.entries_now(&inode, &mut |entry| {
            if wanted.is(entry.name) {
                found = Some(NodeId(entry.inode.into()));
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })
        .within(|| format!("directory inode {}", dir.0))?;
        Ok(found)
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        let inode = self.dir(dir)?;
        let place = || format!("directory inode {}", dir.0);
        // What the visitor says is none of ours: it must not get the place.
        let mut theirs = None;
        self.entries_now(&inode, &mut |entry| {
            let (name, node) = (Name::new(entry.name)?, NodeId(entry.inode.into()));
            match visit(DirEntry { name, node, kind: entry.kind }) {
                Ok(flow) => Ok(flow),
                Err(e) => {
                    theirs = Some(e);
                    Ok(ControlFlow::Break(()))
                }
            }
        })
        .within(place)?;
        theirs.map_or(Ok(()), Err)
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.file(file)?;
        inode.check_plain()?;
        let place = || format!("inode {}", file.0);
        if !inode.has(inode_flags::INLINE_DATA) {
            return self.read_blocks(&inode, at, buf).within(place);
        }
        let content = self.inline_content(&inode).within(place)?;
        let rest = content.get(index(at.min(len64(content.len())))?..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        let inode = self.file(file)?;
        inode.check_plain()?;
        if inode.has(inode_flags::INLINE_DATA) {
            if inode.size > 0 {
                let _ = visit(Extent { at: 0, len: inode.size, kind: ExtentKind::Inline })?;
            }
            return Ok(());
        }
        self.extents_of(&inode, visit).within(|| format!("inode {}", file.0))
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        let inode = self.inode(link.0)?;
        if inode.kind != Some(NodeKind::Link) {
            return Err(wrong_kind(Kind::Invalid, "not a symbolic link"));
        }
        inode.check_plain()?;
        let place = || format!("inode {}", link.0);
        if inode.size == 0 || inode.size > LINK_BYTES_MAX {
            return Err(Ext4Fault::LinkSize(inode.size).into()).within(place);
        }
        let len = index(inode.size)?;
        let mut target = if inode.is_fast_link(&self.sb) {
            inode.block().get(..len).ok_or(Common::Index(inode.size))?.to_vec()
        } else if inode.has(inode_flags::INLINE_DATA) {
            self.inline_content(&inode).within(place)?
        } else {
            let mut target = vec![0; len];
            self.read_blocks(&inode, 0, &mut target).within(place)?;
            target
        };
        // To the kernel a target ends with the first zero byte.
        if let Some(end) = target.iter().position(|b| *b == 0) {
            target.truncate(end);
        }
        if target.is_empty() {
            return Err(Ext4Fault::LinkSize(0).into()).within(place);
        }
        Ok(target)
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        let inode = self.inode(node.0)?;
        self.visit_xattrs(&inode, visit).within(|| format!("inode {}", node.0))
    }
}

impl Ext4 {
    /// Whether the filesystem has a journal at all.
    pub(super) fn has_journal(&self) -> bool {
        self.sb.features.compat.contains(Compat::HAS_JOURNAL)
    }
}
