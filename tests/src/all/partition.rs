//! Partition tables of sgdisk and sfdisk, sound and damaged, against what sfdisk read.

use std::path::Path;

use racker_fixtures::{Case, case, group};
use racker_formats::block::{Disk, FileDevice};
use racker_fs::partition::{self, Table};
use serde_json::Value;

fn read(case: &Case, dir: &Path) -> Table {
    case.unpack(dir);
    let file = std::fs::File::open(dir.join("image.raw")).unwrap();
    let disk = Disk::new(FileDevice::new(file, false).unwrap());
    partition::read(&disk).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

#[test]
fn tables_read_as_sfdisk_reads_them() {
    for case in group("partition") {
        let dir = tempfile::tempdir().unwrap();
        let table = read(&case, dir.path());
        let expect: Value = serde_json::from_str(&case.text("expect").unwrap()).unwrap();
        let same = |a: &str, b: &Value| a.eq_ignore_ascii_case(b.as_str().unwrap().trim_start_matches("0x"));
        let name = &case.name;
        assert_eq!(table.scheme, expect["scheme"], "{name}");
        assert_eq!(table.sector_size, expect["sector"], "{name}");
        assert!(same(table.id.as_deref().unwrap(), &expect["id"]), "{name}: {:?}", table.id);
        let expected = expect["partitions"].as_array().unwrap();
        assert_eq!(table.partitions.len(), expected.len(), "{name}: {table:#?}");
        for (found, expected) in table.partitions.iter().zip(expected) {
            let sector = u64::from(table.sector_size);
            assert_eq!(found.number, expected["number"], "{name}");
            assert_eq!(found.span.start(), expected["start"].as_u64().unwrap() * sector, "{name}: {found:?}");
            // An extended partition is a container whatever its size.
            assert_eq!(found.span.len(), expected["size"].as_u64().unwrap() * sector, "{name}: {found:?}");
            let kind = match found.type_id.strip_prefix("0x") {
                Some(byte) => byte.trim_start_matches('0'),
                None => &found.type_id,
            };
            assert!(same(kind, &expected["type"]), "{name}: {found:?}");
            if let Some(id) = expected["uuid"].as_str() {
                assert!(found.id.as_deref().unwrap().eq_ignore_ascii_case(id), "{name}: {found:?}");
            }
            assert_eq!(
                found.label.as_deref().unwrap_or(""),
                expected["name"].as_str().unwrap_or(""),
                "{name}"
            );
            assert_eq!(
                found.bootable,
                expected["bootable"].as_bool().unwrap() || found.attributes & 4 != 0,
                "{name}"
            );
        }
    }
}

#[test]
fn damage_is_told() {
    for (name, sound) in [
        ("gpt", true),
        ("gpt-4096", true),
        ("gpt-many", true),
        ("gpt-256-byte-entries", true),
        ("mbr", true),
        ("gpt-no-primary", false),
        ("gpt-bad-entries", false),
        ("gpt-no-backup", false),
        ("gpt-grown", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let table = read(&case(&format!("partition/{name}")), dir.path());
        assert_eq!(table.warnings.is_empty(), sound, "{name}: {:?}", table.warnings);
    }
}
