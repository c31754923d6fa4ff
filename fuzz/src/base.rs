//! Images of the fixtures, in memory without their holes.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::sync::{Mutex, OnceLock};

use racker_fixtures::{Case, group};
use racker_formats::block::{BlockDevice, Caps, Disk};
use racker_formats::error::Result;

use crate::Clock;

/// Bytes of a sector: what a record changes.
pub const SECTOR: usize = 512;

/// Bytes of the pieces that a base is kept in.
const CHUNK: usize = 4096;

/// What a target wants to damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Files around disks.
    Image,
    /// Disks with a partition table.
    Partition,
    /// Volumes with a filesystem.
    Filesystem,
    /// The same, to be changed.
    Editable,
}

impl Kind {
    fn groups(self) -> &'static [&'static str] {
        match self {
            Self::Image => &["qcow2", "vmdk", "vhd", "vhdx", "vdi", "vagrant", "attacks", "differencing"],
            Self::Partition => &["partition"],
            Self::Filesystem | Self::Editable => &["xfs", "ext2", "ext3", "ext4", "fat"],
        }
    }

    fn go_through(self, disk: Disk, base: &Base) {
        match self {
            Self::Image => crate::walk::image(disk, Clock::start()),
            Self::Partition => crate::walk::partitions(&disk),
            Self::Filesystem => {
                let fs = crate::walk::open(disk.clone(), Some(base)).expect("an undamaged filesystem");
                crate::walk::filesystem(fs, Clock::start());
                crate::walk::check(&disk, Some(base));
            }
            Self::Editable => {
                let driver = crate::walk::driver(&disk, Some(base)).expect("an undamaged filesystem");
                crate::edit::edit(disk, driver, Clock::start());
            }
        }
    }
}

/// One undamaged image.
#[derive(Debug)]
pub struct Base {
    /// `group/case`.
    pub name: String,
    size: u64,
    /// Pieces that are not all zeroes.
    chunks: HashMap<u64, Box<[u8; CHUNK]>>,
    /// Sectors that were read when the image was gone through, in that order.
    hot: OnceLock<Vec<u64>>,
}

static ALL: [OnceLock<Vec<Slot>>; 4] = [const { OnceLock::new() }; 4];

struct Slot {
    case: Case,
    file: String,
    base: OnceLock<Base>,
}

/// The base of a number, if there are so many of the kind.
pub fn of(kind: Kind, number: usize) -> Option<&'static Base> {
    let slots = ALL.get(kind as usize)?.get_or_init(|| slots(kind));
    let slot = slots.get(number)?;
    let base = slot.base.get_or_init(|| Base::read(&slot.case, &slot.file));
    base.hot.get_or_init(|| base.watch(kind));
    Some(base)
}

fn slots(kind: Kind) -> Vec<Slot> {
    let groups = kind.groups().iter().filter(|g| racker_fixtures::root().join(g).is_dir());
    let cases = groups.flat_map(|g| group(g));
    let files = cases.flat_map(|case| case.images().into_iter().map(move |file| (case.clone(), file)));
    files.map(|(case, file)| Slot { case, file, base: OnceLock::new() }).collect()
}

impl Base {
    fn read(case: &Case, file: &str) -> Self {
        let mut from = case.open(file).expect("a fixture that is there");
        let mut chunks = HashMap::new();
        let mut size = 0u64;
        let mut buf = vec![0; 1 << 20];
        loop {
            let mut len = 0;
            while len < buf.len() {
                match from.read(&mut buf[len..]).expect("a fixture that can be read") {
                    0 => break,
                    n => len += n,
                }
            }
            for (i, piece) in buf[..len].chunks(CHUNK).enumerate() {
                if !racker_formats::wire::is_zero(piece) {
                    let mut chunk = Box::new([0; CHUNK]);
                    chunk[..piece.len()].copy_from_slice(piece);
                    chunks.insert(size / CHUNK as u64 + i as u64, chunk);
                }
            }
            size += len as u64;
            if len < buf.len() {
                break;
            }
        }
        Self { name: case.name.clone(), size, chunks, hot: OnceLock::new() }
    }

    /// Goes through the undamaged image and notes what is read.
    fn watch(&'static self, kind: Kind) -> Vec<u64> {
        let seen = &*Box::leak(Box::new(Mutex::new((BTreeSet::new(), Vec::new()))));
        kind.go_through(Disk::new(Watched { base: self, seen }), self);
        let mut seen = seen.lock().expect("nobody panicked");
        let (_, order) = std::mem::take(&mut *seen);
        order
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A sector as it is in the image.
    pub fn sector(&self, number: u64) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        self.fill(number * SECTOR as u64, &mut sector);
        sector
    }

    /// The bytes of the image.
    pub fn fill(&self, at: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let within = (here % CHUNK as u64) as usize;
            let to = &mut buf[done..];
            let len = (CHUNK - within).min(to.len());
            match self.chunks.get(&(here / CHUNK as u64)) {
                Some(chunk) => to[..len].copy_from_slice(&chunk[within..within + len]),
                None => to[..len].fill(0),
            }
            done += len;
        }
    }

    /// The sectors worth changing.
    pub fn hot(&self) -> &[u64] {
        self.hot.get().map_or(&[], Vec::as_slice)
    }
}

/// Notes every sector when it is read first.
#[derive(Debug)]
struct Watched {
    base: &'static Base,
    seen: &'static Mutex<(BTreeSet<u64>, Vec<u64>)>,
}

impl BlockDevice for Watched {
    fn size(&self) -> u64 {
        self.base.size
    }

    fn caps(&self) -> Caps {
        Caps::READ_ONLY
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut seen = self.seen.lock().expect("nobody panicked");
        let (set, order) = &mut *seen;
        let last = (at + buf.len() as u64 - 1) / SECTOR as u64;
        for sector in at / SECTOR as u64..=last {
            if set.insert(sector) {
                order.push(sector);
            }
        }
        self.base.fill(at, buf);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
