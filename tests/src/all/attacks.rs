//! Images that want another file, all memory or all time of their reader: they get one line of refusal.

use std::collections::BTreeMap;
use std::path::Path;

use racker_fixtures::{Case, group};
use racker_tests::tool::{Ran, binary, tool};
use serde_json::Value;

/// Seconds of processor time that any of them may take, of a debug build.
const SECONDS_MAX: f64 = 10.0;
/// Seconds after which it is stopped: none may sleep or wait for somebody.
const CLOCK_MAX: f64 = 60.0;
/// Resident memory that any of them may take, in KiB.
const MEMORY_MAX: u64 = 512 << 10;

/// Runs racker under a stopwatch; the exit status, or none when it was stopped.
fn watched(args: &[String], dir: &Path) -> (Ran, Option<i32>, f64, u64) {
    let watch = concat!(env!("CARGO_MANIFEST_DIR"), "/src/limits.py");
    let limit = CLOCK_MAX.to_string();
    let mut ran = tool("python3").args([watch, &limit]).arg(binary()).args(args).dir(dir).run();
    let (err, last) = ran.err.trim_end().rsplit_once('\n').unwrap_or(("", ran.err.trim_end()));
    let words: Vec<&str> = last.strip_prefix("limits: ").unwrap().split(' ').collect();
    let (status, seconds, kib) =
        (words[0].parse().ok(), words[1].parse().unwrap(), words[2].parse().unwrap());
    ran.err = if err.is_empty() { String::new() } else { format!("{err}\n") };
    ran.status = status.unwrap_or(-1);
    (ran, status, seconds, kib)
}

/// All files of a folder with their content.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect()
}

/// Runs one line of a case's expectations; what is wrong.
fn attack(case: &Case, expect: &Value) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images");
    std::fs::create_dir(&folder).unwrap();
    case.unpack(&folder);
    std::fs::write(dir.path().join("secret"), "secret").unwrap();
    let image = &case.images()[0];
    let image = case.images().iter().find(|n| n.starts_with("image.")).unwrap_or(image).clone();
    let args: Vec<String> = expect["run"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| match a.as_str().unwrap() {
            "IMAGE" => image.clone(),
            "OUT" => "../out".into(),
            other => other.into(),
        })
        .collect();
    let before = content(&folder);
    let (ran, status, seconds, kib) = watched(&args, &folder);
    let mut wrong = Vec::new();
    let mut check = |sound: bool, what: String| {
        if !sound {
            wrong.push(format!("{}: {what}\n{ran}", case.name));
        }
    };
    check(status.is_some(), "it had to be stopped".into());
    check(seconds < SECONDS_MAX, format!("it took {seconds} s"));
    check(kib < MEMORY_MAX, format!("it took {kib} KiB"));
    match expect["exit"].as_i64() {
        Some(exit) => check(i64::from(ran.status) == exit, format!("status {exit} was to come")),
        None => check(matches!(ran.status, 0 | 1), "neither done nor refused".into()),
    }
    if let Some(words) = expect.get("words").and_then(Value::as_str) {
        check(ran.err.contains(words), format!("{words:?} was to be said"));
    }
    if ran.status == 1 {
        let plain = std::panic::catch_unwind(|| ran.told_plainly());
        check(plain.is_ok(), "the refusal is not one line of racker's".into());
        check(!dir.path().join("out").exists(), "an output was left".into());
    }
    let escapes = |bytes: &[u8]| bytes.iter().any(|b| *b == 0x1b || *b == 7);
    check(
        !escapes(&ran.out) && !escapes(ran.err.as_bytes()),
        "control characters reached the terminal".into(),
    );
    check(content(&folder) == before, "the image's folder has changed".into());
    if let Ok(out) = std::fs::read(dir.path().join("out")) {
        let leaked = out.windows(5).take(4096).any(|w| w == b"root:") || out.starts_with(b"secret");
        check(!leaked, "another file's content is in the output".into());
    }
    wrong
}

#[test]
fn every_attack_is_refused() {
    let mut wrong = Vec::new();
    for case in group("attacks") {
        for line in case.text("expect").unwrap().lines() {
            wrong.extend(attack(&case, &serde_json::from_str(line).unwrap()));
        }
    }
    assert!(wrong.is_empty(), "{} attacks succeed\n\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_symbolic_link_does_not_lead_out() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(dir.path().join("secret"), vec![b's'; 1 << 20]).unwrap();
    std::os::unix::fs::symlink("../secret", folder.join("base.raw")).unwrap();
    let image = folder.join("image.qcow2");
    // -u: the link is only named.
    let create = tool("qemu-img").args(["create", "-q", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw"]);
    create.arg(&image).arg("1M").ok();
    let out = dir.path().join("out");
    let ran = racker_tests::tool::racker().args(["disk", "convert"]).arg(&image).arg(&out).run();
    assert!(ran.failed().contains("symbolic link"), "{ran}");
    assert!(!out.exists());
    let ran = racker_tests::tool::racker()
        .args(["disk", "convert", "--allow-external"])
        .arg(&image)
        .arg(&out)
        .run();
    assert_eq!(ran.status, 0, "{ran}");
    assert_eq!(std::fs::read(&out).unwrap(), vec![b's'; 1 << 20]);
}
