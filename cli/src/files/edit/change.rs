//! Unattended changes of a text: literal replacements and sed's `s` command.

use regex::bytes::{Regex, RegexBuilder};

use crate::fault::{Failure, Outcome};

/// One change of a text.
#[derive(Debug)]
pub(super) enum Change {
    /// Every `old` becomes `new`.
    Literal {
        /// Text to look for.
        old: Vec<u8>,
        /// What takes its place.
        new: Vec<u8>,
    },
    /// What matches on a line becomes something else.
    Regex {
        /// As typed, for messages.
        typed: String,
        /// What to look for.
        regex: Regex,
        /// The replacement in the regex library's own words.
        new: Vec<u8>,
        /// All matches of a line, not only the first.
        all: bool,
    },
}

impl Change {
    /// Makes changes out of what was typed: pairs of literals first, then the expressions.
    pub(super) fn parse(literals: &[String], regexes: &[String]) -> Outcome<Vec<Self>> {
        let mut changes = Vec::new();
        let (pairs, _) = literals.as_chunks::<2>();
        for [old, new] in pairs {
            if old.is_empty() {
                return Err(Failure::new("--replace: OLD is empty"));
            }
            changes.push(Self::Literal { old: old.clone().into_bytes(), new: new.clone().into_bytes() });
        }
        for typed in regexes {
            changes.push(Self::sed(typed)?);
        }
        Ok(changes)
    }

    /// What it looks for, for messages.
    pub(super) fn pattern(&self) -> String {
        match self {
            Self::Literal { old, .. } => format!("{:?}", String::from_utf8_lossy(old)),
            Self::Regex { typed, .. } => typed.clone(),
        }
    }

    /// The changed text, and how many places were changed.
    pub(super) fn apply(&self, text: &[u8]) -> (Vec<u8>, usize) {
        match self {
            Self::Literal { old, new } => replace_all(text, old, new),
            Self::Regex { regex, new, all, .. } => {
                let mut out = Vec::with_capacity(text.len());
                let mut count = 0usize;
                for line in text.split_inclusive(|b| *b == b'\n') {
                    let (body, end) = match line.split_last() {
                        Some((b'\n', body)) => (body, b"\n".as_slice()),
                        _ => (line, b"".as_slice()),
                    };
                    let found = regex.find_iter(body).count();
                    count = count.saturating_add(if *all { found } else { found.min(1) });
                    let limit = usize::from(!all);
                    out.extend_from_slice(&regex.replacen(body, limit, new.as_slice()));
                    out.extend_from_slice(end);
                }
                (out, count)
            }
        }
    }

    /// Understands `s/REGEX/NEW/flags` with any delimiter.
    fn sed(typed: &str) -> Outcome<Self> {
        let wrong = |why: &str| {
            let failure = Failure::new(format!("--regex {typed:?}: {why}"));
            failure.hint("write it as sed does: 's/ console=ttyS0//g'")
        };
        let mut chars = typed.chars();
        let (Some('s'), Some(delimiter)) = (chars.next(), chars.next()) else {
            return Err(wrong("it must begin with s and a delimiter"));
        };
        let parts = split(chars.as_str(), delimiter);
        let [pattern, new, flags] = parts.as_slice() else {
            return Err(wrong("it needs three delimiters"));
        };
        let (mut all, mut any_case) = (false, false);
        for flag in flags.chars() {
            match flag {
                'g' => all = true,
                'i' | 'I' => any_case = true,
                _ => return Err(wrong("flags are g and i")),
            }
        }
        let regex = RegexBuilder::new(pattern).case_insensitive(any_case).build();
        let regex = regex.map_err(|e| {
            wrong(&e.to_string().lines().last().unwrap_or("bad regex").replace("error: ", ""))
        })?;
        Ok(Self::Regex { typed: typed.into(), regex, new: replacement(new), all })
    }
}

/// Splits at unescaped delimiters; an escaped delimiter stands for itself.
fn split(text: &str, delimiter: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == delimiter && !escaped {
            parts.push(String::new());
            continue;
        }
        let in_pattern = parts.len() == 1;
        if let Some(last) = parts.last_mut() {
            // In the pattern an escaped delimiter is that very character, even where a bare one has a meaning.
            let literal = c == delimiter && !(in_pattern && regex_syntax_character(c));
            if escaped && !literal {
                last.push('\\');
            }
            if c != '\\' || escaped {
                last.push(c);
            }
        }
        escaped = c == '\\' && !escaped;
    }
    parts
}

fn regex_syntax_character(c: char) -> bool {
    regex::escape(c.encode_utf8(&mut [0; 4])).len() > c.len_utf8()
}

/// sed's replacement (`&`, `\1`, `\n`) in the regex library's words (`${0}`, `${1}`).
fn replacement(sed: &str) -> Vec<u8> {
    let mut out = String::new();
    let mut chars = sed.chars();
    while let Some(c) = chars.next() {
        match c {
            '&' => out.push_str("${0}"),
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some(d) if d.is_ascii_digit() => out.push_str(&format!("${{{d}}}")),
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('$') => out.push_str("$$"),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            other => out.push(other),
        }
    }
    out.into_bytes()
}

fn replace_all(text: &[u8], old: &[u8], new: &[u8]) -> (Vec<u8>, usize) {
    let literal = RegexBuilder::new(&regex::escape(&String::from_utf8_lossy(old))).unicode(false).build();
    match literal {
        Ok(regex) => {
            let count = regex.find_iter(text).count();
            (regex.replace_all(text, regex::bytes::NoExpand(new)).into_owned(), count)
        }
        // A literal too long for the regex library's size limit: looked for by hand.
        Err(_) => {
            let (mut out, mut count, mut rest) = (Vec::new(), 0usize, text);
            while let Some(at) = rest.windows(old.len()).position(|w| w == old) {
                out.extend_from_slice(rest.get(..at).unwrap_or_default());
                out.extend_from_slice(new);
                rest = rest.get(at.saturating_add(old.len())..).unwrap_or_default();
                count = count.saturating_add(1);
            }
            out.extend_from_slice(rest);
            (out, count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sed(expression: &str, text: &str) -> (String, usize) {
        let (out, n) = Change::sed(expression).unwrap().apply(text.as_bytes());
        (String::from_utf8(out).unwrap(), n)
    }

    #[test]
    fn as_sed_does() {
        assert_eq!(sed("s/a/b/", "aa\naa\n"), ("ba\nba\n".into(), 2));
        assert_eq!(sed("s/a/b/g", "aa\naa"), ("bb\nbb".into(), 4));
        assert_eq!(sed(r"s|/x\|y|z|", "a/x|y"), ("az".into(), 1));
        assert_eq!(sed(r"s,(\w+)=(\w+),\2=\1 & $1,", "k=v"), ("v=k k=v $1".into(), 1));
        assert_eq!(sed(r"s/^B/\&/i", "bob\nBob"), ("&ob\n&ob".into(), 2));
        assert_eq!(sed(r"s/\//-/g", "a/b/c"), ("a-b-c".into(), 2));
        assert!(Change::sed("s/a/b").is_err());
        assert!(Change::sed("s/(/b/").is_err());
        assert!(Change::sed("y/a/b/").is_err());
    }

    #[test]
    fn literals_are_literal() {
        assert_eq!(replace_all(b"a.b axb", b"a.b", b"$0"), (b"$0 axb".to_vec(), 1));
    }
}
