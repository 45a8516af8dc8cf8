//! The past: volumes, finished and sorted copies of a stretch of the log, that are written once and then only read.
//!
//! A volume is a database of blocks (`volumes/00000001/`, behind [`BlockStore`])
//! and our own directory file of them (`volumes/00000001.rld`, behind [`Disk`]). A block is
//! consecutive records of one room in one batch body, the same bytes that are later sent to readers. Where the
//! parts of this are:
//!
//! - [`build`]: inputs, in order of room and offset, become a verified volume; also how volumes are joined,
//!   rewritten, and rid of records below a floor.
//! - [`Volumes`]: the volumes that exist, as readers see them.
//! - [`check_volume`]: everything that can be verified of a volume.
//!
//! Nothing here decides which volumes exist: the manifest does, and what it does not name is rubbish.

mod block;
mod build;
mod cache;
mod check;
mod directory;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod merge;
mod volumes;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::block_store::{BlockStore, BlockStoreError};
use super::disk::Disk;
use super::error::{StorageError, is_full};
use crate::types::{Offset, Time};

pub use self::build::{Input, build, reread};
pub use self::check::check_volume;
pub use self::directory::BlockEntry;
pub use self::volumes::{Block, Live, Located, VolumeLimits, Volumes, VolumesUse};

/// The directory below the data directory that holds all volumes.
pub const VOLUMES: &str = "volumes";

/// The number of a volume; numbers are never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeId(pub u64);

impl VolumeId {
    /// Where the block store keeps the volume, relative to the data directory.
    #[must_use]
    pub fn blocks_path(self) -> PathBuf {
        Path::new(VOLUMES).join(self.to_string())
    }

    /// The volume's directory file, relative to the data directory.
    #[must_use]
    pub fn directory_path(self) -> PathBuf {
        Path::new(VOLUMES).join(format!("{self}.rld"))
    }

    /// The volume that a name in the directory of volumes belongs to, if it is a name of ours.
    #[must_use]
    pub fn of_name(name: &Path) -> Option<Self> {
        let name = name.file_name()?.to_str()?;
        let (digits, rest) = name.split_at_checked(8)?;
        let known = matches!(rest, "" | ".rld" | ".doomed") && digits.bytes().all(|digit| digit.is_ascii_digit());
        known.then(|| digits.parse().ok().map(Self))?
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}

/// What a volume says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    /// Its number.
    pub id: VolumeId,
    /// The first commit whose records may be in it.
    pub commit_first: u64,
    /// The last commit whose records may be in it. Volumes do not overlap.
    pub commit_last: u64,
    /// How many rooms it has records of.
    pub rooms: u64,
    /// How many blocks it holds.
    pub blocks: u64,
    /// How many records it holds.
    pub records: u64,
    /// Bytes of the batch bodies.
    pub body_bytes: u64,
    /// Bytes of the values that the block store was given: the bodies, compressed.
    pub stored_bytes: u64,
    /// The time of its oldest record.
    pub first_time: Time,
    /// The time of its newest record.
    pub last_time: Time,
}

/// Something that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}:{position}: {what}", file.display())]
pub struct Finding {
    /// The file, or the directory of a block store, relative to the data directory.
    pub file: PathBuf,
    /// Where in it: a byte, or a block's room and first offset.
    pub position: String,
    /// What is wrong.
    pub what: String,
}

/// What can go wrong with volumes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The block store failed.
    #[error("{0}")]
    Store(#[from] BlockStoreError),
    /// What is there is not what was written.
    #[error("damaged: {0}")]
    Damaged(Finding),
    /// What was to be built into a volume cannot be used, or could not be read.
    #[error("the input of a volume: {0}")]
    Input(Box<dyn std::error::Error + Send + Sync>),
    /// There is no such volume among those that exist.
    #[error("there is no volume {0}")]
    NoVolume(VolumeId),
    /// The log is being closed, and the volume was not needed.
    #[error("given up, the log is being closed")]
    Stopped,
}

