//! Labels of SELinux for what is made: those that the policy of the operating system on the disk has.

use std::collections::BTreeMap;

use racker_fs::edit::Writer;
use racker_fs::filesystem::{Name, NodeId, NodeKind};
use racker_fs::guest::Guest;
use racker_fs::inspect::Volume;
use racker_fs::selinux::Labels;

use crate::target::Target;

/// Directories whose paths are kept.
const PATHS_MAX: usize = 4096;

/// A policy, and where its system has the mounted filesystem.
#[derive(Debug)]
pub(in super::super) struct Labelling {
    labels: Labels,
    /// Folders of the filesystem that the system sees, and where.
    tops: Vec<(NodeId, Vec<Name>)>,
    /// The system's paths of directories; none for those that it does not see.
    paths: BTreeMap<NodeId, Option<Vec<u8>>>,
}

impl Labelling {
    /// That of the operating system on the disk, if it has a policy and mounts the volume.
    pub(in super::super) fn of(target: &Target, volume: &Volume) -> Option<Self> {
        let guest = Guest::find(&target.inspection)?;
        let index = target.inspection.volumes.iter().position(|v| std::ptr::eq(v, volume))?;
        let mounts = guest.view.mounts().iter().filter(|m| m.volume == index);
        let tops: Vec<_> = mounts.map(|m| (m.root, m.at.clone())).collect();
        if tops.is_empty() {
            return None;
        }
        let labels = Labels::of(&guest.view).ok()??;
        Some(Self { labels, tops, paths: BTreeMap::new() })
    }

    /// The label of a node that is to be made.
    pub(super) fn label(
        &mut self,
        writer: &Writer<'_>,
        dir: NodeId,
        name: &Name,
        kind: NodeKind,
    ) -> Option<Vec<u8>> {
        if !self.paths.contains_key(&dir) {
            if self.paths.len() >= PATHS_MAX {
                self.paths.clear();
            }
            let path = self.path(writer, dir);
            self.paths.insert(dir, path);
        }
        let dir = self.paths.get(&dir)?.as_deref()?;
        self.labels.label(&[dir, b"/", name.as_bytes()].concat(), kind)
    }

    fn path(&self, writer: &Writer<'_>, dir: NodeId) -> Option<Vec<u8>> {
        let nodes: Vec<NodeId> = self.tops.iter().map(|(node, _)| *node).collect();
        let (top, below) = writer.path_below(&nodes, dir).ok()??;
        let (_, at) = self.tops.iter().find(|(node, _)| *node == top)?;
        Some(at.iter().chain(&below).fold(Vec::new(), |path, n| [&path[..], b"/", n.as_bytes()].concat()))
    }

    /// Directories may have other paths now.
    pub(super) fn forget_paths(&mut self) {
        self.paths.clear();
    }
}
