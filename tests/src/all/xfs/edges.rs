//! What random operations seldom reach: large directories, files in many pieces, no space, shared and unwritten
//! blocks.

use racker_formats::block::Span;
use racker_formats::error::Kind;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Name, New, NewKind, NodeId, Time};
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use super::model::{Model, Node};
use super::play::Style;
use super::{Image, STYLE, is_clean};

const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn new(kind: NewKind<'_>) -> New<'_> {
    New { kind, mode: 0o644, uid: 0, gid: 0 }
}

fn file(fs: &mut Writer<'_>, called: &str) -> NodeId {
    let root = fs.root();
    fs.create(root, &name(called), &new(NewKind::File), NOW).unwrap()
}

/// A directory that grows to `count` entries and shrinks again to none, in pieces of random order.
fn grows_and_shrinks(size: &str, options: &str, count: usize, steps: usize) {
    let image = Image::new(size, options);
    let mut rng = Rng::new(count as u64);
    let mut model = image.read(Model::new);
    let root = model.root;
    let (dir, one) = image.edit(|fs| {
        let dir = fs.create(NodeId(root), &name("d"), &new(NewKind::Dir), NOW).unwrap();
        model.add(root, &name("d"), dir.0, Node::new(NewKind::Dir, 0o644, (0, 0), NOW, root), NOW);
        let one = file(fs, "one");
        model.add(root, &name("one"), one.0, Node::new(NewKind::File, 0o644, (0, 0), NOW, root), NOW);
        (dir, one)
    });
    let mut names: Vec<Name> = (0..count)
        .map(|i| {
            let tail = "y".repeat(if i % 97 == 0 { 240 } else { i % 23 });
            name(&format!("{:x}-{tail}", (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20))
        })
        .collect();
    for part in names.chunks(count.div_ceil(steps)) {
        image.edit(|fs| {
            for name in part {
                fs.link(one, dir, name, NOW).unwrap();
                model.link(one.0, dir.0, name, NOW);
            }
        });
        image.read(|fs| model.assert_is(fs, &mut rng));
        is_clean(&image.path);
    }
    for i in (1..names.len()).rev() {
        names.swap(i, rng.below(i as u64 + 1) as usize);
    }
    for part in names.chunks(count.div_ceil(steps)) {
        image.edit(|fs| {
            for name in part {
                fs.unlink(dir, name, NOW).unwrap();
                model.unlink(dir.0, name, NOW);
            }
        });
        image.read(|fs| model.assert_is(fs, &mut rng));
        is_clean(&image.path);
    }
    image.read(|fs| assert_eq!(fs.stat(dir).unwrap().size, 6, "back inside its inode"));
}

#[test]
fn a_directory_grows_and_shrinks() {
    grows_and_shrinks("400M", "-b size=1024 -m rmapbt=1", 6000, 3);
}

#[test]
fn a_directory_of_large_blocks_grows_and_shrinks() {
    grows_and_shrinks("400M", "-n size=16384", 4000, 2);
}

/// `cargo test -p racker-tests --release -- --ignored a_directory_of_100_000_entries`
#[test]
#[ignore = "takes a minute"]
fn a_directory_of_100_000_entries() {
    grows_and_shrinks("1G", "", 100_000, 4);
    grows_and_shrinks("1G", "-b size=1024", 100_000, 4);
}

/// A file of thousands of pieces: its extents become a tree, which grows, shrinks and goes.
#[test]
fn a_file_in_many_pieces() {
    for options in ["-b size=1024 -m rmapbt=1", "-i nrext64=1"] {
        let image = Image::new("400M", options);
        let mut rng = Rng::new(7);
        let mut model = image.read(Model::new);
        let root = model.root;
        let id = image.edit(|fs| file(fs, "f"));
        model.add(root, &name("f"), id.0, Node::new(NewKind::File, 0o644, (0, 0), NOW, root), NOW);
        let data = vec![0x5a; 5000];
        for round in 0..4u64 {
            image.edit(|fs| {
                for i in 0..1500u64 {
                    let at = match round {
                        0 => i * 3 * 4096,
                        1 => rng.below(1500) * 3 * 4096 + 4096,
                        _ => rng.below(1500 * 3 * 4096),
                    };
                    let node = model.get_mut(id.0);
                    if round < 2 || rng.below(3) == 0 {
                        let data = &data[..if round < 2 { 4096 } else { 5000 }];
                        fs.write(id, at, data, NOW).unwrap();
                        node.write(at, data);
                    } else {
                        let len = 1 + rng.below(40_000);
                        let end = (at + len).min(node.size);
                        fs.punch(id, Span::new(at, len).unwrap(), NOW).unwrap();
                        node.zero(at, end.max(at));
                    }
                }
            });
            image.read(|fs| model.assert_is(fs, &mut rng));
            is_clean(&image.path);
        }
        for size in [9_000_000, 100_000, 5_000_000, 30_000] {
            image.edit(|fs| fs.truncate(id, size, NOW).unwrap());
            model.get_mut(id.0).truncate(size);
            image.read(|fs| model.assert_is(fs, &mut rng));
            is_clean(&image.path);
        }
        image.edit(|fs| fs.unlink(NodeId(root), &name("f"), NOW).unwrap());
        is_clean(&image.path);
    }
}

/// Pieces behind each other lie in one extent, and one call does not depend on how many there were.
#[test]
fn a_file_that_is_appended_to_lies_in_a_row() {
    let image = Image::new("400M", "");
    let data = vec![1; 64 << 10];
    let extents = image.edit(|fs| {
        let (one, other) = (file(fs, "one"), file(fs, "other"));
        for i in 0..400u64 {
            fs.write(one, i * (64 << 10), &data, NOW).unwrap();
        }
        for i in 0..400u64 {
            fs.write(other, i * (64 << 10), &data, NOW).unwrap();
        }
        let mut count = 0;
        fs.extents(one, &mut |_| {
            count += 1;
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        count
    });
    assert!(extents <= 2, "{extents} extents");
    is_clean(&image.path);
}

/// Files until nothing fits: nothing is half there, and what goes makes room again.
fn fills_up(options: &str, size: u64) {
    let image = Image::new("48M", options);
    let mut rng = Rng::new(size);
    let mut model = image.read(Model::new);
    let root = model.root;
    let free = image.read(|fs| fs.facts().unwrap().free);
    let mut data = vec![0; size as usize];
    rng.fill(&mut data);
    let mut files = Vec::new();
    image.edit(|fs| {
        for i in 0..200_000u64 {
            let name = name(&format!("file-{i}-{}", "z".repeat((i % 50) as usize)));
            match fs.create(NodeId(root), &name, &new(NewKind::File), NOW) {
                Ok(id) => {
                    let node = Node::new(NewKind::File, 0o644, (0, 0), NOW, root);
                    model.add(root, &name, id.0, node, NOW);
                    files.push((name, id));
                    if size == 0 {
                        continue;
                    }
                    match fs.write(id, 0, &data, NOW) {
                        Ok(()) => model.get_mut(id.0).write(0, &data),
                        Err(e) => {
                            assert_eq!(e.kind(), Kind::NoSpace);
                            let big = fs.replace(id, Content { reader: &mut data.as_slice(), size }, NOW);
                            assert_eq!(big.unwrap_err().kind(), Kind::NoSpace);
                            break;
                        }
                    }
                }
                Err(e) => {
                    assert_eq!(e.kind(), Kind::NoSpace);
                    break;
                }
            }
        }
        let last = files.last().unwrap().1;
        let value = vec![1; 60_000];
        for i in 0..2000 {
            let name = format!("user.{i}").into_bytes();
            match fs.set_xattr(last, &name, Some(&value), NOW) {
                Ok(()) => drop(model.get_mut(last.0).xattrs.insert(name, value.clone())),
                Err(e) => {
                    assert_eq!(e.kind(), Kind::NoSpace);
                    break;
                }
            }
        }
    });
    image.read(|fs| model.assert_is(fs, &mut rng));
    is_clean(&image.path);
    image.edit(|fs| {
        for (i, (name, id)) in files.iter().enumerate() {
            if i % 3 == 0 && size > 0 {
                fs.truncate(*id, 0, NOW).unwrap();
            }
            fs.unlink(NodeId(root), name, NOW).unwrap();
        }
    });
    is_clean(&image.path);
    let now = image.read(|fs| fs.facts().unwrap().free);
    assert!(now + (256 << 10) >= free, "{now} of {free} bytes are free again");
}

#[test]
fn a_full_filesystem() {
    fills_up("-l size=16m -d agcount=2 -m rmapbt=1", 300_000);
    fills_up("-b size=1024 -n size=8192", 3000);
}

#[test]
fn no_inode_left() {
    fills_up("-l size=16m -i maxpct=2", 0);
    fills_up("-l size=16m -i maxpct=1,sparse=0 -m finobt=0,inobtcount=0", 0);
}

/// Blocks that several files share, and blocks that were never written, made by the kernel.
#[test]
fn shared_and_unwritten_blocks() {
    for (seed, options) in [(1, "-m rmapbt=1"), (2, "-b size=1024")] {
        let image = Image::new("400M", options);
        {
            let mounted = Mounted::writable(&image.path, WHOLE);
            let script = "for i in 1 2 3; do dd if=/dev/urandom of=f$i bs=1000 count=900 status=none; done; \
                          for i in 1 2 3; do cp --reflink=always f$i c$i; cp --reflink=always f$i d$i; done; \
                          for i in 1 2 3 4; do fallocate -l 700K u$i; fallocate -l 900K -n f$i || true; done; \
                          dd if=/dev/urandom of=u2 bs=4096 seek=20 count=3 conv=notrunc status=none; \
                          fallocate -l 3M -n u3; fallocate -p -o 40000 -l 50000 c2; sync";
            tool("bash").args(["-ec", script]).dir(mounted.path()).ok();
        }
        let mut rng = Rng::new(seed);
        let mut model = image.read(Model::new);
        let root = NodeId(model.root);
        image.read(|fs| {
            for called in ["f1", "f2", "f3", "f4", "c1", "c2", "c3", "d1", "d2", "d3", "u1", "u2", "u3", "u4"]
            {
                let Some(id) = fs.lookup(root, &name(called)).unwrap() else { continue };
                let stat = fs.stat(id).unwrap();
                let mut node = Node::new(NewKind::File, stat.mode, (0, 0), stat.mtime, root.0);
                let mut all = vec![0; stat.size as usize];
                fs.read(id, 0, &mut all).unwrap();
                node.write(0, &all);
                model.add(root.0, &name(called), id.0, node, stat.mtime);
            }
            model.get_mut(root.0).mtime = fs.stat(root).unwrap().mtime;
            model.assert_is(fs, &mut rng);
        });
        let mut player = image.player(seed, STYLE);
        player.model = model;
        image.play(&mut player, 6, 60);
        image.pass_on();
    }
}

/// Attributes push what lies in the inode out of it, whatever that is.
#[test]
fn attributes_need_room() {
    let image = Image::new("400M", "");
    let target = vec![b't'; 330];
    image.edit(|fs| {
        let root = fs.root();
        let link = fs.create(root, &name("link"), &new(NewKind::Link(&target)), NOW).unwrap();
        let dir = fs.create(root, &name("dir"), &new(NewKind::Dir), NOW).unwrap();
        let pieces = file(fs, "pieces");
        let many = file(fs, "many");
        for i in 0..16 {
            fs.create(dir, &name(&format!("entry-{i:06}")), &new(NewKind::File), NOW).unwrap();
            fs.write(pieces, i * 20_000, b"piece", NOW).unwrap();
        }
        for i in 0..3000 {
            fs.write(many, i * 9000, b"piece", NOW).unwrap();
        }
        let fifo = fs.create(root, &name("fifo"), &new(NewKind::Fifo), NOW).unwrap();
        for (node, len) in [(link, 40), (dir, 100), (pieces, 200), (many, 250), (fifo, 3000)] {
            fs.set_xattr(node, b"trusted.first", Some(&vec![b'v'; len]), NOW).unwrap();
            fs.set_xattr(node, b"security.second", Some(&[b'w'; 30]), NOW).unwrap();
        }
        let list = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255,
            255, 8, 0, 6, 0, 50, 0, 0, 0, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
        ];
        fs.set_xattr(pieces, b"system.posix_acl_access", Some(&list), NOW).unwrap();
        fs.set_xattr(dir, b"system.posix_acl_default", Some(&list), NOW).unwrap();
        fs.set_xattr(link, b"trusted.first", None, NOW).unwrap();
        fs.set_xattr(fifo, b"trusted.first", None, NOW).unwrap();
    });
    is_clean(&image.path);
    let ours = image.read(Manifest::of_filesystem);
    let theirs = {
        let mounted = Mounted::read_only(&image.path, WHOLE);
        Manifest::of_folder(mounted.path())
    };
    theirs.assert_same(&ours, "kernel / racker");
    assert!(ours.field("pieces", "xattrs").get("system.posix_acl_access").is_some());
    assert_eq!(ours.field("link", "xattrs").as_object().map_or(0, serde_json::Map::len), 1);
}

/// Plants 30,000 files of 1 GB with all that a tree of an operating system has, and says how long it took; the
/// kernel does the same on a mounted copy.
/// `cargo test -p racker-tests --release -- --ignored --nocapture a_tree_of_thirty_thousand_files`
#[test]
#[ignore = "measures"]
fn a_tree_of_thirty_thousand_files() {
    let mut data = vec![0; 4 << 20];
    Rng::new(5).fill(&mut data);
    let size = |i: usize| [300, 2000, 5000, 9000, 20_000, 60_000, 3000, 180_000][i % 8] + i % 777;
    let image = Image::new("4G", "");
    let started = std::time::Instant::now();
    image.edit(|fs| {
        let mut dir = fs.root();
        for i in 0..30_000 {
            if i % 12 == 0 {
                let root = fs.root();
                let above = if i % 240 == 0 { root } else { dir };
                dir = fs.create(above, &name(&format!("dir-{i}")), &new(NewKind::Dir), NOW).unwrap();
            }
            let called = name(&format!("a-file-with-a-name-{i}.txt"));
            let id = fs.create(dir, &called, &new(NewKind::File), NOW).unwrap();
            for (piece, at) in data[i % 1000..][..size(i)].chunks(64 << 10).zip((0..).step_by(64 << 10)) {
                fs.write(id, at, piece, NOW).unwrap();
            }
            let change = Change { mode: Some(0o755), mtime: Some(NOW), uid: Some(3), ..Change::default() };
            fs.set_attributes(id, &change, NOW).unwrap();
            fs.set_xattr(id, b"security.selinux", Some(b"system_u:object_r:usr_t:s0\0"), NOW).unwrap();
        }
        println!("racker, until it is closed: {:?}", started.elapsed());
    });
    println!("racker, until it has landed: {:?}", started.elapsed());
    is_clean(&image.path);
    let other = Image::new("4G", "");
    let started = std::time::Instant::now();
    {
        let mounted = Mounted::writable(&other.path, WHOLE);
        let mut dir = mounted.path().to_path_buf();
        for i in 0..30_000 {
            if i % 12 == 0 {
                let above = if i % 240 == 0 { mounted.path() } else { &dir };
                dir = above.join(format!("dir-{i}"));
                std::fs::create_dir(&dir).unwrap();
            }
            let path = dir.join(format!("a-file-with-a-name-{i}.txt"));
            std::fs::write(&path, &data[i % 1000..][..size(i)]).unwrap();
            std::os::unix::fs::chown(&path, Some(3), Some(0)).unwrap();
        }
    }
    tool("sync").args(["-f"]).arg(&other.path).ok();
    println!("kernel: {:?}", started.elapsed());
}

#[test]
fn names_of_few_hashes() {
    names_of_hashes(60);
}

/// `xfs_repair` takes for damage what the kernel, too, makes of more names of one hash than a leaf has room for.
#[test]
fn names_of_one_hash() {
    names_of_hashes(1200);
}

/// Names of which `each` have the same hash: the lowest bit of one byte and the highest of the next meet in it.
fn names_of_hashes(each: u32) {
    let image = Image::new("400M", "-b size=1024");
    let mut rng = Rng::new(11);
    let mut model = image.read(Model::new);
    let root = model.root;
    let mut names: Vec<Name> = (0..1200u32)
        .map(|i| {
            let mut bytes = *b"acegikmoqsuwyacegikmoq-0";
            bytes[23] += (i / each) as u8;
            let i = i % each;
            for bit in (0..11).filter(|bit| i >> bit & 1 == 1) {
                bytes[2 * bit] ^= 1;
                bytes[2 * bit + 1] ^= 0x80;
            }
            Name::new(&bytes).unwrap()
        })
        .collect();
    let judge = |image: &Image| {
        if each < 100 {
            return is_clean(&image.path);
        }
        let mounted = Mounted::read_only(&image.path, WHOLE);
        let theirs = Manifest::of_folder(mounted.path());
        theirs.assert_same(&image.read(Manifest::of_filesystem), "kernel / racker");
    };
    let one = image.edit(|fs| file(fs, "one"));
    model.add(root, &name("one"), one.0, Node::new(NewKind::File, 0o644, (0, 0), NOW, root), NOW);
    image.edit(|fs| {
        for name in &names {
            fs.link(one, NodeId(root), name, NOW).unwrap();
            model.link(one.0, root, name, NOW);
        }
    });
    image.read(|fs| model.assert_is(fs, &mut rng));
    judge(&image);
    for i in (1..names.len()).rev() {
        names.swap(i, rng.below(i as u64 + 1) as usize);
    }
    for part in names.chunks(500) {
        image.edit(|fs| {
            for name in part {
                fs.unlink(NodeId(root), name, NOW).unwrap();
                model.unlink(root, name, NOW);
            }
        });
        image.read(|fs| model.assert_is(fs, &mut rng));
        judge(&image);
    }
}

/// Inode numbers beyond 32 bits, in directories inside their inodes too.
#[test]
fn wide_inode_numbers() {
    let image = Image::new("8T", "-l size=64m");
    {
        let mounted = Mounted::writable(&image.path, WHOLE);
        let script = "mkdir d1 d2 d3 d4 d5 d6 d7 d8; for d in d*; do echo $d > $d/file; mkdir $d/sub; done";
        tool("bash").args(["-ec", script]).dir(mounted.path()).ok();
    }
    let mut player = image.player(3, STYLE);
    player.model = image.read(Model::load);
    assert!(player.model.nodes.keys().any(|id| *id > u64::from(u32::MAX)));
    image.play(&mut player, 3, 100);
    image.pass_on();
}

/// Files that end, and have pieces, terabytes behind their beginning.
#[test]
fn pieces_far_apart() {
    let image = Image::new("400M", "-m rmapbt=1");
    let mut player = image.player(4, Style { reach: 1 << 43, ..STYLE });
    image.play(&mut player, 3, 120);
}

#[test]
fn times_that_inodes_cannot_hold() {
    for (options, holds) in [("-m bigtime=0,inobtcount=0", false), ("", true)] {
        let image = Image::new("400M", options);
        let late = Time { sec: 1 << 33, nsec: 1 };
        image.edit(|fs| {
            let id = file(fs, "late");
            let change = Change { mtime: Some(late), ..Change::default() };
            match fs.set_attributes(id, &change, NOW) {
                Ok(()) => assert!(holds && fs.stat(id).unwrap().mtime == late),
                Err(e) => assert!(!holds && e.kind() == Kind::Unsupported),
            }
        });
        is_clean(&image.path);
    }
}

/// Two files that grow in turns lie in thousands of pieces: the last ones take no longer than the first.
/// `cargo test -p racker-tests --release -- --ignored --nocapture growing_in_turns_stays_linear`
#[test]
#[ignore = "measures"]
fn growing_in_turns_stays_linear() {
    let image = Image::new("400M", "");
    let data = vec![7; 4096];
    let times = image.edit(|fs| {
        let files = [file(fs, "one"), file(fs, "other")];
        let mut times = Vec::new();
        for part in 0..4u64 {
            let started = std::time::Instant::now();
            for i in part * 2000..(part + 1) * 2000 {
                for id in files {
                    fs.write(id, i * 4096, &data, NOW).unwrap();
                }
            }
            times.push(started.elapsed());
        }
        times
    });
    println!("{times:?}");
    assert!(times[3] < times[0] * 8, "{times:?}");
    is_clean(&image.path);
}
