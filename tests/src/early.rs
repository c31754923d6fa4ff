//! Edits of raw disks: what is stored before they are decided, and what then decides them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use racker_formats::Result;
use racker_formats::block::{BlockDevice, Caps, Disk, Span};
use racker_formats::transaction::redo_path;
use racker_fs::inspect::Inspection;

use crate::sim::{CrashDisk, Sparse};

/// The file of an image that is being edited: keeps the redo file as it is when the image changes because of it.
#[derive(Debug)]
pub struct Watched {
    image: Arc<CrashDisk<Sparse>>,
    redo: PathBuf,
    sealed: Mutex<Option<Sealed>>,
    /// The image was flushed with no redo file there, and not written since.
    settled: Mutex<bool>,
}

/// A redo file that decides.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// The image before it is applied.
    pub image: Sparse,
    /// The operations on the image until then.
    pub operations: usize,
}

impl Watched {
    /// The file at `path`, in memory.
    pub fn new(image: Arc<CrashDisk<Sparse>>, path: &Path) -> Self {
        Self { image, redo: redo_path(path), sealed: Mutex::default(), settled: Mutex::default() }
    }

    /// What decided the edit; none if it came to nothing.
    pub fn sealed(&self) -> Option<Sealed> {
        self.sealed.lock().expect("no test thread failed before").clone()
    }

    /// A change is coming.
    fn look(&self) {
        let mut sealed = self.sealed.lock().expect("no test thread failed before");
        if sealed.is_some() {
            return;
        }
        let mut settled = self.settled.lock().expect("no test thread failed before");
        if !self.redo.exists() {
            *settled = false;
            return;
        }
        let early = !self.image.is_empty();
        assert!(!early || *settled, "what is stored early is flushed before the rest is sealed");
        *sealed = Some(Sealed {
            bytes: std::fs::read(&self.redo).expect("a redo file"),
            image: self.image.bytes(),
            operations: self.image.len(),
        });
    }
}

impl BlockDevice for Watched {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn caps(&self) -> Caps {
        self.image.caps()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.image.read_at(at, buf)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.look();
        self.image.write_at(at, data)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.look();
        self.image.resize(size)
    }

    fn flush(&self) -> Result<()> {
        if !self.redo.exists() {
            *self.settled.lock().expect("no test thread failed before") = true;
        }
        self.image.flush()
    }
}

/// What a disk holds before an edit, and which of its bytes mean nothing: what its filesystems call free.
#[derive(Debug)]
pub struct Before {
    /// All of it.
    pub guest: Sparse,
    free: Vec<Span>,
}

impl Before {
    /// A disk whose filesystems are clean.
    pub fn of(guest: Sparse) -> Self {
        let disk = Disk::new(CrashDisk::new(guest.clone())).read_only();
        let inspection = Inspection::of(&disk).expect("a disk with filesystems");
        let mut free = Vec::new();
        for volume in inspection.volumes.iter().filter(|v| v.driver().is_some()) {
            let start = volume.span().expect("partitions only").start();
            let visit = &mut |span: Span| {
                free.push(Span::new(start + span.start(), span.len())?);
                Ok(std::ops::ControlFlow::Continue(()))
            };
            let reliable = volume.filesystem().and_then(|fs| fs.free_space(visit));
            assert!(reliable.expect("a sound filesystem"), "edits leave filesystems clean");
        }
        free.sort_unstable();
        Self { guest, free }
    }

    /// Says that some more bytes mean nothing.
    pub fn spare(&mut self, at: u64, len: u64) {
        self.free.push(Span::new(at, len).expect("inside the disk"));
        self.free.sort_unstable();
    }

    /// Whether `found` differs from it; anywhere but in what is free, it may not.
    pub fn differs(&self, found: &Sparse, when: &str) -> bool {
        let mut differs = false;
        self.guest.differences(found, |at, len| {
            differs = true;
            let (mut at, end) = (at as u64, (at + len) as u64);
            while at < end {
                let next = self.free.partition_point(|span| span.end() <= at);
                let inside = self.free.get(next).filter(|span| span.start() <= at);
                at = inside.unwrap_or_else(|| panic!("{when}: byte {at} is neither old nor free")).end();
            }
        });
        differs
    }
}
