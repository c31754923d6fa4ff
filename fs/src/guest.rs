//! The operating system on a disk, and the tree it would mount.
//!
//! The root is found by its own files (`etc/fstab`, `os-release`, an ostree deployment), its mounts by `etc/fstab`
//! and, where that says nothing, by the Discoverable Partitions Specification's type GUIDs.

use std::ops::ControlFlow;
use std::sync::Arc;

use racker_formats::error::{Fault, Kind, Result};

use crate::boot::{self, Entry};
use crate::filesystem::{Filesystem, Name, NodeKind};
use crate::inspect::{Inspection, Volume, describe};
use crate::path::{self, Mount, Place, View, read_all};

/// `fstab` and `os-release` are read whole; nothing real comes near this.
const TEXT_BYTES_MAX: u64 = 256 << 10;
/// Lines of `fstab` that are looked at.
const MOUNTS_MAX: usize = 256;
/// Deployments of one ostree system root that are looked at.
const DEPLOYMENTS_MAX: usize = 256;
/// Partition types of `/` for the architectures (Discoverable Partitions Specification).
const ROOT_TYPES: &[&str] = &[
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", // x86-64
    "b921b045-1df0-41c3-af44-4c6f280d3fae", // arm64
    "44479540-f297-41b2-9af7-d131d5f0458a", // x86
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3", // arm
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224", // riscv64
    "c31c45e6-3f39-412e-80fb-4809c4980599", // ppc64-le
    "5eead9a9-fe09-4a1e-a1d7-520d00531306", // s390x
];
/// Type of the EFI system partition.
const ESP_TYPE: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// Type of an extended boot loader partition.
const XBOOTLDR_TYPE: &str = "bc13c2ff-59e6-4262-a352-b275fd6f7172";

/// Why a path does not lead to one file.
#[derive(Debug, thiserror::Error)]
pub enum GuestFault {
    /// No filesystem has it.
    #[error("{path}: no such file or directory on any filesystem of the disk")]
    Nowhere {
        /// As typed.
        path: String,
        /// The filesystems that were looked at.
        there: String,
    },
    /// Several have it.
    #[error("{path} is on more than one filesystem")]
    Several {
        /// As typed.
        path: String,
        /// Those that have it.
        there: String,
    },
    /// There is nothing to look at.
    #[error("no filesystem that racker reads is on this disk")]
    NoFilesystem,
}

impl Fault for GuestFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Nowhere { .. } => Kind::NotFound,
            Self::Several { .. } => Kind::Invalid,
            Self::NoFilesystem => Kind::Unsupported,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Nowhere { there, .. } => Some(format!("looked at {there}")),
            Self::Several { there, .. } => Some(format!("choose with {there}")),
            Self::NoFilesystem => Some("`racker disk info` shows what is there".into()),
        }
    }
}

/// The operating system on a disk.
#[derive(Debug)]
pub struct Guest {
    /// `PRETTY_NAME` of its os-release.
    pub name: Option<String>,
    /// `ID` of its os-release.
    pub id: Option<String>,
    /// `VERSION_ID` of its os-release.
    pub version: Option<String>,
    /// For ostree systems: the deployment's folder on the root filesystem.
    pub deployment: Option<String>,
    /// The tree it would mount.
    pub view: View,
}

/// Boot entries on any filesystem of the disk, with the volume (its index) that holds them.
pub fn boot_entries(disk: &Inspection) -> Vec<(usize, Entry)> {
    let mut all = Vec::new();
    for (index, volume) in disk.volumes.iter().enumerate() {
        let Ok(fs) = volume.filesystem() else { continue };
        for folder in ["/loader/entries", "/boot/loader/entries"] {
            // `boot` may be a link to the folder itself, as on ostree systems: once is enough.
            let found = boot::entries(&fs, folder).unwrap_or_default();
            if !found.is_empty() {
                all.extend(found.into_iter().map(|e| (index, e)));
                break;
            }
        }
    }
    all
}

impl Guest {
    /// Finds the operating system; none is no error.
    pub fn find(disk: &Inspection) -> Option<Self> {
        let entries = boot_entries(disk);
        let order = root_candidates(disk);
        order.into_iter().find_map(|index| {
            let volume = disk.volumes.get(index)?;
            let fs = volume.filesystem().ok()?;
            Self::ostree(disk, index, &fs, &entries).or_else(|| Self::plain(disk, index, &fs))
        })
    }

