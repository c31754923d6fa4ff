//! Block devices, containers, disk image formats, transactions and conversion.
//!
//! Everything is a [`Disk`](block::Disk): a host file, a member of an archive, an opened image, a part of one.
//! A format takes a disk and gives a disk. This crate knows neither filesystems nor the command line.
//!
//! * [`block`]: the device trait, the checked handle, files, slices, staged writes
//! * [`convert`]: a disk into a new image
//! * [`container`]: compressed streams and archives around a disk
//! * [`registry`]: what a format is, and probing; [`opening`]: which references may be followed
//! * [`open`]: from a path to a disk, through containers and formats
//! * [`drivers`]: the list of formats
//! * [`deflate`]: an encoder for a window of 4 KiB
//! * [`compare`]: two disks by what they read as; [`map`]: where an image keeps its disk
//! * [`measure`]: the size of a file that is not there
//! * [`transaction`]: an edit that lands whole or not at all
//! * [`package`]: OVA and boxes
//! * [`recognised`]: what is known by sight only
//! * [`options`], [`check`], [`limits`], [`wire`], [`error`]: what all of them share

#![cfg_attr(test, allow(clippy::as_conversions, clippy::arithmetic_side_effects))]

pub mod block;
pub mod check;
pub mod commit;
pub mod compare;
pub mod container;
pub mod convert;
pub mod deflate;
pub mod drivers;
pub mod error;
pub mod limits;
pub mod map;
mod mapped;
pub mod measure;
pub mod open;
pub mod opening;
pub mod options;
pub mod package;
pub mod rebase;
pub mod recognised;
pub mod registry;
pub mod sparsify;
pub mod transaction;
pub mod unopened;
pub mod wire;

pub use error::{Error, Kind, Result};
