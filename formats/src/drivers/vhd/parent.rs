//! Finding the parent of a differencing disk.

use std::sync::Arc;

use uuid::Uuid;

use super::fault::VhdFault;
use super::header::Header;
use super::layout::{MACX, W2KU, W2RU};
use crate::block::Disk;
use crate::error::Result;
use crate::opening::{OpenFault, Opening, Reference, Role};
use crate::registry::Image;

/// How a VHD names its parent, in the order of what leads there.
///
/// A relative path of Windows, a URL, the bare name that the header holds. An absolute path of the machine that made
/// the disk comes last: it leads nowhere here, and is only good for saying so.
pub(super) fn reference(file: &Disk, header: &Header) -> Result<Reference> {
    let mut found = None;
    for platform in [W2RU, MACX] {
        for locator in header.locators.iter().filter(|l| l.platform == platform) {
            found = found.or(locator.path(file)?.filter(|p| !p.is_empty()));
        }
    }
    let name = header.parent_name();
    let bare = !name.is_empty() && !name.contains(['/', '\\', ':']);
    found = found.or(bare.then(|| name.clone()));
    for locator in header.locators.iter().filter(|l| l.platform == W2KU) {
        found = found.or(locator.path(file)?.filter(|p| !p.is_empty()));
    }
    let path = found.or((!name.is_empty()).then(|| name.replace('\\', "/"))).ok_or(VhdFault::NoParent)?;
    Ok(Reference { path, format: Some("vhd".into()), role: Role::Backing })
}

/// Opens the parent, and makes sure that it is the one.
pub(super) fn open(reference: &Reference, expected: Uuid, opening: &mut Opening) -> Result<Arc<dyn Image>> {
    let (_, image) = opening.follow_image(&of_windows(reference)?)?;
    let found = unique_id(image.as_ref()).unwrap_or_default();
    if found != expected && !opening.alone() {
        return Err(VhdFault::ParentId { found, expected }.into());
    }
    Ok(image)
}

/// The unique ID of an opened VHD.
pub(super) fn unique_id(image: &dyn Image) -> Option<Uuid> {
    let facts = image.facts();
    let text = facts.specific.get("unique-id")?.as_str()?;
    Uuid::parse_str(text).ok()
}

/// How a child writes its parent's path.
#[derive(Debug)]
pub(super) struct PathText {
    /// With backslashes, in UTF-16, little endian.
    pub(super) text: Vec<u8>,
    /// The file's name alone.
    pub(super) name: String,
}

impl PathText {
    pub(super) fn of(path: &str) -> Result<Self> {
        let path = path.replace('/', "\\");
        let path = if path.contains('\\') { path } else { format!(".\\{path}") };
        let name = path.rsplit('\\').next().unwrap_or(&path).to_string();
        if name.encode_utf16().count() > 255 {
            return Err(VhdFault::NameTooLong(name).into());
        }
        Ok(Self { text: path.encode_utf16().flat_map(u16::to_le_bytes).collect(), name })
    }
}

/// Refuses drive letters, which look like protocols.
fn of_windows(reference: &Reference) -> Result<Reference> {
    let drive = matches!(reference.path.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    if drive || reference.path.starts_with("//") {
        let (role, path) = (reference.role, reference.path.clone());
        return Err(OpenFault::External { role, path, why: "an absolute path of Windows" }.into());
    }
    Ok(reference.clone())
}
