//! Files of keys that both sides of a connection know (PSK), as `psktool` of GnuTLS makes them: a line of
//! `IDENTITY:KEY` for each, the key in hexadecimal digits. QEMU, nbdkit and libnbd read the same files.
//!
//! An identity may be in hexadecimal digits as well, behind a `#`, as GnuTLS has it; any other line that begins with `#`
//! is a comment.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use racker_formats::error::Result;
use zeroize::Zeroizing;

use super::fault::KeysFault;

/// A key has at least 128 bits (RFC 9257, 6), and `psktool` makes none of more than 512 bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=512;
/// The longest name that GnuTLS takes.
const IDENTITY_BYTES_MAX: usize = 128;
/// Each connection looks at all of them.
const KEYS_MAX: usize = 1000;
/// Room for so many lines of the usual length, and for comments.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A key, and whose it is.
pub(super) struct Key {
    pub(super) identity: Vec<u8>,
    pub(super) secret: Zeroizing<Vec<u8>>,
}

/// The keys of a file.
pub(super) fn read(file: &Path) -> Result<Vec<Key>> {
    // Of its full size from the start: what grows leaves copies of keys behind.
    let room = usize::try_from(FILE_BYTES_MAX).unwrap_or(0).saturating_add(1);
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    File::open(file)?.take(FILE_BYTES_MAX.saturating_add(1)).read_to_end(&mut text)?;
    Ok(parse(&text)?)
}

fn parse(text: &[u8]) -> std::result::Result<Vec<Key>, KeysFault> {
    if u64::try_from(text.len()).is_ok_and(|len| len > FILE_BYTES_MAX) {
        return Err(KeysFault::Long(FILE_BYTES_MAX));
    }
    let mut keys: Vec<Key> = Vec::new();
    for (line, number) in text.split(|b| *b == b'\n').zip(1..) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(key) = key_of(line, number)? else { continue };
        if keys.iter().any(|other| other.identity == key.identity) {
            return Err(KeysFault::Twice(number));
        }
        if keys.len() == KEYS_MAX {
            return Err(KeysFault::Many(KEYS_MAX));
        }
        keys.push(key);
    }
    if keys.is_empty() { Err(KeysFault::Empty) } else { Ok(keys) }
}

/// The key in a line, if there is one.
fn key_of(line: &[u8], number: usize) -> std::result::Result<Option<Key>, KeysFault> {
    let is_comment = line.first().is_none_or(|b| *b == b'#');
    let colon = line.iter().position(|b| *b == b':');
    let Some((name, digits)) = colon.and_then(|at| Some((line.get(..at)?, line.get(at.checked_add(1)?..)?)))
    else {
        return if is_comment { Ok(None) } else { Err(KeysFault::Line(number)) };
    };
    let identity = match name.strip_prefix(b"#") {
        Some(name) => match bytes_of(name) {
            Some(identity) if !identity.is_empty() => identity.to_vec(),
            _ => return Ok(None),
        },
        None if std::str::from_utf8(name).is_ok_and(|n| !n.contains(char::is_control)) => name.to_vec(),
        None => Vec::new(),
    };
    if identity.is_empty() || identity.len() > IDENTITY_BYTES_MAX {
        return Err(KeysFault::Identity { line: number, max: IDENTITY_BYTES_MAX });
    }
    match bytes_of(digits) {
        Some(secret) if KEY_BYTES.contains(&secret.len()) => Ok(Some(Key { identity, secret })),
        _ => Err(KeysFault::Key { line: number, min: *KEY_BYTES.start(), max: *KEY_BYTES.end() }),
    }
}

/// The bytes that pairs of hexadecimal digits stand for.
fn bytes_of(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (pairs, rest) = digits.as_chunks::<2>();
    let mut out = Zeroizing::new(Vec::with_capacity(pairs.len()));
    for pair in pairs {
        let digit = |b: u8| char::from(b).to_digit(16);
        let (high, low) = pair.map(digit).into();
        out.push(u8::try_from(high?.checked_mul(16)?.checked_add(low?)?).ok()?);
    }
    rest.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "00112233445566778899aABBccddeeff";

    fn fault(text: impl AsRef<[u8]>) -> KeysFault {
        parse(text.as_ref()).err().expect("refused")
    }

    #[test]
    fn files_as_psktool_makes_them() {
        let text = format!(
            "# who may write\r\n\n#x:y\nalice:{ABC}\r\n#626f62:{ABC}{ABC}\n#\neve é:{}",
            "7f".repeat(512)
        );
        let keys = parse(text.as_bytes()).unwrap();
        let found: Vec<_> = keys.iter().map(|k| (k.identity.as_slice(), k.secret.len())).collect();
        assert_eq!(found, [(b"alice".as_slice(), 16), (b"bob", 32), ("eve é".as_bytes(), 512)]);
        assert_eq!(keys[0].secret[..3], [0, 0x11, 0x22]);
        assert_eq!(keys[0].secret[10..12], [0xaa, 0xbb]);
    }

    #[test]
    fn other_files_are_refused_by_their_line() {
        let key = |line| KeysFault::Key { line, min: 16, max: 512 };
        let identity = |line| KeysFault::Identity { line, max: 128 };
        for (text, expected) in [
            (String::new(), KeysFault::Empty),
            ("# nothing\n\n".into(), KeysFault::Empty),
            ("\0".into(), KeysFault::Line(1)),
            (format!("a:{ABC}\nalice"), KeysFault::Line(2)),
            (format!(" \na:{ABC}"), KeysFault::Line(1)),
            (format!("a:{ABC}0"), key(1)),
            (format!("a:{ABC}0x"), key(1)),
            (format!("a: {ABC}"), key(1)),
            (format!("a:{ABC} "), key(1)),
            (format!("a:b:{ABC}"), key(1)),
            ("a:".into(), key(1)),
            (format!("a:{}", &ABC[2..]), key(1)),
            (format!("a:{}", "7f".repeat(513)), key(1)),
            (format!(":{ABC}"), identity(1)),
            (format!("a\0b:{ABC}"), identity(1)),
            (format!("{}:{ABC}", "a".repeat(129)), identity(1)),
            (format!("#{}:{ABC}", "61".repeat(129)), identity(1)),
            (format!("a:{ABC}\nb:{ABC}\n#61:{ABC}"), KeysFault::Twice(3)),
        ] {
            assert_eq!(fault(&text), expected, "{text:?}");
        }
        assert_eq!(fault([b"\xff:", ABC.as_bytes()].concat()), identity(1));
    }

    #[test]
    fn files_have_limits() {
        let many = |n| (0..n).map(|i| format!("u{i}:{ABC}\n")).collect::<String>();
        assert_eq!(parse(many(1000).as_bytes()).unwrap().len(), 1000);
        assert_eq!(fault(many(1001)), KeysFault::Many(1000));
        assert_eq!(fault(vec![b'a'; 10 << 20]), KeysFault::Long(1 << 20));
        assert_eq!(fault(vec![b'\n'; 1 << 20]), KeysFault::Empty);
        // A file without end is not read to its end.
        assert!(read(Path::new("/dev/zero")).is_err());
    }
}
