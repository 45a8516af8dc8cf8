//! The model test of the log: random operations, the power cut at any disk operation, reopened, against plain lists.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::committer::{Committer, Step};
use super::keeper::Keeper;
use super::recovery::{Parts, assemble};
use super::*;
use crate::protocol::{BATCH_BYTES_MAX, Batch, RecordArea};
use crate::storage::block_store::{BlockStore, MemoryBlockStore};
use crate::storage::disk::{Fault, FaultyDisk};
use crate::storage::engine::{Appended, Outcome, Reply, record_hash};
use crate::storage::options::Retention;
use crate::storage::room::Targets;
use crate::types::{NewRecord, Offset, PublisherId, Time};

mod committing;
mod keeping;
mod reading;
mod seats;
mod space;

/// The outgoing queue of a publisher in a room.
struct Source {
    room: String,
    seq: u64,
}

impl Source {
    fn new(room: &str) -> Self {
        Self { room: room.to_owned(), seq: 1 }
    }

    /// The next publish: so many records of so many bytes each.
    fn next(&mut self, records: u64, bytes: usize) -> Publish {
        let seq = self.seq;
        self.seq += records;
        let payloads = (seq..self.seq).map(|number| {
            let mut payload = number.to_string().into_bytes();
            payload.resize(bytes.max(payload.len()), b'x');
            payload
        });
        Publish { room: self.room.clone(), publisher: PublisherId([7; 16]), seq, payloads: payloads.collect() }
    }
}

/// A log without threads: the test is the committer and the keeper.
struct Stepped {
    shared: Arc<Shared>,
    committer: Committer,
    keeper: Keeper,
    answers: Arc<Answers>,
}

#[derive(Debug, Default)]
struct Answers(Mutex<Vec<(u32, Outcome)>>);

impl Reply for Answers {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        self.0.lock().extend(answers.iter().map(|answer| (answer.tag, answer.outcome.clone())));
    }
}

fn options(stride: u64) -> Options {
    Options {
        offset_stride: stride,
        disk_reserve_bytes: 0,
        tails_bytes_max: 2000,
        retention: vec![
            Retention { rooms: "short-*".to_owned(), max_records: Some(5), ..Retention::default() },
            Retention { rooms: "small".to_owned(), max_bytes: Some(3000), ..Retention::default() },
            Retention { rooms: "young".to_owned(), max_age: Some(Duration::from_secs(3600)), ..Retention::default() },
        ],
        ..Options::new("")
    }
}

impl Stepped {
    fn open(options: Options, disk: &FaultyDisk, store: &Arc<dyn BlockStore>) -> Result<Self, OpenError> {
        let disk = Arc::new(disk.clone());
        let parts = assemble(options, Arc::new(Metrics::disabled()), disk, Arc::clone(store))?;
        let Parts { shared, journal, manifest, next_room } = parts;
        let keeper = Keeper::new(Arc::clone(&shared), manifest, journal.files());
        let committer = Committer::new(Arc::clone(&shared), journal, next_room);
        Ok(Self { shared, committer, keeper, answers: Arc::default() })
    }

