//! What is in a box, by provider: what Vagrant's providers look for when they import one.

use serde_json::json;

use super::tar::Member;
use super::{Inner, Machine, Os, Profile, Provider, hex, ovf};
use crate::limits::GIB;
use crate::wire::part;

/// The disk's file.
pub(super) fn disk_name(provider: Provider) -> &'static str {
    match provider {
        Provider::VirtualBox => "box-disk001.vmdk",
        Provider::Libvirt => "box.img",
        Provider::Vmware => "disk.vmdk",
        Provider::Hyperv => "Virtual Hard Disks/disk.vhdx",
    }
}

/// All members, small ones first.
pub(super) fn members(
    provider: Provider,
    machine: &Machine,
    disk_name: &str,
    inner: &Inner<'_>,
) -> Vec<Member> {
    let metadata = match provider {
        Provider::VirtualBox => json!({ "provider": "virtualbox" }),
        Provider::Libvirt => json!({
            "provider": "libvirt",
            "format": "qcow2",
            "virtual_size": inner.virtual_size.div_ceil(GIB),
        }),
        Provider::Vmware => json!({ "provider": "vmware_desktop" }),
        Provider::Hyperv => json!({ "provider": "hyperv" }),
    };
    let mut members = vec![
        Member::text("metadata.json", format!("{metadata}\n")),
        Member::text("Vagrantfile", vagrantfile(provider, machine, inner)),
    ];
    match provider {
        Provider::VirtualBox => {
            let text = ovf::descriptor(Profile::VirtualBox, machine, disk_name, inner);
            members.push(Member::text("box.ovf", text));
        }
        Provider::Libvirt => {}
        Provider::Vmware => members.push(Member::text("box.vmx", vmx(machine, disk_name))),
        Provider::Hyperv => members.push(Member::text("Virtual Machines/box.xml", hyperv(machine))),
    }
    members.push(Member { name: disk_name.into(), content: inner.file.clone() });
    members
}

fn vagrantfile(provider: Provider, machine: &Machine, inner: &Inner<'_>) -> String {
    let (cpus, memory) = (machine.cpus, machine.memory_mib);
    let own = match provider {
        Provider::VirtualBox => {
            // One of VirtualBox's own addresses: always the same for the same disk.
            let serial = hex(part(&inner.digest, 0, 3, "digest").unwrap_or_default()).to_uppercase();
            let efi = if machine.efi {
                "    p.customize [\"modifyvm\", :id, \"--firmware\", \"efi\"]\n"
            } else {
                ""
            };
            format!(
                "  config.vm.base_mac = \"080027{serial}\"\n  config.vm.provider :virtualbox do |p|\n    \
                 p.cpus = {cpus}\n    p.memory = {memory}\n{efi}  end\n"
            )
        }
        Provider::Libvirt => {
            let efi = if machine.efi { "    p.loader = \"/usr/share/OVMF/OVMF_CODE.fd\"\n" } else { "" };
            format!(
                "  config.vm.provider :libvirt do |p|\n    p.driver = \"kvm\"\n    p.cpus = {cpus}\n    \
                 p.memory = {memory}\n{efi}  end\n"
            )
        }
        Provider::Vmware => format!(
            "  config.vm.provider :vmware_desktop do |p|\n    p.vmx[\"numvcpus\"] = \"{cpus}\"\n    \
             p.vmx[\"memsize\"] = \"{memory}\"\n  end\n"
        ),
        Provider::Hyperv => format!(
            "  config.vm.provider :hyperv do |p|\n    p.cpus = {cpus}\n    p.memory = {memory}\n  end\n"
        ),
    };
    format!("Vagrant.configure(\"2\") do |config|\n{own}end\n")
}

/// The machine as VMware Workstation and Fusion read it.
fn vmx(machine: &Machine, disk_name: &str) -> String {
    let guest = match machine.os {
        Os::Linux => "other5xlinux-64",
        Os::Windows => "windows9-64",
        Os::Other => "other-64",
    };
    // Quotes cannot be written in a value.
    let name: String = machine.name.chars().filter(|c| *c != '"' && !c.is_control()).collect();
    let (cpus, memory) = (machine.cpus.to_string(), machine.memory_mib.next_multiple_of(4).to_string());
    let mut lines = vec![
        (".encoding", "UTF-8"),
        ("config.version", "8"),
        ("virtualHW.version", "14"),
        ("displayName", &name),
        ("guestOS", guest),
        ("numvcpus", &cpus),
        ("memsize", &memory),
        ("pciBridge0.present", "TRUE"),
        ("pciBridge4.present", "TRUE"),
        ("pciBridge4.virtualDev", "pcieRootPort"),
        ("pciBridge4.functions", "8"),
        ("scsi0.present", "TRUE"),
        ("scsi0.virtualDev", "lsilogic"),
        ("scsi0:0.present", "TRUE"),
        ("scsi0:0.fileName", disk_name),
        ("ethernet0.present", "TRUE"),
        ("ethernet0.virtualDev", "e1000"),
        ("ethernet0.connectionType", "nat"),
        ("ethernet0.addressType", "generated"),
    ];
    if machine.efi {
        lines.push(("firmware", "efi"));
    }
    lines.iter().map(|(key, value)| format!("{key} = \"{value}\"\n")).collect()
}

/// The machine as Vagrant reads Hyper-V's older configuration files: generation 2 for EFI, and one disk.
fn hyperv(machine: &Machine) -> String {
    let drive = "<drive0><pathname type=\"string\">Virtual Hard Disks\\disk.vhdx</pathname>\
                 <type type=\"string\">VHD</type></drive0>";
    let controller = if machine.efi {
        format!(
            "<scsi><ChannelInstanceGuid type=\"string\">{{00000000-0000-0000-0000-000000000000}}\
             </ChannelInstanceGuid><controller0>{drive}</controller0></scsi>"
        )
    } else {
        format!("<ide><controller0>{drive}</controller0></ide>")
    };
    let (name, cpus, memory) = (ovf::escape(&machine.name), machine.cpus, machine.memory_mib);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <configuration>\n\
         <properties>\n<name type=\"string\">{name}</name>\n\
         <subtype type=\"integer\">{}</subtype>\n</properties>\n\
         <settings>\n<processors><count type=\"integer\">{cpus}</count></processors>\n\
         <memory><bank><size type=\"integer\">{memory}</size><limit type=\"integer\">{memory}</limit>\
         <reservation type=\"integer\">{memory}</reservation>\
         <dynamic_memory_enabled type=\"bool\">False</dynamic_memory_enabled></bank></memory>\n\
         <boot><device0 type=\"string\">HardDrive</device0></boot>\n\
         <secure_boot_enabled type=\"bool\">False</secure_boot_enabled>\n</settings>\n\
         {controller}\n</configuration>\n",
        u8::from(machine.efi)
    )
}
