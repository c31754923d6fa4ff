//! `find`

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::NodeKind;
use racker_fs::tree::{Entry, Go, Limits, Step, walk};
use regex::bytes::Regex;

use super::accounts::Accounts;
use super::{Look, On};
use crate::clean::for_stdout;
use crate::fault::{About, Failure, Outcome};
use crate::output::{Stream, exact, kind};

/// Find files of an image, as find(1) does
///
/// Tests: -name, -iname, -path, -type, -size, -perm, -user, -group, -uid, -gid, -links, -inum, -newer, -empty, -xattr NAME,
/// -maxdepth, -mindepth, with !, -o, -a and parentheses. -print0 ends names with a zero byte, --json prints what is known of
/// the files as well.
#[derive(Args, Debug)]
pub(crate) struct Find {
    /// Where to begin, and the tests
    #[arg(value_name = "PATH TEST", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// A test of a node.
enum Test {
    All(Vec<Test>),
    Any(Vec<Test>),
    Not(Box<Test>),
    Name(Regex),
    Path(Regex),
    Kind(Vec<NodeKind>),
    Number(Field, Compare),
    Perm(u32, char),
    Newer(racker_fs::filesystem::Time),
    Empty,
    Xattr(Vec<u8>),
}

/// A number of a node.
enum Field {
    /// Size in units of so many bytes, rounded up.
    Size(u64),
    Links,
    Inode,
    Uid,
    Gid,
}

enum Compare {
    More(u64),
    Less(u64),
    Exactly(u64),
}

/// What was asked for.
struct Query {
    test: Test,
    depth: std::ops::RangeInclusive<usize>,
    zero: bool,
    json: bool,
}

impl Look for Find {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let is_test = |w: &String| w.starts_with('-') || w == "(" || w == "!";
        let split = self.words.iter().position(is_test).unwrap_or(self.words.len());
        let (paths, tests) = self.words.split_at(split);
        let mut parser = Parser { words: tests.iter(), on, depth: 0..=usize::MAX, zero: false, json: false };
        let test = parser.any()?;
        if let Some(word) = parser.words.next() {
            return Err(Failure::new(format!("find: {word:?} does not belong there")));
        }
        let query = Query { test, depth: parser.depth, zero: parser.zero, json: parser.json };
        let mut out = std::io::stdout().lock();
        let mut rows = Stream::new();
        let paths: Vec<PathBuf> =
            if paths.is_empty() { vec!["/".into()] } else { paths.iter().map(Into::into).collect() };
        for path in &paths {
            let tree = on.target.tree_at(on.which, path)?;
            let top = path.as_os_str().as_bytes();
            let walked = walk(&tree, &Limits::default(), &mut |step| {
                let Step::Node(entry) = step else { return Ok(Go::On) };
                if entry.depth > *query.depth.end() {
                    return Ok(Go::Skip);
                }
                let shown = below(top, entry.path);
                if entry.depth >= *query.depth.start() && query.test.holds(&entry, &shown)? {
                    if query.json {
                        rows.put(&serde_json::json!({
                            "path": String::from_utf8_lossy(&shown), "type": kind(entry.stat.kind),
                            "size": entry.stat.size, "mode": format!("{:04o}", entry.stat.mode),
                            "uid": entry.stat.uid, "gid": entry.stat.gid, "mtime": exact(entry.stat.mtime),
                        }))?;
                    } else {
                        out.write_all(&if query.zero { shown } else { for_stdout(&shown) })?;
                        out.write_all(if query.zero { b"\0" } else { b"\n" })?;
                    }
                }
                Ok(Go::On)
            });
            walked.about(&on.target.path)?;
        }
        if query.json {
            return Ok(rows.end()?);
        }
        Ok(out.flush()?)
    }
}

/// A path below the one that was typed.
pub(super) fn below(top: &[u8], path: &[u8]) -> Vec<u8> {
    let mut all = top.to_vec();
    if !path.is_empty() {
        if !all.ends_with(b"/") {
            all.push(b'/');
        }
        all.extend_from_slice(path);
    }
    all
}

