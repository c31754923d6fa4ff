//! `racker disk diff`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use racker_formats::error::Result;
use racker_formats::wire::len64;
use racker_fs::filesystem::{Filesystem, NodeId, NodeKind, Stat};
use racker_fs::tree::{Go, Limits, Step, Tree, TreeFault, walk};
use serde_json::json;

use crate::clean::for_stdout;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output;
use crate::target::{HowArgs, ImageArgs, PartitionArgs, Target};

/// Bytes of two files that are compared at once.
const PIECE: usize = 256 << 10;
/// Bytes of the paths of one image, all of which are remembered: ten million of a usual length.
const PATHS_BYTES_MAX: u64 = 1 << 30;
/// What it costs to remember an entry, besides its path.
const ENTRY_BYTES: u64 = 64;

/// Show which files differ between two images, whatever their formats
///
/// A line for each: + is only in B, - only in A, M has other content, and letters behind it say what else differs:
/// m mode, o owner, t time, l links, x extended attributes, k kind. The exit status is 1 if anything differs.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  racker disk convert -O vmdk boot.qcow2 copy.vmdk\n  racker disk diff boot.qcow2 copy.vmdk"
)]
pub(crate) struct Diff {
    /// One image
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The other
    #[arg(value_name = "B")]
    b: PathBuf,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    which: PartitionArgs,
    /// Times do not matter
    #[arg(long)]
    no_times: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What there is at a path.
#[derive(Clone, Copy)]
struct Node {
    layer: usize,
    node: NodeId,
}

type Nodes = BTreeMap<Vec<u8>, Node>;

impl Diff {
    pub(super) fn run(self) -> Outcome<Exit> {
        let open = |path: &PathBuf| Target::open(&ImageArgs { image: path.clone(), how: self.how.clone() });
        let (a, b) = (open(&self.a)?, open(&self.b)?);
        let mut rows = Vec::new();
        let pairs = self.trees(&a, &b)?;
        for (volume, one, other) in &pairs {
            self.compare(volume, one, other, &mut rows).about(&self.b)?;
        }
        let differs = !rows.is_empty();
        if self.json {
            let rows: Vec<_> = rows
                .iter()
                .map(|(what, path)| {
                    json!({
                        "path": String::from_utf8_lossy(path), "change": what,
                    })
                })
                .collect();
            output::json(&rows)?;
        } else {
            let mut out = std::io::stdout().lock();
            for (what, path) in &rows {
                out.write_all(format!("{what:<6} ").as_bytes())?;
                out.write_all(&for_stdout(path))?;
                out.write_all(b"\n")?;
            }
            out.flush()?;
        }
        Ok(if differs { Exit::Failed } else { Exit::Done })
    }

    /// The trees to compare: of the operating systems, or of the filesystems one by one.
    fn trees(&self, a: &Target, b: &Target) -> Outcome<Vec<(String, Tree, Tree)>> {
        if let (Ok(one), Ok(other)) = (a.whole_tree(&self.which), b.whole_tree(&self.which)) {
            return Ok(vec![(String::new(), one, other)]);
        }
        let there = |t: &Target| -> Vec<(String, Tree)> {
            let volumes = t.inspection.volumes.iter().filter(|v| v.driver().is_some());
            volumes.filter_map(|v| Some((v.name(), Tree::new(v.filesystem().ok()?)))).collect()
        };
        let (ours, theirs) = (there(a), there(b));
        let names = |all: &[(String, Tree)]| all.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        if ours.is_empty() || names(&ours) != names(&theirs) {
            let failure = Failure::new("the two images do not have the same filesystems");
            return Err(failure.hint("-p compares one of them"));
        }
        Ok(ours.into_iter().zip(theirs).map(|((name, one), (_, other))| (name, one, other)).collect())
    }

