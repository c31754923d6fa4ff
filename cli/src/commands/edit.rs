//! `racker disk edit`

mod change;
mod editor;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::wire::len64;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Content, NodeKind};
use racker_fs::path::{Place, read_all};

use self::change::Change;
use super::convert::NewImage;
use crate::clean::clean;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::files::editing::now;
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, PartitionArgs, Target};

/// A file that is changed by text is held in memory; one from `--from` is not.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Change one file of an image, all or nothing
///
/// Without an option, $VISUAL or $EDITOR opens a copy, which is written back only if it changed. The file keeps
/// owner, mode, extended attributes and SELinux label. One with several hard links gets a node of its own, as
/// `sed -i` does, unless --keep-links writes through.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk edit boot.qcow2 /loader/entries/ostree-1-ock.conf\n  \
    racker disk edit boot.qcow2 /loader/entries/ostree-1-ock.conf \\\n      \
    --replace ignition.platform.id=qemu ignition.platform.id=vmware\n  \
    racker disk edit boot.qcow2 /boot/loader/entries/ostree-1-ock.conf \\\n      \
    --regex 's/ console=\\S+//g' --dry-run")]
pub(crate) struct Edit {
    #[command(flatten)]
    image: ImageArgs,
    /// File inside the image
    #[arg(value_name = "PATH")]
    path: PathBuf,
    #[command(flatten)]
    which: PartitionArgs,
    /// Replace every OLD by NEW; OLD is plain text (repeatable)
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], action = clap::ArgAction::Append)]
    replace: Vec<String>,
    /// Replace what a regular expression matches, as sed does: s/REGEX/NEW/ with flags g and i (repeatable; after --replace)
    #[arg(long, value_name = "S/REGEX/NEW/", action = clap::ArgAction::Append)]
    regex: Vec<String>,
    /// Take the whole content from a file of the host; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replace", "regex"])]
    from: Option<PathBuf>,
    /// A replacement that matches nothing is no error
    #[arg(long)]
    allow_unchanged: bool,
    /// Write through to every hard link of the file
    #[arg(long)]
    keep_links: bool,
    /// Print what would change as a unified diff, and write nothing
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
    /// Leave IMAGE alone and write the edited disk to NEW
    #[arg(long, value_name = "NEW")]
    output: Option<PathBuf>,
    /// Format of NEW, instead of IMAGE's
    #[arg(short = 'O', long, value_name = "FORMAT", requires = "output")]
    output_format: Option<String>,
}

/// The content a file shall have.
enum Wanted {
    Bytes(Vec<u8>),
    /// A file of the host, read when it is written.
    File(File, u64),
}

