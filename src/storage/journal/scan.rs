//! Reading the journal forward, and telling a torn tail from damage. Nothing here writes.
//!
//! Commit n + 1 is written only after n is durable. So a bad commit with anything of this journal behind it was
//! durable once, and is damage; a bad last one was never acknowledged. Whether bytes are *of this journal* is told by
//! the salt of the file, which neither an older use of the file nor a client's payload can contain.

use std::path::PathBuf;
use std::sync::Arc;

use super::file::{OpenFile, list, path_of};
use super::{JournalEnd, JournalStart, LastStop};
use crate::storage::commit::{Commit, CommitSeq, JournalFileId, SECTOR_BYTES, UnitHeader, UnitPlace, is_whole};
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use crate::types::Time;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// How much is read at once, in bytes.
const WINDOW_BYTES: u64 = 1 << 20;

/// What a scan calls for each needed commit, in order.
pub type Visit<'a> = dyn FnMut(&Commit<'_>) -> Result<(), StorageError> + 'a;

/// A commit that was being written when the broker stopped, and was never acknowledged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TornTail {
    /// The journal file.
    pub path: PathBuf,
    /// Where the commit begins, in bytes from the start of the file.
    pub position: u64,
    /// The number it would have had.
    pub seq: CommitSeq,
    /// What is wrong with it.
    pub what: String,
}

/// One file, and what was found in it.
#[derive(Debug)]
pub(crate) struct ScannedFile {
    pub(crate) open: Arc<OpenFile>,
    /// Its commits; `None` if it has none.
    pub(crate) commits: Option<FileCommits>,
    /// Where the next commit would begin.
    pub(crate) end: u64,
}

/// What a journal file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileCommits {
    /// The first commit.
    pub first: CommitSeq,
    /// When it was made.
    pub first_time: Time,
    /// The last commit.
    pub last: CommitSeq,
    /// When it was made.
    pub last_time: Time,
}

impl FileCommits {
    /// Counts one more commit.
    pub(crate) fn extend(commits: &mut Option<Self>, seq: CommitSeq, time: Time) {
        let commits = commits.get_or_insert(Self { first: seq, first_time: time, last: seq, last_time: time });
        (commits.last, commits.last_time) = (seq, time);
    }
}

/// What the journal holds.
#[derive(Debug)]
pub(crate) struct Scan {
    /// From the first needed file on, all there are.
    pub(crate) files: Vec<ScannedFile>,
    pub(crate) end: JournalEnd,
    /// The last commit's unit.
    pub(crate) last: Option<UnitPlace>,
    /// The place where the journal is torn, as an index of `files` and a position; nothing valid is behind it,
    /// except what was dropped.
    pub(crate) torn: Option<(usize, TornTail)>,
    /// After an unsynced stop: commits behind the torn one, which are dropped with it.
    pub(crate) dropped: u64,
    /// How many commits were visited, and their bytes.
    pub(crate) visited: (u64, u64),
    /// Files below the first needed one.
    pub(crate) below: Vec<JournalFileId>,
}

/// Reads the journal from `start` on and calls `visit` for each needed commit.
pub(crate) fn scan(
    disk: &dyn Disk,
    start: &JournalStart,
    last_stop: &LastStop,
    visit: &mut Visit<'_>,
) -> Result<Scan, StorageError> {
    let (below, files) = open_files(disk, start)?;
    let scanner = Scanner {
        start,
        last_stop,
        next: start.file_first_seq,
        end: JournalEnd { seq: CommitSeq(start.file_first_seq.0 - 1), file: start.file, position: SECTOR },
        last: None,
        broken: None,
        dropped: 0,
        visited: (0, 0),
        files,
    };
    scanner.run(below, visit)
}

/// The numbers of the files that are no longer needed, and all others, opened.
fn open_files(disk: &dyn Disk, start: &JournalStart) -> Result<(Vec<JournalFileId>, Vec<ScannedFile>), StorageError> {
    let mut ids = list(disk)?;
    let needed = ids.split_off(ids.partition_point(|&id| id < start.file));
    let missing = |id, what: &str| Err(StorageError::damaged(&path_of(id), 0, format!("the file is missing: {what}")));
    if needed.first() != Some(&start.file) {
        return missing(start.file, "the manifest names it");
    }
    let mut files: Vec<ScannedFile> = Vec::with_capacity(needed.len());
    for id in needed {
        let expected = files.last().map_or(start.file, |file| file.open.header.id.next());
        if id != expected {
            return missing(expected, "a later one is there");
        }
        let open = Arc::new(OpenFile::open(disk, id)?);
        files.push(ScannedFile { open, commits: None, end: SECTOR });
    }
    Ok((ids, files))
}

