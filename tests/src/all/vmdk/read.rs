//! What others wrote is read as they read it.

use racker_formats::Kind;
use racker_formats::check::Report;
use racker_formats::drivers::VmdkFault;
use racker_tests::image::{read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::{SUBFORMATS, content, disk, file, open, same, sound, source, text};

/// More than two extents of 2 GiB, and not a whole number of grains.
const SIZE: u64 = (5 << 30) + 3 * 512;

#[test]
fn every_subformat_reads_as_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("source.raw");
    source(&raw, SIZE, &[2 << 30, 2_146_435_072, 4 << 30], &mut Rng::new(1));
    for subformat in SUBFORMATS {
        let path = dir.path().join("image.vmdk");
        let options = format!("subformat={subformat}");
        qemu::img(&["convert", "-q", "-O", "vmdk", "-o", &options, &text(&raw), &text(&path)]);
        let image = open(&path, false).unwrap();
        let facts = image.facts();
        assert_eq!(facts.subformat.as_deref(), subformat.split(',').next(), "{facts:?}");
        same(&disk(&image), &file(&raw));
        sound(&image);
    }
}

#[test]
fn a_child_shows_its_parent_where_it_has_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top, raw) =
        (dir.path().join("base.vmdk"), dir.path().join("top.vmdk"), dir.path().join("flat.raw"));
    for subformat in ["monolithicSparse", "monolithicSparse,zeroed_grain=on", "twoGbMaxExtentSparse"] {
        let options = format!("subformat={subformat}");
        qemu::img(&["create", "-q", "-f", "vmdk", "-o", &options, &text(&base), "64M"]);
        qemu::io("vmdk", &base, &["write -P 1 100k 1M".into(), "write -P 2 40M 70k".into()]);
        qemu::img_in(
            dir.path(),
            &["create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "-o", &options, "top.vmdk"],
        );
        qemu::io(
            "vmdk",
            &top,
            &["write -P 3 200k 5k".into(), "write -z 512k 128k".into(), "write -P 4 60M 1k".into()],
        );
        qemu::img_in(dir.path(), &["convert", "-q", "-O", "raw", "top.vmdk", "flat.raw"]);
        let image = open(&top, false).unwrap();
        same(&disk(&image), &file(&raw));
        assert_eq!(image.facts().backing.unwrap().path, "base.vmdk");
        // Whoever writes to a parent gives it a new content ID: the child's content is no longer known.
        drop(image);
        qemu::io("vmdk", &base, &["write -P 9 100k 1k".into()]);
        let e = open(&top, false).unwrap_err();
        assert!(matches!(e.fault(), Some(VmdkFault::ParentCid { .. })), "{e}");
    }
}

/// The form of ESX Server, which nothing at hand writes: `qemu-img` judges what was crafted here.
#[test]
fn extents_of_esx_server_read_as_qemu_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let extent = dir.path().join("disk-delta.vmdk");
    let descriptor = dir.path().join("disk.vmdk");
    for grain_sectors in [1u32, 16, 128] {
        let sectors = 40_000u32;
        let tables = sectors.div_ceil(grain_sectors * 4096);
        let mut bytes = vec![0; 512];
        let fields = [1, 3, sectors, grain_sectors, 4, tables];
        bytes[..4].copy_from_slice(b"COWD");
        for (i, field) in fields.iter().enumerate() {
            bytes[4 + 4 * i..8 + 4 * i].copy_from_slice(&field.to_le_bytes());
        }
        bytes.resize(4 * 512, 0);
        let first = 4 + (tables * 4).div_ceil(512);
        bytes.extend((0..tables).flat_map(|t| (first + t * 32).to_le_bytes()));
        bytes.resize(first as usize * 512, 0);
        let mut rng = Rng::new(grain_sectors.into());
        let mut next = first + tables * 32;
        let mut data = Vec::new();
        for grain in 0..tables * 4096 {
            let present = grain * grain_sectors < sectors && (grain < 8 || rng.below(5) == 0);
            bytes.extend(if present { next } else { 0 }.to_le_bytes());
            if present {
                let start = data.len();
                data.resize(start + grain_sectors as usize * 512, 0);
                rng.fill(&mut data[start..]);
                next += grain_sectors;
            }
        }
        bytes.extend(data);
        std::fs::write(&extent, bytes).unwrap();
        let line = "RW 40000 VMFSSPARSE \"disk-delta.vmdk\"";
        let head =
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"vmfsSparse\"\n";
        std::fs::write(&descriptor, format!("{head}{line}\n")).unwrap();
        let raw = dir.path().join("flat.raw");
        qemu::img(&["convert", "-q", "-f", "vmdk", "-O", "raw", &text(&descriptor), &text(&raw)]);
        let image = open(&descriptor, false).unwrap();
        same(&disk(&image), &file(&raw));
        sound(&image);
        drop(image);
        assert_eq!(open(&descriptor, true).unwrap_err().kind(), Kind::ReadOnly);
        assert_eq!(content(&disk(&open(&extent, false).unwrap())), std::fs::read(&raw).unwrap());
    }
}

