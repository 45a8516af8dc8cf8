//! Blocks in memory: for `durability = "memory"`, and for tests of what is above.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::storage::disk::{MemoryDisk, Space};

use super::{BlockKey, BlockReader, BlockStore, BlockStoreError, BlockWriter, VALUE_BYTES_MAX};

/// What a key costs beside its value, in bytes: the key itself and the map around it.
const KEY_BYTES: u64 = 64;

/// A [`BlockStore`] that lasts as long as the value and its clones.
#[derive(Clone, Default, Debug)]
pub struct MemoryBlockStore {
    volumes: Arc<Mutex<HashMap<PathBuf, Arc<Volume>>>>,
    /// What blocks are counted by; nothing bounds them without one.
    space: Option<Arc<Space>>,
}

#[derive(Debug)]
struct Volume {
    path: PathBuf,
    blocks: BTreeMap<BlockKey, Bytes>,
    bytes: u64,
    space: Option<Arc<Space>>,
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Some(space) = &self.space {
            space.give_back(self.bytes);
        }
    }
}

impl MemoryBlockStore {
    /// A store without volumes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store without volumes that shares the capacity of a disk in memory.
    #[must_use]
    pub fn within(disk: &MemoryDisk) -> Self {
        Self { space: Some(disk.space()), ..Self::default() }
    }

    fn volume(&self, directory: &Path) -> Result<Arc<Volume>, BlockStoreError> {
        let volume = self.volumes.lock().get(directory).cloned();
        volume.ok_or_else(|| BlockStoreError::damaged(directory, "the volume is missing"))
    }
}

impl BlockStore for MemoryBlockStore {
    fn create(&self, directory: &Path) -> Result<Box<dyn BlockWriter>, BlockStoreError> {
        if self.volumes.lock().contains_key(directory) {
            return Err(BlockStoreError::io(directory, io::ErrorKind::AlreadyExists.into()));
        }
        Ok(Box::new(Writer {
            volumes: Arc::clone(&self.volumes),
            volume: Volume { path: directory.to_owned(), blocks: BTreeMap::new(), bytes: 0, space: self.space.clone() },
        }))
    }

    fn open(&self, directory: &Path) -> Result<Arc<dyn BlockReader>, BlockStoreError> {
        Ok(self.volume(directory)?)
    }

    fn remove(&self, directory: &Path) -> Result<(), BlockStoreError> {
        self.volumes.lock().remove(directory);
        Ok(())
    }

    fn used_bytes(&self, directory: &Path) -> Result<u64, BlockStoreError> {
        Ok(self.volume(directory)?.bytes)
    }
}

struct Writer {
    volumes: Arc<Mutex<HashMap<PathBuf, Arc<Volume>>>>,
    volume: Volume,
}

impl BlockWriter for Writer {
    fn put(&mut self, key: BlockKey, value: &[u8]) -> Result<(), BlockStoreError> {
        let last = self.volume.blocks.last_key_value();
        assert!(last.is_none_or(|(last, _)| *last < key) && value.len() <= VALUE_BYTES_MAX);
        let bytes = value.len() as u64 + KEY_BYTES;
        if let Some(space) = &self.volume.space {
            space.take(bytes).map_err(|error| BlockStoreError::io(&self.volume.path, error))?;
        }
        self.volume.bytes += bytes;
        self.volume.blocks.insert(key, Bytes::copy_from_slice(value));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), BlockStoreError> {
        let Self { volumes, volume } = *self;
        volumes.lock().insert(volume.path.clone(), Arc::new(volume));
        Ok(())
    }
}

impl BlockReader for Volume {
    fn get(&self, key: BlockKey) -> Result<Option<Bytes>, BlockStoreError> {
        Ok(self.blocks.get(&key).cloned())
    }

    fn held_bytes_max(&self) -> u64 {
        0
    }

    fn keys_held_together(&self, _value_bytes: usize) -> u64 {
        // What is held is the volume itself, open or not.
        0
    }
}
