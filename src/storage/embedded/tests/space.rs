//! The full disk: whenever it comes the log opens, reads and heals; builds leave the reserve alone.

use std::path::Path;

use super::*;
use crate::storage::BALLAST_NAME;
use crate::storage::block_store::{BlockReader, BlockStoreError, BlockWriter};

fn new_store() -> Arc<dyn BlockStore> {
    Arc::new(MemoryBlockStore::default())
}

fn with_reserve(bytes: u64) -> Options {
    Options { disk_reserve_bytes: bytes, ..options(1) }
}

fn is_full(log: &Stepped) -> bool {
    match &*log.shared.health.lock() {
        Health::Full(_) => true,
        Health::Ok => false,
        other => panic!("{other:?}"),
    }
}

fn all_space_but(disk: &FaultyDisk, free_bytes: u64) {
    disk.set_capacity(disk.used_bytes(Path::new("")).expect("a number") + free_bytes);
}

/// Works on when the disk is full; gives back the publish that was refused, if one was.
fn work_on(log: &mut Stepped, model: &mut Model, random: &mut StdRng) -> Option<Publish> {
    let mut refused = None;
    for _ in 0..30 {
        match random.random_range(0..6) {
            // As the keeper does: a volume that has no space is not begun.
            0 if log.keeper.may_build() => {
                if let Err(error) = log.keeper.build() {
                    assert!(is_full(log) || log.shared.disk.free_bytes().expect("a number") < 1 << 20, "{error}");
                }
            }
            1 => {
                log.keeper.retain();
                log.committer.step();
                let _ = log.keeper.rewrite();
            }
            2 => log.keeper.reserve(),
            3.. if refused.is_none() => {
                let publish = model.invent(random);
                match log.publish(std::slice::from_ref(&publish)).pop().expect("one answer") {
                    Ok(appended) => model.took(&publish, &appended, 1),
                    Err(error) => {
                        assert_eq!(error.code, Code::StorageFull, "{error:?}");
                        refused = Some(publish);
                    }
                }
            }
            _ => {}
        }
        model.check(log);
    }
    refused
}

#[test]
fn whenever_the_disk_becomes_full_the_log_opens_and_reads_and_space_heals_it() {
    for seed in seeds().into_iter().take(3) {
        println!("ROOMLOG_TEST_SEED={seed}");
        let run = |fill: Option<(u64, u64)>| {
            let (disk, store) = (FaultyDisk::new(seed), new_store());
            let mut log = Stepped::open(with_reserve(1 << 20), &disk, &store).expect("a new log");
            log.keeper.tend_ballast();
            let begun = disk.operations();
            if let Some((at, free)) = fill {
                disk.fill_at(begun + at, free);
            }
            let (mut model, mut random) = (Model::default(), StdRng::seed_from_u64(seed));
            let refused = work_on(&mut log, &mut model, &mut random);
            (disk.operations() - begun, disk, store, log, model, refused)
        };
        let operations = run(None).0;
        let mut random = StdRng::seed_from_u64(!seed);
        for round in 0..24 {
            let free = [0, 1, 511, 512, 1024, 4096, 30_000, 1 << 20][round % 8];
            let at = random.random_range(1..=operations);
            println!("all but {free} bytes are taken at operation {at} of {operations}");
            let (_, disk, store, log, mut model, refused) = run(Some((at, free)));
            let disk = match round % 3 {
                0 => disk.after_kill(seed),
                1 => disk.reopen(seed ^ at),
                _ => {
                    // The mark may find no space: then the next start looks through the journal's end.
                    let _ = log.close();
                    disk.after_kill(seed)
                }
            };
            all_space_but(&disk, free % 600);
            let mut log = Stepped::open(with_reserve(1 << 20), &disk, &store).expect("it opens on a full disk");
            log.keeper.judge_space();
            assert!(is_full(&log));
            model.check(&log);
            let publish = refused.unwrap_or_else(|| model.invent(&mut random));
            let answer = log.publish(std::slice::from_ref(&publish)).pop().expect("one answer");
            assert_eq!(answer.expect_err("the disk is full").code, Code::StorageFull);
            model.check_repeats(&mut log);

            disk.set_capacity(64 << 20);
            log.keeper.reserve();
            log.keeper.tend_ballast();
            assert_eq!(log.shared.ballast.bytes(), 64 << 10, "what the ballast gave it has again");
            let appended = log.publish(std::slice::from_ref(&publish)).pop().expect("one answer").expect("healed");
            model.took(&publish, &appended, 1);
            log.keeper.build().expect("there is space");
            model.check(&log);
            model.check_repeats(&mut log);
            log.close().expect("closed");
            let log = Stepped::open(with_reserve(1 << 20), &disk, &store).expect("it opens");
            model.check(&log);
        }
    }
}

