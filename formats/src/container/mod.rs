//! Containers: files that hold files. Compressed streams hold one, archives hold several.
//!
//! A container is not a device. It names its members and gives each as a read-only [`Disk`]: members of a tar
//! are slices of the file below and cost nothing; a compressed stream is read in place, from wherever a decoder
//! can start (see [`segments`]), and what is read again and again goes into a temporary file (see [`spool`]).
//!
//! A new container is one file (or folder) and one line in [`CONTAINERS`].

mod bz2;
mod gz;
mod segments;
mod spool;
mod tar;
mod xz;
mod zst;

use std::fmt::Debug;

use crate::block::Disk;
use crate::error::Result;
use crate::registry::{Head, with_head};

pub use spool::{Expansion, SpoolFault};
pub use tar::TarFault;

/// All containers, in probing order.
pub static CONTAINERS: &[&dyn ContainerFormat] =
    &[&gz::FORMAT, &xz::FORMAT, &zst::FORMAT, &bz2::FORMAT, &tar::FORMAT];

/// One kind of container.
pub trait ContainerFormat: Sync {
    /// The word users know: `gzip`, `tar`.
    fn name(&self) -> &'static str;
    /// Looks at bytes, opens nothing, cannot fail.
    fn probe(&self, head: &Head<'_>) -> bool;
    /// Opens the container in `file`; what it expands to is paid from `expansion`.
    fn open(&self, file: Disk, expansion: &mut Expansion) -> Result<Box<dyn Container>>;
}

/// An opened container.
pub trait Container: Debug + Send + Sync {
    /// The regular files in it, in their order.
    fn members(&self) -> &[Member];
    /// One of them as a read-only disk, by its place in [`members`](Self::members).
    fn open(&self, member: usize) -> Result<Disk>;
}

/// A regular file in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As it stands in the container; empty in a compressed stream, which holds one file without a name.
    pub name: String,
    /// Size in bytes, holes included.
    pub size: u64,
}

/// Finds the container by the content of `file`, if it is one.
pub fn probe(file: &Disk) -> Result<Option<&'static dyn ContainerFormat>> {
    with_head(file, |head| CONTAINERS.iter().find(|c| c.probe(head)).copied())
}

/// A compressed stream: one member.
#[derive(Debug)]
struct Stream {
    disk: Disk,
    member: [Member; 1],
}

impl Stream {
    fn boxed(disk: Disk) -> Box<dyn Container> {
        let member = [Member { name: String::new(), size: disk.size() }];
        Box::new(Self { disk, member })
    }
}

impl Container for Stream {
    fn members(&self) -> &[Member] {
        &self.member
    }

    fn open(&self, _: usize) -> Result<Disk> {
        Ok(self.disk.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// A container that is in the folder but not in the list, or the other way round, is a mistake.
    #[test]
    fn the_folder_and_the_list_agree() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/container");
        let files = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").to_string())
            .filter(|n| !["mod", "segments", "spool"].contains(&n.as_str()))
            .count();
        let list: BTreeSet<&str> = super::CONTAINERS.iter().map(|c| c.name()).collect();
        assert_eq!(files, list.len());
    }
}
