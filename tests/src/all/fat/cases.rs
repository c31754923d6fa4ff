//! Things that random operations meet too rarely, or cannot tell.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use racker_formats::block::{Disk, MemDevice};
use racker_formats::error::Kind;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Filesystem, Name, New, NewKind, NodeId, NodeKind, Time};
use racker_tests::image::scratch;
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use super::{Volume, at, driver, name};

const FILE: New<'static> = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
const DIR: New<'static> = New { kind: NewKind::Dir, ..FILE };
const NOW: i64 = 1_700_000_000;

fn root(writer: &Writer<'_>) -> NodeId {
    writer.filesystem().root()
}

/// Makes files in the root directory that hold their names.
fn fill(volume: &Volume, names: &[&str]) {
    volume.change(|w| {
        for text in names {
            let file = w.create(root(w), &name(text), &FILE, at(NOW)).unwrap();
            w.write(file, 0, text.as_bytes(), at(NOW)).unwrap();
        }
    });
}

fn names(fs: &dyn Filesystem, dir: NodeId) -> Vec<String> {
    let mut names = Vec::new();
    fs.read_dir(dir, &mut |entry| {
        names.push(String::from_utf8(entry.name.as_bytes().to_vec()).unwrap());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    names
}

/// What `mdir -b` or `mdir` says.
fn mdir(volume: &Volume, path: &str) -> String {
    tool("mdir").arg("-i").arg(&volume.0).arg(path).ok()
}

#[test]
fn short_names_are_those_of_windows() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 16 -s 1 -r 2048", 3000);
    fill(
        &volume,
        &[
            "README.TXT",
            "lower.txt",
            "Mixed.txt",
            "long file name 1.text",
            "long file name 2.text",
            "long file name 3.text",
            "long file name 4.text",
            "long file name 5.text",
            ".bashrc",
            "a+b=c",
            "ünï.txt",
        ],
    );
    volume.is_clean("names");
    let listing = mdir(&volume, "::/");
    for short in [
        "README   TXT",
        "lower    txt",
        "MIXED    TXT",
        "LONGFI~1 TEX",
        "LONGFI~2 TEX",
        "LONGFI~3 TEX",
        "LONGFI~4 TEX",
        "BASHRC~1",
        "A_B_C~1",
        "_N_~1    TXT",
    ] {
        assert!(listing.contains(short), "{short}: {listing}");
    }
    assert!(listing.contains("LO") && !listing.contains("LONGFI~5"), "{listing}");
    // A short name leads there too, and stands in the way of others.
    let bytes = tool("mtype").arg("-i").arg(&volume.0).arg("::/LONGFI~2.TEX").ok();
    assert_eq!(bytes, "long file name 2.text");
    volume.change(|w| {
        let taken = w.create(root(w), &name("longfi~2.tex"), &FILE, at(NOW)).unwrap_err();
        assert_eq!(taken.kind(), Kind::Exists);
        // Names that begin alike by the hundred.
        for number in 0..300 {
            w.create(root(w), &name(&format!("long file name number {number}.text")), &FILE, at(NOW))
                .unwrap();
        }
        for bad in ["a.", "b ", "a:b", "a\tb", &"x".repeat(256)] {
            let refused = w.create(root(w), &name(bad), &FILE, at(NOW)).unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
        }
        let not_text = Name::new(b"\xff").unwrap();
        assert_eq!(w.create(root(w), &not_text, &FILE, at(NOW)).unwrap_err().kind(), Kind::Invalid);
    });
    volume.is_clean("hundreds of names");
    let all = volume.open();
    assert_eq!(names(all.as_ref(), all.root()).len(), 311);
}

#[test]
fn the_longest_names_and_another_case() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 32 -s 1", 34_000);
    let longest = ["é".repeat(255), "x".repeat(255), "😀".repeat(127) + "y"];
    let texts: Vec<&str> = longest.iter().map(String::as_str).collect();
    fill(&volume, &texts);
    volume.is_clean("longest names");
    let fs = volume.open();
    assert_eq!(names(fs.as_ref(), fs.root()), texts);
    fill(&volume, &["readme.txt"]);
    volume.change(|w| {
        let dir = root(w);
        let node = w.filesystem().lookup(dir, &name("README.TXT")).unwrap().unwrap();
        for text in ["README.TXT", "ReadMe.txt", "readme.txt", "Readme.TXT"] {
            w.rename((dir, &name("rEADME.tXT")), (dir, &name(text)), at(NOW)).unwrap();
            assert_eq!(names(w.filesystem().as_ref(), dir).last().unwrap(), text);
            assert_eq!(w.filesystem().lookup(dir, &name(text)).unwrap(), Some(node));
        }
    });
    volume.is_clean("another case");
    assert!(mdir(&volume, "::/").contains("Readme.TXT"));
}

