//! Filesystems that `xfs_db` damaged, one thing at a time. What racker's check says is put beside what
//! `xfs_repair -n` says; and every edit of them is refused, or makes nothing worse.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use racker_formats::block::Span;
use racker_formats::check::Report;
use racker_formats::error::Result;
use racker_formats::open::OpenOptions;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Filesystem, Name, New, NewKind, NodeId, Time};
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::tool::tool;
use tempfile::TempDir;

use super::check::findings;
use super::{Image, driver, is_clean, open_when_free};

const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };

/// What is damaged: a name, and commands of `xfs_db` with `{path}` for the number of an inode.
pub(super) const DAMAGES: &[(&str, &str)] = &[
    ("sb icount", "sb 0; write -d icount 4711"),
    ("sb ifree", "sb 0; write -d ifree 3"),
    ("sb fdblocks too high", "sb 0; write -d fdblocks 9000"),
    ("sb fdblocks too low", "sb 0; write -d fdblocks 3000"),
    ("sb rootino", "sb 0; write -d rootino 131"),
    ("sb agblocks", "sb 0; write -d agblocks 6000"),
    ("sb unknown incompat", "sb 0; write -d features_incompat 0x8000000f"),
    ("sb needsrepair", "sb 0; write -d features_incompat 0x1b"),
    ("sb logstart", "sb 0; write -d logstart 100"),
    ("sb magic", "sb 0; write -d magicnum 1"),
    ("sb lsn", "sb 0; write -d lsn 0x7700000001"),
    ("second sb dblocks", "sb 1; write -d dblocks 100"),
    ("second sb magic", "sb 1; write -d magicnum 0"),
    ("second sb garbage", "sb 1; blocktrash -z -n 50 -3 -s 2"),
    ("agf magic", "agf 0; write -d magicnum 1"),
    ("agf length", "agf 0; write -d length 100"),
    ("agf seqno", "agf 1; write -d seqno 0"),
    ("agf bnoroot", "agf 0; write -d bnoroot 77"),
    ("agf cntlevel", "agf 0; write -d cntlevel 3"),
    ("agf flfirst", "agf 0; write -d flfirst 2"),
    ("agf flcount", "agf 0; write -d flcount 1"),
    ("agf freeblks too high", "agf 0; write -d freeblks 5000"),
    ("agf freeblks too low", "agf 0; write -d freeblks 50"),
    ("agf longest too high", "agf 0; write -d longest 4444"),
    ("agf longest too low", "agf 0; write -d longest 10"),
    ("agf btreeblks", "agf 0; write -d btreeblks 3"),
    ("agf uuid", "agf 0; write -d uuid 00000000-1111-2222-3333-444444444444"),
    ("agf rmaproot", "agf 0; write -d rmaproot 77"),
    ("agf rmapblocks", "agf 0; write -d rmapblocks 99"),
    ("agf refcntblocks", "agf 0; write -d refcntblocks 99"),
    ("agf refcntroot", "agf 0; write -d refcntroot 77"),
    ("agf crc", "agf 0; write -c freeblks 1"),
    ("agi magic", "agi 0; write -d magicnum 1"),
    ("agi count", "agi 0; write -d count 64"),
    ("agi freecount", "agi 0; write -d freecount 1"),
    ("agi root", "agi 0; write -d root 99"),
    ("agi free_root", "agi 0; write -d free_root 99"),
    ("agi iblocks", "agi 0; write -d ino_blocks 9"),
    ("agi fblocks", "agi 0; write -d fino_blocks 9"),
    ("agi unlinked a used inode", "agi 0; write -d unlinked[5] 139"),
    ("agi unlinked nonsense", "agi 0; write -d unlinked[5] 5"),
    (
        "agfl slot in use",
        "agfl 0; write -d bno[0] 16; write -d bno[1] 16; write -d bno[2] 16; write -d bno[3] 16; write -d bno[4] 16",
    ),
    (
        "agfl slot out of range",
        "agfl 0; write -d bno[0] 99999999; write -d bno[1] 99999999; write -d bno[2] 99999999",
    ),
    ("agfl magic", "agfl 0; write -d magicnum 1"),
    ("bnobt record longer", "agf 0; addr bnoroot; write -d recs[1].blockcount 60"),
    ("bnobt record shorter", "agf 0; addr bnoroot; write -d recs[6].blockcount 2"),
    ("bnobt record elsewhere", "agf 0; addr bnoroot; write -d recs[1].startblock 30"),
    ("bnobt magic", "agf 0; addr bnoroot; write -d magic 0x41423343"),
    ("bnobt numrecs", "agf 0; addr bnoroot; write -d numrecs 1"),
    ("bnobt level", "agf 0; addr bnoroot; write -d level 1"),
    ("bnobt owner", "agf 0; addr bnoroot; write -d owner 1"),
    ("bnobt blkno", "agf 0; addr bnoroot; write -d bno 16"),
    ("bnobt garbage", "agf 0; addr bnoroot; blocktrash -z -n 400 -3 -s 2"),
    ("cntbt record", "agf 0; addr cntroot; write -d recs[1].blockcount 3"),
    ("cntbt numrecs", "agf 0; addr cntroot; write -d numrecs 1"),
    (
        "both free trees",
        "agf 0; addr bnoroot; write -d recs[1].startblock 25; agf 0; addr cntroot; write -d recs[1].startblock 25",
    ),
    ("inobt freecount", "agi 0; addr root; write -d recs[1].freecount 9"),
    ("inobt free mask", "agi 0; addr root; write -d recs[1].free 0xffffffffffff"),
    ("inobt used as free", "agi 0; addr root; write -d recs[2].free 0xff00000000000fff"),
    ("inobt startino", "agi 0; addr root; write -d recs[1].startino 1024"),
    ("inobt numrecs", "agi 0; addr root; write -d numrecs 1"),
    ("inobt holemask", "agi 0; addr root; write -d recs[1].holemask 0xff"),
    ("inobt magic", "agi 0; addr root; write -d magic 1"),
    ("finobt free mask", "agi 0; addr free_root; write -d recs[1].free 0xffff"),
    ("finobt numrecs", "agi 0; addr free_root; write -d numrecs 0"),
    ("finobt magic", "agi 0; addr free_root; write -d magic 1"),
    ("rmapbt owner", "agf 0; addr rmaproot; addr ptrs[1]; write -d recs[5].owner 139"),
    ("rmapbt blockcount", "agf 0; addr rmaproot; addr ptrs[1]; write -d recs[6].blockcount 2"),
    ("rmapbt numrecs", "agf 0; addr rmaproot; addr ptrs[1]; write -d numrecs 70"),
    ("rmapbt root keys", "agf 0; addr rmaproot; write -d keys[2].startblock 1"),
    ("rmapbt offset", "agf 0; addr rmaproot; addr ptrs[1]; write -d recs[9].offset 77"),
    ("refcountbt count", "agf 0; addr refcntroot; addr ptrs[1]; write -d recs[1].refcount 9"),
    ("refcountbt startblock", "agf 0; addr refcntroot; addr ptrs[1]; write -d recs[1].startblock 30"),
    ("refcountbt numrecs", "agf 0; addr refcntroot; addr ptrs[1]; write -d numrecs 130"),
    ("inode magic", "inode {files/100k}; write -d core.magic 1"),
    ("inode mode zero", "inode {files/100k}; write -d core.mode 0"),
    ("inode mode kind", "inode {files/100k}; write -d core.mode 0120644"),
    ("inode size of a file", "inode {files/100k}; write -d core.size 0x8000000000000000"),
    ("inode nlink", "inode {files/100k}; write -d core.nlinkv2 5"),
    ("inode nlink zero", "inode {files/100k}; write -d core.nlinkv2 0"),
    ("inode nblocks", "inode {files/100k}; write -d core.nblocks 7"),
    ("inode nextents", "inode {files/1M}; write -d core.nextents 0"),
    ("inode format", "inode {files/100k}; write -d core.format 3"),
    ("inode local file", "inode {files/one}; write -d core.format 1"),
    ("inode forkoff", "inode {xattr/few}; write -d core.forkoff 63"),
    ("inode aformat", "inode {xattr/few}; write -d core.aformat 3"),
    ("inode flags2", "inode {files/100k}; write -d v3.flags2 0xff00"),
    ("inode lost reflink", "inode {files/100k}; write -d v3.reflink 0"),
    ("inode realtime", "inode {files/100k}; write -d core.realtime 1"),
    ("inode number", "inode {files/100k}; write -d v3.inumber 99"),
    ("inode uuid", "inode {files/100k}; write -d v3.uuid 00000000-1111-2222-3333-444444444444"),
    ("inode next_unlinked", "inode {files/100k}; write -d next_unlinked 77"),
    ("inode crc", "inode {files/100k}; write -c core.size 1"),
    ("inode lsn", "inode {files/100k}; write -d v3.lsn 0x7700000001"),
    ("free inode magic", "agi 1; inode {special/null}; write -d core.magic 1"),
    ("extent start in use", "inode {files/1M}; write -d u3.bmx[0].startblock 16"),
    ("extent start in another file", "inode {files/4097}; write -d u3.bmx[0].startblock 40"),
    ("extent start free", "inode {files/1M}; write -d u3.bmx[0].startblock 2500"),
    ("extent start out of range", "inode {files/1M}; write -d u3.bmx[0].startblock 9999999"),
    ("extent longer", "inode {files/1M}; write -d u3.bmx[0].blockcount 300"),
    ("extent unwritten", "inode {files/1M}; write -d u3.bmx[0].extentflag 1"),
    ("extent tree level", "inode {extents/fragmented}; write -d u3.bmbt.level 2"),
    ("extent tree pointer", "inode {extents/fragmented}; write -d u3.bmbt.ptrs[1] 77"),
    ("extent tree numrecs", "inode {extents/fragmented}; addr u3.bmbt.ptrs[1]; write -d numrecs 10"),
    (
        "extent tree record",
        "inode {extents/fragmented}; addr u3.bmbt.ptrs[1]; write -d recs[3].startblock 20",
    ),
    ("extent tree sibling", "inode {extents/fragmented}; addr u3.bmbt.ptrs[1]; write -d rightsib 20"),
    ("extent tree owner", "inode {extents/fragmented}; addr u3.bmbt.ptrs[1]; write -d owner 20"),
    ("short directory parent", "inode {files}; write -d u3.sfdir3.hdr.parent.i4 139"),
    ("short directory entry", "inode {files}; write -d u3.sfdir3.list[3].inumber.i4 4711"),
    ("short directory entry to a free inode", "inode {files}; write -d u3.sfdir3.list[3].inumber.i4 190"),
    ("short directory kind", "inode {files}; write -d u3.sfdir3.list[3].filetype 2"),
    ("short directory count", "inode {files}; write -d u3.sfdir3.hdr.count 3"),
    ("short directory offset", "inode {files}; write -d u3.sfdir3.list[3].offset 1"),
    ("block directory entry", "inode {dirs/d60}; dblock 0; write -d bu[5].inumber 4711"),
    ("block directory kind", "inode {dirs/d60}; dblock 0; write -d bu[5].filetype 2"),
    ("block directory name", "inode {dirs/d60}; dblock 0; write -d bu[5].name \"a/b\""),
    ("block directory tag", "inode {dirs/d60}; dblock 0; write -d bu[5].tag 8"),
    ("block directory dot", "inode {dirs/d60}; dblock 0; write -d bu[0].inumber 139"),
    ("block directory dotdot", "inode {dirs/d60}; dblock 0; write -d bu[1].inumber 131"),
    ("block directory leaf hash", "inode {dirs/d60}; dblock 0; write -d bleaf[5].hashval 1"),
    ("block directory leaf address", "inode {dirs/d60}; dblock 0; write -d bleaf[5].address 1"),
    ("block directory bests", "inode {dirs/d60}; dblock 0; write -d bhdr.bestfree[0].length 8"),
    ("block directory stale", "inode {dirs/d60}; dblock 0; write -d btail.stale 3"),
    ("block directory owner", "inode {dirs/d60}; dblock 0; write -d bhdr.hdr.owner 3"),
    ("directory size", "inode {dirs/d60}; write -d core.size 8192"),
    ("leaf directory hash", "inode {dirs/d300}; dblock 8388608; write -d lents[5].hashval 1"),
    ("leaf directory address", "inode {dirs/d300}; dblock 8388608; write -d lents[5].address 9"),
    ("leaf directory bests", "inode {dirs/d300}; dblock 8388608; write -d lbests[1] 9"),
    ("leaf directory count", "inode {dirs/d300}; dblock 8388608; write -d lhdr.count 9"),
    ("leaf directory data entry", "inode {dirs/d300}; dblock 1; write -d du[5].inumber 4711"),
    ("leaf directory data magic", "inode {dirs/d300}; dblock 1; write -d dhdr.hdr.magic 1"),
    ("node directory entry", "inode {dirs/d700}; dblock 3; write -d du[2].inumber 4711"),
    ("node directory root", "inode {dirs/d700}; dblock 8388608; write -d nbtree[0].before 7"),
    ("node directory root hash", "inode {dirs/d700}; dblock 8388608; write -d nbtree[0].hashval 7"),
    ("node directory leaf back", "inode {dirs/d700}; dblock 8388609; write -d lhdr.info.hdr.forw 9"),
    ("node directory leaf address", "inode {dirs/d700}; dblock 8388609; write -d lents[3].address 9"),
    ("node directory free best", "inode {dirs/d700}; dblock 16777216; write -d fbests[1] 9"),
    ("node directory free used", "inode {dirs/d700}; dblock 16777216; write -d fhdr.nused 1"),
    ("node directory free firstdb", "inode {dirs/d700}; dblock 16777216; write -d fhdr.firstdb 1"),
    ("short attribute size", "inode {xattr/capable}; write -d a.sfattr.hdr.totsize 9"),
    ("short attribute count", "inode {xattr/capable}; write -d a.sfattr.hdr.count 9"),
    ("short attribute name", "inode {xattr/capable}; write -d a.sfattr.list[0].namelen 0"),
    ("attribute leaf hash", "inode {xattr/many}; ablock 0; write -d entries[3].hashval 1"),
    ("attribute leaf count", "inode {xattr/many}; ablock 0; write -d hdr.count 3"),
    ("attribute leaf nameidx", "inode {xattr/many}; ablock 0; write -d entries[3].nameidx 2"),
    ("attribute leaf usedbytes", "inode {xattr/many}; ablock 0; write -d hdr.usedbytes 2"),
    ("attribute leaf incomplete", "inode {xattr/many}; ablock 0; write -d entries[3].incomplete 1"),
    ("attribute leaf namelen", "inode {xattr/many}; ablock 0; write -d nvlist[3].namelen 0"),
    ("attribute leaf magic", "inode {xattr/many}; ablock 0; write -d hdr.info.hdr.magic 1"),
    ("attribute value length", "inode {xattr/large}; ablock 0; write -d nvlist[1].valuelen 9"),
    ("attribute value block", "inode {xattr/large}; ablock 0; write -d nvlist[1].valueblk 900"),
    ("attribute value owner", "inode {xattr/large}; ablock 2; write -d hdr.owner 9"),
    ("attribute value garbage", "inode {xattr/large}; ablock 2; blocktrash -z -n 50 -3 -s 2"),
    ("link target size", "inode {links/1000}; write -d core.size 2000"),
    ("link target owner", "inode {links/1000}; dblock 0; write -d owner 9"),
    ("link target offset", "inode {links/1000}; dblock 0; write -d offset 9"),
    ("short link size", "inode {links/rel}; write -d core.size 0"),
    ("device with a size", "inode {special/null}; write -d core.size 9"),
];

