//! Random operations, mirrored in a model; the checker of other people after each session, mtools now and then.

use std::collections::BTreeMap;
use std::path::Path;

use racker_formats::block::Span;
use racker_formats::error::Kind;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, New, NewKind};
use racker_tests::image::scratch;
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use super::model::{Body, Model, Node};
use super::{VARIANTS, Volume, at, name};

/// A name that meets others: short and long ones, of one case and of two, of few letters and of 255.
fn some_name(rng: &mut Rng) -> String {
    let number = rng.below(12);
    let letters = ["a", "B", "mix", "Mix", "longer name", "LONG FILE NAME", "ünïcödé", "😀 smile", ".dot"];
    let base = letters[rng.below(letters.len() as u64) as usize];
    let end = ["", ".txt", ".TXT", ".Text", ".a.b", "+x"][rng.below(6) as usize];
    match rng.below(20) {
        0 => format!("{base}{}{end}", "x".repeat(200 + number as usize)),
        1 => "é".repeat(110 + number as usize),
        2..6 => format!("f{number}"),
        _ => format!("{base}{number}{end}"),
    }
}

struct Run<'a, 't> {
    writer: &'a mut Writer<'t>,
    model: &'a mut Model,
    rng: &'a mut Rng,
    /// Bytes of the volume.
    size: u64,
    now: i64,
}

impl Run<'_, '_> {
    fn some(&mut self, of: &[usize]) -> usize {
        of[self.rng.below(of.len() as u64) as usize]
    }

    /// An entry of any directory.
    fn entry(&mut self) -> Option<(usize, String, usize)> {
        let dirs = self.model.dirs();
        for _ in 0..8 {
            let dir = self.some(&dirs);
            let entries = self.model.entries(dir);
            if !entries.is_empty() {
                let which = self.rng.below(entries.len() as u64) as usize;
                let (name, number) = entries.values().nth(which).unwrap().clone();
                return Some((dir, name, number));
            }
        }
        None
    }

    fn bytes(&mut self) -> Vec<u8> {
        // Small volumes are to be full now and then.
        let often = if self.size < 8 << 20 { 3 } else { 1 };
        let most = match self.rng.below(12) {
            0..2 => 10,
            2..4 => 600,
            4..6 => 5000,
            n if n < 12 - often => 70_000,
            _ => self.size / 2,
        };
        let mut bytes = vec![0; 1 + self.rng.below(most) as usize];
        self.rng.fill(&mut bytes);
        bytes
    }

    /// One operation; says whether the filesystem was full.
    fn step(&mut self) -> bool {
        self.now += 2 + self.rng.below(5000) as i64;
        // Trees of thousands would take most of the time to compare.
        let crowded = self.model.nodes.len() > 200 && self.rng.below(3) == 0;
        let done = match if crowded { 12 } else { self.rng.below(20) } {
            0..5 => self.create(),
            5..8 => self.write(),
            8 => self.truncate(),
            9 => self.punch(),
            10..12 => self.replace(),
            12..15 => self.unlink(),
            15..18 => self.rename(),
            18 => self.exchange(),
            _ => self.attributes(),
        };
        match done {
            Ok(()) => false,
            Err(e) if e.kind() == Kind::NoSpace => true,
            Err(e) => panic!("{e}"),
        }
    }

    fn create(&mut self) -> racker_formats::Result<()> {
        let dirs = self.model.dirs();
        let (dir, text) = (self.some(&dirs), some_name(self.rng));
        let is_dir = self.rng.below(4) == 0;
        let read_only = self.rng.below(8) == 0;
        let kind = if is_dir { NewKind::Dir } else { NewKind::File };
        let new = New { kind, mode: if read_only { 0o444 } else { 0o644 }, uid: 0, gid: 0 };
        let made = self.writer.create(self.model.id(dir), &name(&text), &new, at(self.now));
        if self.model.find(dir, &text).is_some() {
            assert_eq!(made.unwrap_err().kind(), Kind::Exists);
            return Ok(());
        }
        let body = if is_dir { Body::Dir(BTreeMap::new()) } else { Body::File(Vec::new()) };
        self.model.add(dir, &text, Node { id: made?, body, mtime: self.now, read_only }, self.now);
        Ok(())
    }

    fn file(&mut self) -> Option<usize> {
        let files = self.model.files();
        (!files.is_empty()).then(|| self.some(&files))
    }

