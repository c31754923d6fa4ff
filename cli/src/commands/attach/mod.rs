//! `racker disk attach`
//!
//! A process of its own serves the image to the kernel's NBD client, over sockets that nobody else has, until the
//! device is detached. This one waits until the device is there, with its partitions, and ends.
//!
//! * [`serving`]: what the process in the background does; [`device`]: what the kernel says of devices

pub(crate) mod device;
mod serving;

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::background;
use crate::exit::Exit;
use crate::fault::Outcome;
use crate::output::{OutputArgs, json, line};
use crate::target::HowArgs;

/// Make a block device of an image, with its partitions, by the kernel's NBD client (needs root)
///
/// When this command returns, the device and its partitions are there. A process in the background serves it until
/// `racker disk detach`, which returns when all that was written is on stable storage. If that process is killed, a raw
/// image can be served again within a minute (--reconnect); with other formats the device fails then.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk attach boot.qcow2\n  \
    mount /dev/nbd0p2 /mnt && ls /mnt && umount /mnt\n  racker disk detach /dev/nbd0")]
pub(crate) struct Attach {
    /// Disk image, compressed image, archive with a disk inside, block device, or the address of an NBD server's disk
    /// (nbd://HOST/EXPORT)
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// The device; a free one if none is named
    #[arg(value_name = "/dev/nbdN")]
    device: Option<String>,
    #[command(flatten)]
    how: HowArgs,
    /// Let nobody write
    #[arg(short = 'r', long, conflicts_with = "snapshot")]
    read_only: bool,
    /// Throw away what is written when the device is detached
    #[arg(short = 's', long)]
    snapshot: bool,
    /// Connections between the kernel and the server
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    connections: u8,
    /// Serve a device again whose server has died
    #[arg(long, requires = "device")]
    reconnect: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Attach {
    pub(super) fn run(self) -> Outcome<Exit> {
        if background::is_this() {
            background::enter()?;
            return serving::serve(&self);
        }
        if let Some(device) = &self.device {
            device::number(device)?;
        }
        let told: Attached = match background::start()? {
            Ok(told) => serde_json::from_str(&told).map_err(std::io::Error::from)?,
            Err(status) => return Ok(status),
        };
        if self.output.is_json() {
            json(&told)?;
        } else {
            for name in std::iter::once(&told.device).chain(&told.partitions) {
                line(name)?;
            }
        }
        Ok(Exit::Done)
    }
}

/// What there is now.
#[derive(Debug, Deserialize, Serialize)]
struct Attached {
    device: String,
    partitions: Vec<String>,
}
