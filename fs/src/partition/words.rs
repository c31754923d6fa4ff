//! Partition types as people type them: the words of `systemd-repart`, `sfdisk` and `parted`, the codes of `sgdisk`,
//! the long names that `sfdisk -T` prints, and the numbers themselves.

use uuid::{Uuid, uuid};

use super::types::{gpt_type_of_name, mbr_type_of_name};

/// The type GUID that a word, code or GUID means.
pub(super) fn gpt_type(word: &str) -> Option<Uuid> {
    if let Ok(guid) = Uuid::try_parse(word) {
        return (!guid.is_nil()).then_some(guid);
    }
    let word = word.to_ascii_lowercase();
    let known = GPT_WORDS.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, guid)| *guid);
    known.or_else(|| discoverable(&word)).or_else(|| gpt_type_of_name(&word))
}

/// The type byte that a word, hexadecimal number or long name means; 0 is no type.
pub(super) fn mbr_type(word: &str) -> Option<u8> {
    let word = word.to_ascii_lowercase();
    let digits = word.strip_prefix("0x").unwrap_or(&word);
    if digits.len() <= 2 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return u8::from_str_radix(digits, 16).ok().filter(|kind| *kind != 0);
    }
    let known = MBR_WORDS.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, kind)| *kind);
    known.or_else(|| mbr_type_of_name(&word))
}

/// `root-x86-64`, `usr-arm64-verity`, `root-riscv64-verity-sig`: the Discoverable Partitions Specification, whose
/// names for architectures are those of systemd.
fn discoverable(word: &str) -> Option<Uuid> {
    let (what, rest) = [("Linux root", "root-"), ("Linux /usr", "usr-")]
        .iter()
        .find_map(|(what, prefix)| Some((*what, word.strip_prefix(prefix)?)))?;
    let (part, arch) = match (rest.strip_suffix("-verity-sig"), rest.strip_suffix("-verity")) {
        (Some(arch), _) => (" verity sign.", arch),
        (None, Some(arch)) => (" verity", arch),
        (None, None) => ("", rest),
    };
    let (_, arch) = ARCHITECTURES.iter().find(|(name, _)| *name == arch)?;
    gpt_type_of_name(&format!("{what}{part} ({arch})"))
}

/// Names of architectures: systemd's, and the one in the long names.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("alpha", "Alpha"),
    ("arc", "ARC"),
    ("arm", "ARM"),
    ("arm64", "ARM-64"),
    ("ia64", "IA-64"),
    ("loongarch64", "LoongArch-64"),
    ("mips-le", "MIPS-32 LE"),
    ("mips64-le", "MIPS-64 LE"),
    ("ppc", "PPC"),
    ("ppc64", "PPC64"),
    ("ppc64-le", "PPC64LE"),
    ("riscv32", "RISC-V-32"),
    ("riscv64", "RISC-V-64"),
    ("s390", "S390"),
    ("s390x", "S390X"),
    ("tilegx", "TILE-Gx"),
    ("x86", "x86"),
    ("x86-64", "x86-64"),
];

