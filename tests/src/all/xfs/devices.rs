//! Filesystems of which a part is on another device: the log, or what realtime files hold.

use racker_formats::block::Span;
use racker_formats::check::Report;
use racker_formats::error::Kind;
use racker_formats::open::OpenOptions;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Name, New, NewKind, NodeId, Time};
use racker_tests::tool::tool;
use tempfile::TempDir;

use super::{Image, driver, mkfs, open_when_free};

const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };

fn called(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// A filesystem with a device beside it, which `options` name `{}`.
fn with_device(options: &str) -> (Image, TempDir) {
    let other = tempfile::tempdir().unwrap();
    let device = other.path().join("device.raw");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("xfs.raw");
    tool("truncate").args(["-s", "100M"]).arg(&device).ok();
    tool("truncate").args(["-s", "400M"]).arg(&path).ok();
    let options = options.replace("{}", device.to_str().unwrap());
    mkfs().args(options.split_whitespace()).arg(&path).ok();
    (Image { _dir: dir, path, repairable: true }, other)
}

/// Nobody knows what a log elsewhere holds: neither read nor written, whatever else is asked.
#[test]
fn a_log_elsewhere_is_named() {
    let (image, _other) = with_device("-l logdev={},size=64m");
    let before = std::fs::read(&image.path).unwrap();
    let opened = open_when_free(&image.path, &OpenOptions::default());
    let refused = driver().open(opened.disk.clone()).unwrap_err();
    assert!(refused.kind() == Kind::Unsupported && refused.to_string().contains("log is on another device"));
    assert_eq!(
        driver().check(opened.disk.clone(), &mut Report::default()).unwrap_err().kind(),
        Kind::Unsupported
    );
    drop(opened);
    let options = OpenOptions { write: true, format: Some("raw"), ..OpenOptions::default() };
    let opened = open_when_free(&image.path, &options);
    let transaction = opened.begin().unwrap();
    let disk = transaction.disk();
    assert!(disk.disk().claim(Span::first(disk.disk().size())).unwrap());
    assert_eq!(Writer::open(driver(), &disk).unwrap_err().kind(), Kind::Unsupported);
    assert!(before == std::fs::read(&image.path).unwrap());
}

/// Beside a realtime device all is read and written but what lies on it; and a check says what it did not see.
#[test]
fn what_is_on_a_realtime_device_stays() {
    let (image, other) = with_device("-r rtdev={}");
    let clean = || {
        let device = other.path().join("device.raw");
        tool("xfs_repair").args(["-n", "-f", "-r"]).arg(device).arg(&image.path).ok();
    };
    let file = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
    let node: NodeId = image.edit(|fs| {
        let root = fs.root();
        let plain = fs.create(root, &called("plain"), &file, NOW).unwrap();
        fs.write(plain, 0, &[1; 100_000], NOW).unwrap();
        fs.create(root, &called("realtime"), &file, NOW).unwrap()
    });
    clean();
    let (inode, flag) = (format!("inode {}", node.0), "write -d core.realtime 1");
    tool("xfs_db").arg("-x").args(["-c", &inode, "-c", flag]).arg(&image.path).ok();
    clean();
    image.edit(|fs| {
        let root = fs.root();
        let mut bytes = [7u8; 9].as_slice();
        for refused in [
            fs.write(node, 0, b"more", NOW),
            fs.truncate(node, 10, NOW),
            fs.replace(node, Content { reader: &mut bytes, size: 9 }, NOW),
            fs.unlink(root, &called("realtime"), NOW),
            fs.rename((root, &called("plain")), (root, &called("realtime")), NOW),
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.kind() == Kind::Unsupported && refused.to_string().contains("realtime device"));
        }
    });
    image.edit(|fs| {
        let root = fs.root();
        fs.rename((root, &called("realtime")), (root, &called("moved")), NOW).unwrap();
        fs.set_attributes(node, &Change { mode: Some(0o600), ..Change::default() }, NOW).unwrap();
        fs.unlink(root, &called("plain"), NOW).unwrap();
    });
    clean();
    let opened = open_when_free(&image.path, &OpenOptions::default());
    let mut report = Report::default();
    driver().check(opened.disk.clone(), &mut report).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.left_out.iter().any(|what| what.contains("realtime device")), "{report:?}");
    assert!(image.read(|fs| fs.facts().unwrap().features.contains(&"realtime".into())));
}
