//! One binary for all integration tests.

// Test code may count, index and unwrap freely, its helpers included.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod attacks;
mod cli;
mod commands;
mod commit;
mod container;
mod convert;
mod copy;
mod crash;
mod early;
mod edit;
mod ext4;
mod extract;
mod fat;
mod files;
mod fixtures;
mod fs_check;
mod full;
mod holes;
mod identity;
mod live;
mod map;
mod matrix;
mod mirror;
mod mount;
mod nbd;
mod nbd_abuse;
mod nbd_client;
mod nbd_frames;
mod nbd_overlay;
mod nbd_psk;
mod nbd_replies;
mod noise;
mod package;
mod pairs;
mod part;
mod partition;
mod power;
mod qcow2;
mod rebase;
mod redo;
mod reflink;
mod sizes;
mod sparsify;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod walk;
mod whole;
mod xfs;