impl Test {
    fn holds(&self, entry: &Entry<'_>, shown: &[u8]) -> racker_formats::Result<bool> {
        let stat = entry.stat;
        Ok(match self {
            Self::All(tests) => {
                for test in tests {
                    if !test.holds(entry, shown)? {
                        return Ok(false);
                    }
                }
                true
            }
            Self::Any(tests) => {
                for test in tests {
                    if test.holds(entry, shown)? {
                        return Ok(true);
                    }
                }
                false
            }
            Self::Not(test) => !test.holds(entry, shown)?,
            Self::Name(pattern) => pattern.is_match(shown.rsplit(|b| *b == b'/').next().unwrap_or_default()),
            Self::Path(pattern) => pattern.is_match(shown),
            Self::Kind(kinds) => kinds.contains(&stat.kind),
            Self::Number(field, compare) => compare.holds(match field {
                Field::Size(unit) => stat.size.div_ceil((*unit).max(1)),
                Field::Links => stat.links,
                Field::Inode => entry.node.0,
                Field::Uid => stat.uid.into(),
                Field::Gid => stat.gid.into(),
            }),
            Self::Perm(bits, '-') => stat.mode & bits == *bits,
            Self::Perm(bits, '/') => *bits == 0 || stat.mode & bits != 0,
            Self::Perm(bits, _) => stat.mode == *bits,
            Self::Newer(than) => stat.mtime > *than,
            Self::Empty if stat.kind == NodeKind::Dir => {
                let mut empty = true;
                entry.fs.read_dir(entry.node, &mut |_| {
                    empty = false;
                    Ok(std::ops::ControlFlow::Break(()))
                })?;
                empty
            }
            Self::Empty => stat.kind == NodeKind::File && stat.size == 0,
            Self::Xattr(name) => {
                let mut found = false;
                entry.fs.xattrs(entry.node, &mut |(key, _)| {
                    found |= key == name.as_slice();
                    Ok(std::ops::ControlFlow::Continue(()))
                })?;
                found
            }
        })
    }
}

impl Compare {
    fn parse(text: &str) -> Option<Self> {
        if let Some(more) = text.strip_prefix('+') {
            return more.parse().ok().map(Self::More);
        }
        match text.strip_prefix('-') {
            Some(less) => less.parse().ok().map(Self::Less),
            None => text.parse().ok().map(Self::Exactly),
        }
    }

    fn holds(&self, number: u64) -> bool {
        match self {
            Self::More(than) => number > *than,
            Self::Less(than) => number < *than,
            Self::Exactly(this) => number == *this,
        }
    }
}

/// Words, from front to end: `any := all (-o all)*`, `all := one (-a? one)*`, `one := ! one | ( any ) | test`.
struct Parser<'a> {
    words: std::slice::Iter<'a, String>,
    on: On<'a>,
    depth: std::ops::RangeInclusive<usize>,
    zero: bool,
    json: bool,
}

