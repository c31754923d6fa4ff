//! Writing.

mod btree;
mod ground;
mod owner;
mod records;
