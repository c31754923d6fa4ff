//! `racker disk map`

use std::path::Path;

use clap::Args;
use racker_formats::block::{RunKind, Span};
use racker_formats::map::{Extent, map};
use racker_formats::open::Opened;
use serde_json::{Map as Object, Value};

use crate::clean::clean;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{OutputArgs, Stream, line};
use crate::remote::open;
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
    let mut out = Stream::new();
    for extent in map(&opened.image, span) {
        let extent = extent.about(path)?;
        out.put(&Value::Object(object(&extent)))?;
    }
    Ok(out.end()?)
}

fn object(extent: &Extent) -> Object<String, Value> {
    let mut all = Object::new();
    all.insert("start".into(), extent.span.start().into());
    all.insert("length".into(), extent.span.len().into());
    all.insert("depth".into(), extent.depth.into());
    all.insert("present".into(), extent.kind.is_allocated().into());
    all.insert("zero".into(), extent.kind.is_zero().into());
    // What has a place for its bytes in the file is data there, hole or not.
    all.insert("data".into(), (extent.kind == RunKind::Data || extent.hollow).into());
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
        if extent.kind != RunKind::Data {
            continue;
        }
        let at = match extent.at {
            Some(at) => hex(at),
            None if extent.compressed => "compressed".into(),
            None => "-".into(),
        };
        let image = files.get(extent.depth).map(String::as_str).unwrap_or("?");
        let file = match &extent.file {
            Some(name) => clean(&beside(Path::new(image), name)),
            None => clean(image),
        };
        let (start, len) = (hex(extent.span.start()), hex(extent.span.len()));
        line(&format!("{start:<16}{len:<16}{at:<16}{file}"))?;
    }
    Ok(())
}

/// As C prints it: a zero has no sign that it is hexadecimal.
fn hex(n: u64) -> String {
    if n == 0 { "0".into() } else { format!("{n:#x}") }
}

/// The names of the chain's files, as they were typed and as the images name them.
fn files(path: &Path, opened: &Opened) -> Vec<String> {
    let mut names = vec![path.display().to_string()];
    let mut image = Some(opened.image.clone());
    while let Some(above) = image {
        let Some(reference) = above.facts().backing else { break };
        let name = beside(Path::new(names.last().map(String::as_str).unwrap_or_default()), &reference.path);
        names.push(name);
        image = above.parent();
    }
    names
}

/// The path of a file that `image` names.
fn beside(image: &Path, name: &str) -> String {
    let folder = image.parent().unwrap_or(Path::new(""));
    folder.join(name.strip_prefix("file:").unwrap_or(name)).display().to_string()
}
