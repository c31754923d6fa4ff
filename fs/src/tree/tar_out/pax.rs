//! Pax extended header records (POSIX.1-2024, pax, "pax Extended Header"): `LENGTH KEYWORD=VALUE\n`.

use racker_formats::error::{Common, Result};
use racker_formats::wire::len64;

use crate::filesystem::Time;

/// Bytes of the records of one member: its extended attributes, their second form as an ACL, two paths.
const RECORDS_MAX: u64 = 80 << 20;

/// The records of one member.
#[derive(Debug, Default)]
pub(super) struct Records(Vec<u8>);

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds a record.
    pub(super) fn add(&mut self, keyword: &[u8], value: &[u8]) -> Result<()> {
        // A space, an equals sign, a newline.
        let rest = keyword.len().saturating_add(value.len()).saturating_add(3);
        let need = len64(self.0.len()).saturating_add(len64(rest)).saturating_add(20);
        if need > RECORDS_MAX {
            return Err(Common::TooLarge { what: "pax header", need, max: RECORDS_MAX }.into());
        }
        // The length counts its own digits.
        let mut len = rest.saturating_add(1);
        while len.to_string().len().saturating_add(rest) != len {
            len = len.to_string().len().saturating_add(rest);
        }
        self.0.extend_from_slice(format!("{len} ").as_bytes());
        self.0.extend_from_slice(keyword);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
        Ok(())
    }

    /// Adds a record of text.
    pub(super) fn text(&mut self, keyword: &str, value: &str) -> Result<()> {
        self.add(keyword.as_bytes(), value.as_bytes())
    }

    /// Adds a record of digits.
    pub(super) fn number(&mut self, keyword: &str, value: u64) -> Result<()> {
        self.text(keyword, &value.to_string())
    }

    /// Adds a point in time: a decimal number of seconds.
    pub(super) fn time(&mut self, keyword: &str, time: Time) -> Result<()> {
        self.text(keyword, &seconds(time))
    }

    /// Adds an extended attribute, in the form of star and GNU tar. They write `%` and `=` of its name as
    /// `%25` and `%3D`, since the first `=` ends the keyword.
    pub(super) fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let mut keyword = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'%' => keyword.extend_from_slice(b"%25"),
                b'=' => keyword.extend_from_slice(b"%3D"),
                other => keyword.push(*other),
            }
        }
        self.add(&keyword, value)
    }
}

/// Seconds since 1970 as a decimal number, without zeroes at its end.
fn seconds(time: Time) -> String {
    let Time { sec, nsec } = time;
    if nsec == 0 {
        return sec.to_string();
    }
    // Nanoseconds count upwards from the second; before 1970 the sign stands for both.
    let (sign, whole, nsec) = if sec < 0 {
        ("-", sec.unsigned_abs().saturating_sub(1), 1_000_000_000u32.saturating_sub(nsec))
    } else {
        ("", sec.unsigned_abs(), nsec)
    };
    let digits = format!("{sign}{whole}.{nsec:09}");
    digits.trim_end_matches('0').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_counts_itself() {
        let mut r = Records::default();
        r.text("path", "x").unwrap();
        assert_eq!(r.as_bytes(), b"9 path=x\n");
        let mut r = Records::default();
        r.text("path", &"y".repeat(90)).unwrap();
        assert_eq!(r.as_bytes().len(), 99);
        let mut r = Records::default();
        r.text("path", &"y".repeat(91)).unwrap();
        assert_eq!(r.as_bytes().len(), 101);
        assert!(r.as_bytes().starts_with(b"101 "));
    }

    #[test]
    fn times_before_1970_have_one_sign() {
        assert_eq!(seconds(Time { sec: 5, nsec: 500_000_000 }), "5.5");
        assert_eq!(seconds(Time { sec: -2, nsec: 500_000_000 }), "-1.5");
        assert_eq!(seconds(Time { sec: -1, nsec: 1 }), "-0.999999999");
        assert_eq!(seconds(Time { sec: -7, nsec: 0 }), "-7");
    }
}
