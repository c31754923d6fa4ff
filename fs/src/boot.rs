//! Boot entries by the Boot Loader Specification, type 1: `loader/entries/*.conf`.

use std::ops::ControlFlow;

use racker_formats::error::Result;

use crate::filesystem::{Filesystem, NodeKind};
use crate::path::{View, read_all};

/// A boot entry is a few hundred bytes; nothing real comes near this.
const ENTRY_BYTES_MAX: u64 = 64 << 10;
/// Entries of one loader folder.
const ENTRIES_MAX: usize = 1024;

/// One boot entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// File name without `.conf`.
    pub id: String,
    /// `title`.
    pub title: Option<String>,
    /// `version`.
    pub version: Option<String>,
    /// `linux`.
    pub linux: Option<String>,
    /// `initrd`, in order.
    pub initrd: Vec<String>,
    /// All `options` lines, joined.
    pub options: String,
}

impl Entry {
    /// Reads the text of an entry; keys outside the specification are passed over.
    pub fn parse(id: &str, text: &str) -> Self {
        let mut entry = Self {
            id: id.into(),
            title: None,
            version: None,
            linux: None,
            initrd: Vec::new(),
            options: String::new(),
        };
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "title" => entry.title = Some(value.into()),
                "version" => entry.version = Some(value.into()),
                "linux" => entry.linux = Some(value.into()),
                "initrd" => entry.initrd.push(value.into()),
                "options" if entry.options.is_empty() => entry.options = value.into(),
                "options" => {
                    entry.options.push(' ');
                    entry.options.push_str(value);
                }
                _ => {}
            }
        }
        entry
    }

    /// The value of the first kernel argument `key=value`.
    pub fn argument(&self, key: &str) -> Option<&str> {
        self.options.split_ascii_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
    }
}

/// The entries in `folder` of a filesystem, the newest version first; none if there is no such folder.
pub fn entries(fs: &std::sync::Arc<dyn Filesystem>, folder: &str) -> Result<Vec<Entry>> {
    let view = View::single(0, std::sync::Arc::clone(fs));
    let Ok(dir) = view.resolve(folder.as_bytes(), true) else { return Ok(Vec::new()) };
    if fs.stat(dir.node)?.kind != NodeKind::Dir {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    fs.read_dir(dir.node, &mut |entry| {
        if entry.name.as_bytes().ends_with(b".conf") {
            files.push(entry);
        }
        Ok(if files.len() < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let mut found = Vec::new();
    for file in files {
        let stat = fs.stat(file.node)?;
        if stat.kind != NodeKind::File || stat.size > ENTRY_BYTES_MAX {
            continue;
        }
        let text = read_all(fs.as_ref(), file.node, ENTRY_BYTES_MAX)?;
        let name = String::from_utf8_lossy(file.name.as_bytes()).into_owned();
        let id = name.strip_suffix(".conf").unwrap_or(&name);
        found.push(Entry::parse(id, &String::from_utf8_lossy(&text)));
    }
    found.sort_by(|a, b| by_number(&b.version, &a.version).then_with(|| b.id.cmp(&a.id)));
    Ok(found)
}

/// Versions in the order people expect: runs of digits compare as numbers.
fn by_number(a: &Option<String>, b: &Option<String>) -> std::cmp::Ordering {
    let parts = |s: &Option<String>| -> Vec<(u64, String)> {
        let text = s.clone().unwrap_or_default();
        text.split(|c: char| !c.is_alphanumeric()).map(|p| (p.parse().unwrap_or(0), p.to_string())).collect()
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ostree_entry_is_understood() {
        let text = "title Oracle Linux Server 8.10 1.31 (ostree:0)\nversion 1\noptions rw ip=dhcp \
                    ostree=/ostree/boot.1/ock/ab/0\nlinux /ostree/ock-ab/vmlinuz\ninitrd /i.img\naboot /x\n";
        let entry = Entry::parse("ostree-1-ock", text);
        assert_eq!(entry.argument("ostree"), Some("/ostree/boot.1/ock/ab/0"));
        assert_eq!(entry.argument("ip"), Some("dhcp"));
        assert_eq!(entry.linux.as_deref(), Some("/ostree/ock-ab/vmlinuz"));
    }

    #[test]
    fn newer_versions_come_first() {
        assert!(by_number(&Some("5.15.0-305".into()), &Some("5.15.0-99".into())).is_gt());
    }
}
