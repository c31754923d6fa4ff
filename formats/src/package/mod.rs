//! A disk with everything around it that a hypervisor imports at once: OVA, and Vagrant's boxes.
//!
//! * OVA (DSP0243, Open Virtualization Format): a tar of a descriptor, a manifest of SHA-256 digests and the disk,
//!   in this order, as the specification wants it. VMware, VirtualBox and oVirt each read it in their own way.
//! * Box: a tar.gz of `metadata.json`, a `Vagrantfile`, the disk, and what the provider reads to make a machine.
//!
//! The disk is converted first, into a file of its own; [`Package::wrap`] then gives the archive as a disk, which is
//! copied like any other.
//!
//! * [`ovf`]: descriptors; [`vagrant`]: what is in a box; [`tar`](mod@tar): archives

mod ovf;
mod tar;
mod vagrant;

use sha2::{Digest, Sha256};

use self::tar::{Member, archive};
use crate::block::{Disk, MemDevice, Span};
use crate::error::Result;
use crate::limits::MIB;
use crate::options::{Opt, OptKind, Values};
use crate::registry::{Format, by_name};
use crate::wire::{index, part_mut};

pub use self::tar::sparse_member;

/// The options of both.
macro_rules! machine_options {
    ($($own:expr),*) => {
        &[
            $($own,)*
            Opt { name: "name", help: "name of the machine; that of the file where not given", kind: OptKind::Text },
            Opt {
                name: "cpus",
                help: "processors of the machine",
                kind: OptKind::Size { min: 1, max: 1024, power_of_two: false },
            },
            Opt {
                name: "memory",
                help: "memory of the machine",
                kind: OptKind::Size { min: 64 << 20, max: 1 << 44, power_of_two: false },
            },
            Opt {
                name: "firmware",
                help: "what starts the machine; by what the disk's first sector holds where not given",
                kind: OptKind::Choice(&["bios", "efi"]),
            },
            Opt {
                name: "os",
                help: "what the guest is",
                kind: OptKind::Choice(&["linux", "windows", "other"]),
            },
        ]
    };
}

const PROFILES: &[&str] = &["vmware", "virtualbox", "ovirt"];
const PROVIDERS: &[&str] = &["virtualbox", "libvirt", "vmware_desktop", "hyperv"];
const OVA_OPTIONS: &[Opt] = machine_options!(Opt {
    name: "profile",
    help: "whose reader it is for",
    kind: OptKind::Choice(PROFILES),
});
const BOX_OPTIONS: &[Opt] = machine_options!(Opt {
    name: "provider",
    help: "whose machines Vagrant makes of it",
    kind: OptKind::Choice(PROVIDERS),
});

/// Bytes that are digested at a time.
const PIECE: u64 = MIB;
/// Memory of a machine in bytes, where nobody says otherwise.
const MEMORY: u64 = 2048 * MIB;
/// Processors of a machine, where nobody says otherwise.
const CPUS: u64 = 2;

/// What a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Os {
    Linux,
    Windows,
    Other,
}

/// The machine that the disk is for.
#[derive(Clone, Debug)]
struct Machine {
    name: String,
    cpus: u64,
    memory_mib: u64,
    efi: bool,
    os: Os,
}

/// Whose OVA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Profile {
    Vmware,
    VirtualBox,
    Ovirt,
}

/// Whose box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    VirtualBox,
    Libvirt,
    Vmware,
    Hyperv,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Ova(Profile),
    Box(Provider),
}

/// A package to be made.
#[derive(Clone, Debug)]
pub struct Package {
    kind: Kind,
    machine: Machine,
}

/// The disk inside: its file, and what is known of it.
struct Inner<'a> {
    file: &'a Disk,
    /// Bytes of the disk that the file holds.
    virtual_size: u64,
    /// SHA-256 of the file.
    digest: [u8; 32],
}

/// The names of the packages, as `convert -O` takes them.
pub const NAMES: [&str; 2] = ["ova", "box"];

/// Whose readers a package can be for.
pub fn kinds(name: &str) -> &'static [&'static str] {
    match name {
        "ova" => PROFILES,
        "box" => PROVIDERS,
        _ => &[],
    }
}

/// The options of a package, if `name` is one.
pub fn options(name: &str) -> Option<&'static [Opt]> {
    match name {
        "ova" => Some(OVA_OPTIONS),
        "box" => Some(BOX_OPTIONS),
        _ => None,
    }
}

