//! The kernel's part: what is mounted where, and an end to it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use racker_formats::error::Kind;
use racker_fs::guest::unescape;

use crate::control::{Control, Line};
use crate::fault::{About, Failure, Outcome};

/// What mounts of racker are called, after `fuse.`.
pub(super) const SUBTYPE: &str = "racker";
/// Who mounts for users.
const HELPER: &str = "fusermount3";
/// What the kernel gives filesystems in user space.
const DEVICE: &str = "/dev/fuse";

/// The extended attribute of the root, which is not listed, that says where the process of the mount listens.
const ATTRIBUTE: &str = "user.racker.socket";

/// That attribute and its value.
pub(super) fn attribute(control: &Control) -> (Vec<u8>, Vec<u8>) {
    (ATTRIBUTE.as_bytes().to_vec(), control.path().as_os_str().as_bytes().to_vec())
}

/// Connects to the process of the mount at `dir`; nothing if that process is gone.
pub(crate) fn line(dir: &Path) -> Outcome<Option<Line>> {
    let mut path = [0u8; 256];
    let len = match rustix::fs::getxattr(dir, ATTRIBUTE, path.as_mut_slice()) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTCONN) => return Ok(None),
        Err(e) => return Err(io::Error::from(e)).about(dir),
    };
    Line::to(Path::new(OsStr::from_bytes(path.get(..len).unwrap_or_default()))).map(Some)
}

/// The folder as the kernel calls it, even where the process of its mount is gone.
pub(crate) fn folder(dir: &Path) -> Outcome<PathBuf> {
    match fs::canonicalize(dir) {
        Ok(dir) => Ok(dir),
        Err(e) if e.raw_os_error() == Some(nix::libc::ENOTCONN) => {
            let dir = std::path::absolute(dir)?;
            let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(dir) };
            Ok(fs::canonicalize(above).about(above)?.join(name))
        }
        Err(e) => Err(e).about(dir),
    }
}

/// Whether what is mounted at `dir`, on top of all else, is racker's.
pub(crate) fn is_ours(dir: &Path) -> Outcome<bool> {
    let list = fs::read("/proc/self/mountinfo")?;
    let lines = list.split(|b| *b == b'\n');
    let top = lines.filter_map(mount).rfind(|(at, _)| at == dir);
    Ok(top.is_some_and(|(_, kind)| kind == format!("fuse.{SUBTYPE}").as_bytes()))
}

/// Where a line of the kernel's list mounts what kind of filesystem.
fn mount(line: &[u8]) -> Option<(PathBuf, &[u8])> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = words.iter().position(|word| *word == b"-")?;
    let at = unescape(words.get(4)?);
    Some((PathBuf::from(OsString::from_vec(at)), words.get(dash.checked_add(1)?)?))
}

/// Unmounts; `detach` does so even if it is in use.
pub(crate) fn unmount(dir: &Path, detach: bool) -> Outcome<()> {
    let flags = if detach { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(dir, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(Errno::EBUSY) => return busy().about(dir),
        Err(e) => return Err(io::Error::from(e)).about(dir),
    }
    let mut command = Command::new(HELPER);
    command.arg("-u").args(detach.then_some("-z")).arg("--").arg(dir).stdin(Stdio::null());
    let ran = command.env("LC_ALL", "C").output().map_err(|e| no_helper(&e)).about(dir)?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr).trim().to_string();
    if said.contains("busy") { busy().about(dir) } else { Err(Failure::new(said)).about(dir) }
}

fn busy<T>() -> Outcome<T> {
    let failure = Failure::new("in use: it stays mounted, and nothing was lost").of(Kind::Busy);
    Err(failure.hint("`fuser -vm` with the folder shows who uses it"))
}

/// Why a mount failed, and what would help.
pub(super) fn no_mount(e: &io::Error) -> Failure {
    if !Path::new(DEVICE).exists() {
        let failure = Failure::new(format!("there is no {DEVICE}"));
        return failure.hint("`modprobe fuse` makes it; a container needs `--device /dev/fuse`");
    }
    if e.kind() == io::ErrorKind::NotFound { no_helper(e) } else { Failure::new(e.to_string().trim()) }
}

fn no_helper(e: &io::Error) -> Failure {
    if e.kind() != io::ErrorKind::NotFound {
        return Failure::new(format!("{HELPER}: {e}"));
    }
    Failure::new(format!("{HELPER} is missing")).hint("the package fuse3 has it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = b"75 24 0:54 / /a\\040b\\134 rw,nosuid shared:3 - fuse.racker disk.qcow2 rw,user_id=0";
        assert_eq!(mount(line), Some((PathBuf::from("/a b\\"), &b"fuse.racker"[..])));
        assert_eq!(mount(b""), None);
    }
}
