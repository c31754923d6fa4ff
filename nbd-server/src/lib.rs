//! The NBD server over any [`Disk`](racker_formats::block::Disk): exports are disks by name, and the server knows
//! nothing else.
//!
//! NBD's `doc/proto.md` in full, with the extensions for 64-bit lengths and for resizing. Oldstyle negotiation, which
//! the document forbids to new servers, is left out.
//!
//! * [`server`]: exports and connections together, and how they end
//! * [`export`]: a disk with a name; [`context`]: what it says of its stretches
//! * [`listen`]: where connections come from; [`stream`]: both directions of one; [`tls`]: the
//!   same for nobody else to read
//! * [`wire`]: numbers and frames; [`errno`]: the numbers of errors
//! * `handshake`: options; `request`: from a frame to a checked request; `connection`: requests carried out, with
//!   `read`, `status` and `reply`; `scratch`: the buffers of one thread; `pages`: reads that nobody copies
//! * [`kernel`]: the client in the kernel, which makes devices of exports
//! * [`limits`]: what clients may ask for
//!
//! Clients are hostile: each length meets a limit before memory, spans are checked once, in `request`, and what a
//! client sends can end its own connection and nothing else.

#![cfg_attr(test, allow(clippy::as_conversions, clippy::arithmetic_side_effects))]

pub mod client;
mod connection;
pub mod context;
pub mod errno;
pub mod export;
mod handshake;
pub mod kernel;
pub mod limits;
pub mod listen;
mod pages;
mod read;
mod reply;
mod request;
mod scratch;
pub mod server;
mod spin;
mod status;
pub mod stream;
pub mod tls;
pub mod wire;

pub use export::Export;
pub use server::Server;
