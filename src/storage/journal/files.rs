//! Which files the journal has: live, reserved and spare; shared by committer, builder and readers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::file::{OpenFile, Spare, path_of};
use super::scan::{self, FileCommits, Visit};
use super::{JournalOptions, JournalStart, SECTOR};
use crate::storage::commit::{BodyPlace, CommitSeq, JournalFileId};
use crate::storage::disk::Disk;
use crate::storage::error::{StorageError, is_full};
use crate::types::Time;

/// A file of the journal that holds commits, or is about to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileInfo {
    /// Its number.
    pub id: JournalFileId,
    /// Where it is, relative to the data directory.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where its last commit ends.
    pub end: u64,
    /// Its commits; `None` if it has none.
    pub commits: Option<FileCommits>,
}

/// What the journal takes, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalUse {
    /// Commits, with their padding, in files that were not retired.
    pub commits: u64,
    /// The files that these are in.
    pub live: u64,
    /// Files that are reserved for commits to come.
    pub reserved: u64,
    /// Files kept to be recycled.
    pub spare: u64,
}

#[derive(Debug)]
pub(crate) struct Shared {
    disk: Arc<dyn Disk>,
    options: JournalOptions,
    /// The files that may be read, by number.
    readable: RwLock<BTreeMap<JournalFileId, Arc<OpenFile>>>,
    /// Held for moments only, never during input or output.
    state: Mutex<State>,
    /// Held while files are made, recycled or removed: one at a time, so that their numbers rise.
    making: Mutex<()>,
    /// Why the journal has stopped.
    stopped: OnceLock<Arc<str>>,
}

#[derive(Debug)]
struct State {
    /// Live files, by rising number; the last one is written.
    live: VecDeque<FileInfo>,
    /// Reserved files, by rising number, all above the live ones.
    reserved: VecDeque<Arc<OpenFile>>,
    spares: Vec<Spare>,
    next_file: JournalFileId,
    next_seq: CommitSeq,
}

fn info(open: &OpenFile, end: u64, commits: Option<FileCommits>) -> FileInfo {
    FileInfo { id: open.header.id, path: open.path(), bytes: open.header.bytes, end, commits }
}

