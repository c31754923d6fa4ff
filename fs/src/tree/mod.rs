//! Whole trees out of an image: to a tar stream, or to a folder of the host.
//!
//! A [`Tree`] is a filesystem from some node down, with other filesystems mounted into it as the guest mounts
//! them. [`walk`] goes through it once, in the order of the names' bytes, parents first, and ends whatever the
//! image says. On it stand [`tar_out`](tar_out::tar_out), [`extract`](extract::extract) and
//! [`copy_out`](copy_out::copy_out). All of it sees [`Filesystem`] only and knows no driver.
//!
//! Everything in the image is hostile: names that leave the folder, symbolic links planted to be followed,
//! directories that contain themselves, sizes and counts. What is kept in memory at a time is one listing for
//! each directory on the way down, the names of files with several hard links, and a buffer of 1 MiB.

mod content;
pub mod copy_out;
pub mod extract;
mod fault;
mod links;
#[cfg(test)]
mod mem;
mod report;
pub mod tar_out;
mod walk;

use std::sync::Arc;

use racker_formats::error::Result;

use crate::filesystem::{Filesystem, Name, NodeId};
use crate::path::View;

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
}

impl Tree {
    /// All of a filesystem.
    pub fn new(fs: Arc<dyn Filesystem>) -> Self {
        let node = fs.root();
        Self::from_node(fs, node)
    }

    /// One node of a filesystem and what is below it.
    pub fn from_node(fs: Arc<dyn Filesystem>, node: NodeId) -> Self {
        Self { layers: vec![Layer { path: Vec::new(), fs, node }] }
    }

    /// A tree as the guest mounts it.
    pub fn from_view(view: &View) -> Self {
        let join = |at: &[Name]| at.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/');
        let layers =
            view.mounts().iter().map(|m| Layer { path: join(&m.at), fs: Arc::clone(&m.fs), node: m.root });
        Self { layers: layers.collect() }
    }

    /// Puts a filesystem's root in the place of the directory at `path`, which counts from the tree's root and
    /// has no symbolic links in it (`/boot`, `boot/efi/`). Of two at the same path the later one is seen.
    pub fn mount(mut self, path: &[u8], fs: Arc<dyn Filesystem>) -> Result<Self> {
        let mut clean = Vec::new();
        for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
            let name = Name::new(part)?;
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name.as_bytes());
        }
        if clean.is_empty() {
            return Err(TreeFault::MountOnRoot.into());
        }
        let node = fs.root();
        self.layers.push(Layer { path: clean, fs, node });
        Ok(self)
    }

    /// The filesystem and node at the top.
    pub fn root(&self) -> (&Arc<dyn Filesystem>, NodeId) {
        let top = self.layers.first().expect("every constructor makes one");
        (&top.fs, top.node)
    }

    /// The layer that hides the directory at `path`.
    fn mounted_at(&self, path: &[u8]) -> Option<(usize, &Layer)> {
        self.layers.iter().enumerate().skip(1).rev().find(|(_, l)| l.path == path)
    }
}
