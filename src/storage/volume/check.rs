//! Everything that can be verified of a volume.

use std::sync::Arc;

use crate::protocol::Batch;
use crate::storage::block_store::{BlockReader, BlockStore};
use crate::storage::disk::Disk;
use crate::types::{Offset, Time};

use super::block::read_block;
use super::directory::{BlockEntry, Directory, ENTRIES_PER_PAGE};
use super::{Finding, VolumeError, VolumeId, VolumeInfo, place};

/// A block store is closed and opened again after so many bytes, so that looking at all of a volume does not bring
/// all of it into memory.
const HELD_BYTES_MAX: u64 = 16 << 20;

/// How deep to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Depth {
    /// All checksums, the order, the headers of the bodies, and the chain of `prev`.
    Blocks,
    /// Every record as well.
    Records,
}

/// Verifies a volume: each page of its directory, and each block with all its records.
///
/// Nothing found means that it is exactly what was written. A block store may write while it is opened (sled clears
/// what is behind its log), so nobody else may have the data directory.
///
/// # Errors
/// When the file system says no: then the volume could not be verified.
pub fn check_volume(disk: &dyn Disk, store: &dyn BlockStore, id: VolumeId) -> Result<Vec<Finding>, VolumeError> {
    verify(disk, store, id, Depth::Records)
}

pub(super) fn verify(
    disk: &dyn Disk,
    store: &dyn BlockStore,
    id: VolumeId,
    depth: Depth,
) -> Result<Vec<Finding>, VolumeError> {
    let directory = match Directory::open(disk, id) {
        Ok(directory) => directory,
        Err(error) => return Ok(vec![error.finding(id)?]),
    };
    let mut check = Check { id, directory: &directory, findings: Vec::new(), found: Totals::default(), before: None };
    let mut blocks = Some(match store.open(&id.blocks_path()) {
        Ok(blocks) => blocks,
        Err(error) => return Ok(vec![VolumeError::from(error).finding(id)?]),
    });
    let (mut entries, _) = directory.entries(disk)?;
    let (mut number, mut held) = (0, 0);
    while number < entries.len() {
        let entry = match entries.entry(number) {
            Ok(entry) => entry,
            Err(error) => {
                check.findings.push(error.finding(id)?);
                check.before = None;
                number = (number / ENTRIES_PER_PAGE + 1) * ENTRIES_PER_PAGE;
                continue;
            }
        };
        number += 1;
        check.entry(&entry);
        held += u64::from(entry.stored_bytes);
        if held > HELD_BYTES_MAX && blocks.as_ref().is_some_and(|blocks| blocks.held_bytes_max() > 0) {
            // Closed first: a database is open only once.
            drop(blocks.take());
            held = 0;
        }
        let blocks: &Arc<dyn BlockReader> = match &mut blocks {
            Some(blocks) => blocks,
            closed => closed.insert(store.open(&id.blocks_path())?),
        };
        match read_block(id, &**blocks, &entry) {
            Ok(body) => check.body(&entry, &body, depth),
            Err(error) => {
                let finding = error.finding(id)?;
                check.findings.push(Finding { position: place(entry.room, entry.first), ..finding });
            }
        }
    }
    check.totals();
    Ok(check.findings)
}

#[derive(Default)]
struct Totals {
    rooms: u64,
    blocks: u64,
    records: u64,
    body_bytes: u64,
    stored_bytes: u64,
    times: Option<(Time, Time)>,
}

struct Check<'a> {
    id: VolumeId,
    directory: &'a Directory,
    findings: Vec<Finding>,
    found: Totals,
    before: Option<BlockEntry>,
}

impl Check<'_> {
    fn entry(&mut self, entry: &BlockEntry) {
        let sane = entry.prev < entry.first
            && entry.first <= entry.last
            && entry.last <= Offset::MAX
            && entry.records > 0
            && u64::from(entry.records) - 1 <= entry.last.0 - entry.first.0
            && entry.first_time <= entry.last_time;
        if !sane {
            self.found_in_directory(entry, "the entry is impossible");
        }
        if !self.directory.may_hold(entry.room) {
            self.found_in_directory(entry, "the filter does not know the room");
        }
        let same_room = self.before.is_some_and(|before| before.room == entry.room);
        if let Some(before) = self.before {
            if (before.room, before.first) >= (entry.room, entry.first) {
                self.found_in_directory(entry, "the entry is not in order");
            } else if same_room && before.last_time > entry.first_time {
                self.found_in_directory(entry, "time goes back");
            } else if same_room && before.last != entry.prev {
                let what = format!("it follows {}, but the block before ends with {}", entry.prev, before.last);
                self.found_in_directory(entry, &what);
            }
        }
        let found = &mut self.found;
        found.rooms += u64::from(!same_room);
        found.blocks += 1;
        found.records += u64::from(entry.records);
        found.body_bytes += u64::from(entry.body_bytes);
        found.stored_bytes += u64::from(entry.stored_bytes);
        let (first, last) = found.times.unwrap_or((entry.first_time, entry.last_time));
        found.times = Some((first.min(entry.first_time), last.max(entry.last_time)));
        self.before = Some(*entry);
    }

    fn body(&mut self, entry: &BlockEntry, body: &[u8], depth: Depth) {
        let what = match Batch::parse(body) {
            Err(error) => error.to_string(),
            Ok(batch) => {
                let header = &batch.header;
                let found = (header.first, header.last(), header.count, header.time);
                if found != (entry.first, entry.last, entry.records, entry.first_time) {
                    "the body is not the one that the directory describes".to_owned()
                } else if depth == Depth::Blocks {
                    return;
                } else if let Err(error) = batch.check() {
                    error.to_string()
                } else if batch.runs().last().and_then(Result::ok).map(|run| run.time) != Some(entry.last_time) {
                    "the last record's time is not the directory's".to_owned()
                } else {
                    return;
                }
            }
        };
        let (file, position) = (self.id.blocks_path(), place(entry.room, entry.first));
        self.findings.push(Finding { file, position, what });
    }

    fn totals(&mut self) {
        let (VolumeInfo { id, commit_first, commit_last, .. }, found) = (*self.directory.info(), &self.found);
        let (first_time, last_time) = found.times.unwrap_or_default();
        let counted = VolumeInfo {
            id,
            commit_first,
            commit_last,
            rooms: found.rooms,
            blocks: found.blocks,
            records: found.records,
            body_bytes: found.body_bytes,
            stored_bytes: found.stored_bytes,
            first_time,
            last_time,
        };
        // A page that could not be read is told already, and its entries are missing from the count.
        if self.findings.is_empty() && counted != *self.directory.info() {
            let (file, position) = (self.directory.path().to_owned(), "0".to_owned());
            let what = "the totals of the header are not those of the entries".to_owned();
            self.findings.push(Finding { file, position, what });
        }
    }

    fn found_in_directory(&mut self, entry: &BlockEntry, what: &str) {
        let (file, position) = (self.directory.path().to_owned(), place(entry.room, entry.first));
        self.findings.push(Finding { file, position, what: what.to_owned() });
    }
}
