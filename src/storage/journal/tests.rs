//! Tests of the journal on disks that fail.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::storage::commit::{BodyPlace, Entry, UnitPlace};
use crate::storage::disk::{Disk, Fault, FaultyDisk, MemoryDisk};
use crate::types::{Offset, RoomName, Time};

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

#[test]
fn every_flipped_bit_of_a_cleanly_closed_journal_is_found_or_harmless() {
    let (medium, start, end) = closed(15);
    let all: Vec<u64> = (8..=15).collect();
    assert_eq!(outcome(&medium, &start, LastStop::Clean(end)).expect("whole").1, all);
    let (journal, ..) = recover(&medium.after_kill(0), &start, LastStop::Clean(end)).expect("whole");
    let live = journal.files().live();
    // Every byte that means something: headers and units, not what pads or follows them.
    let mut meaning: Vec<(JournalFileId, u64)> = Vec::new();
    for file in &live {
        meaning.extend((0..SECTOR).map(|at| (file.id, at)));
        let visit = &mut |commit: &crate::storage::commit::Commit<'_>| {
            let Some(Entry::Batch { span, .. }) = commit.entries().last() else { panic!("a batch is last") };
            let last = commit.place.body(span).at + u64::from(span.bytes);
            meaning.extend((commit.place.at..last).map(|at| (file.id, at)));
            Ok(())
        };
        journal.files().visit(file.id, visit).expect("whole");
    }
    let meaning: std::collections::HashSet<_> = meaning.into_iter().collect();
    let (mut found, mut harmless) = (0, 0);
    for id in file::list(&medium).expect("a list") {
        let path = path_of(id);
        for at in 0..medium.open(&path).and_then(|file| file.len()).expect("a length") {
            let mask = 1 << (at % 8);
            medium.flip(&path, at, mask);
            let result = outcome(&medium, &start, LastStop::Clean(end));
            medium.flip(&path, at, mask);
            match result {
                Err(told) => {
                    // A first commit of which nothing is left: the journal seems to end in the file before.
                    let no_trace = (SECTOR..SECTOR + 48).contains(&at) && told.contains("it is not there");
                    assert!(no_trace || told.starts_with(&format!("{}:", path.display())), "{at}: {told}");
                    found += 1;
                }
                Ok((recovery, seen)) => {
                    assert!(!meaning.contains(&(id, at)), "{}:{at} is not found", path.display());
                    assert_eq!((seen, recovery.end, recovery.torn), (all.clone(), end, None));
                    harmless += 1;
                }
            }
        }
    }
    assert!(found > 8 * 700 && harmless > 0, "{found} found, {harmless} harmless");
}

#[test]
fn without_the_mark_a_flipped_bit_is_damage_except_in_the_last_commit() {
    let (medium, start, end) = closed(15);
    let (journal, ..) = recover(&medium.after_kill(0), &start, LastStop::Unclean).expect("whole");
    for file in journal.files().live() {
        let visit = &mut |commit: &crate::storage::commit::Commit<'_>| {
            for within in [0, 4, 8, 16, 24, 32, 40, 48, 100, 700] {
                medium.flip(&file.path, commit.place.at + within, 1);
                let result = outcome(&medium, &start, LastStop::Unclean);
                medium.flip(&file.path, commit.place.at + within, 1);
                if commit.seq < end.seq {
                    let told = result.expect_err("later ones follow");
                    let place = format!("{}:{}: damaged: ", file.path.display(), commit.place.at);
                    assert!(told.starts_with(&place), "{told}");
                } else {
                    let (recovery, seen) = result.expect("it may be torn");
                    assert_eq!(seen.last(), Some(&(end.seq.0 - 1)));
                    // Without magic, file or salt nothing tells that there was a commit.
                    assert_eq!(recovery.torn.is_some(), ![0, 24, 32].contains(&within), "{within}");
                }
            }
            Ok(())
        };
        journal.files().visit(file.id, visit).expect("whole");
    }
}

#[test]
fn a_missing_or_truncated_file_is_damage_unless_nothing_needs_it() {
    let (medium, start, end) = closed(15);
    for stop in [LastStop::Clean(end), LastStop::Unclean] {
        let ids = file::list(&medium).expect("a list");
        for &id in &ids {
            let path = path_of(id);
            let (without, short) = (medium.after_kill(0), medium.after_kill(0));
            without.remove(&path).expect("it is there");
            short.open(&path).and_then(|file| file.set_len(1024)).expect("it is there");
            if id < start.file {
                outcome(&without, &start, stop).expect("it was retired");
                outcome(&short, &start, stop).expect("it was retired");
            } else {
                let told = outcome(&short, &start, stop).expect_err("it is needed");
                assert!(told.starts_with(&format!("{}:32: damaged: ", path.display())), "{told}");
                // A reserved file leaves no trace.
                if id < *ids.last().expect("there are files") {
                    let told = outcome(&without, &start, stop).expect_err("it is needed");
                    assert!(told.contains("the file is missing"), "{told}");
                }
            }
        }
    }
}

