//! What every block store must do, run over each of them.

use std::path::{Path, PathBuf};

use super::{BlockKey, BlockStore, BlockStoreError, MemoryBlockStore, SledBlockStore, VALUE_BYTES_MAX};

/// Runs a test over both stores.
fn over_both(test: impl Fn(&dyn BlockStore)) {
    test(&MemoryBlockStore::new());
    let directory = tempfile::tempdir().unwrap();
    test(&SledBlockStore::new(directory.path()));
}

fn key(room: u64, first: u64, part: u16) -> BlockKey {
    BlockKey { room, first, part }
}

/// Keys in order, with values that are told by their keys; the largest allowed among them.
fn blocks() -> Vec<(BlockKey, Vec<u8>)> {
    let mut blocks = Vec::new();
    for room in [0, 1, 255, 256, u64::MAX] {
        for first in [1, 2, 255, 256, 1 << 40] {
            for part in [0, 1, 300] {
                let length = match (first, part) {
                    (1, 0) => VALUE_BYTES_MAX,
                    (2, 1) => 0,
                    _ => 100 + usize::from(part),
                };
                let seed = (room ^ first ^ u64::from(part)) as u8;
                blocks.push((key(room, first, part), (0..length).map(|at| seed.wrapping_add(at as u8)).collect()));
            }
        }
    }
    blocks
}

fn write(store: &dyn BlockStore, directory: &Path, blocks: &[(BlockKey, Vec<u8>)]) {
    let mut writer = store.create(directory).unwrap();
    for (key, value) in blocks {
        writer.put(*key, value).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_was_put_is_there_again_and_nothing_else() {
    over_both(|store| {
        let (one, other) = (Path::new("volumes/00000001"), Path::new("volumes/00000002"));
        write(store, one, &blocks());
        write(store, other, &blocks()[..3]);
        for _ in 0..3 {
            let reader = store.open(one).unwrap();
            for (key, value) in blocks() {
                assert_eq!(reader.get(key).unwrap().as_deref(), Some(&value[..]), "{key:?}");
                assert_eq!(reader.get(BlockKey { part: 7, ..key }).unwrap(), None);
            }
        }
        let other = store.open(other).unwrap();
        assert!(other.get(blocks()[2].0).unwrap().is_some());
        assert!(other.get(blocks()[3].0).unwrap().is_none());
    });
}

#[test]
fn a_reader_is_shared_by_threads() {
    over_both(|store| {
        let directory = Path::new("volumes/00000001");
        write(store, directory, &blocks());
        let reader = store.open(directory).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (key, value) in blocks() {
                        assert_eq!(reader.get(key).unwrap().as_deref(), Some(&value[..]));
                    }
                });
            }
        });
    });
}

#[test]
fn a_volume_is_created_once_and_a_missing_one_does_not_open() {
    over_both(|store| {
        let directory = Path::new("volumes/00000001");
        assert!(matches!(store.open(directory), Err(BlockStoreError::Damaged { .. })));
        write(store, directory, &blocks());
        assert!(matches!(store.create(directory), Err(BlockStoreError::Io { .. })));
        assert!(matches!(store.open(Path::new("volumes/00000002")), Err(BlockStoreError::Damaged { .. })));
    });
}

#[test]
fn a_removed_volume_is_gone_and_its_place_is_free() {
    over_both(|store| {
        let directory = Path::new("volumes/00000001");
        store.remove(directory).unwrap();
        write(store, directory, &blocks());
        assert!(store.used_bytes(directory).unwrap() > VALUE_BYTES_MAX as u64);
        store.remove(directory).unwrap();
        store.remove(directory).unwrap();
        assert!(store.open(directory).is_err());
        assert!(store.used_bytes(directory).is_err());
        write(store, directory, &blocks()[..1]);
        assert!(store.open(directory).unwrap().get(blocks()[1].0).unwrap().is_none());
    });
}

#[test]
fn an_unfinished_volume_is_rubbish_that_remove_takes_away() {
    over_both(|store| {
        let directory = Path::new("volumes/00000001");
        let mut writer = store.create(directory).unwrap();
        for (key, value) in blocks() {
            writer.put(key, &value).unwrap();
        }
        drop(writer);
        store.remove(directory).unwrap();
        write(store, directory, &blocks()[..1]);
        assert!(store.open(directory).unwrap().get(blocks()[1].0).unwrap().is_none());
    });
}

#[test]
fn a_volume_that_another_thread_is_closing_opens_as_soon_as_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = SledBlockStore::new(directory.path());
    let volume = Path::new("00000001");
    write(&store, volume, &blocks());
    let reader = store.open(volume).unwrap();
    let (opening, closing) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            opening.send(()).unwrap();
            assert!(store.open(volume).unwrap().get(blocks()[0].0).unwrap().is_some());
        });
        closing.recv().unwrap();
        drop(reader);
    });
}