#[test]
fn without_a_reserve_there_is_no_ballast_and_a_full_disk_does_not_open_but_loses_nothing() {
    let (disk, store) = (FaultyDisk::new(1), new_store());
    let mut log = Stepped::open(options(1), &disk, &store).expect("a new log");
    log.keeper.tend_ballast();
    log.publish(&[Source::new("one").next(3, 10)]).pop().expect("one answer").expect("stored");
    drop(log);
    assert!(disk.open(Path::new(BALLAST_NAME)).is_err(), "nobody asked for one");
    let disk = disk.after_kill(1);
    all_space_but(&disk, 0);
    let refused = Stepped::open(options(1), &disk, &store).err().expect("there is no space for a new mark");
    assert!(refused.to_string().contains("run.tmp"), "{refused}");
    disk.set_capacity(u64::MAX);
    let log = Stepped::open(options(1), &disk, &store).expect("it opens");
    assert_eq!(log.read("one").len(), 3);
}

#[test]
fn retention_makes_space_on_a_disk_without_a_free_byte() {
    let (disk, store) = (FaultyDisk::new(1), new_store());
    let mut log = Stepped::open(with_reserve(32 << 20), &disk, &store).expect("a new log");
    let mut sources: Vec<_> = (0..10).map(|number| Source::new(&format!("short-{number}"))).collect();
    for round in 0..14 {
        for source in &mut sources {
            log.publish(&[source.next(1, 30_000)]).pop().expect("one answer").expect("stored");
        }
        if round == 7 {
            log.keeper.tend_ballast();
        }
    }
    all_space_but(&disk, 32 << 20);
    for bytes in [30_000, 10] {
        while log.publish(&[sources[0].next(1, bytes)]).pop().expect("one answer").is_ok() {}
    }
    all_space_but(&disk, 0);
    log.keeper.judge_space();
    assert!(is_full(&log));
    assert!(log.shared.ballast.bytes() > 1 << 20, "{} bytes", log.shared.ballast.bytes());

    log.keeper.retain();
    log.committer.step();
    for number in 0..10 {
        let records = log.read(&format!("short-{number}")).len();
        assert_eq!(records, 5, "floors rise on a full disk");
    }
    assert!(is_full(&log), "and publishes are refused still");
    assert!(log.keeper.may_build(), "the volume is short, and what it lets go is long");
    log.keeper.build().expect("built");
    log.keeper.judge_space();
    let free = disk.free_bytes().expect("a number");
    assert!(free > 3 << 20, "the journal's files are given back, not kept: {free} bytes are free");
}