    /// Hands over publishes, commits them together, and gives their answers in order.
    fn publish(&mut self, publishes: &[Publish]) -> Vec<Outcome> {
        let mut submission = Submission::new(Arc::clone(&self.answers) as Arc<dyn Reply>);
        for (tag, publish) in publishes.iter().enumerate() {
            let mut area = Vec::new();
            for payload in &publish.payloads {
                RecordArea::push(&mut area, &NewRecord::new(payload));
            }
            let mut hashes = Vec::new();
            let mut rest = RecordArea(&area);
            while let Some((record, behind)) = rest.split_first().expect("encoded just now") {
                hashes.push(record_hash(record));
                rest = behind;
            }
            let room = match self.shared.catalog.room(&publish.room) {
                Ok(room) => room,
                // As a session does: the publish is refused.
                Err(error) => return publishes.iter().map(|_| Err(Refused::from_engine(&error))).collect(),
            };
            let tag = u32::try_from(tag).expect("few");
            submission.push(&room, &Arc::from(""), publish.publisher, publish.seq, None, tag, &area, &hashes);
        }
        assert!(self.shared.queue.submit(&mut submission));
        assert_eq!(self.committer.step(), Step::Answered);
        let mut answers = std::mem::take(&mut *self.answers.0.lock());
        answers.sort_by_key(|(tag, _)| *tag);
        assert_eq!(answers.len(), publishes.len(), "each publish is answered once");
        answers.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// All that is retained of a room, from its floor on.
    fn read(&self, room: &str) -> Vec<(u64, Vec<u8>)> {
        let room = self.shared.catalog.room(room).expect("a room");
        let (mut at, mut seen) = (room.facts().floor, Vec::new());
        loop {
            let block = match self.shared.read(&room, ReadAt::After(at)).expect("what is retained can be read") {
                Read::Block(block) => block,
                Read::Nothing => break,
            };
            assert!(block.prev <= at && block.last > at, "the block follows the place: {block:?}, {at}");
            let batch = Batch::parse(&block.body).expect("a batch");
            let (bytes, count) = (block.body.len(), batch.header.count);
            assert!(bytes <= BATCH_BYTES_MAX || count == 1, "{count} records in a body of {bytes} bytes");
            for record in batch.records(block.prev) {
                let record = record.expect("a record");
                if record.offset > at {
                    assert_eq!(record.prev, at, "the chain is unbroken");
                    seen.push((record.offset.0, record.content.payload.to_vec()));
                    at = record.offset;
                }
            }
        }
        assert_eq!(at, room.facts().head, "everything up to the head is there");
        assert_eq!(seen.len() as u64, room.facts().records, "the count is right");
        assert_eq!(seen.first().map_or(0, |(offset, _)| *offset), room.facts().first.0, "the first is right");
        // The same from behind.
        let (mut before, mut offsets) = (Offset::MAX, Vec::new());
        while let Read::Block(block) = self.shared.read(&room, ReadAt::Before(before)).expect("readable") {
            let batch = Batch::parse(&block.body).expect("a batch");
            assert!(block.body.len() <= BATCH_BYTES_MAX || batch.header.count == 1, "a body that is too long");
            let all: Vec<_> = batch.records(block.prev).map(|record| record.expect("a record").offset).collect();
            offsets.extend(all.iter().rev().filter(|at| **at < before && **at > room.facts().floor).map(|at| at.0));
            before = block.first;
        }
        offsets.reverse();
        assert_eq!(offsets, seen.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), "backward as forward");
        seen
    }

    /// A read from any place, in any way, finds what a walk through the whole room finds.
    fn read_anywhere(&self, name: &str, random: &mut StdRng) {
        let all = self.read(name);
        let room = self.shared.catalog.room(name).expect("a room");
        let facts = room.facts();
        let at = Offset(random.random_range(0..=facts.head.0 + 2));
        let read = |at| match self.shared.read(&room, at).expect("readable") {
            Read::Block(block) => Some(block),
            Read::Nothing => None,
        };
        let behind = all.iter().find(|(offset, _)| *offset > at.0);
        let found = read(ReadAt::After(at));
        assert_eq!(found.is_some(), behind.is_some(), "{name}: after {at}, {facts:?}");
        if let (Some(block), Some((first, _))) = (found, behind) {
            assert!(block.prev.0 < *first && block.last.0 >= *first, "{name}: after {at}: {block:?}");
        }
        let before = all.iter().rev().find(|(offset, _)| *offset < at.0);
        let found = read(ReadAt::Before(at));
        if let Some((last, _)) = before {
            let block = found.unwrap_or_else(|| panic!("{name}: nothing before {at}, {facts:?}"));
            assert!(block.first.0 <= *last && (block.last.0 >= *last), "{name}: before {at}: {block:?}");
        } else {
            assert!(found.is_none_or(|block| block.first <= facts.floor), "{name}: before {at}, {facts:?}");
        }
        // Since the time of some block: it, or one before it.
        if let Some(block) = read(ReadAt::After(at)) {
            let since = read(ReadAt::Since(block.last_time)).expect("there is a record of that time");
            assert!(since.first <= block.last, "{name}: since {:?}: {since:?}, {block:?}", block.last_time);
            assert!(since.last_time >= block.last_time);
        }
    }

