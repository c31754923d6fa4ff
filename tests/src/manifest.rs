//! Everything about a tree, to be compared: as the kernel shows it, and as racker reads it.
//!
//! An entry has the fields of `fixtures/mk/manifest.py`, which describes mounted trees.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use racker_fs::filesystem::{Filesystem, NodeId, NodeKind, Stat, Time};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::tool::tool;

/// Entries by path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest(BTreeMap<String, Map<String, Value>>);

impl Manifest {
    /// From its lines.
    pub fn parse(lines: &str) -> Self {
        let mut all = BTreeMap::new();
        for line in lines.lines() {
            let mut entry: Map<String, Value> = serde_json::from_str(line).expect("a JSON object a line");
            let path = entry.remove("path").expect("a path");
            all.insert(path.as_str().expect("a text").to_string(), entry);
        }
        Self(all)
    }

    /// Of a folder of the host.
    pub fn of_folder(folder: &Path) -> Self {
        Self::parse(&manifest_py(folder, &[]))
    }

    /// Of a mounted filesystem, with the places of all blocks.
    pub fn with_blocks(folder: &Path) -> Self {
        Self::parse(&manifest_py(folder, &["--blocks"]))
    }

    /// Of a filesystem, as racker reads it.
    pub fn of_filesystem(fs: &dyn Filesystem) -> Self {
        let mut walk = Walk { fs, all: Vec::new(), first: BTreeMap::new() };
        walk.visit(fs.root(), b".");
        Self(walk.finish())
    }

    /// The entry of a path.
    pub fn get(&self, path: &str) -> &Map<String, Value> {
        self.0.get(path).unwrap_or_else(|| panic!("{path} is not there"))
    }

    /// One field of an entry.
    pub fn field(&self, path: &str, field: &str) -> &Value {
        &self.get(path)[field]
    }

    /// All paths.
    pub fn paths(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Without some paths.
    pub fn without(mut self, paths: &[&str]) -> Self {
        self.0.retain(|path, _| !paths.contains(&path.as_str()));
        self
    }

    /// Without some fields.
    pub fn drop_fields(mut self, fields: &[&str]) -> Self {
        for entry in self.0.values_mut() {
            entry.retain(|field, _| !fields.contains(&field.as_str()));
        }
        self
    }

    /// Without some fields of one entry: those that an edit may change.
    pub fn drop_fields_of(mut self, path: &str, fields: &[&str]) -> Self {
        let entry = self.0.get_mut(path).unwrap_or_else(|| panic!("{path} is not there"));
        entry.retain(|field, _| !fields.contains(&field.as_str()));
        self
    }

    /// Fails with the first differences unless both say the same.
    pub fn assert_same(&self, other: &Self, what: &str) {
        let mut differences = Vec::new();
        for path in self.0.keys().chain(other.0.keys().filter(|p| !self.0.contains_key(*p))) {
            match (self.0.get(path), other.0.get(path)) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => {
                    for field in a.keys().chain(b.keys().filter(|f| !a.contains_key(*f))) {
                        let (a, b) = (a.get(field), b.get(field));
                        if a != b {
                            differences.push(format!("{path:?} {field}: {} / {}", show(a), show(b)));
                        }
                    }
                }
                (Some(_), None) => differences.push(format!("{path:?}: only on the left")),
                _ => differences.push(format!("{path:?}: only on the right")),
            }
        }
        let count = differences.len();
        differences.truncate(20);
        assert_eq!(count, 0, "{what}: {count} differences\n{}", differences.join("\n"));
    }
}

fn show(value: Option<&Value>) -> String {
    let text = value.map_or("nothing".into(), Value::to_string);
    text.chars().take(200).collect()
}

fn manifest_py(folder: &Path, options: &[&str]) -> String {
    let script = racker_fixtures::root().join("mk/manifest.py");
    tool("python3").arg(script).args(options).arg(folder).ok()
}

struct Walk<'a> {
    fs: &'a dyn Filesystem,
    all: Vec<(Vec<u8>, NodeId, Map<String, Value>)>,
    first: BTreeMap<NodeId, String>,
}

