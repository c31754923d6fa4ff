//! `edit`
//!
//! * [`change`]: replacements; [`editor`]: the user's own program

mod change;
mod editor;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::wire::len64;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Content, NodeKind, Stat, Time};
use racker_fs::path::{Place, read_all};

use self::change::Change;
use super::editing::Editing;
use super::{Act, On};
use crate::clean::clean;
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;

/// A file that is changed by text is held in memory; one from `--from` is not.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Change a file: in $EDITOR, by replacements, or as a whole
///
/// The file keeps owner, mode, extended attributes and SELinux label. One with several hard links gets a node of its
/// own, as `sed -i` does, unless --keep-links writes through.
#[derive(Args, Debug)]
pub(crate) struct Edit {
    /// File inside the image
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Replace every OLD by NEW; OLD is plain text (repeatable)
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], action = clap::ArgAction::Append)]
    replace: Vec<String>,
    /// Replace what a regular expression matches, as sed does: s/REGEX/NEW/ with flags g and i (repeatable; after --replace)
    #[arg(long, value_name = "S/REGEX/NEW/", action = clap::ArgAction::Append)]
    regex: Vec<String>,
    /// Take the whole content from a file of the host; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replace", "regex"])]
    from: Option<PathBuf>,
    /// A replacement that matches nothing is no error
    #[arg(long)]
    allow_unchanged: bool,
    /// Write through to every hard link of the file
    #[arg(long)]
    keep_links: bool,
}

/// The content a file shall have.
enum Wanted {
    Bytes(Vec<u8>),
    /// A file of the host, read when it is written.
    File(File, u64),
}

impl Act for Edit {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        let on = editing.on();
        // Whoever types something wrong hears of it first.
        let changes = Change::parse(&self.replace, &self.regex)?;
        let place = editing.place(&self.path, true)?;
        let stat = self.stat(on, &place)?;
        on.target.volume(&place)?;
        let Some(wanted) = self.wanted(on, &place, &changes)? else {
            on.progress.note(&format!("{}: unchanged, nothing written", self.path.display()));
            return Ok(());
        };
        let separate = stat.links > 1 && !self.keep_links;
        if separate {
            on.progress.note(&format!(
                "{}: one of {} hard links; it gets a copy of its own (--keep-links writes through)",
                self.path.display(),
                stat.links
            ));
        }
        let now = editing.now;
        let writer = editing.writer(place.volume)?;
        rewrite(writer, &place, wanted, separate, now, on.progress).about(&on.target.path)
    }
}

impl Edit {
    /// Prints what would change.
    pub(crate) fn diff(&self, on: On<'_>) -> Outcome<()> {
        let changes = Change::parse(&self.replace, &self.regex)?;
        let (place, _) = on.target.place(on.which, &self.path, true)?;
        self.stat(on, &place)?;
        let Some(wanted) = self.wanted(on, &place, &changes)? else {
            on.progress.note(&format!("{}: unchanged, nothing written", self.path.display()));
            return Ok(());
        };
        let old = read_all(place.fs.as_ref(), place.node, TEXT_BYTES_MAX).about(&on.target.path)?;
        let new = match wanted {
            Wanted::Bytes(bytes) => bytes,
            Wanted::File(file, _) => {
                let mut bytes = Vec::new();
                file.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
                bytes
            }
        };
        let mut out = std::io::stdout().lock();
        let name = clean(&place.display());
        match (std::str::from_utf8(&old), std::str::from_utf8(&new)) {
            (Ok(old), Ok(new)) => {
                let diff = similar::TextDiff::from_lines(old, new);
                let text = diff.unified_diff().header(&format!("a{name}"), &format!("b{name}")).to_string();
                out.write_all(text.as_bytes())?;
            }
            _ => writeln!(out, "Binary files a{name} and b{name} differ")?,
        }
        Ok(out.flush()?)
    }

    fn stat(&self, on: On<'_>, place: &Place) -> Outcome<Stat> {
        let stat = place.fs.stat(place.node).about(&on.target.path)?;
        if stat.kind != NodeKind::File {
            let what = crate::output::kind(stat.kind);
            return Err(self.failure(on, &format!("is a {what}, not a regular file")));
        }
        Ok(stat)
    }

    fn failure(&self, on: On<'_>, what: &str) -> Failure {
        let failure = Failure::new(format!("{}: {what}", self.path.display()));
        match Err::<(), _>(failure).about(&on.target.path) {
            Err(failure) => failure,
            Ok(()) => Failure::new(what),
        }
    }

    /// The new content; none if it is the old one.
    fn wanted(&self, on: On<'_>, place: &Place, changes: &[Change]) -> Outcome<Option<Wanted>> {
        if let Some(from) = &self.from {
            return wanted_from(from, on, place);
        }
        let old = read_all(place.fs.as_ref(), place.node, TEXT_BYTES_MAX).about(&on.target.path)?;
        let new = if changes.is_empty() {
            let name = place.path.last().map_or(b"file".as_slice(), |n| n.as_bytes());
            editor::edit(&String::from_utf8_lossy(name), &old)?
        } else {
            let mut text = old.clone();
            for change in changes {
                let (next, count) = change.apply(&text);
                if count == 0 && !self.allow_unchanged {
                    let failure = self.failure(on, &format!("{} matches nothing", change.pattern()));
                    return Err(failure.hint("--allow-unchanged makes that no error"));
                }
                text = next;
            }
            text
        };
        Ok((new != old).then_some(Wanted::Bytes(new)))
    }
}

fn wanted_from(from: &Path, on: On<'_>, place: &Place) -> Outcome<Option<Wanted>> {
    let mut file = if from == Path::new("-") {
        spooled(&mut std::io::stdin().lock())?
    } else {
        let mut file = File::open(from).about(from)?;
        if file.metadata()?.is_file() { file } else { spooled(&mut file).about(from)? }
    };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let same = place.fs.stat(place.node).about(&on.target.path)?.size == size
        && same_content(&mut file, place).about(&on.target.path)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((!same).then_some(Wanted::File(file, size)))
}

/// Puts the new content into the file, or into a node of its own.
fn rewrite(
    writer: &mut Writer<'_>,
    place: &Place,
    wanted: Wanted,
    separate: bool,
    now: Time,
    progress: ProgressArgs,
) -> racker_formats::Result<()> {
    let node = match &place.entry {
        Some((dir, name)) if separate => writer.separate(*dir, name, now)?,
        _ => place.node,
    };
    match wanted {
        Wanted::Bytes(bytes) => {
            let size = len64(bytes.len());
            writer.replace(node, Content { reader: &mut bytes.as_slice(), size }, now)
        }
        Wanted::File(file, size) => {
            let mut reader = progress.reading("writing", file, size);
            let result = writer.replace(node, Content { reader: &mut reader, size }, now);
            reader.finish();
            result
        }
    }
}

/// What comes out of a pipe or a device, which has no size before its end, in a temporary file.
fn spooled(from: &mut dyn std::io::Read) -> std::io::Result<File> {
    let mut spool = tempfile::tempfile()?;
    std::io::copy(from, &mut spool)?;
    Ok(spool)
}

fn same_content(file: &mut File, place: &Place) -> racker_formats::Result<bool> {
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0u64;
    loop {
        let n = place.fs.read(place.node, at, &mut theirs)?;
        if n == 0 {
            return Ok(true);
        }
        let (Some(a), Some(b)) = (ours.get_mut(..n), theirs.get(..n)) else { return Ok(false) };
        if file.read_exact(a).is_err() || a != b {
            return Ok(false);
        }
        at = at.saturating_add(len64(n));
    }
}
