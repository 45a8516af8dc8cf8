//! The seam above sled: a volume's blocks as plain keys and values, written once, read by known keys.
//!
//! All calls block, and may block for hundreds of milliseconds.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

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

    /// Opens a finished volume for reading.
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
