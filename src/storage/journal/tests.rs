//! Tests of the journal on disks that fail.

use std::sync::Arc;

use super::*;
use crate::storage::commit::{Entry, UnitPlace};
use crate::storage::disk::{Disk, FaultyDisk};
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
