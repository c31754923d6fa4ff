//! Content of files and targets of symbolic links.

use std::ops::ControlFlow;

use racker_formats::error::{Common, Result, Within};
use racker_formats::wire::{self, index, len64, part, part_mut, take};

use crate::filesystem::{Extent, ExtentKind, NodeKind, Visit};

use super::bmap::Mapping;
use super::described::REMOTE_SELF;
use super::fault::Fault;
use super::inode::{DiFlags, ForkFormat, ForkKind, Inode};
use super::layout::{RawSymlink, SYMLINK_MAGIC};
use super::units::FileBlock;
use super::volume::{BlockKind, Volume};

/// Bytes of the longest target of a symbolic link.
const SYMLINK_BYTES_MAX: u64 = 1024;
/// A block with the target of a symbolic link.
const SYMLINK: BlockKind = BlockKind::new("symbolic link block", [0, SYMLINK_MAGIC], REMOTE_SELF);

impl Volume {
    /// Reads content of a file from byte `at`; returns how many bytes there were.
    pub(super) fn read_file(&self, inode: &Inode, at: u64, buf: &mut [u8]) -> Result<usize> {
        check_readable(inode)?;
        let want = index(inode.size.saturating_sub(at).min(len64(buf.len())))?;
        let buf = part_mut(buf, 0, want, "read")?;
        if buf.is_empty() {
            return Ok(0);
        }
        let size = self.sb.block_size;
        let end = at.saturating_add(len64(want));
        buf.fill(0);
        for mapping in self.mappings(inode, ForkKind::Data, FileBlock(size.split(at).0))? {
            let mapping = mapping?;
            let first = size.start_of(mapping.at.0).unwrap_or(u64::MAX);
            if first >= end {
                break;
            }
            if mapping.unwritten {
                continue;
            }
            let past = size.start_of(mapping.end().0).unwrap_or(u64::MAX);
            let (from, to) = (first.max(at), past.min(end));
            let bytes =
                part_mut(buf, index(from.saturating_sub(at))?, index(to.saturating_sub(from))?, "read")?;
            let span = self.sb.span(mapping.start, mapping.len)?;
            self.disk.read_at(span.start().saturating_add(from.saturating_sub(first)), bytes)?;
        }
        Ok(want)
    }

    /// The extents of a file from 0 to its size, holes included.
    pub(super) fn file_extents(&self, inode: &Inode, visit: &mut Visit<'_, Extent>) -> Result<()> {
        check_readable(inode)?;
        let mut done = 0u64;
        for mapping in self.mappings(inode, ForkKind::Data, FileBlock(0))? {
            let (at, len, kind) = self.bytes_of(&mapping?)?;
            if at >= inode.size {
                break;
            }
            if at > done {
                let hole = Extent { at: done, len: at.saturating_sub(done), kind: ExtentKind::Hole };
                if visit(hole)?.is_break() {
                    return Ok(());
                }
            }
            // Blocks may be allocated behind the end.
            let len = len.min(inode.size.saturating_sub(at));
            if visit(Extent { at, len, kind })?.is_break() {
                return Ok(());
            }
            done = at.saturating_add(len);
        }
        if done < inode.size {
            let hole = Extent { at: done, len: inode.size.saturating_sub(done), kind: ExtentKind::Hole };
            let _: ControlFlow<()> = visit(hole)?;
        }
        Ok(())
    }

    fn bytes_of(&self, mapping: &Mapping) -> Result<(u64, u64, ExtentKind)> {
        let span = self.sb.span(mapping.start, mapping.len)?;
        let at = self.sb.block_size.start_of(mapping.at.0).ok_or(Common::Index(mapping.at.0))?;
        let kind = if mapping.unwritten {
            ExtentKind::Unwritten(span.start())
        } else {
            ExtentKind::Data(span.start())
        };
        Ok((at, span.len(), kind))
    }

    /// The target of a symbolic link.
    pub(super) fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind != NodeKind::Link {
            return Err(Fault::NotA { ino: inode.ino.0, what: "a symbolic link" }.into());
        }
        if inode.size == 0 || inode.size > SYMLINK_BYTES_MAX {
            let why = "a target has 1 to 1024 bytes";
            return Err(Fault::Field { what: "di_size", found: inode.size, why }.into());
        }
        let target = if inode.data.format == ForkFormat::Local {
            inode.local()?.to_vec()
        } else {
            self.remote_target(inode).within(|| format!("target of inode {}", inode.ino.0))?
        };
        if target.contains(&0) {
            return Err(Fault::Structure { what: "target of a link", why: "holds a zero byte" }.into());
        }
        Ok(target)
    }

    fn remote_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        let size = index(inode.size)?;
        let mut target = Vec::with_capacity(size);
        for mapping in self.mappings(inode, ForkKind::Data, FileBlock(0))? {
            let mapping = mapping?;
            let span = self.sb.span(mapping.start, mapping.len)?;
            let bytes = if self.sb.v5 {
                let block = self.block(&SYMLINK, span, inode.ino.0)?;
                let head: RawSymlink = take(&block, 0, SYMLINK.what)?;
                if u64::from(head.sl_offset.get()) != len64(target.len()) {
                    let found = head.sl_offset.get().into();
                    let why = "not where the target goes on";
                    return Err(Fault::Field { what: "sl_offset", found, why }.into());
                }
                let len = index(head.sl_bytes.get().into())?;
                part(&block, size_of::<RawSymlink>(), len, SYMLINK.what)?.to_vec()
            } else {
                let len = span.len().min(SYMLINK_BYTES_MAX);
                wire::bytes(&self.disk, span.start(), len, SYMLINK_BYTES_MAX, SYMLINK.what)?
            };
            let left = size.saturating_sub(target.len());
            target.extend_from_slice(bytes.get(..left.min(bytes.len())).unwrap_or_default());
            if target.len() >= size {
                return Ok(target);
            }
        }
        Err(Fault::Structure { what: "target of a link", why: "shorter than the inode says" }.into())
    }
}

/// Refuses what has no content that racker can reach.
fn check_readable(inode: &Inode) -> Result<()> {
    match inode.kind {
        NodeKind::File => {}
        NodeKind::Dir => return Err(Fault::IsDirectory { ino: inode.ino.0 }.into()),
        _ => return Err(Fault::NotA { ino: inode.ino.0, what: "a regular file" }.into()),
    }
    if inode.flags.contains(DiFlags::REALTIME) {
        return Err(Fault::Realtime { ino: inode.ino.0 }.into());
    }
    Ok(())
}
