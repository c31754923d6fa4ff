//! The simulated devices and the foreign programs that the tests use.

// Test code may count and index freely.
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::as_conversions)]

pub mod early;
pub mod image;
pub mod listener;
pub mod manifest;
pub mod mount;
pub mod qemu;
pub mod rng;
pub mod sim;
pub mod tool;
