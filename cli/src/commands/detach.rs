//! `racker disk detach`

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;

use clap::Args;
use racker_nbd::kernel::Kernel;

use super::attach::device;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::line;
use crate::progress::ProgressArgs;

/// Take a device that `racker disk attach` made away again (needs root)
///
/// Returns when all that was written to the device is on stable storage, and says so; if that cannot be said, it fails.
/// A device that is mounted or used otherwise stays.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk attach boot.qcow2\n  racker disk detach /dev/nbd0")]
pub(crate) struct Detach {
    /// The device
    #[arg(value_name = "/dev/nbdN")]
    device: String,
}

impl Detach {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let number = device::number(&self.device)?;
        let path = device::path(number);
        let kernel = Kernel::open().about(&path)?;
        let Some(backend) = device::backend(number) else {
            return Err(Failure::new("nothing is attached to it")).about(&path);
        };
        if let Some(user) = device::user(number) {
            return Err(Failure::new(user).hint("umount or swapoff it first")).about(&path);
        }
        let image = backend.strip_prefix("racker ");
        let server = UnixStream::connect(device::control(number)).ok().filter(|_| image.is_some());
        // What the kernel still holds back goes to the server, which flushes it.
        let flushed = if server.is_some() || image.is_none() {
            File::open(&path).and_then(|device| device.sync_all())
        } else {
            Err(std::io::Error::other("its server is gone"))
        };
        kernel.disconnect(number).about(&path)?;
        flushed
            .map_err(|e| Failure::new(format!("detached, but what was written last may be lost: {e}")))
            .about(&path)?;
        let Some(server) = server else {
            progress.note("it was served by another program than racker, which may still be writing");
            return Ok(Exit::Done);
        };
        let mut said = String::new();
        let heard = BufReader::new(server).read_line(&mut said);
        match (heard, said.trim().split_once(' ')) {
            (Ok(_), Some(("ok", what))) => {
                line(&format!("{} is detached: {what} {}", path.display(), image.unwrap_or_default()))?;
                Ok(Exit::Done)
            }
            (Ok(_), Some(("error", why))) => Err(Failure::new(format!("detached, but: {why}"))).about(&path),
            _ => Err(Failure::new(
                "detached, but its server ended without a word: what was written last may be lost",
            ))
            .about(&path),
        }
    }
}
