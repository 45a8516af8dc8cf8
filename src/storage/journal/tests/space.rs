//! Files that are made, recycled and given up, and a disk that is full.

use super::*;

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
    // The disk says that there is space, and then there is none: after looking for a leftover and creating the file,
    // while its zeros are written.
    let before = medium.operations();
    medium.fail_at(before + 3, Fault::Short { bytes: 600 });
    let error = journal.files().reserve().expect_err("the disk is full");
    assert!(error.is_full(), "{error}");
    assert_eq!(medium.operations(), before + 4, "the file is removed");
    assert_eq!(medium.list(Path::new("journal")).expect("a list").len(), 1);
    assert!(journal.files().reserve().expect("space came back"));
    append(&mut journal, 1500).expect("the journal never stopped");
}

#[test]
fn a_commit_that_the_reserved_file_is_too_short_for_goes_to_a_longer_one() {
    let medium = FaultyDisk::new(1);
    let (mut journal, start) = Journal::create(disk(&medium), small()).expect("a new journal");
    append(&mut journal, 1500).expect("the disk is fine");
    assert!(journal.files().reserve().expect("the disk is fine"));
    let place = append(&mut journal, 20 << 10).expect("the disk is fine");
    assert_eq!((place.file, place.at), (JournalFileId(3), SECTOR));
    assert_eq!(journal.files().live()[1].commits, None, "the short one stays empty");
    append(&mut journal, 10).expect("the disk is fine");
    assert_eq!(recover(&medium.reopen(1), &start, LastStop::Unclean).expect("whole").2, [1, 2, 3]);
}

#[test]
fn no_more_spare_files_are_kept_than_allowed() {
    let medium = FaultyDisk::new(1);
    let (mut journal, _) = Journal::create(disk(&medium), small()).expect("a new journal");
    for _ in 0..60 {
        append(&mut journal, 900).expect("the disk is fine");
    }
    let start = journal.files().start_at(CommitSeq(60)).expect("it is there");
    journal.files().retire(&start).expect("the disk is fine");
    let files = file::list(&medium).expect("a list").len();
    assert_eq!(files, journal.files().live().len() + small().spare_files_max);
    // The next start keeps no more either, and removes a file that was being made.
    medium.create(Path::new("journal/next.tmp")).expect("a new file");
    let mut fewer = small();
    fewer.spare_files_max = 1;
    Journal::recover(disk(&medium), fewer, &start, &LastStop::Clean(journal.end()), &mut |_| Ok(())).expect("whole");
    assert_eq!(medium.list(Path::new("journal")).expect("a list").len(), journal.files().live().len() + 1);
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

// Once the next start took such a file for reserved and committed to it, and a power cut took the file's name.
#[test]
fn a_file_whose_name_could_not_be_made_durable_is_durable_before_it_is_written() {
    let medium = FaultyDisk::new(1);
    let (mut journal, start) = Journal::create(disk(&medium), small()).expect("a new journal");
    append(&mut journal, 1500).expect("the disk is fine");
    // A leftover is looked for, then: create, zeros, header, sync, rename, and the sync of the directory.
    medium.fail_at(medium.operations() + 7, Fault::Eio);
    let error = journal.files().reserve().expect_err("the directory cannot be synced");
    assert!(error.to_string().contains("journal: cannot sync"), "{error}");
    let (mut journal, ..) = recover(&medium, &start, LastStop::Clean(journal.end())).expect("whole");
    assert!(journal.files().bytes().reserved > 0, "it is taken for reserved");
    let place = append(&mut journal, 1500).expect("the disk is fine");
    assert_eq!(place.file, JournalFileId(2));
    for seed in 0..20 {
        assert_eq!(recover(&medium.reopen(seed), &start, LastStop::Unclean).expect("whole").2, [1, 2]);
    }
}
