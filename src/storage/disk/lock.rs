//! One data directory, one process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::storage::StorageError;

/// The name of the lock file in the data directory.
pub const LOCK_NAME: &str = "lock";

/// The right to use a data directory; given back when dropped, and by the system when the process ends.
///
/// The lock is the operating system's (`flock`). What stands in the file is for people only, and a file left
/// behind means nothing.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock of a directory that exists.
    ///
    /// # Errors
    /// [`StorageError::InUse`] while another process, or another broker of this one, has it; [`StorageError::Io`]
    /// when the lock file cannot be opened.
    pub fn acquire(directory: &Path) -> Result<Self, StorageError> {
        let path = Path::new(LOCK_NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(path))
            .map_err(StorageError::io(&directory.join(path), "open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = file.read_to_string(&mut text);
                let process = read.ok().and_then(|_| text.trim().parse().ok());
                return Err(StorageError::InUse { directory: PathBuf::from(directory), process });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StorageError::io(&directory.join(path), "lock")(source));
            }
        }
        // Only for people: on a full disk the lock is good without it.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}
