//! Single nodes out of an image into a folder of the host, as `cp -a` does.
//!
//! Modes and times are kept, extended attributes as far as the host takes them, owners when the caller is root.
//! Hard links are kept within one call.
//! A file that stands there is replaced in one step once its successor is complete; a directory never is.

use std::path::Path;

use racker_formats::error::{Result, Within};
use rustix::fs::{AtFlags, FileType, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::{geteuid, getpid};

use super::extract::{ExtractOptions, Extracted, Extractor, Keep, creating, open_folder};
use super::{Tree, TreeFault};
use crate::filesystem::{Name, NodeKind};

/// Copies the root of `tree`, whatever it is, and what is below it, to `dir/name`. `dir` exists.
///
/// After an error a directory keeps what was copied so far; a file is as it was before.
pub fn copy_out(tree: &Tree, name: &Name, dir: &Path, options: ExtractOptions<'_>) -> Result<Extracted> {
    let (fs, root) = tree.root();
    let kind = fs.stat(root)?.kind;
    let place = || dir.join(String::from_utf8_lossy(name.as_bytes()).as_ref()).display().to_string();
    let folder = open_folder(dir).within(|| dir.display())?;
    let there = match statat(&folder, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(e) => return Err(std::io::Error::from(e).into()).within(place),
    };
    let is_dir = kind == NodeKind::Dir;
    if there == Some(FileType::Directory) || (is_dir && there.is_some()) {
        return Err(TreeFault::Occupied.into()).within(place);
    }
    let temporary = format!(".racker-{}", getpid().as_raw_nonzero()).into_bytes();
    let top = if is_dir { name.as_bytes().to_vec() } else { temporary.clone() };
    let handle = folder.try_clone()?;
    // As `cp -a`: flags stay behind. An immutable copy would be a trap.
    let keep = Keep { owners: geteuid().is_root(), flags: false, locking: false };
    let mut out = Extractor::new(handle, Some(top), keep, options.progress)?;
    let done = out.run(tree, &options.limits);
    if !is_dir {
        let renamed = done.and_then(|()| match renameat(&folder, &*temporary, &folder, name.as_bytes()) {
            Ok(()) => Ok(()),
            // A device that the user may not make is not there to be renamed; the result says so.
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(creating(e)),
        });
        if let Err(e) = renamed {
            // Not worth a second error: the name tells whose it was.
            let _ = unlinkat(&folder, &*temporary, AtFlags::empty());
            return Err(e.within(place()));
        }
    } else {
        done.within(place)?;
    }
    out.finish(true)
}