impl Edit {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let changes = Change::parse(&self.replace, &self.regex)?;
        let in_place = !self.dry_run && self.output.is_none();
        let target = Target::open_for(&self.image, in_place)?;
        let (place, _) = target.place(&self.which, &self.path, true)?;
        let stat = place.fs.stat(place.node).about(&self.image.image)?;
        if stat.kind != NodeKind::File {
            let what = crate::output::kind(stat.kind);
            return Err(self.failure(&format!("is a {what}, not a regular file")));
        }
        let Some(wanted) = self.wanted(&place, &changes)? else {
            progress.note(&format!("{}: unchanged, nothing written", self.path.display()));
            if let (Some(new), false) = (&self.output, self.dry_run) {
                self.write_out(target.disk(), &target, new, progress)?;
            }
            return Ok(Exit::Done);
        };
        if self.dry_run {
            return self.diff(&place, wanted);
        }
        let separate = stat.links > 1 && !self.keep_links;
        if separate {
            progress.note(&format!(
                "{}: one of {} hard links; it gets a copy of its own (--keep-links writes through)",
                self.path.display(),
                stat.links
            ));
        }
        self.land(&target, &place, wanted, separate, progress)?;
        Ok(Exit::Done)
    }

    fn failure(&self, what: &str) -> Failure {
        let failure = Failure::new(format!("{}: {what}", self.path.display()));
        match Err::<(), _>(failure).about(&self.image.image) {
            Err(failure) => failure,
            Ok(()) => Failure::new(what),
        }
    }

    /// The new content; none if it is the old one.
    fn wanted(&self, place: &Place, changes: &[Change]) -> Outcome<Option<Wanted>> {
        if let Some(from) = &self.from {
            return self.wanted_from(from, place);
        }
        let old = read_all(place.fs.as_ref(), place.node, TEXT_BYTES_MAX).about(&self.image.image)?;
        let new = if changes.is_empty() {
            let name = place.path.last().map_or(b"file".as_slice(), |n| n.as_bytes());
            editor::edit(&String::from_utf8_lossy(name), &old)?
        } else {
            let mut text = old.clone();
            for change in changes {
                let (next, count) = change.apply(&text);
                if count == 0 && !self.allow_unchanged {
                    let failure = self.failure(&format!("{} matches nothing", change.pattern()));
                    return Err(failure.hint("--allow-unchanged makes that no error"));
                }
                text = next;
            }
            text
        };
        Ok((new != old).then_some(Wanted::Bytes(new)))
    }

    fn wanted_from(&self, from: &Path, place: &Place) -> Outcome<Option<Wanted>> {
        let mut file = if from == Path::new("-") {
            spooled(&mut std::io::stdin().lock())?
        } else {
            let mut file = File::open(from).about(from)?;
            if file.metadata()?.is_file() { file } else { spooled(&mut file).about(from)? }
        };
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(0))?;
        let same = place.fs.stat(place.node).about(&self.image.image)?.size == size
            && same_content(&mut file, place).about(&self.image.image)?;
        file.seek(SeekFrom::Start(0))?;
        Ok((!same).then_some(Wanted::File(file, size)))
    }

    fn diff(&self, place: &Place, wanted: Wanted) -> Outcome<Exit> {
        let old = read_all(place.fs.as_ref(), place.node, TEXT_BYTES_MAX).about(&self.image.image)?;
        let new = match wanted {
            Wanted::Bytes(bytes) => bytes,
            Wanted::File(file, _) => {
                let mut bytes = Vec::new();
                file.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
                bytes
            }
        };
        let mut out = std::io::stdout().lock();
        let name = clean(&place.display());
        match (std::str::from_utf8(&old), std::str::from_utf8(&new)) {
            (Ok(old), Ok(new)) => {
                let diff = similar::TextDiff::from_lines(old, new);
                let text = diff.unified_diff().header(&format!("a{name}"), &format!("b{name}")).to_string();
                out.write_all(text.as_bytes())?;
            }
            _ => writeln!(out, "Binary files a{name} and b{name} differ")?,
        }
        out.flush()?;
        Ok(Exit::Done)
    }

    /// Writes the new content, to the image itself or to a new one.
    fn land(
        &self,
        target: &Target,
        place: &Place,
        wanted: Wanted,
        separate: bool,
        progress: ProgressArgs,
    ) -> Outcome<()> {
        let volume = target.volume(place)?;
        let transaction = match &self.output {
            Some(_) => racker_formats::transaction::Transaction::overlay(target.disk().clone()),
            None => target.opened.begin().about(&self.image.image)?,
        };
        let disk = transaction.disk();
        let mut writer = volume.edit(&disk).about(&self.image.image)?;
        rewrite(&mut writer, place, wanted, separate, progress).about(&self.image.image)?;
        writer.close().about(&self.image.image)?;
        drop(disk);
        match &self.output {
            Some(new) => {
                let edited = transaction.finish().about(&self.image.image)?;
                self.write_out(&edited, target, new, progress)
            }
            None => transaction.commit().about(&self.image.image),
        }
    }

    fn write_out(
        &self,
        disk: &racker_formats::block::Disk,
        target: &Target,
        new: &Path,
        progress: ProgressArgs,
    ) -> Outcome<()> {
        let format = self.output_format.as_deref().unwrap_or(target.opened.format);
        super::convert::write_new(disk, new, format, &NewImage::default(), progress)
    }
}

/// Puts the new content into the file, or into a node of its own.
fn rewrite(
    writer: &mut Writer<'_>,
    place: &Place,
    wanted: Wanted,
    separate: bool,
    progress: ProgressArgs,
) -> racker_formats::Result<()> {
    let now = now();
    let node = match &place.entry {
        Some((dir, name)) if separate => writer.separate(*dir, name, now)?,
        _ => place.node,
    };
    match wanted {
        Wanted::Bytes(bytes) => {
            let size = len64(bytes.len());
            writer.replace(node, Content { reader: &mut bytes.as_slice(), size }, now)
        }
        Wanted::File(file, size) => {
            let mut reader = Counted { file, done: 0, bar: progress.start("writing", size) };
            let result = writer.replace(node, Content { reader: &mut reader, size }, now);
            reader.bar.finish();
            result
        }
    }
}

/// A reader that shows how far it is.
struct Counted {
    file: File,
    done: u64,
    bar: crate::progress::Progress,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buf)?;
        self.done = self.done.saturating_add(len64(n));
        self.bar.at(self.done);
        Ok(n)
    }
}

/// What comes out of a pipe or a device, which has no size before its end, in a temporary file.
fn spooled(from: &mut dyn std::io::Read) -> std::io::Result<File> {
    let mut spool = tempfile::tempfile()?;
    std::io::copy(from, &mut spool)?;
    Ok(spool)
}

fn same_content(file: &mut File, place: &Place) -> racker_formats::Result<bool> {
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0u64;
    loop {
        let n = place.fs.read(place.node, at, &mut theirs)?;
        if n == 0 {
            return Ok(true);
        }
        let (Some(a), Some(b)) = (ours.get_mut(..n), theirs.get(..n)) else { return Ok(false) };
        if file.read_exact(a).is_err() || a != b {
            return Ok(false);
        }
        at = at.saturating_add(len64(n));
    }
}
