//! What goes wrong in storage: who is at fault, in which file, at which byte, and what was found.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::JournalFileId;

/// What went wrong in the journal, the manifest, the marks or another file of the data directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The file system said no.
    #[error("{}: cannot {doing}: {source}", named(path))]
    Io {
        /// The file, relative to the data directory; empty for that itself.
        path: PathBuf,
        /// What was tried, as a verb: `read`, `write`, `sync`.
        doing: &'static str,
        /// What the file system said.
        source: io::Error,
    },
    /// The bytes of a file are not what was written. Nothing was repaired or dropped.
    #[error("{}:{position}: damaged: {what}", path.display())]
    Damaged {
        /// The file, relative to the data directory.
        path: PathBuf,
        /// Where the damage begins, in bytes from the start of the file.
        position: u64,
        /// What was expected, and what was found.
        what: String,
    },
    /// A whole file of a format that this program does not know: an older program looks at a newer directory.
    #[error("{}: format {found}, but this program knows format {known} only", path.display())]
    UnknownFormat {
        /// The file, relative to the data directory.
        path: PathBuf,
        /// The format that the file names.
        found: u32,
        /// The format of this program.
        known: u32,
    },
    /// Another process has the data directory.
    #[error(
        "the data directory {} is in use by another process{}",
        directory.display(),
        process.map(|id| format!(" (process {id})")).unwrap_or_default()
    )]
    InUse {
        /// The data directory.
        directory: PathBuf,
        /// The process, as far as the lock file tells.
        process: Option<u32>,
    },
    /// There is no space. Nothing was written; the same call succeeds when space has come back.
    #[error("no space is left: {needed_bytes} bytes are needed, {free_bytes} are free")]
    Full {
        /// How many bytes the file to be made takes, with what must stay free.
        needed_bytes: u64,
        /// How many bytes the disk had.
        free_bytes: u64,
    },
    /// The journal writes nothing more until it is opened again, because a write or a sync failed.
    #[error("the journal has stopped: {why}")]
    Stopped {
        /// The first failure.
        why: Arc<str>,
    },
    /// What was to be read lay in a journal file that is no longer part of the journal.
    #[error("journal file {file} is no longer part of the journal")]
    Gone {
        /// The file.
        file: JournalFileId,
    },
}

impl StorageError {
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_path_buf(), doing, source }
    }

    pub(crate) fn damaged(path: &Path, position: u64, what: impl ToString) -> Self {
        Self::Damaged { path: path.to_path_buf(), position, what: what.to_string() }
    }

    /// Whether the disk had no space for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => is_full(source),
            _ => false,
        }
    }
}

fn named(path: &Path) -> std::path::Display<'_> {
    if path.as_os_str().is_empty() { Path::new("the data directory").display() } else { path.display() }
}

/// Whether the file system refused for want of space.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