/// Whatever does not fit changes nothing at all.
#[test]
fn what_is_full_stays_as_it_is() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 16 -s 1 -r 32", 3000);
    let size = volume.change(|w| {
        let file = w.create(root(w), &name("big"), &FILE, at(NOW)).unwrap();
        let sub = w.create(root(w), &name("sub"), &DIR, at(NOW)).unwrap();
        for number in 0..6 {
            // Two and fourteen entries of 16 in the directory's only cluster.
            w.create(sub, &name(&format!("f{number}")), &FILE, at(NOW)).unwrap();
        }
        let free = w.filesystem().facts().unwrap().free;
        w.truncate(file, free, at(NOW)).unwrap();
        free
    });
    volume.is_clean("full");
    assert_eq!(volume.open().facts().unwrap().free, 0);
    let before = std::fs::read(&volume.0).unwrap();
    volume.change(|w| {
        let find = |dir, text| w.filesystem().lookup(dir, &name(text)).unwrap().unwrap();
        let (top, file) = (root(w), find(root(w), "big"));
        let sub = find(top, "sub");
        let f0 = find(sub, "f0");
        let long = name(&"n".repeat(150));
        let content = |reader| racker_fs::filesystem::Content { reader, size: size + 1 };
        let mut zeroes = std::io::repeat(0);
        for done in [
            w.create(top, &name("dir"), &DIR, at(NOW)).map(drop),
            w.create(sub, &long, &FILE, at(NOW)).map(drop),
            w.write(f0, 0, b"1", at(NOW)),
            w.write(file, size, b"1", at(NOW)),
            w.truncate(f0, 1, at(NOW)),
            w.replace(file, content(&mut zeroes), at(NOW)),
            w.rename((top, &name("big")), (sub, &long), at(NOW)),
            w.create(top, &name(&"r".repeat(255)), &FILE, at(NOW))
                .and_then(|_| w.create(top, &name(&"s".repeat(255)), &FILE, at(NOW)).map(drop)),
        ]
        .into_iter()
        .take(7)
        {
            assert_eq!(done.unwrap_err().kind(), Kind::NoSpace);
        }
        let too_large = w.truncate(file, 1 << 32, at(NOW)).unwrap_err();
        assert_eq!(too_large.kind(), Kind::Invalid, "{too_large}");
        let _ = w.unlink(top, &name(&"r".repeat(255)), at(NOW));
    });
    let after = std::fs::read(&volume.0).unwrap();
    let differs = |from: usize| before[from..].iter().zip(&after[from..]).filter(|(a, b)| a != b).count();
    // Only the room of one removed entry in the root directory was written.
    assert!(differs(0) <= 32 * 21, "{} bytes", differs(0));
    volume.is_clean("after what did not fit");
    // The fixed root directory has 32 entries: the label, and these.
    volume.change(|w| {
        let top = root(w);
        w.unlink(top, &name("big"), at(NOW)).unwrap();
        let mut made = 0;
        let full = loop {
            match w.create(top, &name(&format!("f{made}")), &FILE, at(NOW)) {
                Ok(_) => made += 1,
                Err(e) => break e,
            }
        };
        assert_eq!((full.kind(), made), (Kind::NoSpace, 30));
        // A name that needs no more than the old one has room.
        w.rename((top, &name("f0")), (top, &name("g0")), at(NOW)).unwrap();
        assert_eq!(
            w.rename((top, &name("f1")), (top, &name("Longer Name")), at(NOW)).unwrap_err().kind(),
            Kind::NoSpace
        );
    });
    volume.is_clean("a full root directory");
}

#[test]
fn a_directory_ends_at_65536_entries() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 32 -s 1", 36_000);
    let text = |number: usize| format!("{number:0>240}");
    let made = volume.change(|w| {
        let sub = w.create(root(w), &name("sub"), &DIR, at(NOW)).unwrap();
        let mut made = 0;
        loop {
            match w.create(sub, &name(&text(made)), &FILE, at(NOW)) {
                Ok(_) => made += 1,
                Err(e) => {
                    assert_eq!(e.kind(), Kind::NoSpace);
                    return made;
                }
            }
        }
    });
    // 19 entries for 240 letters, and one for the short name.
    assert_eq!(made, (65536 - 2) / 20);
    volume.is_clean("65536 entries");
    volume.change(|w| {
        let sub = w.filesystem().lookup(root(w), &name("sub")).unwrap().unwrap();
        for number in (0..made).step_by(2) {
            w.unlink(sub, &name(&text(number)), at(NOW)).unwrap();
        }
        for number in 0..made / 2 {
            w.create(sub, &name(&text(number + made)), &FILE, at(NOW)).unwrap();
        }
    });
    volume.is_clean("entries that are used again");
}

