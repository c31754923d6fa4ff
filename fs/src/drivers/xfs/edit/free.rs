//! Free space, told to those who write none of it.

use std::ops::ControlFlow;
use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};

use super::super::fault::Fault;
use super::super::units::{AgBlock, AgNo};
use super::super::volume::Volume;
use super::ground::Ground;
use super::space::Space;
use crate::filesystem::Visit;

/// Visits the free stretches of a filesystem whose log is clean.
pub(in super::super) fn visit(volume: &Volume, visit: &mut Visit<'_, Span>) -> Result<()> {
    let volume = Arc::new(volume.clone());
    for number in 0..volume.sb.ag_count {
        let ag = AgNo(number);
        let mut space = Space::read(&Ground::new(Arc::clone(&volume), ag)?)?;
        for span in space.free_spans().within(|| format!("group {number}"))? {
            if let ControlFlow::Break(()) = visit(span)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Space {
    /// Where the free runs lie on the volume.
    pub(super) fn free_spans(&mut self) -> Result<Vec<Span>> {
        let mut all = Vec::new();
        self.each_free(&mut |run| all.push(run))?;
        let ground = &self.ground;
        let span = |run: super::records::Run| {
            ground.volume.sb.ag_span(ground.ag, AgBlock(run.start), run.len.into())
        };
        all.into_iter().map(span).collect()
    }

    /// Calls `each` with all free runs, in order. Both trees and the counts have to agree.
    fn each_free(&mut self, each: &mut dyn FnMut(super::records::Run)) -> Result<()> {
        let contradiction = |why| Err(Fault::Structure { what: "free space", why }.into());
        let (mut free, mut longest, mut end, mut count) = (0u64, 0, 0, 0u64);
        let mut next = self.first_free()?;
        while let Some(run) = next {
            self.ground.check(run.start, run.len)?;
            if run.start < end {
                return contradiction("runs overlap, or are out of order");
            }
            end = run.end();
            free = free.saturating_add(run.len.into());
            longest = longest.max(run.len);
            count = count.saturating_add(1);
            each(run);
            next = self.next_free(run)?;
        }
        if free != u64::from(self.free_blocks()) || longest != self.longest() {
            return contradiction("the group counts other free blocks than it lists");
        }
        if self.by_length_total()? != (count, free) {
            return contradiction("the two trees list other free blocks");
        }
        Ok(())
    }
}
