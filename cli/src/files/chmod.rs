//! `chmod`

use std::path::PathBuf;

use clap::Args;
use racker_formats::wire::len64;
use racker_fs::filesystem::{Change, NodeId, NodeKind};
use racker_fs::path::Place;
use racker_fs::tree::{Go, Limits, Step, Tree, walk};

use super::Act;
use super::editing::Editing;
use super::mode::ModeChange;
use crate::fault::{Failure, Outcome};

/// Nodes that one command with -R changes.
const NODES_MAX: u64 = 16 << 20;

/// Change permissions
#[derive(Args, Debug)]
pub(crate) struct Chmod {
    /// 0644, or letters as in u=rw,go=r, a+X, g-w
    #[arg(value_name = "MODE", value_parser = ModeChange::parse, allow_hyphen_values = true)]
    mode: ModeChange,
    /// Files or folders inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folders and all below them
    #[arg(short = 'R', long)]
    recursive: bool,
}

impl Act for Chmod {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        for path in &self.paths {
            let place = editing.place(path, true)?;
            for (node, kind) in nodes(&place, self.recursive, editing)? {
                // Nobody asks for the mode of a symbolic link.
                if kind == NodeKind::Link {
                    continue;
                }
                editing.change(path, place.volume, |writer, now| {
                    let old = writer.filesystem().stat(node)?.mode;
                    let mode = Some(self.mode.apply(old, kind == NodeKind::Dir));
                    writer.set_attributes(node, &Change { mode, ..Change::default() }, now)
                })?;
            }
        }
        Ok(())
    }
}

/// A node, and all below it on the same filesystem if that is wanted.
pub(super) fn nodes(
    place: &Place,
    recursive: bool,
    editing: &Editing<'_>,
) -> Outcome<Vec<(NodeId, NodeKind)>> {
    if !recursive {
        return Ok(vec![(place.node, editing.stat(place)?.kind)]);
    }
    let mut all = Vec::new();
    let tree = Tree::from_node(place.fs.clone(), place.node);
    editing.about(walk(&tree, &Limits::default(), &mut |step| {
        if let Step::Node(entry) = step {
            all.push((entry.node, entry.stat.kind));
        }
        Ok(if len64(all.len()) < NODES_MAX { Go::On } else { Go::Stop })
    }))?;
    if len64(all.len()) >= NODES_MAX {
        return Err(Failure::new(format!("more than {NODES_MAX} files: take one folder after the other")));
    }
    Ok(all)
}
