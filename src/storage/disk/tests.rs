//! What every disk does, and what the faulty one may do beside it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::storage::StorageError;

fn content(disk: &dyn Disk, path: &str) -> Vec<u8> {
    let file = disk.open(Path::new(path)).expect("the file is there");
    let mut bytes = vec![0; usize::try_from(file.len().expect("a length")).expect("short")];
    file.read_exact_at(&mut bytes, 0).expect("the whole file");
    bytes
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.map(drop).expect_err("it cannot be done").kind()
}

#[test]
fn all_disks_behave_alike() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = RealDisk::new(directory.path().join("data"));
    let disks: [Arc<dyn Disk>; 3] = [Arc::new(real), Arc::new(MemoryDisk::new(1 << 20)), Arc::new(FaultyDisk::new(1))];
    for disk in disks {
        println!("{disk:?}");
        let path = Path::new;
        disk.create_dir(path("")).expect("the root");
        assert_eq!(kind(disk.open(path("a"))), ErrorKind::NotFound);
        assert_eq!(kind(disk.create(path("no/a"))), ErrorKind::NotFound);
        assert_eq!(disk.list(path("no")).expect("no directory, no names"), Vec::<PathBuf>::new());
        assert_eq!(disk.used_bytes(path("no")).expect("no directory, no bytes"), 0);

        let file = disk.create(path("a")).expect("a new file");
        assert_eq!(kind(disk.create(path("a"))), ErrorKind::AlreadyExists);
        file.write_all_at(b"world", 1000).expect("space");
        file.write_all_at(b"hello", 0).expect("space");
        assert_eq!(file.len().expect("a length"), 1005);
        assert_eq!(kind(file.read_exact_at(&mut [0; 6], 1000)), ErrorKind::UnexpectedEof);
        let mut bytes = content(&*disk, "a");
        assert_eq!((&bytes[..5], &bytes[1000..]), (&b"hello"[..], &b"world"[..]));
        assert!(bytes.drain(5..1000).all(|byte| byte == 0));
        file.set_len(3).expect("shorter");
        file.set_len(6).expect("longer");
        file.sync_data().expect("a sync");
        assert_eq!(content(&*disk, "a"), b"hel\0\0\0");

        disk.create_dir(path("d/e")).expect("directories");
        disk.create_dir(path("d/e")).expect("again");
        disk.create(path("d/b")).and_then(|file| file.write_all_at(b"b", 0)).expect("a file");
        disk.create(path("d/c")).and_then(|file| file.write_all_at(b"c", 0)).expect("a file");
        disk.rename(path("d/b"), path("d/c")).expect("a rename");
        assert_eq!(kind(disk.rename(path("d/b"), path("d/c"))), ErrorKind::NotFound);
        assert_eq!(content(&*disk, "d/c"), b"c".map(|_| b'b'));
        assert_eq!(disk.list(path("d")).expect("names"), [PathBuf::from("c"), PathBuf::from("e")]);
        disk.sync_dir(path("d")).expect("a sync");
        assert!(disk.used_bytes(path("d")).expect("bytes") > 0);
        assert!(disk.free_bytes().expect("bytes") > 0);

        disk.remove(path("a")).expect("a removal");
        assert_eq!(kind(disk.remove(path("a"))), ErrorKind::NotFound);
        file.read_exact_at(&mut [0; 3], 0).expect("an open file outlives its name");
        disk.remove_dir(path("d")).expect("a removal");
        disk.remove_dir(path("d")).expect("nothing happens");
        assert_eq!(disk.list(path("")).expect("names"), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_read_only_disk_reads_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("a"), b"a").expect("a file");
    let disk = RealDisk::read_only(directory.path());
    assert_eq!(content(&disk, "a"), b"a");
    let path = Path::new("a");
    assert_eq!(kind(disk.create(Path::new("b"))), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(kind(disk.remove(path)), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(kind(disk.rename(path, path)), ErrorKind::ReadOnlyFilesystem);
    assert!(disk.open(path).and_then(|file| file.write_all_at(b"b", 0)).is_err());
}

#[test]
fn a_full_memory_disk_says_so_and_space_comes_back() {
    let disk = MemoryDisk::new(1000);
    let file = disk.create(Path::new("a")).expect("a file");
    file.write_all_at(&[1; 900], 0).expect("space");
    assert_eq!(kind(file.write_all_at(&[1; 200], 900)), ErrorKind::StorageFull);
    assert_eq!(kind(file.set_len(1001)), ErrorKind::StorageFull);
    assert_eq!((file.len().expect("a length"), disk.free_bytes().expect("bytes")), (900, 100));
    disk.remove(Path::new("a")).expect("a removal");
    assert_eq!(disk.free_bytes().expect("bytes"), 100, "it is still open");
    drop(file);
    assert_eq!(disk.free_bytes().expect("bytes"), 1000);
}

#[test]
fn one_directory_has_one_lock() {
    let directory = tempfile::tempdir().expect("a directory");
    let lock = DirectoryLock::acquire(directory.path()).expect("nobody has it");
    let error = DirectoryLock::acquire(directory.path()).expect_err("it is taken");
    let own = std::process::id();
    assert!(matches!(&error, StorageError::InUse { process: Some(process), .. } if *process == own), "{error:?}");
    let told = error.to_string();
    assert!(told.contains(&directory.path().display().to_string()) && told.contains("in use by another process"));
    drop(lock);
    DirectoryLock::acquire(directory.path()).expect("it was given back");
    let nowhere = DirectoryLock::acquire(&directory.path().join("no")).expect_err("there is no directory");
    assert!(matches!(nowhere, StorageError::Io { .. }));
}

#[test]
fn after_a_power_cut_a_sector_is_whole_and_one_of_those_written_since_the_sync() {
    let disk = FaultyDisk::new(1);
    let file = disk.create(Path::new("a")).expect("a file");
    file.write_all_at(&[1; 2048], 0).expect("space");
    file.sync_data().expect("a sync");
    disk.sync_dir(Path::new("")).expect("a sync");
    file.write_all_at(&[2; 1024], 512).expect("space");
    file.write_all_at(&[3; 512], 512).expect("space");
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let bytes = content(&disk.reopen(seed), "a");
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        seen.insert(sectors);
    }
    let all: Vec<_> = [1, 2, 3].iter().flat_map(|&b| [1, 2].map(|c| vec![1, b, c, 1])).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all, "all that may be, and nothing else");
    file.sync_data().expect("a sync");
    assert!((0..50).all(|seed| content(&disk.reopen(seed), "a")[512] == 3));
}

