//! What is done to a filesystem, in words that racker and the kernel both understand.

use racker_fs::filesystem::Time;
use racker_tests::rng::Rng;

/// Names from the root down; none is the root.
pub(super) type Place = Vec<Vec<u8>>;

/// Bytes that need no room until they are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub(super) seed: u64,
    pub(super) len: u64,
}

impl Data {
    /// All of them.
    pub(super) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap()];
        Rng::new(self.seed).fill(&mut bytes);
        bytes
    }
}

/// What a new node is.
#[derive(Clone, Debug)]
pub(super) enum Make {
    File,
    Dir,
    Link(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

/// One operation.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create {
        at: Place,
        make: Make,
        mode: u32,
        owner: (u32, u32),
    },
    Write {
        file: Place,
        at: u64,
        data: Data,
    },
    Truncate {
        file: Place,
        size: u64,
    },
    Punch {
        file: Place,
        at: u64,
        len: u64,
    },
    Replace {
        file: Place,
        data: Data,
    },
    Link {
        node: Place,
        at: Place,
    },
    Remove {
        at: Place,
    },
    Rename {
        from: Place,
        to: Place,
    },
    Exchange {
        one: Place,
        other: Place,
    },
    Owner {
        node: Place,
        owner: (u32, u32),
        mode: Option<u32>,
    },
    Times {
        node: Place,
        atime: Time,
        mtime: Time,
    },
    Flags {
        node: Place,
        flags: u32,
    },
    Xattr {
        node: Place,
        name: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    /// Entries of one directory: further links of a node, or new files.
    Many {
        dir: Place,
        names: Vec<Vec<u8>>,
        node: Option<Place>,
    },
    /// Entries of one directory go.
    Few {
        dir: Place,
        names: Vec<Vec<u8>>,
    },
    /// One file over most of what is free.
    Ballast {
        file: Place,
        data: Data,
    },
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of it is done.
    Done,
    /// So many of its names are done, and there was room for no more.
    Part(usize),
    /// Nothing of it is done: there was no room.
    Refused,
}

/// The directory of a place, and its name there.
pub(super) fn split(place: &Place) -> (&[Vec<u8>], &[u8]) {
    let (name, dir) = place.split_last().expect("the root has no name");
    (dir, name)
}
