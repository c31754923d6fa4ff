//! The racker command.

fn main() {}
