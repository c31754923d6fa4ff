//! How far a copy is, and what it has to say at the end.

use std::ops::ControlFlow;

use racker_formats::error::Result;

use super::TreeFault;

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries done, hard links included.
    pub nodes: u64,
    /// Bytes of file content done.
    pub bytes: u64,
}

/// Called after every entry and every MiB; its answer says whether to go on.
pub type ProgressFn<'a> = Box<dyn FnMut(Progress) -> ControlFlow<()> + 'a>;

/// Counts, and tells whoever wants to know.
pub(super) struct Meter<'a> {
    done: Progress,
    tell: Option<ProgressFn<'a>>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(tell: Option<ProgressFn<'a>>) -> Self {
        Self { done: Progress::default(), tell }
    }

    pub(super) fn done(&self) -> Progress {
        self.done
    }

    pub(super) fn node(&mut self) -> Result<()> {
        self.done.nodes = self.done.nodes.saturating_add(1);
        self.tell()
    }

    pub(super) fn bytes(&mut self, len: u64) -> Result<()> {
        self.done.bytes = self.done.bytes.saturating_add(len);
        self.tell()
    }

    fn tell(&mut self) -> Result<()> {
        match self.tell.as_mut().map(|tell| tell(self.done)) {
            Some(ControlFlow::Break(())) => Err(TreeFault::Interrupted { nodes: self.done.nodes }.into()),
            _ => Ok(()),
        }
    }
}

/// Notes that are kept; a hostile image could cause millions.
const NOTES_MAX: usize = 100;

/// Remarks for the user: the first hundred, and how many more there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// One line each.
    pub lines: Vec<String>,
    /// How many were not kept.
    pub more: u64,
}

impl Notes {
    pub(super) fn add(&mut self, line: impl FnOnce() -> String) {
        if self.lines.len() < NOTES_MAX {
            self.lines.push(line());
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}