#[test]
fn names_and_lengths_are_durable_only_after_a_sync() {
    let disk = FaultyDisk::new(1);
    let path = Path::new;
    let file = disk.create(path("a")).expect("a file");
    file.write_all_at(b"a", 0).expect("space");
    let after = |disk: &FaultyDisk| {
        let mut seen: Vec<Vec<PathBuf>> =
            (0..100).map(|seed| disk.reopen(seed).list(path("")).expect("names")).collect();
        seen.sort();
        seen.dedup();
        seen
    };
    let names = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(after(&disk), [names(&[]), names(&["a"])]);
    disk.sync_dir(path("")).expect("a sync");
    assert_eq!(after(&disk), [names(&["a"])]);
    let lengths = |disk: &FaultyDisk| {
        let mut seen: Vec<usize> = (0..50).map(|seed| content(&disk.reopen(seed), "a").len()).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(lengths(&disk), [0, 1]);
    file.sync_data().expect("a sync");
    assert_eq!(lengths(&disk), [1]);
    disk.rename(path("a"), path("b")).expect("a rename");
    assert_eq!(after(&disk), [names(&["a"]), names(&["b"])]);
    disk.sync_dir(path("")).expect("a sync");
    disk.remove(path("b")).expect("a removal");
    disk.create(path("c")).expect("a file");
    assert_eq!(after(&disk).len(), 4, "each of the two may have reached the medium without the other");
}

#[test]
fn after_a_failed_sync_a_later_one_promises_nothing_until_the_bytes_are_written_again() {
    let disk = FaultyDisk::new(1);
    let file = disk.create(Path::new("a")).expect("a file");
    disk.sync_dir(Path::new("")).expect("a sync");
    file.write_all_at(&[1; 512], 0).expect("space");
    file.sync_data().expect("a sync");
    file.write_all_at(&[2; 512], 0).expect("space");
    disk.fail_at(disk.operations() + 1, Fault::Eio);
    file.sync_data().expect_err("it fails");
    file.sync_data().expect("the system says that all is well");
    assert_eq!(content(&disk, "a")[0], 2, "and shows it");
    assert!((0..50).any(|seed| content(&disk.reopen(seed), "a")[0] == 1), "but it may be lost");
    file.write_all_at(&[2; 512], 0).expect("space");
    file.sync_data().expect("a sync");
    assert!((0..50).all(|seed| content(&disk.reopen(seed), "a")[0] == 2));
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let disk = FaultyDisk::new(seed);
        let file = disk.create(Path::new("a")).expect("a file");
        disk.sync_dir(Path::new("")).expect("a sync");
        file.write_all_at(&[1; 8192], 0).expect("space");
        file.sync_data().expect("a sync");
        disk.fail_at(disk.operations() + 1, Fault::Torn);
        file.write_all_at(&[2; 8192], 0).expect_err("it is torn");
        content(&disk.reopen(seed), "a")
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
    assert!(run(5).contains(&1) && run(5).contains(&2));
}

#[test]
fn without_power_nothing_works_and_a_short_write_is_short() {
    let disk = FaultyDisk::new(1);
    let file = disk.create(Path::new("a")).expect("a file");
    disk.fail_at(2, Fault::Short { bytes: 3 });
    assert_eq!(kind(file.write_all_at(b"abcdef", 0)), ErrorKind::StorageFull);
    assert_eq!(content(&disk, "a"), b"abc");
    disk.cut_at(4);
    file.write_all_at(b"xyz", 0).expect("there is power");
    for result in [file.sync_data(), file.len().map(drop), disk.list(Path::new("")).map(drop)] {
        assert_eq!(result.expect_err("there is none").to_string(), "the power is off");
    }
    assert_eq!(disk.operations(), 3);
}