/// A place at which the journal may end.
#[derive(Debug)]
struct Break {
    file: usize,
    position: u64,
    /// What is wrong there; `None` if there is nothing, so that the journal may go on in a later file.
    what: Option<String>,
}

struct Scanner<'a> {
    start: &'a JournalStart,
    last_stop: &'a LastStop,
    /// The number of the commit that is to come.
    next: CommitSeq,
    end: JournalEnd,
    last: Option<UnitPlace>,
    broken: Option<Break>,
    dropped: u64,
    visited: (u64, u64),
    files: Vec<ScannedFile>,
}

impl Scanner<'_> {
    fn run(mut self, below: Vec<JournalFileId>, visit: &mut Visit<'_>) -> Result<Scan, StorageError> {
        for index in 0..self.files.len() {
            let mut window = Window::new(self.files[index].open.clone());
            let mut at = SECTOR;
            if self.broken.as_ref().is_none_or(|broken| broken.what.is_none()) {
                at = self.follow(index, &mut window, visit)?;
            }
            // A cleanly closed journal is known to its last byte: what matters is that it reaches its end.
            if !matches!(self.last_stop, LastStop::Clean(_)) {
                self.look_behind(index, &mut window, at)?;
            }
        }
        let path = path_of(self.end.file);
        if self.next < self.start.seq {
            let what = format!("commit {} is missing, but the manifest begins at {}", self.next, self.start.seq);
            return Err(StorageError::damaged(&path, self.end.position, what));
        }
        if let LastStop::Clean(end) = self.last_stop
            && (self.expected_end(end) != self.end || self.broken.as_ref().is_some_and(|broken| broken.what.is_some()))
        {
            let bad = self.broken.filter(|broken| broken.what.is_some());
            let (path, position) = bad
                .as_ref()
                .map_or((path, self.end.position), |broken| (self.files[broken.file].open.path(), broken.position));
            let what = format!(
                "commit {}: {}; but the broker was closed cleanly after commit {}, which ends at {}:{}",
                self.next,
                bad.and_then(|broken| broken.what).unwrap_or_else(|| "it is not there".into()),
                end.seq,
                path_of(end.file).display(),
                end.position
            );
            return Err(StorageError::damaged(&path, position, what));
        }
        let torn = self.broken.and_then(|broken| {
            let tail = TornTail {
                path: self.files[broken.file].open.path(),
                position: broken.position,
                seq: self.next,
                what: broken.what?,
            };
            Some((broken.file, tail))
        });
        let Self { files, end, last, dropped, visited, .. } = self;
        Ok(Scan { files, end, last, torn, dropped, visited, below })
    }

    /// Where a journal that was closed there ends now: the file of the last commit may have been retired since.
    fn expected_end(&self, closed: &JournalEnd) -> JournalEnd {
        if closed.file < self.start.file {
            JournalEnd { seq: closed.seq, file: self.start.file, position: SECTOR }
        } else {
            *closed
        }
    }

    /// Visits the commits of a file as long as one follows the other; tells where to look for others.
    fn follow(&mut self, index: usize, window: &mut Window, visit: &mut Visit<'_>) -> Result<u64, StorageError> {
        let mut at = SECTOR;
        loop {
            let (unit, place) = match window.look(at)? {
                Found::Unit { unit, seq, place } if seq == self.next => (unit, place),
                Found::Unit { seq, .. } => {
                    let what = Some(format!("commit {seq} is in its place"));
                    self.broken.get_or_insert(Break { file: index, position: at, what });
                    return Ok(at);
                }
                Found::Bad(what) => {
                    self.broken = Some(Break { file: index, position: at, what: Some(what) });
                    return Ok(at + SECTOR);
                }
                Found::Nothing => {
                    self.broken.get_or_insert(Break { file: index, position: at, what: None });
                    return Ok(at + SECTOR);
                }
            };
            self.broken = None;
            let commit =
                Commit::parse(unit, place).map_err(|error| StorageError::damaged(&path_of(place.file), at, error))?;
            if commit.seq >= self.start.seq {
                visit(&commit)?;
                self.visited = (self.visited.0 + 1, self.visited.1 + u64::from(place.bytes));
            }
            at += u64::from(place.bytes);
            let file = &mut self.files[index];
            file.end = at;
            FileCommits::extend(&mut file.commits, commit.seq, commit.time);
            self.end = JournalEnd { seq: commit.seq, file: place.file, position: at };
            self.last = Some(place);
            self.next = commit.seq.next();
        }
    }

    /// Looks sector by sector for anything of this journal behind the place where it ends or seems to end.
    fn look_behind(&mut self, index: usize, window: &mut Window, from: u64) -> Result<(), StorageError> {
        let mut at = from;
        while at + SECTOR <= window.open.header.bytes {
            if let Some(header) = window.header_at(at)? {
                let broken = self.broken.get_or_insert(Break { file: index, position: from, what: None });
                if broken.what.is_none() && broken.file < index && at > SECTOR {
                    // The missing commit had its place in this file.
                    *broken = Break { file: index, position: SECTOR, what: None };
                }
                let why = broken.what.get_or_insert_with(|| "it is not there".into());
                if *self.last_stop != LastStop::Unsynced {
                    let what = format!(
                        "commit {}: {why}; but commit {} follows at {}:{at}",
                        self.next,
                        header.seq,
                        path_of(window.open.header.id).display()
                    );
                    return Err(StorageError::damaged(&self.files[broken.file].open.path(), broken.position, what));
                }
                self.dropped += 1;
            }
            at += SECTOR;
        }
        Ok(())
    }
}

