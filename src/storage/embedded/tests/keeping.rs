//! What the keeper must not do: build for nothing, wait for ever, believe a failed commit, count twice.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::storage::block_store::{BlockKey, BlockReader, BlockStoreError, BlockWriter};
use crate::storage::embedded::keeper::KeepError;
use crate::storage::volume::VolumeError;

fn new_store() -> Arc<dyn BlockStore> {
    Arc::new(MemoryBlockStore::default())
}

fn ahead(log: &Stepped, by: Duration) {
    let by = u64::try_from(by.as_micros()).expect("a short time");
    log.shared.clock_ahead_us.fetch_add(by, Ordering::Relaxed);
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_start_opens_as_many_of_the_newest_volumes_as_the_budget_of_open_ones_admits() {
    let (disk, store) = (FaultyDisk::new(2), new_store());
    let aged = Options { publisher_age_max: 1000 * HOUR, ..options(1) };
    let mut log = Stepped::open(aged.clone(), &disk, &store).expect("a new log");
    let mut publisher = Source::new("one");
    for _ in 0..3 {
        log.publish(&[publisher.next(1, 10)]).pop().expect("one answer").expect("stored");
        log.keeper.step();
        ahead(&log, 25 * HOUR);
        log.keeper.step();
    }
    log.close().expect("closed");
    for (budget, opened) in [(1 << 20, 0), (32 << 20, 2), (256 << 20, 3)] {
        let options = Options { open_volumes_bytes_max: budget, ..aged.clone() };
        let mut log = Stepped::open(options, &disk, &store).expect("the same log");
        assert_eq!(log.shared.volumes.infos().len(), 3);
        log.keeper.open_newest_volumes();
        assert_eq!(log.shared.volumes.in_use().open_stores, opened, "within {budget}");
        log.close().expect("closed");
    }
}

#[test]
fn a_stretch_that_was_built_for_its_age_is_not_due_again_with_the_next_record() {
    let remembering = Options { publisher_age_max: 100 * HOUR, ..options(1) };
    let mut log = Stepped::open(remembering, &FaultyDisk::new(1), &new_store()).expect("a new log");
    let mut publisher = Source::new("one");
    let volumes = |log: &Stepped| log.shared.volumes.infos().len();
    log.publish(&[publisher.next(1, 10)]).pop().expect("one answer").expect("stored");
    log.keeper.step();
    ahead(&log, 25 * HOUR);
    log.keeper.step();
    assert_eq!(volumes(&log), 1, "a day has passed");
    for _ in 0..5 {
        log.publish(&[publisher.next(1, 10)]).pop().expect("one answer").expect("stored");
        log.keeper.step();
    }
    assert_eq!(volumes(&log), 1, "the new stretch is young");
    ahead(&log, 25 * HOUR);
    log.keeper.step();
    assert_eq!(volumes(&log), 2);
}

#[test]
fn a_short_stretch_is_not_due_again_while_its_journal_file_is_in_use() {
    let stretch = Options { stretch_bytes: 100 << 10, ..options(1) };
    let mut log = Stepped::open(stretch, &FaultyDisk::new(1), &new_store()).expect("a new log");
    let mut publisher = Source::new("one");
    for round in 1..=3 {
        for _ in 0..3 {
            log.publish(&[publisher.next(1, 30_000)]);
            log.keeper.step();
            assert_eq!(log.shared.volumes.infos().len(), round - 1);
        }
        log.publish(&[publisher.next(1, 30_000)]);
        log.keeper.step();
        assert_eq!(log.shared.volumes.infos().len(), round);
    }
}

#[test]
fn publishers_go_on_when_the_journal_may_be_no_longer_than_a_stretch() {
    let tight = Options { stretch_bytes: 2 << 20, journal_bytes_max: 2 << 20, ..options(1) };
    let mut log = Stepped::open(tight, &FaultyDisk::new(1), &new_store()).expect("a new log");
    let mut publisher = Source::new("one");
    for _ in 0..40 {
        log.publish(&[publisher.next(2, 60_000)]).pop().expect("one answer").expect("stored");
        log.keeper.step();
        assert!(!log.shared.behind.load(Ordering::Relaxed), "the keeper has made room");
    }
}

#[test]
fn a_checkpoint_does_not_wait_for_a_commit_that_had_nothing_to_write() {
    let mut log = Stepped::open(options(1), &FaultyDisk::new(1), &new_store()).expect("a new log");
    log.publish(&[Source::new("one").next(1, 10)]);
    let (shared, durable) = (Arc::clone(&log.shared), log.shared.committed.lock().seq);
    shared.making.store(durable.next().0, Ordering::SeqCst);
    let (done, ended) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let waited = log.keeper.wait_until_durable();
        done.send(waited.is_ok()).expect("the test waits");
    });
    assert!(ended.recv_timeout(Duration::from_millis(200)).is_err(), "a commit is being made");
    // All that it was to hold was refused.
    shared.making.store(durable.0, Ordering::SeqCst);
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(true), "there is no commit to wait for");
    waiting.join().expect("no panic");
}

