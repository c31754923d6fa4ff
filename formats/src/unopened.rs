//! A parent that an image names and that nobody opened.

use crate::block::{BlockDevice, Caps, Run, Span, Support};
use crate::error::{self, Kind, Result};
use crate::registry::{Facts, Image};

/// What reads of it fail with.
#[derive(Debug, thiserror::Error)]
#[error("the image's parent is not open")]
pub struct NotOpen;

impl error::Fault for NotOpen {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
}

/// Stands for the parent: whoever asks for its bytes gets an error.
#[derive(Debug)]
pub(crate) struct Unopened {
    /// The size that it is taken for, in bytes.
    pub(crate) size: u64,
}

impl BlockDevice for Unopened {
    fn size(&self) -> u64 {
        self.size
    }

    fn caps(&self) -> Caps {
        Caps { runs: Support::Native, ..Caps::READ_ONLY }
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(NotOpen.into())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, _: Span) -> Result<Run> {
        Err(NotOpen.into())
    }
}

impl Image for Unopened {
    fn facts(&self) -> Facts {
        Facts { virtual_size: self.size, ..Facts::default() }
    }
}
