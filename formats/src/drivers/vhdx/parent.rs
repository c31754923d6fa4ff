//! Finding the parent of a differencing disk, 2.6.2.6.3.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::fault::VhdxFault;
use crate::error::Result;
use crate::opening::{OpenFault, Opening, Reference, Role};
use crate::registry::Image;

pub(super) const LINKAGE: &str = "parent_linkage";
pub(super) const LINKAGE_2: &str = "parent_linkage2";
pub(super) const RELATIVE_PATH: &str = "relative_path";
/// Where paths stand, in the order of what leads there. Those that begin at a volume or a drive of the machine that
/// made the disk lead nowhere here, and are only good for saying so.
const PATHS: [&str; 3] = [RELATIVE_PATH, "volume_path", "absolute_win32_path"];

/// Opens the parent, and makes sure that its data are those that the difference was begun with.
pub(super) fn open(
    pairs: &BTreeMap<String, String>,
    opening: &mut Opening,
) -> Result<(Arc<dyn Image>, Reference)> {
    let linkage = pairs.get(LINKAGE).ok_or(VhdxFault::NoParent("does not say to which data"))?;
    let (number, path) = PATHS
        .iter()
        .enumerate()
        .find_map(|(number, key)| Some((number, pairs.get(*key).filter(|p| !p.is_empty())?)))
        .ok_or(VhdxFault::NoParent("does not name its file"))?;
    let path = path.replace('\\', "/");
    let drive = matches!(path.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    if number > 0 || drive || path.starts_with("//") {
        return Err(
            OpenFault::External { role: Role::Backing, path, why: "an absolute path of Windows" }.into()
        );
    }
    let reference = Reference { path, format: Some("vhdx".into()), role: Role::Backing };
    let (_, image) = opening.follow_image(&reference)?;
    let found = image.facts().specific.get("data-write-guid").and_then(|v| v.as_str().map(String::from));
    let found = found.unwrap_or_default();
    // While Hyper-V merges disks both are right.
    let expected = [Some(linkage), pairs.get(LINKAGE_2)];
    let same = |text: &&String| guid(text).is_some() && guid(text) == guid(&found);
    if !expected.iter().flatten().any(same) && !opening.alone() {
        return Err(VhdxFault::Linkage { found, expected: linkage.clone() }.into());
    }
    Ok((image, reference))
}

/// What a new difference says about its parent.
pub(super) fn pairs(image: &dyn Image, path: &str) -> Result<BTreeMap<String, String>> {
    let linkage = linkage(image)?;
    Ok([(LINKAGE.to_string(), linkage), relative(path)].into())
}

/// How a child writes its parent's path.
pub(super) fn relative(path: &str) -> (String, String) {
    let path = path.replace('/', "\\");
    let path = if path.contains('\\') { path } else { format!(".\\{path}") };
    (RELATIVE_PATH.to_string(), path)
}

/// What a child says about which data its parent had.
pub(super) fn linkage(parent: &dyn Image) -> Result<String> {
    let facts = parent.facts();
    let id = facts.specific.get("data-write-guid").and_then(|v| v.as_str());
    let id = id.and_then(guid).ok_or(VhdxFault::ParentFormat(facts.format))?;
    Ok(format!("{{{id}}}"))
}

/// A GUID, with or without braces.
fn guid(text: &str) -> Option<Uuid> {
    Uuid::parse_str(text.trim_start_matches('{').trim_end_matches('}')).ok()
}
