//! Inline data: up to 60 bytes in place of the block map, the rest as the attribute `system.data`.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64};

use super::fault::Ext4Fault;
use super::inode::Inode;
use super::volume::Ext4;

impl Ext4 {
    /// All content of an inode whose data are inline.
    pub(super) fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut content = inode.block().to_vec();
        content.extend(self.inline_rest(inode)?.unwrap_or_default());
        if inode.size > len64(content.len()) {
            return Err(Ext4Fault::Inode { field: "i_size of inline data", found: inode.size }.into());
        }
        content.truncate(index(inode.size)?);
        Ok(content)
    }

    /// The two stretches of entries of a directory whose data are inline. The first four bytes name the parent
    /// in place of the entries `.` and `..`.
    pub(super) fn inline_dir(&self, inode: &Inode) -> Result<[Vec<u8>; 2]> {
        let first = inode.block().get(4..).unwrap_or_default().to_vec();
        Ok([first, self.inline_rest(inode)?.unwrap_or_default()])
    }
}
