//! The bytes on the disk, kept for every version of the format.

use std::path::Path;

use super::rig::Place;
use crate::protocol::{BatchBuilder, RecordArea, RunHeader};
use crate::storage::block_store::BlockKey;
use crate::storage::disk::RealDisk;
use crate::storage::volume::{Input, VolumeId};
use crate::types::{NewRecord, Offset, PublisherId, Time};

/// Three rooms: two small blocks, of which one compresses, and one in two parts.
fn input() -> Vec<Input> {
    let mut noise = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    })
    .take(40_000)
    .collect();
    let records: [(u64, u64, &[u8]); 3] = [(1, 7, b"hello"), (2, 1 << 33, &[b'a'; 600]), (u64::MAX, 1, &noise)];
    let mut builder = BatchBuilder::new();
    records
        .iter()
        .map(|(room, offset, payload)| {
            let mut area = Vec::new();
            RecordArea::push(&mut area, &NewRecord::new(payload));
            let header = RunHeader {
                offset_delta: 0,
                step: 1,
                time_delta: 0,
                user: "ada",
                publisher: PublisherId([7; 16]),
                seq: 3,
                count: 1,
                bytes: 0,
            };
            builder.push(Offset(*offset), Time(1_700_000_000_000_000 + offset), 1, &area, header);
            Input { room: *room, prev: Offset(offset - 1), body: builder.finish().1 }
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        text.extend(line.iter().map(|byte| format!("{byte:02x}")));
        text.push('\n');
    }
    text
}

/// Compares with the bytes of the file; `ROOMLOG_TEST_GOLDEN=write` makes it anew.
fn assert_golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/storage-v1").join(name);
    if std::env::var_os("ROOMLOG_TEST_GOLDEN").is_some_and(|wish| wish == "write") {
        std::fs::write(&path, hex(bytes)).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == hex(bytes), "{name} has changed");
}

#[test]
fn the_bytes_of_a_volume_are_those_of_format_1() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::memory(RealDisk::new(root.path()));
    place.build(1, &input());
    assert_golden("volume-directory.hex", &std::fs::read(root.path().join(VolumeId(1).directory_path())).unwrap());
    let reader = place.store.open(&VolumeId(1).blocks_path()).unwrap();
    for (name, room, first, part) in [
        ("block-raw.hex", 1, 7, 0),
        ("block-lz4.hex", 2, 1 << 33, 0),
        ("block-part-0.hex", u64::MAX, 1, 0),
        ("block-part-1.hex", u64::MAX, 1, 1),
    ] {
        assert_golden(name, &reader.get(BlockKey { room, first, part }).unwrap().unwrap());
    }
    assert_eq!(place.check(1), []);
}