#[test]
fn the_mark_of_a_clean_close_finds_a_missing_last_commit() {
    let (medium, start, end) = closed(15);
    let last = path_of(end.file);
    let file = medium.open(&last).expect("it is there");
    file.write_all_at(&[0; 1024], end.position - 1024).expect("the disk is fine");
    let told = outcome(&medium, &start, LastStop::Clean(end)).expect_err("it was closed after commit 15");
    assert!(told.contains("commit 15: it is not there"), "{told}");
    let (_, seen) = outcome(&medium, &start, LastStop::Unclean).expect("nothing tells that there was one");
    assert_eq!(seen.last(), Some(&14));
}

#[test]
fn a_payload_that_looks_like_a_commit_is_not_taken_for_one() {
    let medium = FaultyDisk::new(1);
    let (mut journal, start) = Journal::create(disk(&medium), small()).expect("a new journal");
    append(&mut journal, 10).expect("the disk is fine");
    // All but the salt can be guessed: a later commit, sealed for this file, where a sector begins.
    let mut forged = commit(3, 10);
    let forged = forged.seal(CommitSeq(3), JournalFileId(1), 4711).to_vec();
    let mut carrier = CommitBuilder::new();
    let head = carrier.batch(1, Offset(1), &[1; 999]).at as usize;
    let mut payload = vec![0; SECTOR_BYTES - head];
    payload.extend_from_slice(&forged);
    carrier.begin(Time(2));
    let span = carrier.batch(1, Offset(1), &payload);
    let place = journal.write(&mut carrier).expect("the disk is fine");
    let mut raw = vec![0; place.bytes as usize];
    let path = path_of(place.file);
    medium.open(&path).and_then(|file| file.read_exact_at(&mut raw, place.at)).expect("it is there");
    assert_eq!(&raw[SECTOR_BYTES..SECTOR_BYTES + 4], b"RLcu", "the payload begins a sector: {span:?}");
    // The carrier is torn: its end never arrived.
    medium.flip(&path, place.at + 60, 1);
    let (recovery, seen) = outcome(&medium, &start, LastStop::Unclean).expect("a torn tail is no damage");
    assert_eq!((seen, recovery.torn.map(|torn| torn.seq)), (vec![1], Some(CommitSeq(2))));
}

#[test]
fn a_recycled_file_never_brings_back_old_commits() {
    let medium = FaultyDisk::new(1);
    let (mut journal, mut start) = Journal::create(disk(&medium), small()).expect("a new journal");
    let mut recycled = 0;
    for round in 0..40 {
        append(&mut journal, 300).expect("the disk is fine");
        recycled += u64::from(journal.files().bytes().spare > 0);
        assert!(journal.rotate().expect("the disk is fine"));
        start = journal.files().start_at(journal.next_seq()).expect("the next one");
        journal.files().retire(&start).expect("the disk is fine");
        let (_, seen) = outcome(&medium, &start, LastStop::Unclean).expect("nothing is wrong");
        assert_eq!(seen, Vec::<u64>::new(), "round {round}");
    }
    assert!(recycled > 30, "files were recycled {recycled} times");
    assert!(file::list(&medium).expect("a list").len() <= 3, "no more files than are needed");
    let again = append(&mut journal, 10).expect("the disk is fine");
    assert_eq!(again.at, SECTOR);
    assert_eq!(recover(&medium, &start, LastStop::Unclean).expect("nothing is wrong").2, [41]);
}

