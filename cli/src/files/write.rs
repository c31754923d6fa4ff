//! `write`

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::wire::len64;
use racker_fs::filesystem::{Keeps, New, NewKind};

use super::Act;
use super::chown::owner;
use super::editing::Editing;
use super::mode::ModeChange;
use crate::fault::{About, Outcome};

/// Bytes in memory.
const PIECE: usize = 1 << 20;

/// Write a file: standard input, or what --from names
///
/// A file that is there keeps owner, permissions and attributes; a new one belongs to root and has mode 0644.
#[derive(Args, Debug)]
pub(crate) struct Write {
    /// File inside the image
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// File of the host; - is standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    from: PathBuf,
    /// This text, with a line feed at its end, instead of a file
    #[arg(long, value_name = "TEXT", conflicts_with = "from")]
    text: Option<String>,
    /// Add to what is there
    #[arg(long)]
    append: bool,
    /// Permissions of a new file
    #[arg(short = 'm', long, value_name = "MODE", value_parser = ModeChange::parse)]
    mode: Option<ModeChange>,
    /// Owner of a new file: USER or USER:GROUP
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
}

impl Act for Write {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        let place = editing.entry(&self.path)?;
        let entry = &place.0;
        let (volume, node, start) = match &entry.found {
            Some(_) => {
                let place = editing.place(&self.path, true)?;
                let size = editing.stat(&place)?.size;
                let start = if self.append { size } else { 0 };
                if !self.append {
                    editing.change(&self.path, place.volume, |w, now| w.truncate(place.node, 0, now))?;
                }
                (place.volume, place.node, start)
            }
            None => {
                let (uid, gid) = match &self.owner {
                    Some(typed) => owner(typed, editing)?,
                    None => (None, None),
                };
                let above = editing.stat(&entry.dir)?;
                let mode = self.mode.as_ref().map_or(0o644, |m| m.apply(0o644, false));
                let volume = entry.dir.volume;
                let inherits =
                    above.mode & 0o2000 != 0 && editing.writer(volume)?.keeps().contains(Keeps::OWNERS);
                let group = if inherits { above.gid } else { 0 };
                let (uid, gid) = (uid.unwrap_or(0), gid.unwrap_or(group));
                let new = New { kind: NewKind::File, mode, uid, gid };
                (volume, editing.create(&self.path, &place, &new)?, 0)
            }
        };
        let mut at = start;
        let mut put = |bytes: &[u8]| -> Outcome<()> {
            editing.change(&self.path, volume, |writer, now| writer.write(node, at, bytes, now))?;
            at = at.saturating_add(len64(bytes.len()));
            Ok(())
        };
        if let Some(text) = &self.text {
            return put(format!("{text}\n").as_bytes());
        }
        if self.from == Path::new("-") {
            return pour(&mut std::io::stdin().lock(), &mut put);
        }
        pour(&mut File::open(&self.from).about(&self.from)?, &mut put)
    }
}

fn pour(from: &mut dyn Read, put: &mut dyn FnMut(&[u8]) -> Outcome<()>) -> Outcome<()> {
    let mut buf = Vec::with_capacity(PIECE);
    loop {
        buf.clear();
        from.take(len64(PIECE)).read_to_end(&mut buf)?;
        if buf.is_empty() {
            return Ok(());
        }
        put(&buf)?;
    }
}