#[test]
fn values_of_the_largest_size_stay_in_the_log_of_sled() {
    let directory = tempfile::tempdir().unwrap();
    let store = SledBlockStore::new(directory.path());
    let volume = Path::new("00000001");
    let mut writer = store.create(volume).unwrap();
    let value: Vec<u8> = (0..VALUE_BYTES_MAX).map(|at| ((at * at) >> 3) as u8).collect();
    for first in 1..=200 {
        writer.put(key(1, first, 0), &value).unwrap();
    }
    // Finishing asserts that `blobs` is empty; look for ourselves all the same.
    writer.finish().unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("00000001/blobs")).unwrap().count(), 0);
    let reader = store.open(volume).unwrap();
    assert!((1..=200).all(|first| reader.get(key(1, first, 0)).unwrap().unwrap() == value));
}

/// Incompressible values of one length under rising keys.
fn write_many(store: &dyn BlockStore, directory: &Path, count: u64, length: usize) {
    let mut writer = store.create(directory).unwrap();
    let mut state = 1_u64;
    for first in 1..=count {
        let value: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(length)
        .collect();
        writer.put(key(first / 7, first, 0), &value).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn sled_writes_each_value_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = SledBlockStore::new(directory.path());
    for (volume, count, length) in [("00000001", 1000, 20_000), ("00000002", 4000, 4000)] {
        write_many(&store, Path::new(volume), count, length);
        let (used, put) = (store.used_bytes(Path::new(volume)).unwrap(), count * length as u64);
        // Two segments more: sled begins with one, and ends within another.
        assert!(used < put * 115 / 100 + 2 * SEGMENT, "{used} bytes on the disk for {put}");
    }
}

#[test]
fn what_comes_into_memory_with_a_value_is_about_as_long_whatever_its_length() {
    let directory = tempfile::tempdir().unwrap();
    let store = SledBlockStore::new(directory.path());
    for (number, length) in [500, 5_000, 8_000, 15_000, 25_000, VALUE_BYTES_MAX].into_iter().enumerate() {
        let volume = PathBuf::from(format!("{number:08}"));
        write_many(&store, &volume, 60, length);
        let reader = store.open(&volume).unwrap();
        let together = usize::try_from(reader.keys_held_together(length)).unwrap();
        assert!((1..=9).contains(&together), "{together} of {length} bytes");
        assert!(together * length <= (32 << 10) + length, "{together} of {length} bytes");
        assert!(together == 9 || together * length >= 18 << 10, "{together} of {length} bytes");
        assert!((1..=60).all(|first| reader.get(key(first / 7, first, 0)).unwrap().unwrap().len() == length));
    }
}

#[test]
fn opening_and_reading_leave_a_finished_volume_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = SledBlockStore::new(directory.path());
    let volume = Path::new("00000001");
    write_many(&store, volume, 300, 10_000);
    let db = std::fs::read(directory.path().join("00000001/db")).unwrap();
    for _ in 0..30 {
        let reader = store.open(volume).unwrap();
        assert!((1..=300).all(|first| reader.get(key(first / 7, first, 0)).unwrap().is_some()));
    }
    assert!(std::fs::read(directory.path().join("00000001/db")).unwrap() == db, "sled has written");
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_nothing_is_lost() {
    for damage in [damage_by_a_bit, damage_by_truncation, damage_by_emptying] {
        let directory = tempfile::tempdir().unwrap();
        let store = SledBlockStore::new(directory.path());
        let volume = Path::new("00000001");
        write(&store, volume, &blocks());
        let path = directory.path().join(volume);
        let names = || -> Vec<String> {
            let entries = std::fs::read_dir(&path).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let snapshot = names().into_iter().find(|name| name.starts_with("snap.")).expect("finishing writes one");
        damage(&path.join(&snapshot));
        for _ in 0..2 {
            let reader = store.open(volume).unwrap();
            for (key, value) in blocks() {
                assert_eq!(reader.get(key).unwrap().as_deref(), Some(&value[..]));
            }
        }
        assert!(names().contains(&format!("damaged.{snapshot}")), "{:?}", names());
    }
}

fn damage_by_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

fn damage_by_truncation(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 3]).unwrap();
}

fn damage_by_emptying(path: &Path) {
    std::fs::write(path, b"").unwrap();
}

#[test]
fn a_missing_or_truncated_database_is_damage_and_never_an_empty_volume() {
    for cut in [None, Some(0), Some(1000), Some(SEGMENT)] {
        let directory = tempfile::tempdir().unwrap();
        let store = SledBlockStore::new(directory.path());
        let volume = Path::new("00000001");
        let mut writer = store.create(volume).unwrap();
        let value: Vec<u8> = (0..20_000_u32).map(|at| at as u8).collect();
        for first in 1..=300 {
            writer.put(key(1, first, 0), &value).unwrap();
        }
        writer.finish().unwrap();
        let db = directory.path().join("00000001/db");
        match cut {
            None => std::fs::remove_file(&db).unwrap(),
            Some(bytes) => std::fs::OpenOptions::new().write(true).open(&db).unwrap().set_len(bytes).unwrap(),
        }
        let found = store.open(volume).and_then(|reader| {
            // Opening may succeed; then each value is either right or told to be damaged or absent.
            let mut intact = 0;
            for first in 1..=300 {
                if let Some(found) = reader.get(key(1, first, 0))? {
                    assert_eq!(found, value);
                    intact += 1;
                }
            }
            Ok(intact)
        });
        assert!(!matches!(found, Ok(300)), "cut to {cut:?}");
    }
}

const SEGMENT: u64 = 2 << 20;
