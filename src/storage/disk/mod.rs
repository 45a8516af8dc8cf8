//! The seam below the journal, the manifest and the directory files: what they need of a file system.
//!
//! The tests put a disk here that fails or tears the nth operation and loses what was not synced; the code above
//! it is the real one. sled is not behind this seam: it opens its own files, and is never the only copy of
//! anything while it writes.

#[cfg(any(test, feature = "fault-injection"))]
mod faulty;
mod lock;
mod memory;
mod real;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(any(test, feature = "fault-injection"))]
pub use faulty::{Fault, FaultyDisk, Moment};
pub use lock::{DirectoryLock, LOCK_NAME};
pub use memory::MemoryDisk;
pub(crate) use memory::Space;
pub use real::RealDisk;
pub(crate) use real::descriptors_max;

/// A file system, as far as Roomlog uses one. Paths are relative to its root, the data directory.
pub trait Disk: Send + Sync + Debug + 'static {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a file that must not exist yet. Durable only after [`Disk::sync_dir`] of its directory.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file within its directory, replacing the target. Durable only after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// As the file system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the file system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its parents, if they do not exist; the empty path is the root. Durable only after
    /// [`Disk::sync_dir`] of the directory above.
    ///
    /// # Errors
    /// As the file system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with all that is in it; nothing happens if there is none.
    ///
    /// # Errors
    /// As the file system's.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names of what is in a directory, sorted; empty if there is none.
    ///
    /// # Errors
    /// As the file system's.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// As the file system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// How many bytes may still be written.
    ///
    /// # Errors
    /// As the file system's.
    fn free_bytes(&self) -> io::Result<u64>;

    /// How many bytes a directory and all below it take on the disk.
    ///
    /// # Errors
    /// As the file system's.
    fn used_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Where the disk's root is for programs that open files by themselves; `None` if it is not in a file system.
    fn root(&self) -> Option<&Path>;
}

/// An open file of a [`Disk`].
#[expect(clippy::len_without_is_empty, reason = "a file's length is asked of the file system, and may fail")]
pub trait DiskFile: Send + Sync + Debug {
    /// Fills the buffer from a place in the file.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()>;

    /// Writes all the bytes at a place in the file, which grows if it must. Not durable before a sync.
    ///
    /// # Errors
    /// As the file system's; any part of the bytes may then be in the file.
    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Makes the file's bytes durable: `fdatasync`.
    ///
    /// # Errors
    /// As the file system's. What was written before may be lost then, whatever a later sync says.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends the file.
    ///
    /// # Errors
    /// As the file system's.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// The length of the file.
    ///
    /// # Errors
    /// As the file system's.
    fn len(&self) -> io::Result<u64>;
}
