//! Bodies that were read, kept up to a number of bytes; the least recently used goes first.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::VolumeId;

/// Volume, room, first offset.
pub(super) type CacheKey = (VolumeId, u64, u64);

/// What a body costs beside itself, in bytes.
const ENTRY_BYTES: usize = 160;

/// The cache. Readers share the bodies; one that is dropped here lives until its last reader lets go.
#[derive(Debug)]
pub(super) struct BodyCache {
    bodies: HashMap<CacheKey, (u64, Bytes)>,
    by_use: BTreeMap<u64, CacheKey>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
}

impl BodyCache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bodies: HashMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, bytes_max }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The body, if it is here.
    pub(super) fn body(&mut self, key: CacheKey) -> Option<Bytes> {
        let (used, body) = self.bodies.get_mut(&key)?;
        self.uses += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.uses, key);
        *used = self.uses;
        Some(body.clone())
    }

    /// Keeps a body, unless it alone is more than a quarter of what there may be.
    pub(super) fn insert(&mut self, key: CacheKey, body: Bytes) {
        let cost = body.len() + ENTRY_BYTES;
        if cost > self.bytes_max / 4 {
            return;
        }
        self.uses += 1;
        self.bytes += cost;
        if let Some((used, old)) = self.bodies.insert(key, (self.uses, body)) {
            self.by_use.remove(&used);
            self.bytes -= old.len() + ENTRY_BYTES;
        }
        self.by_use.insert(self.uses, key);
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.forget(oldest);
        }
    }

    /// Drops all bodies of a volume.
    pub(super) fn remove_volume(&mut self, id: VolumeId) {
        let keys: Vec<_> = self.bodies.keys().filter(|key| key.0 == id).copied().collect();
        for key in keys {
            if let Some(used) = self.forget(key) {
                self.by_use.remove(&used);
            }
        }
    }

    fn forget(&mut self, key: CacheKey) -> Option<u64> {
        let (used, body) = self.bodies.remove(&key)?;
        self.bytes -= body.len() + ENTRY_BYTES;
        Some(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(first: u64) -> CacheKey {
        (VolumeId(first % 2), 7, first)
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bytes_stay_below_the_limit() {
        let mut cache = BodyCache::new(10 * (1000 + ENTRY_BYTES));
        for first in 0..10 {
            cache.insert(key(first), Bytes::from(vec![0; 1000]));
        }
        assert!((0..10).all(|first| cache.body(key(first)).is_some()));
        assert!(cache.body(key(0)).is_some());
        cache.insert(key(10), Bytes::from(vec![0; 1000]));
        assert!(cache.body(key(0)).is_some() && cache.body(key(1)).is_none());
        assert_eq!(cache.bytes(), 10 * (1000 + ENTRY_BYTES));
    }

    #[test]
    fn a_body_inserted_twice_counts_once() {
        let mut cache = BodyCache::new(100_000);
        cache.insert(key(1), Bytes::from(vec![0; 1000]));
        cache.insert(key(1), Bytes::from(vec![0; 1000]));
        assert_eq!(cache.bytes(), 1000 + ENTRY_BYTES);
        assert_eq!(cache.by_use.len(), 1);
    }

    #[test]
    fn a_body_of_more_than_a_quarter_is_not_kept() {
        let mut cache = BodyCache::new(4000);
        cache.insert(key(1), Bytes::from(vec![0; 1000]));
        assert_eq!((cache.bytes(), cache.body(key(1))), (0, None));
    }

    #[test]
    fn the_bodies_of_a_removed_volume_are_dropped() {
        let mut cache = BodyCache::new(100_000);
        for first in 0..10 {
            cache.insert(key(first), Bytes::from(vec![0; 1000]));
        }
        cache.remove_volume(VolumeId(0));
        assert!((0..10).all(|first| cache.body(key(first)).is_some() == (first % 2 == 1)));
        assert_eq!((cache.bodies.len(), cache.by_use.len()), (5, 5));
        assert_eq!(cache.bytes(), 5 * (1000 + ENTRY_BYTES));
    }
}
