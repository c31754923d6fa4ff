//! The file that takes what clients of `serve --copy-on-write` write: a qcow2 over the image.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use racker_formats::open::{OpenOptions, Opened};
use racker_formats::opening::{Policy, Reference, Role};
use racker_formats::registry::{Backing, Plan, by_name};

use crate::fault::{About, Failure, Outcome};
use crate::remote::{is_remote, new_file, open};
use crate::target::HowArgs;

/// The overlay's format.
const FORMAT: &str = "qcow2";

/// Opens the overlay `file` of `image` for writing, which is made if it is not there. The image itself is only read.
pub(crate) fn open_overlay(image: &Path, file: &Path, how: &HowArgs) -> Outcome<Opened> {
    if is_remote(image) {
        return Err(Failure::new("a disk on another machine cannot be a file's backing file")).about(image);
    }
    // What the image names is followed as everywhere, and never by what the overlay says.
    let below = open(image, &how.options(false)).about(image)?;
    if below.in_container() {
        let failure = Failure::new("lies inside an archive: no file can be its copy on write");
        return Err(failure.hint("racker disk convert takes it out")).about(image);
    }
    if below.guessed_raw {
        let failure = Failure::new("has the content of no format that racker knows");
        return Err(failure.hint("-f raw takes it as it is")).about(image);
    }
    if file.exists() {
        see_that_it_is_of(image, file, below.format)?;
    } else {
        make(image, file, below)?;
    }
    let options = OpenOptions {
        format: Some(FORMAT),
        // Both files were named by the user.
        policy: Policy::Any,
        write: true,
        ..OpenOptions::default()
    };
    open(file, &options).about(file)
}

/// Refuses an overlay that was made for another image.
fn see_that_it_is_of(image: &Path, file: &Path, format: &str) -> Outcome<()> {
    let alone = OpenOptions { format: Some(FORMAT), alone: true, ..OpenOptions::default() };
    let facts = open(file, &alone).about(file)?.image.facts();
    let Some(named) = facts.backing else {
        return Err(Failure::new("is no copy-on-write file: it has no backing file")).about(file);
    };
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    let there = folder(file).join(named.path.strip_prefix("file:").unwrap_or(&named.path));
    if id(&there).is_none() || id(&there) != id(image) {
        let failure = Failure::new(format!("is over {:?}, and not over {}", named.path, image.display()));
        return Err(failure.hint("name the image that it belongs to, or another file")).about(file);
    }
    if named.format.as_deref() != Some(format) {
        let said = named.format.unwrap_or_else(|| "no format".into());
        let what = format!("says that its backing file is of {said}, and that is {format}");
        return Err(Failure::new(what)).about(file);
    }
    if !facts.data_files.is_empty() {
        return Err(Failure::new("keeps its data in another file")).about(file);
    }
    Ok(())
}

fn make(image: &Path, file: &Path, below: Opened) -> Outcome<()> {
    let format = by_name(FORMAT)?;
    let path = name_from(&folder(file), image).about(image)?;
    let modified = image.metadata().and_then(|m| m.modified()).ok();
    let modified = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
    let reference = Reference { path, format: Some(below.format.to_string()), role: Role::Backing };
    let plan = Plan {
        size: below.disk.size(),
        backing: Some(Backing { reference, image: below.image, modified }),
        ..Plan::default()
    };
    let new = new_file(file, true).about(file)?;
    let made = format.create(new.disk().clone(), &plan).about(file)?;
    made.flush().about(file)?;
    drop(made);
    new.publish().about(file)
}

fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// How a file in `folder` names the image: so that both can be moved together where it lies below.
fn name_from(folder: &Path, image: &Path) -> Outcome<String> {
    let (folder, image) = (folder.canonicalize()?, image.canonicalize()?);
    let name = match image.strip_prefix(&folder) {
        // A colon would make it an address.
        Ok(below) => Path::new("./").join(below),
        Err(_) => image,
    };
    let text = name.to_str().ok_or_else(|| Failure::new("has a name that is no text"))?;
    let plain = text.strip_prefix("./").filter(|rest| !rest.contains(':')).unwrap_or(text);
    Ok(plain.into())
}
