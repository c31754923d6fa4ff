//! `tree`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::NodeKind;
use racker_fs::path::{Place, View};

use super::ls::listed;
use super::{Look, On};
use crate::clean::for_stdout;
use crate::fault::{About, Outcome};

/// Folders deeper than this are a loop in a damaged image.
const DEPTH_MAX: usize = 1024;

/// Show folders as a tree
#[derive(Args, Debug)]
pub(crate) struct Tree {
    /// Folder inside the image
    #[arg(value_name = "PATH", default_value = "/")]
    path: PathBuf,
    /// Levels that are shown
    #[arg(short = 'L', long, value_name = "N")]
    level: Option<usize>,
    /// Names that begin with a dot, too
    #[arg(short = 'a', long)]
    all: bool,
    /// Folders only
    #[arg(short = 'd', long)]
    directories: bool,
}

impl Look for Tree {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let (place, view) = on.target.place(on.which, &self.path, true)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", self.path.display())?;
        let (mut dirs, mut files) = (0u64, 0u64);
        // What is still to be shown of the folders on the way down, the next one last.
        let mut stack = vec![self.list(&view, &place).about(&on.target.path)?];
        while let Some(rows) = stack.last_mut() {
            let Some(place) = rows.pop() else {
                stack.pop();
                continue;
            };
            let depth = stack.len();
            for above in stack.iter().take(depth.saturating_sub(1)) {
                out.write_all(if above.is_empty() { "    " } else { "│   " }.as_bytes())?;
            }
            let is_last = stack.last().is_none_or(Vec::is_empty);
            out.write_all(if is_last { "└── " } else { "├── " }.as_bytes())?;
            let name = place.path.last().map(|n| n.as_bytes()).unwrap_or_default();
            out.write_all(&for_stdout(name))?;
            let kind = place.fs.stat(place.node).about(&on.target.path)?.kind;
            if kind == NodeKind::Link {
                out.write_all(b" -> ")?;
                out.write_all(&for_stdout(&place.fs.read_link(place.node).about(&on.target.path)?))?;
            }
            out.write_all(b"\n")?;
            if kind == NodeKind::Dir {
                dirs = dirs.saturating_add(1);
                if self.level.is_none_or(|most| depth < most) && depth < DEPTH_MAX {
                    stack.push(self.list(&view, &place).about(&on.target.path)?);
                }
            } else {
                files = files.saturating_add(1);
            }
        }
        writeln!(out, "\n{dirs} folders, {files} files")?;
        Ok(out.flush()?)
    }
}

impl Tree {
    /// What a folder holds, the first name last.
    fn list(&self, view: &View, dir: &Place) -> racker_formats::Result<Vec<Place>> {
        let mut places = listed(view, dir, self.all)?;
        places.reverse();
        if self.directories {
            let mut dirs = Vec::new();
            for place in places {
                if place.fs.stat(place.node)?.kind == NodeKind::Dir {
                    dirs.push(place);
                }
            }
            places = dirs;
        }
        Ok(places)
    }
}
