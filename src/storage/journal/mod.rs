//! The journal: what was committed last, in the order of commits, in preallocated files that are recycled.
//!
//! The committer owns a [`Journal`] and does nothing but write and sync. [`JournalFiles`] is the builder's side:
//! it reserves the next file, tells what there is, and retires what a durable manifest no longer needs.
//! [`JournalReader`] reads single batches from any thread.

mod file;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod model;
mod recovery;
mod scan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bincode::{Decode, Encode};

use super::commit::{CommitBuilder, CommitSeq, JournalFileId, SECTOR_BYTES, UNIT_BYTES_MAX, UnitPlace};
use super::error::StorageError;
#[cfg(test)]
pub(crate) use file::FileHeader;
use file::OpenFile;
pub use file::{JOURNAL_DIRECTORY, path_of};
use files::Shared;
pub use files::{FileInfo, JournalFiles, JournalReader, JournalUse};
pub use recovery::{Recovery, check};
pub use scan::{FileCommits, TornTail, Visit};

const SECTOR: u64 = SECTOR_BYTES as u64;

/// How a journal uses its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalOptions {
    /// The length of the first files, in bytes; later ones are as long as all that is live, up to the limit. At
    /// least two sectors.
    pub file_bytes_min: u64,
    /// The length of the longest files, in bytes; only a single longer commit gets a longer one.
    pub file_bytes_max: u64,
    /// How many files that are no longer needed are kept to be recycled. Together they are never longer than what
    /// was retired last.
    pub spare_files_max: usize,
    /// A file is only made if so many bytes stay free on the disk.
    pub free_bytes_min: u64,
}

impl Default for JournalOptions {
    /// 1 MiB to 64 MiB, 4 spare files, and nothing that must stay free.
    fn default() -> Self {
        Self { file_bytes_min: 1 << 20, file_bytes_max: 64 << 20, spare_files_max: 4, free_bytes_min: 0 }
    }
}

/// Where the journal that is still needed begins; the manifest holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct JournalStart {
    /// The first file that is needed.
    pub file: JournalFileId,
    /// The first commit of that file, or the one that will be.
    pub file_first_seq: CommitSeq,
    /// The first commit that is needed.
    pub seq: CommitSeq,
}

/// Where the journal ends; the mark of a clean close holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct JournalEnd {
    /// The last commit; 0 if there never was one.
    pub seq: CommitSeq,
    /// The file that the last commit stands in; the first needed file if there is none.
    pub file: JournalFileId,
    /// Where in the file it ends.
    pub position: u64,
}

/// How the broker stopped before this start: how strictly the journal is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LastStop {
    /// It was closed, and the journal ended here: everything up to there must be whole.
    Clean(JournalEnd),
    /// It was not closed. The last commit may be torn; anything else that is not whole is damage.
    Unclean,
    /// The machine stopped, and commits were not synced one by one: the journal is good up to the first commit that
    /// is not whole, and the rest is dropped. The epoch is a new one then.
    Unsynced,
}

/// The writing end of the journal. One committer owns it.
///
/// After a failed write or sync it writes nothing more: every call gives [`StorageError::Stopped`] until the journal
/// is opened again.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    current: Arc<OpenFile>,
    /// Where the next unit goes.
    end: u64,
    next_seq: CommitSeq,
    /// Where the last commit ended.
    last_end: JournalEnd,
    /// Files with bytes that were not synced: the current one, and in the weaker modes those before it.
    unsynced: Vec<Arc<OpenFile>>,
}

impl Journal {
    /// The builder's side.
    #[must_use]
    pub fn files(&self) -> JournalFiles {
        JournalFiles(self.shared.clone())
    }

