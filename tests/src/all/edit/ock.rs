//! The image that racker exists for: a boot entry, files of an ostree deployment.

use std::os::unix::fs::PermissionsExt;

use racker_tests::mount::Mounted;
use racker_tests::rng::Rng;
use racker_tests::tool::{binary, tool};

use super::{CONTENT, Patient, cat, deployment, only_content_changed, only_separated};

const ENTRY: &str = "/loader/entries/ostree-1-ock.conf";
const REPLACE: [&str; 3] = ["--replace", "ignition.platform.id=qemu", "ignition.platform.id=vmware"];

/// Edits the boot entry and compares both filesystems.
fn boot_entry(name: &str) {
    let patient = Patient::new(name);
    let before = patient.trees();
    let old = String::from_utf8(cat(&patient.image, ENTRY)).unwrap();
    let ran = patient.edit(ENTRY, &REPLACE);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{ran}");
    let new = old.replace(REPLACE[1], REPLACE[2]);
    assert_ne!(old, new);
    let after = patient.trees_after(2);
    let path = "loader.1/entries/ostree-1-ock.conf";
    only_content_changed(&before[&2], &after[&2], path, new.as_bytes());
    before[&3].assert_same(&after[&3], "the root before / after an edit of the boot partition");
    ostree_is_sound(&patient);
}

/// `ostree fsck` on the root filesystem.
fn ostree_is_sound(patient: &Patient) {
    let (raw, parts) = patient.raw();
    let part = parts.iter().find(|(number, _)| *number == 3).unwrap().1;
    let root = Mounted::writable(&raw, part);
    tool("ostree").arg("fsck").arg("--repo").arg(root.join("ostree/repo")).ok();
}

/// Gives a file of the deployment's /etc new content; its blocks are shared with the repository's.
fn etc_file(name: &str, path: &str) {
    let patient = Patient::new(name);
    let before = patient.trees();
    let old = cat(&patient.image, path);
    let new = [b"# edited\n".as_slice(), &old].concat();
    patient.put(path, &new, &[]);
    let after = patient.trees_after(3);
    let on_root = format!("{}{path}", deployment(&before[&3]));
    only_content_changed(&before[&3], &after[&3], &on_root, &new);
    before[&2].assert_same(&after[&2], "the boot partition before / after an edit of the root");
    ostree_is_sound(&patient);
}

#[test]
fn entry() {
    boot_entry("ock/boot");
}

#[test]
fn entry_where_the_root_has_a_log_to_replay() {
    boot_entry("ock/dirty");
}

#[test]
fn entry_with_meta_uuid() {
    boot_entry("ock/meta-uuid");
}

#[test]
fn shared_extents() {
    etc_file("ock/boot", "/etc/ssh/sshd_config");
}

#[test]
fn file_of_a_root_with_a_log_to_replay() {
    etc_file("ock/dirty", "/etc/hostname");
}

#[test]
fn file_of_a_root_with_meta_uuid() {
    etc_file("ock/meta-uuid", "/etc/shadow");
}

#[test]
fn unprivileged() {
    let patient = Patient::new("ock/boot");
    // The build's folder may be closed to others.
    let copy = patient.dir.path().join("racker");
    std::fs::copy(binary(), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    tool("chown").args(["-R", "65534:65534"]).arg(patient.dir.path()).ok();
    let before = patient.trees();
    let nobody = tool("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    nobody.arg(&copy).args(["disk", "edit"]).arg(&patient.image).arg(ENTRY).args(REPLACE).ok();
    let new = cat(&patient.image, ENTRY);
    assert!(String::from_utf8(new.clone()).unwrap().contains(REPLACE[2]));
    let after = patient.trees_after(2);
    only_content_changed(&before[&2], &after[&2], "loader.1/entries/ostree-1-ock.conf", &new);
    before[&3].assert_same(&after[&3], "the root before / after");
}

#[test]
fn hard_link_gets_a_node_of_its_own() {
    let patient = Patient::new("ock/boot");
    let before = patient.trees();
    let ran = patient.put("/usr/lib/os-release", b"ID=other\n", &[]);
    assert!(ran.err.contains("hard links"), "the user is told: {ran}");
    let after = patient.trees_after(3);
    let path = format!("{}/usr/lib/os-release", deployment(&before[&3]));
    only_separated(&before[&3], &after[&3], &path, b"ID=other\n");
    ostree_is_sound(&patient);
}

#[test]
fn keep_links_writes_through() {
    let patient = Patient::new("ock/boot");
    let before = patient.trees();
    patient.put("/usr/lib/os-release", b"ID=other\n", &["--keep-links"]);
    let after = patient.trees_after(3);
    let path = format!("{}/usr/lib/os-release", deployment(&before[&3]));
    let first = before[&3].field(&path, "first").clone();
    let links: Vec<&String> =
        before[&3].paths().filter(|p| before[&3].get(p).get("first") == Some(&first)).collect();
    assert!(links.len() > 1);
    let rest = |m: &racker_tests::manifest::Manifest| {
        links.iter().fold(m.clone(), |m, link| m.drop_fields_of(link, &CONTENT))
    };
    rest(&before[&3]).assert_same(&rest(&after[&3]), "before / after");
    for link in links {
        assert_eq!(after[&3].field(link, "size"), 9, "{link}");
    }
}

#[test]
fn grows_to_300_mb_and_shrinks_to_nothing() {
    let patient = Patient::new("ock/boot");
    let before = patient.trees();
    let path = format!("{}/etc/hostname", deployment(&before[&3]));
    let mut large = vec![0; 300_000_000];
    Rng::new(300).fill(&mut large);
    patient.put("/etc/hostname", &large, &[]);
    let grown = patient.trees_after(3);
    only_content_changed(&before[&3], &grown[&3], &path, &large);
    patient.put("/etc/hostname", b"", &[]);
    let after = patient.trees_after(3);
    only_content_changed(&before[&3], &after[&3], &path, b"");
    before[&2].assert_same(&after[&2], "the boot partition before / after");
}

#[test]
fn many_edits_in_a_row() {
    let patient = Patient::new("ock/boot");
    let before = patient.trees();
    for i in 0..100 {
        let pair = [
            format!("platform.id={}", ["qemu", "vmware-esx"][i % 2]),
            format!("platform.id={}", ["vmware-esx", "qemu"][i % 2]),
        ];
        let ran = patient.edit(ENTRY, &["--replace", &pair[0], &pair[1]]);
        assert_eq!(ran.status, 0, "edit {i}: {ran}");
    }
    let after = patient.trees_after(2);
    let new = cat(&patient.image, ENTRY);
    only_content_changed(&before[&2], &after[&2], "loader.1/entries/ostree-1-ock.conf", &new);
    let size = patient.image.metadata().unwrap().len();
    assert!(size < 4 << 20, "freed clusters are used again: {size} bytes");
}
