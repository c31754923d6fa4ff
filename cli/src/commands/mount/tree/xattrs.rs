//! Extended attributes, access control lists among them.

use std::ops::ControlFlow;

use fuser::{Errno, INodeNo};

use super::super::meaning::Answer;
use super::{Tree, said};

/// `setxattr`: only a new one.
const XATTR_CREATE: i32 = 1;
/// `setxattr`: only one that is there.
const XATTR_REPLACE: i32 = 2;

impl Tree<'_> {
    pub(in super::super) fn xattr(&self, number: INodeNo, name: &[u8]) -> Answer<Vec<u8>> {
        let node = self.numbers.node(number);
        if let Some((told, value)) = &self.memory.told
            && node == self.fs.root()
            && name == told
        {
            return Ok(value.clone());
        }
        self.lookup_self(number)?;
        let mut value = None;
        self.fs
            .xattrs(node, &mut |(key, found)| {
                if key == name {
                    value = Some(found.to_vec());
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })
            .map_err(said)?;
        value.ok_or(Errno::ENODATA)
    }

    /// The names of all extended attributes, each with a zero byte behind it.
    pub(in super::super) fn xattr_names(&self, node: INodeNo) -> Answer<Vec<u8>> {
        self.lookup_self(node)?;
        let mut names = Vec::new();
        self.fs
            .xattrs(self.numbers.node(node), &mut |(key, _)| {
                names.extend_from_slice(key);
                names.push(0);
                Ok(ControlFlow::Continue(()))
            })
            .map_err(said)?;
        Ok(names)
    }

    pub(in super::super) fn set_xattr(
        &mut self,
        node: INodeNo,
        name: &[u8],
        value: Option<&[u8]>,
        flags: i32,
    ) -> Answer<()> {
        let there = match self.xattr(node, name) {
            Ok(_) => true,
            Err(Errno::ENODATA) => false,
            Err(e) => return Err(e),
        };
        match (there, value, flags) {
            (true, Some(_), XATTR_CREATE) => return Err(Errno::EEXIST),
            (false, Some(_), XATTR_REPLACE) | (false, None, _) => return Err(Errno::ENODATA),
            _ => {}
        }
        let node = self.numbers.node(node);
        if node == self.fs.root() && self.memory.told.as_ref().is_some_and(|(told, _)| told == name) {
            return Err(Errno::EPERM);
        }
        self.change(|w, now| w.set_xattr(node, name, value, now))
    }
}