#[test]
fn a_full_disk_refuses_before_anything_is_written_and_heals() {
    let medium = FaultyDisk::new(1);
    let (mut journal, start) = Journal::create(disk(&medium), small()).expect("a new journal");
    medium.set_capacity(6 << 10);
    while journal.room_for(1024).expect("it runs") {
        append(&mut journal, 900).expect("there is room");
        match journal.files().reserve() {
            Ok(reserved) => assert!(!reserved, "there is no space for a second file"),
            Err(error) => assert!(matches!(error, StorageError::Full { .. }), "{error}"),
        }
    }
    let (operations, next) = (medium.operations(), journal.next_seq());
    let error = journal.write(&mut commit(next.0, 900)).expect_err("the disk is full");
    assert!(matches!(error, StorageError::Full { needed_bytes: 4096, free_bytes: 2048 }), "{error}");
    assert_eq!(medium.operations(), operations, "nothing was tried on the disk");
    assert_eq!(journal.files().stopped(), None);
    medium.set_capacity(1 << 20);
    append(&mut journal, 900).expect("space came back");
    assert_eq!(recover(&medium.reopen(2), &start, LastStop::Unclean).expect("whole").2.len() as u64, next.0);
}

#[test]
fn a_disk_that_fills_while_a_file_is_made_refuses_and_keeps_nothing_of_it() {
    let medium = FaultyDisk::new(1);
    let (mut journal, _) = Journal::create(disk(&medium), small()).expect("a new journal");
    append(&mut journal, 1500).expect("the disk is fine");
    // The disk says that there is space, and then there is none: create, then the write of the zeros.
    medium.fail_at(medium.operations() + 2, Fault::Short { bytes: 600 });
    let error = journal.files().reserve().expect_err("the disk is full");
    assert!(error.is_full(), "{error}");
    assert_eq!(medium.list(Path::new("journal")).expect("a list").len(), 1);
    assert!(journal.files().reserve().expect("space came back"));
    append(&mut journal, 1500).expect("the journal never stopped");
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
fn a_reader_never_gets_the_bytes_of_a_recycled_file() {
    let medium = MemoryDisk::new(1 << 20);
    let (mut journal, _) = Journal::create(Arc::new(medium), small()).expect("a new journal");
    let (reader, files, stop) = (journal.reader(), journal.files(), AtomicBool::new(false));
    let latest = parking_lot::Mutex::new(Vec::<(BodyPlace, u8)>::new());
    let (read, gone) = (AtomicU64::new(0), AtomicU64::new(0));
    let enough = |count: &AtomicU64| count.load(Ordering::Relaxed) >= 500;
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !(enough(&read) && enough(&gone) && number > 1000) && Instant::now() < deadline {
                let mut commit = CommitBuilder::new();
                let span = commit.batch(1, Offset(1), &[number as u8; 400]);
                let place = journal.write(&mut commit).expect("memory does not fail").body(span);
                let mut latest = latest.lock();
                latest.push((place, number as u8));
                let surplus = latest.len().saturating_sub(20);
                latest.drain(..surplus);
                drop(latest);
                if number % 5 == 4 {
                    let start = journal.files().start_at(journal.next_seq()).expect("the next one");
                    journal.files().retire(&start).expect("memory does not fail");
                }
                number += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut body = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let places = latest.lock().clone();
            for (place, fill) in places.into_iter().rev() {
                match reader.read(&place, &mut body) {
                    Ok(()) => {
                        assert_eq!(body, [fill; 400]);
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(StorageError::Gone { file }) => {
                        assert_eq!(file, place.file);
                        gone.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    });
    assert!(files.live()[0].id > JournalFileId(100), "files were recycled");
    assert!(enough(&read) && enough(&gone), "{read:?} read, {gone:?} gone");
}

#[test]
fn files_grow_with_what_is_live_and_shrink_again() {
    let options = JournalOptions { file_bytes_min: 4 << 10, file_bytes_max: 32 << 10, ..JournalOptions::default() };
    let (mut journal, _) = Journal::create(Arc::new(MemoryDisk::new(1 << 20)), options).expect("a new journal");
    while journal.files().live().len() < 7 {
        journal.write(&mut commit(1, 900)).expect("there is space");
    }
    let lengths: Vec<u64> = journal.files().live().iter().map(|file| file.bytes >> 10).collect();
    assert_eq!(lengths, [4, 4, 8, 16, 32, 32, 32]);
    // A commit that is longer than any file gets one of its own.
    let place = journal.write(&mut commit(1, 40 << 10)).expect("there is space");
    assert_eq!((place.at, journal.files().live().last().map(|file| file.bytes >> 10)), (SECTOR, Some(64)));
    // Little is kept of a time when much was written.
    for _ in 0..3 {
        journal.write(&mut commit(1, 10)).expect("there is space");
        assert!(journal.rotate().expect("there is space"));
        let start = journal.files().start_at(journal.next_seq()).expect("the next one");
        journal.files().retire(&start).expect("memory does not fail");
    }
    let used = journal.files().bytes();
    assert!(used.live + used.reserved + used.spare <= 128 << 10, "{used:?}");
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
