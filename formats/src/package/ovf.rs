//! OVF descriptors (DSP0243 1.1, the version that all three readers know).
//!
//! Sizes are those of the files and the disk, to the byte. VMware and VirtualBox get a streamOptimized VMDK; oVirt
//! gets a qcow2 image named by its identifier, and capacities in GiB, as its own exports have them.

use super::{Inner, Machine, Os, Profile};
use crate::limits::GIB;

/// The identifiers of oVirt's objects; an import makes new ones.
pub(super) const IMAGE_ID: &str = "a8a4bb3f-7f8c-4b0e-8f4e-0d1c5a4be001";
const DISK_ID: &str = "a8a4bb3f-7f8c-4b0e-8f4e-0d1c5a4be002";
const MACHINE_ID: &str = "a8a4bb3f-7f8c-4b0e-8f4e-0d1c5a4be003";

const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";
const RASD: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData";
const VSSD: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData";
const STREAM: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
const QCOW2: &str = "http://www.gnome.org/~markmc/qcow-image-format.html";

/// Kinds of devices (CIM's ResourceType).
mod resource {
    pub(super) const PROCESSOR: u32 = 3;
    pub(super) const MEMORY: u32 = 4;
    pub(super) const SCSI: u32 = 6;
    pub(super) const ETHERNET: u32 = 10;
    pub(super) const DISK: u32 = 17;
    pub(super) const SATA: u32 = 20;
}

/// One device; its elements are written in the order of the alphabet, which is that of the schema.
#[derive(Default)]
struct Item {
    elements: Vec<(&'static str, String)>,
}

impl Item {
    fn new(id: u32, kind: u32, name: &str) -> Self {
        let item = Self::default().with("InstanceID", id).with("ResourceType", kind);
        item.with("ElementName", name)
    }

    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.elements.push((key, value.to_string()));
        self
    }

    fn text(mut self) -> String {
        self.elements.sort();
        let elements: String = self
            .elements
            .iter()
            .map(|(key, value)| format!("        <rasd:{key}>{}</rasd:{key}>\n", escape(value)))
            .collect();
        format!("      <Item>\n{elements}      </Item>\n")
    }
}

/// The descriptor of a machine with one disk, which is in the file `href`.
pub(super) fn descriptor(profile: Profile, machine: &Machine, href: &str, inner: &Inner<'_>) -> String {
    let own = match profile {
        Profile::Vmware => " xmlns:vmw=\"http://www.vmware.com/schema/ovf\"",
        Profile::VirtualBox => " xmlns:vbox=\"http://www.virtualbox.org/ovf/machine\"",
        Profile::Ovirt => " xmlns:ovirt=\"http://www.ovirt.org/ovf\"",
    };
    let (file_id, machine_id) = match profile {
        Profile::Ovirt => (IMAGE_ID.to_string(), MACHINE_ID.to_string()),
        _ => ("file1".into(), escape(&machine.name)),
    };
    let name = escape(&machine.name);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Envelope ovf:version=\"1.0\" xml:lang=\"en-US\" xmlns=\"{OVF}\" xmlns:ovf=\"{OVF}\" \
         xmlns:rasd=\"{RASD}\" xmlns:vssd=\"{VSSD}\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"{own}>\n\
         \x20 <References>\n    <File ovf:href=\"{}\" ovf:id=\"{file_id}\" ovf:size=\"{}\"/>\n  </References>\n\
         \x20 <DiskSection>\n    <Info>Virtual disks</Info>\n{}  </DiskSection>\n\
         \x20 <NetworkSection>\n    <Info>Networks</Info>\n    <Network ovf:name=\"{}\">\n      \
         <Description>The network of the machine</Description>\n    </Network>\n  </NetworkSection>\n\
         \x20 <VirtualSystem ovf:id=\"{machine_id}\">\n    <Info>A virtual machine</Info>\n    \
         <Name>{name}</Name>\n{}{}  </VirtualSystem>\n</Envelope>\n",
        escape(href),
        inner.file.size(),
        disk(profile, inner),
        network(profile),
        system(profile, machine.os),
        hardware(profile, machine),
    )
}

fn network(profile: Profile) -> &'static str {
    match profile {
        Profile::Vmware => "VM Network",
        Profile::VirtualBox => "NAT",
        Profile::Ovirt => "ovirtmgmt",
    }
}

