//! Names and texts out of images are the outside world: control characters never reach a terminal.

use std::io::IsTerminal;

/// The text with every control character written as an escape.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Format characters can reorder what a terminal shows.
        let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || hidden {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// A name for standard output: as it is for a pipe, cleaned for a terminal.
pub(crate) fn for_stdout(name: &[u8]) -> Vec<u8> {
    if std::io::stdout().is_terminal() {
        clean(&String::from_utf8_lossy(name)).into_bytes()
    } else {
        name.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn escapes_cannot_drive_a_terminal() {
        assert_eq!(clean("a\x1b[2Jb\u{202e}c é"), "a\\u{1b}[2Jb\\u{202e}c é");
    }
}
