//! Files that racker knows by sight and does not read: said by name instead of being taken for raw disks.
//!
//! A driver that comes takes its line out of [`RECOGNISED`].

use crate::error::{Fault, Kind};
use crate::registry::Head;

/// Where a mark stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Bytes from the beginning.
    Start(usize),
    /// Bytes before the end.
    End(u64),
}

/// What is recognised: a phrase that fits behind "is", whether it is a disk image, and the mark.
static RECOGNISED: &[(&str, bool, At, &[u8])] = &[
    ("a qcow image of version 1", true, At::Start(0), &[b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1]),
    ("a QED image", true, At::Start(0), b"QED\0"),
    ("a Parallels image", true, At::Start(0), b"WithoutFreeSpace"),
    ("a Parallels image", true, At::Start(0), b"WithouFreSpacExt"),
    ("a Bochs image", true, At::Start(0), b"Bochs Virtual HD Image"),
    ("a cloop image", true, At::Start(0), b"#!/bin/sh\n#V2.0 Format\n"),
    ("an Apple disk image", true, At::End(512), b"koly"),
    ("an Apple sparse image", true, At::Start(0), b"sprs"),
    ("an EWF image", true, At::Start(0), b"EVF\x09\x0d\x0a\xff\x00"),
    ("a VMware SE sparse extent", true, At::Start(0), &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0]),
    ("a WIM archive", false, At::Start(0), b"MSWIM\0\0\0"),
    ("a zip archive", false, At::Start(0), b"PK\x03\x04"),
    ("a 7z archive", false, At::Start(0), b"7z\xbc\xaf\x27\x1c"),
    ("a RAR archive", false, At::Start(0), b"Rar!\x1a\x07"),
    ("a cpio archive", false, At::Start(0), b"070701"),
    ("an lz4 stream", false, At::Start(0), &[0x04, 0x22, 0x4d, 0x18]),
    ("an lzip stream", false, At::Start(0), b"LZIP\x01"),
];

/// A file that racker knows by sight and does not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is {what}, which racker does not read yet")]
pub struct Recognised {
    /// A phrase with its article.
    pub what: &'static str,
    /// Whether it is a disk image rather than an archive.
    pub is_image: bool,
}

impl Fault for Recognised {
    fn kind(&self) -> Kind {
        Kind::Unsupported
    }

    fn hint(&self) -> Option<String> {
        Some("if it is a raw disk all the same, say so with -f raw".into())
    }
}

/// Says what the file is, if it is known.
pub fn recognise(head: &Head<'_>) -> Option<Recognised> {
    let stands = |at: At, mark: &[u8]| match at {
        At::Start(at) => head.first.get(at..).is_some_and(|b| b.starts_with(mark)),
        At::End(back) => {
            let tail = crate::wire::len64(head.last.len()).checked_sub(back);
            let from = tail.and_then(|n| usize::try_from(n).ok());
            from.and_then(|n| head.last.get(n..)).is_some_and(|b| b.starts_with(mark))
        }
    };
    RECOGNISED
        .iter()
        .find(|(.., at, mark)| stands(*at, mark))
        .map(|(what, is_image, ..)| Recognised { what, is_image: *is_image })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_at_both_ends() {
        let mut file = vec![0u8; 2048];
        let look = |file: &[u8]| recognise(&Head { first: file, last: file, size: 2048 });
        assert_eq!(look(&file), None);
        file[1536..1544].copy_from_slice(b"koly\0\0\0\x04");
        assert_eq!(look(&file), Some(Recognised { what: "an Apple disk image", is_image: true }));
        file[..4].copy_from_slice(b"QED\0");
        assert_eq!(look(&file), Some(Recognised { what: "a QED image", is_image: true }));
    }
}
