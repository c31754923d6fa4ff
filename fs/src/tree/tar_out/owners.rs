//! Names of users and groups, out of the image's own `/etc/passwd` and `/etc/group`.

use std::collections::BTreeMap;

use racker_formats::error::Result;

use super::super::Tree;
use crate::filesystem::{Filesystem, Name, NodeId, NodeKind};

/// Bytes read of `passwd` and of `group`: thousands of times what an image has.
const FILE_MAX: usize = 4 << 20;

/// Names for numbers.
#[derive(Clone, Debug, Default)]
pub struct OwnerNames {
    users: BTreeMap<u32, Vec<u8>>,
    groups: BTreeMap<u32, Vec<u8>>,
}

impl OwnerNames {
    /// Reads what the tree's own `/etc/passwd` and `/etc/group` say; a tree without them has no names.
    pub fn of(tree: &Tree) -> Result<Self> {
        let (fs, root) = tree.root();
        let read = |file: &[u8]| -> Result<BTreeMap<u32, Vec<u8>>> {
            match find(&**fs, root, file)? {
                Some(node) => Ok(parse(&slurp(&**fs, node)?)),
                None => Ok(BTreeMap::new()),
            }
        };
        Ok(Self { users: read(b"passwd")?, groups: read(b"group")? })
    }

    pub(super) fn user(&self, id: u32) -> &[u8] {
        self.users.get(&id).map_or(b"", Vec::as_slice)
    }

    pub(super) fn group(&self, id: u32) -> &[u8] {
        self.groups.get(&id).map_or(b"", Vec::as_slice)
    }
}

/// `/etc/FILE` if both are what they should be; a symbolic link is not followed.
fn find(fs: &dyn Filesystem, root: NodeId, file: &[u8]) -> Result<Option<NodeId>> {
    if fs.stat(root)?.kind != NodeKind::Dir {
        return Ok(None);
    }
    let Some(etc) = fs.lookup(root, &Name::new(b"etc")?)? else { return Ok(None) };
    if fs.stat(etc)?.kind != NodeKind::Dir {
        return Ok(None);
    }
    let Some(node) = fs.lookup(etc, &Name::new(file)?)? else { return Ok(None) };
    Ok((fs.stat(node)?.kind == NodeKind::File).then_some(node))
}

fn slurp(fs: &dyn Filesystem, node: NodeId) -> Result<Vec<u8>> {
    let size = usize::try_from(fs.stat(node)?.size).unwrap_or(FILE_MAX).min(FILE_MAX);
    let mut bytes = vec![0; size];
    let got = fs.read(node, 0, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}

/// `name:password:id:…`, one a line; the first name of a number counts. Lines that are otherwise are passed over.
fn parse(bytes: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    let mut names = BTreeMap::new();
    for line in bytes.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b':');
        let (name, _, id) = (fields.next(), fields.next(), fields.next());
        let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse::<u32>().ok());
        // The header has room for 31 bytes; what is longer is better left to the number.
        if let (Some(name @ [_, ..]), Some(id)) = (name, id)
            && name.len() < 32
            && name.iter().all(u8::is_ascii_graphic)
        {
            names.entry(id).or_insert_with(|| name.to_vec());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_name_of_a_number_counts() {
        let names =
            super::parse(b"root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:\nbad\n:x:3:\nu:x:-1:\nv:x:7:7\n");
        assert_eq!(names.len(), 2);
        assert_eq!(names[&0], b"root");
        assert_eq!(names[&7], b"v");
    }
}