#[test]
fn times_and_attributes_are_kept_as_far_as_fat_goes() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 12", 1440);
    volume.change(|w| {
        let birth = Time { sec: NOW + 1, nsec: 987_654_321 };
        let file = w.create(root(w), &name("f"), &FILE, birth).unwrap();
        w.write(file, 0, b"x", Time { sec: NOW + 101, nsec: 5 }).unwrap();
        let stat = w.filesystem().stat(file).unwrap();
        assert_eq!(stat.crtime, Some(Time { sec: NOW + 1, nsec: 980_000_000 }));
        assert_eq!((stat.mtime, stat.atime.sec), (at(NOW + 100), NOW / 86400 * 86400));
        let change =
            Change { mode: Some(0o444), mtime: Some(at(0)), atime: Some(at(1 << 40)), ..Change::default() };
        w.set_attributes(file, &change, at(NOW)).unwrap();
        let stat = w.filesystem().stat(file).unwrap();
        assert_eq!((stat.mode, stat.mtime.sec, stat.atime.sec), (0o555, 315_532_800, 4_354_732_800));
        for what in [
            w.set_attributes(file, &Change { uid: Some(5), ..Change::default() }, at(NOW)),
            w.set_xattr(file, b"user.x", Some(b"1"), at(NOW)),
            w.link(file, root(w), &name("g"), at(NOW)),
            w.create(root(w), &name("l"), &New { kind: NewKind::Link(b"f"), ..FILE }, at(NOW)).map(drop),
        ] {
            assert_eq!(what.unwrap_err().kind(), Kind::Unsupported);
        }
        // The root has no entry for attributes.
        w.set_attributes(root(w), &Change { mode: Some(0o700), ..Change::default() }, at(NOW)).unwrap();
    });
    volume.is_clean("attributes");
    let said = tool("mattrib").arg("-i").arg(&volume.0).arg("::/f").ok();
    assert!(said.contains('R') && said.contains('A'), "{said}");
}

/// FAT32 can say that one table counts, and the others are not kept.
#[test]
fn the_active_table_alone_is_written() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 32 -s 1", 34_000);
    let file = std::fs::File::options().read(true).write(true).open(&volume.0).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).unwrap();
        u32::from_le_bytes(bytes)
    };
    let (reserved, sectors) = (u64::from(word(14) & 0xffff), u64::from(word(36)));
    let table = |number: u64| {
        let mut bytes = vec![0; sectors as usize * 512];
        file.read_exact_at(&mut bytes, (reserved + number * sectors) * 512).unwrap();
        bytes
    };
    for sector in [0, 6] {
        file.write_all_at(&[0x81, 0], sector * 512 + 40).unwrap();
    }
    let before = [table(0), table(1)];
    fill(&volume, &["one", "two"]);
    assert!(table(0) == before[0] && table(1) != before[1]);
    let fs = volume.open();
    let mut found = [0; 9];
    let one = fs.lookup(fs.root(), &name("one")).unwrap().unwrap();
    assert_eq!((fs.read(one, 0, &mut found).unwrap(), &found[..3]), (3, &b"one"[..]));
    // FSInfo: free clusters, and where the last one was taken.
    assert_eq!(u64::from(word(512 + 488)), fs.facts().unwrap().free / 512);
    assert_eq!(word(512 + 492), 4);
}

#[test]
fn the_mark_of_a_volume_that_was_not_closed_stays() {
    for (options, kib, state, table) in [("-F 16 -s 1", 3000, 37u64, 3u64), ("-F 32 -s 1", 34_000, 65, 7)] {
        let dir = scratch();
        let volume = Volume::make(dir.path(), options, kib);
        let file = std::fs::File::options().read(true).write(true).open(&volume.0).unwrap();
        let byte = |at: u64| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        };
        let reserved = u64::from(byte(14)) + u64::from(byte(15)) * 256;
        let mark = reserved * 512 + table;
        file.write_all_at(&[1], state).unwrap();
        let sectors = if state == 37 {
            u64::from(byte(22)) + u64::from(byte(23)) * 256
        } else {
            u64::from(byte(36)) + u64::from(byte(37)) * 256
        };
        for copy in [mark, mark + sectors * 512] {
            file.write_all_at(&[byte(mark) & if state == 37 { 0x7f } else { 0xf7 }], copy).unwrap();
        }
        let was = byte(mark);
        fill(&volume, &["a", "b"]);
        assert_eq!((byte(state), byte(mark)), (1, was));
        // That is all that the checker has to say.
        let said = tool("fsck.vfat").arg("-n").arg(&volume.0).run().text();
        assert!(said.contains("Dirty bit is set") && said.contains("3 files"), "{said}");
        let fs = volume.open();
        assert!(fs.facts().unwrap().features.contains(&"dirty".to_string()));
    }
}

