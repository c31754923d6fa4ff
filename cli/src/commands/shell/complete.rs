//! Completion at a terminal: names of commands, and paths inside the image as it is by then.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use racker_fs::filesystem::NodeKind;
use racker_fs::path::View;
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

/// Names that are offered at once.
const OFFERED_MAX: usize = 1000;

/// Completes lines.
#[derive(Debug)]
pub(super) struct Paths {
    commands: Vec<String>,
    /// The tree of the image at hand.
    view: Arc<Mutex<Option<View>>>,
}

impl Paths {
    pub(super) fn new(commands: Vec<String>, view: Arc<Mutex<Option<View>>>) -> Self {
        Self { commands, view }
    }

    /// Paths that begin with `typed`.
    fn paths(&self, typed: &str) -> Vec<Pair> {
        let Ok(view) = self.view.lock() else { return Vec::new() };
        let Some(view) = view.as_ref() else { return Vec::new() };
        let (folder, start) = typed.rfind('/').map_or(("", typed), |at| typed.split_at(at.saturating_add(1)));
        let shown = if folder.is_empty() { "/" } else { folder };
        let Ok(dir) = view.resolve(shown.as_bytes(), true) else { return Vec::new() };
        let mut found = Vec::new();
        // What cannot be read is not offered.
        let _ = dir.fs.read_dir(dir.node, &mut |entry| {
            if let Ok(name) = std::str::from_utf8(entry.name.as_bytes())
                && name.starts_with(start)
                && !name.chars().any(char::is_control)
            {
                let kind = entry.kind.or_else(|| dir.fs.stat(entry.node).ok().map(|s| s.kind));
                let end = if kind == Some(NodeKind::Dir) { "/" } else { "" };
                let quoted =
                    name.replace('\\', "\\\\").replace(' ', "\\ ").replace('"', "\\\"").replace('\'', "\\'");
                found.push(Pair {
                    display: format!("{name}{end}"),
                    replacement: format!("{folder}{quoted}{end}"),
                });
            }
            Ok(if found.len() < OFFERED_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        found.sort_by(|a, b| a.display.cmp(&b.display));
        found
    }
}

impl Completer for Paths {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..at).unwrap_or(line);
        let start = before.rfind([' ', ';']).map_or(0, |blank| blank.saturating_add(1));
        let typed = before.get(start..).unwrap_or_default();
        let is_command = before.get(..start).unwrap_or_default().trim_end().trim_end_matches(';').is_empty();
        if !is_command {
            return Ok((start, self.paths(typed)));
        }
        let fitting = self.commands.iter().filter(|c| c.starts_with(typed));
        let pairs = fitting.map(|c| Pair { display: c.clone(), replacement: format!("{c} ") });
        Ok((start, pairs.collect()))
    }
}

impl Helper for Paths {}
impl Highlighter for Paths {}
impl Validator for Paths {}

impl Hinter for Paths {
    type Hint = String;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_nothing_where_there_is_no_tree() {
        let history = rustyline::history::DefaultHistory::new();
        let context = Context::new(&history);
        let paths = Paths::new(vec!["mkdir".into(), "mv".into()], Arc::default());
        let (at, found) = paths.complete("mk", 2, &context).unwrap();
        assert_eq!((at, found.len(), found[0].replacement.as_str()), (0, 1, "mkdir "));
        let (at, found) = paths.complete("mkdir /a/b", 10, &context).unwrap();
        assert_eq!((at, found.len()), (6, 0));
    }
}