    fn close(self) -> Result<(), super::super::error::StorageError> {
        self.shared.queue.close();
        let Self { shared, committer, .. } = self;
        shared.mark_clean(committer.run())
    }
}

impl Refused {
    fn from_engine(error: &EngineError) -> Self {
        Self::new(Code::StorageFailed, error.to_string())
    }
}

#[derive(Clone, Debug)]
struct Publish {
    room: String,
    publisher: PublisherId,
    seq: u64,
    payloads: Vec<Vec<u8>>,
}

const ROOMS: [&str; 7] = ["one", "two", "short-a", "short-b", "small", "young", "quiet"];

/// What must be in the log.
#[derive(Clone, Debug, Default)]
struct Model {
    rooms: HashMap<String, Vec<(u64, Vec<u8>)>>,
    seqs: HashMap<(String, PublisherId), u64>,
    acknowledged: Vec<(Publish, u64, u64)>,
    /// Publishes that were handed over and not answered with success: each is there whole, or not at all.
    unsure: Vec<Publish>,
}

impl Model {
    /// A publish that continues one of few publishers in one of few rooms.
    fn invent(&mut self, random: &mut StdRng) -> Publish {
        let room = ROOMS[random.random_range(0..ROOMS.len())].to_owned();
        let publisher = PublisherId([random.random_range(1..4); 16]);
        let seq = self.seqs.entry((room.clone(), publisher)).or_insert(1);
        let count = if random.random_bool(0.2) { random.random_range(2..20) } else { 1 };
        let large = random.random_bool(0.05);
        let payloads: Vec<_> = (0..count)
            .map(|index| {
                let bytes = if large { 40_000 } else { random.random_range(0..200) };
                let mut payload = format!("{room} {publisher} {} ", *seq + index).into_bytes();
                payload.resize(payload.len() + bytes, b'x');
                payload
            })
            .collect();
        let publish = Publish { room, publisher, seq: *seq, payloads };
        *seq += count;
        publish
    }

    fn took(&mut self, publish: &Publish, appended: &Appended, stride: u64) {
        let records = self.rooms.entry(publish.room.clone()).or_default();
        for (index, payload) in publish.payloads.iter().enumerate() {
            records.push((appended.first.0 + index as u64 * stride, payload.clone()));
        }
        assert_eq!(records.last().expect("just pushed").0, appended.last.0);
        self.acknowledged.push((publish.clone(), appended.first.0, appended.last.0));
    }

    /// What a log may hold after a cut: all that was acknowledged, in order, once, and perhaps the rest.
    fn check(&self, log: &Stepped) {
        for room in ROOMS {
            let seen = log.read(room);
            let facts = log.shared.catalog.facts(room).unwrap_or_default();
            let nothing = Vec::new();
            let known = self.rooms.get(room).unwrap_or(&nothing);
            let retained: Vec<_> = known.iter().filter(|(offset, _)| *offset > facts.floor.0).cloned().collect();
            let common = retained.len().min(seen.len());
            assert_eq!(seen[..common], retained[..common], "room {room}: what was acknowledged, in order");
            assert!(seen.len() >= retained.len(), "room {room}: nothing that was acknowledged is lost");
            let rest: Vec<_> = seen[retained.len()..].iter().map(|(_, payload)| payload.clone()).collect();
            let unsure = self.unsure.iter().filter(|publish| publish.room == room);
            let all: Vec<_> = unsure.flat_map(|publish| publish.payloads.clone()).collect();
            assert!(rest.is_empty() || rest == all, "room {room}: an unanswered commit is there whole or not at all");
            match room {
                "one" | "two" | "quiet" => assert_eq!(facts.floor, Offset::ZERO, "room {room} has no retention"),
                "small" | "young" => {}
                _ => assert!(known.len() < 5 || seen.len() >= 5, "room {room}: retention keeps five"),
            }
        }
    }

