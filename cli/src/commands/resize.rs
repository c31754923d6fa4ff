//! `racker disk resize`

use clap::{Args, ValueEnum};
use racker_formats::block::{Disk, Span};
use racker_formats::options::parse_size;
use racker_fs::partition;

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{human, line};
use crate::progress::ProgressArgs;
use crate::remote::{grow, is_remote, open};
use crate::target::ImageArgs;

/// Change the size of a disk in place; the backup partition table moves to the new end
///
/// Partitions and filesystems keep their sizes. A disk is made smaller only with --shrink, and never through a
/// partition. The disk of an NBD server (nbd://…) is made larger where the server allows it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk resize boot.qcow2 +1G\n  racker disk resize boot.qcow2 20G")]
pub(crate) struct Resize {
    #[command(flatten)]
    image: ImageArgs,
    /// New size, or with + or - the difference: 20G, +512M, -1G
    #[arg(value_name = "SIZE", allow_hyphen_values = true)]
    size: String,
    /// Allow the disk to become smaller: what lies behind the new end is lost
    #[arg(long)]
    shrink: bool,
    /// Take the space of what is added: set aside, or written
    #[arg(long, value_name = "HOW", default_value = "off")]
    preallocation: Preallocation,
}

/// What is done about the space of what is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preallocation {
    /// Nothing: it is taken when it is written
    Off,
    /// The image's tables give it places, and nothing is stored there (qcow2)
    Metadata,
    /// It is set aside
    Falloc,
    /// It is written
    Full,
}

impl Resize {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let path = &self.image.image;
        let opened = open(path, &self.image.how.options(true)).about(path)?;
        let old = opened.disk.size();
        let size = wanted(&self.size, old).about(path)?;
        if size < old && !self.shrink {
            let failure = Failure::new(format!("{size} bytes are less than the disk's {old}"));
            return Err(failure.hint("--shrink allows it; what lies behind the new end is lost")).about(path);
        }
        if size < old && self.preallocation != Preallocation::Off {
            return Err(Failure::new("--preallocation is for what is added, and nothing is")).about(path);
        }
        // The disk of a server, as it is: the server changes its size, and whoever opens it next sees that.
        let is_servers = is_remote(path) && opened.format == "raw";
        if is_servers && size < old {
            return Err(Failure::new("servers make their disks larger, never smaller")).about(path);
        }
        if !is_servers && !opened.disk.caps().resize {
            let failure =
                Failure::new(format!("{} images of this kind cannot change their size", opened.format));
            return Err(failure.hint("convert the image to another format or subformat")).about(path);
        }
        if self.preallocation == Preallocation::Metadata && !opened.disk.allot(Span::first(0)).about(path)? {
            let what = format!("{} images have no tables that could be filled in advance", opened.format);
            return Err(Failure::new(what).hint("--preallocation=falloc sets the space itself aside"))
                .about(path);
        }
        if size < old {
            // The backup table first: until the disk is cut the old one is there as well.
            partition::settle(&opened.disk, size).about(path)?;
        }
        let opened = if is_servers {
            drop(opened);
            grow(path, size).about(path)?;
            open(path, &self.image.how.options(true)).about(path)?
        } else {
            opened.disk.resize(size).about(path)?;
            opened.disk.flush().about(path)?;
            opened
        };
        let now = opened.disk.size();
        if let Ok(added) = Span::new(old, now.saturating_sub(old)) {
            self.take_space(&opened.disk, added).about(path)?;
        }
        if now > old
            && let Err(e) = partition::settle(&opened.disk, now)
        {
            progress.note(&format!("the partition table stays as it is: {e}"));
        }
        opened.disk.flush().about(path)?;
        if !progress.quiet {
            line(&format!("Image resized: {} ({now} bytes)", human(now)))?;
        }
        Ok(Exit::Done)
    }
}

impl Resize {
    fn take_space(&self, disk: &Disk, added: Span) -> racker_formats::Result<()> {
        match self.preallocation {
            Preallocation::Off => Ok(()),
            Preallocation::Metadata => disk.allot(added).map(drop),
            Preallocation::Falloc if disk.occupy(added)? => Ok(()),
            Preallocation::Falloc | Preallocation::Full => disk.store_zeroes(added),
        }
    }
}

/// The size that was typed, in bytes.
fn wanted(text: &str, old: u64) -> Outcome<u64> {
    let (sign, number) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => (0, text),
    };
    let size = parse_size(number).ok_or_else(|| Failure::new(format!("{text:?} is no size")))?;
    match sign {
        0 => Some(size),
        1 => old.checked_add(size),
        _ => old.checked_sub(size).filter(|n| *n > 0),
    }
    .ok_or_else(|| Failure::new(format!("{text:?} leaves no disk of a possible size")))
}
