//! The list of commands: one file each, an args struct whose comments are the manual, and `run`.

mod attach;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod detach;
mod diff;
mod edit;
pub(crate) mod extract;
mod formats;
mod fs;
mod info;
mod map;
mod measure;
mod mount;
mod part;
mod rebase;
mod resize;
mod serve;
mod shell;
mod snapshot;
mod sparsify;
mod tar_out;
mod umount;

use clap::{Parser, Subcommand};

use crate::exit::Exit;
use crate::fault::Outcome;
use crate::files::{self, Reading, Writing};
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
    Disk(Box<Disk>),
    /// The image formats and filesystems that racker knows
    Formats(formats::Formats),
}

#[derive(Debug, Subcommand)]
enum Disk {
    Info(info::Info),
    /// List files inside an image
    #[command(after_help = "Example:\n  racker disk ls -l boot.qcow2 /loader/entries")]
    Ls(Reading<files::ls::Ls>),
    /// Print files of an image
    #[command(after_help = "Example:\n  racker disk cat boot.qcow2 /loader/entries/ostree-1-ock.conf")]
    Cat(Reading<files::cat::Cat>),
    /// Show everything about files of an image, extended attributes included
    #[command(after_help = "Example:\n  racker disk stat boot.qcow2 /loader/entries/ostree-1-ock.conf")]
    Stat(Reading<files::stat::Stat>),
    /// Find files of an image, as find(1) does
    #[command(after_help = "Example:\n  racker disk find boot.qcow2 / -name '*.conf' -type f")]
    Find(Reading<files::find::Find>),
    /// Show how much room files and folders take
    #[command(after_help = "Example:\n  racker disk du -s --human-readable boot.qcow2 /")]
    Du(Reading<files::du::Du>),
    /// Show how much room the filesystems have
    #[command(after_help = "Example:\n  racker disk df boot.qcow2")]
    Df(Reading<files::df::Df>),
    /// Show folders as a tree
    #[command(after_help = "Example:\n  racker disk tree -L 2 boot.qcow2 /")]
    Tree(Reading<files::tree::Tree>),
    /// Show which files differ between two images, whatever their formats
    Diff(diff::Diff),
    /// Copy files and folders of the host into a folder of the image
    #[command(after_help = "Example:\n  echo welcome > motd\n  racker disk copy-in boot.qcow2 motd /etc")]
    CopyIn(Writing<files::copy_in::CopyIn>),
    /// Write a file of an image: standard input, a text, or a file of the host
    #[command(after_help = "Example:\n  echo node1 | racker disk write boot.qcow2 /etc/hostname")]
    Write(Writing<files::write::Write>),
    /// Remove files, and with -r folders and all below them
    #[command(after_help = "Example:\n  racker disk rm -r boot.qcow2 /loader/entries")]
    Rm(Writing<files::rm::Rm>),
    /// Move or rename files and folders
    #[command(after_help = "Example:\n  racker disk mv boot.qcow2 /etc/hostname /etc/hostname.old")]
    Mv(Writing<files::mv::Mv>),
    /// Make hard links, or with -s symbolic ones
    #[command(after_help = "Example:\n  racker disk ln -s boot.qcow2 /usr/share/zoneinfo/UTC /etc/localtime")]
    Ln(Writing<files::ln::Ln>),
    /// Make empty files, or give files the time of now
    #[command(after_help = "Example:\n  racker disk touch boot.qcow2 /.autorelabel")]
    Touch(Writing<files::touch::Touch>),
    /// Give files another size
    #[command(after_help = "Example:\n  racker disk truncate -s 0 boot.qcow2 /etc/hostname")]
    Truncate(Writing<files::truncate::Truncate>),
    /// Change permissions
    #[command(after_help = "Example:\n  racker disk chmod -R boot.qcow2 go-w /etc")]
    Chmod(Writing<files::chmod::Chmod>),
    /// Change owner and group; names are those of the image
    #[command(after_help = "Example:\n  racker disk chown -R boot.qcow2 root:root /etc")]
    Chown(Writing<files::chown::Chown>),
    /// Set or remove an extended attribute
    #[command(
        after_help = "Example:\n  racker disk setfattr -n user.origin -v build boot.qcow2 /etc/hostname"
    )]
    Setfattr(Writing<files::setfattr::Setfattr>),
    /// Put all that a tar archive holds into a folder of the image
    #[command(
        after_help = "Example:\n  tar -czf certs.tar.gz -C /etc ssl\n  racker disk tar-in boot.qcow2 certs.tar.gz /etc"
    )]
    TarIn(Writing<files::tar_in::TarIn>),
    /// Make folders
    #[command(after_help = "Example:\n  racker disk mkdir -p boot.qcow2 /opt/tool/bin")]
    Mkdir(files::mkdir::MkdirCommand),
    Shell(shell::Shell),
    Edit(Box<edit::EditCommand>),
    /// Copy files and folders of an image to the host
    #[command(after_help = "Example:\n  racker disk copy-out boot.qcow2 /loader/entries .")]
    CopyOut(Reading<files::copy_out::CopyOut>),
    Extract(extract::Extract),
    TarOut(tar_out::TarOut),
    Convert(Box<convert::Convert>),
    Create(Box<create::Create>),
    Resize(resize::Resize),
    Part(part::Part),
    Fs(fs::Fs),
    Snapshot(snapshot::SnapshotCommand),
    Bitmap(Box<bitmap::Bitmap>),
    Rebase(rebase::Rebase),
    Commit(commit::Commit),
    Sparsify(sparsify::Sparsify),
    Check(check::Check),
    Map(map::Map),
    Compare(compare::Compare),
    Measure(Box<measure::MeasureCommand>),
    Serve(Box<serve::Serve>),
    Attach(Box<attach::Attach>),
    Detach(detach::Detach),
    Mount(Box<mount::Mount>),
    #[command(visible_alias = "unmount")]
    Umount(umount::Umount),
}

