//! `racker disk ls`

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::{DirEntry, Name, NodeKind, Stat};
use racker_fs::path::{Place, View, read_all};
use serde_json::json;

use crate::clean::for_stdout;
use crate::exit::Exit;
use crate::fault::{About, Outcome};
use crate::output::{self, human, minute, mode};
use crate::target::{ImageArgs, PartitionArgs, Target};

/// A folder deeper than this is a loop in a damaged image.
const DEPTH_MAX: usize = 1024;
/// `passwd` and `group` of an image are read whole up to this size.
const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;

/// List files inside an image
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk ls -l boot.qcow2 /loader/entries")]
pub(crate) struct Ls {
    #[command(flatten)]
    image: ImageArgs,
    /// Files or folders inside the image; the root where none is named
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    which: PartitionArgs,
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

/// Names of owners, out of the image's own files.
#[derive(Default)]
struct Accounts {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Ls {
    pub(super) fn run(self) -> Outcome<Exit> {
        let target = Target::open(&self.image)?;
        let paths = if self.paths.is_empty() { vec![PathBuf::from("/")] } else { self.paths.clone() };
        let accounts = if self.long && !self.numeric { Accounts::of(&target) } else { Accounts::default() };
        let mut rows = Vec::new();
        let many = paths.len() > 1 || self.recursive;
        for (i, path) in paths.iter().enumerate() {
            let (place, view) = self.place(&target, path)?;
            let is_dir = place.fs.stat(place.node).about(&self.image.image)?.kind == NodeKind::Dir;
            if !is_dir || self.directory {
                let name = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
                let row = Row::new(&place, name).about(&self.image.image)?;
                self.print(&[row], &accounts, &mut rows)?;
                continue;
            }
            let mut stack = vec![place];
            let mut first = i == 0;
            while let Some(dir) = stack.pop() {
                if dir.path.len() > DEPTH_MAX {
                    let failure =
                        crate::fault::Failure::new(format!("{}: folders without end", dir.display()));
                    return Err(failure).about(&self.image.image);
                }
                if many && !self.json {
                    let gap: &[u8] = if first { b"" } else { b"\n" };
                    let name = for_stdout(dir.display().as_bytes());
                    std::io::stdout().write_all(&[gap, &name, b":\n"].concat())?;
                }
                first = false;
                let below = self.list(&view, &dir).about(&self.image.image)?;
                let listed: Vec<Row> = below
                    .iter()
                    .map(|p| Row::new(p, last(p)))
                    .collect::<racker_formats::Result<_>>()
                    .about(&self.image.image)?;
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
            output::json(&rows)?;
        }
        Ok(Exit::Done)
    }

    /// The place of a path, and the tree that it is in.
    fn place(&self, target: &Target, path: &std::path::Path) -> Outcome<(Place, View)> {
        // The root of a disk with an operating system is that system's root.
        if path == std::path::Path::new("/") {
            let view = target.tree(&self.which)?;
            return Ok((view.root().about(&self.image.image)?, view));
        }
        let place = target.place(&self.which, path, !self.long || !self.directory)?;
        let guest =
            racker_fs::guest::Guest::find(&target.inspection).filter(|_| self.which.partition.is_none());
        let of_guest = |v: &View| {
            v.resolve(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()), true)
                .is_ok_and(|p| p.volume == place.volume && p.node == place.node)
        };
        let view = match guest {
            Some(guest) if of_guest(&guest.view) => guest.view,
            _ => View::single(place.volume, place.fs.clone()),
        };
        Ok((place, view))
    }

    /// The places in a folder, sorted by name.
    fn list(&self, view: &View, dir: &Place) -> racker_formats::Result<Vec<Place>> {
        let mut entries: Vec<DirEntry> = Vec::new();
        dir.fs.read_dir(dir.node, &mut |entry| {
            if self.all || entry.name.as_bytes().first() != Some(&b'.') {
                entries.push(entry);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries.into_iter().map(|e| view.child(dir, e)).collect())
    }

    fn print(&self, listed: &[Row], accounts: &Accounts, rows: &mut Vec<serde_json::Value>) -> Outcome<()> {
        if self.json {
            rows.extend(listed.iter().map(Row::json));
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

impl Accounts {
    fn of(target: &Target) -> Self {
        let guest = racker_fs::guest::Guest::find(&target.inspection);
        let read = |path: &str| -> BTreeMap<u32, String> {
            let text = guest.as_ref().and_then(|g| {
                let place = g.view.resolve(path.as_bytes(), true).ok()?;
                read_all(place.fs.as_ref(), place.node, ACCOUNTS_BYTES_MAX).ok()
            });
            let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
            text.lines()
                .filter_map(|l| {
                    let mut fields = l.split(':');
                    let name = fields.next()?;
                    Some((fields.nth(1)?.parse().ok()?, name.to_string()))
                })
                .collect()
        };
        Self { users: read("/etc/passwd"), groups: read("/etc/group") }
    }
}
