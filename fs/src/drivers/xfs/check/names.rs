//! Entries and the inodes that they name: kinds, counts of links, and whether all can be reached.

use racker_formats::check::Severity;
use racker_formats::error::Result;
use racker_formats::wire::take;

use super::super::attr::AttrFlags;
use super::super::fault::Fault;
use super::super::inode::Inode;
use super::super::layout::RawParent;
use super::super::superblock::Incompat;
use super::super::units::InodeNo;
use super::Checker;
use super::table::Known;
use crate::filesystem::NodeKind;

impl Checker<'_> {
    /// An entry of a directory, `.` and `..` aside.
    pub(super) fn entry(&mut self, dir: &Inode, name: &[u8], ino: u64, ftype: Option<u8>) -> Result<()> {
        let number = dir.ino.0;
        let shown = || format!("directory {number}: entry {:?}", String::from_utf8_lossy(name));
        if name.is_empty() || name.contains(&0) || name.contains(&b'/') || matches!(name, b"." | b"..") {
            self.notes.corrupt(format!("{}: a name that cannot be", shown()))?;
        }
        let known = self.table.known(ino);
        match known {
            Known::Absent if self.table.incomplete => {}
            Known::Absent => {
                self.notes.corrupt(format!("{}: names inode {ino}, which is not in use", shown()))?;
            }
            Known::Damaged => {}
            Known::Kind(kind) => {
                if self.is_metadata(InodeNo(ino)) || ino == self.volume.sb.root.0 {
                    let what =
                        format!("{}: names inode {ino}, which the filesystem keeps for itself", shown());
                    return self.notes.corrupt(what);
                }
                let told = ftype.map(NodeKind::from_entry_type);
                if told.is_some_and(|told| told != Some(kind)) {
                    let what = format!("{}: its kind is not that of inode {ino}", shown());
                    self.notes.corrupt(what)?;
                }
                if kind == NodeKind::Dir {
                    let other =
                        self.table.dirs.get_mut(&ino).map(|d| std::mem::replace(&mut d.named_by, number));
                    if other.is_some_and(|other| other != 0) {
                        let what = format!("{}: names directory {ino}, which has another entry", shown());
                        self.notes.corrupt(what)?;
                    }
                }
            }
        }
        self.table.found_link(ino);
        Ok(())
    }

    /// Parents and counts of links, after all entries were seen.
    pub(super) fn links(&mut self) -> Result<()> {
        let root = self.volume.sb.root.0;
        if !self.table.dirs.contains_key(&root) && !self.table.incomplete {
            self.notes.corrupt("the root directory is damaged, or not there")?;
        }
        let all: Vec<u64> = self.table.dirs.keys().copied().collect();
        for ino in &all {
            let Some(dir) = self.table.dirs.get(ino).copied() else { continue };
            let named_by = if *ino == root { root } else { dir.named_by };
            if named_by != 0 && dir.up != 0 && dir.up != named_by {
                let what = format!("directory {ino}: .. is directory {}, its entry is in {named_by}", dir.up);
                self.notes.corrupt(what)?;
            }
        }
        self.reach(&all, root)?;
        for at in 0..self.table.len() {
            for ino in self.table.used(at) {
                self.link_count(ino)?;
            }
        }
        Ok(())
    }

    fn link_count(&mut self, ino: InodeNo) -> Result<()> {
        let left = self.table.links_left(ino.0);
        if left == 0 || self.table.known(ino.0) == Known::Damaged {
            return Ok(());
        }
        let inode = self.volume.inode(ino)?;
        let links = inode.links();
        let found = links.wrapping_sub(left);
        if found == 0 && !self.table.dirs.contains_key(&ino.0) {
            return self.notes.corrupt(format!("inode {}: no entry names it", ino.0));
        }
        self.notes.corrupt(format!("inode {}: has {links} links, {found} were found", ino.0))
    }

    /// Directories that cannot be reached from the root.
    fn reach(&mut self, all: &[u64], root: u64) -> Result<()> {
        if let Some(dir) = self.table.dirs.get_mut(&root) {
            dir.reached = true;
        }
        for ino in all {
            let (mut way, mut at) = (Vec::new(), *ino);
            while let Some(dir) = self.table.dirs.get_mut(&at) {
                if dir.reached {
                    // Either the root is above it, or it was said that it is not, or the way runs in a circle.
                    if way.contains(&at) {
                        let what = format!("directory {at}: is above itself");
                        self.notes.always(Severity::Corruption, what, 1)?;
                    }
                    break;
                }
                dir.reached = true;
                way.push(at);
                if dir.named_by == 0 {
                    if !self.damaged && !self.table.incomplete && !self.unlinked.contains(&at) {
                        self.notes.corrupt(format!("directory {at}: no entry names it"))?;
                    }
                    break;
                }
                at = dir.named_by;
            }
        }
        Ok(())
    }

    /// What inodes say of the entries that name them, where the filesystem has that.
    pub(super) fn parents(&mut self) -> Result<()> {
        if !self.volume.sb.incompat.contains(Incompat::PARENT) {
            return Ok(());
        }
        for at in 0..self.table.len() {
            for ino in self.table.used(at) {
                if self.table.known(ino.0) == Known::Damaged {
                    continue;
                }
                let inode = self.volume.inode(ino)?;
                let good = self.parents_of(&inode);
                self.notes.look(good)?;
            }
        }
        Ok(())
    }

    fn parents_of(&mut self, inode: &Inode) -> Result<()> {
        let mut count = 0u32;
        for attr in self.volume.stored_attrs(inode)? {
            if attr.flags != AttrFlags::PARENT {
                continue;
            }
            count = count.saturating_add(1);
            let value: RawParent = take(&attr.value, 0, "parent pointer")?;
            let dir = InodeNo(value.p_ino.get());
            let shown = || {
                let name = String::from_utf8_lossy(&attr.name);
                format!("inode {}: says that entry {name:?} of directory {} names it", inode.ino.0, dir.0)
            };
            let found =
                self.volume.inode(dir).and_then(|dir| Ok((self.volume.find_entry(&dir, &attr.name)?, dir)));
            let good = found.is_ok_and(|(entry, dir)| {
                entry.is_some_and(|e| e.ino == inode.ino) && dir.raw.di_gen == value.p_gen
            });
            if !good {
                self.notes.corrupt(shown())?;
            }
        }
        let root = inode.ino == self.volume.sb.root;
        let dir = inode.kind == NodeKind::Dir;
        let right = match (root || self.is_metadata(inode.ino), dir) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => inode.links(),
        };
        if count != right && !self.unlinked.contains(&inode.ino.0) {
            let why = "parent pointers are not as many as entries";
            return Err(Fault::Fork { ino: inode.ino.0, fork: "attribute", why }.into());
        }
        Ok(())
    }
}
