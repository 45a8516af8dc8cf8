//! Tests of the journal on disks that fail: what is common to them, and its ordinary life.

mod damage;
mod reading;
mod space;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::storage::commit::{BodyPlace, Entry, UnitPlace};
use crate::storage::disk::{Disk, DiskFile, Fault, FaultyDisk, MemoryDisk, RealDisk};
use crate::types::{Offset, RoomName, Time};

/// A journal on a disk that was closed cleanly after so many commits, with a reserved and a spare file.
fn closed(commits: u64) -> (FaultyDisk, JournalStart, JournalEnd) {
    let medium = FaultyDisk::new(1);
    let (mut journal, _) = Journal::create(disk(&medium), small()).expect("a new journal");
    for _ in 0..commits {
        append(&mut journal, 700).expect("the disk is fine");
        journal.files().reserve().expect("the disk is fine");
    }
    let start = journal.files().start_at(CommitSeq(8)).expect("it is there");
    journal.files().retire(&start).expect("the disk is fine");
    assert!(journal.files().bytes().reserved > 0 && journal.files().bytes().spare > 0);
    (medium, start, journal.end())
}

/// What a damaged journal says, or what it is found to hold all the same.
fn outcome(medium: &FaultyDisk, start: &JournalStart, stop: LastStop) -> Result<(Recovery, Vec<u64>), String> {
    // A copy: a journal that is opened may change.
    match recover(&medium.after_kill(0), start, stop) {
        Ok((_, recovery, seen)) => Ok((recovery, seen)),
        Err(error @ (StorageError::Damaged { .. } | StorageError::UnknownFormat { .. })) => Err(error.to_string()),
        Err(other) => panic!("damage is called damage, not {other}"),
    }
}

/// Files of two sectors and more, so that a few commits fill one.
fn small() -> JournalOptions {
    JournalOptions { file_bytes_min: 4 << 10, file_bytes_max: 8 << 10, ..JournalOptions::default() }
}

