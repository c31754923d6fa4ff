//! Damaged images are refused or read, and nothing else.

use std::time::{Duration, Instant};

use racker_formats::block::{Disk, MemDevice, Span};
use racker_formats::check::{Report, Severity};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::{content, disk, open, open_disk, text};

/// Reads all that can be read of what can be opened, and writes to it.
fn exercise(bytes: Vec<u8>) {
    let began = Instant::now();
    let file = Disk::new(MemDevice::from_bytes(bytes));
    let Ok(image) = open_disk(file.clone(), true).or_else(|_| open_disk(file.read_only(), false)) else {
        return;
    };
    let guest = disk(&image);
    let mut buf = vec![0; 70_000];
    for (span, kind) in guest.runs(Span::first(guest.size())).map_while(Result::ok).take(2000) {
        let len = usize::try_from(span.len()).unwrap_or(buf.len()).min(buf.len());
        if guest.read_at(span.start(), &mut buf[..len]).is_ok() && kind.is_zero() {
            assert!(buf[..len].iter().all(|b| *b == 0));
        }
    }
    let _ = image.check(&mut Report::default());
    if guest.writable() && guest.size() > 200_000 {
        let _ = guest.write_at(guest.size() - 100_000, &buf);
        let _ = guest.write_at(0, &buf);
        let _ = guest.write_zeroes(Span::new(0, 140_000).unwrap());
        let _ = guest.discard(Span::new(65_536, 131_072).unwrap());
        let _ = guest.flush();
        // What is mended is sound, and can be written.
        let mut mended = Report { repair: true, ..Report::default() };
        if image.check(&mut mended).is_ok() && mended.findings.iter().all(|f| f.repaired) {
            let _ = image.check(&mut Report { repair: true, ..Report::default() });
            let mut again = Report::default();
            image.check(&mut again).unwrap();
            assert!(again.findings.iter().all(|f| f.severity == Severity::Leak), "{:?}", again.findings);
            guest.write_at(0, &buf).unwrap();
            let mut found = vec![0; buf.len()];
            guest.read_at(0, &mut found).unwrap();
            assert!(found == buf, "a mended image reads what was written");
        }
        let _ = guest.resize(guest.size() + 70_000);
        let _ = guest.resize(guest.size() / 2);
        let _ = guest.flush();
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn flipped_bytes_anywhere_in_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vmdk");
    let mut rng = Rng::new(11);
    for subformat in ["monolithicSparse", "streamOptimized", "monolithicSparse,zeroed_grain=on"] {
        let raw = dir.path().join("source.raw");
        super::source(&raw, 3 << 20, &[1 << 20], &mut rng);
        qemu::img(&[
            "convert",
            "-O",
            "vmdk",
            "-o",
            &format!("subformat={subformat}"),
            &text(&raw),
            &text(&path),
        ]);
        let good = std::fs::read(&path).unwrap();
        mutate(&good, 66_048, &mut rng);
    }
    // One whose tables and footer are at its end.
    let raw = dir.path().join("source.raw");
    let vmdk = racker_formats::registry::by_name("vmdk").unwrap();
    let options =
        racker_formats::options::Values::parse("vmdk", vmdk.options(), [("subformat", "streamOptimized")]);
    let plan =
        racker_formats::registry::Plan { size: 3 << 20, options: options.unwrap(), ..Default::default() };
    let out = std::sync::Arc::new(MemDevice::new(0));
    let sink = vmdk.sink(Disk::from_arc(out.clone()), &plan).unwrap();
    racker_formats::convert::convert(&super::file(&raw), sink, Default::default(), &mut |_| ()).unwrap();
    let good = out.to_bytes();
    mutate(&good, 66_048, &mut rng);
    let tail = good.len() - 6 * 512;
    for _ in 0..1000 {
        let mut bad = good.clone();
        for _ in 0..=rng.below(3) {
            let at = tail + rng.below((good.len() - tail) as u64) as usize;
            bad[at] = rng.number() as u8;
        }
        exercise(bad);
    }
}

/// Changes bytes of the first `head` ones, fields more often than others; and cuts the file.
fn mutate(good: &[u8], head: usize, rng: &mut Rng) {
    let head = head.min(good.len());
    for round in 0..1000u32 {
        let mut bad = good.to_vec();
        for _ in 0..=rng.below(4) {
            let within = if round % 2 == 0 { 128 } else { head };
            let at = rng.below(within as u64) as usize;
            bad[at] = match rng.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bad[at] ^ (1 << rng.below(8)),
                _ => rng.number() as u8,
            };
        }
        exercise(bad);
    }
    for cut in (0..good.len()).step_by(good.len() / 200 + 1) {
        exercise(good[..cut].to_vec());
    }
}

