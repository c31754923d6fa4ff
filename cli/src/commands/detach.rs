//! `racker disk detach`

use std::fs::File;

use clap::Args;
use racker_nbd::kernel::Kernel;

use super::attach::device;
use crate::control::Line;
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
        let server = Line::to(&device::control(number)).ok().filter(|_| image.is_some());
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
        let unknown = "its server ended without a word: what was written last may be lost";
        let said = server.end(unknown).map_err(|e| e.at("detached, but")).about(&path)?;
        line(&format!("{} is detached: {said}", path.display()))?;
        Ok(Exit::Done)
    }
}
