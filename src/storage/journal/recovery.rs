//! Opening the journal: a new one, or what the last run left, made whole and durable before anything is written.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::file::{JOURNAL_DIRECTORY, OpenFile, Spare, list, path_of, remove_unfinished, sync_directory};
use super::files::Shared;
use super::scan::{Scan, ScannedFile, TornTail, Visit, scan};
use super::{Journal, JournalEnd, JournalOptions, JournalStart, LastStop, SECTOR};
use crate::storage::commit::{CommitSeq, JournalFileId, SECTOR_BYTES};
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;

/// What a journal was found to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovery {
    /// How many commits were visited.
    pub commits: u64,
    /// How many bytes they have, with their padding.
    pub bytes: u64,
    /// Where the journal ends.
    pub end: JournalEnd,
    /// The commit that was being written at the stop, if it left something; it is dropped.
    pub torn: Option<TornTail>,
    /// After [`LastStop::Unsynced`] only: how many later commits were dropped with the torn one.
    pub dropped: u64,
}

impl From<&Scan> for Recovery {
    fn from(scan: &Scan) -> Self {
        Self {
            commits: scan.visited.0,
            bytes: scan.visited.1,
            end: scan.end,
            torn: scan.torn.as_ref().map(|(_, torn)| torn.clone()),
            dropped: scan.dropped,
        }
    }
}

/// Reads the journal and changes nothing: what [`Journal::recover`] would find.
///
/// # Errors
/// As [`Journal::recover`].
pub fn check(
    disk: &dyn Disk,
    start: &JournalStart,
    last_stop: &LastStop,
    visit: &mut Visit<'_>,
) -> Result<Recovery, StorageError> {
    scan(disk, start, last_stop, visit).map(|scan| Recovery::from(&scan))
}

impl Journal {
    /// Begins the journal of a new data directory: one that has no manifest. The caller writes the manifest next,
    /// with the start that this gives, and only then the first commit.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if there are commits already: then it is the manifest that is missing.
    /// [`StorageError::Full`] or [`StorageError::Io`].
    pub fn create(disk: Arc<dyn Disk>, options: JournalOptions) -> Result<(Self, JournalStart), StorageError> {
        let directory = Path::new(JOURNAL_DIRECTORY);
        disk.create_dir(directory).map_err(StorageError::io(directory, "create"))?;
        disk.sync_dir(Path::new("")).map_err(StorageError::io(directory, "sync the directory of"))?;
        let start = JournalStart { file: JournalFileId(1), file_first_seq: CommitSeq(1), seq: CommitSeq(1) };
        for id in list(&*disk)? {
            // An interrupted first start leaves an empty first file, and no other one.
            let found =
                if id == start.file { scan(&*disk, &start, &LastStop::Unclean, &mut |_| Ok(()))?.visited.0 } else { 1 };
            if found > 0 {
                let what = "the file belongs to a journal, but there is no manifest that names it";
                return Err(StorageError::damaged(&path_of(id), 0, what));
            }
            disk.remove(&path_of(id)).map_err(StorageError::io(&path_of(id), "remove"))?;
        }
        let bytes = options.file_bytes_min.max(2 * SECTOR).next_multiple_of(SECTOR);
        let free_bytes = disk.free_bytes().map_err(StorageError::io(directory, "ask for the free space for"))?;
        let needed_bytes = bytes.saturating_add(options.free_bytes_min);
        if free_bytes < needed_bytes {
            return Err(StorageError::Full { needed_bytes, free_bytes });
        }
        let first = Arc::new(OpenFile::create(&*disk, start.file, bytes)?);
        let end = JournalEnd { seq: CommitSeq(0), file: start.file, position: SECTOR };
        let live = vec![(first.clone(), SECTOR, None)];
        let shared = Arc::new(Shared::new(disk, options, live, VecDeque::new(), Vec::new(), start.seq));
        let journal =
            Self { shared, current: first, end: SECTOR, next_seq: start.seq, last_end: end, unsynced: Vec::new() };
        Ok((journal, start))
    }

