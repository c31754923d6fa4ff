//! `racker disk map`

use std::path::Path;

use clap::Args;
use racker_formats::block::{RunKind, Span};
use racker_formats::map::{Extent, map};
use racker_formats::open::{Opened, open};
use serde_json::{Map as Object, Value};

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{OutputArgs, Stream, line};
use crate::target::ImageArgs;

/// Show where each stretch of a disk lies: in which file of the backing chain, at which offset
///
/// Without --json the stretches that hold data are listed, as `qemu-img map` does; with it, all of them.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk map boot.qcow2 --json")]
pub(crate) struct Map {
    #[command(flatten)]
    image: ImageArgs,
    /// First byte that is shown
    #[arg(short = 's', long, value_name = "OFFSET", value_parser = crate::output::size)]
    start_offset: Option<u64>,
    /// How many bytes are shown
    #[arg(short = 'l', long, value_name = "LEN", value_parser = crate::output::size)]
    max_length: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Map {
    pub(super) fn run(self) -> Outcome<Exit> {
        let opened = open(&self.image.image, &self.image.how.options(false)).about(&self.image.image)?;
        let size = opened.disk.size();
        let start = self.start_offset.unwrap_or(0);
        if start > size {
            let failure = Failure::new(format!("offset {start} lies behind the disk's {size} bytes"));
            return Err(failure).about(&self.image.image);
        }
        let len = self.max_length.unwrap_or(u64::MAX).min(size.saturating_sub(start));
        let span = Span::new(start, len).about(&self.image.image)?;
        if self.output.is_json() {
            json(&self.image.image, &opened, span)?
        } else {
            table(&self.image.image, &opened, span)?
        }
        Ok(Exit::Done)
    }
}

/// The extents as `qemu-img` prints them: one object a line.
fn json(path: &Path, opened: &Opened, span: Span) -> Outcome<()> {
    let mut out = Stream::begin()?;
    for extent in map(&opened.image, span) {
        let extent = extent.about(path)?;
        out.put(&Value::Object(object(&extent)))?;
    }
    out.end()
}

fn object(extent: &Extent) -> Object<String, Value> {
    let mut all = Object::new();
    all.insert("start".into(), extent.span.start().into());
    all.insert("length".into(), extent.span.len().into());
    all.insert("depth".into(), extent.depth.into());
    all.insert("present".into(), extent.kind.is_allocated().into());
    all.insert("zero".into(), (extent.kind.is_zero() || extent.hole).into());
    all.insert("data".into(), (extent.kind == RunKind::Data).into());
    all.insert("compressed".into(), extent.compressed.into());
    if let Some(at) = extent.at {
        all.insert("offset".into(), at.into());
    }
    all
}

/// What holds data, and in which file.
fn table(path: &Path, opened: &Opened, span: Span) -> Outcome<()> {
    let files = files(path, opened);
    line(&format!("{:<16}{:<16}{:<16}{}", "Offset", "Length", "Mapped to", "File"))?;
    for extent in map(&opened.image, span) {
        let extent = extent.about(path)?;
        if extent.kind != RunKind::Data || extent.hole {
            continue;
        }
        let at = match extent.at {
            Some(at) => format!("{at:#x}"),
            None if extent.compressed => "compressed".into(),
            None => "-".into(),
        };
        let file = files.get(extent.depth).map(String::as_str).unwrap_or("?");
        let (start, len) = (format!("{:#x}", extent.span.start()), format!("{:#x}", extent.span.len()));
        line(&format!("{start:<16}{len:<16}{at:<16}{file}"))?;
    }
    Ok(())
}

/// The names of the chain's files, as they were typed and as the images name them.
fn files(path: &Path, opened: &Opened) -> Vec<String> {
    let mut names = Vec::new();
    let mut path = path.to_path_buf();
    let mut image = Some(opened.image.clone());
    while let Some(above) = image {
        let facts = above.facts();
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let name = match facts.data_files.as_slice() {
            [data] if facts.format == "qcow2" => folder.join(data),
            _ => path,
        };
        names.push(crate::clean::clean(&name.display().to_string()));
        let Some(reference) = facts.backing else { break };
        path = folder.join(reference.path.strip_prefix("file:").unwrap_or(&reference.path));
        image = above.parent();
    }
    names
}
