//! `racker disk cat`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use racker_formats::wire::len64;
use racker_fs::filesystem::NodeKind;

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::target::{ImageArgs, PartitionArgs, Target};

/// Print files of an image
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk cat boot.qcow2 /loader/entries/ostree-1-ock.conf")]
pub(crate) struct Cat {
    #[command(flatten)]
    image: ImageArgs,
    /// Files inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    which: PartitionArgs,
}

impl Cat {
    pub(super) fn run(self) -> Outcome<Exit> {
        let target = Target::open(&self.image)?;
        let mut out = std::io::stdout().lock();
        let mut buf = vec![0; 256 << 10];
        for path in &self.paths {
            let place = target.place(&self.which, path, true)?;
            let kind = place.fs.stat(place.node).about(&self.image.image)?.kind;
            if kind != NodeKind::File {
                let what = crate::output::kind(kind);
                return Err(Failure::new(format!("{}: is a {what}", path.display())))
                    .about(&self.image.image);
            }
            let mut at = 0u64;
            loop {
                let n = place.fs.read(place.node, at, &mut buf).about(&self.image.image)?;
                if n == 0 {
                    break;
                }
                out.write_all(buf.get(..n).unwrap_or_default())?;
                at = at.saturating_add(len64(n));
            }
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}