    /// A root filesystem that holds the system itself.
    fn plain(disk: &Inspection, index: usize, fs: &Arc<dyn Filesystem>) -> Option<Self> {
        let view = View::single(index, Arc::clone(fs));
        let has = |path: &str| view.resolve(path.as_bytes(), true).is_ok();
        let is_root = has("/etc/fstab") || has("/etc/os-release") || has("/usr/lib/os-release");
        (is_root && has("/etc")).then(|| Self::new(disk, view, None))
    }

    /// A root filesystem that holds ostree deployments; the first boot entry's is the system.
    fn ostree(
        disk: &Inspection,
        index: usize,
        fs: &Arc<dyn Filesystem>,
        entries: &[(usize, Entry)],
    ) -> Option<Self> {
        let whole = View::single(index, Arc::clone(fs));
        whole.resolve(b"/ostree/deploy", true).ok()?;
        let named = entries.iter().filter_map(|(_, e)| e.argument("ostree"));
        let place = named
            .filter_map(|path| whole.resolve(path.as_bytes(), true).ok())
            .find(is_dir)
            .or_else(|| only_deployment(&whole))?;
        let root = Mount { at: Vec::new(), volume: index, fs: Arc::clone(fs), root: place.node };
        let mut mounts = vec![root];
        let mount = |at: &str, folder: &Place| {
            let at = vec![Name::new(at.as_bytes()).ok()?];
            Some(Mount { at, volume: index, fs: Arc::clone(fs), root: folder.node })
        };
        mounts.extend(mount("sysroot", &whole.root().ok()?));
        // The deployment's `var` is a stub: all deployments of a system share /ostree/deploy/NAME/var.
        let stateroot: Vec<u8> =
            place.path.iter().take(3).flat_map(|n| [b"/", n.as_bytes()].concat()).collect();
        if let Ok(var) = whole.resolve(&[&stateroot, b"/var".as_slice()].concat(), true) {
            mounts.extend(mount("var", &var));
        }
        Some(Self::new(disk, View::new(mounts), Some(place.display())))
    }

    fn new(disk: &Inspection, view: View, deployment: Option<String>) -> Self {
        let release = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| text(&view, path))
            .unwrap_or_default();
        let field = |key: &str| release_field(&release, key);
        let (name, id, version) = (field("PRETTY_NAME"), field("ID"), field("VERSION_ID"));
        let view = with_mounts(disk, view);
        Self { name, id, version, deployment, view }
    }
}

/// Indices of the volumes that may hold `/`, the most likely first.
fn root_candidates(disk: &Inspection) -> Vec<usize> {
    let is_root = |v: &Volume| v.partition.as_ref().is_some_and(|p| ROOT_TYPES.contains(&p.type_id.as_str()));
    let (mut first, rest): (Vec<usize>, Vec<usize>) =
        (0..disk.volumes.len()).partition(|i| disk.volumes.get(*i).is_some_and(is_root));
    first.extend(rest);
    first
}

fn is_dir(place: &Place) -> bool {
    place.fs.stat(place.node).is_ok_and(|s| s.kind == NodeKind::Dir)
}

/// The deployment, if `/ostree/deploy/*/deploy` holds exactly one.
fn only_deployment(whole: &View) -> Option<Place> {
    let mut found = Vec::new();
    for system in folders(whole, b"/ostree/deploy")? {
        let path = [b"/ostree/deploy/".as_slice(), system.as_bytes(), b"/deploy"].concat();
        for name in folders(whole, &path).unwrap_or_default() {
            found.push([path.as_slice(), b"/", name.as_bytes()].concat());
        }
    }
    match found.as_slice() {
        [one] => whole.resolve(one, true).ok(),
        _ => None,
    }
}