/// Damage by which a change of one file would harm another one.
#[test]
fn what_is_unsound_is_not_written() {
    let dir = scratch();
    let volume = Volume::make(dir.path(), "-F 16 -s 1 -f 1", 3000);
    volume.change(|w| {
        let top = root(w);
        let sub = w.create(top, &name("sub"), &DIR, at(NOW)).unwrap();
        let below = w.create(sub, &name("below"), &DIR, at(NOW)).unwrap();
        for (dir, text) in [(top, "one"), (sub, "two"), (below, "three")] {
            let file = w.create(dir, &name(text), &FILE, at(NOW)).unwrap();
            w.write(file, 0, &[7; 2000], at(NOW)).unwrap();
        }
    });
    volume.is_clean("before the damage");
    let good = std::fs::read(&volume.0).unwrap();
    let word = |at: usize| usize::from(good[at]) + 256 * usize::from(good[at + 1]);
    let (reserved, sectors, entries) = (word(14), word(22), word(17));
    let (table, top) = (reserved * 512, (reserved + sectors) * 512);
    let data = top + entries * 32;
    let cluster = |number: usize| data + (number - 2) * 512;
    // Clusters: 2 sub, 3 below, 4 to 7 one, 8 to 11 two, 12 to 15 three.
    let link = |number: usize| table + 2 * number;
    let slot = |dir: usize, number: usize| dir + 32 * number + 26;
    let cases: &[(&str, usize, u16, &str)] = &[
        ("two chains meet", link(4), 10, "cluster 0xa is in two chains"),
        ("a loop", link(6), 5, "cluster 0x5 is in two chains"),
        ("a chain to a free cluster", link(7), 900, "leads to a free cluster"),
        ("a chain out of the filesystem", link(7), 0xffef, "leads to cluster 0xffef"),
        ("a file in another's middle", slot(top, 2), 9, "the middle of a chain"),
        ("two files of one chain", slot(top, 2), 8, "as another does"),
        ("a file that begins with a free cluster", slot(top, 2), 900, "free or bad"),
        ("a file without clusters", slot(top, 2), 0, "has no clusters"),
        ("a directory within itself", slot(cluster(2), 2), 2, "as another does"),
        (". leads elsewhere", slot(cluster(3), 0), 2, "is not \".\""),
        (".. leads elsewhere", slot(cluster(3), 1), 3, "is not \"..\""),
        ("no .", cluster(3), 0x20e5, "is not \".\""),
        ("no ..", cluster(3) + 32, 0x2000, "is not \"..\""),
        ("an entry behind the end", cluster(3) + 32 * 9, 0x4141, "behind its directory's end"),
    ];
    assert_eq!(volume.refused(), None);
    for (what, place, value, words) in cases {
        let mut bad = good.clone();
        bad[*place..place + 2].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&volume.0, &bad).unwrap();
        let said = volume.refused().unwrap_or_else(|| panic!("{what}: it was opened"));
        assert!(said.contains(words), "{what}: {said}");
        assert!(std::fs::read(&volume.0).unwrap() == bad);
    }
    std::fs::write(&volume.0, &good[..good.len() - (64 << 10)]).unwrap();
    assert!(volume.refused().unwrap().contains("its volume"));
    // Tables that differ.
    let volume = Volume::make(dir.path(), "-F 16 -s 1", 3000);
    let mut bad = std::fs::read(&volume.0).unwrap();
    bad[table + 3000] ^= 1;
    std::fs::write(&volume.0, &bad).unwrap();
    assert!(volume.refused().unwrap().contains("the tables differ"));
}

