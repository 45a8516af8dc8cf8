//! The formats on disk, byte by byte: what is written today is what was written by the first version.

use std::path::Path;

use super::commit::{Commit, CommitBuilder, CommitSeq, Entry, Floor, JournalFileId, UnitPlace, is_whole};
use super::disk::{Disk, FaultyDisk};
use super::journal::{FileHeader, JournalEnd, JournalStart};
use super::manifest::{MANIFEST_NAME, Manifest, VolumeEntry};
use super::marks::{CLEAN_MARK_NAME, CleanMark, Durability, RUN_MARK_NAME, RunMark};
use crate::types::{Epoch, Offset, RoomName, Time};

const SALT: u64 = 0x1122_3344_5566_7788;

const FLOOR: Floor = Floor {
    floor: Offset(70_000),
    first: Offset(70_001),
    first_time: Time(1_699_999_999_000_000),
    records: 69_000,
    bytes: 5_000_000,
};

/// The bytes of a file in `tests/golden/storage-v1`.
macro_rules! golden {
    ($name:literal) => {
        bytes_of(include_str!(concat!("../../tests/golden/storage-v1/", $name)))
    };
}

/// Hex, `zeros N`, and comments behind `#`.
fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        while let Some(word) = words.next() {
            if word == "zeros" {
                let count: usize = words.next().and_then(|count| count.parse().ok()).expect("a count of zeros");
                bytes.resize(bytes.len() + count, 0_u8);
            } else {
                bytes.push(u8::from_str_radix(word, 16).expect("two hex digits"));
            }
        }
    }
    bytes
}

fn content(disk: &FaultyDisk, name: &str) -> Vec<u8> {
    let file = disk.open(Path::new(name)).expect("it was written");
    let mut bytes = vec![0; usize::try_from(file.len().expect("a length")).expect("short")];
    file.read_exact_at(&mut bytes, 0).expect("the whole file");
    bytes
}

fn place(disk: &FaultyDisk, name: &str, bytes: &[u8]) {
    disk.create(Path::new(name)).and_then(|file| file.write_all_at(bytes, 0)).expect("a new file");
}

#[test]
fn the_header_of_a_journal_file_is_the_golden_one() {
    let header = FileHeader { id: JournalFileId(3), salt: SALT, bytes: 1 << 20 };
    assert_eq!(header.encode()[..], golden!("journal-file-header.hex"));
}

#[test]
fn a_commit_is_the_golden_one() {
    let golden = golden!("commit-unit.hex");
    let mut commit = CommitBuilder::new();
    commit.begin(Time(1_700_000_000_000_000));
    commit.room(7, &RoomName::new("général").expect("a good name"));
    commit.floor(300, &FLOOR);
    let span = commit.batch(7, Offset::ZERO, b"a batch body, opaque here");
    assert_eq!(commit.seal(CommitSeq(42), JournalFileId(3), SALT), golden);

    let length = u32::from_le_bytes(golden[8..12].try_into().expect("four bytes")) as usize;
    let place = UnitPlace { file: JournalFileId(3), at: 512, bytes: 512 };
    assert!(is_whole(&golden[..length]));
    let commit = Commit::parse(&golden[..length], place).expect("it is whole");
    assert_eq!((commit.seq, commit.time), (CommitSeq(42), Time(1_700_000_000_000_000)));
    let entries = [
        Entry::Room { room: 7, name: "général" },
        Entry::Floor { room: 300, floor: FLOOR },
        Entry::Batch { room: 7, prev: Offset::ZERO, body: b"a batch body, opaque here", span },
    ];
    assert!(commit.entries().eq(entries));
}

#[test]
fn a_manifest_is_the_golden_one() {
    let golden = golden!("manifest.hex");
    let journal = JournalStart { file: JournalFileId(3), file_first_seq: CommitSeq(40), seq: CommitSeq(42) };
    let volume = |id, first, last, records, bytes| VolumeEntry {
        id,
        first_seq: CommitSeq(first),
        last_seq: CommitSeq(last),
        records,
        bytes,
    };
    let manifest = Manifest {
        epoch: Epoch((1 << 53) - 1),
        next_room: 1000,
        next_volume: 6,
        next_checkpoint: 3,
        journal,
        checkpoint: Some(2),
        volumes: vec![volume(2, 1, 30, 123_456, 9_876_543), volume(5, 31, 41, 250, 251)],
    };
    let disk = FaultyDisk::new(1);
    manifest.swap(&disk).expect("the disk is fine");
    assert_eq!(content(&disk, MANIFEST_NAME), golden);
    let disk = FaultyDisk::new(1);
    place(&disk, MANIFEST_NAME, &golden);
    assert_eq!(Manifest::read(&disk).expect("it is whole"), Some(manifest));
}

#[test]
fn the_marks_are_the_golden_ones() {
    let clean = CleanMark { end: JournalEnd { seq: CommitSeq(42), file: JournalFileId(3), position: 66_048 } };
    let run = RunMark { durability: Durability::Os, boot_id: "6d3c8c5e-0d0b-4a52-9f55-2b1f8a3a9c11".into() };
    let disk = FaultyDisk::new(1);
    clean.write(&disk).expect("the disk is fine");
    run.write(&disk).expect("the disk is fine");
    assert_eq!(content(&disk, CLEAN_MARK_NAME), golden!("clean-mark.hex"));
    assert_eq!(content(&disk, RUN_MARK_NAME), golden!("run-mark.hex"));
    let disk = FaultyDisk::new(1);
    place(&disk, CLEAN_MARK_NAME, &golden!("clean-mark.hex"));
    place(&disk, RUN_MARK_NAME, &golden!("run-mark.hex"));
    assert_eq!(CleanMark::read(&disk).expect("it is whole"), Some(clean));
    assert_eq!(RunMark::read(&disk).expect("it is whole"), Some(run));
}