/// An image that is damaged again and again.
struct Base {
    image: Image,
    _dir: TempDir,
    copy: PathBuf,
}

/// What `xfs_repair -n` says.
#[derive(Debug)]
struct Opinion {
    clean: bool,
    /// Its complaints, numbers left out, and one with them.
    complaints: BTreeMap<String, String>,
}

impl Base {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let copy = dir.path().join("copy.raw");
        Self { image: Image::of_case(name), _dir: dir, copy }
    }

    fn ino(&self, path: &str) -> u64 {
        self.image.read(|fs| node(fs, path).unwrap().0)
    }

    /// Makes a damaged copy; whether there was such a thing to damage.
    fn damage(&self, commands: &str) -> bool {
        copy(&self.image.path, &self.copy);
        let mut text = commands.to_owned();
        while let (Some(from), Some(to)) = (text.find('{'), text.find('}')) {
            let ino = self.ino(&text[from + 1..to]);
            text.replace_range(from..=to, &ino.to_string());
        }
        let mut db = tool("xfs_db").arg("-x");
        for command in text.split("; ") {
            db = db.args(["-c", command]);
        }
        let _ = db.arg(&self.copy).run();
        std::fs::read(&self.copy).unwrap() != std::fs::read(&self.image.path).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    tool("cp").args(["--sparse=always"]).arg(from).arg(to).ok();
}