#[test]
fn a_checkpoint_never_holds_what_a_failed_commit_would_have_stored() {
    let (disk, store) = (FaultyDisk::new(1), new_store());
    let mut log = Stepped::open(options(1), &disk, &store).expect("a new log");
    let mut publisher = Source::new("one");
    log.publish(&[publisher.next(1, 10)]).pop().expect("one answer").expect("stored");
    disk.fail_at(disk.operations() + 1, Fault::Eio);
    let lost = publisher.next(1, 10);
    log.publish(std::slice::from_ref(&lost)).pop().expect("one answer").expect_err("the disk fails");
    assert!(log.keeper.build().is_err(), "what the rooms remember is not to be trusted any more");
    drop(log);
    let mut log = Stepped::open(options(1), &disk.reopen(1), &store).expect("it opens");
    let head = log.shared.catalog.facts("one").expect("a room").head;
    let again = log.publish(&[lost]).pop().expect("one answer").expect("stored now, or found to be there");
    assert_eq!(again.duplicate, head == Offset(2), "{again:?}");
    assert_eq!(log.read("one").len(), 2);
}

#[test]
fn floors_that_rise_again_before_they_are_committed_are_not_counted_twice() {
    let rule = Retention { rooms: "*".to_owned(), max_age: Some(10 * HOUR), ..Retention::default() };
    let aged = Options { retention: vec![rule], ..options(1) };
    let mut log = Stepped::open(aged, &FaultyDisk::new(1), &new_store()).expect("a new log");
    let mut publisher = Source::new("one");
    for _ in 0..10 {
        log.publish(&[publisher.next(1, 10)]);
        ahead(&log, HOUR);
    }
    ahead(&log, 5 * HOUR / 2);
    log.keeper.retain();
    // Not quite: the sixth record is a moment short of its age, however long the test takes.
    ahead(&log, 3 * HOUR - Duration::from_secs(600));
    log.keeper.retain();
    assert_eq!(log.committer.step(), Step::Answered);
    log.read("one");
    log.keeper.retain();
    log.committer.step();
    assert_eq!(log.read("one").len(), 4);
}

#[test]
fn the_oldest_record_keeps_its_own_time_when_retention_ends_with_a_block() {
    let rule = Retention { rooms: "*".to_owned(), max_records: Some(3), ..Retention::default() };
    let few = Options { retention: vec![rule], tails_bytes_max: 0, ..options(1) };
    let mut log = Stepped::open(few, &FaultyDisk::new(1), &new_store()).expect("a new log");
    let mut publisher = Source::new("one");
    // As long as a batch may be: what follows is in a block of its own.
    log.publish(&[publisher.next(5, 13_085)]).pop().expect("one answer").expect("stored");
    let mut times = Vec::new();
    for _ in 0..3 {
        ahead(&log, HOUR);
        times.push(log.publish(&[publisher.next(1, 10)]).pop().expect("one answer").expect("stored").time);
    }
    log.keeper.retain();
    log.committer.step();
    let facts = log.shared.catalog.facts("one").expect("a room");
    assert_eq!((facts.first, facts.first_time, facts.records), (Offset(6), times[0], 3));
}

#[test]
fn a_disk_that_has_space_but_not_for_a_journal_file_stays_full() {
    let disk = FaultyDisk::new(1);
    let mut log = Stepped::open(options(1), &disk, &new_store()).expect("a new log");
    disk.set_capacity(3 << 20);
    let mut publisher = Source::new("one");
    while log.publish(&[publisher.next(1, 30_000)]).pop().expect("one answer").is_ok() {}
    assert!(matches!(*log.shared.health.lock(), Health::Full(_)));
    log.keeper.reserve();
    assert!(matches!(*log.shared.health.lock(), Health::Full(_)), "nothing has changed");
    disk.set_capacity(64 << 20);
    log.keeper.reserve();
    assert_eq!(*log.shared.health.lock(), Health::Ok);
}