fn disk(disk: &FaultyDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// A commit whose content is told by its number.
fn commit(number: u64, bytes: usize) -> CommitBuilder {
    let mut commit = CommitBuilder::new();
    commit.begin(Time(number));
    commit.room(number, &RoomName::new(&format!("room {number}")).expect("a good name"));
    commit.batch(number, Offset(number), &vec![number as u8; bytes]);
    commit
}

fn append(journal: &mut Journal, bytes: usize) -> Result<UnitPlace, StorageError> {
    let place = journal.write(&mut commit(journal.next_seq().0, bytes))?;
    journal.sync()?;
    Ok(place)
}

/// The numbers of the commits that a journal holds, each checked to be the one that was written.
fn recover(
    on: &FaultyDisk,
    start: &JournalStart,
    stop: LastStop,
) -> Result<(Journal, Recovery, Vec<u64>), StorageError> {
    let mut seen = Vec::new();
    let (journal, recovery) = Journal::recover(disk(on), small(), start, &stop, &mut |commit| {
        let number = commit.seq.0;
        assert_eq!(commit.time, Time(number));
        let entries: Vec<_> = commit.entries().collect();
        assert!(matches!(entries[0], Entry::Room { room, .. } if room == number));
        let Entry::Batch { room, prev, body, .. } = entries[1] else { panic!("a batch") };
        assert_eq!((room, prev), (number, Offset(number)));
        assert!(body.iter().all(|&byte| byte == number as u8));
        seen.push(number);
        Ok(())
    })?;
    Ok((journal, recovery, seen))
}

#[test]
fn what_was_synced_is_there_after_a_power_cut() {
    let medium = FaultyDisk::new(1);
    let (mut journal, start) = Journal::create(disk(&medium), small()).expect("a new journal");
    for _ in 0..30 {
        append(&mut journal, 700).expect("the disk is fine");
    }
    assert!(journal.files().live().len() > 3);
    let (mut journal, recovery, seen) =
        recover(&medium.reopen(7), &start, LastStop::Unclean).expect("nothing is wrong");
    assert_eq!(seen, (1..=30).collect::<Vec<_>>());
    assert_eq!((recovery.commits, recovery.torn), (30, None));
    append(&mut journal, 10).expect("the journal goes on");
    assert_eq!(journal.end().seq, CommitSeq(31));
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_reading_goes_on() {
    let medium = FaultyDisk::new(1);
    let (mut journal, _) = Journal::create(disk(&medium), small()).expect("a new journal");
    let mut first = CommitBuilder::new();
    let span = first.batch(1, Offset(1), b"first");
    let place = journal.write(&mut first).expect("the disk is fine").body(span);
    journal.sync().expect("the disk is fine");
    journal.write(&mut commit(2, 10)).expect("the disk is fine");
    medium.fail_at(medium.operations() + 1, Fault::Eio);
    assert!(matches!(journal.sync(), Err(StorageError::Io { doing: "sync", .. })));
    let operations = medium.operations();
    let stopped = |result: Result<(), StorageError>| match result {
        Err(StorageError::Stopped { why }) => assert!(why.contains("cannot sync"), "{why}"),
        other => panic!("it goes on: {other:?}"),
    };
    stopped(journal.sync());
    stopped(journal.write(&mut commit(3, 10)).map(drop));
    stopped(journal.room_for(512).map(drop));
    stopped(journal.rotate().map(drop));
    stopped(journal.files().reserve().map(drop));
    assert_eq!(medium.operations(), operations, "nothing was tried on the disk");
    let mut body = Vec::new();
    journal.reader().read(&place, &mut body).expect("what was committed stays readable");
    assert_eq!(body, b"first");
}

#[test]
fn the_same_commit_can_be_written_again() {
    let medium = FaultyDisk::new(1);
    let (mut journal, start) = Journal::create(disk(&medium), small()).expect("a new journal");
    let mut again = commit(1, 10);
    let first = journal.write(&mut again).expect("the disk is fine");
    let second = journal.write(&mut again).expect("the disk is fine");
    assert_eq!((second.at, second.bytes), (first.at + 512, first.bytes));
    let mut rooms = Vec::new();
    let mut visit = |commit: &crate::storage::commit::Commit<'_>| {
        rooms.push((commit.seq.0, commit.entries().count()));
        Ok(())
    };
    check(&medium, &start, &LastStop::Clean(journal.end()), &mut visit).expect("whole");
    assert_eq!(rooms, [(1, 2), (2, 2)]);
}

#[test]
fn one_sync_makes_unsynced_commits_of_many_files_durable() {
    let medium = FaultyDisk::new(1);
    let (mut journal, start) = Journal::create(disk(&medium), small()).expect("a new journal");
    for number in 1..=20 {
        journal.write(&mut commit(number, 700)).expect("the disk is fine");
    }
    journal.sync().expect("the disk is fine");
    assert!(journal.files().live().len() > 3);
    for seed in 0..20 {
        let (.., seen) = recover(&medium.reopen(seed), &start, LastStop::Clean(journal.end())).expect("whole");
        assert_eq!(seen.len(), 20);
    }
}

#[test]
fn the_start_of_a_manifest_is_the_file_that_holds_the_commit() {
    let (medium, start, end) = closed(15);
    let (mut journal, ..) = recover(&medium, &start, LastStop::Clean(end)).expect("whole");
    let files = journal.files();
    assert_eq!(files.start_at(CommitSeq(1)), None, "it was retired");
    assert_eq!(files.start_at(CommitSeq(17)), None, "it is beyond the next one");
    let next = files.start_at(CommitSeq(16)).expect("the next one");
    assert_eq!((next.file, next.seq), (end.file, CommitSeq(16)));
    assert!(journal.rotate().expect("there is space"));
    let next = files.start_at(CommitSeq(16)).expect("the next one");
    assert_eq!((next.file, next.file_first_seq), (end.file.next(), CommitSeq(16)));
    files.retire(&next).expect("the disk is fine");
    // Closed cleanly with the last commit in a file that is retired.
    let closed = journal.end();
    assert_eq!(closed.file, end.file);
    let (mut journal, _, seen) = recover(&medium, &next, LastStop::Clean(closed)).expect("whole");
    assert_eq!((seen, journal.next_seq()), (vec![], CommitSeq(16)));
    append(&mut journal, 10).expect("the disk is fine");
}

#[test]
fn a_journal_without_a_manifest_is_not_overwritten() {
    let medium = FaultyDisk::new(1);
    let (mut journal, _) = Journal::create(disk(&medium), small()).expect("a new journal");
    Journal::create(disk(&medium), small()).expect("an interrupted first start");
    let (again, _) = Journal::create(disk(&medium), small()).expect("an interrupted first start");
    drop(std::mem::replace(&mut journal, again));
    append(&mut journal, 10).expect("the disk is fine");
    let told = Journal::create(disk(&medium), small()).expect_err("there is a commit").to_string();
    assert!(told.contains("no manifest"), "{told}");
}

#[test]
fn a_journal_on_the_file_system_is_found_by_the_next_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let on: Arc<dyn Disk> = Arc::new(RealDisk::new(directory.path().join("data")));
    let (mut journal, _) = Journal::create(on.clone(), small()).expect("a new journal");
    for _ in 0..30 {
        append(&mut journal, 700).expect("the disk is fine");
        journal.files().reserve().expect("the disk is fine");
    }
    let needed = journal.files().start_at(CommitSeq(20)).expect("it is there");
    journal.files().retire(&needed).expect("the disk is fine");
    append(&mut journal, 6000).expect("the disk is fine");
    drop(journal);
    let mut seen = Vec::new();
    let mut visit = |commit: &crate::storage::commit::Commit<'_>| {
        seen.push(commit.seq.0);
        Ok(())
    };
    let (mut journal, recovery) =
        Journal::recover(on, small(), &needed, &LastStop::Unclean, &mut visit).expect("whole");
    append(&mut journal, 10).expect("the disk is fine");
    assert_eq!((seen, recovery.torn, journal.end().seq), ((20..=31).collect(), None, CommitSeq(32)));
}
