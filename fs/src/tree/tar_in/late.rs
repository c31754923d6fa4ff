//! Access control lists that name somebody whom nobody knew when their member came: the stream itself may bring the
//! files that say who that is, `etc/passwd` and `etc/group` of a root filesystem.

use std::collections::BTreeMap;

use racker_formats::error::Result;
use racker_formats::wire::len64;

use super::super::put::Put;
use super::{Names, acl};
use crate::filesystem::Name;

/// Bytes of lists and paths that are remembered; more of them are left out.
const BYTES_MAX: u64 = 16 << 20;

/// The attribute that a list becomes, and its text.
pub(super) type Unknown = Vec<(&'static [u8], Vec<u8>)>;

/// Lists that wait for the end of the stream, by the path of their member.
#[derive(Debug, Default)]
pub(super) struct Late {
    lists: BTreeMap<Vec<Name>, Unknown>,
    bytes: u64,
}

impl Late {
    /// A member came; of two at the same path the later one counts.
    pub(super) fn member(&mut self, path: &[Name], unknown: Unknown, put: &mut Put<'_, '_>) {
        if !self.lists.is_empty() {
            self.lists.remove(path);
        }
        if unknown.is_empty() {
            return;
        }
        let names = path.iter().map(|n| n.as_bytes().len());
        let taken = names.chain(unknown.iter().map(|(_, text)| text.len())).map(len64).sum::<u64>();
        self.bytes = self.bytes.saturating_add(taken);
        if self.bytes > BYTES_MAX {
            put.lose(LISTS, path);
        } else {
            self.lists.insert(path.to_vec(), unknown);
        }
    }

    /// The stream has ended: who is who by now?
    pub(super) fn finish(self, names: &dyn Names, put: &mut Put<'_, '_>) -> Result<()> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let again = names.again();
        for (path, unknown) in self.lists {
            for (attribute, text) in unknown {
                match again.as_deref().and_then(|names| acl::of_text(&text, names)) {
                    Some(list) => put.xattr(&path, attribute, &list)?,
                    None => put.lose(LISTS, &path),
                }
            }
        }
        Ok(())
    }
}

const LISTS: &str = "access control lists";
