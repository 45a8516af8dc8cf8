//! Every change of a journal file is found, and named by file and place, or means nothing.

use super::*;

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
fn commits_before_the_start_are_needed_up_to_it() {
    // The file that the manifest names begins with commit 7, and the manifest needs commit 8 and later ones.
    let (medium, start, end) = closed(15);
    assert_eq!((start.file_first_seq, start.seq), (CommitSeq(7), CommitSeq(8)));
    for file in [start.file, end.file] {
        let zeros = vec![0; medium.open(&path_of(file)).and_then(|file| file.len()).expect("a length") as usize - 512];
        medium.open(&path_of(file)).and_then(|file| file.write_all_at(&zeros, SECTOR)).expect("the disk is fine");
    }
    for stop in [LastStop::Clean(end), LastStop::Unclean, LastStop::Unsynced] {
        let told = outcome(&medium, &start, stop).expect_err("commit 7 was durable");
        assert!(told.contains("commit 7 is missing, but the manifest begins at 8"), "{told}");
    }
}

#[test]
fn files_with_exchanged_names_are_damage() {
    let (medium, start, end) = closed(15);
    let (one, other) = (path_of(start.file), path_of(end.file));
    medium.rename(&one, Path::new("journal/kept")).expect("it is there");
    medium.rename(&other, &one).expect("it is there");
    medium.rename(Path::new("journal/kept"), &other).expect("it is there");
    let told = outcome(&medium, &start, LastStop::Unclean).expect_err("they are exchanged");
    assert!(told.ends_with("rlj:16: damaged: its header says file 4"), "{told}");
}
