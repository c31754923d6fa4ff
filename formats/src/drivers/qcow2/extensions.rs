//! Header extensions: what stands between the header and the backing file's name. Unknown ones are passed over
//! and stay where they are.

use super::fault::Fault;
use super::layout::{
    EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_DATA_FILE, EXT_ENCRYPTION, EXT_END, EXT_FEATURE_NAMES, RawBitmaps,
    RawExtension, RawFeatureName,
};
use crate::error::Result;
use crate::wire::{index, len64, take};

/// What the extensions say.
#[derive(Clone, Debug, Default)]
pub(super) struct Extensions {
    /// Name of the backing file's format.
    pub(super) backing_format: Option<String>,
    /// Name of the external data file.
    pub(super) data_file: Option<String>,
    /// Where the bitmap directory is.
    pub(super) bitmaps: Option<BitmapDirectory>,
    /// The pointer to an encryption header is there.
    pub(super) encryption: bool,
    /// Names of incompatible features by bit.
    names: Vec<(u8, String)>,
}

/// The bitmaps extension.
#[derive(Clone, Copy, Debug)]
pub(super) struct BitmapDirectory {
    /// How many bitmaps.
    pub(super) count: u64,
    /// First byte of the directory.
    pub(super) at: u64,
    /// Its size in bytes.
    pub(super) len: u64,
}

impl Extensions {
    /// Walks the area from `start` to `end` of the first cluster, of which `area` holds what the file has.
    pub(super) fn parse(area: &[u8], start: u32, end: u64) -> Result<Self> {
        let mut all = Self::default();
        for (kind, data) in Self::list(area, start, end)? {
            all.add(kind, data)?;
        }
        Ok(all)
    }

    /// All extensions of that area but the one that ends them, by kind.
    pub(super) fn list(area: &[u8], start: u32, end: u64) -> Result<Vec<(u32, &[u8])>> {
        let mut all = Vec::new();
        let mut at = u64::from(start);
        // Each step takes at least eight bytes, so the walk ends.
        while at.saturating_add(8) <= end.min(len64(area.len())) {
            let raw: RawExtension = take(area, index(at)?, "header extension")?;
            let (kind, len) = (raw.kind.get(), raw.length.get());
            if kind == EXT_END {
                break;
            }
            let from = at.saturating_add(8);
            let past = from.saturating_add(u64::from(len));
            let data = area.get(index(from)?..index(past)?).filter(|_| past <= end);
            let Some(data) = data else {
                return Err(Fault::Extension { kind, len, area: end }.into());
            };
            all.push((kind, data));
            at = from.saturating_add(u64::from(len).next_multiple_of(8));
        }
        Ok(all)
    }

    fn add(&mut self, kind: u32, data: &[u8]) -> Result<()> {
        match kind {
            EXT_BACKING_FORMAT => {
                set(&mut self.backing_format, "backing format", text(data, "backing format")?)
            }
            EXT_DATA_FILE => set(&mut self.data_file, "data file name", text(data, "data file's name")?),
            EXT_BITMAPS => {
                if data.len() != size_of::<RawBitmaps>() {
                    let found = data.len();
                    return Err(Fault::ExtensionLength { what: "bitmaps", found, expected: "24" }.into());
                }
                let raw: RawBitmaps = take(data, 0, "bitmaps extension")?;
                let directory = BitmapDirectory {
                    count: raw.nb_bitmaps.get().into(),
                    at: raw.bitmap_directory_offset.get(),
                    len: raw.bitmap_directory_size.get(),
                };
                set(&mut self.bitmaps, "bitmaps", directory)
            }
            EXT_ENCRYPTION => {
                self.encryption = true;
                Ok(())
            }
            EXT_FEATURE_NAMES => {
                // A cut last entry is no reason to refuse the image: the names are for messages.
                for entry in data.chunks_exact(size_of::<RawFeatureName>()) {
                    let raw: RawFeatureName = take(entry, 0, "feature name")?;
                    if raw.kind == 0 {
                        let name = raw.name.split(|b| *b == 0).next().unwrap_or_default();
                        self.names.push((raw.bit, String::from_utf8_lossy(name).into_owned()));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A word for each bit of `unknown`: the image's own if it has one.
pub(super) fn feature_names(extensions: &Extensions, unknown: u64) -> Vec<String> {
    (0u8..64)
        .filter(|bit| unknown >> bit & 1 == 1)
        .map(|bit| match extensions.names.iter().find(|(b, name)| *b == bit && !name.is_empty()) {
            Some((_, name)) => format!("{name:?} (incompatible bit {bit})"),
            None => format!("incompatible bit {bit}"),
        })
        .collect()
}

fn set<T>(slot: &mut Option<T>, what: &'static str, value: T) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(Fault::ExtensionTwice(what).into());
    }
    Ok(())
}

fn text(data: &[u8], what: &'static str) -> Result<String> {
    Ok(String::from_utf8(data.to_vec()).map_err(|_| Fault::NotText(what))?)
}
