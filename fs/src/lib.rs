//! Partitions, volumes, filesystems and paths inside a disk.
//!
//! From the outside in: a [`partition`] table cuts a disk into volumes, [`inspect`] finds them, a volume carries a
//! [`filesystem`], a module of [`drivers`] knows how one kind of filesystem lies on a volume. Drivers speak of nodes
//! and names, never of paths: [`path`] is the only place that resolves one, over a tree that [`guest`] puts together
//! the way the operating system on the disk would mount it. [`edit`] ties a writer to its transaction.
//!
//! This crate takes any [`Disk`](racker_formats::block::Disk) and knows no image format.

#![cfg_attr(test, allow(clippy::as_conversions, clippy::arithmetic_side_effects))]

pub mod boot;
mod cache;
mod claims;
pub mod cut;
pub mod drivers;
pub mod edit;
pub mod filesystem;
mod fresh;
pub mod guest;
mod identity;
pub mod inspect;
pub mod partition;
pub mod path;
pub mod recognised;
pub mod selinux;
pub mod sparsify;
pub mod tree;
pub mod volume;