/// What stands where a commit may begin.
enum Found<'a> {
    /// Nothing of this journal.
    Nothing,
    /// A commit of this file that is not whole.
    Bad(String),
    /// A whole commit, without its padding.
    Unit { unit: &'a [u8], seq: CommitSeq, place: UnitPlace },
}

/// Reads a file through one buffer.
struct Window {
    open: Arc<OpenFile>,
    buffer: Vec<u8>,
    at: u64,
}

impl Window {
    fn new(open: Arc<OpenFile>) -> Self {
        Self { open, buffer: Vec::new(), at: 0 }
    }

    /// Bytes that lie within the file.
    fn bytes(&mut self, at: u64, count: u64) -> Result<&[u8], StorageError> {
        let end = self.at + self.buffer.len() as u64;
        if at < self.at || at + count > end {
            let wanted = count.max(WINDOW_BYTES).min(self.open.header.bytes - at);
            self.buffer.resize(usize::try_from(wanted).expect("a file fits into memory"), 0);
            self.at = at;
            let read = self.open.file.read_exact_at(&mut self.buffer, at);
            read.map_err(StorageError::io(&self.open.path(), "read"))?;
        }
        let from = usize::try_from(at - self.at).expect("within the buffer");
        Ok(&self.buffer[from..from + usize::try_from(count).expect("within the buffer")])
    }

    fn header_at(&mut self, at: u64) -> Result<Option<UnitHeader>, StorageError> {
        let (id, salt) = (self.open.header.id, self.open.header.salt);
        Ok(UnitHeader::of_file(self.bytes(at, SECTOR)?, id, salt))
    }

    fn look(&mut self, at: u64) -> Result<Found<'_>, StorageError> {
        let (file, left) = (self.open.header.id, self.open.header.bytes - at);
        if left < SECTOR {
            return Ok(Found::Nothing);
        }
        let Some(header) = self.header_at(at)? else { return Ok(Found::Nothing) };
        let Some(padded) = header.padded_bytes().filter(|&padded| u64::from(padded) <= left) else {
            return Ok(Found::Bad(format!("its length of {} bytes is impossible", header.bytes)));
        };
        let unit = self.bytes(at, u64::from(header.bytes))?;
        if !is_whole(unit) {
            return Ok(Found::Bad("its checksum is wrong".into()));
        }
        Ok(Found::Unit { unit, seq: header.seq, place: UnitPlace { file, at, bytes: padded } })
    }
}

/// Visits all commits of one file that is known to be whole, up to a place in it.
pub(crate) fn visit_file(open: &Arc<OpenFile>, end: u64, visit: &mut Visit<'_>) -> Result<(), StorageError> {
    let mut window = Window::new(open.clone());
    let mut at = SECTOR;
    while at < end {
        let damaged = |what: String| StorageError::damaged(&open.path(), at, what);
        let (unit, place) = match window.look(at)? {
            Found::Unit { unit, place, .. } => (unit, place),
            Found::Bad(what) => return Err(damaged(what)),
            Found::Nothing => return Err(damaged("a commit is not there any more".into())),
        };
        visit(&Commit::parse(unit, place).map_err(|error| damaged(error.to_string()))?)?;
        at += u64::from(place.bytes);
    }
    Ok(())
}