    /// Every acknowledged publish is still known: a repeat gets its offsets and adds nothing.
    fn check_repeats(&self, log: &mut Stepped) {
        for (publish, first, last) in self.acknowledged.iter().rev().take(40) {
            let outcome = log.publish(std::slice::from_ref(publish)).pop().expect("one answer");
            let appended = outcome.unwrap_or_else(|refused| panic!("a repeat of {publish:?} was refused: {refused:?}"));
            assert!(appended.duplicate, "a repeat is not a second record: {publish:?}");
            assert_eq!((appended.first.0, appended.last.0), (*first, *last));
        }
    }
}

/// With a stretch so short that most rewrites find one that is due.
fn busy_options(stride: u64) -> Options {
    Options { stretch_bytes: 2000, ..options(stride) }
}

/// Works until the disk fails; says how.
fn work(log: &mut Stepped, model: &mut Model, random: &mut StdRng, steps: usize, stride: u64) -> Result<(), String> {
    for _ in 0..steps {
        match random.random_range(0..20) {
            0 => {
                log.keeper.build().map_err(|error| format!("build: {error}"))?;
            }
            1 => {
                log.keeper.retain();
                log.committer.step();
                log.keeper.rewrite().map_err(|error| format!("rewrite: {error}"))?;
            }
            2 => log.keeper.reserve(),
            3 => {
                // All rooms that can be are loaded again from the checkpoint when they are needed.
                log.shared.catalog.unload();
            }
            4 => {
                log.shared.clock_ahead_us.fetch_add(random.random_range(0..1_200_000_000), Ordering::Relaxed);
            }
            5 => {
                // A floor that is chosen before a build, and committed behind it.
                log.keeper.retain();
                log.keeper.build().map_err(|error| format!("build: {error}"))?;
                log.committer.step();
            }
            _ => {
                let publishes: Vec<_> = (0..random.random_range(1..6)).map(|_| model.invent(random)).collect();
                let outcomes = log.publish(&publishes);
                if outcomes.iter().any(Result::is_err) {
                    assert!(outcomes.iter().all(Result::is_err), "a commit fails as a whole: {outcomes:?}");
                    model.unsure = publishes;
                    return Err(format!("publish: {outcomes:?}"));
                }
                for (publish, outcome) in publishes.iter().zip(outcomes) {
                    model.took(publish, &outcome.expect("checked"), stride);
                }
            }
        }
        if log.shared.disk.free_bytes().is_ok() {
            log.read_anywhere(ROOMS[random.random_range(0..ROOMS.len())], random);
        }
    }
    Ok(())
}

fn seeds() -> Vec<u64> {
    match std::env::var("ROOMLOG_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("ROOMLOG_TEST_SEED is a number")],
        Err(_) => (0..12).map(|_| rand::random::<u32>().into()).collect(),
    }
}

/// What was unsure is settled by repeating it, as a publisher does.
fn settle(log: &mut Stepped, model: &mut Model, stride: u64) {
    for publish in std::mem::take(&mut model.unsure) {
        let outcome = log.publish(std::slice::from_ref(&publish)).pop().expect("one answer");
        model.took(&publish, &outcome.expect("a repeat succeeds"), stride);
    }
}

