//! Volumes with as many clusters as a type can have, and what others leave on a volume that racker would not.

use std::os::unix::fs::FileExt;

use racker_formats::check::Report;
use racker_fs::filesystem::{Filesystem, New, NewKind};
use racker_tests::image::scratch;
use racker_tests::tool::tool;

use super::{Volume, at, driver, name};

const FILE: New<'static> = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
const NOW: i64 = 1_700_000_000;

/// Little-endian numbers of a volume.
struct Bytes(std::fs::File);

impl Bytes {
    fn of(volume: &Volume) -> Self {
        Self(std::fs::File::options().read(true).write(true).open(&volume.0).unwrap())
    }

    fn number(&self, at: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes[..len], at).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, at).unwrap();
    }

    /// The place of bytes that are there once.
    fn find(&self, what: &[u8]) -> u64 {
        let mut all = vec![0; self.0.metadata().unwrap().len() as usize];
        self.0.read_exact_at(&mut all, 0).unwrap();
        let places: Vec<_> = (0..all.len()).filter(|i| all[*i..].starts_with(what)).collect();
        assert_eq!(places.len(), 1);
        places[0] as u64
    }
}

/// The number of clusters says which type it is: at each limit, the last cluster is taken and given back.
#[test]
fn each_type_has_as_many_clusters_as_it_can() {
    for (options, kib, clusters, kind) in [
        ("-F 12 -s 1 -r 512", 2060, 4084u64, "fat12"),
        ("-F 16 -s 1 -r 512", 2400, 4085, "fat16"),
        ("-F 16 -s 1 -r 512", 33_020, 65_524, "fat16"),
        ("-F 32 -s 1", 33_400, 65_525, "fat32"),
    ] {
        let dir = scratch();
        let volume = Volume::make(dir.path(), options, kib);
        let bytes = Bytes::of(&volume);
        let fat_sectors = match bytes.number(22, 2) {
            0 => bytes.number(36, 4),
            sectors => sectors,
        };
        let before = bytes.number(14, 2) + bytes.number(16, 1) * fat_sectors + bytes.number(17, 2) * 32 / 512;
        let total = u32::try_from(before + clusters).unwrap();
        // mkfs stays below the limits; its tables have room for as much.
        assert!(fat_sectors * 512 * 8 >= (clusters + 2) * kind[3..].parse::<u64>().unwrap(), "{options}");
        bytes.0.set_len(u64::from(total) * 512).unwrap();
        let short = u16::try_from(total).unwrap_or(0).to_le_bytes();
        let backup = if kind == "fat32" { vec![0, 6] } else { vec![0] };
        for sector in backup {
            bytes.put(sector * 512 + 19, if kind == "fat32" { &[0, 0] } else { &short });
            bytes.put(
                sector * 512 + 32,
                &if short == [0, 0] || kind == "fat32" { total } else { 0 }.to_le_bytes(),
            );
        }
        if kind == "fat32" {
            bytes.put(512 + 488, &u32::try_from(clusters - 1).unwrap().to_le_bytes());
        }
        volume.is_clean(options);
        let facts = volume.open().facts().unwrap();
        assert_eq!((facts.features[0].as_str(), facts.size), (kind, u64::from(total) * 512));
        let size = facts.free;
        assert_eq!(size / 512, clusters - u64::from(kind == "fat32"));
        volume.change(|w| {
            let root = w.filesystem().root();
            let file = w.create(root, &name("all"), &FILE, at(NOW)).unwrap();
            w.truncate(file, size, at(NOW)).unwrap();
            w.write(file, size - 600, &[0x5a; 600], at(NOW)).unwrap();
            let more = w.create(root, &name("more"), &FILE, at(NOW)).unwrap();
            assert!(w.write(more, 0, b"x", at(NOW)).is_err());
        });
        volume.is_clean(&format!("{options}, full"));
        let copy = tool("mtype").arg("-i").arg(&volume.0).arg("::all").run();
        assert!(copy.status == 0 && copy.out.len() as u64 == size && copy.out.ends_with(&[0x5a; 600]));
        volume.change(|w| w.unlink(w.filesystem().root(), &name("all"), at(NOW)).unwrap());
        volume.is_clean(&format!("{options}, empty"));
    }
}