    fn compare(&self, volume: &str, a: &Tree, b: &Tree, rows: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let mut fs_b: Vec<std::sync::Arc<dyn Filesystem>> = Vec::new();
        let mut there = listed(b, &mut fs_b)?;
        let shown = |path: &[u8]| {
            let prefix = if volume.is_empty() { String::new() } else { format!("{volume}:") };
            [prefix.as_bytes(), b"/", path].concat()
        };
        let mut only_here = Vec::new();
        walk(a, &Limits::default(), &mut |step| {
            let Step::Node(entry) = step else { return Ok(Go::On) };
            let Some(other) = there.remove(entry.path) else {
                only_here.push(entry.path.to_vec());
                return Ok(Go::Skip);
            };
            let Some(fs) = fs_b.get(other.layer) else { return Ok(Go::On) };
            let change = self.change(entry.fs, entry.node, entry.stat, fs.as_ref(), other.node)?;
            if !change.is_empty() {
                rows.push((change, shown(entry.path)));
            }
            Ok(Go::On)
        })?;
        rows.extend(only_here.iter().map(|path| ("-".to_string(), shown(path))));
        let mut above: Option<&[u8]> = None;
        for path in there.keys() {
            let below =
                above.is_some_and(|a| path.strip_prefix(a).is_some_and(|rest| rest.first() == Some(&b'/')));
            if !below {
                rows.push(("+".to_string(), shown(path)));
                above = Some(path);
            }
        }
        rows.sort_by(|x, y| x.1.cmp(&y.1));
        Ok(())
    }

    /// What differs between two nodes, in letters.
    fn change(
        &self,
        one: &dyn Filesystem,
        node: NodeId,
        stat: &Stat,
        other: &dyn Filesystem,
        twin: NodeId,
    ) -> Result<String> {
        let theirs = other.stat(twin)?;
        if stat.kind != theirs.kind {
            return Ok("k".into());
        }
        let mut change = String::new();
        let same = match stat.kind {
            NodeKind::File => stat.size == theirs.size && same_bytes(one, node, other, twin)?,
            NodeKind::Link => one.read_link(node)? == other.read_link(twin)?,
            NodeKind::Char | NodeKind::Block => stat.rdev == theirs.rdev,
            _ => true,
        };
        let times = !self.no_times && stat.mtime != theirs.mtime;
        let links = stat.kind != NodeKind::Dir && stat.links != theirs.links;
        let owners = (stat.uid, stat.gid) != (theirs.uid, theirs.gid);
        let found = [
            (!same, 'M'),
            (stat.mode != theirs.mode, 'm'),
            (owners, 'o'),
            (times, 't'),
            (links, 'l'),
            (xattrs(one, node)? != xattrs(other, twin)?, 'x'),
        ];
        change.extend(found.iter().filter(|(differs, _)| *differs).map(|(_, letter)| *letter));
        Ok(change)
    }
}

/// Everything in a tree, and the filesystems that it is on.
fn listed(tree: &Tree, layers: &mut Vec<std::sync::Arc<dyn Filesystem>>) -> Result<Nodes> {
    *layers = tree.filesystems();
    let mut nodes = Nodes::new();
    let mut room = PATHS_BYTES_MAX;
    walk(tree, &Limits::default(), &mut |step| {
        if let Step::Node(entry) = step {
            let taken = len64(entry.path.len()).saturating_add(ENTRY_BYTES);
            room = room.checked_sub(taken).ok_or(TreeFault::ListingLarge { max: PATHS_BYTES_MAX })?;
            nodes.insert(entry.path.to_vec(), Node { layer: entry.volume, node: entry.node });
        }
        Ok(Go::On)
    })?;
    Ok(nodes)
}

fn same_bytes(one: &dyn Filesystem, node: NodeId, other: &dyn Filesystem, twin: NodeId) -> Result<bool> {
    let (mut ours, mut theirs) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0u64;
    loop {
        let (n, m) = (one.read(node, at, &mut ours)?, other.read(twin, at, &mut theirs)?);
        if n != m || ours.get(..n) != theirs.get(..m) {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
        at = at.saturating_add(len64(n));
    }
}

fn xattrs(fs: &dyn Filesystem, node: NodeId) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut all = BTreeMap::new();
    fs.xattrs(node, &mut |(name, value)| {
        all.insert(name.to_vec(), value.to_vec());
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    Ok(all)
}
