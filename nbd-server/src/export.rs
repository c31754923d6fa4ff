//! A disk with a name.

use std::sync::Arc;

use racker_formats::block::{Disk, Support};

use crate::context::{Allocation, Context};
use crate::read::Seen;
use crate::wire::ExportFlags;

/// A disk that clients reach by its name.
#[derive(Debug)]
pub struct Export {
    name: String,
    description: String,
    disk: Disk,
    preferred: u32,
    can_resize: bool,
    contexts: Vec<Arc<dyn Context>>,
    /// Where reads have found data.
    pub(crate) seen: Seen,
}

impl Export {
    /// `disk` under `name`; clients write to it if it can be written.
    pub fn new(name: impl Into<String>, disk: Disk) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            preferred: 4096,
            can_resize: false,
            contexts: vec![Arc::new(Allocation::of(disk.clone()))],
            disk,
            seen: Seen::default(),
        }
    }

    /// Adds a text for people.
    #[must_use]
    pub fn described(self, description: impl Into<String>) -> Self {
        Self { description: description.into(), ..self }
    }

    /// The size in bytes from which aligned requests need nothing to be copied, if it is a sensible power of two.
    #[must_use]
    pub fn prefers(self, bytes: u64) -> Self {
        let bytes = u32::try_from(bytes).ok().filter(|b| b.is_power_of_two());
        Self { preferred: bytes.unwrap_or(4096).clamp(4096, 2 << 20), ..self }
    }

    /// Lets clients make the disk larger.
    #[must_use]
    pub fn resizable(self) -> Self {
        Self { can_resize: self.disk.caps().resize, ..self }
    }

    /// Adds a metadata context.
    #[must_use]
    pub fn with_context(mut self, context: Arc<dyn Context>) -> Self {
        self.contexts.push(context);
        self
    }

    /// What clients call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A text for people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Its bytes.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The size in bytes from which aligned requests need nothing to be copied.
    pub fn preferred(&self) -> u32 {
        self.preferred
    }

    /// The metadata contexts; the number of one is its place, plus one.
    pub(crate) fn contexts(&self) -> &[Arc<dyn Context>] {
        &self.contexts
    }

    /// What it can do, whatever was agreed on with a client.
    ///
    /// All connections share one disk, and nothing is kept for one of them: a flush on one is good for all.
    pub(crate) fn flags(&self) -> ExportFlags {
        let caps = self.disk.caps();
        let mut flags = ExportFlags::HAS_FLAGS
            | ExportFlags::SEND_FLUSH
            | ExportFlags::SEND_FUA
            | ExportFlags::SEND_CACHE
            | ExportFlags::CAN_MULTI_CONN;
        if !caps.write {
            return flags | ExportFlags::READ_ONLY;
        }
        flags |= ExportFlags::SEND_WRITE_ZEROES | ExportFlags::SEND_FAST_ZERO;
        flags.set(ExportFlags::SEND_TRIM, caps.discard == Support::Native);
        flags.set(ExportFlags::SEND_RESIZE, self.can_resize);
        flags
    }
}