#[test]
fn rooms_that_were_only_looked_at_leave_memory_again() {
    let mut log = Stepped::open(options(1), &FaultyDisk::new(1), &new_store()).expect("a new log");
    let names: Vec<_> = (0..3000).map(|number| format!("room {number}")).collect();
    let publishes: Vec<_> = names.iter().map(|name| Source::new(name).next(1, 10)).collect();
    log.publish(&publishes);
    log.keeper.build().expect("built");
    for name in &names {
        log.read(name);
    }
    let loaded = |log: &Stepped| log.shared.catalog.counts().1;
    assert_eq!(loaded(&log), 3000);
    log.shared.catalog.unload_if_many();
    assert!(loaded(&log) < 100, "{} are loaded", loaded(&log));
    for publish in &publishes {
        let again = log.publish(std::slice::from_ref(publish)).pop().expect("one answer").expect("a repeat");
        assert!(again.duplicate, "what it remembers has come back");
    }
}

#[test]
fn very_many_new_rooms_make_a_stretch_due_and_rooms_that_are_known_do_not() {
    const ROOMS: usize = 1 << 16;
    let mut log = Stepped::open(options(1), &FaultyDisk::new(1), &new_store()).expect("a new log");
    let publish_to = |log: &mut Stepped, rooms: std::ops::Range<usize>, seq| {
        let publishes = rooms.map(|room| Publish { seq, ..Source::new(&format!("room {room}")).next(1, 10) });
        for publishes in publishes.collect::<Vec<_>>().chunks(4096) {
            assert!(log.publish(publishes).iter().all(Result::is_ok), "stored");
        }
        log.keeper.step();
        log.shared.volumes.infos().len()
    };
    assert_eq!(publish_to(&mut log, 0..ROOMS - 1, 1), 0, "one is missing");
    assert_eq!(publish_to(&mut log, ROOMS - 1..ROOMS, 1), 1);
    assert!(log.shared.catalog.counts().1 < ROOMS, "the stretch has let go of them");
    assert_eq!(publish_to(&mut log, 0..ROOMS, 2), 1, "no room is new");
}

#[test]
fn a_stretch_that_is_due_does_not_wait_for_the_end_of_a_rewrite_whenever_the_power_goes() {
    let short = || Options { stretch_bytes: 100_000, ..options(1) };
    // Eight small volumes, which are joined, and a stretch that is due.
    let run = |cut: Option<u64>| {
        let (disk, store) = (FaultyDisk::new(1), new_store());
        let mut log = Stepped::open(short(), &disk, &store).expect("a new log");
        let mut publishers = ["one", "two"].map(Source::new);
        let mut publish = |log: &mut Stepped, bytes| {
            for publisher in &mut publishers {
                log.publish(&[publisher.next(3, bytes)]).pop().expect("one answer").expect("stored");
            }
        };
        for _ in 0..8 {
            publish(&mut log, 100);
            log.keeper.build().expect("built");
        }
        publish(&mut log, 30_000);
        assert!(log.keeper.stretch_is_due());
        let before = disk.operations();
        if let Some(cut) = cut {
            disk.cut_at(before + cut);
        }
        let rewritten = log.keeper.rewrite();
        assert!(rewritten.is_ok() || cut.is_some(), "the disk is fine: {rewritten:?}");
        (disk, store, log, before)
    };
    let volumes = |log: &Stepped| -> Vec<_> {
        log.shared.volumes.infos().iter().map(|info| (info.id.0, info.commit_first, info.commit_last)).collect()
    };
    let check = |log: &Stepped| {
        for room in ["one", "two"] {
            let payloads: Vec<_> = log.read(room).into_iter().map(|(_, payload)| payload).collect();
            let lengths: Vec<_> = payloads.iter().map(Vec::len).collect();
            assert_eq!(lengths, [[100; 24].as_slice(), &[30_000; 3]].concat(), "{room}");
            assert!(payloads.iter().zip(1..).all(|(payload, seq)| payload.starts_with(seq.to_string().as_bytes())));
        }
    };
    let (disk, store, mut log, before) = run(None);
    assert_eq!(volumes(&log), [(9, 1, 16), (10, 17, 18)]);
    log.keeper.step();
    assert_eq!(volumes(&log).len(), 2, "nothing is due any more");
    check(&log);
    log.close().expect("closed");
    check(&Stepped::open(short(), &disk, &store).expect("it opens"));
    for cut in 1..=disk.operations() - before {
        let (disk, store, log, _) = run(Some(cut));
        drop(log);
        let disk = disk.reopen(cut);
        let mut log = Stepped::open(short(), &disk, &store).expect("it opens after a power cut");
        check(&log);
        log.keeper.step();
        log.keeper.rewrite().expect("the disk is fine now");
        assert!((2..=3).contains(&volumes(&log).len()), "cut at {cut}: {:?}", volumes(&log));
        check(&log);
    }
}

