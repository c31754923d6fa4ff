//! The list of commands: one file each, an args struct whose comments are the manual, and `run`.

mod bitmap;
mod cat;
mod check;
mod commit;
mod compare;
mod convert;
mod copy_out;
mod create;
mod edit;
mod extract;
mod formats;
mod info;
mod ls;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;
mod sparsify;
mod stat;
mod tar_out;

use clap::{Parser, Subcommand};

use crate::exit::Exit;
use crate::fault::Outcome;
use crate::progress::ProgressArgs;

/// Reads, edits and converts virtual machine disks in user space: no root, no kernel module, no helper VM
#[derive(Debug, Parser)]
#[command(name = "racker", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Racker {
    #[command(subcommand)]
    topic: Topic,
    #[command(flatten)]
    progress: ProgressArgs,
}

#[derive(Debug, Subcommand)]
enum Topic {
    /// Disk images, and the files inside them
    #[command(subcommand)]
    Disk(Disk),
    /// The image formats and filesystems that racker knows
    Formats(formats::Formats),
}

#[derive(Debug, Subcommand)]
enum Disk {
    Info(info::Info),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Stat(stat::StatCommand),
    Edit(Box<edit::Edit>),
    CopyOut(copy_out::CopyOut),
    Extract(extract::Extract),
    TarOut(tar_out::TarOut),
    Convert(Box<convert::Convert>),
    Create(Box<create::Create>),
    Resize(resize::Resize),
    Snapshot(snapshot::SnapshotCommand),
    Bitmap(Box<bitmap::Bitmap>),
    Rebase(rebase::Rebase),
    Commit(commit::Commit),
    Sparsify(sparsify::Sparsify),
    Check(check::Check),
    Map(map::Map),
    Compare(compare::Compare),
    Measure(Box<measure::MeasureCommand>),
}

impl Racker {
    /// Runs what was typed.
    pub(crate) fn run(self) -> Outcome<Exit> {
        let progress = self.progress;
        match self.topic {
            Topic::Formats(c) => c.run(),
            Topic::Disk(disk) => match disk {
                Disk::Info(c) => c.run(),
                Disk::Ls(c) => c.run(),
                Disk::Cat(c) => c.run(),
                Disk::Stat(c) => c.run(),
                Disk::Edit(c) => c.run(progress),
                Disk::CopyOut(c) => c.run(progress),
                Disk::Extract(c) => c.run(progress),
                Disk::TarOut(c) => c.run(progress),
                Disk::Convert(c) => c.run(progress),
                Disk::Create(c) => c.run(progress),
                Disk::Resize(c) => c.run(progress),
                Disk::Snapshot(c) => c.run(),
                Disk::Bitmap(c) => c.run(),
                Disk::Rebase(c) => c.run(progress),
                Disk::Commit(c) => c.run(progress),
                Disk::Sparsify(c) => c.run(progress),
                Disk::Check(c) => c.run(),
                Disk::Map(c) => c.run(),
                Disk::Compare(c) => c.run(progress),
                Disk::Measure(c) => c.run(progress),
            },
        }
    }
}
