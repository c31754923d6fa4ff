//! Access control lists: ext4 leaves out the ids that say nothing, the kernel's attribute has them all.

use racker_formats::error::Result;
use racker_formats::wire::take;

use super::fault::Ext4Fault;

const VERSION_ON_DISK: u32 = 1;
const VERSION_OF_KERNEL: u32 = 2;
/// Id of an entry that has none.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// The value of `system.posix_acl_access` for a list as it is on disk.
pub(super) fn to_kernel(stored: &[u8]) -> Result<Vec<u8>> {
    let wrong = |what| Ext4Fault::Acl { what };
    let version = u32::from_le_bytes(take::<[u8; 4]>(stored, 0, "access control list")?);
    if version != VERSION_ON_DISK {
        return Err(wrong("unknown version").into());
    }
    let mut out = VERSION_OF_KERNEL.to_le_bytes().to_vec();
    let mut rest = stored.get(4..).unwrap_or_default();
    while !rest.is_empty() {
        let (head, behind) = rest.split_first_chunk::<4>().ok_or_else(|| wrong("cut short"))?;
        let tag = u16::from_le_bytes([head[0], head[1]]);
        let id = match tag {
            USER_OBJ | GROUP_OBJ | MASK | OTHER => {
                rest = behind;
                NO_ID
            }
            USER | GROUP => {
                let (id, behind) = behind.split_first_chunk::<4>().ok_or_else(|| wrong("cut short"))?;
                rest = behind;
                u32::from_le_bytes(*id)
            }
            _ => return Err(wrong("unknown kind of entry").into()),
        };
        out.extend_from_slice(head);
        out.extend_from_slice(&id.to_le_bytes());
    }
    Ok(out)
}

/// The list as it is on disk for the value of `system.posix_acl_access`.
pub(super) fn to_disk(shown: &[u8]) -> Result<Vec<u8>> {
    let wrong = |what| Ext4Fault::Acl { what };
    let version = u32::from_le_bytes(take::<[u8; 4]>(shown, 0, "access control list")?);
    let (entries, rest) = shown.get(4..).unwrap_or_default().as_chunks::<8>();
    if version != VERSION_OF_KERNEL || !rest.is_empty() {
        return Err(wrong("unknown version").into());
    }
    let mut out = VERSION_ON_DISK.to_le_bytes().to_vec();
    for entry in entries {
        let (head, id) = entry.split_at(4);
        out.extend_from_slice(head);
        if matches!(u16::from_le_bytes([entry[0], entry[1]]), USER | GROUP) {
            out.extend_from_slice(id);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_filled_in() {
        let stored = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 32, 0, 4, 0];
        let kernel = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0, 32, 0, 4, 0, 255, 255,
            255, 255,
        ];
        assert_eq!(to_kernel(&stored).unwrap(), kernel);
        assert_eq!(to_disk(&kernel).unwrap(), stored);
        assert!(to_kernel(&stored[..14]).is_err());
        assert!(to_kernel(&[1, 0, 0, 0, 3, 0, 0, 0]).is_err());
    }
}
