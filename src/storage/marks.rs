//! Two marks beside the manifest: where a clean close ended, and how the last run kept its records.

use std::path::Path;

use bincode::{BorrowDecode, Decode, Encode};

use super::checked_file::{BODY_AT, FileKind, read_checked, remove_durably, write_checked};
use super::disk::Disk;
use super::error::StorageError;
use super::journal::{JournalEnd, LastStop};
use crate::protocol::{decode, encode_into};

/// The name of the mark of a clean close in the data directory.
pub const CLEAN_MARK_NAME: &str = "clean";

/// The name of the mark of the last run in the data directory.
pub const RUN_MARK_NAME: &str = "run";

const CLEAN_KIND: FileKind = FileKind { magic: *b"RLcl", format: 1 };
const RUN_KIND: FileKind = FileKind { magic: *b"RLrn", format: 1 };

/// What an acknowledgement means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Encode, Decode)]
pub enum Durability {
    /// On stable storage: survives a power cut.
    #[default]
    Fsync,
    /// Given to the operating system: survives the end of the process, not a power cut.
    Os,
    /// In memory: survives nothing.
    Memory,
}

/// The mark of a clean close: with it every damage up to its end is found, without it a damaged last commit cannot
/// be told from a torn one.
///
/// A start reads it, recovers the journal under it, and removes it before anything is written to the journal. It is
/// not removed earlier: a start that finds damage must leave the mark, or the next start would take the damage for a
/// torn tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CleanMark {
    /// The end of the journal.
    pub end: JournalEnd,
}

impl CleanMark {
    /// Reads the mark; `None` if the last stop was not clean.
    ///
    /// # Errors
    /// [`StorageError::Damaged`], [`StorageError::UnknownFormat`] or [`StorageError::Io`].
    pub fn read(disk: &dyn Disk) -> Result<Option<Self>, StorageError> {
        let path = Path::new(CLEAN_MARK_NAME);
        let Some(body) = read_checked(disk, path, CLEAN_KIND)? else { return Ok(None) };
        let end = decode("the mark of a clean close", &body);
        Ok(Some(Self { end: end.map_err(|error| StorageError::damaged(path, BODY_AT, error))? }))
    }

    /// Writes the mark, as the last act of a clean close: after the journal's last sync.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn write(&self, disk: &dyn Disk) -> Result<(), StorageError> {
        let mut body = Vec::new();
        encode_into(&mut body, &self.end);
        write_checked(disk, Path::new(CLEAN_MARK_NAME), CLEAN_KIND, &body)
    }

    /// Removes the mark durably. After this, and not before, the journal may be written.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn remove(disk: &dyn Disk) -> Result<(), StorageError> {
        remove_durably(disk, Path::new(CLEAN_MARK_NAME))
    }
}

/// How the last run kept its records, and since which boot of the machine: what the epoch of this run depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunMark {
    /// What its acknowledgements meant.
    pub durability: Durability,
    /// The boot of the machine, as the operating system names it; empty if it does not say.
    pub boot_id: String,
}

#[derive(Encode, BorrowDecode)]
struct RunMarkBody<'a> {
    durability: Durability,
    boot_id: &'a str,
}

impl RunMark {
    /// The mark of a run that begins now.
    #[must_use]
    pub fn now(durability: Durability) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { durability, boot_id: boot_id.trim().to_string() }
    }

    /// Reads the mark of the last run; `None` if there was none.
    ///
    /// # Errors
    /// [`StorageError::Damaged`], [`StorageError::UnknownFormat`] or [`StorageError::Io`].
    pub fn read(disk: &dyn Disk) -> Result<Option<Self>, StorageError> {
        let path = Path::new(RUN_MARK_NAME);
        let Some(body) = read_checked(disk, path, RUN_KIND)? else { return Ok(None) };
        let mark: Result<RunMarkBody<'_>, _> = decode("the mark of a run", &body);
        let mark = mark.map_err(|error| StorageError::damaged(path, BODY_AT, error))?;
        Ok(Some(Self { durability: mark.durability, boot_id: mark.boot_id.to_string() }))
    }

    /// Writes the mark: after the journal is recovered and, if the epoch is new, after the manifest says so; before
    /// the first commit.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn write(&self, disk: &dyn Disk) -> Result<(), StorageError> {
        let mut body = Vec::new();
        encode_into(&mut body, &RunMarkBody { durability: self.durability, boot_id: &self.boot_id });
        write_checked(disk, Path::new(RUN_MARK_NAME), RUN_KIND, &body)
    }
}

