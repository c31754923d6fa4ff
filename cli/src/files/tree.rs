//! `tree`

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
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
    /// Print JSON, as tree -J does
    #[arg(short = 'J', long)]
    json: bool,
}

impl Look for Tree {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let (place, view) = on.target.place(on.which, &self.path, true)?;
        let mut out = std::io::stdout().lock();
        let mut shown: Box<dyn Show> =
            if self.json { Box::new(Json { is_first: true }) } else { Box::new(Lines) };
        let (mut dirs, mut files) = (0u64, 0u64);
        // What is still to be shown of the folders on the way down, the next one last.
        let mut stack = vec![self.list(&view, &place).about(&on.target.path)?];
        shown.begin(&mut out, self.path.as_os_str().as_bytes())?;
        while let Some(rows) = stack.last_mut() {
            let Some(place) = rows.pop() else {
                stack.pop();
                shown.leave(&mut out)?;
                continue;
            };
            let kind = place.fs.stat(place.node).about(&on.target.path)?.kind;
            let target = match kind {
                NodeKind::Link => Some(place.fs.read_link(place.node).about(&on.target.path)?),
                _ => None,
            };
            let name = place.path.last().map(|n| n.as_bytes()).unwrap_or_default();
            let more: Vec<bool> = stack.iter().map(|left| !left.is_empty()).collect();
            shown.node(&mut out, &more, name, kind, target.as_deref())?;
            if kind != NodeKind::Dir {
                files = files.saturating_add(1);
                continue;
            }
            dirs = dirs.saturating_add(1);
            if self.level.is_none_or(|most| more.len() < most) && more.len() < DEPTH_MAX {
                stack.push(self.list(&view, &place).about(&on.target.path)?);
            } else {
                shown.leave(&mut out)?;
            }
        }
        shown.end(&mut out, dirs, files)?;
        Ok(out.flush()?)
    }
}

/// How a tree is shown.
trait Show {
    /// The folder at the top.
    fn begin(&mut self, out: &mut dyn Write, name: &[u8]) -> io::Result<()>;
    /// A node of the folder that was entered last; a folder is entered. `more` says for each level down to this one
    /// whether something follows there.
    fn node(
        &mut self,
        out: &mut dyn Write,
        more: &[bool],
        name: &[u8],
        kind: NodeKind,
        target: Option<&[u8]>,
    ) -> io::Result<()>;
    /// Back to the folder above.
    fn leave(&mut self, out: &mut dyn Write) -> io::Result<()>;
    /// So many there were.
    fn end(&mut self, out: &mut dyn Write, dirs: u64, files: u64) -> io::Result<()>;
}

/// For people.
struct Lines;

impl Show for Lines {
    fn begin(&mut self, out: &mut dyn Write, name: &[u8]) -> io::Result<()> {
        out.write_all(&for_stdout(name))?;
        out.write_all(b"\n")
    }

    fn node(
        &mut self,
        out: &mut dyn Write,
        more: &[bool],
        name: &[u8],
        _: NodeKind,
        target: Option<&[u8]>,
    ) -> io::Result<()> {
        let (own, above) = more.split_last().unwrap_or((&false, &[]));
        for level in above {
            out.write_all(if *level { "│   " } else { "    " }.as_bytes())?;
        }
        out.write_all(if *own { "├── " } else { "└── " }.as_bytes())?;
        out.write_all(&for_stdout(name))?;
        if let Some(target) = target {
            out.write_all(b" -> ")?;
            out.write_all(&for_stdout(target))?;
        }
        out.write_all(b"\n")
    }

    fn leave(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write, dirs: u64, files: u64) -> io::Result<()> {
        writeln!(out, "\n{dirs} folders, {files} files")
    }
}

/// As `tree -J` has it.
struct Json {
    /// Nothing was put into this folder before.
    is_first: bool,
}

impl Show for Json {
    fn begin(&mut self, out: &mut dyn Write, name: &[u8]) -> io::Result<()> {
        write!(out, "[\n{{\"type\":\"directory\",\"name\":{},\"contents\":[", quoted(name))
    }

    fn node(
        &mut self,
        out: &mut dyn Write,
        _: &[bool],
        name: &[u8],
        kind: NodeKind,
        target: Option<&[u8]>,
    ) -> io::Result<()> {
        let word = match kind {
            NodeKind::Dir => "directory",
            NodeKind::File => "file",
            NodeKind::Link => "link",
            NodeKind::Char => "char",
            NodeKind::Block => "block",
            NodeKind::Fifo => "fifo",
            NodeKind::Socket => "socket",
        };
        let comma = if self.is_first { "" } else { "," };
        write!(out, "{comma}\n{{\"type\":\"{word}\",\"name\":{}", quoted(name))?;
        if let Some(target) = target {
            write!(out, ",\"target\":{}", quoted(target))?;
        }
        self.is_first = kind == NodeKind::Dir;
        out.write_all(if self.is_first { b",\"contents\":[" } else { b"}" })
    }

    fn leave(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.is_first = false;
        out.write_all(b"]}")
    }

    fn end(&mut self, out: &mut dyn Write, dirs: u64, files: u64) -> io::Result<()> {
        writeln!(out, ",\n{{\"type\":\"report\",\"directories\":{dirs},\"files\":{files}}}\n]")
    }
}

/// A name as a string of JSON.
fn quoted(name: &[u8]) -> serde_json::Value {
    String::from_utf8_lossy(name).into()
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
