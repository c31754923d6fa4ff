//! Parts of images as the kernel sees them: loop devices and mounts that end with their guard.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::tool::{Ran, tool};

/// A stretch of an image: first byte and length.
pub type Part = (u64, u64);

/// The whole image.
pub const WHOLE: Part = (0, 0);

/// Fails unless the test runs as root: loop devices and mounts need it.
pub fn require_root() {
    let id = tool("id").arg("-u").ok();
    assert_eq!(id.trim(), "0", "this test mounts images with the kernel: run it as root");
}

/// The partitions of a raw disk as sfdisk reads them: number and place.
pub fn partitions(image: &Path) -> Vec<(u32, Part)> {
    let table = tool("sfdisk").arg("--json").arg(image).ok();
    let table: serde_json::Value = serde_json::from_str(&table).expect("sfdisk prints JSON");
    let list = table["partitiontable"]["partitions"].as_array().expect("a list of partitions").iter();
    list.map(|p| {
        let node = p["node"].as_str().expect("a name");
        let number = &node[node.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1)..];
        let sectors = |key: &str| p[key].as_u64().expect("a number of sectors") * 512;
        (number.parse().expect("a partition's number"), (sectors("start"), sectors("size")))
    })
    .collect()
}

/// A loop device over part of an image.
#[derive(Debug)]
pub struct Loop(String);

impl Loop {
    /// Makes one.
    pub fn new(image: &Path, part: Part, writable: bool) -> Self {
        require_root();
        let mut losetup = tool("losetup").args(["--find", "--show"]);
        if !writable {
            losetup = losetup.arg("--read-only");
        }
        losetup = losetup.arg("--offset").arg(part.0.to_string());
        if part.1 != 0 {
            losetup = losetup.arg("--sizelimit").arg(part.1.to_string());
        }
        Self(losetup.arg(image).ok().trim().to_string())
    }

    /// Its path.
    pub fn device(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup").arg("--detach").arg(&self.0).run();
    }
}

/// A mounted filesystem.
#[derive(Debug)]
pub struct Mounted {
    folder: TempDir,
    _device: Loop,
}

impl Mounted {
    /// Mounts part of an image for reading. A log that is not empty is an error: nothing was replayed.
    pub fn read_only(image: &Path, part: Part) -> Self {
        let options = match kind(image, part).as_str() {
            // Several tests mount copies of one filesystem at a time.
            "xfs" => "ro,norecovery,nouuid",
            "ext4" | "ext3" => "ro,noload",
            _ => "ro",
        };
        Self::mount(Loop::new(image, part, false), options)
    }

    /// Mounts part of an image for writing, after the kernel has replayed its log.
    pub fn writable(image: &Path, part: Part) -> Self {
        let options = if kind(image, part) == "xfs" { "nouuid,noatime" } else { "noatime" };
        Self::mount(Loop::new(image, part, true), options)
    }

    fn mount(device: Loop, options: &str) -> Self {
        let folder = tempfile::tempdir().expect("space for a folder");
        tool("mount").args(["-o", options, device.device()]).arg(folder.path()).ok();
        Self { folder, _device: device }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path below it.
    pub fn join(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        tool("umount").arg(self.folder.path()).run();
    }
}

/// The kind of filesystem that blkid sees.
pub fn kind(image: &Path, part: Part) -> String {
    let offset = part.0.to_string();
    let blkid = tool("blkid").args(["-p", "-o", "value", "-s", "TYPE", "-O"]).arg(offset);
    blkid.arg(image).ok().trim().to_string()
}

/// Fails unless `xfs_repair -n` finds nothing to do in part of an image, log included.
pub fn xfs_is_clean(image: &Path, part: Part) {
    let device = Loop::new(image, part, false);
    let ran: Ran = tool("xfs_repair").args(["-n", device.device()]).run();
    assert_eq!(ran.status, 0, "{ran}");
    assert!(!ran.err.contains("needs to be replayed") && !ran.err.contains("dirty log"), "{ran}");
}
