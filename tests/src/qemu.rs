//! `qemu-img` and `qemu-io`: they make images for racker to read, and judge those it wrote.

use std::path::Path;
use std::process::{Command, Output};

use crate::rng::Rng;

/// Runs `qemu-img` and gives what it printed; a failure is a panic with its message.
pub fn img<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    text(run("qemu-img", args))
}

/// Which release is installed: 7, 10.
pub fn release() -> u32 {
    let said = img(&["--version"]);
    let number = said.split_whitespace().nth(2).and_then(|v| v.split('.').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no release in {said}"))
}

/// A map as the installed release would print it: older ones do not say what is compressed.
pub fn as_told(mut map: serde_json::Value) -> serde_json::Value {
    if release() < 9 {
        for extent in map.as_array_mut().expect("a list of extents") {
            extent.as_object_mut().expect("an extent").remove("compressed");
        }
    }
    map
}

/// The same in the folder `dir`: QEMU looks for an external data file from where it runs.
pub fn img_in<S: AsRef<std::ffi::OsStr>>(dir: &Path, args: &[S]) -> String {
    text(Command::new("qemu-img").args(args).current_dir(dir).output().expect("qemu-utils are installed"))
}

/// Runs `qemu-img` and gives its exit status with all it printed.
pub fn img_status<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> (i32, String) {
    let out = run("qemu-img", args);
    let said = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// Runs `qemu-io` commands on an image of `format`.
pub fn io(format: &str, image: &Path, commands: &[String]) -> String {
    let mut args = vec!["-f".to_string(), format.into()];
    for command in commands {
        args.extend(["-c".to_string(), command.clone()]);
    }
    args.push(image.display().to_string());
    let dir = image.parent().unwrap_or(Path::new("."));
    let said =
        text(Command::new("qemu-io").args(args).current_dir(dir).output().expect("qemu-utils are installed"));
    assert!(!said.contains("failed"), "{said}");
    said
}

/// Runs `qemu-io` commands on a qcow2 image, flushes, and dies without closing it.
pub fn leave_open(image: &Path, commands: &[String]) {
    leave_open_as("qcow2", image, commands);
}

/// The same for an image of `format`.
pub fn leave_open_as(format: &str, image: &Path, commands: &[String]) {
    let mut args = vec!["-f".to_string(), format.into()];
    for command in commands.iter().map(String::as_str).chain(["flush", "abort"]) {
        args.extend(["-c".to_string(), command.into()]);
    }
    args.push(image.display().to_string());
    let out = run("qemu-io", &args);
    assert!(!out.status.success(), "qemu-io was meant to be killed");
}

/// Commands for `qemu-io` that write to a disk of `size` bytes, anywhere and of any length.
pub fn random_writes(rng: &mut Rng, size: u64, count: u32) -> Vec<String> {
    let one = |rng: &mut Rng| {
        let len = 1 + rng.below(300_000.min(size));
        let (at, byte) = (rng.below(size - len + 1), 1 + rng.below(255));
        format!("write -q -P {byte} {at} {len}")
    };
    (0..count).map(|_| one(rng)).collect()
}

/// Whether `qemu-img check` finds neither an error nor a leak.
pub fn check(image: &Path) {
    check_as("qcow2", image);
}

/// The same for an image of `format`.
pub fn check_as(format: &str, image: &Path) {
    let (status, said) = img_status(&["check", "-f", format, &image.display().to_string()]);
    assert_eq!(status, 0, "{}: {said}", image.display());
}

/// Whether `qemu-img check` finds no error; leaks are allowed.
pub fn check_leaks_only(image: &Path) {
    let (status, said) = img_status(&["check", "-f", "qcow2", &image.display().to_string()]);
    assert!(status == 0 || status == 3, "{}: {status}: {said}", image.display());
}

/// Runs a program of QEMU's. A lock that somebody holds is waited for: what another thread starts holds copies of our
/// descriptors, locks included, until it has become another program.
fn run<S: AsRef<std::ffi::OsStr>>(program: &str, args: &[S]) -> Output {
    let once = || Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    for _ in 0..20 {
        let out = once();
        if !String::from_utf8_lossy(&out.stderr).contains("\" lock\n") {
            return out;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    once()
}

fn text(out: Output) -> String {
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(out.status.success(), "{said}");
    said
}