fn folders(view: &View, path: &[u8]) -> Option<Vec<Name>> {
    let dir = view.resolve(path, true).ok()?;
    let mut names = Vec::new();
    dir.fs
        .read_dir(dir.node, &mut |entry| {
            if dir.fs.stat(entry.node)?.kind == NodeKind::Dir {
                names.push(entry.name);
            }
            let more = names.len() < DEPLOYMENTS_MAX;
            Ok(if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })
        .ok()?;
    Some(names)
}

/// A small text file of the tree.
fn text(view: &View, path: &str) -> Option<String> {
    let place = view.resolve(path.as_bytes(), true).ok()?;
    if place.fs.stat(place.node).ok()?.kind != NodeKind::File {
        return None;
    }
    let bytes = read_all(place.fs.as_ref(), place.node, TEXT_BYTES_MAX).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn release_field(release: &str, key: &str) -> Option<String> {
    let value = release.lines().find_map(|l| l.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']).to_string())
}

/// Adds what the tree's own fstab mounts, or what the partition types say.
fn with_mounts(disk: &Inspection, view: View) -> View {
    let fstab = text(&view, "/etc/fstab").unwrap_or_default();
    let mut mounts = view.mounts().to_vec();
    let root_volume = mounts.first().map(|m| m.volume);
    for line in fstab.lines().take(MOUNTS_MAX) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(source), Some(target)) = (fields.next(), fields.next()) else { continue };
        if source.starts_with('#') || !target.starts_with('/') || target == "/" {
            continue;
        }
        let Some(index) = disk.volumes.iter().position(|v| is_source(v, source)) else { continue };
        // Subvolumes and bind mounts of the root itself are not what this is for.
        if Some(index) == root_volume {
            continue;
        }
        mounts.extend(disk.volumes.get(index).and_then(|v| mount_at(v, index, &unescape(target.as_bytes()))));
    }
    let has = |mounts: &[Mount], at: &[u8]| {
        mounts.iter().any(|m| m.at.iter().map(Name::as_bytes).eq(std::iter::once(at)))
    };
    for (kind, at) in [(XBOOTLDR_TYPE, b"/boot".as_slice()), (ESP_TYPE, b"/efi")] {
        let name = at.strip_prefix(b"/").unwrap_or(at);
        let of_type = |v: &Volume| v.partition.as_ref().is_some_and(|p| p.type_id == kind);
        let Some(index) = disk.volumes.iter().position(of_type) else { continue };
        if has(&mounts, name) || mounts.iter().any(|m| m.volume == index) || view.resolve(at, true).is_err() {
            continue;
        }
        mounts.extend(disk.volumes.get(index).and_then(|v| mount_at(v, index, at)));
    }
    View::new(mounts)
}

fn mount_at(volume: &Volume, index: usize, target: &[u8]) -> Option<Mount> {
    let fs = volume.filesystem().ok()?;
    let at: Option<Vec<Name>> =
        target.split(|b| *b == b'/').filter(|c| !c.is_empty()).map(|c| Name::new(c).ok()).collect();
    let root = fs.root();
    Some(Mount { at: at.filter(|a| !a.is_empty())?, volume: index, fs, root })
}

/// Whether fstab's first field names this volume.
fn is_source(volume: &Volume, source: &str) -> bool {
    let partition = volume.partition.as_ref();
    let quoted = |s: &str| s.trim_matches('"').to_string();
    let same = |a: Option<&String>, b: &str| a.is_some_and(|a| a.eq_ignore_ascii_case(b));
    if let Some(uuid) = source.strip_prefix("UUID=").or(source.strip_prefix("/dev/disk/by-uuid/")) {
        return same(volume.facts().and_then(|f| f.uuid).as_ref(), &quoted(uuid));
    }
    if let Some(label) = source.strip_prefix("LABEL=").or(source.strip_prefix("/dev/disk/by-label/")) {
        return volume.facts().and_then(|f| f.label).is_some_and(|l| l == quoted(label));
    }
    if let Some(id) = source.strip_prefix("PARTUUID=").or(source.strip_prefix("/dev/disk/by-partuuid/")) {
        return same(partition.and_then(|p| p.id.as_ref()), &quoted(id));
    }
    if let Some(label) = source.strip_prefix("PARTLABEL=").or(source.strip_prefix("/dev/disk/by-partlabel/"))
    {
        return partition.and_then(|p| p.label.as_deref()) == Some(quoted(label).as_str());
    }
    // /dev/sda2, /dev/vda2, /dev/nvme0n1p2: this is the only disk there is.
    let number = source.strip_prefix("/dev/").map(|d| d.trim_start_matches(|c: char| !c.is_ascii_digit()));
    let nvme = source.rsplit_once('p').map(|(_, n)| n);
    let of_disk = ["/dev/sd", "/dev/vd", "/dev/xvd", "/dev/hd"].iter().any(|p| source.starts_with(p));
    let of_nvme = ["/dev/nvme", "/dev/mmcblk"].iter().any(|p| source.starts_with(p));
    if let Some(name) = &volume.logical {
        return is_mapped(source, name);
    }
    let typed = if of_disk { number } else { nvme.filter(|_| of_nvme) };
    typed.and_then(|n| n.parse().ok()).is_some_and(|n: u32| partition.is_some_and(|p| p.number == n))
}

/// Whether a device path is that of the logical volume `VG/LV`: `/dev/VG/LV`, or `/dev/mapper/VG-LV` with hyphens
/// inside the names doubled.
fn is_mapped(source: &str, name: &str) -> bool {
    let Some((group, volume)) = name.split_once('/') else { return false };
    let mapped = format!("/dev/mapper/{}-{}", group.replace('-', "--"), volume.replace('-', "--"));
    source == mapped || source == format!("/dev/{name}")
}

/// A field of `fstab(5)` or of the kernel's lists of mounts, where white space is written as `\040` and the like.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Finds the one entry that a path means, whether it is there or not: of a file that exists on one filesystem, or of
/// a directory that does. The second value is the tree that the path was looked up in.
pub fn locate_entry(disk: &Inspection, guest: Option<&Guest>, typed: &[u8]) -> Result<(path::Entry, View)> {
    let (above, name) = path::split_last(typed)?;
    let (_, view) = match locate(disk, guest, typed, false) {
        Err(e) if e.kind() == Kind::NotFound => locate(disk, guest, above, true)?,
        found => found?,
    };
    let dir = view.resolve(above, true)?;
    Ok((view.entry_of(dir, name)?, view))
}

/// Finds the one file that `path` means: as the system on the disk would, else on the one filesystem that has it. The
/// second value is the tree that the path was looked up in.
pub fn locate(disk: &Inspection, guest: Option<&Guest>, path: &[u8], follow: bool) -> Result<(Place, View)> {
    let mut broken = None;
    if let Some(guest) = guest {
        match guest.view.resolve(path, follow) {
            Ok(place) => return Ok((place, guest.view.clone())),
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::NotDir) => {}
            Err(e) => broken = Some(e),
        }
    }
    let mut found = Vec::new();
    let mut looked = Vec::new();
    for (index, volume) in disk.volumes.iter().enumerate() {
        if volume.driver().is_none() {
            broken = broken.or_else(|| volume.unknown());
            continue;
        }
        let fs = match volume.filesystem() {
            Ok(fs) => fs,
            Err(e) => {
                broken.get_or_insert(e);
                continue;
            }
        };
        looked.push(describe(volume));
        let view = View::single(index, fs);
        match view.resolve(path, follow) {
            Ok(place) => found.push((volume, (place, view))),
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::NotDir) => {}
            Err(e) => {
                broken.get_or_insert(e);
            }
        }
    }
    let path = || String::from_utf8_lossy(path).into_owned();
    match (found.len(), broken) {
        (1, _) => found.pop().map(|(_, there)| there).ok_or_else(|| GuestFault::NoFilesystem.into()),
        (0, Some(e)) => Err(e),
        (0, None) if looked.is_empty() => Err(GuestFault::NoFilesystem.into()),
        (0, None) => Err(GuestFault::Nowhere { path: path(), there: looked.join(", ") }.into()),
        _ => {
            let there: Vec<String> = found.iter().map(|(v, _)| describe(v)).collect();
            Err(GuestFault::Several { path: path(), there: there.join(" or ") }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fstab_fields_are_unescaped() {
        assert_eq!(unescape(br"/mnt/a\040b\x"), b"/mnt/a b\\x");
    }

    #[test]
    fn device_mapper_doubles_hyphens() {
        assert!(is_mapped("/dev/mapper/vg--a-lv_root", "vg-a/lv_root"));
        assert!(is_mapped("/dev/vg-a/lv_root", "vg-a/lv_root"));
        assert!(!is_mapped("/dev/mapper/vg-a-lv_root", "vg-a/lv_root"));
    }

    #[test]
    fn os_release_fields() {
        let text = "NAME=x\nPRETTY_NAME=\"Oracle Linux Server 8.10\"\nID=ol\n";
        assert_eq!(release_field(text, "PRETTY_NAME").as_deref(), Some("Oracle Linux Server 8.10"));
        assert_eq!(release_field(text, "VERSION_ID"), None);
    }
}