impl Parser<'_> {
    fn any(&mut self) -> Outcome<Test> {
        let mut tests = vec![self.all()?];
        while self.words.as_slice().first().is_some_and(|w| w == "-o" || w == "-or") {
            self.words.next();
            tests.push(self.all()?);
        }
        Ok(Test::Any(tests))
    }

    fn all(&mut self) -> Outcome<Test> {
        let mut tests = Vec::new();
        while let Some(word) = self.words.as_slice().first() {
            match word.as_str() {
                "-o" | "-or" | ")" => break,
                "-a" | "-and" => {
                    self.words.next();
                }
                _ => tests.extend(self.one()?),
            }
        }
        Ok(Test::All(tests))
    }

    fn value(&mut self, test: &str) -> Outcome<String> {
        self.words.next().cloned().ok_or_else(|| Failure::new(format!("find: {test} needs a value")))
    }

    /// One test; none for a word that only says how to go on.
    fn one(&mut self) -> Outcome<Option<Test>> {
        let Some(word) = self.words.next() else { return Ok(None) };
        let bad = |value: &str| Failure::new(format!("find: {word}: {value:?} makes no sense"));
        Ok(Some(match word.as_str() {
            "!" | "-not" => match self.one()? {
                Some(test) => Test::Not(Box::new(test)),
                None => return Err(Failure::new("find: nothing behind !")),
            },
            "(" => {
                let test = self.any()?;
                if self.words.next().is_none_or(|w| w != ")") {
                    return Err(Failure::new("find: a parenthesis is not closed"));
                }
                test
            }
            "-name" => Test::Name(glob(&self.value(word)?, false)?),
            "-iname" => Test::Name(glob(&self.value(word)?, true)?),
            "-path" | "-wholename" => Test::Path(glob(&self.value(word)?, false)?),
            "-ipath" => Test::Path(glob(&self.value(word)?, true)?),
            "-regex" => {
                let value = self.value(word)?;
                Test::Path(Regex::new(&format!("^(?:{value})$")).map_err(|_| bad(&value))?)
            }
            "-type" => {
                let value = self.value(word)?;
                let kinds = value.split(',').map(|letter| {
                    Some(match letter {
                        "f" => NodeKind::File,
                        "d" => NodeKind::Dir,
                        "l" => NodeKind::Link,
                        "c" => NodeKind::Char,
                        "b" => NodeKind::Block,
                        "p" => NodeKind::Fifo,
                        "s" => NodeKind::Socket,
                        _ => return None,
                    })
                });
                Test::Kind(kinds.collect::<Option<_>>().ok_or_else(|| bad(&value))?)
            }
            "-size" => {
                let value = self.value(word)?;
                let units = [('c', 1), ('w', 2), ('b', 512), ('k', 1 << 10), ('M', 1 << 20), ('G', 1 << 30)];
                let unit = units.iter().find(|(letter, _)| value.ends_with(*letter));
                let number = unit.map_or(value.as_str(), |(letter, _)| value.trim_end_matches(*letter));
                let compare = Compare::parse(number).ok_or_else(|| bad(&value))?;
                Test::Number(Field::Size(unit.map_or(512, |(_, bytes)| *bytes)), compare)
            }
            "-links" | "-inum" | "-uid" | "-gid" => {
                let value = self.value(word)?;
                let field = match word.as_str() {
                    "-links" => Field::Links,
                    "-inum" => Field::Inode,
                    "-uid" => Field::Uid,
                    _ => Field::Gid,
                };
                Test::Number(field, Compare::parse(&value).ok_or_else(|| bad(&value))?)
            }
            "-user" | "-group" => {
                let value = self.value(word)?;
                let accounts = Accounts::of(self.on.target);
                let (field, id) = match word.as_str() {
                    "-user" => (Field::Uid, accounts.user(&value)),
                    _ => (Field::Gid, accounts.group(&value)),
                };
                Test::Number(field, Compare::Exactly(id.ok_or_else(|| bad(&value))?.into()))
            }
            "-perm" => {
                let value = self.value(word)?;
                let how = value.chars().next().filter(|c| "-/".contains(*c)).unwrap_or('=');
                let bits = u32::from_str_radix(value.trim_start_matches(['-', '/']), 8);
                Test::Perm(bits.map_err(|_| bad(&value))?, how)
            }
            "-newer" => {
                let value = self.value(word)?;
                let (place, _) = self.on.target.place(self.on.which, value.as_ref(), true)?;
                Test::Newer(place.fs.stat(place.node).about(&self.on.target.path)?.mtime)
            }
            "-empty" => Test::Empty,
            "-xattr" => Test::Xattr(self.value(word)?.into_bytes()),
            "-maxdepth" | "-mindepth" => {
                let value = self.value(word)?;
                let depth: usize = value.parse().map_err(|_| bad(&value))?;
                let (from, to) = (*self.depth.start(), *self.depth.end());
                self.depth = if word == "-maxdepth" { from..=depth } else { depth..=to };
                return Ok(None);
            }
            "-print" => return Ok(None),
            "-print0" => {
                self.zero = true;
                return Ok(None);
            }
            "--json" => {
                self.json = true;
                return Ok(None);
            }
            other => {
                let failure = Failure::new(format!("find: {other} is no test that racker knows"));
                return Err(failure.hint("`racker disk find --help` lists them"));
            }
        }))
    }
}

/// A shell pattern as a regular expression.
fn glob(pattern: &str, fold: bool) -> Outcome<Regex> {
    let mut text = String::from(if fold { "(?is-u)^" } else { "(?s-u)^" });
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '*' => text.push_str(".*"),
            '?' => text.push('.'),
            '[' => {
                let inside: String = rest.by_ref().take_while(|c| *c != ']').collect();
                let inside = inside.replace('\\', "\\\\").replace('[', "\\[");
                let inside = inside.strip_prefix('!').map_or(inside.clone(), |not| format!("^{not}"));
                text.push_str(&format!("[{inside}]"));
            }
            '\\' => text.push_str(&regex::escape(&rest.next().unwrap_or('\\').to_string())),
            c => text.push_str(&regex::escape(&c.to_string())),
        }
    }
    text.push('$');
    Regex::new(&text).map_err(|_| Failure::new(format!("find: {pattern:?} is no pattern")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_the_shell() {
        let holds = |pattern, name: &str| glob(pattern, false).unwrap().is_match(name.as_bytes());
        assert!(holds("*.conf", "a.conf") && !holds("*.conf", "a.conf.d") && holds("[!a]?", "bc"));
        assert!(holds("a\\*", "a*") && !holds("a\\*", "ab") && holds("[a-c].[ch]", "b.h"));
        assert!(glob("README*", true).unwrap().is_match(b"readme.md"));
    }
}
