//! Whole trees out of an image and into it: to and from a tar stream, to and from a folder of the host.
//!
//! A [`Tree`] is a filesystem from some node down, with other filesystems mounted into it as the guest mounts
//! them. [`walk()`] goes through it once, in the order of the names' bytes, parents first, and ends whatever the
//! image says. On it stand [`tar_out`](tar_out::tar_out), [`extract`](extract::extract) and
//! [`copy_out`](copy_out::copy_out). The other way, [`tar_in`](tar_in::tar_in) and [`copy_in`] hand one node after the
//! other to [`put`], and [`remove`](remove::remove) takes them away. All of it sees [`Filesystem`] only and knows no driver.
//!
//! Everything in the image is hostile: names that leave the folder, symbolic links planted to be followed,
//! directories that contain themselves, sizes and counts. What is kept in memory at a time is one listing for
//! each directory on the way down, the names of files with several hard links, and a buffer of 1 MiB.

mod content;
pub mod copy_in;
pub mod copy_out;
pub mod extract;
mod fault;
mod links;
#[cfg(test)]
mod mem;
pub mod put;
pub mod remove;
mod report;
pub mod tar_in;
pub mod tar_out;
mod walk;

use std::sync::Arc;

use crate::filesystem::{Filesystem, Name, NodeId};
use crate::path::{Place, View};

pub use fault::TreeFault;
pub use report::{Notes, Progress, ProgressFn};
pub use walk::{Entry, Go, Limits, Step, Walked, walk};

/// A filesystem from some node down, and what is mounted into it.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The first is the root; its path is empty.
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    /// Where it is mounted: components joined by `/`, none in front.
    path: Vec<u8>,
    fs: Arc<dyn Filesystem>,
    node: NodeId,
    /// The first layer that shows the same filesystem: two names in both may be one node.
    volume: usize,
}

impl Tree {
    /// All of a filesystem.
    pub fn new(fs: Arc<dyn Filesystem>) -> Self {
        let node = fs.root();
        Self::from_node(fs, node)
    }

    /// One node of a filesystem and what is below it.
    pub fn from_node(fs: Arc<dyn Filesystem>, node: NodeId) -> Self {
        Self { layers: vec![Layer { path: Vec::new(), fs, node, volume: 0 }] }
    }

    /// What the guest sees at `place` of its view and below, with everything that is mounted there.
    pub fn from_place(view: &View, place: &Place) -> Self {
        let mut tree = Self::from_node(Arc::clone(&place.fs), place.node);
        for mount in view.mounts() {
            // A mount at the place itself is what `place` leads to already.
            if let Some(below @ [_, ..]) = mount.at.strip_prefix(place.path.as_slice()) {
                tree = tree.mount(below, Arc::clone(&mount.fs), mount.root);
            }
        }
        tree
    }

    /// Puts a directory of a filesystem in the place of the one at `path`, which counts from the tree's root and
    /// has no symbolic links in it. Of two at the same path the first one is seen.
    #[must_use]
    pub fn mount(mut self, path: &[Name], fs: Arc<dyn Filesystem>, node: NodeId) -> Self {
        let path = path.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/');
        let same = self.layers.iter().position(|l| Arc::ptr_eq(&l.fs, &fs));
        let volume = same.unwrap_or(self.layers.len());
        self.layers.push(Layer { path, fs, node, volume });
        self
    }

    /// The filesystem and node at the top.
    pub fn root(&self) -> (&Arc<dyn Filesystem>, NodeId) {
        let top = self.layers.first().expect("every constructor makes one");
        (&top.fs, top.node)
    }

    /// Its filesystems; an [`Entry`]'s `volume` counts them.
    pub fn filesystems(&self) -> Vec<Arc<dyn Filesystem>> {
        self.layers.iter().map(|l| Arc::clone(&l.fs)).collect()
    }

    /// The layer that hides the directory at `path`.
    fn mounted_at(&self, path: &[u8]) -> Option<(usize, &Layer)> {
        self.layers.iter().enumerate().skip(1).find(|(_, l)| l.path == path)
    }
}

#[cfg(test)]
mod tests;
