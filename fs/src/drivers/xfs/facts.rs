//! What a filesystem says about itself.

use crate::filesystem::FsFacts;

use super::superblock::{Features2, Incompat, RoCompat, Superblock, VersionBits};

/// The facts of a superblock whose counters are up to date.
pub(super) fn facts(sb: &Superblock, replayed: bool) -> FsFacts {
    let raw = &sb.raw;
    let label = raw.sb_fname.split(|b| *b == 0).next().unwrap_or_default();
    let label = (!label.is_empty()).then(|| String::from_utf8_lossy(label).into_owned());
    FsFacts {
        kind: "xfs",
        label,
        uuid: Some(uuid::Uuid::from_bytes(sb.uuid).to_string()),
        size: sb.blocks.saturating_mul(sb.block_size.bytes()),
        free: raw.sb_fdblocks.get().min(sb.blocks).saturating_mul(sb.block_size.bytes()),
        block_size: u32::try_from(sb.block_size.bytes()).unwrap_or(u32::MAX),
        features: features(sb),
        replayed,
        read_only: sb.unwritable().map(|fault| fault.to_string()),
    }
}

/// Features that are on, under the names `xfs_info` has for them.
fn features(sb: &Superblock) -> Vec<String> {
    let realtime = sb.raw.sb_rblocks.get() != 0;
    let all = [
        (sb.v5, "crc"),
        (sb.features2.contains(Features2::ATTR2), "attr2"),
        (sb.features2.contains(Features2::PROJID32), "projid32bit"),
        (sb.features2.contains(Features2::LAZYSBCOUNT), "lazy-count"),
        (sb.version_bits.contains(VersionBits::BORG), "ascii-ci"),
        (sb.ftype(), "ftype"),
        (realtime, "realtime"),
        (sb.ro_compat.contains(RoCompat::FINOBT), "finobt"),
        (sb.incompat.contains(Incompat::SPINODES), "sparse"),
        (sb.ro_compat.contains(RoCompat::RMAPBT), "rmapbt"),
        (sb.ro_compat.contains(RoCompat::REFLINK), "reflink"),
        (sb.ro_compat.contains(RoCompat::INOBTCNT), "inobtcount"),
        (sb.incompat.contains(Incompat::BIGTIME), "bigtime"),
        (sb.incompat.contains(Incompat::NREXT64), "nrext64"),
        (sb.incompat.contains(Incompat::EXCHRANGE), "exchange"),
        (sb.incompat.contains(Incompat::PARENT), "parent"),
        (sb.incompat.contains(Incompat::META_UUID), "meta-uuid"),
    ];
    all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::superblock::tests::{parse, sample};
    use super::*;

    #[test]
    fn a_label_ends_at_its_first_zero() {
        let mut raw = sample();
        raw.sb_fname = *b"boot\0old\0\0\0\0";
        raw.sb_fdblocks = 10.into();
        let facts = facts(&parse(raw, 1 << 30).unwrap(), false);
        assert_eq!(facts.label.as_deref(), Some("boot"));
        assert_eq!((facts.size, facts.free, facts.block_size), (3500 * 4096, 10 * 4096, 4096));
        assert_eq!(facts.features, ["crc", "attr2", "projid32bit", "lazy-count", "ftype", "sparse"]);
        assert_eq!(facts.read_only, None);
    }
}