/// Whatever a descriptor says, it ends in an answer, and no file outside is opened.
#[test]
fn shuffled_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vmdk");
    qemu::img(&["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", &text(&path), "1M"]);
    let good = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let odd = [
        "RW",
        "RW 1",
        "RW 99999999999999999999 ZERO",
        "RW 18446744073709551615 ZERO",
        "parentCID=0",
        "=",
        "\"",
        "RW 1 FLAT \"image.vmdk\" 0",
        "RW 1 SPARSE \"image.vmdk\"",
        "parentFileNameHint=\"image.vmdk\"",
        "createType=\"\"",
        "RW 2048 FLAT \"image-f001.vmdk\" 18446744073709551615",
        "version=99",
        "CID=zz",
        "RW 0 ZERO",
        "\0",
        "\u{fffd}",
    ];
    let mut rng = Rng::new(2);
    for _ in 0..3000 {
        let mut text: Vec<&str> = lines.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(text.len() as u64) as usize;
            match rng.below(3) {
                0 => text[at] = odd[rng.below(odd.len() as u64) as usize],
                1 => text.insert(at, odd[rng.below(odd.len() as u64) as usize]),
                _ => drop(text.remove(at)),
            }
        }
        std::fs::write(&path, text.join("\n")).unwrap();
        if let Ok(image) = open(&path, false)
            && image.size() < 1 << 24
        {
            let _ = content(&disk(&image));
        }
    }
}

#[test]
fn noise_in_sesparse_does_no_harm() {
    let good = racker_fixtures::case("vmdk/seSparse").read("image-sesparse.vmdk").unwrap();
    let mut rng = Rng::new(11);
    let mut opened = 0;
    for round in 0..400 {
        let mut bad = good.clone();
        for _ in 0..=rng.below(6) {
            // Headers, the directory and the tables, which end before 256 KiB; bits, bytes and whole fields.
            let at =
                [rng.below(256), rng.below(12 << 9), rng.below(256 << 10)][rng.below(3) as usize] as usize;
            match rng.below(3) {
                0 => bad[at] ^= 1 << rng.below(8),
                1 => bad[at] = rng.number() as u8,
                _ => bad[at & !7..(at & !7) + 8].copy_from_slice(&rng.number().to_le_bytes()),
            }
        }
        if round % 5 == 0 {
            bad.truncate(rng.below(bad.len() as u64) as usize);
        }
        let Ok(image) = open_disk(Disk::new(MemDevice::from_bytes(bad)), false) else { continue };
        opened += 1;
        let disk = disk(&image);
        let whole = Span::first(disk.size());
        // An error ends the walk; that it ends is what counts.
        let walked = disk.runs(whole).take(100_000).filter(|r| r.is_ok()).count();
        assert!(walked < 100_000);
        let mut buf = vec![0; 64 << 10];
        for _ in 0..20 {
            let _ = disk.read_at(rng.below(disk.size().saturating_sub(buf.len() as u64).max(1)), &mut buf);
        }
        let _ = image.check(&mut Report::default());
    }
    assert!(opened > 100, "{opened}");
}