fn cut_everywhere(seed: u64, stride: u64) {
    println!("ROOMLOG_TEST_SEED={seed} (stride {stride})");
    let run = |cut: Option<u64>| {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = FaultyDisk::new(seed);
        let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
        if let Some(cut) = cut {
            disk.cut_at(cut);
        }
        let mut model = Model::default();
        if let Ok(mut log) = Stepped::open(busy_options(stride), &disk, &store) {
            let worked = work(&mut log, &mut model, &mut random, 40, stride);
            assert!(worked.is_ok() || cut.is_some(), "the disk is fine: {worked:?}");
        }
        (disk, store, model)
    };
    let (disk, ..) = run(None);
    let operations = disk.operations();
    let mut random = StdRng::seed_from_u64(!seed);
    for _ in 0..25 {
        let cut = random.random_range(1..=operations);
        println!("cut at operation {cut} of {operations}");
        let (disk, store, mut model) = run(Some(cut));
        // Recovery is cut too, and then succeeds.
        let disk = disk.reopen(seed ^ cut);
        if random.random_bool(0.5) {
            disk.cut_at(disk.operations() + random.random_range(1..12));
            let _ = Stepped::open(busy_options(stride), &disk, &store);
        }
        let disk = disk.reopen(cut);
        let mut log = Stepped::open(busy_options(stride), &disk, &store).expect("it opens after a power cut");
        model.check(&log);
        model.check_repeats(&mut log);
        settle(&mut log, &mut model, stride);
        work(&mut log, &mut model, &mut random, 15, stride).expect("the disk is fine now");
        model.check(&log);
        log.close().expect("closed");
        // Offsets go on at another distance, and nobody minds.
        let other = 8 - stride;
        let mut log = Stepped::open(busy_options(other), &disk, &store).expect("it opens after a clean close");
        model.check(&log);
        work(&mut log, &mut model, &mut random, 10, other).expect("the disk is fine");
        model.check(&log);
        model.check_repeats(&mut log);
    }
}

#[test]
fn nothing_acknowledged_is_lost_whenever_the_power_goes() {
    for seed in seeds() {
        cut_everywhere(seed, 1);
    }
}

#[test]
fn nothing_leans_on_dense_offsets_when_the_power_goes() {
    for seed in seeds().into_iter().take(4) {
        cut_everywhere(seed, 7);
    }
}

#[test]
fn nothing_acknowledged_is_lost_whichever_operation_fails() {
    let faults = [Fault::Eio, Fault::Enospc, Fault::Torn, Fault::Short { bytes: 700 }];
    for seed in seeds().into_iter().take(3) {
        println!("ROOMLOG_TEST_SEED={seed}");
        let run = |failing: Option<(u64, Fault)>| {
            let mut random = StdRng::seed_from_u64(seed);
            let disk = FaultyDisk::new(seed);
            let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
            if let Some((operation, fault)) = failing {
                disk.fail_at(operation, fault);
            }
            let mut model = Model::default();
            if let Ok(mut log) = Stepped::open(busy_options(1), &disk, &store) {
                let worked = work(&mut log, &mut model, &mut random, 25, 1);
                assert!(worked.is_ok() || failing.is_some(), "nothing fails: {worked:?}");
                model.check(&log);
                // The disk works again. A log whose journal has not stopped goes on.
                if worked.is_err() && model.unsure.is_empty() {
                    let _ = work(&mut log, &mut model, &mut random, 10, 1);
                    model.check(&log);
                }
            }
            (disk, store, model)
        };
        let (disk, ..) = run(None);
        for operation in 1..=disk.operations() {
            let fault = faults[usize::try_from((operation ^ seed) % 4).expect("below 4")];
            println!("operation {operation}: {fault:?}");
            let (disk, store, mut model) = run(Some((operation, fault)));
            // With a power cut in between, and without.
            let cut = (operation ^ seed) / 4 % 2 == 0;
            let disk = if cut { disk.reopen(operation) } else { disk.after_kill(operation) };
            let mut random = StdRng::seed_from_u64(seed ^ operation);
            let mut log = Stepped::open(busy_options(1), &disk, &store).expect("it opens on a disk that works");
            model.check(&log);
            model.check_repeats(&mut log);
            settle(&mut log, &mut model, 1);
            work(&mut log, &mut model, &mut random, 10, 1).expect("the disk works");
            model.check(&log);
        }
    }
}

