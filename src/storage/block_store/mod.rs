//! The seam above sled: a volume's blocks as plain keys and values, written once, read by known keys.
//!
//! Directories are named relative to the data directory, as in [`Disk`](super::disk::Disk). All calls block, and
//! may block for hundreds of milliseconds.

mod memory;
mod sled;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::error::is_full;

pub use self::memory::MemoryBlockStore;
pub use self::sled::SledBlockStore;

/// The key of a block: `(room id, first offset, part)`, ordered as the tuple is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockKey {
    /// The room.
    pub room: u64,
    /// The offset of the block's first record.
    pub first: u64,
    /// 0, or the number of the part of a block that is too large for one value.
    pub part: u16,
}

/// Where volumes keep their blocks.
pub trait BlockStore: Send + Sync + Debug + 'static {
    /// Begins a volume in a directory that does not exist yet.
    ///
    /// # Errors
    /// See [`BlockStoreError`].
    fn create(&self, directory: &Path) -> Result<Box<dyn BlockWriter>, BlockStoreError>;

    /// Opens a finished volume for reading. It may be open only once at a time.
    ///
    /// # Errors
    /// See [`BlockStoreError`].
    fn open(&self, directory: &Path) -> Result<Arc<dyn BlockReader>, BlockStoreError>;

    /// Deletes a volume with all that is in it; nothing happens if there is none.
    ///
    /// # Errors
    /// See [`BlockStoreError`].
    fn remove(&self, directory: &Path) -> Result<(), BlockStoreError>;

    /// How many bytes a volume takes.
    ///
    /// # Errors
    /// See [`BlockStoreError`].
    fn used_bytes(&self, directory: &Path) -> Result<u64, BlockStoreError>;
}

/// A volume that is being written. Dropped before [`BlockWriter::finish`], it is rubbish to be removed.
pub trait BlockWriter: Send {
    /// Adds a block; keys rise, values are at most [`VALUE_BYTES_MAX`] long.
    ///
    /// # Errors
    /// See [`BlockStoreError`].
    ///
    /// # Panics
    /// When keys do not rise or a value is too long: a bug of the caller.
    fn put(&mut self, key: BlockKey, value: &[u8]) -> Result<(), BlockStoreError>;

    /// Makes everything durable and closes the volume.
    ///
    /// # Errors
    /// See [`BlockStoreError`].
    fn finish(self: Box<Self>) -> Result<(), BlockStoreError>;
}

/// A finished volume. Closed when dropped.
pub trait BlockReader: Send + Sync + Debug {
    /// Reads a block by its key.
    ///
    /// # Errors
    /// See [`BlockStoreError`].
    fn get(&self, key: BlockKey) -> Result<Option<Bytes>, BlockStoreError>;

    /// How many bytes of what was read stay in memory at most, until the volume is closed.
    fn held_bytes_max(&self) -> u64;

    /// How many neighbouring keys come into memory with each that is read, and may stay there; 0 if nothing does. Keys
    /// are counted in their order: with 9, the first nine come together. It depends on how long values are; for a volume
    /// as a whole, give their mean.
    fn keys_held_together(&self, value_bytes: usize) -> u64;
}

/// The longest value of a block, in bytes: longer ones would become files that sled never syncs.
pub const VALUE_BYTES_MAX: usize = 32 << 10;

/// What went wrong in a block store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockStoreError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The volume's directory.
        path: String,
        /// What the file system said.
        source: std::io::Error,
    },
    /// What is there is not what was written.
    #[error("{path}: damaged: {why}")]
    Damaged {
        /// The volume's directory.
        path: String,
        /// What the store said.
        why: String,
    },
}

impl BlockStoreError {
    /// Whether the disk has no room left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::Damaged { .. } => false,
        }
    }

    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    fn damaged(path: &Path, why: impl ToString) -> Self {
        Self::Damaged { path: path.display().to_string(), why: why.to_string() }
    }
}
