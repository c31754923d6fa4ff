//! NBD devices as the kernel shows them: `/sys/block/nbdN`.

use std::fs;
use std::path::{Path, PathBuf};

use racker_fs::guest::unescape;

use crate::fault::{Failure, Outcome};

/// The number of a device: `/dev/nbd3`, `nbd3` or `3`.
pub(crate) fn number(device: &str) -> Outcome<u32> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let digits = name.strip_prefix("nbd").unwrap_or(name);
    digits.parse().map_err(|_| {
        Failure::new(format!("{device} is no NBD device"))
            .hint("those are called /dev/nbd0, /dev/nbd1 and so on")
    })
}

/// Its path.
pub(crate) fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{number}"))
}

fn sys(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{number}"))
}

/// Who serves it, as was said when it was attached; none if it is free.
pub(crate) fn backend(number: u32) -> Option<String> {
    let is_attached = sys(number).join("pid").exists();
    let said = fs::read_to_string(sys(number).join("backend")).unwrap_or_default();
    is_attached.then(|| said.trim().to_string())
}

/// The partitions that the kernel has found on it.
pub(crate) fn partitions(number: u32) -> Vec<String> {
    let base = format!("nbd{number}p");
    let mut found: Vec<u32> =
        entries(&sys(number)).iter().filter_map(|name| name.strip_prefix(&base)?.parse().ok()).collect();
    found.sort_unstable();
    found.into_iter().map(|p| format!("/dev/{base}{p}")).collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).into_iter().flatten().flatten();
    list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Who uses the device or a partition of it, in words: a mount, a swap area, another device.
pub(crate) fn user(number: u32) -> Option<String> {
    let all: Vec<String> = std::iter::once(format!("nbd{number}"))
        .chain(partitions(number).into_iter().map(|p| p.trim_start_matches("/dev/").to_string()))
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for name in &all {
        let folder = if *name == format!("nbd{number}") { sys(number) } else { sys(number).join(name) };
        let id = fs::read_to_string(folder.join("dev")).unwrap_or_default();
        let mounted = mounts.lines().find_map(|mount| {
            let mut words = mount.split(' ');
            (words.nth(2)? == id.trim()).then(|| words.nth(1).unwrap_or("somewhere"))
        });
        if let Some(place) = mounted {
            let place = unescape(place.as_bytes());
            return Some(format!("/dev/{name} is mounted at {}", String::from_utf8_lossy(&place)));
        }
        if let Some(holder) = entries(&folder.join("holders")).first() {
            return Some(format!("/dev/{name} is used by /dev/{holder}"));
        }
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        if swaps.lines().any(|swap| swap.split_whitespace().next() == Some(&format!("/dev/{name}"))) {
            return Some(format!("/dev/{name} is swap space"));
        }
    }
    None
}

/// Where the process that serves a device hears who waits for its end.
pub(crate) fn control(number: u32) -> PathBuf {
    PathBuf::from(format!("/run/racker/nbd{number}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_numbers() {
        for name in ["/dev/nbd3", "nbd3", "3"] {
            assert_eq!(number(name).unwrap(), 3);
        }
        assert!(number("/dev/sda").is_err() && number("/dev/nbd0p1").is_err());
    }
}