fn node(fs: &dyn Filesystem, path: &str) -> Option<NodeId> {
    let mut at = fs.root();
    for part in path.split('/') {
        at = fs.lookup(at, &Name::new(part.as_bytes()).unwrap()).ok()??;
    }
    Some(at)
}

fn opinion(path: &Path) -> Opinion {
    let ran = tool("xfs_repair").args(["-n", "-f", "-P"]).arg(path).run();
    let text = format!("{}{}", String::from_utf8_lossy(&ran.out), ran.err);
    let talk = [
        "Phase",
        "        -",
        "No modify",
        "Using",
        "would have",
        "Cannot get",
        "the image and",
        "Badness",
        "Repair may fail",
        "Specify",
    ];
    // Threads talk into each other.
    let text = text.replace("        - agno", "\n        - agno");
    let lines = text.lines().filter(|l| !l.is_empty() && !talk.iter().any(|t| l.contains(t)));
    let plain = |line: &str| -> String {
        let word =
            |w: &str| if w.contains(|c: char| c.is_ascii_digit()) { "#".to_owned() } else { w.to_owned() };
        line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
    };
    let complaints = lines.map(|line| (plain(line), line.to_owned())).collect();
    Opinion { clean: ran.status == 0, complaints }
}

/// An edit that lands, or is refused.
fn attempt(path: &Path, work: &dyn Fn(&mut Writer<'_>) -> Result<()>) -> Result<()> {
    let options = OpenOptions { write: true, format: Some("raw"), ..OpenOptions::default() };
    let opened = open_when_free(path, &options);
    let transaction = opened.begin().unwrap();
    let disk = transaction.disk();
    assert!(disk.disk().claim(Span::first(disk.disk().size())).unwrap());
    let mut writer = Writer::open(driver(), &disk)?;
    work(&mut writer)?;
    writer.close()?;
    drop(disk);
    transaction.commit()
}

fn missing() -> racker_formats::error::Error {
    std::io::Error::from(std::io::ErrorKind::NotFound).into()
}

fn find(fs: &Writer<'_>, path: &str) -> Result<NodeId> {
    node(fs.filesystem().as_ref(), path).ok_or_else(missing)
}

fn called(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn make(fs: &mut Writer<'_>, dir: &str, name: &str, kind: NewKind<'_>) -> Result<NodeId> {
    let dir = find(fs, dir)?;
    fs.create(dir, &called(name), &New { kind, mode: 0o644, uid: 0, gid: 0 }, NOW)
}

/// An edit by name.
type Edit<'a> = (&'a str, Box<dyn Fn(&mut Writer<'_>) -> Result<()>>);

/// Edits that together use every structure.
fn edits() -> Vec<Edit<'static>> {
    fn edit(name: &'static str, work: impl Fn(&mut Writer<'_>) -> Result<()> + 'static) -> Edit<'static> {
        (name, Box::new(work))
    }
    vec![
        edit("write in place and behind", |fs| {
            let file = find(fs, "files/100k")?;
            fs.write(file, 50_000, &vec![7; 120_000], NOW)
        }),
        edit("write a new file", |fs| {
            let file = make(fs, "files", "new", NewKind::File)?;
            fs.write(file, 0, &vec![1; 300_000], NOW)
        }),
        edit("replace", |fs| {
            let file = find(fs, "files/1M")?;
            fs.replace(file, Content { reader: &mut vec![3u8; 700_000].as_slice(), size: 700_000 }, NOW)
        }),
        edit("remove files", |fs| {
            for (dir, name) in [
                ("files", "1M"),
                ("files", "100k"),
                ("xattr", "large"),
                ("extents", "fragmented"),
                ("links", "1000"),
            ] {
                let dir = find(fs, dir)?;
                fs.unlink(dir, &called(name), NOW)?;
            }
            Ok(())
        }),
        edit("make directories", |fs| {
            for dir in ["files", "dirs/d60", "dirs/d300", "dirs/d700", "links"] {
                make(fs, dir, "a new directory", NewKind::Dir)?;
            }
            Ok(())
        }),
        edit("rename", |fs| {
            for (dir, name) in
                [("files", "100k"), ("dirs/d60", "entry-00003-xxx"), ("dirs/d700", "entry-00003-xxx")]
            {
                let (from, to) = (find(fs, dir)?, find(fs, "dirs/d300")?);
                fs.rename(
                    (from, &called(name)),
                    (to, &called(&format!("moved from {}", dir.replace('/', " ")))),
                    NOW,
                )?;
            }
            Ok(())
        }),
        edit("attributes", |fs| {
            for path in ["xattr/few", "xattr/many", "xattr/large", "xattr/capable", "files/100k"] {
                let file = find(fs, path)?;
                fs.set_xattr(file, b"user.new", Some(&[5; 3000]), NOW)?;
            }
            Ok(())
        }),
        edit("many files", |fs| {
            for i in 0..90 {
                make(fs, "dirs/d0", &format!("file {i}"), NewKind::File)?;
            }
            Ok(())
        }),
    ]
}

/// Where racker and `xfs_repair -n` do not agree that a filesystem is clean, and why.
const STRICTER: &[(&str, &str)] = &[
    ("sb lsn", "with -n xfs_repair does not look at sequence numbers; the kernel does not mount it"),
    ("inode lsn", "the same"),
    ("agfl magic", "xfs_repair makes the list anew whatever it holds; the kernel stops at it"),
    ("rmapbt root keys", "xfs_repair looks at records, not at the keys that lookups go by; xfs_scrub does"),
    ("rmapbt blockcount", "xfs_repair does not compare owners within the group's own blocks; xfs_scrub does"),
    ("directory size", "xfs_repair goes by extents; the kernel reads entries up to the size"),
    (
        "attribute value length",
        "the blocks behind the end of the value stay allocated; the kernel never leaves any",
    ),
    ("attribute value owner", "xfs_repair reads values without their headers"),
];

/// Damages an image in every way. Returns how many ways there were, and what is wrong.
fn play(name: &str, only: Option<&BTreeSet<&str>>, with_edits: bool) -> (usize, Vec<String>) {
    let base = Base::new(name);
    let (mut ways, mut wrong) = (0, Vec::new());
    for (damage, commands) in DAMAGES.iter().filter(|(d, _)| only.is_none_or(|o| o.contains(d))) {
        if !base.damage(commands) {
            println!("{name}: {damage}: nothing to damage");
            continue;
        }
        ways += 1;
        let (found, theirs) = (findings(&base.copy), opinion(&base.copy));
        let first = found.first().map_or("clean", |(_, what)| what.as_str());
        let their_first = theirs.complaints.values().next().map_or("clean", String::as_str);
        println!("{name}: {damage}: {first}\n        xfs_repair: {their_first}");
        if found.is_empty() != theirs.clean {
            match STRICTER.iter().find(|(d, _)| d == damage && !found.is_empty()) {
                Some((_, why)) => println!("        they do not agree: {why}"),
                None => wrong.push(format!("{name}: {damage}: racker: {first}; xfs_repair: {their_first}")),
            }
        }
        if with_edits {
            wrong.extend(edited(&base, theirs).into_iter().map(|w| format!("{name}: {damage}: {w}")));
        }
    }
    (ways, wrong)
}

/// Does all edits to a damaged image, each to a copy of its own. Returns what became worse.
fn edited(base: &Base, theirs: Opinion) -> Vec<String> {
    let (mut theirs, mut wrong) = (theirs, Vec::new());
    let before = std::fs::read(&base.copy).unwrap();
    let damaged = base.copy.with_extension("damaged");
    copy(&base.copy, &damaged);
    for (edit, work) in edits() {
        match attempt(&base.copy, work.as_ref()) {
            Err(e) => {
                println!("        {edit}: {e}");
                if std::fs::read(&base.copy).unwrap() != before {
                    wrong.push(format!("{edit}: refused ({e}), and the image has changed"));
                    copy(&damaged, &base.copy);
                }
            }
            Ok(()) => {
                let after = opinion(&base.copy);
                let is_new = |theirs: &Opinion| {
                    after
                        .complaints
                        .iter()
                        .find(|(c, _)| !theirs.complaints.contains_key(*c))
                        .map(|(_, c)| c.clone())
                };
                // Its threads find things in other orders each time.
                for _ in 0..3 {
                    if is_new(&theirs).is_some() {
                        theirs.complaints.extend(opinion(&damaged).complaints);
                    }
                }
                let new = is_new(&theirs);
                println!("        {edit}: done, new complaints: {new:?}");
                wrong.extend(new.map(|new| format!("{edit}: done, and new is: {new}")));
                copy(&damaged, &base.copy);
            }
        }
    }
    wrong
}

/// All damages on two filesystems, with and without a reverse map, each with all edits:
/// `cargo test -p racker-tests --test all xfs::damage::all_of_it -- --ignored --nocapture`.
/// `XFS_CASES` names other fixtures, `XFS_DAMAGE` the damages (separated by `, `), `XFS_NO_EDITS` leaves the edits out.
#[test]
#[ignore = "takes minutes"]
fn all_of_it() {
    let names = std::env::var("XFS_CASES").unwrap_or_else(|_| "xfs/rmapbt xfs/nrext64".into());
    let only = std::env::var("XFS_DAMAGE").ok();
    let only = only.as_deref().map(|o| o.split(", ").collect());
    let (mut ways, mut wrong) = (0, Vec::new());
    for name in names.split_whitespace() {
        let (more, bad) = play(name, only.as_ref(), std::env::var("XFS_NO_EDITS").is_err());
        ways += more;
        wrong.extend(bad);
    }
    println!("{ways} damages");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One damage of each kind that checksums do not show: found as `xfs_repair` finds it, and never made worse.
#[test]
fn damage_is_found_and_not_built_upon() {
    let one_each = [
        "agf longest too high",
        "agfl slot in use",
        "both free trees",
        "inobt free mask",
        "rmapbt owner",
        "refcountbt numrecs",
        "inode realtime",
        "extent start in use",
        "short directory offset",
        "node directory root hash",
        "attribute leaf hash",
    ];
    let (ways, wrong) = play("xfs/rmapbt", Some(&one_each.into_iter().collect()), true);
    assert_eq!(ways, one_each.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What can be counted is mended, and then `xfs_repair` has nothing to say.
#[test]
fn what_can_be_counted_is_mended() {
    let base = Base::new("xfs/rmapbt");
    let counted = [
        "sb icount",
        "sb ifree",
        "sb fdblocks too high",
        "sb fdblocks too low",
        "second sb dblocks",
        "second sb magic",
        "second sb garbage",
        "agf freeblks too high",
        "agf longest too low",
        "agi count",
        "agi freecount",
    ];
    for damage in counted {
        let (_, commands) = DAMAGES.iter().find(|(d, _)| *d == damage).unwrap();
        assert!(base.damage(commands), "{damage}");
        let report = mend(&base.copy);
        assert!(
            !report.findings.is_empty() && report.findings.iter().all(|f| f.repaired),
            "{damage}: {report:?}"
        );
        assert_eq!(findings(&base.copy), [], "{damage}");
        assert!(opinion(&base.copy).clean, "{damage}");
    }
    // What is not counted is left, and so is what could be mended beside it.
    assert!(base.damage("sb 0; write -d icount 4711; inode {files/100k}; write -d core.nblocks 7"));
    let before = std::fs::read(&base.copy).unwrap();
    let report = mend(&base.copy);
    assert!(report.findings.len() == 2 && report.findings.iter().all(|f| !f.repaired), "{report:?}");
    assert_eq!(std::fs::read(&base.copy).unwrap(), before);
}

/// Checks and mends for good.
fn mend(path: &Path) -> Report {
    let options = OpenOptions { write: true, format: Some("raw"), ..OpenOptions::default() };
    let opened = open_when_free(path, &options);
    let transaction = opened.begin().unwrap();
    let disk = transaction.disk();
    let mut report = Report { repair: true, ..Report::default() };
    driver().check(disk.disk().clone(), &mut report).unwrap();
    drop(disk);
    transaction.commit().unwrap();
    report
}

/// With more inodes than all of which is gone through, who has what is still asked before any space is taken, but not
/// before something is written in place.
#[test]
fn what_a_file_has_is_not_taken_for_free() {
    let image = Image::new("200M", "-d agcount=2 -l size=16m");
    {
        let mounted = Mounted::writable(&image.path, WHOLE);
        let script =
            "mkdir many; cd many; seq 66000 | xargs touch; cd ..; head -c 200000 /dev/zero > victim; sync";
        tool("bash").args(["-ec", script]).dir(mounted.path()).ok();
    }
    let make_another = |fs: &mut Writer<'_>| {
        let file = make(fs, "many", "another", NewKind::File)?;
        fs.write(file, 0, &[1; 10_000], NOW)
    };
    let damaged = image.path.with_extension("damaged");
    let (victim, free) = image.read(|fs| {
        let mut longest = Span::first(0);
        fs.free_space(&mut |span| {
            // In the first group a block's number is its place.
            if span.len() > longest.len() && span.end() < 90 << 20 {
                longest = span;
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        (node(fs, "victim").unwrap().0, (longest.start() >> 12) + 100)
    });
    copy(&image.path, &damaged);
    let victim = format!("inode {victim}");
    let lie = format!("write -d u3.bmx[0].startblock {free}");
    tool("xfs_db").arg("-x").args(["-c", &victim, "-c", &lie]).arg(&damaged).ok();
    assert!(!opinion(&damaged).clean);
    let before = std::fs::read(&damaged).unwrap();
    let refused = attempt(&damaged, &make_another).unwrap_err();
    assert!(refused.to_string().contains("and are free"), "{refused}");
    let refused = attempt(&damaged, &|fs| fs.unlink(find(fs, "many")?, &called("7"), NOW)).unwrap_err();
    assert!(refused.to_string().contains("and are free"), "{refused}");
    assert!(before == std::fs::read(&damaged).unwrap());
    let mode = Change { mode: Some(0o600), ..Change::default() };
    attempt(&damaged, &|fs| fs.set_attributes(find(fs, "many/7")?, &mode, NOW)).unwrap();
    // Sound, it is written.
    attempt(&image.path, &make_another).unwrap();
    is_clean(&image.path);
}
