//! The fixtures themselves: whole, of known origin, and small.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use racker_fixtures::root;
use racker_tests::manifest::hex;
use sha2::{Digest, Sha256};

/// All files of all cases, as `group/case/file`.
fn files() -> Vec<PathBuf> {
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().path()).collect::<Vec<_>>()
    };
    let groups = list(root()).into_iter().filter(|p| p.is_dir() && !p.ends_with("mk") && !p.ends_with("src"));
    let cases = groups.flat_map(|g| list(&g));
    let mut files: Vec<PathBuf> = cases.flat_map(|c| list(&c)).collect();
    files.sort();
    files
}

#[test]
fn checksums_are_those_of_the_manifest() {
    let manifest = std::fs::read_to_string(root().join("MANIFEST")).unwrap();
    let listed: BTreeMap<&str, &str> =
        manifest.lines().map(|l| l.split_once("  ").unwrap()).map(|(a, b)| (b, a)).collect();
    let mut there = BTreeMap::new();
    for path in files() {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        there.insert(name, hex(&Sha256::digest(std::fs::read(&path).unwrap())));
    }
    let there: BTreeMap<&str, &str> = there.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(there, listed, "fixtures/mk/seal.sh writes MANIFEST");
}

#[test]
fn every_case_tells_its_origin() {
    for folder in files().iter().map(|f| f.parent().unwrap()).collect::<std::collections::BTreeSet<_>>() {
        let origin = std::fs::read_to_string(folder.join("origin")).unwrap_or_default();
        let script = origin.lines().find_map(|l| l.strip_prefix("script: "));
        let script = script.unwrap_or_else(|| panic!("{} does not say who made it", folder.display()));
        assert!(root().join("..").join(script).is_file(), "{}: {script} is not there", folder.display());
    }
}

#[test]
fn all_together_are_small() {
    let bytes: u64 = files().iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(bytes < 10 << 20, "{bytes} bytes");
}
