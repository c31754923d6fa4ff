//! `racker disk part`
//!
//! * [`ls`]: the table, for people and as JSON
//! * [`change`]: what changes it, each verb in a transaction of its own

mod change;
mod ls;

use clap::{Args, Subcommand};
use racker_formats::block::Disk;
use racker_fs::partition;
use racker_fs::partition::edit::TableEdit;

use self::change::{Add, Init, Resize, Rm, Set};
use self::ls::Ls;
use crate::exit::Exit;
use crate::fault::{About, Outcome};
use crate::output::line;
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, Target};

/// List, make and change the partitions of a disk: GPT and MBR
///
/// Each change lands whole or not at all, and moves nothing inside a partition. Options of the image stand before the
/// verb. `racker disk part IMAGE VERB --help` tells more of a verb.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk part boot.qcow2 ls\n  \
    racker disk create new.raw 1G\n  \
    racker disk part new.raw init gpt\n  \
    racker disk part new.raw add --type esp --size 256M --label EFI\n  \
    racker disk part new.raw add --type root-x86-64 --label root\n  \
    racker disk part new.raw set 2 --attribute growfs")]
pub(crate) struct Part {
    #[command(flatten)]
    image: ImageArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ls(Ls),
    Init(Init),
    Add(Add),
    Rm(Rm),
    Resize(Resize),
    Set(Set),
}

impl Part {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let target = Target::open_for(&self.image, !matches!(self.verb, Verb::Ls(_)))?;
        let on = On { target: &target, progress };
        match self.verb {
            Verb::Ls(verb) => verb.look(&target)?,
            Verb::Init(verb) => verb.act(on)?,
            Verb::Add(verb) => verb.act(on)?,
            Verb::Rm(verb) => verb.act(on)?,
            Verb::Resize(verb) => verb.act(on)?,
            Verb::Set(verb) => verb.act(on)?,
        }
        Ok(Exit::Done)
    }
}

/// The disk whose table changes.
#[derive(Clone, Copy, Debug)]
struct On<'a> {
    target: &'a Target,
    progress: ProgressArgs,
}

impl On<'_> {
    /// Changes the table in a transaction; afterwards it is read once more, as whoever comes next reads it.
    fn change<T>(
        self,
        open: impl FnOnce(&Disk) -> racker_formats::Result<TableEdit>,
        work: impl FnOnce(&mut TableEdit) -> racker_formats::Result<T>,
    ) -> Outcome<(T, partition::Table)> {
        let path = &self.target.path;
        let transaction = self.target.opened.begin().about(path)?;
        let edit = transaction.disk();
        let writer = edit.writer();
        let done = open(edit.disk()).and_then(|mut table| {
            let done = work(&mut table)?;
            table.write(edit.disk())?;
            Ok((done, partition::read(edit.disk())?))
        });
        let done = done.about(path)?;
        writer.close();
        transaction.commit().about(path)?;
        Ok(done)
    }

    /// Changes the table that is there.
    fn edit<T>(
        self,
        work: impl FnOnce(&mut TableEdit) -> racker_formats::Result<T>,
    ) -> Outcome<(T, partition::Table)> {
        self.change(TableEdit::open, work)
    }

    /// Says what was done, unless nobody wants to hear.
    fn say(self, text: &str) -> Outcome<()> {
        if self.progress.quiet { Ok(()) } else { line(text) }
    }
}
