//! Partitions, volumes, filesystems and paths inside a disk.
//!
//! From the outside in: a [`partition`] table cuts a disk into volumes, a volume carries a [`filesystem`], a
//! [`drivers`] module knows how one kind of filesystem lies on a volume. Drivers speak of nodes and names, never
//! of paths. This crate takes any [`Disk`](racker_formats::block::Disk) and knows no image format.

#![cfg_attr(test, allow(clippy::as_conversions, clippy::arithmetic_side_effects))]

pub mod drivers;
pub mod filesystem;
pub mod partition;