/// What the caller should do about a [`VolumeError`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeErrorKind {
    /// Try again when there is room on the disk.
    Full,
    /// Report it: the operating system fails us.
    Io,
    /// Report it: bytes on the disk have changed.
    Damaged,
    /// Look at where the input or the number of the volume comes from.
    Input,
    /// Nothing.
    Stopped,
}

impl From<VolumeError> for StorageError {
    fn from(error: VolumeError) -> Self {
        let input = |what: String| Self::Damaged { path: VOLUMES.into(), position: 0, what };
        match error {
            VolumeError::Io { path, source } => Self::Io { path, doing: "use", source },
            VolumeError::Store(BlockStoreError::Io { path, source }) => {
                Self::Io { path: path.into(), doing: "use", source }
            }
            VolumeError::Store(BlockStoreError::Damaged { path, why }) => {
                Self::Damaged { path: path.into(), position: 0, what: why }
            }
            VolumeError::Damaged(Finding { file, position, what }) => match position.parse() {
                Ok(position) => Self::Damaged { path: file, position, what },
                Err(_) => Self::Damaged { path: file, position: 0, what: format!("{position}: {what}") },
            },
            // The journal's own errors pass through a build unchanged.
            VolumeError::Input(error) => match error.downcast::<Self>() {
                Ok(error) => *error,
                Err(error) => input(error.to_string()),
            },
            VolumeError::NoVolume(_) | VolumeError::Stopped => input(error.to_string()),
        }
    }
}

impl From<StorageError> for VolumeError {
    fn from(error: StorageError) -> Self {
        Self::input(error)
    }
}

impl VolumeError {
    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> VolumeErrorKind {
        match self {
            Self::Io { source, .. } if is_full(source) => VolumeErrorKind::Full,
            Self::Store(error) if error.is_full() => VolumeErrorKind::Full,
            Self::Io { .. } | Self::Store(BlockStoreError::Io { .. }) => VolumeErrorKind::Io,
            Self::Damaged(_) | Self::Store(BlockStoreError::Damaged { .. }) => VolumeErrorKind::Damaged,
            Self::Input(_) | Self::NoVolume(_) => VolumeErrorKind::Input,
            Self::Stopped => VolumeErrorKind::Stopped,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { path: path.to_owned(), source }
    }

    fn input(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Input(why.into())
    }

    fn damaged(file: &Path, position: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self::Damaged(Finding { file: file.to_owned(), position: position.to_string(), what: what.to_string() })
    }

    /// The finding that tells of this error, if it is damage.
    fn finding(self, id: VolumeId) -> Result<Finding, Self> {
        match self {
            Self::Damaged(finding) => Ok(finding),
            Self::Store(BlockStoreError::Damaged { why, .. }) => {
                Ok(Finding { file: id.blocks_path(), position: "0".to_owned(), what: why })
            }
            other => Err(other),
        }
    }
}

/// Deletes all that there is of a volume, finished or not; nothing happens if there is nothing.
///
/// The caller has made sure that a durable manifest does not name it, and that no reader has it.
///
/// # Errors
/// When the file system says no. What is left is deleted by calling again.
pub fn delete(disk: &dyn Disk, store: &dyn BlockStore, id: VolumeId) -> Result<(), VolumeError> {
    // The directory file first: without it the blocks are rubbish, with it a volume might seem whole.
    let path = id.directory_path();
    match disk.remove(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.map_err(VolumeError::io(&path))?,
    }
    store.remove(&id.blocks_path())?;
    match disk.sync_dir(Path::new(VOLUMES)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(VolumeError::io(Path::new(VOLUMES))),
    }
}

/// What there is in the directory of volumes, finished or not, in order of number; what has no name of ours is
/// left out.
///
/// # Errors
/// When the file system says no.
pub fn found(disk: &dyn Disk) -> Result<Vec<VolumeId>, VolumeError> {
    let names = disk.list(Path::new(VOLUMES)).map_err(VolumeError::io(Path::new(VOLUMES)))?;
    let mut ids: Vec<_> = names.iter().filter_map(|name| VolumeId::of_name(name)).collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// A place in a room, for messages.
fn place(room: u64, first: Offset) -> String {
    format!("room {room} offset {first}")
}