/// QEMU reads flat extents of these kinds, and so does racker.
#[test]
fn flat_extents_of_esx_server_and_zero_extents() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = vec![0; 100 * 512];
    Rng::new(5).fill(&mut data);
    std::fs::write(dir.path().join("disk-flat.vmdk"), &data).unwrap();
    let path = dir.path().join("disk.vmdk");
    let head = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n";
    std::fs::write(&path, format!("{head}createType=\"vmfs\"\nRW 100 VMFS \"disk-flat.vmdk\"\n")).unwrap();
    assert_eq!(content(&disk(&open(&path, false).unwrap())), data);
    let lines =
        "RW 7 ZERO\nRW 50 FLAT \"disk-flat.vmdk\" 50\nRW 3 ZERO\nRDONLY 20 FLAT \"disk-flat.vmdk\" 0\n";
    std::fs::write(&path, format!("{head}createType=\"custom\"\n{lines}")).unwrap();
    let image = open(&path, true).unwrap();
    let want = [&[0; 7 * 512][..], &data[50 * 512..], &[0; 3 * 512], &data[..20 * 512]].concat();
    assert_eq!(content(&disk(&image)), want);
    assert_eq!(disk(&image).write_at(60 * 512, &[1]).unwrap_err().kind(), Kind::ReadOnly);
}

#[test]
fn what_is_elsewhere_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vmdk");
    let head = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n";
    for (kind, line) in [
        ("fullDevice", "RW 100 FLAT \"/dev/sda\" 0"),
        ("vmfsRawDeviceMap", "RW 100 VMFSRDM \"x-rdm.vmdk\""),
        ("monolithicFlat", "RW 100 VMFSRAW \"x\""),
        ("monolithicFlat", "NOACCESS 100 FLAT \"x\" 0"),
    ] {
        std::fs::write(&path, format!("{head}createType=\"{kind}\"\n{line}\n")).unwrap();
        let e = open(&path, false).unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported, "{kind}: {e}");
    }
    for name in ["/etc/passwd", "../x", "a/../../x", "json:{}", "nbd://host/x"] {
        std::fs::write(&path, format!("{head}createType=\"monolithicFlat\"\nRW 1 FLAT \"{name}\" 0\n"))
            .unwrap();
        assert_eq!(open(&path, false).unwrap_err().kind(), Kind::Denied, "{name}");
    }
}

#[test]
fn names_in_a_code_page_hinder_nobody_to_read() {
    let dir = scratch();
    let path = dir.path().join("groesse.vmdk");
    qemu::img(&["create", "-q", "-f", "vmdk", &text(&path), "1M"]);
    qemu::io("vmdk", &path, &["write -P 7 64k 64k".into()]);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(7).position(|w| w == b"groesse").unwrap();
    bytes[at..at + 7].copy_from_slice(b"gr\xf6\xdfe__");
    std::fs::write(&path, bytes).unwrap();
    assert!(content(&disk(&open(&path, false).unwrap())) == read_by_qemu("vmdk", &path));
    // What is written has to be put into the text.
    assert_eq!(open(&path, true).unwrap_err().fault(), Some(&VmdkFault::Encoding));
}

/// A folder with the seSparse fixture, and its extent's bytes.
fn sesparse() -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let case = racker_fixtures::case("vmdk/seSparse");
    case.unpack(dir.path());
    let extent = std::fs::read(dir.path().join("image-sesparse.vmdk")).unwrap();
    (dir, extent)
}

