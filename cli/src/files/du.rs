//! `du`

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::NodeKind;
use racker_fs::tree::{Go, Limits, Step, walk};
use serde_json::json;

use super::find::below;
use super::{Look, On};
use crate::clean::for_stdout;
use crate::fault::{About, Outcome};
use crate::output::{self, human};

/// Show how much room files and folders take
///
/// In units of 1024 bytes. A file with several names is counted once.
#[derive(Args, Debug)]
pub(crate) struct Du {
    /// Files or folders inside the image; the root where none is named
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Only a sum for each path
    #[arg(short = 's', long)]
    summarize: bool,
    /// Files, too
    #[arg(short = 'a', long)]
    all: bool,
    /// Folders this deep at most
    #[arg(short = 'd', long, value_name = "N")]
    max_depth: Option<usize>,
    /// Bytes of content instead of room
    #[arg(short = 'b', long)]
    bytes: bool,
    /// Sizes for people
    #[arg(long)]
    human_readable: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Look for Du {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let paths = if self.paths.is_empty() { vec![PathBuf::from("/")] } else { self.paths.clone() };
        let mut out = std::io::stdout().lock();
        let mut rows = Vec::new();
        for path in &paths {
            let tree = on.target.tree_at(on.which, path)?;
            let mut seen = HashSet::new();
            // What the folders on the way down take, so far.
            let mut sums: Vec<u64> = vec![0];
            let walked = walk(&tree, &Limits::default(), &mut |step| {
                let (entry, is_dir) = match step {
                    Step::Node(entry) if entry.stat.kind == NodeKind::Dir => {
                        sums.push(self.room(entry.stat.size, entry.stat.allocated));
                        return Ok(Go::On);
                    }
                    Step::Node(entry) => (entry, false),
                    Step::Leave(entry) => (entry, true),
                };
                let taken = if is_dir {
                    sums.pop().unwrap_or(0)
                } else if entry.stat.links > 1 && !seen.insert((entry.volume, entry.node)) {
                    0
                } else {
                    self.room(entry.stat.size, entry.stat.allocated)
                };
                if let Some(above) = sums.last_mut() {
                    *above = above.saturating_add(taken);
                }
                let deepest = if self.summarize { 0 } else { self.max_depth.unwrap_or(usize::MAX) };
                if entry.depth <= deepest && (is_dir || self.all || entry.depth == 0) {
                    let shown = below(path.as_os_str().as_bytes(), entry.path);
                    if self.json {
                        rows.push(json!({ "path": String::from_utf8_lossy(&shown), "bytes": taken }));
                    } else {
                        out.write_all(format!("{}\t", self.text(taken)).as_bytes())?;
                        out.write_all(&for_stdout(&shown))?;
                        out.write_all(b"\n")?;
                    }
                }
                Ok(Go::On)
            });
            walked.about(&on.target.path)?;
        }
        if self.json {
            output::json(&rows)?;
        }
        Ok(out.flush()?)
    }
}

impl Du {
    fn room(&self, size: u64, allocated: u64) -> u64 {
        if self.bytes { size } else { allocated }
    }

    fn text(&self, bytes: u64) -> String {
        match (self.human_readable, self.bytes) {
            (true, _) => human(bytes),
            (false, true) => bytes.to_string(),
            (false, false) => bytes.div_ceil(1024).to_string(),
        }
    }
}
