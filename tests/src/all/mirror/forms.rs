//! Every option of mkfs that changes the format: a short play on what racker writes, and a plain refusal of the rest.

use racker_formats::error::Kind;
use racker_formats::transaction::Transaction;
use racker_fs::edit::Writer;

use super::op::Outcome;
use super::ours;
use super::plan::{Plan, Style};
use super::tree::Tree;
use super::{EXT4, FAT, Form, Subject, XFS};

/// What racker makes of an option: it writes such filesystems, or says this and writes nothing.
enum Then {
    Written,
    Refused(&'static str),
}

use Then::{Refused, Written};

const OF_XFS: &[(&str, Then)] = &[
    ("-m crc=0", Refused("version 4")),
    ("-m crc=0 -n ftype=1", Refused("version 4")),
    ("-m crc=1,finobt=0,inobtcount=0,rmapbt=0,reflink=0,bigtime=0", Written),
    ("-m finobt=1,inobtcount=0", Written),
    ("-m finobt=1,inobtcount=1", Written),
    ("-m rmapbt=1", Written),
    ("-m reflink=0,rmapbt=1", Written),
    ("-m bigtime=0", Written),
    ("-m bigtime=1", Written),
    ("-i size=512,sparse=0", Written),
    ("-i size=1024", Written),
    ("-i size=2048", Written),
    ("-i nrext64=0", Written),
    ("-i nrext64=1", Written),
    ("-i attr=2", Written),
    ("-i maxpct=1", Written),
    ("-n size=4096", Written),
    ("-n size=8192", Written),
    ("-n size=32768", Written),
    ("-b size=1024 -n size=65536", Written),
    ("-n size=65536", Written),
    // Not `-n version=ci`: xfs_repair before 6.4 calls the kernel's own hashes of such names wrong (`xfs::case`).
    ("-s size=512", Written),
    ("-s size=2048", Written),
    ("-s size=4096", Written),
    ("-b size=1024", Written),
    ("-b size=2048", Written),
    ("-b size=8192", Written),
    ("-b size=16384", Written),
    ("-b size=32768", Written),
    ("-b size=65536", Written),
    ("-b size=65536 -s size=32768", Written),
    ("-d agcount=1", Written),
    ("-d agcount=16", Written),
    ("-d su=64k,sw=4,agcount=4", Written),
    ("-d sunit=16,swidth=64,agcount=4 -l su=32k", Written),
    ("-l size=16m", Written),
    ("-l lazy-count=1", Written),
    ("-l agnum=1", Written),
    ("-l su=4k", Written),
    ("-d noalign", Written),
    ("-r extsize=64k", Written),
    ("-l version=2,su=256k", Written),
];

const OF_EXT: &[(&str, Then)] = &[
    ("-t ext2", Written),
    ("-t ext2 -r 0", Written),
    ("-t ext2 -O none", Written),
    ("-t ext2 -O ^filetype", Written),
    ("-t ext2 -O ^sparse_super,^resize_inode", Written),
    ("-t ext2 -O dir_index,ext_attr,large_file", Written),
    ("-t ext2 -o hurd", Refused("")),
    ("-t ext2 -o freebsd", Written),
    ("-t ext3", Written),
    ("-t ext3 -I 128", Written),
    ("-t ext3 -J size=8", Written),
    ("-t ext4", Written),
    ("-t ext4 -b 1024", Written),
    ("-t ext4 -b 2048", Written),
    ("-t ext4 -b 65536", Written),
    ("-t ext4 -I 128", Written),
    ("-t ext4 -I 512", Written),
    ("-t ext4 -I 4096 -b 4096 -N 3000", Written),
    ("-t ext4 -b 1024 -g 1024", Written),
    ("-t ext4 -G 4", Written),
    ("-t ext4 -N 5000", Written),
    ("-t ext4 -E stride=16,stripe-width=64", Written),
    ("-t ext4 -E resize=1000000", Written),
    ("-t ext4 -E lazy_itable_init=1,lazy_journal_init=1", Written),
    ("-t ext4 -E packed_meta_blocks=1", Written),
    ("-t ext4 -E num_backup_sb=1 -O sparse_super2", Written),
    ("-t ext4 -E root_owner=7:8", Written),
    ("-t ext4 -O 64bit", Written),
    ("-t ext4 -O ^64bit", Written),
    ("-t ext4 -O bigalloc -C 16384", Written),
    ("-t ext4 -O ^dir_index", Written),
    ("-t ext4 -O ^dir_nlink", Written),
    ("-t ext4 -O ea_inode", Written),
    ("-t ext4 -O encrypt", Written),
    ("-t ext4 -O ^ext_attr", Written),
    ("-t ext4 -O ^extents,^64bit", Written),
    ("-t ext4 -O ^extra_isize", Written),
    ("-t ext4 -O ^filetype", Written),
    ("-t ext4 -O ^flex_bg", Written),
    ("-t ext4 -O ^has_journal", Written),
    ("-t ext4 -O ^huge_file", Written),
    ("-t ext4 -O inline_data", Written),
    ("-t ext4 -O large_dir", Written),
    ("-t ext4 -O ^large_file,^huge_file", Written),
    ("-t ext4 -O meta_bg,^resize_inode", Written),
    ("-t ext4 -O ^metadata_csum", Written),
    ("-t ext4 -O ^metadata_csum,uninit_bg", Written),
    ("-t ext4 -O ^metadata_csum,^uninit_bg", Written),
    ("-t ext4 -O metadata_csum_seed", Written),
    ("-t ext4 -O mmp", Written),
    ("-t ext4 -O orphan_file", Written),
    ("-t ext4 -O project -I 256", Written),
    ("-t ext4 -O quota", Written),
    ("-t ext4 -O quota,project -I 256 -E quotatype=usrquota:grpquota:prjquota", Written),
    ("-t ext4 -O quota,ea_inode", Written),
    ("-t ext4 -O ^resize_inode", Written),
    ("-t ext4 -O ^sparse_super,^resize_inode", Written),
    ("-t ext4 -O stable_inodes", Written),
    ("-t ext4 -O verity", Written),
    ("-t ext4 -O casefold", Written),
    ("-t ext4 -O casefold,encrypt", Written),
    ("-t ext4 -O fast_commit", Written),
    ("-t ext4 -O journal_dev", Refused("")),
];

const OF_FAT: &[(&str, Then)] = &[
    ("-F 12 -s 32", Written),
    ("-F 12 -s 128 -f 1", Written),
    ("-F 12 -S 4096 -s 4", Written),
    ("-F 16 -s 2", Written),
    ("-F 16 -s 4 -r 16", Written),
    ("-F 16 -s 4 -r 2048", Written),
    ("-F 16 -S 1024 -s 1", Written),
    ("-F 16 -S 2048 -s 1 -f 2", Written),
    ("-F 32 -s 1", Written),
    ("-F 32 -s 1 -R 64", Written),
    ("-F 32 -s 1 -R 64 -b 12", Written),
    ("-F 32 -s 1 -f 1", Written),
    ("-F 32 -S 4096 -s 1", Written),
    ("-F 32 -s 1 -M 0xf0", Written),
    ("-F 32 -s 1 -h 2048", Written),
    ("-F 32 -s 1 -D 0x80 -g 16/63", Written),
    ("-F 32 -s 1 -a", Written),
    ("-F 32 -s 1 -i 1234abcd -n LABEL", Written),
    ("-F 32 -s 1 --mbr=yes", Written),
];

/// Two edits on a new filesystem, each compared with what was to be there; or the refusal.
fn tries(form: &Form, then: &Then) -> Result<(), String> {
    let subject = Subject::new(form);
    if let Refused(why) = then {
        let before = std::fs::read(&subject.path).unwrap();
        let transaction = Transaction::overlay(subject.disk(false));
        let disk = transaction.disk();
        let said = match Writer::open(subject.driver, &disk) {
            Ok(_) => return Err("is opened".into()),
            Err(e) => e,
        };
        let told = format!("{said:#}");
        if said.kind() != Kind::Unsupported || !told.contains(why) {
            return Err(format!("is refused with {:?}: {told}", said.kind()));
        }
        assert!(before == std::fs::read(&subject.path).unwrap());
        return Ok(());
    }
    let mut plan = Plan::new(5, form.style);
    for round in 0..2 {
        let during = subject.edit(|fs| {
            for _ in 0..120 {
                let (op, now) = (plan.next(), plan.now());
                let outcome = ours::apply(fs, &op, now);
                if let Outcome::Part(_) = outcome {
                    return Err("is full".to_string());
                }
                plan.done(&op, outcome);
            }
            Ok(Tree::ours(&**fs, subject.full))
        })?;
        subject.tree().assert_same(&during, form.make);
        subject.is_clean(&format!("{}: edit {round}", form.make));
    }
    Ok(())
}

fn all(program: &str, base: &Form, options: &[(&str, Then)]) {
    let mut wrong = Vec::new();
    for (options, then) in options {
        let make: &'static str = format!("{program} {options}").leak();
        let style = Style { fine: base.driver == "xfs", ..base.style };
        let form = Form { make, style, ..*base };
        // All that is wrong is told, not the first alone.
        match std::panic::catch_unwind(|| tries(&form, then)) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => wrong.push(format!("{make} {why}")),
            Err(_) => wrong.push(format!("{make} fails")),
        }
    }
    println!("{program}: {} forms", options.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const SMALL: Style = Style { nodes: 300, write: 30_000, reach: 8 << 20, value: 500, ..super::FULL };

#[test]
fn every_option_of_mkfs_xfs() {
    let base = Form { size: "320M", style: SMALL, ..XFS };
    all("mkfs.xfs -q", &base, OF_XFS);
}

#[test]
fn every_option_of_mke2fs() {
    let base = Form { size: "96M", style: SMALL, ..EXT4 };
    all("mke2fs -q -F", &base, OF_EXT);
}

#[test]
fn every_option_of_mkfs_vfat() {
    let base = Form { size: "36M", style: Style { nodes: 100, write: 10_000, ..FAT.style }, ..FAT };
    all("mkfs.vfat", &base, OF_FAT);
}
