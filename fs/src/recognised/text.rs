//! Labels and identifiers as text.

/// Bytes up to the first zero as text; what is no UTF-8 is replaced.
pub(super) fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// Little-endian UTF-16 up to the first zero as text.
pub(super) fn windows(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|u| u16::from_le_bytes(*u));
    String::from_utf16_lossy(&units.take_while(|u| *u != 0).collect::<Vec<_>>())
}

/// A UUID in its usual form; none for all zeroes.
pub(super) fn uuid(bytes: &[u8; 16]) -> Option<String> {
    let uuid = uuid::Uuid::from_bytes(*bytes);
    (!uuid.is_nil()).then(|| uuid.to_string())
}