impl Walk<'_> {
    fn visit(&mut self, node: NodeId, path: &[u8]) {
        let stat = self.fs.stat(node).unwrap_or_else(|e| panic!("{}: {e}", latin1(path)));
        let entry = describe(self.fs, node, &stat).unwrap_or_else(|e| panic!("{}: {e}", latin1(path)));
        self.all.push((path.to_vec(), node, entry));
        if stat.kind != NodeKind::Dir {
            return;
        }
        let mut children = Vec::new();
        let read = self.fs.read_dir(node, &mut |entry| {
            children.push(entry);
            Ok(ControlFlow::Continue(()))
        });
        read.unwrap_or_else(|e| panic!("{}: {e}", latin1(path)));
        for child in children {
            // What a directory lists must be found by name, under the same number and kind.
            let found = self.fs.lookup(node, &child.name).expect("a lookup in a sound directory");
            assert_eq!(found, Some(child.node), "{} {:?}", latin1(path), child.name);
            if let Some(kind) = child.kind {
                assert_eq!(kind, self.fs.stat(child.node).expect("a sound node").kind);
            }
            let name = child.name.as_bytes();
            let path = if path == b"." { name.to_vec() } else { [path, b"/", name].concat() };
            self.visit(child.node, &path);
        }
    }

    fn finish(mut self) -> BTreeMap<String, Map<String, Value>> {
        self.all.sort_by(|a, b| a.0.cmp(&b.0));
        let mut out = BTreeMap::new();
        for (path, node, mut entry) in self.all {
            let path = latin1(&path);
            if entry["type"] != "dir" && entry["nlink"].as_u64() > Some(1) {
                let first = self.first.entry(node).or_insert_with(|| path.clone());
                entry.insert("first".into(), json!(first));
            }
            out.insert(path, entry);
        }
        out
    }
}

fn describe(fs: &dyn Filesystem, node: NodeId, stat: &Stat) -> racker_formats::Result<Map<String, Value>> {
    let kind = match stat.kind {
        NodeKind::File => "file",
        NodeKind::Dir => "dir",
        NodeKind::Link => "symlink",
        NodeKind::Char => "char",
        NodeKind::Block => "block",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
    };
    let fields = json!({
        "type": kind, "mode": format!("{:04o}", stat.mode), "uid": stat.uid, "gid": stat.gid,
        "nlink": stat.links, "size": stat.size,
        "atime": time(stat.atime), "mtime": time(stat.mtime), "ctime": time(stat.ctime),
    });
    let Value::Object(mut entry) = fields else { unreachable!("an object was written") };
    match stat.kind {
        NodeKind::Char | NodeKind::Block => {
            entry.insert("rdev".into(), json!(format!("{}:{}", stat.rdev.0, stat.rdev.1)));
        }
        NodeKind::Link => {
            entry.insert("target".into(), json!(latin1(&fs.read_link(node)?)));
        }
        NodeKind::File => {
            entry.insert("sha256".into(), json!(sha256(fs, node, stat.size)?));
        }
        _ => {}
    }
    if matches!(stat.kind, NodeKind::File | NodeKind::Dir) && stat.flags.bits() & 0xf8 != 0 {
        entry.insert("flags".into(), json!(stat.flags.bits() & 0xf8));
    }
    let mut xattrs = BTreeMap::new();
    fs.xattrs(node, &mut |(name, value)| {
        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(xattrs.insert(latin1(name), hex), None, "an attribute came twice");
        Ok(ControlFlow::Continue(()))
    })?;
    if !xattrs.is_empty() {
        entry.insert("xattrs".into(), json!(xattrs));
    }
    Ok(entry)
}

fn sha256(fs: &dyn Filesystem, node: NodeId, size: u64) -> racker_formats::Result<String> {
    let mut hash = Sha256::new();
    // A size that is no multiple of anything makes reads cross borders.
    let mut buf = vec![0; 100_003];
    let mut at = 0;
    loop {
        let n = fs.read(node, at, &mut buf)?;
        if n == 0 {
            break;
        }
        hash.update(&buf[..n]);
        at += n as u64;
    }
    assert_eq!(at, size, "the file is as long as its node says");
    Ok(hex(&hash.finalize()))
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

fn time(time: Time) -> String {
    format!("{}.{:09}", time.sec, time.nsec)
}
