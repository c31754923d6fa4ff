//! `racker disk convert`

use std::fs::File;
use std::io::IsTerminal;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use racker_formats::block::Disk;
use racker_formats::convert::{self, NewFile, Pipe, SPARSE_DEFAULT};
use racker_formats::error::Error;
use racker_formats::open::{Opened, open, open_disk};
use racker_formats::options::{Values, parse_size};
use racker_formats::registry::{Format, Plan, by_name};

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
    racker disk convert -O vmdk -o subformat=streamOptimized boot.qcow2 boot.vmdk\n  \
    racker disk convert -O vmdk -o subformat=streamOptimized boot.qcow2 - | sha256sum")]
pub(crate) struct Convert {
    /// Disk image, compressed image, archive with a disk inside, or block device; `-` is standard input
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// New image; `-` is standard output, for formats that are written from beginning to end
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
        let source = self.open_source()?;
        let same = self.source.canonicalize().ok().zip(self.target.canonicalize().ok());
        if same.is_some_and(|(a, b)| a == b) {
            let failure = Failure::new("is the source as well");
            return Err(failure.hint("name another file for the new image")).about(&self.target);
        }
        if is_dash(&self.target) {
            write_out(&source.disk, &self.output_format, &self.new, progress)?;
        } else {
            write_new(&source.disk, &self.target, &self.output_format, &self.new, progress)?;
        }
        Ok(Exit::Done)
    }

    fn open_source(&self) -> Outcome<Opened> {
        let options = self.how.options(false);
        if !is_dash(&self.source) {
            return open(&self.source, &options).about(&self.source);
        }
        // What comes down a pipe is kept where there must be room anyway.
        let beside = self.target.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = match beside {
            Some(folder) => folder.to_path_buf(),
            None if is_dash(&self.target) => std::env::temp_dir(),
            None => PathBuf::from("."),
        };
        let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(Error::from).about(&self.source)?;
        let disk = convert::from_input(File::from(input), &folder).about(&self.source)?;
        open_disk(disk, None, &options).about(&self.source)
    }
}

/// Whether a name stands for standard input or output.
fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What was typed about a new image of `size` bytes.
fn planned(format: &'static dyn Format, size: u64, new: &NewImage) -> Outcome<(Plan, convert::Options)> {
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
    let plan = Plan { size, options, compress: new.compress, ..Plan::default() };
    Ok((plan, convert::Options { threads: new.threads, sparse }))
}

/// Writes `disk` to standard output.
fn write_out(disk: &Disk, format: &str, new: &NewImage, progress: ProgressArgs) -> Outcome<()> {
    let target = Path::new("standard output");
    let format = by_name(format)?;
    let (plan, options) = planned(format, disk.size(), new)?;
    if !format.streams(&plan) {
        let failure =
            Failure::new(format!("{} as asked for is not written from beginning to end", format.name()));
        return Err(failure.hint("raw is, and vmdk with -o subformat=streamOptimized")).about(target);
    }
    if std::io::stdout().is_terminal() {
        return Err(Failure::new("is a terminal, and a disk is not for reading")).about(target);
    }
    let out = std::io::stdout().as_fd().try_clone_to_owned().map_err(Error::from).about(target)?;
    let pipe = Arc::new(Pipe::new(File::from(out)));
    let sink = format.sink(Disk::from_arc(pipe.clone()), &plan).about(target)?;
    let mut bar = progress.start("converting", disk.size());
    let done = convert::convert(disk, sink, options, &mut |n| bar.at(n));
    bar.finish();
    done.and_then(|()| pipe.finish()).about(target)
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
    let (mut plan, options) = planned(format, disk.size(), new)?;
    plan.name = target.file_name().map(|n| n.to_string_lossy().into_owned());
    let file = NewFile::prepare(target).about(target)?;
    plan.beside = file.beside();
    let sink = format.sink(file.disk().clone(), &plan).about(target)?;
    let mut bar = progress.start("converting", disk.size());
    let done = convert::convert(disk, sink, options, &mut |n| bar.at(n));
    bar.finish();
    done.about(target)?;
    file.publish().about(target)
}