    fn write(&mut self) -> racker_formats::Result<()> {
        let Some(file) = self.file() else { return Ok(()) };
        let bytes = self.bytes();
        let size = self.model.data(file, self.model.nodes[&file].mtime).len() as u64;
        let from = match self.rng.below(4) {
            0 => size,
            1 => size + self.rng.below(20_000),
            _ => self.rng.below(size + 1),
        };
        self.writer.write(self.model.id(file), from, &bytes, at(self.now))?;
        let data = self.model.data(file, self.now);
        let end = from as usize + bytes.len();
        if end > data.len() {
            data.resize(end, 0);
        }
        data[from as usize..end].copy_from_slice(&bytes);
        Ok(())
    }

    fn truncate(&mut self) -> racker_formats::Result<()> {
        let Some(file) = self.file() else { return Ok(()) };
        let size = [0, self.rng.below(5000), self.rng.below(100_000)][self.rng.below(3) as usize];
        self.writer.truncate(self.model.id(file), size, at(self.now))?;
        self.model.data(file, self.now).resize(size as usize, 0);
        Ok(())
    }

    fn punch(&mut self) -> racker_formats::Result<()> {
        let Some(file) = self.file() else { return Ok(()) };
        let size = self.model.data(file, self.model.nodes[&file].mtime).len() as u64;
        if size == 0 {
            return Ok(());
        }
        let start = self.rng.below(size);
        let span = Span::new(start, 1 + self.rng.below(size - start)).unwrap();
        self.writer.punch(self.model.id(file), span, at(self.now))?;
        self.model.data(file, self.now)[start as usize..span.end() as usize].fill(0);
        Ok(())
    }

    fn replace(&mut self) -> racker_formats::Result<()> {
        let Some(file) = self.file() else { return Ok(()) };
        let bytes = self.bytes();
        let content = Content { reader: &mut &bytes[..], size: bytes.len() as u64 };
        self.writer.replace(self.model.id(file), content, at(self.now))?;
        *self.model.data(file, self.now) = bytes;
        Ok(())
    }

    fn unlink(&mut self) -> racker_formats::Result<()> {
        let Some((dir, text, number)) = self.entry() else { return Ok(()) };
        let done = self.writer.unlink(self.model.id(dir), &name(&text), at(self.now));
        if self.model.is_empty(number) {
            done?;
            self.model.remove(dir, &text, self.now);
        } else {
            let kind = done.unwrap_err().kind();
            assert!(matches!(kind, Kind::Invalid | Kind::NotEmpty | Kind::IsDir | Kind::NotDir), "{kind:?}");
        }
        Ok(())
    }

