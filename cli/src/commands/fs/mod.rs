//! `racker disk fs`
//!
//! * [`check`]: what is wrong with it; [`identity`]: label and UUID; [`resize`]: more space

mod check;
mod identity;
mod resize;

use clap::{Args, Subcommand};
use racker_fs::edit::Writer;
use racker_fs::inspect::{Found, Volume, describe};

use self::check::Check;
use self::identity::{Label, Uuid};
use self::resize::Resize;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, Target};

/// Show or change a filesystem as a whole: its label, its UUID, its size; check it
///
/// The filesystem is the only one of the disk, or the one that -p names. Each change lands whole or not at all. Options
/// of the image stand before the verb.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk fs boot.qcow2 -p 2 label\n  \
    racker disk fs boot.qcow2 -p 2 label boot2\n  \
    racker disk fs boot.qcow2 -p boot2 uuid --random\n  \
    racker disk resize boot.qcow2 +1G\n  racker disk part boot.qcow2 resize 3 --max\n  \
    racker disk fs boot.qcow2 -p 3 resize\n  \
    racker disk fs boot.qcow2 -p 1 check")]
pub(crate) struct Fs {
    #[command(flatten)]
    image: ImageArgs,
    /// Filesystem: partition number, label, UUID or PARTUUID; 0 is the whole disk
    #[arg(short = 'p', long = "partition", value_name = "PARTITION", global = true)]
    partition: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Label(Label),
    Uuid(Uuid),
    Resize(Resize),
    Check(Check),
}

impl Fs {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let write = match &self.verb {
            Verb::Label(verb) => verb.writes(),
            Verb::Uuid(verb) => verb.writes(),
            Verb::Resize(_) => true,
            Verb::Check(verb) => verb.writes(),
        };
        let target = Target::open_for(&self.image, write)?;
        let volume = chosen(&target, self.partition.as_deref())?;
        let on = On { target: &target, volume: &volume, progress };
        match self.verb {
            Verb::Label(verb) => verb.run(on)?,
            Verb::Uuid(verb) => verb.run(on)?,
            Verb::Resize(verb) => verb.run(on)?,
            Verb::Check(verb) => return verb.run(on),
        }
        Ok(Exit::Done)
    }
}

/// A filesystem of an image.
#[derive(Clone, Copy, Debug)]
struct On<'a> {
    target: &'a Target,
    volume: &'a Volume,
    progress: ProgressArgs,
}

impl On<'_> {
    /// Changes the filesystem in a transaction.
    fn change<T>(self, work: impl FnOnce(&mut Writer<'_>) -> racker_formats::Result<T>) -> Outcome<T> {
        let path = &self.target.path;
        let transaction = self.target.opened.begin().about(path)?;
        let mut writer = self.volume.edit(&transaction.disk()).about(path)?;
        let done = work(&mut writer).about(path)?;
        writer.close().about(path)?;
        transaction.commit().about(path)?;
        Ok(done)
    }
}

/// The volume that was named, or the only one with a filesystem that racker reads.
pub(super) fn chosen<'a>(target: &'a Target, name: Option<&str>) -> Outcome<Found<'a>> {
    if let Some(name) = name {
        return target.inspection.find(target.disk(), name).about(&target.path);
    }
    let all: Vec<&Volume> = target.inspection.volumes.iter().filter(|v| v.driver().is_some()).collect();
    match all.as_slice() {
        [one] => Ok(Found::Listed(one)),
        [] => Err(Failure::new("no filesystem that racker reads is on this disk")).about(&target.path),
        several => {
            let there: Vec<String> = several.iter().map(|v| describe(v)).collect();
            let failure = Failure::new("there is more than one filesystem");
            Err(failure.hint(format!("choose with {}", there.join(" or ")))).about(&target.path)
        }
    }
}
