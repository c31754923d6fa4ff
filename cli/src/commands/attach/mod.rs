//! `racker disk attach`
//!
//! A process of its own serves the image to the kernel's NBD client, over sockets that nobody else has, until the
//! device is detached. This one waits until the device is there, with its partitions, and ends.
//!
//! * [`serving`]: what the process in the background does; [`device`]: what the kernel says of devices

pub(crate) mod device;
mod serving;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::fault::{Failure, Outcome};
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
    /// Disk image, compressed image, archive with a disk inside, or block device
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
    /// This is the process in the background.
    #[arg(long, hide = true)]
    in_background: bool,
}

impl Attach {
    pub(super) fn run(self) -> Outcome<Exit> {
        if self.in_background {
            return serving::serve(&self);
        }
        if let Some(device) = &self.device {
            device::number(device)?;
        }
        let told = match background()? {
            Ok(told) => told,
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

/// Starts this command once more in the background, and waits for what it says once the device is there; or for its
/// end, after it has said why.
fn background() -> Outcome<Result<Attached, Exit>> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--in-background")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut told = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut told)?;
    }
    let mut said = Vec::new();
    if let Some(mut err) = child.stderr.take() {
        err.read_to_end(&mut said)?;
    }
    eprint!("{}", String::from_utf8_lossy(&said));
    if let Ok(told) = serde_json::from_str(&told) {
        return Ok(Ok(told));
    }
    let status = child.wait()?;
    if said.is_empty() {
        return Err(Failure::new(format!("the process that was to serve the image has ended: {status}")));
    }
    Ok(Err(if status.code() == Some(2) { Exit::Usage } else { Exit::Failed }))
}
