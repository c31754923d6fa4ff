//! The block layer: what a disk is, and the disks that are not image formats.

mod device;
mod disk;
mod file;
mod fresh;
mod lock;
mod mem;
mod reader;
pub mod redo;
mod slice;
mod span;
mod staged;

pub use device::{BlockDevice, Caps, Run, RunKind, Support};
pub use disk::Disk;
pub use file::FileDevice;
pub use lock::{LockMode, Locked, lock};
pub use mem::MemDevice;
pub use reader::Reader;
pub use slice::SliceDevice;
pub use span::{BlockSize, Span};
pub(crate) use staged::with_zeroes;
pub use staged::{Change, ChangeKind, Staged};
