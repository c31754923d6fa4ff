//! What the running operation has changed, as it was before.

use std::collections::HashMap;
use std::sync::Arc;

use racker_formats::error::Result;

use super::super::features::Features;
use super::groups::{Bitmap, Desc, Which};
use super::{Edit, Totals};

/// Copies from before the operation. Blocks and bitmaps are shared with the present until they change.
#[derive(Debug)]
pub(super) struct Undo {
    /// Blocks by number; `None` for one that was as on the volume.
    pub(super) blocks: HashMap<u64, Option<Arc<[u8]>>>,
    pub(super) descs: HashMap<u32, Desc>,
    pub(super) maps: HashMap<(u32, Which), Bitmap>,
    totals: Totals,
    features: Features,
}

impl Edit {
    /// Begins to note what changes.
    pub(super) fn begin(&mut self) {
        self.undo = Some(Undo {
            blocks: HashMap::new(),
            descs: HashMap::new(),
            maps: HashMap::new(),
            totals: self.totals,
            features: self.fs.sb.features,
        });
    }

    /// Makes everything as it was when the operation began.
    pub(super) fn roll_back(&mut self) -> Result<()> {
        let Some(undo) = self.undo.take() else { return Ok(()) };
        self.released.clear();
        self.released_inodes.clear();
        self.quota.forget();
        // Directories may have been read that had blocks which they have no more.
        self.fs.claims.forget(0, u64::MAX)?;
        for (number, block) in undo.blocks {
            match block {
                Some(block) => self.fs.held.put(number, block)?,
                None => drop(self.fs.held.take(number)?),
            }
        }
        for (group, desc) in undo.descs {
            if let Some(slot) = usize::try_from(group).ok().and_then(|g| self.groups.list.get_mut(g)) {
                *slot = desc;
            }
        }
        self.groups.maps.extend(undo.maps);
        self.totals = undo.totals;
        self.fs.sb.features = undo.features;
        Ok(())
    }
}
