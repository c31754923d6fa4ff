//! `cat`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use racker_formats::wire::len64;
use racker_fs::filesystem::NodeKind;

use super::{Look, On};
use crate::fault::{About, Failure, Outcome};

/// Print files of an image
#[derive(Args, Debug)]
pub(crate) struct Cat {
    /// Files inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

impl Look for Cat {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let On { target, which } = on;
        let mut out = std::io::stdout().lock();
        let mut buf = vec![0; 256 << 10];
        for path in &self.paths {
            let (place, _) = target.place(which, path, true)?;
            let kind = place.fs.stat(place.node).about(&target.path)?.kind;
            if kind != NodeKind::File {
                let what = crate::output::kind(kind);
                return Err(Failure::new(format!("{}: is a {what}", path.display()))).about(&target.path);
            }
            let mut at = 0u64;
            loop {
                let n = place.fs.read(place.node, at, &mut buf).about(&target.path)?;
                if n == 0 {
                    break;
                }
                out.write_all(buf.get(..n).unwrap_or_default())?;
                at = at.saturating_add(len64(n));
            }
        }
        out.flush()?;
        Ok(())
    }
}
