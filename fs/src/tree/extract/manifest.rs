//! The sidecar manifest: what the host did not take, one JSON object a line, so that nothing is lost.
//!
//! The first line says what the file is, the last one how many entries there are and that it is complete.
//! Between them, `path` counts from the folder (`""` is the folder itself); a path or target that is no UTF-8 is
//! in `path_hex` or `target_hex` as well. Only what is missing is listed:
//! `absent` (the entry itself is not there, and so all of it is listed, with `target` or `device`), `uid` and
//! `gid`, `mode` (octal), `mtime` (seconds, with nanoseconds), `xattrs` (values in hex), `flags` (the letters of
//! `lsattr`), `project`, `link` (the path whose hard link it should be, but is not). What a node with several
//! names lacks is listed under the first of them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use racker_formats::error::Result;
use serde_json::{Map, Value, json};

use super::super::TreeFault;
use super::super::content::Xattr;
use super::attributes::{Left, What};
use crate::filesystem::{Flags, NodeKind, Stat};

/// The manifest of one extraction; the file comes into being with its first line, unless asked for before.
#[derive(Debug)]
pub(super) struct Manifest {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    lines: u64,
}

/// One entry that is not as the image has it.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) path: &'a [u8],
    pub(super) stat: &'a Stat,
    pub(super) left: &'a Left,
    /// A symbolic link's target, where the link could not be made.
    pub(super) target: Option<&'a [u8]>,
    /// The name of which this one should be a hard link.
    pub(super) link: Option<&'a [u8]>,
}

impl Manifest {
    /// A manifest next to `folder`, which exists. One that is there already is an error.
    pub(super) fn beside(folder: &Path) -> Result<Self> {
        let folder = std::fs::canonicalize(folder)?;
        let Some(name) = folder.file_name() else {
            return Err(TreeFault::NoManifestName(folder).into());
        };
        let mut file = name.to_os_string();
        file.push(".racker-manifest.jsonl");
        let path = folder.with_file_name(file);
        if path.symlink_metadata().is_ok() {
            return Err(TreeFault::ManifestExists(path).into());
        }
        Ok(Self { path, out: None, lines: 0 })
    }

    /// Makes the file now, so that a place where it cannot be made is found before anything is done.
    pub(super) fn start(&mut self) -> Result<&mut BufWriter<File>> {
        if self.out.is_none() {
            let file = File::options().write(true).create_new(true).open(&self.path)?;
            let mut out = BufWriter::new(file);
            let first =
                json!({ "racker-manifest": 1, "of": "what the host could not keep of the image's tree" });
            writeln!(out, "{first}")?;
            self.out = Some(out);
        }
        Ok(self.out.as_mut().expect("made above"))
    }

    pub(super) fn write(&mut self, line: &Line<'_>) -> Result<()> {
        let object = Value::Object(line.object());
        writeln!(self.start()?, "{object}")?;
        self.lines = self.lines.saturating_add(1);
        Ok(())
    }

    /// Finishes the file; one without entries is removed. Returns where it is.
    pub(super) fn finish(mut self, complete: bool) -> Result<Option<PathBuf>> {
        let Some(mut out) = self.out.take() else { return Ok(None) };
        if self.lines == 0 && complete {
            std::fs::remove_file(&self.path)?;
            return Ok(None);
        }
        writeln!(out, "{}", json!({ "entries": self.lines, "complete": complete }))?;
        out.flush()?;
        Ok(Some(self.path))
    }
}

impl Line<'_> {
    fn object(&self) -> Map<String, Value> {
        let Self { stat, left, .. } = self;
        let mut o = Map::new();
        text(&mut o, "path", self.path);
        o.insert("type".into(), word(stat.kind).into());
        let absent = left.has(What::Node);
        if absent {
            o.insert("absent".into(), true.into());
        }
        if let Some(target) = self.target {
            text(&mut o, "target", target);
        }
        if absent && matches!(stat.kind, NodeKind::Char | NodeKind::Block) {
            o.insert("device".into(), json!([stat.rdev.0, stat.rdev.1]));
        }
        if let Some(link) = self.link {
            text(&mut o, "link", link);
        }
        if absent || left.has(What::Owner) {
            o.insert("uid".into(), stat.uid.into());
            o.insert("gid".into(), stat.gid.into());
        }
        if absent || left.has(What::Mode) {
            o.insert("mode".into(), format!("{:04o}", stat.mode).into());
        }
        if absent || left.has(What::Time) {
            o.insert("mtime".into(), format!("{}.{:09}", stat.mtime.sec, stat.mtime.nsec).into());
        }
        if left.has(What::Flags) || (absent && !stat.flags.is_empty()) {
            o.insert("flags".into(), letters(stat.flags).into());
        }
        if left.has(What::Project) || (absent && stat.project != 0) {
            o.insert("project".into(), stat.project.into());
        }
        if !left.xattrs.is_empty() {
            o.insert("xattrs".into(), Value::Object(attributes(left.xattrs.iter().map(|(x, _)| x))));
        }
        o
    }
}

fn attributes<'x>(list: impl Iterator<Item = &'x Xattr>) -> Map<String, Value> {
    // A name that is no UTF-8 is percent-escaped like a link in a web page; no system makes such names.
    let escape = |name: &[u8]| match std::str::from_utf8(name) {
        Ok(text) => text.to_string(),
        Err(_) => name
            .iter()
            .map(|b| if b.is_ascii_graphic() { char::from(*b).to_string() } else { format!("%{b:02X}") })
            .collect(),
    };
    list.map(|(name, value)| (escape(name), hex(value).into())).collect()
}

fn text(object: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    object.insert(key.into(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        object.insert(format!("{key}_hex"), hex(bytes).into());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The word for a kind of node that `find -type` has a letter for.
pub(super) const fn word(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "file",
        NodeKind::Dir => "dir",
        NodeKind::Link => "symlink",
        NodeKind::Char => "char",
        NodeKind::Block => "block",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
    }
}

/// The letters of `lsattr`, in its order.
fn letters(flags: Flags) -> String {
    let order = [
        (Flags::SYNC, 'S'),
        (Flags::IMMUTABLE, 'i'),
        (Flags::APPEND, 'a'),
        (Flags::NODUMP, 'd'),
        (Flags::NOATIME, 'A'),
        (Flags::ENCRYPT, 'E'),
        (Flags::PROJINHERIT, 'P'),
        (Flags::VERITY, 'V'),
    ];
    order.iter().filter(|(f, _)| flags.contains(*f)).map(|(_, l)| *l).collect()
}
