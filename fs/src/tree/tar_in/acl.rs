//! Access control lists as tar programs write them: `user::rwx,user:1000:r--:1000,group::r-x,mask::r-x,other::r-x`.

use super::Names;

/// Keywords of extended headers, and the attributes that the lists become.
pub(super) const KEYWORDS: [(&[u8], &[u8]); 2] = [
    (b"SCHILY.acl.access", b"system.posix_acl_access"),
    (b"SCHILY.acl.default", b"system.posix_acl_default"),
];

/// The kernel's form of a list (`linux/posix_acl_xattr.h`); none if the text is no list, or names somebody whom
/// nobody knows. GNU tar writes names without numbers.
pub(super) fn of_text(text: &[u8], names: &dyn Names) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for line in text.split([',', '\n']).map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut fields = line.split(':');
        let (kind, who, bits) = (fields.next()?, fields.next()?, fields.next()?);
        // star repeats the number behind a name.
        let id = fields.next().filter(|f| !f.is_empty()).unwrap_or(who);
        let tag: u16 = match (kind, who.is_empty()) {
            ("user" | "u", true) => 0x01,
            ("user" | "u", false) => 0x02,
            ("group" | "g", true) => 0x04,
            ("group" | "g", false) => 0x08,
            ("mask" | "m", _) => 0x10,
            ("other" | "o", _) => 0x20,
            _ => return None,
        };
        let id = match tag {
            0x02 => id.parse().ok().or_else(|| names.user(who))?,
            0x08 => id.parse().ok().or_else(|| names.group(who))?,
            _ => u32::MAX,
        };
        let bit = |letter: char, value: u16| if bits.contains(letter) { value } else { 0 };
        entries.push((tag, id, bit('r', 4) | bit('w', 2) | bit('x', 1)));
    }
    entries.sort_unstable();
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, id, perm) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_in_the_order_of_the_kernel() {
        let text = b"user::rw-,user:alice:r--:1000,group::r--,group:50:rw-,mask::rw-,other::r--";
        let value = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255,
            255, 8, 0, 6, 0, 50, 0, 0, 0, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
        ];
        assert_eq!(of_text(text, &()).unwrap(), value);
        assert_eq!(of_text(b"user:alice:rw-", &()), None);
    }
}
