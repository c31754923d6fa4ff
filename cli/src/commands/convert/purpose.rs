//! `--for`: what each platform imports, so that nobody has to remember it.

use std::path::Path;

use clap::ValueEnum;
use racker_formats::block::{Disk, Staged};
use racker_formats::convert::Concat;
use racker_fs::partition;

use crate::fault::Outcome;
use crate::progress::ProgressArgs;

/// Where a disk is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Purpose {
    /// Fixed VHD, whole MiB
    Azure,
    /// VMDK streamOptimized with a SCSI adapter; OVA if DST ends in .ova
    Vsphere,
    /// VDI; VMDK streamOptimized, OVA or box if DST ends so
    Virtualbox,
    /// Oracle Cloud: qcow2; VMDK streamOptimized if DST ends so
    Oci,
    /// VHDX; dynamic VHD if DST ends in .vhd; box if it ends so
    Hyperv,
    /// Google Compute Engine: disk.raw in a tar.gz of the old GNU format, whole GiB
    Gce,
    /// Raw
    Nspawn,
}

/// What a platform wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Preset {
    /// The name of a format or of a package; `gce` is neither, and only comes from here.
    pub(super) output: &'static str,
    /// Options that are typed in the user's place; what the user types comes after them and counts.
    pub(super) options: &'static str,
    /// The disk's size is rounded up to a multiple of this.
    pub(super) unit: u64,
}

impl Purpose {
    /// What this platform wants in a file of this name.
    pub(super) fn preset(self, target: &Path) -> Preset {
        let end = target.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let stream = "subformat=streamOptimized,adapter_type=lsilogic";
        let (output, options, unit) = match (self, end.as_deref().unwrap_or("")) {
            (Self::Azure, _) => ("vhd", "subformat=fixed,force_size=on", 1 << 20),
            (Self::Vsphere, "ova") => ("ova", "profile=vmware", 512),
            (Self::Vsphere, _) => ("vmdk", stream, 512),
            (Self::Virtualbox, "ova") => ("ova", "profile=virtualbox", 512),
            (Self::Virtualbox, "box") => ("box", "provider=virtualbox", 512),
            (Self::Virtualbox, "vmdk") => ("vmdk", "subformat=streamOptimized", 512),
            (Self::Virtualbox, _) => ("vdi", "", 512),
            (Self::Oci, "vmdk") => ("vmdk", stream, 512),
            (Self::Oci, _) => ("qcow2", "compat=1.1", 512),
            (Self::Hyperv, "vhd") => ("vhd", "subformat=dynamic,force_size=on", 512),
            (Self::Hyperv, "box") => ("box", "provider=hyperv", 512),
            // Hyper-V counts in sectors of 4 KiB where the host has them.
            (Self::Hyperv, _) => ("vhdx", "subformat=dynamic", 4096),
            (Self::Gce, _) => ("gce", "", 1 << 30),
            (Self::Nspawn, _) => ("raw", "", 512),
        };
        Preset { output, options, unit }
    }
}

/// The disk with zeroes behind it up to a multiple of `unit`, and its backup partition table moved there.
pub(super) fn rounded(disk: &Disk, unit: u64, progress: ProgressArgs) -> Outcome<Disk> {
    let padded = Disk::new(Concat::new(vec![disk.clone()], unit)?);
    if padded.size() == disk.size() {
        return Ok(disk.clone());
    }
    let size = padded.size();
    let settled = Disk::new(Staged::new(padded));
    match partition::settle(&settled, size) {
        Ok(_) => progress.note(&format!("the disk is rounded up from {} to {size} bytes", disk.size())),
        Err(e) => progress.note(&format!("the partition table stays as it is: {e}")),
    }
    Ok(settled.read_only())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decide_where_a_platform_takes_several_formats() {
        let output = |purpose: Purpose, name: &str| purpose.preset(Path::new(name)).output;
        assert_eq!(output(Purpose::Virtualbox, "a.OVA"), "ova");
        assert_eq!(output(Purpose::Virtualbox, "a.vdi"), "vdi");
        assert_eq!(output(Purpose::Oci, "a"), "qcow2");
        assert_eq!(output(Purpose::Hyperv, "a.box"), "box");
        assert_eq!(Purpose::Azure.preset(Path::new("-")).unit, 1 << 20);
    }
}
