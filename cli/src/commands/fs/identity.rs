//! Label and UUID of a filesystem.

use clap::Args;
use racker_fs::filesystem::NewUuid;
use serde_json::json;

use super::On;
use crate::clean::clean;
use crate::fault::{About, Outcome};
use crate::files::editing::now;
use crate::output::{self, OutputArgs, line};

/// Print the label, or set it
///
/// XFS has room for 12 bytes, ext4 for 16, FAT for 11 characters (upper case). It is set in every copy that the
/// filesystem keeps of it. `''` takes it away.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  racker disk fs boot.qcow2 label -p 2\n  racker disk fs boot.qcow2 label -p 2 boot2"
)]
pub(super) struct Label {
    /// The new label
    #[arg(value_name = "NEW")]
    new: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Label {
    pub(super) fn writes(&self) -> bool {
        self.new.is_some()
    }

    pub(super) fn run(self, on: On<'_>) -> Outcome<()> {
        let label = match &self.new {
            Some(new) => on.change(|fs| {
                fs.set_label(new, now())?;
                Ok(fs.facts()?.label)
            })?,
            None => on.volume.filesystem().and_then(|fs| fs.facts()).about(&on.target.path)?.label,
        };
        if self.output.is_json() {
            return output::json(&json!({ "label": label }));
        }
        match self.new {
            Some(_) => Ok(()),
            None => line(&clean(&label.unwrap_or_default())),
        }
    }
}

/// Print the UUID, or set it; on FAT that is the serial number
///
/// What names the filesystem by its UUID (/etc/fstab, boot entries) is not changed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk fs boot.qcow2 uuid -p 2\n  \
    racker disk fs boot.qcow2 uuid -p 2 --random\n  \
    racker disk fs boot.qcow2 uuid -p 2 6e1f7b50-0c5d-4d7c-9d1e-1a2b3c4d5e6f")]
pub(super) struct Uuid {
    /// The new UUID, or FAT's serial number: 1234-ABCD
    #[arg(value_name = "NEW", conflicts_with = "random")]
    new: Option<String>,
    /// A new UUID at random
    #[arg(long)]
    random: bool,
    /// ext4 with metadata_csum: leave all checksums as they are, by turning metadata_csum_seed on (Linux knows it since
    /// 4.4, GRUB since 2.12); else they are made anew
    #[arg(long)]
    csum_seed: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Uuid {
    pub(super) fn writes(&self) -> bool {
        self.random || self.new.is_some()
    }

    pub(super) fn run(self, on: On<'_>) -> Outcome<()> {
        let writes = self.writes();
        let uuid = if writes {
            let new = NewUuid { value: self.new, keep_checksums: self.csum_seed };
            on.change(|fs| {
                fs.set_uuid(&new)?;
                Ok(fs.facts()?.uuid)
            })?
        } else {
            on.volume.filesystem().and_then(|fs| fs.facts()).about(&on.target.path)?.uuid
        };
        if self.output.is_json() {
            return output::json(&json!({ "uuid": uuid }));
        }
        if writes && on.progress.quiet {
            return Ok(());
        }
        line(&clean(&uuid.unwrap_or_default()))
    }
}