#[test]
fn a_stretch_is_due_by_what_is_in_no_volume_yet() {
    let disk = FaultyDisk::new(1);
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    let by_size = Options { stretch_bytes: 100_000, ..options(1) };
    let mut log = Stepped::open(by_size, &disk, &store).expect("a new log");
    assert!(!log.keeper.stretch_is_due(), "nothing was published");
    let mut seq = 0;
    let mut publish = |log: &mut Stepped, bytes: usize| {
        seq += 1;
        let publish =
            Publish { room: "one".to_owned(), publisher: PublisherId([1; 16]), seq, payloads: vec![vec![b'x'; bytes]] };
        log.publish(&[publish]).pop().expect("one answer").expect("stored");
    };
    for _ in 0..3 {
        publish(&mut log, 60_000);
        assert!(!log.keeper.stretch_is_due(), "60,000 bytes are no stretch, whatever went before in the same file");
        publish(&mut log, 60_000);
        assert!(log.keeper.stretch_is_due());
        log.keeper.build().expect("built");
        assert!(!log.keeper.stretch_is_due(), "all of it is in a volume");
    }
    publish(&mut log, 10);
    drop(log);
    let disk = disk.reopen(1);
    let by_age = Options { stretch_age_max: Duration::ZERO, ..options(1) };
    let mut log = Stepped::open(by_age, &disk, &store).expect("it opens");
    assert!(log.keeper.stretch_is_due(), "it is older than nothing at all");
    log.keeper.build().expect("built");
    assert!(!log.keeper.stretch_is_due(), "all of it is in a volume");
}

#[test]
fn a_checkpoint_that_has_seen_the_front_of_a_batch_does_not_double_it_or_keep_the_log_from_opening() {
    for stride in [1, 7] {
        let disk = FaultyDisk::new(1);
        let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
        let mut log = Stepped::open(options(stride), &disk, &store).expect("a new log");
        let (room, user, publisher) = ("one".to_owned(), Arc::from(""), PublisherId([1; 16]));
        let publish = |seq: u64, count: u64| {
            let payloads = (seq..seq + count).map(|number| number.to_string().into_bytes()).collect();
            Publish { room: room.clone(), publisher, seq, payloads }
        };
        log.publish(&[publish(1, 1)]).pop().expect("one answer").expect("stored");

        // What a checkpoint sees when the next commit has come as far as its second record.
        let handle = log.shared.catalog.room(&room).expect("a room");
        let (facts, publishers) = {
            let mut state = handle.log.lock();
            let before = (state.facts, state.publishers.clone());
            for seq in [2_u64, 3] {
                let mut area = Vec::new();
                RecordArea::push(&mut area, &NewRecord::new(seq.to_string().as_bytes()));
                let (record, _) = RecordArea(&area).split_first().expect("encoded just now").expect("a record");
                let (hash, at, time) = (record_hash(record), Offset(seq * stride), state.facts.time);
                state.publishers.note(log.shared.memory, &user, publisher, seq, &[hash], at, stride, time);
                (state.facts.head, state.facts.records) = (at, seq);
                state.facts.bytes += area.len() as u64;
            }
            before
        };
        log.keeper.build().expect("built");
        (handle.log.lock().facts, handle.log.lock().publishers) = (facts, publishers);
        drop(handle);

        let publishes = [publish(2, 1), publish(3, 2), publish(5, 1)];
        let outcomes = log.publish(&publishes);
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        drop(log);
        let disk = disk.reopen(1);
        let mut log = Stepped::open(options(stride), &disk, &store).expect("it opens");
        let expected: Vec<_> = (1..=5).map(|number| (number * stride, number.to_string().into_bytes())).collect();
        assert_eq!(log.read("one"), expected);
        for (publish, outcome) in publishes.iter().zip(outcomes) {
            let again = log.publish(std::slice::from_ref(publish)).pop().expect("one answer").expect("a repeat");
            let first = outcome.expect("stored");
            assert_eq!((again.duplicate, again.first, again.last), (true, first.first, first.last));
        }
    }
}