impl Package {
    /// The package that `options` describe; `file_name` is what it will be called, and `efi` what the disk looks
    /// like it starts with.
    pub fn new(name: &str, options: &Values, file_name: &str, efi: bool) -> Self {
        let stem = file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem);
        let machine = Machine {
            name: options.text("name").unwrap_or(if stem.is_empty() { "machine" } else { stem }).into(),
            cpus: options.size("cpus").unwrap_or(CPUS),
            memory_mib: options.size("memory").unwrap_or(MEMORY).div_ceil(MIB),
            efi: options.text("firmware").map_or(efi, |f| f == "efi"),
            os: match options.text("os") {
                Some("windows") => Os::Windows,
                Some("other") => Os::Other,
                _ => Os::Linux,
            },
        };
        let kind = match (name, options.text("profile"), options.text("provider")) {
            ("box", _, Some("libvirt")) => Kind::Box(Provider::Libvirt),
            ("box", _, Some("vmware_desktop")) => Kind::Box(Provider::Vmware),
            ("box", _, Some("hyperv")) => Kind::Box(Provider::Hyperv),
            ("box", ..) => Kind::Box(Provider::VirtualBox),
            (_, Some("virtualbox"), _) => Kind::Ova(Profile::VirtualBox),
            (_, Some("ovirt"), _) => Kind::Ova(Profile::Ovirt),
            _ => Kind::Ova(Profile::Vmware),
        };
        Self { kind, machine }
    }

    /// The format and the options of the disk inside.
    pub fn disk_format(&self) -> Result<(&'static dyn Format, Values)> {
        let (format, subformat) = match self.kind {
            Kind::Ova(Profile::Ovirt) | Kind::Box(Provider::Libvirt) => ("qcow2", None),
            Kind::Ova(_) | Kind::Box(Provider::VirtualBox) => ("vmdk", Some("streamOptimized")),
            Kind::Box(Provider::Vmware) => ("vmdk", Some("monolithicSparse")),
            Kind::Box(Provider::Hyperv) => ("vhdx", None),
        };
        let options = Values::default();
        let options = match subformat {
            Some(kind) => options.with_text("subformat", kind),
            None => options,
        };
        let scsi = matches!(self.kind, Kind::Ova(Profile::Vmware) | Kind::Box(Provider::Vmware));
        let options = if scsi { options.with_text("adapter_type", "lsilogic") } else { options };
        Ok((by_name(format)?, options))
    }

    /// Whether the archive is compressed with gzip.
    pub fn is_compressed(&self) -> bool {
        matches!(self.kind, Kind::Box(_))
    }

    /// The name of the disk's file inside, for formats that write their own name into the file.
    pub fn disk_name(&self) -> String {
        match self.kind {
            Kind::Ova(Profile::Ovirt) => ovf::IMAGE_ID.into(),
            Kind::Ova(_) => format!("{}-disk1.vmdk", file_name(&self.machine.name)),
            Kind::Box(provider) => vagrant::disk_name(provider).into(),
        }
    }

    /// The whole archive around the disk in `file`, which has `virtual_size` bytes; `time` is in seconds since 1970.
    pub fn wrap(&self, file: &Disk, virtual_size: u64, time: u64) -> Result<Disk> {
        let inner = Inner { file, virtual_size, digest: sha256(file)? };
        let members = match self.kind {
            Kind::Ova(profile) => self.ova(profile, &inner),
            Kind::Box(provider) => vagrant::members(provider, &self.machine, &self.disk_name(), &inner),
        };
        archive(members, time)
    }

    /// Descriptor, manifest, disk.
    fn ova(&self, profile: Profile, inner: &Inner<'_>) -> Vec<Member> {
        let disk_name = self.disk_name();
        let text = ovf::descriptor(profile, &self.machine, &disk_name, inner);
        let stem = if profile == Profile::Ovirt { "vm".into() } else { file_name(&self.machine.name) };
        let descriptor = format!("{stem}.ovf");
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let line = |name: &str, digest: &[u8; 32]| format!("SHA256({name})= {}\n", hex(digest));
        let manifest = format!("{}{}", line(&descriptor, &digest), line(&disk_name, &inner.digest));
        vec![
            Member::text(&descriptor, text),
            Member::text(&format!("{stem}.mf"), manifest),
            Member { name: disk_name, content: inner.file.clone() },
        ]
    }
}

impl Member {
    fn text(name: &str, text: String) -> Self {
        Self { name: name.into(), content: Disk::new(MemDevice::from_bytes(text.into_bytes())) }
    }
}

/// A machine's name as the name of a file on any system.
fn file_name(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().map(fits).take(80).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "machine".into() } else { name.into() }
}

fn sha256(disk: &Disk) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; index(PIECE)?];
    let mut rest = Span::first(disk.size());
    while !rest.is_empty() {
        let now = rest.truncate(PIECE);
        let piece = part_mut(&mut buf, 0, index(now.len())?, "piece")?;
        disk.read_at(now.start(), piece)?;
        hash.update(&*piece);
        rest = rest.skip(now.len());
    }
    Ok(hash.finalize().into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
