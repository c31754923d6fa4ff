//! The memory of chunks, used again and again: fresh pages of a megabyte cost as much as copying into them.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex};

/// Memory that nobody uses at the moment. There are as many pieces as chunks were in flight at once.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<Vec<Vec<u8>>>);

/// Memory that goes back to its shelf.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    shelf: Option<Arc<Shelf>>,
}

/// Bytes of a piece, perhaps among others of the same chunk.
#[derive(Clone, Debug)]
pub struct Bytes {
    whole: Arc<Buffer>,
    range: Range<usize>,
}

impl Shelf {
    /// `len` bytes that may read as anything.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut bytes = self.0.lock().ok().and_then(|mut idle| idle.pop()).unwrap_or_default();
        bytes.resize(len, 0);
        Buffer { bytes, shelf: Some(Arc::clone(self)) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // After a panic nobody needs it any more.
        if let Some(shelf) = &self.shelf
            && let Ok(mut idle) = shelf.0.lock()
        {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Bytes {
    /// All of a buffer.
    pub(super) fn new(whole: Buffer) -> Self {
        let range = 0..whole.len();
        Self { whole: Arc::new(whole), range }
    }

    /// A part of them, as far as they go.
    pub(super) fn part(&self, range: Range<usize>) -> Self {
        let end = self.range.end.min(self.range.start.saturating_add(range.end));
        let start = end.min(self.range.start.saturating_add(range.start));
        Self { whole: Arc::clone(&self.whole), range: start..end }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Buffer { bytes, shelf: None })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.whole.get(self.range.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_the_last_piece_is_gone() {
        let shelf = Arc::new(Shelf::default());
        let mut buffer = shelf.take(100);
        buffer.fill(7);
        let all = Bytes::new(buffer);
        let part = all.part(10..20).part(5..100);
        assert_eq!((all.len(), &*part), (100, &[7u8; 5][..]));
        drop(all);
        assert_eq!(shelf.0.lock().unwrap().len(), 0);
        drop(part);
        assert_eq!(shelf.0.lock().unwrap().len(), 1);
        assert_eq!(shelf.take(50).len(), 50);
        assert_eq!(shelf.take(200).len(), 200);
    }
}