    fn rename(&mut self) -> racker_formats::Result<()> {
        let Some((from, text, number)) = self.entry() else { return Ok(()) };
        let dirs = self.model.dirs();
        let to = if self.rng.below(2) == 0 { from } else { self.some(&dirs) };
        let new = match self.rng.below(4) {
            // The same name in another case.
            0 => text
                .chars()
                .map(|c| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
                .collect(),
            1 => self.entry().map_or_else(|| text.clone(), |(_, text, _)| text),
            _ => some_name(self.rng),
        };
        let old = self.model.find(to, &new).filter(|old| *old != number);
        let allowed = old.is_none_or(|old| {
            self.model.is_dir(old) == self.model.is_dir(number) && self.model.is_empty(old)
        }) && !(from != to && self.model.is_below(to, number));
        let (from_id, to_id) = (self.model.id(from), self.model.id(to));
        let done = self.writer.rename((from_id, &name(&text)), (to_id, &name(&new)), at(self.now));
        if !allowed {
            let kind = done.unwrap_err().kind();
            assert!(matches!(kind, Kind::Invalid | Kind::NotEmpty | Kind::IsDir | Kind::NotDir), "{kind:?}");
            return Ok(());
        }
        done?;
        if from != to || text != new {
            self.model.rename((from, &text), (to, &new), self.now);
        }
        Ok(())
    }

    fn exchange(&mut self) -> racker_formats::Result<()> {
        let (Some((a, one, x)), Some((b, other, y))) = (self.entry(), self.entry()) else { return Ok(()) };
        let allowed = !self.model.is_below(b, x) && !self.model.is_below(a, y);
        let (a_id, b_id) = (self.model.id(a), self.model.id(b));
        let done = self.writer.exchange((a_id, &name(&one)), (b_id, &name(&other)), at(self.now));
        if x == y {
            return done;
        }
        if !allowed {
            let kind = done.unwrap_err().kind();
            assert!(matches!(kind, Kind::Invalid | Kind::NotEmpty | Kind::IsDir | Kind::NotDir), "{kind:?}");
            return Ok(());
        }
        done?;
        self.model.exchange((a, &one), (b, &other), self.now);
        Ok(())
    }

    fn attributes(&mut self) -> racker_formats::Result<()> {
        let Some((_, _, number)) = self.entry() else { return Ok(()) };
        let mode = [None, Some(0o400), Some(0o755)][self.rng.below(3) as usize];
        let mtime = (self.rng.below(2) == 0).then(|| 400_000_000 + self.rng.below(1 << 31) as i64);
        let change = Change { mode, mtime: mtime.map(at), atime: mtime.map(at), ..Change::default() };
        self.writer.set_attributes(self.model.id(number), &change, at(self.now))?;
        let node = self.model.nodes.get_mut(&number).unwrap();
        node.mtime = mtime.unwrap_or(node.mtime);
        node.read_only = mode.map_or(node.read_only, |mode| mode & 0o200 == 0);
        Ok(())
    }
}

/// Random operations on one filesystem. mtools reads it at the end, and `mtools` times before.
fn work(options: &str, kib: u64, steps: u64, most: u64, mtools: u64, seed: u64) -> u64 {
    let dir = scratch();
    let volume = Volume::make(dir.path(), options, kib);
    // mtools read no FAT32 of so few clusters that another width would do.
    let readable = tool("mdir").arg("-i").arg(&volume.0).arg("::/").run().status == 0;
    let rng = &mut Rng::new(seed);
    let mut model = Model::new(volume.open().root());
    let (mut done, mut full, mut now) = (0, 0, 1_000_000_000);
    while done < steps {
        let count = (1 + rng.below(most)).min(steps - done);
        let when = format!("mkfs.vfat {options}, seed {seed}, operations {done} to {}", done + count);
        volume.change(|writer| {
            let fs = writer.filesystem().clone();
            model.agrees(fs.as_ref(), true, &when);
            for _ in 0..count {
                let mut run = Run { writer, model: &mut model, rng, size: kib << 10, now };
                full += u64::from(run.step());
                now = run.now;
            }
            model.agrees(fs.as_ref(), false, &when);
        });
        model.agrees(volume.open().as_ref(), true, &when);
        volume.is_clean(&when);
        let before = done;
        done += count;
        let every = steps / (mtools + 1);
        if readable && before / every != done / every {
            read_by_mtools(dir.path(), &volume, &model, &when);
        }
    }
    if readable {
        read_by_mtools(dir.path(), &volume, &model, options);
    }
    full
}

/// What mtools copies out: all files with names in ASCII by name, the others by content.
fn read_by_mtools(dir: &Path, volume: &Volume, model: &Model, when: &str) {
    let out = dir.join("copied");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir(&out).unwrap();
    if model.nodes.len() > 1 {
        // Names that the locale of the test does not have come out changed.
        // Its check of the table takes the last cluster for one too many (mtools 4.0.32).
        let ran = tool("mcopy")
            .env("MTOOLS_SKIP_CHECK", "1")
            .args(["-s", "-n", "-Q", "-i"])
            .arg(&volume.0)
            .args(["::/*"])
            .arg(&out)
            .run();
        assert_eq!(ran.status, 0, "{when}: {ran}");
    }
    let mut found = BTreeMap::new();
    let mut waiting = vec![out];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            } else {
                *found.entry(std::fs::read(entry.path()).unwrap()).or_insert(0) += 1;
            }
        }
    }
    let mut want = BTreeMap::new();
    for node in model.nodes.values() {
        if let Body::File(data) = &node.body {
            *want.entry(data.clone()).or_insert(0) += 1;
        }
    }
    assert!(found == want, "{when}: mtools copies something else: {} files of {}", found.len(), want.len());
}

#[test]
fn random_operations_leave_what_a_model_says() {
    let mut full = 0;
    for (number, (options, kib)) in (0u64..).zip(VARIANTS) {
        full += work(options, *kib, 600, 12, 1, 70 + number);
    }
    assert!(full > 20, "the filesystems were full {full} times");
}

/// Every `VARIANTS` of one width, 105,000 operations in all:
/// `cargo test --release -p racker-tests --test all -- --ignored fat::random`
fn many(width: &str) {
    let all = (0u64..).zip(VARIANTS).filter(|(_, (options, _))| options.starts_with(width));
    for (number, (options, kib)) in all {
        work(options, *kib, 15_000, 40, 20, 700 + number);
    }
}

#[test]
#[ignore = "takes many minutes"]
fn many_on_fat12() {
    many("-F 12");
}

#[test]
#[ignore = "takes many minutes"]
fn many_on_fat16() {
    many("-F 16");
}

#[test]
#[ignore = "takes many minutes"]
fn many_on_fat32() {
    many("-F 32");
}