impl Racker {
    /// Runs what was typed.
    pub(crate) fn run(self) -> Outcome<Exit> {
        let progress = self.progress;
        match self.topic {
            Topic::Formats(c) => c.run(),
            Topic::Disk(disk) => match *disk {
                Disk::Info(c) => c.run(),
                Disk::Ls(c) => c.run(progress),
                Disk::Cat(c) => c.run(progress),
                Disk::Stat(c) => c.run(progress),
                Disk::Find(c) => c.run(progress),
                Disk::Du(c) => c.run(progress),
                Disk::Df(c) => c.run(progress),
                Disk::Tree(c) => c.run(progress),
                Disk::Diff(c) => c.run(),
                Disk::CopyIn(c) => c.run(progress),
                Disk::Write(c) => c.run(progress),
                Disk::Rm(c) => c.run(progress),
                Disk::Mv(c) => c.run(progress),
                Disk::Ln(c) => c.run(progress),
                Disk::Touch(c) => c.run(progress),
                Disk::Truncate(c) => c.run(progress),
                Disk::Chmod(c) => c.run(progress),
                Disk::Chown(c) => c.run(progress),
                Disk::Setfattr(c) => c.run(progress),
                Disk::TarIn(c) => c.run(progress),
                Disk::Mkdir(c) => c.run(progress),
                Disk::Shell(c) => c.run(progress),
                Disk::Edit(c) => c.run(progress),
                Disk::CopyOut(c) => c.run(progress),
                Disk::Extract(c) => c.run(progress),
                Disk::TarOut(c) => c.run(progress),
                Disk::Convert(c) => c.run(progress),
                Disk::Create(c) => c.run(progress),
                Disk::Resize(c) => c.run(progress),
                Disk::Part(c) => c.run(progress),
                Disk::Fs(c) => c.run(progress),
                Disk::Snapshot(c) => c.run(),
                Disk::Bitmap(c) => c.run(),
                Disk::Rebase(c) => c.run(progress),
                Disk::Commit(c) => c.run(progress),
                Disk::Sparsify(c) => c.run(progress),
                Disk::Check(c) => c.run(),
                Disk::Map(c) => c.run(),
                Disk::Compare(c) => c.run(progress),
                Disk::Measure(c) => c.run(progress),
                Disk::Serve(c) => c.run(progress),
                Disk::Attach(c) => c.run(),
                Disk::Detach(c) => c.run(progress),
                Disk::Mount(c) => c.run(progress),
                Disk::Umount(c) => c.run(progress),
            },
        }
    }
}
