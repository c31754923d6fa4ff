//! A directory and all below it removed from a filesystem that is being edited.

use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};

use super::TreeFault;
use crate::edit::Writer;
use crate::filesystem::{Name, NodeId, NodeKind, Time};

/// Directories within each other, as many as a walk enters.
const DEPTH_MAX: usize = 4096;

/// Removes the entry `name` of `dir`, with all that is below it. Returns how many entries that were.
///
/// It ends: every step removes an entry, and a directory within itself is too deep at some point.
pub fn remove(writer: &mut Writer<'_>, dir: NodeId, name: &Name, now: Time) -> Result<u64> {
    let mut count = 0u64;
    // Directories on the way down, with the names of what is still in them.
    let mut stack: Vec<(NodeId, Vec<Name>)> = vec![(dir, vec![name.clone()])];
    while let Some((dir, names)) = stack.last_mut() {
        let dir = *dir;
        let Some(name) = names.last().cloned() else {
            stack.pop();
            // The directory itself is the next name of the one above.
            let Some((above, names)) = stack.last_mut() else { break };
            if let Some(name) = names.pop() {
                writer.unlink(*above, &name, now).within(|| format!("{name:?}"))?;
                count = count.saturating_add(1);
            }
            continue;
        };
        let fs = writer.filesystem();
        let node = fs.lookup(dir, &name)?.ok_or_else(|| crate::edit::EditFault::NotFound(name.clone()))?;
        if fs.stat(node)?.kind == NodeKind::Dir {
            let mut below = Vec::new();
            fs.read_dir(node, &mut |entry| {
                below.push(entry.name);
                Ok(ControlFlow::Continue(()))
            })?;
            if stack.len() >= DEPTH_MAX {
                return Err(TreeFault::Deep { max: DEPTH_MAX }.into());
            }
            stack.push((node, below));
            continue;
        }
        writer.unlink(dir, &name, now).within(|| format!("{name:?}"))?;
        count = count.saturating_add(1);
        names.pop();
    }
    Ok(count)
}
