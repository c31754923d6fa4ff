//! `ls`

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::{DirEntry, Name, NodeKind, Stat};
use racker_fs::path::{Place, View};
use serde_json::json;

use super::accounts::Accounts;
use super::{Look, On};
use crate::clean::for_stdout;
use crate::fault::{About, Outcome};
use crate::output::{self, Stream, human, minute, mode};

/// A folder deeper than this is a loop in a damaged image.
const DEPTH_MAX: usize = 1024;

/// List files inside an image
#[derive(Args, Debug)]
pub(crate) struct Ls {
    /// Files or folders inside the image; the root where none is named
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Modes, owners, sizes, times
    #[arg(short)]
    long: bool,
    /// Folders and all below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Names that begin with a dot, too
    #[arg(short, long)]
    all: bool,
    /// Numbers instead of owners' names
    #[arg(short, long)]
    numeric: bool,
    /// Sizes for people
    #[arg(long)]
    human_readable: bool,
    /// The folder itself, not what is in it
    #[arg(short, long)]
    directory: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One line of a listing.
struct Row {
    name: Vec<u8>,
    path: String,
    inode: u64,
    stat: Stat,
    target: Option<Vec<u8>>,
}

impl Look for Ls {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let target = on.target;
        let paths = if self.paths.is_empty() { vec![PathBuf::from("/")] } else { self.paths.clone() };
        let accounts = if self.long && !self.numeric { Accounts::of(target) } else { Accounts::default() };
        let mut rows = Stream::new();
        let many = paths.len() > 1 || self.recursive;
        for (i, path) in paths.iter().enumerate() {
            let (place, view) = target.place(on.which, path, !self.long || !self.directory)?;
            let is_dir = place.fs.stat(place.node).about(&target.path)?.kind == NodeKind::Dir;
            if !is_dir || self.directory {
                let name = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
                let row = Row::new(&place, name).about(&target.path)?;
                self.print(&[row], &accounts, &mut rows)?;
                continue;
            }
            let mut stack = vec![place];
            let mut first = i == 0;
            while let Some(dir) = stack.pop() {
                if dir.path.len() > DEPTH_MAX {
                    let failure =
                        crate::fault::Failure::new(format!("{}: folders without end", dir.display()));
                    return Err(failure).about(&target.path);
                }
                if many && !self.json {
                    let gap: &[u8] = if first { b"" } else { b"\n" };
                    let name = for_stdout(dir.display().as_bytes());
                    std::io::stdout().write_all(&[gap, &name, b":\n"].concat())?;
                }
                first = false;
                let below = listed(&view, &dir, self.all).about(&target.path)?;
                let listed: Vec<Row> = below
                    .iter()
                    .map(|p| Row::new(p, last(p)))
                    .collect::<racker_formats::Result<_>>()
                    .about(&target.path)?;
                self.print(&listed, &accounts, &mut rows)?;
                if self.recursive {
                    let dirs = below.into_iter().zip(&listed).filter(|(_, r)| r.stat.kind == NodeKind::Dir);
                    let mut dirs: Vec<Place> = dirs.map(|(p, _)| p).collect();
                    dirs.reverse();
                    stack.append(&mut dirs);
                }
            }
        }
        if self.json {
            rows.end()?;
        }
        Ok(())
    }
}

impl Ls {
    fn print(&self, listed: &[Row], accounts: &Accounts, rows: &mut Stream) -> Outcome<()> {
        if self.json {
            for row in listed {
                rows.put(&row.json())?;
            }
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        let size = |s: u64| if self.human_readable { human(s) } else { s.to_string() };
        let user = |id: u32| accounts.users.get(&id).cloned().unwrap_or_else(|| id.to_string());
        let group = |id: u32| accounts.groups.get(&id).cloned().unwrap_or_else(|| id.to_string());
        let sizes: Vec<String> = listed
            .iter()
            .map(|r| match r.stat.kind {
                NodeKind::Char | NodeKind::Block => format!("{}, {}", r.stat.rdev.0, r.stat.rdev.1),
                _ => size(r.stat.size),
            })
            .collect();
        let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
        let wide_size = widest(&mut sizes.iter().map(String::len));
        let wide_links = widest(&mut listed.iter().map(|r| r.stat.links.to_string().len()));
        let wide_user = widest(&mut listed.iter().map(|r| user(r.stat.uid).len()));
        let wide_group = widest(&mut listed.iter().map(|r| group(r.stat.gid).len()));
        for (row, shown) in listed.iter().zip(&sizes) {
            if self.long {
                let s = &row.stat;
                write!(
                    out,
                    "{} {:>wide_links$} {:wide_user$} {:wide_group$} {shown:>wide_size$} {} ",
                    mode(s),
                    s.links,
                    crate::clean::clean(&user(s.uid)),
                    crate::clean::clean(&group(s.gid)),
                    minute(s.mtime)
                )?;
            }
            out.write_all(&for_stdout(&row.name))?;
            if let Some(target) = row.target.as_ref().filter(|_| self.long) {
                out.write_all(b" -> ")?;
                out.write_all(&for_stdout(target))?;
            }
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// The places in a folder, sorted by name; those with a dot in front only if `all` are wanted.
pub(super) fn listed(view: &View, dir: &Place, all: bool) -> racker_formats::Result<Vec<Place>> {
    let mut entries: Vec<DirEntry> = Vec::new();
    dir.fs.read_dir(dir.node, &mut |entry| {
        if all || entry.name.as_bytes().first() != Some(&b'.') {
            entries.push(entry);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries.into_iter().map(|e| view.child(dir, e)).collect())
}

fn last(place: &Place) -> Vec<u8> {
    place.path.last().map_or_else(|| b"/".to_vec(), |n: &Name| n.as_bytes().to_vec())
}

impl Row {
    fn new(place: &Place, name: Vec<u8>) -> racker_formats::Result<Self> {
        let stat = place.fs.stat(place.node)?;
        let is_link = stat.kind == NodeKind::Link;
        let target = if is_link { Some(place.fs.read_link(place.node)?) } else { None };
        Ok(Self { name, path: place.display(), inode: place.node.0, stat, target })
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "path": self.path,
            "type": output::kind(self.stat.kind),
            "inode": self.inode,
            "mode": format!("{:04o}", self.stat.mode),
            "links": self.stat.links,
            "uid": self.stat.uid,
            "gid": self.stat.gid,
            "size": self.stat.size,
            "mtime": output::exact(self.stat.mtime),
            "target": self.target.as_ref().map(|t| String::from_utf8_lossy(t).into_owned()),
        })
    }
}
