//! Mode, owner, times, flags and project of a node.

use racker_formats::error::{Result, Within};

use crate::filesystem::{Change, Flags, NodeKind, Time};

use super::super::fault::Fault;
use super::super::inode::{CHATTR, DiFlags, DiFlags2};
use super::super::superblock::Incompat;
use super::super::units::InodeNo;
use super::Edit;
use super::node::{encode_time, holds_time};

impl Edit {
    /// Changes attributes of a node.
    pub(in super::super) fn set_attributes(
        &mut self,
        ino: InodeNo,
        change: &Change,
        now: Time,
    ) -> Result<()> {
        let mut node = self.inode(ino)?;
        let bigtime =
            self.volume.sb.incompat.contains(Incompat::BIGTIME) || node.flags2.contains(DiFlags2::BIGTIME);
        for time in [change.atime, change.mtime].into_iter().flatten() {
            if !holds_time(time, bigtime) {
                return Err(Fault::Time { seconds: time.sec }.into());
            }
        }
        self.run(|edit| {
            node.touch(&edit.volume, false, now)?;
            let (kind, flags) = (node.kind, node.flags);
            let core = node.core()?;
            if let Some(mode) = change.mode {
                let mode = u16::try_from(kind.mode_bits() | mode & 0o7777).unwrap_or(0);
                core.di_mode = mode.into();
            }
            if let Some(uid) = change.uid {
                core.di_uid = uid.into();
            }
            if let Some(gid) = change.gid {
                core.di_gid = gid.into();
            }
            if let Some(time) = change.atime {
                core.di_atime = encode_time(time, bigtime).into();
            }
            if let Some(time) = change.mtime {
                core.di_mtime = encode_time(time, bigtime).into();
            }
            if let Some(wanted) = change.flags {
                core.di_flags = with_flags(flags, wanted, kind).bits().into();
            }
            if let Some(project) = change.project {
                let [a, b, c, d] = project.to_be_bytes();
                core.di_projid_hi = u16::from_be_bytes([a, b]).into();
                core.di_projid_lo = u16::from_be_bytes([c, d]).into();
            }
            node.store(&edit.volume).map(drop)
        })
        .within(|| format!("attributes of inode {}", ino.0))
    }
}

/// The flags of an inode once those of `chattr` are as wanted. Only directories hand projects down.
fn with_flags(old: DiFlags, wanted: Flags, kind: NodeKind) -> DiFlags {
    let mut flags = old;
    for (own, flag) in CHATTR {
        let can = flag != Flags::PROJINHERIT || kind == NodeKind::Dir;
        flags.set(own, wanted.contains(flag) && can);
    }
    flags
}
