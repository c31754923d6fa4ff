//! The text of LVM2's metadata: sections in braces, `name = value`, strings, numbers, lists, comments.

use std::collections::BTreeMap;

use racker_formats::error::Result;

use super::Lvm2Fault;

/// Sections within sections: real metadata have four.
const DEPTH_MAX: usize = 16;

/// What stands behind a name.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(u64),
    String(String),
    List(Vec<Value>),
    Section(Section),
}

/// The names of one pair of braces.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Section(BTreeMap<String, Value>);

impl Section {
    /// All sections in it.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(s) => Some((name.as_str(), s)),
            _ => None,
        })
    }

    /// All sections in it, taken out.
    pub(super) fn into_sections(self) -> impl Iterator<Item = (String, Section)> {
        self.0.into_iter().filter_map(|(name, value)| match value {
            Value::Section(s) => Some((name, s)),
            _ => None,
        })
    }

    /// A section by its name.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        match self.0.get(name) {
            Some(Value::Section(s)) => Some(s),
            _ => None,
        }
    }

    /// A number that must be there.
    pub(super) fn number(&self, field: &'static str, place: &str) -> Result<u64> {
        match self.0.get(field) {
            Some(Value::Number(n)) => Ok(*n),
            _ => Err(Lvm2Fault::Field { place: place.into(), field }.into()),
        }
    }

    /// A string that must be there.
    pub(super) fn string(&self, field: &'static str, place: &str) -> Result<&str> {
        match self.0.get(field) {
            Some(Value::String(s)) => Ok(s),
            _ => Err(Lvm2Fault::Field { place: place.into(), field }.into()),
        }
    }

    /// The strings of a list.
    pub(super) fn strings(&self, field: &str) -> impl Iterator<Item = &str> {
        self.list(field).iter().filter_map(|v| match v {
            Value::String(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// The pairs of a list that alternates between strings and numbers.
    pub(super) fn pairs(&self, field: &str) -> impl Iterator<Item = (&str, u64)> {
        let (pairs, _) = self.list(field).as_chunks::<2>();
        pairs.iter().filter_map(|pair| match pair {
            [Value::String(s), Value::Number(n)] => Some((s.as_str(), *n)),
            _ => None,
        })
    }

    fn list(&self, field: &str) -> &[Value] {
        match self.0.get(field) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }
}

/// Reads the whole text.
pub(super) fn parse(text: &[u8]) -> Result<Section> {
    let mut parser = Parser { text, at: 0 };
    parser.section(0)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn wrong<T>(&self, why: &'static str) -> Result<T> {
        Err(Lvm2Fault::Text { at: self.at, why }.into())
    }

    /// The next byte that is neither white space nor part of a comment; 0 at the end.
    fn peek(&mut self) -> u8 {
        while let Some(byte) = self.text.get(self.at) {
            match byte {
                b'#' => {
                    let rest = self.text.get(self.at..).unwrap_or_default();
                    let line = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                    self.at = self.at.saturating_add(line);
                }
                // The text ends with a NUL.
                b if b.is_ascii_whitespace() || *b == 0 => self.at = self.at.saturating_add(1),
                b => return *b,
            }
        }
        0
    }

    fn skip(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn word(&mut self) -> String {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let len = rest
            .iter()
            .position(|b| !(b.is_ascii_alphanumeric() || b"_-+./".contains(b)))
            .unwrap_or(rest.len());
        self.at = self.at.saturating_add(len);
        String::from_utf8_lossy(rest.get(..len).unwrap_or_default()).into_owned()
    }

    /// Names up to a closing brace, or to the end at the outermost level.
    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > DEPTH_MAX {
            return self.wrong("sections nested too deep");
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                0 if depth == 0 => return Ok(section),
                b'}' if depth > 0 => {
                    self.skip();
                    return Ok(section);
                }
                _ => {}
            }
            let name = self.word();
            if name.is_empty() {
                return self.wrong("a name was expected");
            }
            let value = match self.peek() {
                b'{' => {
                    self.skip();
                    Value::Section(self.section(depth.saturating_add(1))?)
                }
                b'=' => {
                    self.skip();
                    self.value(0)?
                }
                _ => return self.wrong("= or { was expected"),
            };
            section.0.insert(name, value);
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        match self.peek() {
            b'"' => Ok(Value::String(self.string()?)),
            b'[' if depth < DEPTH_MAX => {
                self.skip();
                let mut list = Vec::new();
                loop {
                    match self.peek() {
                        b']' => {
                            self.skip();
                            return Ok(Value::List(list));
                        }
                        b',' => self.skip(),
                        _ => list.push(self.value(depth.saturating_add(1))?),
                    }
                }
            }
            _ => {
                let word = self.word();
                match word.parse::<u64>() {
                    Ok(n) => Ok(Value::Number(n)),
                    // Negative and broken numbers stand in fields that nobody here reads.
                    Err(_) if !word.is_empty() => Ok(Value::String(word)),
                    Err(_) => self.wrong("a value was expected"),
                }
            }
        }
    }

    fn string(&mut self) -> Result<String> {
        self.skip();
        let mut out = Vec::new();
        loop {
            let Some(byte) = self.text.get(self.at).copied() else {
                return self.wrong("a string does not end");
            };
            self.skip();
            match byte {
                b'"' => return Ok(String::from_utf8_lossy(&out).into_owned()),
                b'\\' => {
                    out.extend(self.text.get(self.at));
                    self.skip();
                }
                other => out.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lvm2_writes_is_understood() {
        let text = b"vg {\nid = \"a-b\" # c\nseqno = 3\nstatus = [\"READ\", \"WRITE\"]\nlv {\nstripes = [\n\"pv0\", 0,\
                     \n\"pv1\", 7\n]\n}\n}\n# Generated\ncontents = \"x \\\"y\\\"\"\n\0";
        let root = parse(text).unwrap();
        let vg = root.section("vg").unwrap();
        assert_eq!(vg.number("seqno", "vg").unwrap(), 3);
        assert_eq!(vg.string("id", "vg").unwrap(), "a-b");
        assert_eq!(vg.strings("status").collect::<Vec<_>>(), ["READ", "WRITE"]);
        assert_eq!(vg.section("lv").unwrap().pairs("stripes").collect::<Vec<_>>(), [("pv0", 0), ("pv1", 7)]);
    }

    #[test]
    fn broken_texts_are_errors() {
        for bad in ["a", "a = ", "a {", "a = [1", "a = \"x", "}", "= 1"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(&b"a{".repeat(100_000)).is_err());
        assert!(parse(&[b"a=".as_slice(), &b"[".repeat(100_000)].concat()).is_err());
    }
}
