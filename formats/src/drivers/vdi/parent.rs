//! Finding the parent of a differencing disk.
//!
//! A VDI knows its parent by UUID only; VirtualBox keeps the paths in its own files. So the files beside the image are
//! looked at, and the one that is the parent is taken.

use std::sync::Arc;

use super::fault::VdiFault;
use super::header::Header;

use crate::error::Result;
use crate::opening::{Opening, Reference, Role};
use crate::registry::Image;

/// Finds the parent of the image with this header, and opens it.
pub(super) fn open(header: &Header, opening: &mut Opening) -> Result<(Arc<dyn Image>, Reference)> {
    let (uuid, modified) = header.parent();
    let mut found: Option<(String, bool)> = None;
    let what = format!("disk {uuid}");
    for name in opening.beside(Role::Backing, &what)? {
        // What cannot be opened or is no VDI is not the parent.
        let Ok(file) = opening.peek(&name) else { continue };
        let Ok(candidate) = Header::read(&file) else { continue };
        if candidate.uuid() != uuid {
            continue;
        }
        let unchanged = candidate.modified() == modified;
        match found {
            Some((first, true)) if unchanged => {
                return Err(VdiFault::Parents { uuid, first, second: name }.into());
            }
            Some((_, true)) => {}
            _ => found = Some((name, unchanged)),
        }
    }
    let path = match found {
        Some((name, true)) => name,
        // Who leaves the parent alone gives the image another one, or this one again.
        Some((name, false)) if opening.alone() => name,
        None if opening.alone() => uuid.to_string(),
        Some((name, false)) => return Err(VdiFault::ParentChanged { name }.into()),
        None => return Err(VdiFault::NoParent(uuid).into()),
    };
    let reference = Reference { path, format: Some("vdi".into()), role: Role::Backing };
    let (_, image) = opening.follow_image(&reference)?;
    Ok((image, reference))
}