#[test]
fn a_log_that_is_closed_does_not_wait_for_the_end_of_a_rewrite() {
    let (disk, store) = (FaultyDisk::new(1), new_store());
    let mut log = Stepped::open(options(1), &disk, &store).expect("a new log");
    let mut publisher = Source::new("one");
    for _ in 0..8 {
        log.publish(&[publisher.next(3, 100)]).pop().expect("one answer").expect("stored");
        log.keeper.build().expect("built");
    }
    log.shared.keeper.lock().stop = true;
    assert!(matches!(log.keeper.rewrite(), Err(KeepError::Volume(VolumeError::Stopped))));
    assert_eq!(log.shared.volumes.infos().len(), 8, "as they were");
    assert_eq!(log.read("one").len(), 24);
    log.close().expect("closed");
    let mut log = Stepped::open(options(1), &disk, &store).expect("it opens");
    log.keeper.rewrite().expect("nothing fails");
    assert_eq!(log.shared.volumes.infos().len(), 1);
    assert_eq!(log.read("one").len(), 24);
}

/// A store that looks at something before it finishes a volume.
struct Witness {
    store: MemoryBlockStore,
    look: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Witness")
    }
}

struct WitnessWriter(Box<dyn BlockWriter>, Arc<dyn Fn() + Send + Sync>);

impl BlockWriter for WitnessWriter {
    fn put(&mut self, key: BlockKey, value: &[u8]) -> Result<(), BlockStoreError> {
        self.0.put(key, value)
    }

    fn finish(self: Box<Self>) -> Result<(), BlockStoreError> {
        (self.1)();
        self.0.finish()
    }
}

impl BlockStore for Witness {
    fn create(&self, directory: &Path) -> Result<Box<dyn BlockWriter>, BlockStoreError> {
        Ok(Box::new(WitnessWriter(self.store.create(directory)?, Arc::clone(&self.look))))
    }

    fn open(&self, directory: &Path) -> Result<Arc<dyn BlockReader>, BlockStoreError> {
        self.store.open(directory)
    }

    fn remove(&self, directory: &Path) -> Result<(), BlockStoreError> {
        self.store.remove(directory)
    }

    fn used_bytes(&self, directory: &Path) -> Result<u64, BlockStoreError> {
        self.store.used_bytes(directory)
    }
}

#[test]
fn publishers_wait_at_the_limit_of_the_journal_while_a_volume_is_built_too() {
    let tight = Options { stretch_bytes: 4 << 20, journal_bytes_max: 8 << 20, ..options(1) };
    let watched = Arc::new(OnceLock::<Arc<Shared>>::new());
    let waited = Arc::new(AtomicBool::new(false));
    let look = {
        let (watched, waited) = (Arc::clone(&watched), Arc::clone(&waited));
        move || {
            let shared = watched.get().expect("a volume is built of a log");
            waited.fetch_or(shared.behind.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    };
    let store = Arc::new(Witness { store: MemoryBlockStore::default(), look: Arc::new(look) }) as Arc<dyn BlockStore>;
    let mut log = Stepped::open(tight, &FaultyDisk::new(1), &store).expect("a new log");
    assert!(watched.set(Arc::clone(&log.shared)).is_ok(), "set once");
    let mut publisher = Source::new("one");
    for _ in 0..160 {
        log.publish(&[publisher.next(1, 60_000)]).pop().expect("one answer").expect("stored");
    }
    assert!(!log.shared.behind.load(Ordering::Relaxed), "the keeper has not looked yet");
    log.keeper.build().expect("built");
    assert!(waited.load(Ordering::Relaxed), "publishers were made to wait during the build");
    assert!(!log.shared.behind.load(Ordering::Relaxed), "and go on behind it");
}