#[test]
fn a_volume_with_nothing_left_goes_without_another_one_being_written() {
    let (disk, store) = (FaultyDisk::new(1), new_store());
    let rule = Retention { rooms: "*".to_owned(), max_age: Some(Duration::from_secs(3600)), ..Retention::default() };
    let aged = Options { retention: vec![rule], ..with_reserve(1 << 20) };
    let mut log = Stepped::open(aged, &disk, &store).expect("a new log");
    log.keeper.tend_ballast();
    log.publish(&[Source::new("one").next(10, 3000)]).pop().expect("one answer").expect("stored");
    log.keeper.build().expect("built");
    log.shared.clock_ahead_us.fetch_add(7_200_000_000, Ordering::Relaxed);
    all_space_but(&disk, 0);
    log.keeper.judge_space();
    assert!(is_full(&log));
    log.keeper.retain();
    log.committer.step();
    let next = log.keeper.rewrite().expect("nothing fails");
    assert_eq!((next, log.shared.volumes.infos().len()), (crate::storage::embedded::keeper::Tidied::Some, 0));
}

#[test]
fn no_volume_is_begun_that_would_take_from_the_reserve_and_publishers_are_refused_instead_of_waiting() {
    let (disk, store) = (FaultyDisk::new(1), new_store());
    let tight = Options { stretch_bytes: 2 << 20, journal_bytes_max: 4 << 20, ..with_reserve(4 << 20) };
    let mut log = Stepped::open(tight, &disk, &store).expect("a new log");
    let mut source = Source::new("one");
    let mut publish = |log: &mut Stepped, megabytes: usize| {
        for _ in 0..megabytes * 16 {
            log.publish(&[source.next(1, 65_000)]).pop().expect("one answer").expect("stored");
        }
    };
    let volumes = |log: &Stepped| log.shared.volumes.infos().len();
    publish(&mut log, 3);
    all_space_but(&disk, 6 << 20);
    log.keeper.step();
    assert_eq!((volumes(&log), is_full(&log)), (0, false), "publishing goes on while the journal may grow");
    disk.set_capacity(u64::MAX);
    publish(&mut log, 2);
    all_space_but(&disk, 6 << 20);
    for _ in 0..2 {
        log.keeper.step();
    }
    assert_eq!((volumes(&log), is_full(&log)), (0, true), "at the journal's limit nobody is left to wait");
    assert!(disk.free_bytes().expect("a number") >= 4 << 20);
    disk.set_capacity(u64::MAX);
    for _ in 0..2 {
        log.keeper.step();
    }
    assert_eq!((volumes(&log), is_full(&log)), (1, false), "space has come back");
    assert!(!log.shared.behind.load(Ordering::Relaxed));
    publish(&mut log, 1);
}

/// A store that cannot open a volume without some space, as sled cannot on file systems that write nothing in place.
#[derive(Debug)]
struct Needy(MemoryBlockStore, FaultyDisk);

impl BlockStore for Needy {
    fn create(&self, directory: &Path) -> Result<Box<dyn BlockWriter>, BlockStoreError> {
        self.0.create(directory)
    }

    fn open(&self, directory: &Path) -> Result<Arc<dyn BlockReader>, BlockStoreError> {
        if self.1.free_bytes().expect("a number") < 10_000 {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(BlockStoreError::Io { path: directory.display().to_string(), source });
        }
        self.0.open(directory)
    }

    fn remove(&self, directory: &Path) -> Result<(), BlockStoreError> {
        self.0.remove(directory)
    }

    fn used_bytes(&self, directory: &Path) -> Result<u64, BlockStoreError> {
        self.0.used_bytes(directory)
    }
}

#[test]
fn a_volume_that_needs_space_to_be_opened_gets_it_of_the_ballast() {
    let disk = FaultyDisk::new(1);
    let store: Arc<dyn BlockStore> = Arc::new(Needy(MemoryBlockStore::default(), disk.clone()));
    let few = Options { tails_bytes_max: 0, ..with_reserve(1 << 20) };
    let mut log = Stepped::open(few, &disk, &store).expect("a new log");
    log.keeper.tend_ballast();
    log.publish(&[Source::new("one").next(10, 3000)]).pop().expect("one answer").expect("stored");
    log.keeper.build().expect("built");
    all_space_but(&disk, 0);
    assert_eq!(log.read("one").len(), 10);
    assert!(log.shared.ballast.bytes() < 64 << 10);
}
