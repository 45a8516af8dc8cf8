//! Whatever stands in journal files: it is refused and left alone, or is opened, and then it is the same for ever, and
//! goes on.

use std::path::Path;
use std::sync::Arc;

use super::file::JOURNAL_DIRECTORY;
use super::{Journal, JournalEnd, JournalOptions, JournalStart, LastStop, SECTOR, check, path_of};
use crate::protocol::examine::walk;
use crate::storage::commit::{Commit, CommitBuilder, CommitSeq, Entry, JournalFileId, mend as mend_unit};
use crate::storage::disk::{Disk, MemoryDisk};
use crate::types::{RoomName, Time};

const START: JournalStart = JournalStart { file: JournalFileId(1), file_first_seq: CommitSeq(1), seq: CommitSeq(1) };

/// A commit as it was read: its number, its time, and all of its entries.
type Written = (u64, u64, String);

fn written(commit: &Commit<'_>) -> Written {
    for entry in commit.entries() {
        match entry {
            Entry::Room { name, .. } => assert!(RoomName::new(name).is_ok(), "a name that is none"),
            Entry::Batch { body, span, .. } => {
                assert_eq!(span.bytes as usize, body.len(), "a body of another length");
                walk(body);
            }
            Entry::Floor { .. } => {}
        }
    }
    (commit.seq.0, commit.time.0, format!("{:?}", commit.entries().collect::<Vec<_>>()))
}

/// What the files hold, as both ways to open them tell it; `None` if they are refused.
fn look(disk: &MemoryDisk, last_stop: &LastStop) -> Option<Vec<Written>> {
    let mut found = Vec::new();
    let mut visit = |commit: &Commit<'_>| {
        found.push(written(commit));
        Ok(())
    };
    match check(disk, &START, last_stop, &mut visit) {
        Ok(recovery) => {
            assert_eq!(recovery.commits, found.len() as u64);
            assert!(found.iter().zip(1..).all(|((seq, ..), next)| *seq == next), "commits are not in order");
            Some(found)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "a refusal without a reason");
            None
        }
    }
}

/// See [`crate::fuzzing::journal`].
pub(crate) fn read(bytes: &[u8]) {
    let Some((&[flags, first_sectors, place], bytes)) = bytes.split_first_chunk::<3>() else { return };
    let first = if first_sectors == 0 { bytes.len() } else { bytes.len().min(usize::from(first_sectors) * 512) };
    let mut files = vec![bytes[..first].to_vec()];
    if first < bytes.len() {
        files.push(bytes[first..].to_vec());
    }
    let last_stop = match flags >> 1 & 3 {
        0 => LastStop::Unclean,
        1 => LastStop::Unsynced,
        _ => LastStop::Clean(JournalEnd {
            seq: CommitSeq(u64::from(place & 15)),
            file: JournalFileId(files.len() as u64),
            position: u64::from(place >> 4) * SECTOR,
        }),
    };
    let disk = MemoryDisk::new(64 << 20);
    disk.create_dir(Path::new(JOURNAL_DIRECTORY)).expect("memory is patient");
    let mut seq = CommitSeq(1);
    for (id, file) in (1..).map(JournalFileId).zip(&mut files) {
        if flags & 1 == 1 {
            mend(id, file, &mut seq);
        }
        disk.create(&path_of(id)).and_then(|made| made.write_all_at(file, 0)).expect("memory is patient");
    }

    let found = look(&disk, &last_stop);
    let options =
        JournalOptions { file_bytes_min: 2 * SECTOR, file_bytes_max: 64 << 10, spare_files_max: 1, free_bytes_min: 0 };
    let mut visited = Vec::new();
    let mut visit = |commit: &Commit<'_>| {
        visited.push(written(commit));
        Ok(())
    };
    let opened = Journal::recover(Arc::new(disk.clone()), options, &START, &last_stop, &mut visit);
    let Some(mut found) = found else {
        assert!(opened.is_err(), "opened, though a check refuses it");
        for (id, file) in (1..).map(JournalFileId).zip(&files) {
            let mut left = vec![0; file.len()];
            disk.open(&path_of(id)).and_then(|open| open.read_exact_at(&mut left, 0)).expect("it is there");
            assert!(left == *file, "what is refused was changed");
        }
        return;
    };
    let (mut journal, _) = opened.expect("a check finds nothing wrong");
    assert_eq!(visited, found, "opened with something else than was checked");
    assert_eq!(look(&disk, &LastStop::Clean(journal.end())).as_ref(), Some(&found), "its end is elsewhere");
    let unclean = look(&disk, &LastStop::Unclean);
    if matches!(last_stop, LastStop::Clean(_)) && unclean.as_ref() != Some(&found) {
        // Behind a clean end nobody looks: no broker has ever written there.
        return;
    }
    assert_eq!(unclean.as_ref(), Some(&found), "opened, it is something else");
    let mut commit = CommitBuilder::new();
    commit.begin(Time(7));
    commit.room(3, &RoomName::new("next").expect("a good name"));
    journal.write(&mut commit).and_then(|_| journal.sync()).expect("memory is patient");
    let again = look(&disk, &LastStop::Unclean).expect("it goes on");
    found.push((found.len() as u64 + 1, 7, again.last().expect("there is one").2.clone()));
    assert_eq!(again, found, "what was there, and what was written");
}

/// Makes a header and the units that follow each other fit their file, so that what lies behind those checks is reached.
fn mend(id: JournalFileId, file: &mut [u8], seq: &mut CommitSeq) {
    let Some(salt) = super::file::mend(id, file) else { return };
    let mut at = 512;
    while let Some(unit) = file.get_mut(at..).filter(|rest| rest.len() >= 512) {
        let Some(bytes) = mend_unit(unit, id, salt, *seq) else { return };
        *seq = seq.next();
        at += bytes.next_multiple_of(512);
    }
}
