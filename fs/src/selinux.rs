//! Labels of SELinux for new files: what the policy on the disk itself says (`file_contexts(5)`).
//!
//! The file with exact paths and regular expressions, and those beside it for homes and for local changes, are read;
//! of all lines that match, the last one with a plain path wins, else the last one. Paths are substituted first
//! (`file_contexts.subs_dist`, `file_contexts.subs`).

use std::collections::HashMap;
use std::sync::OnceLock;

use racker_formats::error::Result;
use regex::bytes::Regex;

use crate::filesystem::NodeKind;
use crate::path::{View, read_all};

/// Bytes of one file of a policy; the largest of Fedora has a tenth of it.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Lines of all files.
const LINES_MAX: usize = 200_000;
/// Bytes that one compiled expression may take.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// The attribute that holds a label.
pub const ATTRIBUTE: &[u8] = b"security.selinux";

/// What a policy says about files.
#[derive(Debug)]
pub struct Labels {
    specs: Vec<Spec>,
    /// Lines by the first component of their path, where that is plain; the rest under nothing.
    stems: HashMap<Vec<u8>, Vec<usize>>,
    /// What a path begins with, and what stands for it.
    substitutes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One line.
#[derive(Debug)]
struct Spec {
    pattern: String,
    /// What a path must begin with.
    prefix: Vec<u8>,
    /// The whole path, if there is nothing but plain characters.
    exact: bool,
    kind: Option<NodeKind>,
    /// None for files that are to have no label.
    context: Option<Vec<u8>>,
    compiled: OnceLock<Option<Regex>>,
}

impl Labels {
    /// The policy of the operating system that `view` shows; none if it has none or does not use it.
    pub fn of(view: &View) -> Result<Option<Self>> {
        let text = |path: &str| -> Option<String> {
            let place = view.resolve(path.as_bytes(), true).ok()?;
            let bytes = read_all(place.fs.as_ref(), place.node, FILE_BYTES_MAX).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let Some(config) = text("/etc/selinux/config") else { return Ok(None) };
        let value = |key: &str| {
            let lines =
                config.lines().filter_map(|l| l.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
            lines.map(|v| v.trim().to_string()).next_back()
        };
        let policy = value("SELINUXTYPE").unwrap_or_else(|| "targeted".into());
        if value("SELINUX").is_some_and(|v| v == "disabled") || policy.contains('/') {
            return Ok(None);
        }
        let folder = format!("/etc/selinux/{policy}/contexts/files/file_contexts");
        let Some(main) = text(&folder) else { return Ok(None) };
        let mut lines = main;
        for more in ["homedirs", "local"] {
            lines.push('\n');
            lines.push_str(&text(&format!("{folder}.{more}")).unwrap_or_default());
        }
        let subs = ["subs_dist", "subs"].map(|s| text(&format!("{folder}.{s}")).unwrap_or_default());
        Ok(Some(Self::parse(&lines, &subs.join("\n"))))
    }

    fn parse(lines: &str, subs: &str) -> Self {
        let mut specs: Vec<Spec> = lines.lines().take(LINES_MAX).filter_map(Spec::parse).collect();
        // Plain paths come last, so that they win; otherwise the order stays.
        specs.sort_by_key(|spec| spec.exact);
        let mut stems: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
        for (i, spec) in specs.iter().enumerate() {
            stems.entry(stem(&spec.prefix, spec.exact)).or_default().push(i);
        }
        let pair = |line: &str| {
            let mut words = line.split('#').next()?.split_whitespace();
            Some((words.next()?.as_bytes().to_vec(), words.next()?.as_bytes().to_vec()))
        };
        Self { specs, stems, substitutes: subs.lines().filter_map(pair).collect() }
    }

    /// The value of the [`ATTRIBUTE`] for a node at `path`, which begins with a slash; none if the policy has no label
    /// for it.
    pub fn label(&self, path: &[u8], kind: NodeKind) -> Option<Vec<u8>> {
        let substituted = self.substitutes.iter().rev().find_map(|(from, to)| {
            let rest = path.strip_prefix(from.as_slice())?;
            (rest.is_empty() || rest.starts_with(b"/")).then(|| [to.as_slice(), rest].concat())
        });
        let path = substituted.as_deref().unwrap_or(path);
        let own = self.stems.get(&stem(path, true)).map(Vec::as_slice).unwrap_or_default();
        let any = self.stems.get(&Vec::new()).map(Vec::as_slice).unwrap_or_default();
        let matches = |i: &&usize| self.specs.get(**i).is_some_and(|spec| spec.matches(path, kind));
        let best = own.iter().rev().find(matches).max(any.iter().rev().find(matches))?;
        let mut value = self.specs.get(*best)?.context.clone()?;
        // The kernel stores it as text with its zero.
        value.push(0);
        Some(value)
    }
}

/// The first component of a path, if it is plain to its end.
fn stem(path: &[u8], whole: bool) -> Vec<u8> {
    let Some(rest) = path.strip_prefix(b"/") else { return Vec::new() };
    match rest.iter().position(|b| *b == b'/') {
        Some(end) => rest.get(..end).unwrap_or_default().to_vec(),
        None if whole => rest.to_vec(),
        None => Vec::new(),
    }
}

impl Spec {
    /// `PATTERN [-KIND] CONTEXT`; none for remarks and lines that make no sense.
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let mut words = line.split_whitespace();
        let (pattern, second) = (words.next()?, words.next()?);
        let kind = match second {
            "--" => Some(NodeKind::File),
            "-d" => Some(NodeKind::Dir),
            "-l" => Some(NodeKind::Link),
            "-c" => Some(NodeKind::Char),
            "-b" => Some(NodeKind::Block),
            "-p" => Some(NodeKind::Fifo),
            "-s" => Some(NodeKind::Socket),
            _ => None,
        };
        let context = if kind.is_some() { words.next()? } else { second };
        let mut prefix = Vec::new();
        let mut exact = true;
        let mut bytes = pattern.bytes().peekable();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\\' => prefix.extend(bytes.next()),
                b'.' | b'^' | b'$' | b'?' | b'*' | b'+' | b'|' | b'[' | b'(' | b'{' => {
                    // What comes before may be left out, or be one of two.
                    if matches!(byte, b'?' | b'*' | b'{') {
                        prefix.pop();
                    } else if byte == b'|' {
                        prefix.clear();
                    }
                    exact = false;
                    break;
                }
                byte => prefix.push(byte),
            }
        }
        // An alternative at the top may begin in any way.
        if !exact && top_level_bar(pattern) {
            prefix.clear();
        }
        let context = (context != "<<none>>").then(|| context.as_bytes().to_vec());
        Some(Self { pattern: pattern.into(), prefix, exact, kind, context, compiled: OnceLock::new() })
    }

