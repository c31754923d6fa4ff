//! Images made by `qemu-img` and `qemu-io`.

use std::path::{Path, PathBuf};

use racker_tests::qemu;
use racker_tests::rng::Rng;

/// What an image shall be.
#[derive(Clone, Debug, Default)]
pub(super) struct Recipe {
    pub(super) cluster_bits: u32,
    pub(super) refcount_bits: u32,
    pub(super) version2: bool,
    pub(super) extended: bool,
    pub(super) lazy: bool,
    pub(super) backing: bool,
    /// The compression to pack everything with at first.
    pub(super) packed: Option<&'static str>,
    pub(super) snapshots: u32,
    pub(super) size: u64,
    pub(super) seed: u64,
}

impl Recipe {
    /// Makes it in `dir`, with random content.
    pub(super) fn make(&self, dir: &Path) -> PathBuf {
        let mut rng = Rng::new(self.seed.wrapping_add(u64::from(self.cluster_bits)));
        let path = dir.join("image.qcow2");
        let size = self.size.to_string();
        if self.backing {
            let base = dir.join("base.qcow2");
            // Smaller than the image: what is behind its end reads as zeroes.
            let half = (self.size / 2).next_multiple_of(512);
            qemu::img(&["create", "-q", "-f", "qcow2", &base.display().to_string(), &half.to_string()]);
            qemu::io("qcow2", &base, &writes(&mut rng, half, 24));
        }
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        let (options, full) = (self.options(), path.display().to_string());
        args.extend(["-o", &options]);
        if self.backing {
            args.extend(["-b", "base.qcow2", "-F", "qcow2"]);
        }
        args.extend([full.as_str(), size.as_str()]);
        if let Some(how) = self.packed {
            let plain = dir.join("plain.raw");
            let raw = plain.display().to_string();
            qemu::img(&["create", "-q", "-f", "raw", &raw, &size]);
            qemu::io("raw", &plain, &writes(&mut rng, self.size, 24));
            // The small clusters of a cluster that deflate makes larger stay plain.
            let options = format!("{options},compression_type={how}");
            qemu::img(&["convert", "-q", "-c", "-O", "qcow2", "-o", &options, &raw, &full]);
        } else {
            qemu::img(&args);
        }
        qemu::io("qcow2", &path, &writes(&mut rng, self.size, 24));
        for number in 0..self.snapshots {
            qemu::img(&["snapshot", "-c", &format!("s{number}"), &full]);
            qemu::io("qcow2", &path, &writes(&mut rng, self.size, 8));
        }
        path
    }

    fn options(&self) -> String {
        let mut all = format!("cluster_size={}", 1u64 << self.cluster_bits);
        if self.version2 {
            all += ",compat=0.10";
        } else {
            let on = |b: bool| if b { "on" } else { "off" };
            all += &format!(",refcount_bits={}", self.refcount_bits);
            all += &format!(",extended_l2={},lazy_refcounts={}", on(self.extended), on(self.lazy));
        }
        all
    }
}

/// `count` random commands for `qemu-io`: writes, zeroes, discards, of all sizes.
pub(super) fn writes(rng: &mut Rng, size: u64, count: u32) -> Vec<String> {
    (0..count)
        .map(|_| {
            let most = [512, 4096, 70_000, 700_000][rng.below(4) as usize].min(size);
            let len = (1 + rng.below(most)).next_multiple_of(512).min(size);
            let at = rng.below(size - len + 1) & !511;
            let pattern = 1 + rng.below(255);
            match rng.below(8) {
                0 => format!("write -z {at} {len}"),
                1 => format!("write -zu {at} {len}"),
                2 => format!("discard {at} {len}"),
                _ => format!("write -P {pattern} {at} {len}"),
            }
        })
        .collect()
}
