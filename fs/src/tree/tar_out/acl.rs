//! POSIX ACLs: from the kernel's bytes to the text that tar programs exchange.

use racker_formats::wire::{take, view};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Which pax keyword carries an extended attribute's ACL as text.
pub(super) fn keyword(xattr: &[u8]) -> Option<&'static str> {
    match xattr {
        b"system.posix_acl_access" => Some("SCHILY.acl.access"),
        b"system.posix_acl_default" => Some("SCHILY.acl.default"),
        _ => None,
    }
}

/// `ACL_EA_VERSION` of linux/posix_acl_xattr.h.
const VERSION: u32 = 2;

/// `struct posix_acl_xattr_entry`.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    e_tag: U16,
    e_perm: U16,
    e_id: U32,
}

/// The ACL as text with numbers for users and groups; nothing if the bytes are no ACL.
///
/// star repeats the number in a fourth field where the second is a name. GNU tar cuts the fourth field off,
/// libarchive prefers it.
pub(super) fn to_text(value: &[u8]) -> Option<String> {
    let version = view::<U32>(value, "ACL").ok()?;
    let rest = value.get(4..)?;
    if version.get() != VERSION || rest.is_empty() {
        return None;
    }
    let (entries, odd) = rest.as_chunks::<8>();
    if !odd.is_empty() {
        return None;
    }
    let mut words = Vec::with_capacity(entries.len());
    for bytes in entries {
        let entry: RawEntry = take(bytes, 0, "ACL entry").ok()?;
        let perm = entry.e_perm.get();
        let bit = |mask: u16, letter: char| if perm & mask != 0 { letter } else { '-' };
        let rwx: String = [bit(4, 'r'), bit(2, 'w'), bit(1, 'x')].iter().collect();
        let id = entry.e_id.get();
        words.push(match entry.e_tag.get() {
            0x01 => format!("user::{rwx}"),
            0x02 => format!("user:{id}:{rwx}:{id}"),
            0x04 => format!("group::{rwx}"),
            0x08 => format!("group:{id}:{rwx}:{id}"),
            0x10 => format!("mask::{rwx}"),
            0x20 => format!("other::{rwx}"),
            _ => return None,
        });
    }
    Some(words.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that `setfacl -m u:1000:r,g:50:rw` left on a file of mode 0644 (Linux 6.18, ext4).
    #[test]
    fn reads_what_setfacl_made() {
        let value = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255,
            255, 8, 0, 6, 0, 50, 0, 0, 0, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
        ];
        assert_eq!(
            to_text(&value).unwrap(),
            "user::rw-,user:1000:r--:1000,group::r--,group:50:rw-:50,mask::rw-,other::r--"
        );
        assert_eq!(to_text(&value[..50]), None);
        assert_eq!(to_text(&[3, 0, 0, 0]), None);
    }
}