/// What a start has to know of the stop before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StopFinding {
    /// How strictly the journal is to be read.
    pub last_stop: LastStop,
    /// Whether acknowledged records may be gone, so that every offset of the old epoch is void.
    pub new_epoch: bool,
}

/// Decides about the epoch.
///
/// `fsync` keeps it. After `os` it is new if the stop was not clean and the machine has rebooted since, or cannot
/// tell: what the operating system held is gone then. In `memory` nothing outlives a run, so each start has a new
/// one. What counts for the past is how the *last* run kept its records, not what is asked for now.
#[must_use]
pub fn judge_last_stop(last: Option<&RunMark>, clean: Option<&CleanMark>, now: &RunMark) -> StopFinding {
    let unsynced = clean.is_none()
        && last.is_some_and(|last| {
            last.durability != Durability::Fsync && (last.boot_id != now.boot_id || now.boot_id.is_empty())
        });
    let memory = now.durability == Durability::Memory || last.is_some_and(|last| last.durability == Durability::Memory);
    let last_stop = match clean {
        Some(clean) => LastStop::Clean(clean.end),
        None if unsynced => LastStop::Unsynced,
        None => LastStop::Unclean,
    };
    StopFinding { last_stop, new_epoch: unsynced || memory }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::commit::{CommitSeq, JournalFileId};
    use crate::storage::disk::FaultyDisk;

    fn run(durability: Durability, boot_id: &str) -> RunMark {
        RunMark { durability, boot_id: boot_id.into() }
    }

    fn clean() -> CleanMark {
        CleanMark { end: JournalEnd { seq: CommitSeq(9), file: JournalFileId(2), position: 4096 } }
    }

    #[test]
    fn the_epoch_is_new_when_acknowledged_records_may_be_gone_and_only_then() {
        use Durability::{Fsync, Memory, Os};
        let (boot, later) = ("boot", "later boot");
        let judge = |last: Option<RunMark>, clean: Option<CleanMark>, now: RunMark| {
            judge_last_stop(last.as_ref(), clean.as_ref(), &now)
        };
        let finding = |last_stop, new_epoch| StopFinding { last_stop, new_epoch };
        let (stopped, closed) = (LastStop::Unclean, LastStop::Clean(clean().end));
        let cases = [
            (None, None, run(Fsync, boot), finding(stopped, false)),
            (Some(run(Fsync, boot)), None, run(Fsync, later), finding(stopped, false)),
            (Some(run(Fsync, boot)), None, run(Os, later), finding(stopped, false)),
            (Some(run(Os, boot)), None, run(Os, boot), finding(stopped, false)),
            (Some(run(Os, boot)), None, run(Os, later), finding(LastStop::Unsynced, true)),
            (Some(run(Os, boot)), None, run(Fsync, later), finding(LastStop::Unsynced, true)),
            (Some(run(Os, "")), None, run(Os, ""), finding(LastStop::Unsynced, true)),
            (Some(run(Os, boot)), Some(clean()), run(Os, later), finding(closed, false)),
            (Some(run(Memory, boot)), Some(clean()), run(Fsync, boot), finding(closed, true)),
            (None, None, run(Memory, boot), finding(stopped, true)),
        ];
        for (last, clean, now, expected) in cases {
            println!("{last:?}, {clean:?}, {now:?}");
            assert_eq!(judge(last, clean, now), expected);
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_gone_when_it_is_removed() {
        let disk = FaultyDisk::new(1);
        assert_eq!(CleanMark::read(&disk).expect("nothing is wrong"), None);
        assert_eq!(RunMark::read(&disk).expect("nothing is wrong"), None);
        clean().write(&disk).expect("the disk is fine");
        let now = RunMark::now(Durability::Os);
        assert_eq!(now.boot_id.len(), 36, "{now:?}");
        now.write(&disk).expect("the disk is fine");
        let disk = disk.reopen(1);
        assert_eq!(CleanMark::read(&disk).expect("whole"), Some(clean()));
        assert_eq!(RunMark::read(&disk).expect("whole"), Some(now));
        CleanMark::remove(&disk).expect("the disk is fine");
        CleanMark::remove(&disk).expect("nothing happens");
        assert!((0..20).all(|seed| CleanMark::read(&disk.reopen(seed)).expect("nothing is wrong").is_none()));
    }
}