#[test]
fn after_a_failed_write_nothing_more_is_acknowledged_and_what_was_stays_readable() {
    for seed in seeds() {
        println!("ROOMLOG_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let disk = FaultyDisk::new(seed);
        let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
        let mut model = Model::default();
        let mut log = Stepped::open(options(1), &disk, &store).expect("a new log");
        work(&mut log, &mut model, &mut random, 10, 1).expect("the disk is fine");
        disk.fail_at(disk.operations() + 1 + random.random_range(0..2), Fault::Eio);
        let publishes = vec![model.invent(&mut random)];
        let failed = log.publish(&publishes).pop().expect("one answer").expect_err("the disk fails");
        assert_eq!(failed.code, Code::StorageFailed);
        let again = log.publish(&publishes).pop().expect("one answer").expect_err("the disk would work again");
        assert_eq!(again.code, Code::StorageFailed);
        assert!(matches!(*log.shared.health.lock(), Health::Failed(_)));
        model.check(&log);
        model.unsure.extend(publishes);
        let disk = disk.reopen(seed);
        let log = Stepped::open(options(1), &disk, &store).expect("it opens again");
        model.check(&log);
    }
}

#[test]
fn a_full_disk_refuses_publishes_and_heals() {
    let disk = FaultyDisk::new(1);
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    let mut model = Model::default();
    let mut random = StdRng::seed_from_u64(1);
    let mut log = Stepped::open(options(1), &disk, &store).expect("a new log");
    disk.set_capacity(3 << 20);
    let mut full = None;
    for _ in 0..2000 {
        let publish = model.invent(&mut random);
        match log.publish(std::slice::from_ref(&publish)).pop().expect("one answer") {
            Ok(appended) => model.took(&publish, &appended, 1),
            Err(refused) => {
                full = Some((publish, refused));
                break;
            }
        }
    }
    let (publish, refused) = full.expect("the disk is small");
    assert_eq!(refused.code, Code::StorageFull, "{refused:?}");
    assert!(matches!(*log.shared.health.lock(), Health::Full(_)));
    model.check(&log);
    model.check_repeats(&mut log);
    disk.set_capacity(64 << 20);
    log.keeper.reserve();
    let appended = log.publish(std::slice::from_ref(&publish)).pop().expect("one answer").expect("it has healed");
    model.took(&publish, &appended, 1);
    model.check(&log);
}

#[test]
fn a_journal_file_longer_than_the_limits_neither_stops_publishers_nor_makes_a_volume_of_each_commit() {
    let disk = FaultyDisk::new(1);
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    let options = Options { stretch_bytes: 64 << 10, journal_bytes_max: 128 << 10, ..options(1) };
    let mut log = Stepped::open(options, &disk, &store).expect("a new log");
    let mut source = Source::new("long");
    let mut built = 0;
    for _ in 0..300 {
        let publish = source.next(1, 1000);
        log.publish(std::slice::from_ref(&publish)).pop().expect("one answer").expect("stored");
        let checkpoint = |disk: &FaultyDisk| disk.list(std::path::Path::new(crate::storage::checkpoint::DIRECTORY));
        let before = checkpoint(&disk).expect("a directory");
        log.keeper.step();
        assert!(!log.shared.behind.load(Ordering::Relaxed), "nobody waits while the keeper keeps up");
        built += u32::from(checkpoint(&disk).expect("a directory") != before);
    }
    // A commit takes 1,536 bytes with its padding: 300 of them are seven stretches.
    assert!((6..=8).contains(&built), "{built} volumes");
}