/// Bytes of tables and directories are turned over. What is still opened is used, and does no harm to files that
/// nobody touched.
#[test]
fn noise_does_no_harm() {
    let dir = scratch();
    let mut opened = 0;
    for (number, (options, kib)) in
        (0u64..).zip([("-F 12", 1440), ("-F 16 -s 1", 3000), ("-F 32 -s 1 -f 1", 2000)])
    {
        let volume = Volume::make(dir.path(), options, kib);
        let rng = &mut Rng::new(40 + number);
        volume.change(|w| {
            let mut dirs = vec![root(w)];
            for number in 0..40u64 {
                let dir = dirs[rng.below(dirs.len() as u64) as usize];
                if number % 5 == 0 {
                    dirs.push(w.create(dir, &name(&format!("Dir {number}")), &DIR, at(NOW)).unwrap());
                    continue;
                }
                let file = w.create(dir, &name(&format!("A file {number}")), &FILE, at(NOW)).unwrap();
                let mut bytes = vec![0; rng.below(4000) as usize];
                rng.fill(&mut bytes);
                w.write(file, 0, &[&[1], &bytes[..]].concat(), at(NOW)).unwrap();
            }
        });
        let good = std::fs::read(&volume.0).unwrap();
        let used: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0 && *at < good.len() / 6).collect();
        for _ in 0..400 {
            let mut bytes = good.clone();
            for _ in 0..1 + rng.below(3) {
                let at = used[rng.below(used.len() as u64) as usize];
                bytes[at] = [0, 0xe5, 0xff, bytes[at] ^ 1, rng.number() as u8][rng.below(5) as usize];
            }
            opened += u32::from(survives(bytes, rng));
        }
    }
    assert!(opened > 100, "{opened}");
}

/// Everything that can be reached, by path: what it is, and its bytes.
fn tree(fs: &dyn Filesystem) -> Vec<(String, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    let mut waiting = vec![(String::new(), fs.root())];
    while let Some((path, dir)) = waiting.pop() {
        let mut entries = Vec::new();
        let _ = fs.read_dir(dir, &mut |entry| {
            entries.push(entry);
            Ok(ControlFlow::Continue(()))
        });
        for entry in entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(entry.name.as_bytes()));
            if entry.kind == Some(NodeKind::Dir) {
                waiting.push((path.clone(), entry.node));
                all.push((path, None));
            } else {
                let mut bytes = vec![0; 5000];
                let len = fs.read(entry.node, 0, &mut bytes).unwrap_or(usize::MAX);
                bytes.truncate(len);
                all.push((path, Some(bytes)));
            }
        }
    }
    all.sort();
    all
}

fn survives(bytes: Vec<u8>, rng: &mut Rng) -> bool {
    let disk = Disk::new(MemDevice::from_bytes(bytes));
    let Ok(before) = driver().open(disk.clone()) else { return false };
    let before = tree(before.as_ref());
    let Ok(mut fs) = driver().open_mut(disk.clone()) else { return false };
    let top = fs.root();
    let mut touched = Vec::new();
    for number in 0..20 {
        let now = at(NOW + number);
        let mut found = None;
        let skip = rng.below(8);
        let mut seen = 0;
        let _ = fs.read_dir(top, &mut |entry| {
            seen += 1;
            found = Some(entry);
            Ok(if seen > skip { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        let Some(entry) = found else { break };
        let path = format!("/{}", String::from_utf8_lossy(entry.name.as_bytes()));
        let is_file = entry.kind == Some(NodeKind::File);
        // What has the same name twice can be either.
        let there = fs.lookup(top, &entry.name).ok().flatten() == Some(entry.node);
        touched.push(path);
        let done = match rng.below(5) {
            0 if is_file => fs.write(entry.node, rng.below(9000), &[9; 3000], now),
            1 if is_file => fs.truncate(entry.node, rng.below(9000), now),
            2 if is_file && there => fs.unlink(top, &entry.name, now),
            3 if there => fs.rename((top, &entry.name), (top, &name(&format!("renamed {number}"))), now),
            _ => fs.create(top, &name(&format!("made {number}")), &FILE, now).map(drop),
        };
        match done {
            Err(e) if !matches!(e.kind(), Kind::NoSpace | Kind::Invalid | Kind::Unsupported) => return true,
            _ => {}
        }
    }
    fs.close().unwrap();
    let after = tree(driver().open(disk.clone()).unwrap().as_ref());
    let untouched = |path: &str| !touched.iter().any(|t| path == t || path.starts_with(&format!("{t}/")));
    let ours = |path: &str| path.starts_with("/made ") || path.starts_with("/renamed ");
    for entry in before.iter().filter(|(path, _)| untouched(path)) {
        assert!(after.contains(entry), "{} changed", entry.0);
    }
    for entry in after.iter().filter(|(path, _)| untouched(path) && !ours(path)) {
        assert!(before.contains(entry), "{} came from nowhere", entry.0);
    }
    // What was sound stays sound.
    driver().open_mut(disk).unwrap();
    true
}
