//! What is done with the files of an image: one verb a file, on the command line and in the shell.
//!
//! * [`Look`]: a verb that reads; [`Act`]: one that changes something
//! * [`Reading`], [`Writing`]: the same with the image in front, as commands of their own
//! * [`editing`]: one transaction for one verb or for many

pub(crate) mod accounts;
pub(crate) mod cat;
pub(crate) mod chmod;
pub(crate) mod chown;
pub(crate) mod copy_in;
pub(crate) mod df;
pub(crate) mod du;
pub(crate) mod editing;
pub(crate) mod find;
pub(crate) mod ln;
pub(crate) mod ls;
pub(crate) mod mkdir;
mod mode;
pub(crate) mod mv;
pub(crate) mod rm;
pub(crate) mod setfattr;
pub(crate) mod stat;
pub(crate) mod tar_in;
pub(crate) mod touch;
pub(crate) mod tree;
pub(crate) mod truncate;
pub(crate) mod write;

use clap::Args;

use self::editing::{Editing, How, edit};
use crate::exit::Exit;
use crate::fault::Outcome;
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, PartitionArgs, Target};

/// An image that is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct On<'a> {
    pub(crate) target: &'a Target,
    pub(crate) which: &'a PartitionArgs,
}

/// A verb that reads.
pub(crate) trait Look {
    /// Does it.
    fn look(&self, on: On<'_>) -> Outcome<()>;
}

/// A verb that changes something.
pub(crate) trait Act {
    /// Does it, in the transaction at hand.
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()>;
}

/// A verb that reads, with its image.
#[derive(Args, Debug)]
pub(crate) struct Reading<V: Args> {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    which: PartitionArgs,
    #[command(flatten)]
    verb: V,
}

/// A verb that changes something, with its image.
#[derive(Args, Debug)]
pub(crate) struct Writing<V: Args> {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    which: PartitionArgs,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    verb: V,
}

/// What new files are labelled with.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct LabelArgs {
    /// New files get no SELinux label; else the one that the image's own policy has for them
    #[arg(long)]
    pub(crate) no_selinux: bool,
}

impl<V: Args + Look> Reading<V> {
    /// Opens the image and does it.
    pub(crate) fn run(self) -> Outcome<Exit> {
        let target = Target::open(&self.image)?;
        self.verb.look(On { target: &target, which: &self.which })?;
        Ok(Exit::Done)
    }
}

impl<V: Args + Act> Writing<V> {
    /// Does it, all or nothing.
    pub(crate) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        run(&self.image, &self.which, &self.verb, How { progress, no_selinux: self.labels.no_selinux })
    }
}

/// Does something to an image, all or nothing.
pub(crate) fn run(image: &ImageArgs, which: &PartitionArgs, verb: &dyn Act, how: How) -> Outcome<Exit> {
    crate::interrupt::clean_up();
    let target = Target::open_for(image, true)?;
    edit(&target, which, how, |editing| verb.act(editing))?;
    Ok(Exit::Done)
}