#[test]
fn sesparse_is_read_with_its_descriptor_and_without() {
    let (dir, _) = sesparse();
    let whole = open(&dir.path().join("image.vmdk"), false).unwrap();
    let alone = open(&dir.path().join("image-sesparse.vmdk"), false).unwrap();
    assert_eq!(content(&disk(&whole)), content(&disk(&alone)));
    assert_eq!(whole.facts().cluster_size, Some(4096));
    for image in [&whole, &alone] {
        racker_tests::image::runs_agree(&disk(image), &content(&disk(image)));
        let mut report = Report::default();
        image.check(&mut report).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
    drop((whole, alone));
    let e = open(&dir.path().join("image.vmdk"), true).unwrap_err();
    assert_eq!(e.kind(), Kind::ReadOnly, "{e}");
}

#[test]
fn damaged_sesparse_is_refused_or_found() {
    let (dir, good) = sesparse();
    let path = dir.path().join("image-sesparse.vmdk");
    let word = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap());
    let sector = |field: usize| word(field * 8) as usize * 512;
    let (volatile, directory, tables) = (sector(10), sector(16), sector(18));
    let with = |at: usize, value: u64| {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, bad).unwrap();
        open(&path, false)
    };
    // A journal, flags, other sizes of grains: unknown. A header without its magic, or a small directory: damaged.
    for (at, value, kind) in [
        (volatile + 24, 1, Kind::Unsupported),
        (volatile, 0, Kind::Corrupt),
        (5 * 8, 1, Kind::Unsupported),
        (3 * 8, 16, Kind::Unsupported),
        (6 * 8, 1, Kind::Unsupported),
        (2 * 8, u64::MAX, Kind::Corrupt),
        (2 * 8, 1 << 40, Kind::Corrupt),
    ] {
        assert_eq!(with(at, value).unwrap_err().kind(), kind, "{at} {value:#x}");
    }
    // Entries that lead nowhere or are of no kind: the read fails, and the check finds them.
    for (at, value) in [
        (directory, (1 << 60) | 99),
        (directory, 5),
        (tables, (3 << 60) | 0x00ff_ffff),
        (tables, 0x4 << 60),
        (tables, 7),
    ] {
        let image = with(at, value).unwrap();
        let mut all = vec![0; disk(&image).size() as usize];
        assert_eq!(disk(&image).read_at(0, &mut all).unwrap_err().kind(), Kind::Corrupt, "{value:#x}");
        let mut report = Report::default();
        image.check(&mut report).unwrap();
        assert_eq!(report.findings.len(), 1, "{value:#x}: {:?}", report.findings);
    }
}

#[test]
fn what_qemu_reads_of_damaged_sesparse_racker_reads_too() {
    let (dir, good) = sesparse();
    let mut rng = Rng::new(7);
    let mut read = 0;
    for _ in 0..40 {
        let mut bad = good.clone();
        for _ in 0..=rng.below(3) {
            // Headers, the directory, tables.
            let at = [rng.below(512), rng.below(12 << 9), rng.below(100_000)][rng.below(3) as usize];
            bad[at as usize] ^= 1 << rng.below(8);
        }
        std::fs::write(dir.path().join("image-sesparse.vmdk"), &bad).unwrap();
        let image = open(&dir.path().join("image.vmdk"), false);
        let Ok(image) = image else { continue };
        let mut all = vec![0; disk(&image).size() as usize];
        let Ok(()) = disk(&image).read_at(0, &mut all) else { continue };
        let out = dir.path().join("theirs.raw");
        let args = ["convert", "-f", "vmdk", "-O", "raw", "image.vmdk", "theirs.raw"];
        let ran = racker_tests::tool::tool("qemu-img").args(args).dir(dir.path()).run();
        if ran.status == 0 {
            assert!(std::fs::read(&out).unwrap() == all);
            read += 1;
        }
    }
    assert!(read > 3, "{read}");
}

#[test]
fn headers_that_programs_would_read_in_two_ways_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vmdk");
    let fault = |at: usize, byte: u8, subformat: &str| {
        let raw = dir.path().join("source.raw");
        source(&raw, 1 << 20, &[70_000], &mut Rng::new(1));
        let options = format!("subformat={subformat}");
        qemu::img(&["convert", "-q", "-O", "vmdk", "-o", &options, &text(&raw), &text(&path)]);
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(bytes[at] != byte);
        bytes[at] = byte;
        std::fs::write(&path, bytes).unwrap();
        open(&path, false).unwrap_err()
    };
    // The descriptor, which may name a parent, is where the header does not say.
    for sector in [0, 2] {
        let e = fault(28, sector, "monolithicSparse");
        assert!(matches!(e.fault(), Some(VmdkFault::UnnamedDescriptor)), "{e}");
    }
    // The compression method without the flag, and the flag without the method.
    let e = fault(77, 1, "monolithicSparse");
    assert!(matches!(e.fault(), Some(VmdkFault::CompressionFlag(1))), "{e}");
    let e = fault(77, 0, "streamOptimized");
    assert!(matches!(e.fault(), Some(VmdkFault::CompressionFlag(0))), "{e}");
}
