//! `truncate`

use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::{New, NewKind};

use super::Act;
use super::editing::Editing;
use crate::fault::Outcome;
use crate::output;

/// Give files another size: what is added is a hole
#[derive(Args, Debug)]
pub(crate) struct Truncate {
    /// New size; with + or - in front so much more or less
    #[arg(short = 's', long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    size: Size,
    /// Files inside the image; those that are not there are made
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Make no files
    #[arg(short = 'c', long)]
    no_create: bool,
}

#[derive(Clone, Copy, Debug)]
enum Size {
    Exact(u64),
    More(u64),
    Less(u64),
}

fn size(text: &str) -> Result<Size, String> {
    if let Some(more) = text.strip_prefix('+') {
        return output::size(more).map(Size::More);
    }
    match text.strip_prefix('-') {
        Some(less) => output::size(less).map(Size::Less),
        None => output::size(text).map(Size::Exact),
    }
}

impl Act for Truncate {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        for path in &self.paths {
            let entry = editing.entry(path)?;
            let (volume, node) = match &entry.0.found {
                Some(_) => {
                    let place = editing.place(path, true)?;
                    (place.volume, place.node)
                }
                None if self.no_create => continue,
                None => {
                    let new = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
                    (entry.0.dir.volume, editing.create(path, &entry, &new)?)
                }
            };
            editing.change(path, volume, |writer, now| {
                let old = writer.filesystem().stat(node)?.size;
                let new = match self.size {
                    Size::Exact(size) => size,
                    Size::More(more) => old.saturating_add(more),
                    Size::Less(less) => old.saturating_sub(less),
                };
                writer.truncate(node, new, now)
            })?;
        }
        Ok(())
    }
}
