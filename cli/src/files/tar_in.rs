//! `tar-in`

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use racker_fs::tree::tar_in::{Names, tar_in};

use super::Act;
use super::accounts::Accounts;
use super::editing::Editing;
use super::mkdir::need_dir;
use crate::fault::{About, Outcome};
use crate::target::Target;

/// Put all that a tar archive holds into a folder of the image
///
/// Any tar, plain or compressed with gzip, xz, zstd or bzip2. Kept are owners (by number), modes, times, hard links,
/// devices, extended attributes, access control lists and holes.
#[derive(Args, Debug)]
pub(crate) struct TarIn {
    /// Archive; - is standard input
    #[arg(value_name = "FILE.tar")]
    archive: PathBuf,
    /// Folder inside the image
    #[arg(value_name = "PATH", default_value = "/")]
    path: PathBuf,
}

impl Act for TarIn {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        need_dir(&self.path, editing)?;
        let (mut from, size): (Box<dyn Read>, u64) = if self.archive == Path::new("-") {
            (Box::new(std::io::stdin().lock()), 0)
        } else {
            let file = File::open(&self.archive).about(&self.archive)?;
            let size = file.metadata().about(&self.archive)?.len();
            (Box::new(file), size)
        };
        let mut counted = editing.progress.reading("unpacking", from.as_mut(), size);
        let mut stream = expanded(BufReader::with_capacity(1 << 20, &mut counted)).about(&self.archive)?;
        let accounts = Known { target: editing.target, first: Accounts::of(editing.target) };
        let (base, view) = editing.place_in(&self.path, true)?;
        let image = &editing.target.path;
        let done = editing.put(base, &view, |put| {
            tar_in(stream.as_mut(), put, &accounts, None).about(&self.archive).about(image)
        });
        drop(stream);
        counted.finish();
        done?.notes.lines.iter().for_each(|line| editing.progress.note(line));
        Ok(())
    }
}

/// The accounts of before, and those that the archive may bring.
struct Known<'t> {
    target: &'t Target,
    first: Accounts,
}

impl Names for Known<'_> {
    fn user(&self, name: &str) -> Option<u32> {
        self.first.user(name)
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.first.group(name)
    }

    fn again(&self) -> Option<Box<dyn Names + '_>> {
        Some(Box::new(Accounts::of(self.target)))
    }
}

/// The stream without its compression, whatever that is.
fn expanded<'a>(mut from: impl std::io::BufRead + 'a) -> std::io::Result<Box<dyn Read + 'a>> {
    let head = from.fill_buf()?;
    let starts = |magic: &[u8]| head.starts_with(magic);
    Ok(if starts(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(from))
    } else if starts(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(from)?)
    } else if starts(b"\xfd7zXZ\0") {
        Box::new(lzma_rust2::XzReader::new(from, true))
    } else if starts(b"BZh") {
        Box::new(bzip2::bufread::MultiBzDecoder::new(from))
    } else {
        Box::new(from)
    })
}