    /// Opens the journal of a directory whose manifest is durable ([`crate::storage::manifest::Manifest::open`]), and
    /// calls `visit` for each needed commit, in order. When this returns, all that was visited is durable, and what
    /// was torn can never come back.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] names the file, the position and what is wrong; nothing was changed then. What `visit`
    /// gives ends it in the same way. [`StorageError::UnknownFormat`] and [`StorageError::Io`].
    pub fn recover(
        disk: Arc<dyn Disk>,
        options: JournalOptions,
        start: &JournalStart,
        last_stop: &LastStop,
        visit: &mut Visit<'_>,
    ) -> Result<(Self, Recovery), StorageError> {
        let mut scan = scan(&*disk, start, last_stop, visit)?;
        let recovery = Recovery::from(&scan);
        mend(&*disk, &mut scan, last_stop)?;

        let current = scan.files.iter().rposition(|file| file.commits.is_some()).unwrap_or(0);
        let reserved = scan.files.split_off(current + 1).into_iter().map(|file| file.open).collect();
        let written = &scan.files[current];
        let (current, end, next_seq) = (written.open.clone(), written.end, scan.end.seq.next());
        let live = scan.files.into_iter().map(|file| (file.open, file.end, file.commits)).collect();
        let spares = spares(&*disk, &scan.below)?;
        let shared = Arc::new(Shared::new(disk, options, live, reserved, Vec::new(), next_seq));
        shared.keep_spares(spares, u64::MAX)?;
        let journal = Self { shared, current, end, next_seq, last_end: scan.end, unsynced: Vec::new() };
        Ok((journal, recovery))
    }
}

/// Makes what was found durable, and what was torn gone for ever.
fn mend(disk: &dyn Disk, scan: &mut Scan, last_stop: &LastStop) -> Result<(), StorageError> {
    remove_unfinished(disk)?;
    if let Some((index, torn)) = &scan.torn {
        let file = &scan.files[*index];
        // Without its first sector a unit is none: what it left behind it is never looked at again.
        let mut to_clear = if scan.dropped > 0 { file.open.header.bytes - torn.position } else { SECTOR };
        let zeros = vec![0; usize::try_from(to_clear.min(256 << 10)).expect("a small number")];
        let mut at = torn.position;
        while to_clear > 0 {
            let count = to_clear.min(zeros.len() as u64);
            let piece = &zeros[..usize::try_from(count).expect("at most the zeros there are")];
            file.open.file.write_all_at(piece, at).map_err(StorageError::io(&torn.path, "clear the torn end of"))?;
            (at, to_clear) = (at + count, to_clear - count);
        }
        file.open.file.sync_data().map_err(StorageError::io(&torn.path, "sync"))?;
        if scan.dropped > 0 {
            // From the end, so that a power cut leaves no hole in the row of files.
            for file in scan.files.drain(index + 1..).rev() {
                let path = file.open.path();
                disk.remove(&path).map_err(StorageError::io(&path, "remove"))?;
                sync_directory(disk)?;
            }
        }
    }
    // A file may be reserved here whose name is not durable: the sync of the directory failed, and the broker was
    // closed since.
    sync_directory(disk)?;
    if matches!(last_stop, LastStop::Clean(_)) {
        return Ok(());
    }
    // The sync of the last commit may have failed, and then its bytes are only in the operating system's memory,
    // which takes them for clean: only bytes that are written again are synced again.
    if let Some(place) = scan.last {
        let holds = |file: &&ScannedFile| file.open.header.id == place.file;
        let open = &scan.files.iter().find(holds).expect("the last commit is in a file").open;
        let mut unit = vec![0; (place.bytes as usize).next_multiple_of(SECTOR_BYTES)];
        let file = &open.file;
        file.read_exact_at(&mut unit, place.at).map_err(StorageError::io(&open.path(), "read"))?;
        file.write_all_at(&unit, place.at).map_err(StorageError::io(&open.path(), "write the last commit again to"))?;
    }
    for file in &scan.files {
        let path = file.open.path();
        file.open.file.sync_data().map_err(StorageError::io(&path, "sync"))?;
    }
    Ok(())
}

/// Opens the files that are no longer needed, as far as they are worth keeping.
fn spares(disk: &dyn Disk, ids: &[JournalFileId]) -> Result<Vec<Spare>, StorageError> {
    let mut spares = Vec::with_capacity(ids.len());
    for &id in ids {
        let path = path_of(id);
        let file = match disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(StorageError::io(&path, "open"))?,
        };
        let bytes = file.len().map_err(StorageError::io(&path, "read the length of"))?;
        if bytes < 2 * SECTOR || bytes % SECTOR != 0 {
            disk.remove(&path).map_err(StorageError::io(&path, "remove"))?;
            continue;
        }
        spares.push(Spare { id, bytes, file });
    }
    Ok(spares)
}