    fn matches(&self, path: &[u8], kind: NodeKind) -> bool {
        if self.kind.is_some_and(|k| k != kind) || !path.starts_with(&self.prefix) {
            return false;
        }
        if self.exact {
            return path == self.prefix.as_slice();
        }
        let regex = self.compiled.get_or_init(|| {
            let text = format!("(?s-u)^(?:{})$", self.pattern);
            regex::bytes::RegexBuilder::new(&text).size_limit(REGEX_BYTES_MAX).build().ok()
        });
        regex.as_ref().is_some_and(|regex| regex.is_match(path))
    }
}

/// Whether a pattern has a bar outside of all parentheses.
fn top_level_bar(pattern: &str) -> bool {
    let mut depth = 0u32;
    let mut escaped = false;
    for c in pattern.chars() {
        match c {
            _ if escaped => {}
            '(' => depth = depth.saturating_add(1),
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return true,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_wins_and_plain_paths_before_all() {
        let labels = Labels::parse(
            "# remark\n/.* system_u:object_r:default_t:s0\n/etc/motd -- a\n/etc(/.*)? b\n\
             /usr/lib(64)?/.*\\.so(\\.[^/]*)* -- c\n/usr/.* d\n/dev/[0-9]+ -c e\n/tmp/.* <<none>>\n/bin f\n",
            "/lib /usr/lib\n",
        );
        let label = |path: &str, kind| {
            labels.label(path.as_bytes(), kind).map(|mut l| {
                l.pop();
                String::from_utf8(l).unwrap()
            })
        };
        let file = |path| label(path, NodeKind::File);
        assert_eq!(file("/etc/motd").as_deref(), Some("a"));
        assert_eq!(label("/etc/motd", NodeKind::Dir).as_deref(), Some("b"));
        assert_eq!(file("/etcetera").as_deref(), Some("system_u:object_r:default_t:s0"));
        assert_eq!(file("/usr/lib64/x.so.1").as_deref(), Some("d"));
        assert_eq!(file("/lib/x").as_deref(), Some("d"));
        assert_eq!(label("/dev/12", NodeKind::Char).as_deref(), Some("e"));
        assert_eq!((file("/tmp/x"), file("/bin").as_deref()), (None, Some("f")));
    }
}
