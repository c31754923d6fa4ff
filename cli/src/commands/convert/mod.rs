//! `racker disk convert`
//!
//! * [`source`]: what is copied; [`target`]: where it goes; [`pack`]: with an archive around it
//! * [`purpose`]: what platforms want

mod pack;
mod purpose;
mod source;
mod target;

use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::convert::SPARSE_DEFAULT;
use racker_formats::package;

use self::purpose::{Preset, Purpose, rounded};
use self::target::Copy;
use crate::exit::Exit;
use crate::fault::{Failure, Outcome};
use crate::interrupt;
use crate::output;
use crate::progress::ProgressArgs;
use crate::target::HowArgs;
use crate::typed;

pub(super) use self::source::snapshot;
pub(super) use self::target::write_new;

/// Largest `-S` of `qemu-img`.
const SPARSE_MAX: u64 = 16 << 20;

/// Copy a disk into a new image of any format
///
/// The letters mean what they mean to `qemu-img convert`. The new image appears only when it is complete; until
/// then what was at DST stays there. With several sources the new disk has them one behind the other.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk convert -O vmdk boot.qcow2 boot.vmdk\n  \
    racker disk convert -O qcow2 -c debian.box debian.qcow2\n  \
    racker disk convert -O vmdk -o subformat=streamOptimized boot.qcow2 boot.vmdk\n  \
    racker disk convert -O vmdk -o subformat=streamOptimized boot.qcow2 - | gzip > boot.vmdk.gz\n  \
    racker disk convert --verify -O qcow2 -c -o compression_type=zstd boot.qcow2 small.qcow2\n  \
    racker disk convert --for azure boot.qcow2 boot.vhd\n  \
    racker disk convert -O ova -o profile=virtualbox,memory=4G boot.qcow2 boot.ova\n  \
    racker disk convert -O box -o provider=libvirt boot.qcow2 boot.box")]
pub(crate) struct Convert {
    /// Disk image, compressed image, archive with a disk inside, block device, or the address of an NBD server's disk
    /// (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH); `-` is standard input
    #[arg(value_name = "SRC", required = true)]
    sources: Vec<PathBuf>,
    /// New image; `-` is standard output, for formats that are written from beginning to end. A block device and the disk
    /// of an NBD server are written in place
    #[arg(value_name = "DST")]
    target: PathBuf,
    #[command(flatten)]
    how: HowArgs,
    /// The formats of the sources that were typed, in their order.
    #[arg(skip)]
    formats: Vec<Option<String>>,
    /// With -n: DST is such a description as well
    #[arg(long, requires = "existing", conflicts_with = "output_format")]
    target_image_opts: bool,
    /// Format of the new image; raw where not given. `ova` and `box` are packages with the disk inside
    #[arg(short = 'O', long, value_name = "FORMAT")]
    output_format: Option<String>,
    /// What this platform imports: format, options and size
    #[arg(long = "for", value_name = "PLATFORM", conflicts_with_all = ["output_format", "existing", "backing"])]
    purpose: Option<Purpose>,
    #[command(flatten)]
    new: NewImage,
    /// Image that the new one shall be an overlay of: only what differs is written. It is looked for in DST's folder
    #[arg(short = 'B', long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of that image
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// A snapshot inside SRC instead of what it is now: its number or name, or snapshot.id=NUMBER, snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Write into DST, which is an image already and large enough, instead of making it
    #[arg(short = 'n')]
    existing: bool,
    /// With -n: every byte of DST is zero, so zeroes need not be written
    #[arg(long, requires = "existing")]
    target_is_zero: bool,
    /// Copy the bitmaps inside SRC as well, into an image that can hold them
    #[arg(long, conflicts_with_all = ["snapshot", "purpose"])]
    bitmaps: bool,
    /// With --bitmaps: leave out such as cannot be relied on, with a note for each
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,
    /// Zeroes in place of what cannot be read, with a note for each such place
    #[arg(long)]
    salvage: bool,
    /// Bytes to write in a second at most
    #[arg(short = 'r', value_name = "RATE", value_parser = output::size)]
    rate: Option<u64>,
    /// Read the new image back before it takes its place, and compare digests
    #[arg(long)]
    verify: bool,
    /// Show progress (it is shown on a terminal anyway)
    #[arg(short = 'p')]
    show_progress: bool,
    /// Accepted, and changes nothing: every copy is read and packed by several threads at once, and written in order
    #[arg(short = 'W')]
    out_of_order: bool,
    /// Accepted, and changes nothing: data are shared with the source, or copied by the kernel, wherever that works
    #[arg(short = 'C')]
    offload: bool,
    /// unsafe: do not wait until the new image is on stable storage. All others of qemu-img's words: do, as is the default
    #[arg(short = 't', value_name = "CACHE", value_parser = ["none", "writeback", "writethrough", "directsync", "unsafe"])]
    cache: Option<String>,
    /// Accepted, and changes nothing: as -t, for the source
    #[arg(short = 'T', value_name = "CACHE")]
    source_cache: Option<String>,
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
    #[arg(short = 'S', value_name = "SIZE", value_parser = sparse)]
    sparse: Option<u64>,
    /// Worker threads; as many as there are processors where not given
    #[arg(short = 'm', value_name = "THREADS")]
    threads: Option<NonZero<usize>>,
}

