//! Attributes of nodes.

use racker_formats::error::Result;

use super::super::fault::Ext4Fault;
use super::super::features::RoCompat;
use super::Edit;
use super::create::PROJECT_END;
use crate::filesystem::{Change, Flags, NodeKind, Time};

impl Edit {
    /// Changes attributes of a node.
    pub(super) fn set_attributes(&mut self, number: u64, change: &Change, now: Time) -> Result<()> {
        let mut node = self.node(number)?;
        let before = node.clone();
        if let Some(flags) = change.flags {
            let allowed = match node.kind {
                NodeKind::Dir => Flags::all(),
                NodeKind::File => Flags::all().difference(Flags::PROJINHERIT),
                _ => Flags::NODUMP | Flags::NOATIME,
            };
            let fixed = Flags::VERITY | Flags::ENCRYPT;
            let refused = flags.difference(allowed | fixed);
            if !refused.is_empty() {
                let what = format!("this kind of node cannot have the flags {:#x}", refused.bits());
                return Err(Ext4Fault::Cannot(what).into());
            }
            let all = Flags::all().difference(fixed).bits();
            node.set_flag(all, false);
            node.set_flag(flags.bits() & all, true);
        }
        if let Some(project) = change.project {
            let kept = self.fs.sb.features.ro_compat.contains(RoCompat::PROJECT);
            if kept && node.fixed >= PROJECT_END {
                node.raw.projid = project.into();
            } else if project != 0 {
                return Err(Ext4Fault::Cannot("the filesystem has no project ids".into()).into());
            }
        }
        Self::set_owner(&mut node, change.uid, change.gid, change.mode);
        if let Some(time) = change.atime {
            node.set_atime(time);
        }
        if let Some(time) = change.mtime {
            node.set_mtime(time);
        }
        node.set_ctime(now);
        if change.uid.or(change.gid).or(change.project).is_some() {
            let values = self.values(&node)?.inodes;
            self.charge_values(&before, values.saturating_neg())?;
            self.charge_values(&node, values)?;
        }
        self.save(&mut node)
    }
}
