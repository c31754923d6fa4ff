//! What `info` prints, under `qemu-img`'s names.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::bitmap::Bitmap;
use super::header::{AUTOCLEAR_RAW_DATA, Header, Incompatible, LAZY_REFCOUNTS};
use super::image::Qcow2;
use super::snapshot::Snapshot;
use crate::registry::Facts;

/// Collects what the header and the lists say.
pub(super) fn facts(image: &Qcow2) -> Facts {
    // Only a thread that failed in the middle of a change leaves the state unreadable.
    let Ok(state) = image.state() else { return Facts { format: "qcow2", ..Facts::default() } };
    let header = &state.header;
    Facts {
        format: "qcow2",
        virtual_size: header.size,
        cluster_size: Some(header.geometry.cluster.bytes()),
        subformat: None,
        backing: header.backing.clone(),
        data_files: header.data_file.iter().map(|r| r.path.clone()).collect(),
        snapshots: state.snapshots.list.iter().map(Snapshot::public).collect(),
        dirty: header.incompatible.contains(Incompatible::DIRTY),
        corrupt: header.incompatible.contains(Incompatible::CORRUPT),
        encrypted: false,
        specific: specific(&state.bitmaps, header),
    }
}

fn specific(bitmaps: &[Bitmap], header: &Header) -> BTreeMap<String, Value> {
    let mut map = BTreeMap::new();
    let mut put = |name: &str, value: Value| map.insert(name.to_string(), value);
    let refcount_bits = 1u64.wrapping_shl(header.geometry.refcount_order);
    put("compat", json!(if header.version == 2 { "0.10" } else { "1.1" }));
    put("compression-type", json!(header.compression.name()));
    put("refcount-bits", json!(refcount_bits));
    if header.version == 2 {
        return map;
    }
    put("lazy-refcounts", json!(header.compatible & LAZY_REFCOUNTS != 0));
    put("corrupt", json!(header.incompatible.contains(Incompatible::CORRUPT)));
    put("extended-l2", json!(header.geometry.extended()));
    if let Some(file) = &header.data_file {
        put("data-file", json!(file.path));
        put("data-file-raw", json!(header.autoclear & AUTOCLEAR_RAW_DATA != 0));
    }
    if !bitmaps.is_empty() {
        let bitmaps = bitmaps.iter().map(|b| {
            let granularity = 1u64.wrapping_shl(b.granularity_bits.into());
            json!({ "flags": b.flags(), "name": b.name, "granularity": granularity })
        });
        put("bitmaps", Value::Array(bitmaps.collect()));
    }
    map
}
