//! From a path to a disk: host file, containers, format.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block::{Disk, Lock};
use crate::error::Result;
use crate::registry::{self, Format, Image, Opening, Policy};
use crate::transaction::{self, Transaction};

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The format, instead of what the content looks like.
    pub format: Option<String>,
    /// Which file of an archive.
    pub member: Option<String>,
    /// Which other files the image may name.
    pub policy: Policy,
    /// Whether it will be written.
    pub write: bool,
}

/// One layer between the host file and the guest's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Name of the file or member.
    pub name: String,
    /// What it is: `gzip`, `tar`, `qcow2`.
    pub kind: &'static str,
}

/// An opened image.
#[derive(Debug)]
pub struct Opened {
    /// The guest's disk.
    pub disk: Disk,
    /// The image itself.
    pub image: Arc<dyn Image>,
    /// The name of its format.
    pub format: &'static str,
    /// From the outside in.
    pub layers: Vec<Layer>,
    /// Raw only because nothing else matched.
    pub guessed_raw: bool,
    file: Disk,
    path: PathBuf,
    policy: Policy,
    _lock: Lock,
}

/// Opens the image at `path`.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let (file, lock) = transaction::open_file(path, options.write)?;
    let format = match &options.format {
        Some(name) => registry::by_name(name)?,
        None => registry::probe(&file)?,
    };
    let mut opening = Opening::new(Some(path), options.policy, options.write);
    let image = format.open(file.clone(), &mut opening)?;
    let disk = Disk::from_arc(image.clone());
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Opened {
        disk,
        image,
        format: format.name(),
        layers: vec![Layer { name, kind: format.name() }],
        guessed_raw: options.format.is_none() && format.name() == "raw",
        file,
        path: path.to_path_buf(),
        policy: options.policy,
        _lock: lock,
    })
}

impl Opened {
    /// Begins an edit of the image, which was opened for writing.
    pub fn begin(&self) -> Result<Transaction> {
        let format: &'static dyn Format = registry::by_name(self.format)?;
        let edit = Transaction::begin(self.image.clone(), &self.file, &self.path, |staged| {
            format.open(staged, &mut Opening::new(Some(&self.path), self.policy, true))
        })?;
        Ok(if self.guessed_raw { edit.keep_raw() } else { edit })
    }
}
