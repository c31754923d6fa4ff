//! `racker disk sparsify`

use clap::Args;
use racker_formats::block::{BlockSize, Support};
use racker_formats::sparsify::{Given, sparsify};
use racker_fs::sparsify::spare;
use serde_json::json;

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{self, OutputArgs, human, line};
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, Target};

/// Unit of allocation where the image names none: that of most host filesystems.
const HOST_BLOCK: u64 = 4096;

/// Give the host back what a disk does not need, in place: free space of its filesystems, and stored zeroes
///
/// XFS, ext2, ext3, ext4 and FAT tell what is free. Others, those that were not closed cleanly and logical volumes
/// keep all of their content but zeroes.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk sparsify boot.qcow2")]
pub(crate) struct Sparsify {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl Sparsify {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let path = &self.image.image;
        let target = Target::open_for(&self.image, true)?;
        let disk = target.disk();
        if disk.caps().discard != Support::Native {
            let failure =
                Failure::new(format!("{} images of this kind keep all space", target.opened.format));
            return Err(failure.hint("convert the image: the new one has no zeroes")).about(path);
        }
        let unit = target.opened.image.facts().cluster_size.and_then(BlockSize::from_bytes);
        let unit = unit.or(BlockSize::from_bytes(HOST_BLOCK)).ok_or_else(|| Failure::new("no unit"))?;
        let stored = target.opened.file.stored();
        let spare = spare(&target.inspection);
        for (place, why) in &spare.left {
            progress.note(&format!("{place}: its free space stays as it is: {why}"));
        }
        let mut bar = progress.start("looking for space", disk.size());
        let done = sparsify(disk, unit, &spare.free, &mut |n| bar.at(n));
        bar.finish();
        let Given { free, zero } = done.about(path)?;
        let now = target.opened.file.stored();
        let host = stored.zip(now).map(|(before, now)| before.saturating_sub(now));
        if self.output.is_json() {
            let left: Vec<_> = spare
                .left
                .iter()
                .map(|(place, why)| json!({ "volume": place, "why": why.to_string() }))
                .collect();
            output::json(&json!({ "free": free, "zero": zero, "given-back": host, "left": left }))?;
        } else if !progress.quiet {
            let host = host.map(|n| format!(": {} of the host's space", human(n))).unwrap_or_default();
            line(&format!("Given back {} free, {} of zeroes{host}", human(free), human(zero)))?;
        }
        Ok(Exit::Done)
    }
}
