//! In the place of keys that both sides know, in builds without them.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use racker_formats::error::Result;

use super::fault::KeysFault;
use super::session::Session;

/// None.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Infallible);

impl Keys {
    /// There are none.
    pub(super) fn server(_: &Path) -> Result<Self> {
        Err(KeysFault::Absent.into())
    }

    /// There are none.
    pub(crate) fn client(_: &Path, _: Option<&str>) -> Result<Self> {
        Err(KeysFault::Absent.into())
    }

    /// Of none.
    pub(crate) fn session(&self) -> io::Result<Box<dyn Session>> {
        match self.0 {}
    }
}
