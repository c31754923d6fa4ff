//! Free space, as the block bitmaps say it.

use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part};

use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::volume::Ext4;
use crate::filesystem::Visit;

/// `s_state`: unmounted cleanly, and without errors seen.
const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;

impl Ext4 {
    /// Whether what the bitmaps say can be relied on.
    pub(super) fn is_clean(&self) -> bool {
        let state = self.sb.raw.state.get();
        !self.replayed && state & STATE_VALID != 0 && state & STATE_ERRORS == 0
    }

    /// Visits the free stretches of groups that have a bitmap; those without one were never written to.
    pub(super) fn visit_free(&self, visit: &mut Visit<'_, Span>) -> Result<()> {
        for number in 0..self.sb.groups {
            if self.visit_group(number, visit).within(|| format!("group {number}"))?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn visit_group(&self, number: u64, visit: &mut Visit<'_, Span>) -> Result<ControlFlow<()>> {
        let go_on = Ok(ControlFlow::Continue(()));
        let sb = &self.sb;
        let group = self.group(number)?;
        if group.no_bitmap {
            return go_on;
        }
        let first = number.saturating_mul(sb.blocks_per_group).saturating_add(sb.first_data_block);
        let blocks = sb.blocks.saturating_sub(first).min(sb.blocks_per_group);
        let cluster_blocks = 1u64.checked_shl(sb.cluster_shift).unwrap_or(1);
        let clusters = blocks.div_ceil(cluster_blocks);
        let bitmap = self.block("a block bitmap", group.block_bitmap)?;
        self.check_bitmap(&bitmap, group.bitmap_csum)?;
        let is_free = |cluster: u64| {
            let byte = usize::try_from(cluster >> 3).ok().and_then(|at| bitmap.get(at));
            byte.is_some_and(|byte| byte & 1u8.wrapping_shl(u32::try_from(cluster & 7).unwrap_or(0)) == 0)
        };
        let free = len64((0..clusters).filter(|cluster| is_free(*cluster)).count());
        if free != group.free {
            return Err(Ext4Fault::FreeCount { found: free, counted: group.free }.into());
        }
        let mut at = 0;
        while at < clusters {
            let end = (at..clusters).find(|cluster| !is_free(*cluster)).unwrap_or(clusters);
            if end == at {
                at = at.saturating_add(1);
                continue;
            }
            let block = |cluster: u64| {
                let within = cluster.saturating_mul(cluster_blocks).min(blocks);
                self.byte_of(first.saturating_add(within))
            };
            let start = block(at)?;
            let span = Span::new(start, block(end)?.saturating_sub(start))?;
            if visit(span)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = end;
        }
        go_on
    }

    fn check_bitmap(&self, bitmap: &[u8], found: u32) -> Result<()> {
        if !self.sb.features.has_metadata_csum() {
            return Ok(());
        }
        let clusters = self.sb.blocks_per_group >> self.sb.cluster_shift;
        let covered = part(bitmap, 0, index(clusters / 8)?, "block bitmap")?;
        let mut computed = crc32c(self.sb.csum_seed, covered);
        if self.sb.group_bytes < 64 {
            computed &= 0xffff;
        }
        if found != computed {
            return Err(Ext4Fault::Checksum { what: "a block bitmap", found, computed }.into());
        }
        Ok(())
    }
}