fn disk(profile: Profile, inner: &Inner<'_>) -> String {
    let populated = inner.file.size().min(inner.virtual_size);
    match profile {
        Profile::Ovirt => format!(
            "    <Disk ovf:diskId=\"{DISK_ID}\" ovf:capacity=\"{}\" ovf:capacityAllocationUnits=\"byte * 2^30\" \
             ovf:populatedSize=\"{}\" ovf:parentRef=\"\" ovf:fileRef=\"{IMAGE_ID}\" ovf:format=\"{QCOW2}\" \
             ovf:volume-format=\"COW\" ovf:volume-type=\"Sparse\" ovf:disk-interface=\"VirtIO_SCSI\" \
             ovf:boot=\"true\" ovf:pass-discard=\"false\" ovf:disk-alias=\"disk1\" \
             ovf:wipe-after-delete=\"false\" ovf:disk_storage_type=\"IMAGE\"/>\n",
            inner.virtual_size.div_ceil(GIB),
            inner.file.size(),
        ),
        _ => format!(
            "    <Disk ovf:capacity=\"{}\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk1\" \
             ovf:fileRef=\"file1\" ovf:format=\"{STREAM}\" ovf:populatedSize=\"{populated}\"/>\n",
            inner.virtual_size,
        ),
    }
}

/// The guest, by CIM's number and by the reader's own name.
fn system(profile: Profile, os: Os) -> String {
    let (number, vmware, virtualbox, ovirt) = match os {
        Os::Linux => (101, "otherLinux64Guest", "Linux_64", 5),
        Os::Windows => (121, "windows9_64Guest", "Windows10_64", 27),
        Os::Other => (102, "otherGuest64", "Other_64", 0),
    };
    let (attribute, element) = match profile {
        Profile::Vmware => (format!(" vmw:osType=\"{vmware}\""), String::new()),
        Profile::VirtualBox => {
            (String::new(), format!("      <vbox:OSType ovf:required=\"false\">{virtualbox}</vbox:OSType>\n"))
        }
        Profile::Ovirt => (format!(" ovirt:id=\"{ovirt}\" ovf:required=\"false\""), String::new()),
    };
    format!(
        "    <OperatingSystemSection ovf:id=\"{number}\"{attribute}>\n      \
         <Info>The guest's operating system</Info>\n{element}    </OperatingSystemSection>\n"
    )
}

fn hardware(profile: Profile, machine: &Machine) -> String {
    let kind = match profile {
        Profile::Vmware => "vmx-13",
        Profile::VirtualBox => "virtualbox-2.2",
        Profile::Ovirt => "ENGINE 4.3.0.0",
    };
    let mut items = vec![
        Item::new(1, resource::PROCESSOR, "Processors")
            .with("AllocationUnits", "hertz * 10^6")
            .with("Description", "Number of virtual processors")
            .with("VirtualQuantity", machine.cpus),
        Item::new(2, resource::MEMORY, "Memory")
            .with("AllocationUnits", "byte * 2^20")
            .with("Description", "Size of memory")
            .with("VirtualQuantity", machine.memory_mib),
    ];
    let disk_id = if profile == Profile::Ovirt { DISK_ID } else { "vmdisk1" };
    let (controller, card) = match profile {
        Profile::Vmware => ((resource::SCSI, "SCSI controller 0", "lsilogic"), "VmxNet3"),
        Profile::VirtualBox => ((resource::SATA, "SATA controller 0", "AHCI"), "E1000"),
        Profile::Ovirt => ((resource::SCSI, "SCSI controller 0", "VirtIO_SCSI"), "3"),
    };
    let (resource, name, model) = controller;
    items.push(Item::new(3, resource, name).with("Address", 0).with("ResourceSubType", model));
    let disk = Item::new(4, resource::DISK, "Disk 1").with("HostResource", format!("ovf:/disk/{disk_id}"));
    items.push(disk.with("AddressOnParent", 0).with("Parent", 3));
    let card_item = Item::new(5, resource::ETHERNET, "Ethernet 1").with("AutomaticAllocation", "true");
    items.push(card_item.with("Connection", network(profile)).with("ResourceSubType", card));
    let items: String = items.into_iter().map(Item::text).collect();
    let firmware = if machine.efi && profile == Profile::Vmware {
        "      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"efi\"/>\n"
    } else {
        ""
    };
    format!(
        "    <VirtualHardwareSection>\n      <Info>Virtual hardware</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        \
         <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>{kind}</vssd:VirtualSystemType>\n      </System>\n{items}{firmware}    \
         </VirtualHardwareSection>\n",
        escape(&machine.name)
    )
}

/// Text as XML has it, in elements and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // XML has no way to say these.
            c if c.is_control() => out.push('_'),
            c => out.push(c),
        }
    }
    out
}
