//! POSIX access control lists as the kernel shows them (`linux/posix_acl_xattr.h`): what they say about a node's
//! mode, and what a mode says about them.

use racker_formats::error::Result;

use super::EditFault;

/// The list that decides who may do what.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that new nodes of a directory get.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Entries of the longest list.
const ENTRIES_MAX: usize = (64 << 10) / 8;

/// One entry: a tag, three bits, and for `USER` and `GROUP` a number.
#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A list whose entries come in the order of the kernel, each once, with all that must be there.
fn parse(value: &[u8]) -> Result<Vec<Entry>> {
    let wrong = |why| EditFault::List(why).into();
    let (version, rest) = value.split_first_chunk::<4>().ok_or_else(|| wrong("no version"))?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(wrong("unknown version"));
    }
    let (chunks, odd) = rest.as_chunks::<8>();
    if !odd.is_empty() || chunks.len() > ENTRIES_MAX {
        return Err(wrong("its length is wrong"));
    }
    let entries: Vec<Entry> = chunks
        .iter()
        .map(|[t0, t1, p0, p1, i0, i1, i2, i3]| Entry {
            tag: u16::from_le_bytes([*t0, *t1]),
            perm: u16::from_le_bytes([*p0, *p1]),
            id: u32::from_le_bytes([*i0, *i1, *i2, *i3]),
        })
        .collect();
    for (entry, next) in entries.iter().zip(entries.iter().skip(1)) {
        let order = |e: &Entry| (e.tag, if e.tag & (USER | GROUP) != 0 { e.id } else { 0 });
        if order(entry) >= order(next) {
            return Err(wrong("its entries are out of order"));
        }
    }
    let has = |tag| entries.iter().any(|e| e.tag == tag);
    if entries.iter().any(|e| e.perm > 7 || ![USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&e.tag))
    {
        return Err(wrong("an entry makes no sense"));
    }
    if ![USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(has) || (has(USER) || has(GROUP)) && !has(MASK) {
        return Err(wrong("an entry is missing"));
    }
    Ok(entries)
}

/// Whether the bytes are a list.
pub(super) fn check(value: &[u8]) -> Result<()> {
    parse(value).map(drop)
}

/// The mode of a node of `mode` that gets this list, and whether the list says more than the mode.
pub(super) fn mode_of(value: &[u8], mode: u32) -> Result<(u32, bool)> {
    let entries = parse(value)?;
    let perm = |tag| entries.iter().find(|e| e.tag == tag).map(|e| u32::from(e.perm));
    let group = perm(MASK).or(perm(GROUP_OBJ)).unwrap_or(0);
    let bits = perm(USER_OBJ).unwrap_or(0) << 6 | group << 3 | perm(OTHER).unwrap_or(0);
    Ok((mode & !0o777 | bits, entries.len() > 3))
}

/// The list of a node that gets `mode`: its owner, its mask (or group) and the others change.
pub(super) fn with_mode(value: &[u8], mode: u32) -> Result<Vec<u8>> {
    let entries = parse(value)?;
    let masked = entries.iter().any(|e| e.tag == MASK);
    let mut out = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        let bits = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
        let perm = match entry.tag {
            USER_OBJ => bits(6),
            MASK => bits(3),
            GROUP_OBJ if !masked => bits(3),
            OTHER => bits(0),
            _ => entry.perm,
        };
        out.extend(entry.tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(entry.id.to_le_bytes());
    }
    Ok(out)
}

/// What a new node of `mode` gets where its directory has this default list: the list, with what the mode does not
/// allow taken away (as `acl(5)` has it, without a umask).
pub(super) fn inherited(default: &[u8], mode: u32) -> Result<Vec<u8>> {
    let entries = parse(default)?;
    let masked = entries.iter().any(|e| e.tag == MASK);
    let mut out = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        let allowed = |shift: u32| u16::try_from(mode >> shift & 7).unwrap_or(0);
        let perm = match entry.tag {
            USER_OBJ => entry.perm & allowed(6),
            MASK => entry.perm & allowed(3),
            GROUP_OBJ if !masked => entry.perm & allowed(3),
            OTHER => entry.perm & allowed(0),
            _ => entry.perm,
        };
        out.extend(entry.tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(entry.id.to_le_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `setfacl -m u:1000:r,g:50:rw` left on a file of mode 0644 (Linux 6.18, ext4).
    const LIST: [u8; 52] = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
        8, 0, 6, 0, 50, 0, 0, 0, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
    ];

    #[test]
    fn list_and_mode_follow_each_other() {
        assert_eq!(mode_of(&LIST, 0o4644).unwrap(), (0o4664, true));
        let changed = with_mode(&LIST, 0o751).unwrap();
        assert_eq!(mode_of(&changed, 0).unwrap().0, 0o751);
        // The group's own entry stays: the mask speaks for it.
        assert_eq!((changed[22], changed[38]), (4, 5));
    }

    #[test]
    fn a_new_node_gets_no_more_than_its_mode_allows() {
        let list = inherited(&LIST, 0o640).unwrap();
        assert_eq!(mode_of(&list, 0).unwrap(), (0o640, true));
        assert_eq!(mode_of(&inherited(&LIST, 0o777).unwrap(), 0).unwrap().0, 0o664);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(check(&LIST[..51]).is_err() && check(&LIST[..44]).is_err() && check(&[3, 0, 0, 0]).is_err());
        let mut twice = LIST.to_vec();
        twice[12..20].copy_from_slice(&LIST[4..12]);
        assert!(check(&twice).is_err());
    }
}