/// A value of `-S`.
fn sparse(text: &str) -> Result<u64, String> {
    let bytes = output::size(text)?;
    if bytes > SPARSE_MAX || bytes % 512 != 0 {
        return Err(format!("a multiple of 512 up to {SPARSE_MAX} is expected, or 0 for all zeroes"));
    }
    Ok(bytes)
}

impl Convert {
    pub(super) fn run(mut self, progress: ProgressArgs) -> Outcome<Exit> {
        interrupt::clean_up();
        self.take_descriptions()?;
        let mut source = source::open_all(&self)?;
        let preset = self.purpose.map(|p| p.preset(&self.target));
        let mut new = self.new.clone();
        if let Some(Preset { options, unit, .. }) = preset {
            new.options.insert(0, options.into());
            new.options.retain(|o| !o.is_empty());
            source.disk = rounded(&source.disk, unit, progress)?;
        }
        let bitmaps = if self.bitmaps { Some(source.bitmaps(self.skip_broken_bitmaps)?) } else { None };
        let copy = Copy {
            disk: &source.disk,
            bitmaps: bitmaps.as_ref(),
            skip_broken_bitmaps: self.skip_broken_bitmaps,
            new: &new,
            salvage: self.salvage,
            rate: self.rate.unwrap_or(0),
            verify: self.verify,
            durable: self.cache.as_deref() != Some("unsafe"),
            progress,
        };
        let format = preset.map(|p| p.output).or(self.output_format.as_deref());
        if let Some(name) =
            format.filter(|f| package::NAMES.contains(f) || (*f == "gce" && self.purpose.is_some()))
        {
            self.archive(&copy, name)?;
            return Ok(Exit::Done);
        }
        if self.existing {
            let over = self.base(&source, (None, None))?;
            copy.overwrite(&self.target, format, &self.how, self.target_is_zero, over.as_ref())?;
            return Ok(Exit::Done);
        }
        let format = format.unwrap_or("raw");
        if is_dash(&self.target) {
            if self.backing.is_some() || self.bitmaps {
                let what = "what goes to standard output can have no backing file (-B) and no bitmaps";
                return Err(Failure::new(what));
            }
            copy.send(format)?;
            return Ok(Exit::Done);
        }
        copy.make(&self.target, format, &mut |named| self.base(&source, named))?;
        Ok(Exit::Done)
    }
}

impl Convert {
    /// Turns what describes images to paths and formats.
    fn take_descriptions(&mut self) -> Outcome<()> {
        for source in &mut self.sources {
            let (path, format) = self.how.described(std::mem::take(source))?;
            *source = path;
            self.formats.push(format);
        }
        if self.target_image_opts {
            (self.target, self.output_format) = typed::description(&self.target)?;
        }
        Ok(())
    }

    fn archive(&self, copy: &Copy<'_>, name: &str) -> Outcome<()> {
        if self.existing || self.backing.is_some() || self.bitmaps {
            let what = "-n, -B and --bitmaps are for images, not for archives";
            return Err(Failure::new(format!("{name}: {what}")));
        }
        if name == "gce" {
            return copy.gce(&self.target);
        }
        copy.package(&self.target, name)
    }
}

impl NewImage {
    fn sparse(&self) -> u64 {
        self.sparse.unwrap_or(SPARSE_DEFAULT)
    }
}

/// Whether a name stands for standard input or output.
fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}
