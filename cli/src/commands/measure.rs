//! `racker disk measure`

use std::path::PathBuf;

use clap::Args;
use racker_formats::convert::SPARSE_DEFAULT;
use racker_formats::measure::{Measure, measure};
use racker_formats::options::Values;
use racker_formats::registry::{Plan, by_name};
use serde_json::json;

use super::convert::snapshot;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{self, OutputArgs, line};
use crate::progress::ProgressArgs;
use crate::remote::open;
use crate::target::HowArgs;
use crate::typed;

/// Tell how large the file of a conversion will be, to the byte, without writing it
///
/// The bitmaps inside IMAGE, which `convert --bitmaps` copies, are told apart: how much they take at most.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk measure -O vmdk boot.qcow2\n  \
    racker disk measure -O qcow2 --size 20G")]
pub(crate) struct MeasureCommand {
    /// Disk image, compressed image, archive with a disk inside, block device, or the address of an NBD server's disk
    /// (nbd://HOST/EXPORT)
    #[arg(value_name = "IMAGE", required_unless_present = "size", conflicts_with = "size")]
    image: Option<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
    /// An empty disk of this size instead of an image
    #[arg(long, value_name = "SIZE", value_parser = output::size)]
    size: Option<u64>,
    /// A snapshot inside IMAGE instead of what it is now
    #[arg(short = 'l', long, value_name = "SNAPSHOT", requires = "image")]
    snapshot: Option<String>,
    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw")]
    output_format: String,
    /// Options of the new format, as K=V[,K=V…]
    #[arg(short = 'o', value_name = "K=V,…", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Compress the data
    #[arg(short = 'c')]
    compress: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl MeasureCommand {
    pub(super) fn run(mut self, progress: ProgressArgs) -> Outcome<Exit> {
        if let Some(image) = self.image.take() {
            let (path, format) = self.how.described(image)?;
            (self.image, self.how.format) = (Some(path), format);
        }
        let format = by_name(&self.output_format)?;
        let pairs = typed::pairs(&self.options)?;
        let options = Values::parse(
            format.name(),
            format.options(),
            pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())),
        )?;
        let plan = |size| Plan { size, options: options.clone(), compress: self.compress, ..Plan::default() };
        let mut bitmaps = None;
        let found = match (&self.image, self.size) {
            (Some(path), _) => {
                let opened = open(path, &self.how.options(false)).about(path)?;
                let disk = match &self.snapshot {
                    Some(which) => snapshot(opened.image.as_ref(), which).about(path)?,
                    None => opened.disk.clone(),
                };
                let mut bar = progress.start("measuring", disk.size());
                let plan = plan(disk.size());
                if let Some(there) = opened.image.bitmaps() {
                    bitmaps = format.bitmaps_size(&plan, &there.list().about(path)?)?;
                }
                let found = measure(format, &plan, Some(&disk), SPARSE_DEFAULT, &mut |n| bar.at(n));
                bar.finish();
                found.about(path)?
            }
            (None, Some(size)) => measure(format, &plan(size), None, SPARSE_DEFAULT, &mut |_| ())?,
            (None, None) => return Err(Failure::new("an image or --size is needed").exit(Exit::Usage)),
        };
        self.print(found, bitmaps)?;
        Ok(Exit::Done)
    }

    fn print(&self, found: Measure, bitmaps: Option<u64>) -> Outcome<()> {
        let Measure { required, fully_allocated } = found;
        if self.output.is_json() {
            let mut all = json!({ "required": required, "fully-allocated": fully_allocated });
            if let (Some(bytes), Some(all)) = (bitmaps, all.as_object_mut()) {
                all.insert("bitmaps".into(), bytes.into());
            }
            return output::json(&all);
        }
        line(&format!("required size: {required}"))?;
        line(&format!("fully allocated size: {fully_allocated}"))?;
        bitmaps.map_or(Ok(()), |bytes| line(&format!("bitmaps size: {bytes}")))
    }
}
