//! `racker disk edit` on images of foreign tools, judged by foreign tools: after an edit everything else is as before.

mod ock;
mod xfs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use racker_fixtures::case;
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, Part, WHOLE, partitions, xfs_is_clean};
use racker_tests::qemu;
use racker_tests::tool::{Ran, racker, tool};
use tempfile::TempDir;

/// Fields of a file that change with its content.
const CONTENT: [&str; 5] = ["size", "sha256", "mtime", "ctime", "blocks"];

/// A fixture's image in a folder of its own.
struct Patient {
    dir: TempDir,
    image: PathBuf,
    format: &'static str,
}

/// The trees of an image's filesystems by partition (0: the whole disk), with all blocks' places.
type Trees = BTreeMap<u32, Manifest>;

impl Patient {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let case = case(name);
        case.unpack(dir.path());
        let image = dir.path().join(&case.images()[0]);
        let format = if image.extension().is_some_and(|e| e == "qcow2") { "qcow2" } else { "raw" };
        Self { dir, image, format }
    }

    /// A raw copy and its XFS filesystems.
    fn raw(&self) -> (PathBuf, Vec<(u32, Part)>) {
        let raw = self.dir.path().join("judged.raw");
        let from = self.image.display().to_string();
        qemu::img(&["convert", "-f", self.format, "-O", "raw", &from, &raw.display().to_string()]);
        let parts = match self.format {
            "raw" => vec![(0, WHOLE)],
            _ => partitions(&raw).into_iter().filter(|(number, _)| *number != 1).collect(),
        };
        (raw, parts)
    }

    /// What the kernel shows once it has replayed the logs.
    fn trees(&self) -> Trees {
        let (raw, parts) = self.raw();
        let tree = |part| {
            drop(Mounted::writable(&raw, part));
            Manifest::with_blocks(Mounted::read_only(&raw, part).path())
        };
        let trees = parts.into_iter().map(|(number, part)| (number, tree(part))).collect();
        std::fs::remove_file(raw).unwrap();
        trees
    }

    /// The same after an edit of the filesystem `edited`, which must be sound and need no replay.
    fn trees_after(&self, edited: u32) -> Trees {
        if self.format == "qcow2" {
            qemu::check(&self.image);
        }
        let (raw, parts) = self.raw();
        let (number, part) = *parts.iter().find(|(number, _)| *number == edited).unwrap();
        if self.repairable() {
            xfs_is_clean(&raw, part);
        }
        let as_it_lies = Manifest::with_blocks(Mounted::read_only(&raw, part).path());
        std::fs::remove_file(raw).unwrap();
        let mut trees = self.trees();
        trees[&number].assert_same(&as_it_lies, "after a replay / without: the log was to be clean");
        trees.insert(number, as_it_lies);
        trees
    }

    /// Whether this machine's xfs_repair knows the filesystem: mkfs.xfs of today is ahead of Debian 12's.
    fn repairable(&self) -> bool {
        let version = tool("xfs_repair").arg("-V").ok();
        let major: u32 = version.split(' ').next_back().unwrap().split('.').next().unwrap().parse().unwrap();
        major >= 7 || !self.is("xfs/today")
    }

    fn is(&self, label: &str) -> bool {
        let found = tool("blkid").args(["-p", "-o", "value", "-s", "LABEL"]).arg(&self.image).run();
        found.text().trim() == label.rsplit('/').next().unwrap()
    }

    /// `racker disk edit IMAGE PATH ARGS…`
    fn edit(&self, path: &str, args: &[&str]) -> Ran {
        racker().args(["disk", "edit"]).arg(&self.image).arg(path).args(args).run()
    }

    /// Gives a file new content.
    fn put(&self, path: &str, content: &[u8], more: &[&str]) -> Ran {
        let file = self.dir.path().join("content");
        std::fs::write(&file, content).unwrap();
        let file = file.display().to_string();
        let ran = self.edit(path, &[&["--from", file.as_str()], more].concat());
        assert_eq!(ran.status, 0, "{ran}");
        ran
    }
}

/// The content of a file as racker reads it.
fn cat(image: &Path, path: &str) -> Vec<u8> {
    let ran = racker().args(["disk", "cat"]).arg(image).arg(path).run();
    assert_eq!(ran.status, 0, "{ran}");
    ran.out
}

/// The path of the deployment on the root filesystem, without a slash before it.
fn deployment(root: &Manifest) -> String {
    let is_deployment = |p: &&String| p.starts_with("ostree/deploy/ock/deploy/") && p.ends_with(".0");
    root.paths().find(is_deployment).unwrap().clone()
}

/// Fails unless `after` is `before` but for the content of one file, which became `content`.
fn only_content_changed(before: &Manifest, after: &Manifest, path: &str, content: &[u8]) {
    use sha2::Digest;
    let sum = racker_tests::manifest::hex(&sha2::Sha256::digest(content));
    assert_eq!(after.field(path, "sha256"), &serde_json::json!(sum), "{path}");
    assert_eq!(after.field(path, "size"), &serde_json::json!(content.len()), "{path}");
    let rest = |m: &Manifest| m.clone().drop_fields_of(path, &CONTENT);
    rest(before).assert_same(&rest(after), &format!("before / after the edit of {path}"));
}

/// Fails unless `after` is `before` but for one of several hard links, which became a file of its own.
fn only_separated(before: &Manifest, after: &Manifest, path: &str, content: &[u8]) {
    let shared = before.field(path, "first").clone();
    let (folder, _) = path.rsplit_once('/').unwrap();
    let rest = |m: &Manifest| {
        let links: Vec<String> =
            before.paths().filter(|p| before.get(p).get("first") == Some(&shared)).cloned().collect();
        let m = m.clone().drop_fields_of(folder, &["mtime", "ctime"]);
        // The others lose one link; which of them comes first in the listing may differ.
        // Where inodes name their parents, one of those goes, and the attributes are written anew.
        let changed = ["nlink", "ctime", "first", "attribute_blocks"];
        let m = links.iter().fold(m, |m, link| m.drop_fields_of(link, &changed));
        // A new node was born, and read, now.
        m.drop_fields_of(path, &CONTENT).drop_fields_of(path, &["atime"])
    };
    rest(before).assert_same(&rest(after), &format!("before / after the edit of {path}"));
    assert_eq!(after.field(path, "nlink"), 1, "{path}");
    assert_eq!(after.field(path, "size"), &serde_json::json!(content.len()), "{path}");
    let count = |m: &Manifest, p: &String| m.field(p, "nlink").as_u64().unwrap();
    for other in before.paths().filter(|p| *p != path && before.get(p).get("first") == Some(&shared)) {
        assert_eq!(count(after, other) + 1, count(before, other), "{other}");
    }
}
