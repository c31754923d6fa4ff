//! `racker disk create`

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::block::{Disk, FileDevice};
use racker_formats::options::{Values, parse_size};
use racker_formats::registry::{Plan, by_name};

use crate::backing::open_backing;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::line;
use crate::progress::ProgressArgs;
use crate::remote::{is_remote, new_file};
use crate::typed;

/// Make a new, empty disk image, or one that shows what a backing file holds
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk create -f qcow2 new.qcow2 20G\n  \
    racker disk create -f qcow2 -b boot.qcow2 -F qcow2 overlay.qcow2\n  \
    racker disk create -f vhdx empty.vhdx 1G")]
pub(crate) struct Create {
    /// New image: a file, or the address of an NBD server's disk (nbd://HOST/EXPORT), which is written over
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Size of the disk, such as 20G; that of the backing file where there is one
    #[arg(value_name = "SIZE")]
    size: Option<String>,
    /// Format of the new image
    #[arg(short = 'f', long, value_name = "FORMAT", default_value = "raw")]
    format: String,
    /// Options of the format, as K=V[,K=V…]; `racker formats` lists them
    #[arg(short = 'o', value_name = "K=V,…", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Backing file, as the new image shall name it: relative to the new image's folder
    #[arg(short = 'b', long, value_name = "FILE")]
    backing: Option<String>,
    /// Format of the backing file
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Do not look at the backing file, which need not be there yet; a size is needed then
    #[arg(short = 'u')]
    unseen: bool,
    /// Open files that the backing file names outside its folder
    #[arg(long)]
    allow_external: bool,
}

impl Create {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let format = by_name(&self.format)?;
        let mut pairs = typed::pairs(&self.options)?;
        let backing = self.backing.clone().or_else(|| typed::take(&mut pairs, "backing_file"));
        let backing_format = self.backing_format.clone().or_else(|| typed::take(&mut pairs, "backing_fmt"));
        let size = self.size.clone().or_else(|| typed::take(&mut pairs, "size"));
        let told = self.told(&pairs, backing.as_deref(), backing_format.as_deref());
        if self.unseen {
            let named = [("backing_file", backing.clone()), ("backing_fmt", backing_format.clone())];
            pairs.extend(named.into_iter().filter_map(|(k, v)| Some((k.to_string(), v?))));
        }
        let options = Values::parse(
            format.name(),
            format.options(),
            pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())),
        )?;
        let size = match size {
            Some(text) => Some(parse_size(&text).ok_or_else(|| {
                Failure::new(format!("{text:?} is no size")).hint("sizes are typed like 512M or 20G")
            })?),
            None => None,
        };
        let backing = match &backing {
            Some(name) if !self.unseen => {
                Some(open_backing(&self.image, name, backing_format.as_deref(), self.allow_external)?)
            }
            _ => None,
        };
        let size = size.or(backing.as_ref().map(|b| b.image.size()));
        let Some(size) = size else {
            let failure = Failure::new("a new disk needs a size");
            return Err(failure.hint("type it last: 512M, 20G")).about(&self.image);
        };
        let name = self
            .image
            .file_name()
            .filter(|_| !is_remote(&self.image))
            .map(|n| n.to_string_lossy().into_owned());
        let data_file = match options.text("data_file") {
            Some(name) => Some(self.make_data_file(name)?),
            None => None,
        };
        let file = new_file(&self.image, true).about(&self.image)?;
        let plan = Plan { size, name, options, compress: false, backing, data_file, beside: file.beside() };
        let image = format.create(file.disk().clone(), &plan).inspect_err(|_| {
            if let (Some(name), true) = (plan.options.text("data_file"), plan.data_file.is_some()) {
                // Nothing names it.
                let _ = std::fs::remove_file(self.data_path(name));
            }
        });
        let image = image.about(&self.image)?;
        image.flush().about(&self.image)?;
        let made = image.size();
        drop(image);
        file.publish().about(&self.image)?;
        if !progress.quiet {
            line(&format!("Formatting '{}', fmt={} size={size}{told}", self.image.display(), self.format))?;
            if made != size {
                progress.note(&format!("the disk has {made} bytes, as the format cannot tell {size}"));
            }
        }
        Ok(Exit::Done)
    }

    /// What the new image is like beside format and size, as it was typed.
    fn told(&self, pairs: &[(String, String)], backing: Option<&str>, format: Option<&str>) -> String {
        let pairs = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let named = [("backing_file", backing), ("backing_fmt", format)];
        let all = named.into_iter().filter_map(|(k, v)| Some((k, v?))).chain(pairs);
        all.map(|(k, v)| format!(" {k}={v}")).collect()
    }

    fn data_path(&self, name: &str) -> PathBuf {
        self.image.parent().unwrap_or(Path::new("")).join(name)
    }

    /// Makes the file that the new image shall keep its data in, where its folder has none of that name.
    fn make_data_file(&self, name: &str) -> Outcome<Disk> {
        let path = self.data_path(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let disk = file.map_err(racker_formats::Error::from).and_then(|file| FileDevice::new(file, true));
        disk.map(Disk::new).about(&path)
    }
}