/// Linux, with names in UTF-8, tells `É` from `é`. To Windows and to racker they are one name, and each is reached by
/// its own letters.
#[test]
fn names_that_only_others_tell_apart_are_reached() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 16 -s 1", 3000);
    volume.change(|w| {
        let root = w.filesystem().root();
        for text in ["é.text", "È.text", "ß.text", "ss.text"] {
            let file = w.create(root, &name(text), &FILE, at(NOW)).unwrap();
            w.write(file, 0, text.as_bytes(), at(NOW)).unwrap();
        }
    });
    let bytes = Bytes::of(&volume);
    let place = bytes.find(&[0x41, 0xc8, 0, b'.', 0, b't', 0, b'e', 0]);
    bytes.put(place + 1, &[0xc9]);
    volume.is_clean("with two names that are one");
    let read = |fs: &dyn Filesystem, text: &str| {
        let mut found = [0; 16];
        let file = fs.lookup(fs.root(), &name(text)).unwrap()?;
        let len = fs.read(file, 0, &mut found).unwrap();
        Some(String::from_utf8(found[..len].to_vec()).unwrap())
    };
    let told =
        |fs: &dyn Filesystem| ["é.text", "É.text", "ß.text", "ss.text", "SS.TEXT"].map(|text| read(fs, text));
    let each = ["é.text", "È.text", "ß.text", "ss.text", "ss.text"].map(|text| Some(text.to_string()));
    assert_eq!(told(&*volume.open()), each);
    volume.change(|w| {
        assert_eq!(told(&**w.filesystem()), each);
        let root = w.filesystem().root();
        let other = w.filesystem().lookup(root, &name("É.text")).unwrap().unwrap();
        w.write(other, 0, b"other", at(NOW)).unwrap();
        w.unlink(root, &name("é.text"), at(NOW)).unwrap();
    });
    let fs = volume.open();
    assert_eq!(read(&*fs, "É.text").unwrap(), "otherxt");
    assert_eq!(read(&*fs, "é.text"), read(&*fs, "É.text"));
    volume.is_clean("with one of them gone");
}

/// What lies behind a table's last entry says nothing.
#[test]
fn tables_end_with_their_last_cluster() {
    let dir = scratch();
    for (options, kib) in [("-F 12 -s 1", 1440), ("-F 16 -s 1", 20_000), ("-F 32 -s 1", 34_000)] {
        let volume = Volume::make(dir.path(), options, kib);
        let bytes = Bytes::of(&volume);
        let fat_sectors =
            bytes.number(22, 2).max(if bytes.number(22, 2) == 0 { bytes.number(36, 4) } else { 0 });
        let first_end = (bytes.number(14, 2) + fat_sectors) * 512;
        bytes.put(first_end - 1, &[0xab]);
        if tool("fsck.vfat").arg("-n").arg(&volume.0).run().status != 0 {
            // The last byte is one of the last cluster's.
            assert!(volume.refused().unwrap().contains("the tables differ"), "{options}");
            continue;
        }
        volume.change(|w| {
            w.create(w.filesystem().root(), &name("a"), &FILE, at(NOW)).unwrap();
        });
        volume.is_clean(options);
    }
}

/// Where a volume contradicts itself, nothing on it is called free, and nothing is freed.
#[test]
fn doubtful_space_is_not_free() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 16 -s 1 -f 1", 3000);
    volume.change(|w| {
        let file = w.create(w.filesystem().root(), &name("FILE"), &FILE, at(NOW)).unwrap();
        w.write(file, 0, &[7; 2000], at(NOW)).unwrap();
    });
    let bytes = Bytes::of(&volume);
    let free = || volume.open().free_space(&mut |_| Ok(std::ops::ControlFlow::Continue(())));
    assert!(free().unwrap());
    // The second cluster of the file.
    let link = bytes.number(14, 2) * 512 + 2 * 3;
    let was = bytes.number(link, 2);
    bytes.put(link, &[0, 0]);
    assert!(free().unwrap_err().to_string().contains("leads to a free cluster"));
    bytes.put(link, &was.to_le_bytes()[..2]);
    // A damaged attribute makes a label of the file.
    let entry = bytes.find(b"FILE       ");
    bytes.put(entry + 11, &[0x28]);
    let before = std::fs::read(&volume.0).unwrap();
    let mut report = Report { repair: true, ..Report::default() };
    driver().check(volume.disk(true), &mut report).unwrap();
    let told: Vec<_> = report.findings.iter().map(|f| (f.what.as_str(), f.repaired)).collect();
    assert!(told.iter().any(|(what, _)| what.contains("a label with clusters")), "{told:?}");
    assert!(told.iter().all(|(_, repaired)| !repaired) && std::fs::read(&volume.0).unwrap() == before);
}
