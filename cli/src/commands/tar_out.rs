//! `racker disk tar-out`

use std::io::{BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use racker_formats::convert::NewFile;
use racker_formats::wire::len64;
use racker_fs::tree::Tree;
use racker_fs::tree::tar_out::{TarOptions, TarSummary, tar_out};

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::progress::{Progress, ProgressArgs};
use crate::target::{ImageArgs, PartitionArgs, Target};

/// Write the whole tree of an image as a tar stream
///
/// Nothing is lost, whoever runs it: PAX records keep numeric owners, nanoseconds, extended attributes, ACLs, long and
/// odd names; holes are kept as sparse members. Where the disk holds an operating system, its own mounts are part of
/// the tree; -p takes one filesystem.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk tar-out debian.box | tar -tv\n  \
    racker disk tar-out debian.box -o rootfs.tar.zst")]
pub(crate) struct TarOut {
    #[command(flatten)]
    image: ImageArgs,
    /// File instead of standard output; .gz, .xz and .zst at its end compress
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    which: PartitionArgs,
}

impl TarOut {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let target = Target::open(&self.image)?;
        let tree = target.whole_tree(&self.which)?;
        let mut bar = progress.start("writing", target.used());
        let summary = match self.output.as_deref().filter(|o| *o != Path::new("-")) {
            Some(path) => self.to_file(path, &tree, &mut bar)?,
            None if std::io::stdout().is_terminal() => {
                let failure = Failure::new("a tar stream would confuse the terminal");
                return Err(failure.hint("name a file with -o, or pipe it into tar"));
            }
            None => {
                let mut out = std::io::stdout().lock();
                let summary = write(&tree, &mut out, &mut bar).about(&self.image.image)?;
                out.flush()?;
                summary
            }
        };
        bar.finish();
        super::extract::notes(&summary.notes, progress);
        Ok(Exit::Done)
    }

    /// The file appears only when the stream is complete.
    fn to_file(&self, path: &Path, tree: &Tree, bar: &mut Progress) -> Outcome<TarSummary> {
        let file = NewFile::prepare(path).about(path)?;
        let mut out = BufWriter::with_capacity(1 << 20, Appender { file: &file, at: 0 });
        let write = |out: &mut dyn Write, bar: &mut Progress| write(tree, out, bar).about(&self.image.image);
        let summary = match path.extension().and_then(|e| e.to_str()) {
            Some("gz" | "tgz") => {
                let mut packer = GzEncoder::new(&mut out, Compression::default());
                let summary = write(&mut packer, bar)?;
                packer.finish().about(path)?;
                summary
            }
            Some("zst" | "tzst") => {
                let mut packer = zstd::Encoder::new(&mut out, 3).about(path)?;
                let summary = write(&mut packer, bar)?;
                packer.finish().about(path)?;
                summary
            }
            Some("xz" | "txz") => {
                let options = lzma_rust2::XzOptions::with_preset(6);
                let mut packer = lzma_rust2::XzWriter::new(&mut out, options).about(path)?;
                let summary = write(&mut packer, bar)?;
                packer.finish().about(path)?;
                summary
            }
            _ => write(&mut out, bar)?,
        };
        out.flush().about(path)?;
        drop(out);
        file.publish().about(path)?;
        Ok(summary)
    }
}

fn write(tree: &Tree, out: &mut dyn Write, bar: &mut Progress) -> racker_formats::Result<TarSummary> {
    let tell = Box::new(|p: racker_fs::tree::Progress| {
        bar.at(p.bytes);
        ControlFlow::Continue(())
    });
    tar_out(tree, out, TarOptions { progress: Some(tell), ..TarOptions::default() })
}

/// Writes to the end of a new file.
struct Appender<'a> {
    file: &'a NewFile,
    at: u64,
}

impl Write for Appender<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let end = self.at.saturating_add(len64(buf.len()));
        let disk = self.file.disk();
        disk.resize(end).and_then(|()| disk.write_at(self.at, buf)).map_err(std::io::Error::other)?;
        self.at = end;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