/// Words and `sgdisk`'s codes for GPT types.
#[rustfmt::skip]
const GPT_WORDS: &[(&[&str], Uuid)] = &[
    (&["esp", "efi", "uefi", "ef00"], uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")),
    (&["xbootldr", "ea00"], uuid!("bc13c2ff-59e6-4262-a352-b275fd6f7172")),
    (&["bios-boot", "bios", "bios_grub", "ef02"], uuid!("21686148-6449-6e6f-744e-656564454649")),
    (&["ef01"], uuid!("024dee41-33e7-11d3-9d69-0008c781f39f")),
    (&["prep", "4100"], uuid!("9e1a2d38-c612-4316-aa26-8b49521e5a8b")),
    (&["linux", "linux-generic", "8300"], uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4")),
    (&["swap", "linux-swap", "8200"], uuid!("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")),
    (&["home", "linux-home", "8302"], uuid!("933ac7e1-2eb4-4f13-b844-0e14e2aef915")),
    (&["srv", "8306"], uuid!("3b8f8425-20e0-4f3b-907f-1a25a76f98e8")),
    (&["var", "8310"], uuid!("4d21b016-b534-45c2-a9fb-5c16e091fd2d")),
    (&["tmp", "8311"], uuid!("7ec6f557-3bc5-4aca-b293-16ef5df639d1")),
    (&["user-home", "8312"], uuid!("773f91ef-66d4-49b5-bd83-d683bf40ad16")),
    (&["reserved", "8301"], uuid!("8da63339-0007-60c0-c436-083ac8230908")),
    (&["8303"], uuid!("44479540-f297-41b2-9af7-d131d5f0458a")),
    (&["8304"], uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")),
    (&["8305"], uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae")),
    (&["8307"], uuid!("69dad710-2ce4-4e3c-b16c-21a1d49abed3")),
    (&["luks", "8309"], uuid!("ca7d7ccb-63ed-4c53-861c-1742536059cc")),
    (&["raid", "linux-raid", "fd00"], uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e")),
    (&["lvm", "linux-lvm", "8e00"], uuid!("e6d6d379-f507-44c2-a23c-238f2a3df928")),
    (&["msr", "msftres", "microsoft-reserved", "0c01"], uuid!("e3c9e316-0b5c-4db8-817d-f92df00215ae")),
    (&["msdata", "msftdata", "microsoft-basic-data", "ntfs", "fat32", "exfat", "0700"],
     uuid!("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")),
    (&["winre", "2700"], uuid!("de94bba4-06d1-4d40-a16a-bfd50179d6ac")),
    (&["freebsd-boot", "a501"], uuid!("83bd6b9d-7f41-11dc-be0b-001560b84f0f")),
    (&["freebsd-swap", "a502"], uuid!("516e7cb5-6ecf-11d6-8ff8-00022d09712b")),
    (&["freebsd-ufs", "a503"], uuid!("516e7cb6-6ecf-11d6-8ff8-00022d09712b")),
    (&["freebsd-zfs", "a504"], uuid!("516e7cba-6ecf-11d6-8ff8-00022d09712b")),
    (&["hfs", "hfs+", "af00"], uuid!("48465300-0000-11aa-aa11-00306543ecac")),
    (&["apfs", "af0a"], uuid!("7c3457ef-0000-11aa-aa11-00306543ecac")),
    (&["zfs", "bf01"], uuid!("6a898cc3-1dd2-11b2-99a6-080020736631")),
    (&["vmfs", "fb00"], uuid!("aa31e02a-400f-11db-9590-000c2911d1b8")),
];

/// Words for MBR types.
const MBR_WORDS: &[(&[&str], u8)] = &[
    (&["linux", "linux-generic"], 0x83),
    (&["swap", "linux-swap"], 0x82),
    (&["extended"], 0x05),
    (&["lvm", "linux-lvm"], 0x8e),
    (&["raid", "linux-raid"], 0xfd),
    (&["esp", "efi", "uefi"], 0xef),
    (&["xbootldr"], 0xea),
    (&["prep"], 0x41),
    (&["fat16"], 0x0e),
    (&["fat32"], 0x0c),
    (&["ntfs", "exfat", "msdata", "msftdata"], 0x07),
    (&["winre"], 0x27),
];

#[cfg(test)]
mod tests {
    use super::super::types::gpt_type_name;
    use super::*;

    #[test]
    fn words_mean_what_they_mean_elsewhere() {
        let name = |word: &str| gpt_type(word).map(|guid| gpt_type_name(&guid).unwrap_or("unnamed"));
        for (word, long) in [
            ("esp", "EFI System"),
            ("XBOOTLDR", "Linux extended boot"),
            ("8300", "Linux filesystem"),
            ("linux filesystem", "Linux filesystem"),
            ("bios-boot", "BIOS boot"),
            ("msr", "Microsoft reserved"),
            ("root-x86-64", "Linux root (x86-64)"),
            ("root-arm64-verity", "Linux root verity (ARM-64)"),
            ("usr-riscv64-verity-sig", "Linux /usr verity sign. (RISC-V-64)"),
            ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "Linux root (x86-64)"),
            ("12345678-1234-1234-1234-123456789abc", "unnamed"),
        ] {
            assert_eq!(name(word), Some(long), "{word}");
        }
        for word in ["", "83", "rot", "root-", "root-pdp11", "00000000-0000-0000-0000-000000000000"] {
            assert_eq!(name(word), None, "{word}");
        }
        for (what, _) in ARCHITECTURES {
            for word in ["root-", "usr-"].map(|w| format!("{w}{what}")) {
                for end in ["", "-verity", "-verity-sig"] {
                    assert!(gpt_type(&format!("{word}{end}")).is_some(), "{word}{end}");
                }
            }
        }
    }

    #[test]
    fn numbers_and_words_of_the_mbr() {
        for (word, kind) in [("83", 0x83), ("0x7", 7), ("0xEF", 0xef), ("swap", 0x82), ("linux lvm", 0x8e)] {
            assert_eq!(mbr_type(word), Some(kind), "{word}");
        }
        for word in ["", "0", "00", "8300", "0x", "+1", "xyz"] {
            assert_eq!(mbr_type(word), None, "{word}");
        }
    }
}
