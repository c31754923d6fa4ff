//! A bounded cache of pieces of tables.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::{Common, Result};

/// Pieces of tables by their host offset.
///
/// Two generations stand in for an exact order of use: what was not asked for while a whole generation filled
/// up goes, and nobody has to search for the oldest.
#[derive(Debug)]
pub(crate) struct Slices<T: ?Sized> {
    state: Mutex<Generations<T>>,
    each_max: usize,
}

#[derive(Debug)]
struct Generations<T: ?Sized> {
    young: HashMap<u64, Arc<T>>,
    old: HashMap<u64, Arc<T>>,
}

impl<T: ?Sized> Slices<T> {
    /// A cache that holds `count` pieces at most.
    pub(crate) fn new(count: usize) -> Self {
        let state = Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() });
        Self { state, each_max: (count / 2).max(1) }
    }

    /// The piece at `at`, from the cache or by `load`, which runs outside the cache's own lock.
    pub(crate) fn get(&self, at: u64, load: impl FnOnce() -> Result<Arc<T>>) -> Result<Arc<T>> {
        if let Some(hit) = self.find(at)? {
            return Ok(hit);
        }
        let fresh = load()?;
        self.put(at, Arc::clone(&fresh))?;
        Ok(fresh)
    }

    /// Puts a piece in, over an older one of the same place.
    pub(crate) fn put(&self, at: u64, piece: Arc<T>) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        state.old.remove(&at);
        state.insert(at, piece, self.each_max);
        Ok(())
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        state.young.clear();
        state.old.clear();
        Ok(())
    }

    fn find(&self, at: u64) -> Result<Option<Arc<T>>> {
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        if let Some(hit) = state.young.get(&at) {
            return Ok(Some(Arc::clone(hit)));
        }
        let Some(hit) = state.old.remove(&at) else { return Ok(None) };
        state.insert(at, Arc::clone(&hit), self.each_max);
        Ok(Some(hit))
    }
}

impl<T: ?Sized> Generations<T> {
    fn insert(&mut self, at: u64, piece: Arc<T>, each_max: usize) {
        if self.young.len() >= each_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(at, piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let cache: Slices<u64> = Slices::new(8);
        for round in 0..100u64 {
            cache.get(round, || Ok(Arc::new(round))).unwrap();
            assert_eq!(*cache.get(0, || panic!("0 is always in use")).unwrap(), 0);
        }
        let state = cache.state.lock().unwrap();
        assert!(state.young.len() + state.old.len() <= 8);
    }
}
