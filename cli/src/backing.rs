//! A backing file that was typed.

use std::path::Path;
use std::time::UNIX_EPOCH;

use racker_formats::open::OpenOptions;
use racker_formats::opening::{Policy, Reference, Role};
use racker_formats::registry::Backing;

use crate::fault::{About, Failure, Outcome};
use crate::remote::{is_remote, open};

/// Opens the backing file `name` of `image`, which was typed and is trusted for it; it lies relative to the image's
/// folder.
pub(crate) fn open_backing(
    image: &Path,
    name: &str,
    format: Option<&str>,
    allow_external: bool,
) -> Outcome<Backing> {
    if is_remote(image) {
        let failure =
            Failure::new("an image on another machine has no folder that a backing file could lie in");
        return Err(failure).about(image);
    }
    let path = image.parent().unwrap_or(Path::new("")).join(name);
    let policy = if allow_external { Policy::Any } else { Policy::SameFolder };
    let opened = open(&path, &OpenOptions { format, policy, ..OpenOptions::default() }).about(&path)?;
    if opened.in_container() {
        let failure = Failure::new("lies inside an archive: no image can have it as its backing file");
        return Err(failure).about(&path);
    }
    if opened.guessed_raw {
        let failure = Failure::new("has the content of no format that racker knows");
        return Err(failure.hint("-F raw takes it as it is")).about(&path);
    }
    let modified = path.metadata().and_then(|m| m.modified()).ok();
    let modified = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
    let format = Some(opened.format.to_string());
    let reference = Reference { path: name.into(), format, role: Role::Backing };
    Ok(Backing { reference, image: opened.image, modified })
}
