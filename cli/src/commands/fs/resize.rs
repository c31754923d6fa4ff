//! The size of a filesystem.

use clap::Args;
use serde_json::json;

use super::On;
use crate::fault::Outcome;
use crate::output::{self, OutputArgs, human, line, size};

/// Make a filesystem larger or smaller: up to the end of its partition or volume, or up to a size
///
/// XFS, ext2/3/4 and FAT grow. ext2/3/4 are made smaller, too, if what is in them fits: the filesystem first, its partition
/// after it.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk resize boot.qcow2 +1G\n  \
    racker disk part boot.qcow2 resize 3 --max\n  racker disk fs boot.qcow2 resize -p 3")]
pub(super) struct Resize {
    /// New size, such as 20G: all of the partition or volume if it is not given
    #[arg(value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Resize {
    pub(super) fn run(self, on: On<'_>) -> Outcome<()> {
        let size = self.size.unwrap_or(on.volume.disk.size());
        let facts = on.change(|fs| {
            fs.resize(size)?;
            fs.facts()
        })?;
        if self.output.is_json() {
            return output::json(&json!({ "filesystem-size": facts.size, "free": facts.free }));
        }
        if on.progress.quiet {
            return Ok(());
        }
        let (size, free) = (human(facts.size), human(facts.free));
        line(&format!("the filesystem has {size} ({} bytes), {free} free", facts.size))
    }
}