impl Shared {
    /// `live` are the files up to the one that is written, `reserved` those behind it.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        options: JournalOptions,
        live: Vec<(Arc<OpenFile>, u64, Option<FileCommits>)>,
        reserved: VecDeque<Arc<OpenFile>>,
        spares: Vec<Spare>,
        next_seq: CommitSeq,
    ) -> Self {
        let last = reserved.back().or(live.last().map(|(open, ..)| open)).expect("a journal has a file");
        let next_file = last.header.id.next();
        let readable = live.iter().map(|(open, ..)| (open.header.id, open.clone())).collect();
        let live = live.iter().map(|(open, end, commits)| info(open, *end, *commits)).collect();
        Self {
            disk,
            options,
            readable: RwLock::new(readable),
            state: Mutex::new(State { live, reserved, spares, next_file, next_seq }),
            making: Mutex::new(()),
            stopped: OnceLock::new(),
        }
    }

    pub(crate) fn check_running(&self) -> Result<(), StorageError> {
        match self.stopped.get() {
            Some(why) => Err(StorageError::Stopped { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Nothing is written from now on.
    pub(crate) fn stop(&self, error: StorageError) -> StorageError {
        let _ = self.stopped.set(error.to_string().into());
        error
    }

    pub(crate) fn full(&self, unit_bytes: u64) -> StorageError {
        let needed_bytes = self.file_bytes(unit_bytes).saturating_add(self.options.free_bytes_min);
        StorageError::Full { needed_bytes, free_bytes: self.disk.free_bytes().unwrap_or(0) }
    }

    /// How long the next file is to be: as long as all live ones together, within the limits. So files are small
    /// while little is written, double while more and more is, and shrink again.
    fn file_bytes(&self, unit_bytes: u64) -> u64 {
        let live: u64 = self.state.lock().live.iter().map(|file| file.bytes).sum();
        let wanted = live.next_power_of_two().min(self.options.file_bytes_max).max(self.options.file_bytes_min);
        let needed = if unit_bytes == 0 { 0 } else { (unit_bytes + SECTOR).next_power_of_two() };
        wanted.max(needed).max(2 * SECTOR).next_multiple_of(SECTOR)
    }

    /// Counts a written commit.
    pub(crate) fn wrote(&self, seq: CommitSeq, time: Time, end: u64) {
        let mut state = self.state.lock();
        state.next_seq = seq.next();
        let file = state.live.back_mut().expect("the written file is live");
        file.end = end;
        FileCommits::extend(&mut file.commits, seq, time);
    }

    /// Makes sure that a reserved file can take a unit of so many bytes.
    pub(crate) fn ensure_reserved(&self, unit_bytes: u64) -> Result<(), StorageError> {
        let enough = || self.state.lock().reserved.iter().any(|file| file.header.bytes >= unit_bytes + SECTOR);
        if enough() {
            return Ok(());
        }
        // The builder may be about to finish one.
        let _making = self.making.lock();
        if enough() { Ok(()) } else { self.make(unit_bytes, self.file_bytes(unit_bytes), self.options.free_bytes_min) }
    }

    /// As [`Shared::ensure_reserved`], with a file that is no longer than it must be, whatever stays free.
    pub(crate) fn ensure_reserved_at_all(&self, unit_bytes: u64) -> Result<(), StorageError> {
        let enough = || self.state.lock().reserved.iter().any(|file| file.header.bytes >= unit_bytes + SECTOR);
        let _making = self.making.lock();
        if enough() { Ok(()) } else { self.make(unit_bytes, self.keeping_file_bytes(unit_bytes), 0) }
    }

    fn keeping_file_bytes(&self, unit_bytes: u64) -> u64 {
        (unit_bytes + SECTOR).next_power_of_two().max(self.options.file_bytes_min)
    }

    /// Makes or recycles a file and reserves it. The caller holds `making`.
    fn make(&self, unit_bytes: u64, bytes: u64, free_bytes_min: u64) -> Result<(), StorageError> {
        let id = self.state.lock().next_file;
        let recycled = self.recycle(bytes, id);
        let made = match recycled {
            Some(recycled) => recycled,
            None => match self.make_new(bytes, id, free_bytes_min) {
                // A shorter one will do, when there is no space for a long one.
                Err(error) if error.is_full() => match self.recycle(unit_bytes + SECTOR, id) {
                    Some(recycled) => recycled,
                    None => Err(error),
                },
                made => made,
            },
        }?;
        let mut state = self.state.lock();
        state.next_file = id.next();
        state.reserved.push_back(Arc::new(made));
        Ok(())
    }

    /// Recycles the shortest spare file that is long enough, if there is one.
    fn recycle(&self, bytes: u64, id: JournalFileId) -> Option<Result<OpenFile, StorageError>> {
        let spare = {
            let mut state = self.state.lock();
            let fits = state.spares.iter().enumerate().filter(|(_, spare)| spare.bytes >= bytes);
            let (index, _) = fits.min_by_key(|(_, spare)| (spare.bytes, spare.id))?;
            state.spares.swap_remove(index)
        };
        let recycled = OpenFile::recycle(&*self.disk, &spare, id);
        if recycled.is_err() {
            // What failed once is not tried again. It is under one of its two names.
            let _ = self.disk.remove(&path_of(spare.id));
            let _ = self.disk.remove(&path_of(id));
        }
        Some(recycled)
    }

    fn make_new(&self, bytes: u64, id: JournalFileId, free_bytes_min: u64) -> Result<OpenFile, StorageError> {
        let path = path_of(id);
        let free_bytes = self.disk.free_bytes().map_err(StorageError::io(&path, "ask for the free space for"))?;
        let needed_bytes = bytes.saturating_add(free_bytes_min);
        if free_bytes < needed_bytes {
            return Err(StorageError::Full { needed_bytes, free_bytes });
        }
        match OpenFile::create(&*self.disk, id, bytes) {
            Err(StorageError::Io { source, .. }) if is_full(&source) => {
                Err(StorageError::Full { needed_bytes, free_bytes })
            }
            made => made,
        }
    }

    /// Makes the first reserved file that is long enough the current one; [`Shared::ensure_reserved`] went before.
    pub(crate) fn take_reserved(&self, unit_bytes: u64) -> Arc<OpenFile> {
        let mut readable = self.readable.write();
        let mut state = self.state.lock();
        loop {
            let open = state.reserved.pop_front().expect("a file was reserved, and only the committer takes one");
            state.live.push_back(info(&open, SECTOR, None));
            readable.insert(open.header.id, open.clone());
            // A shorter one stays empty between the others.
            if open.header.bytes >= unit_bytes + SECTOR {
                return open;
            }
        }
    }
}

/// The builder's side of the journal: makes its files, tells what there is, retires what is not needed.
///
/// Clones are the same. Calls may block for as long as a file takes to be written, so they are not the committer's.
#[derive(Clone, Debug)]
pub struct JournalFiles(pub(crate) Arc<Shared>);

impl JournalFiles {
    /// Whether [`JournalFiles::reserve`] has something to do: no file is reserved, and a quarter of the current one
    /// is used.
    #[must_use]
    pub fn wants_reserve(&self) -> bool {
        let state = self.0.state.lock();
        let current = state.live.back().expect("a journal has a file");
        state.reserved.is_empty() && current.end - SECTOR >= (current.bytes - SECTOR) / 4
    }

    /// Reserves the next file, if it is time for that; tells whether it did. Until it returns, nothing depends on it.
    ///
    /// # Errors
    /// [`StorageError::Full`] when there is no space: not fatal, and worth another try later. [`StorageError::Io`] for
    /// other failures, which are not fatal either; [`StorageError::Stopped`] if the journal has stopped.
    pub fn reserve(&self) -> Result<bool, StorageError> {
        self.0.check_running()?;
        if !self.wants_reserve() {
            return Ok(false);
        }
        let _making = self.0.making.lock();
        // The committer may have helped itself meanwhile.
        if !self.wants_reserve() {
            return Ok(false);
        }
        self.0.make(0, self.0.file_bytes(0), self.0.options.free_bytes_min).map(|()| true)
    }

    /// How long a file is that [`Journal::room_for_keeping`](super::Journal::room_for_keeping) makes for a commit of so
    /// many bytes.
    #[must_use]
    pub fn keeping_file_bytes(&self, unit_bytes: u64) -> u64 {
        self.0.keeping_file_bytes(unit_bytes)
    }

    /// The live files, by rising number. Commits go to the last one.
    #[must_use]
    pub fn live(&self) -> Vec<FileInfo> {
        self.0.state.lock().live.iter().cloned().collect()
    }

    /// What the journal takes.
    #[must_use]
    pub fn bytes(&self) -> JournalUse {
        let state = self.0.state.lock();
        JournalUse {
            commits: state.live.iter().map(|file| file.end - SECTOR).sum(),
            live: state.live.iter().map(|file| file.bytes).sum(),
            reserved: state.reserved.iter().map(|file| file.header.bytes).sum(),
            spare: state.spares.iter().map(|file| file.bytes).sum(),
        }
    }

    /// Why the journal has stopped; `None` while it runs.
    #[must_use]
    pub fn stopped(&self) -> Option<Arc<str>> {
        self.0.stopped.get().cloned()
    }

    /// The start of the journal for a manifest that needs commits from this one on; `None` if the commit was retired
    /// or is beyond the next one.
    #[must_use]
    pub fn start_at(&self, seq: CommitSeq) -> Option<JournalStart> {
        let state = self.0.state.lock();
        let start = |file: &FileInfo, first| JournalStart { file: file.id, file_first_seq: first, seq };
        if seq == state.next_seq {
            let current = state.live.back()?;
            return Some(start(current, current.commits.map_or(seq, |commits| commits.first)));
        }
        let within = |commits: &FileCommits| commits.first <= seq && seq <= commits.last;
        state.live.iter().find_map(|file| file.commits.filter(within).map(|commits| start(file, commits.first)))
    }

    /// Makes all written commits durable that were not: needed before a manifest swap when commits are not synced one
    /// by one.
    ///
    /// # Errors
    /// [`StorageError::Io`], which stops the journal; [`StorageError::Stopped`].
    pub fn sync(&self) -> Result<(), StorageError> {
        self.0.check_running()?;
        let files: Vec<_> = self.0.readable.read().values().cloned().collect();
        for open in files {
            let synced = open.file.sync_data();
            synced.map_err(|source| self.0.stop(StorageError::Io { path: open.path(), doing: "sync", source }))?;
        }
        Ok(())
    }

    /// Visits the commits of a live file, in order; those that are written while it goes on may be missing.
    ///
    /// # Errors
    /// [`StorageError::Gone`] if the file was retired, [`StorageError::Damaged`] or [`StorageError::Io`], and what
    /// `visit` gives.
    pub fn visit(&self, file: JournalFileId, visit: &mut Visit<'_>) -> Result<(), StorageError> {
        let end = self.0.state.lock().live.iter().find(|info| info.id == file).map(|info| info.end);
        let open = self.0.readable.read().get(&file).cloned();
        let (Some(end), Some(open)) = (end, open) else { return Err(StorageError::Gone { file }) };
        scan::visit_file(&open, end, visit)
    }

    /// Removes the files that are kept to be recycled.
    ///
    /// # Errors
    /// [`StorageError::Io`] if a file could not be removed. It is given up all the same, and the next start removes it.
    pub fn remove_spares(&self) -> Result<(), StorageError> {
        let _making = self.0.making.lock();
        self.0.keep_spares(Vec::new(), 0)
    }

    /// Gives up the files below the start that a DURABLE manifest names: some are kept to be recycled, the others are
    /// removed. Reading from them gives [`StorageError::Gone`] from now on.
    ///
    /// # Errors
    /// [`StorageError::Io`] if a file could not be removed. It is given up all the same, and the next start removes it.
    pub fn retire(&self, start: &JournalStart) -> Result<(), StorageError> {
        let _making = self.0.making.lock();
        let mut retired = Vec::new();
        {
            let mut readable = self.0.readable.write();
            let mut state = self.0.state.lock();
            while state.live.len() > 1 && state.live[0].id < start.file {
                let info = state.live.pop_front().expect("there are at least two");
                let open = readable.remove(&info.id).expect("live files are readable");
                open.gone.store(true, Ordering::SeqCst);
                retired.push(Spare { id: info.id, bytes: info.bytes, file: open.file.clone() });
            }
        }
        if retired.is_empty() {
            return Ok(());
        }
        let bytes_max = retired.iter().map(|spare| spare.bytes).sum();
        self.0.keep_spares(retired, bytes_max)
    }
}

impl Shared {
    /// Keeps the longest files as spares, within the limits, and removes the others. The caller holds `making`, or is
    /// alone.
    pub(crate) fn keep_spares(&self, more: Vec<Spare>, bytes_max: u64) -> Result<(), StorageError> {
        let surplus: Vec<Spare> = {
            let mut state = self.state.lock();
            state.spares.extend(more);
            state.spares.sort_unstable_by_key(|spare| (std::cmp::Reverse(spare.bytes), spare.id));
            let mut bytes = 0;
            let keep = state.spares.iter().take(self.options.spare_files_max).take_while(|spare| {
                bytes += spare.bytes;
                bytes <= bytes_max && spare.bytes <= self.options.file_bytes_max
            });
            let keep = keep.count();
            state.spares.split_off(keep)
        };
        let mut result = Ok(());
        for spare in surplus {
            let path = path_of(spare.id);
            match self.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    result = result.and(Err(StorageError::io(&path, "remove")(error)));
                }
                _ => {}
            }
        }
        result
    }
}

/// Reads batches from the journal, from any thread. Clones are the same.
#[derive(Clone, Debug)]
pub struct JournalReader(pub(crate) Arc<Shared>);

impl JournalReader {
    /// Reads a batch's body into a buffer, which then holds just that.
    ///
    /// # Errors
    /// [`StorageError::Gone`] if the file was retired: the batch is in a volume now. [`StorageError::Damaged`] if the
    /// bytes are not those that were written, [`StorageError::Io`] if they cannot be read. The buffer's content has no
    /// meaning then.
    pub fn read(&self, place: &BodyPlace, body: &mut Vec<u8>) -> Result<(), StorageError> {
        let gone = StorageError::Gone { file: place.file };
        let Some(open) = self.0.readable.read().get(&place.file).cloned() else { return Err(gone) };
        body.resize(place.bytes as usize, 0);
        let read = open.file.read_exact_at(body, place.at);
        // Asked after reading: a file is marked before its bytes change.
        if open.gone.load(Ordering::SeqCst) {
            return Err(gone);
        }
        read.map_err(StorageError::io(&open.path(), "read"))?;
        if crc32fast::hash(body) != place.crc {
            return Err(StorageError::damaged(&open.path(), place.at, "the checksum of a batch is wrong"));
        }
        Ok(())
    }
}