    /// The readers' side.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader(self.shared.clone())
    }

    /// The number that the next commit gets.
    #[must_use]
    pub fn next_seq(&self) -> CommitSeq {
        self.next_seq
    }

    /// Where the last commit ends: after the last [`Journal::sync`], the mark of a clean close.
    #[must_use]
    pub fn end(&self) -> JournalEnd {
        self.last_end
    }

    /// Whether a commit of so many bytes ([`CommitBuilder::unit_bytes`]) can be written without asking the disk for
    /// space. Makes a file if it must, and can: `false` means that the disk is full, and that trying again later may
    /// help.
    ///
    /// # Errors
    /// [`StorageError::Stopped`], or what stopped the journal just now.
    pub fn room_for(&mut self, unit_bytes: usize) -> Result<bool, StorageError> {
        self.shared.check_running()?;
        if self.current.header.bytes - self.end >= unit_bytes as u64 {
            return Ok(true);
        }
        match self.shared.ensure_reserved(unit_bytes as u64) {
            Ok(()) => Ok(true),
            Err(error) if error.is_full() => Ok(false),
            Err(error) => Err(self.shared.stop(error)),
        }
    }

    /// As [`Journal::room_for`], for a commit that serves to give space back: the disk may be asked for what must stay
    /// free, too.
    ///
    /// # Errors
    /// As [`Journal::room_for`].
    pub fn room_for_keeping(&mut self, unit_bytes: usize) -> Result<bool, StorageError> {
        self.shared.check_running()?;
        if self.current.header.bytes - self.end >= unit_bytes as u64 {
            return Ok(true);
        }
        match self.shared.ensure_reserved_at_all(unit_bytes as u64) {
            Ok(()) => Ok(true),
            Err(error) if error.is_full() => Ok(false),
            Err(error) => Err(self.shared.stop(error)),
        }
    }

    /// Writes a commit as the next one, with one write; not durable before [`Journal::sync`]. Goes on to the next
    /// file when the current one is full.
    ///
    /// # Errors
    /// [`StorageError::Full`] if there is no file for it and the disk is full: nothing was written, and the same
    /// commit may be tried again. Any other error stops the journal.
    pub fn write(&mut self, commit: &mut CommitBuilder) -> Result<UnitPlace, StorageError> {
        self.shared.check_running()?;
        let bytes = commit.unit_bytes();
        assert!(bytes <= UNIT_BYTES_MAX, "the caller splits what is longer than a unit");
        if !self.room_for(bytes)? {
            return Err(self.shared.full(bytes as u64));
        }
        if self.current.header.bytes - self.end < bytes as u64 {
            self.switch(bytes as u64);
        }
        let (header, at, seq) = (self.current.header, self.end, self.next_seq);
        let unit = commit.seal(seq, header.id, header.salt);
        let time = CommitBuilder::time_of(unit);
        let written = self.current.file.write_all_at(unit, at);
        commit.unseal();
        written.map_err(|source| {
            self.shared.stop(StorageError::Io { path: self.current.path(), doing: "write", source })
        })?;
        self.end += bytes as u64;
        self.next_seq = seq.next();
        self.last_end = JournalEnd { seq, file: header.id, position: self.end };
        if !self.unsynced.last().is_some_and(|file| Arc::ptr_eq(file, &self.current)) {
            self.unsynced.push(self.current.clone());
        }
        self.shared.wrote(seq, time, self.end);
        Ok(UnitPlace { file: header.id, at, bytes: u32::try_from(bytes).expect("a unit is below its limit") })
    }

    /// Makes all written commits durable: one `fdatasync`, unless commits were left unsynced across files.
    ///
    /// # Errors
    /// Any error stops the journal.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        self.shared.check_running()?;
        for open in &self.unsynced {
            open.file
                .sync_data()
                .map_err(|source| self.shared.stop(StorageError::Io { path: open.path(), doing: "sync", source }))?;
        }
        self.unsynced.clear();
        Ok(())
    }

    /// Ends the current file, if it has commits, so that what was committed until now is whole files. `false` if
    /// there is no space for another file; then nothing changes.
    ///
    /// # Errors
    /// As [`Journal::room_for`].
    pub fn rotate(&mut self) -> Result<bool, StorageError> {
        self.shared.check_running()?;
        if self.end == SECTOR {
            return Ok(true);
        }
        match self.shared.ensure_reserved(0) {
            Ok(()) => self.switch(0),
            Err(error) if error.is_full() => return Ok(false),
            Err(error) => return Err(self.shared.stop(error)),
        }
        Ok(true)
    }

    /// Goes on in the first reserved file that is long enough.
    fn switch(&mut self, unit_bytes: u64) {
        self.current = self.shared.take_reserved(unit_bytes);
        self.end = SECTOR;
    }
}
