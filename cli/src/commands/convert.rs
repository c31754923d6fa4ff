//! `racker disk convert`

use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::block::Disk;
use racker_formats::convert::{self, NewFile, SPARSE_DEFAULT};
use racker_formats::open::open;
use racker_formats::options::{Values, parse_size};
use racker_formats::registry::{Plan, by_name};

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;
use crate::target::HowArgs;

/// Copy a disk into a new image of any format
///
/// The letters mean what they mean to `qemu-img convert`. The new image appears only when it is complete; until
/// then what was at DST stays there.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk convert -O vmdk boot.qcow2 boot.vmdk\n  \
    racker disk convert -O qcow2 -c debian.box debian.qcow2\n  \
    racker disk convert -O vmdk -o subformat=streamOptimized boot.qcow2 boot.vmdk")]
pub(crate) struct Convert {
    /// Disk image, compressed image, archive with a disk inside, or block device
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// New image
    #[arg(value_name = "DST")]
    target: PathBuf,
    #[command(flatten)]
    how: HowArgs,
    /// Format of the new image
    #[arg(short = 'O', long, value_name = "FORMAT", default_value = "raw")]
    output_format: String,
    #[command(flatten)]
    new: NewImage,
    /// Show progress (it is shown on a terminal anyway)
    #[arg(short = 'p')]
    show_progress: bool,
}

/// What a new image shall be like.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NewImage {
    /// Options of the new format, as K=V[,K=V…]; `racker formats` lists them
    #[arg(short = 'o', value_name = "K=V,…", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Compress the data
    #[arg(short = 'c')]
    compress: bool,
    /// Shortest stretch of zeroes that is left out; 0 writes all of them
    #[arg(short = 'S', value_name = "SIZE")]
    sparse: Option<String>,
    /// Worker threads; as many as there are processors where not given
    #[arg(short = 'm', value_name = "THREADS")]
    threads: Option<NonZero<usize>>,
}

impl Convert {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let source = open(&self.source, &self.how.options(false)).about(&self.source)?;
        let same = self.source.canonicalize().ok().zip(self.target.canonicalize().ok());
        if same.is_some_and(|(a, b)| a == b) {
            let failure = Failure::new("is the source as well");
            return Err(failure.hint("name another file for the new image")).about(&self.target);
        }
        write_new(&source.disk, &self.target, &self.output_format, &self.new, progress)?;
        Ok(Exit::Done)
    }
}

/// Writes `disk` into a new image at `target`.
pub(super) fn write_new(
    disk: &Disk,
    target: &Path,
    format: &str,
    new: &NewImage,
    progress: ProgressArgs,
) -> Outcome<()> {
    let format = by_name(format)?;
    let typed = new.options.iter().flat_map(|o| o.split(','));
    let pairs: Vec<(&str, &str)> = typed
        .filter(|o| !o.is_empty())
        .map(|o| o.split_once('=').ok_or_else(|| Failure::new(format!("-o {o:?} is not K=V"))))
        .collect::<Outcome<_>>()?;
    let options = Values::parse(format.name(), format.options(), pairs)?;
    let sparse = match new.sparse.as_deref() {
        Some(text) => parse_size(text).ok_or_else(|| Failure::new(format!("-S {text:?} is no size")))?,
        None => SPARSE_DEFAULT,
    };
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned());
    let file = NewFile::prepare(target).about(target)?;
    let (compress, beside) = (new.compress, file.beside());
    let plan = Plan { size: disk.size(), name, options, compress, beside, ..Plan::default() };
    let sink = format.sink(file.disk().clone(), &plan).about(target)?;
    let mut bar = progress.start("converting", disk.size());
    let options = convert::Options { threads: new.threads, sparse };
    let done = convert::convert(disk, sink, options, &mut |n| bar.at(n));
    bar.finish();
    done.about(target)?;
    file.publish().about(target)
}
