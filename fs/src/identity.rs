//! What a filesystem is called: labels and identifiers as they are asked for.

use racker_formats::error::{Fault, Kind, Result};

/// A filesystem's new identifier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewUuid {
    /// As `blkid` prints it: a UUID, or FAT's `1234-ABCD`; a random one if there is none.
    pub value: Option<String>,
    /// Where checksums start from the identifier (ext4), they go on to start from the old one, by a feature that not
    /// everybody knows; else they are all made anew.
    pub keep_checksums: bool,
}

impl NewUuid {
    /// The UUID that it is.
    pub(crate) fn uuid(&self) -> Result<uuid::Uuid> {
        let Some(typed) = &self.value else { return Ok(uuid::Uuid::new_v4()) };
        match uuid::Uuid::try_parse(typed) {
            Ok(uuid) if !uuid.is_nil() => Ok(uuid),
            _ => Err(BadIdentity(format!("{typed:?} is no UUID")).into()),
        }
    }
}

/// A label or identifier that the filesystem cannot have.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadIdentity(pub(crate) String);

impl Fault for BadIdentity {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
}

/// The bytes of a label that has at most `N`, zeroes behind it.
pub(crate) fn label_bytes<const N: usize>(label: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let len = label.len();
    match bytes.get_mut(..len) {
        _ if label.contains('\0') => Err(BadIdentity("a label has no zero byte".into()).into()),
        Some(place) => {
            place.copy_from_slice(label.as_bytes());
            Ok(bytes)
        }
        None => Err(BadIdentity(format!("a label of {len} bytes: this filesystem has room for {N}")).into()),
    }
}
