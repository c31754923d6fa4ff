//! `copy-in`

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use racker_fs::filesystem::Name;
use racker_fs::tree::copy_in::{CopyIn as Copy, CopyOptions};

use super::Act;
use super::chown::owner;
use super::editing::Editing;
use crate::fault::{About, Failure, Outcome};

/// Copy files and folders of the host into a folder of the image
///
/// As `cp -a` does: modes, owners (by number), times, links, extended attributes, holes. Folders that are there are
/// filled up, files replaced. If PATH is not there and one file is copied, it gets that name.
#[derive(Args, Debug)]
pub(crate) struct CopyIn {
    /// Files or folders of the host
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<PathBuf>,
    /// Folder inside the image, or the new name
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// USER or USER:GROUP of the image, for everything that is copied
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
}

impl Act for CopyIn {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        let options = match &self.owner {
            Some(typed) => {
                let (uid, gid) = owner(typed, editing)?;
                CopyOptions { owner: Some((uid.unwrap_or(0), gid.unwrap_or(0))) }
            }
            None => CopyOptions::default(),
        };
        let into = editing.is_dir(&self.path)?;
        if !into && self.sources.len() > 1 {
            super::mkdir::need_dir(&self.path, editing)?;
        }
        let folder = match (into, self.path.parent()) {
            (false, Some(above)) if !above.as_os_str().is_empty() => above,
            (false, _) => Path::new("/"),
            (true, _) => &self.path,
        };
        let (base, view) = editing.place_in(folder, true)?;
        let image = &editing.target.path;
        let notes = editing.put(base, &view, |mut put| {
            let mut copy = Copy::new(&mut put, options);
            for source in &self.sources {
                let own = std::fs::canonicalize(source).about(source)?;
                let name = if into { source.file_name().or(own.file_name()) } else { self.path.file_name() };
                let name = name.ok_or_else(|| Failure::new(format!("{}: has no name", source.display())))?;
                let name = Name::new(name.as_bytes()).about(image)?;
                copy.copy(source, &[name], None).about(image)?;
            }
            put.finish().about(image)
        })?;
        notes.lines.iter().for_each(|line| editing.progress.note(line));
        Ok(())
    }
}
