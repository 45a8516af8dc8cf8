//! The log against a model of it that does one thing after the other: whatever publishers and readers on several threads
//! were told must be what the model says in some order, in which nothing comes before what was over when it began.
//!
//! Publishers expect heads, repeat themselves, share identities, and often do not wait for an answer; the power goes in
//! between. What is not known to have happened has happened before the power went, or never. The search is Wing and
//! Gong's, with what has been seen before left out, as Lowe does it. A log only grows, so that whoever has read all of it
//! has also told what it was before: that leaves little to be tried.
//!
//! The threads are real, so that a seed does not give the same history twice: one that cannot be explained is printed.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::protocol::RecordArea;
use crate::storage::{Answer, Appended, Reply, Targets, record_hash};
use crate::types::PublisherId;

/// The first tier's.
const SEEDS: u64 = 12;

const THREADS: u64 = 5;
const ROOMS: u8 = 2;
/// Runs of the broker; the power goes in all but the last.
const RUNS: u64 = 3;
const OPERATIONS: u64 = 25;

/// A record: whose, which of his, and what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Item {
    publisher: u8,
    seq: u64,
    what: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Asked {
    /// Records that follow each other, and the head that is expected.
    Append(Vec<Item>, Option<u64>),
    Head,
    All,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Told {
    Stored {
        first: u64,
        last: u64,
        duplicate: bool,
    },
    Refused(Code),
    Head(u64),
    All(Vec<(u64, Item)>),
    /// Nothing, or nothing that says what happened.
    Nothing,
}

/// What somebody did. The moments are numbers that rise.
#[derive(Clone, Debug)]
struct Operation {
    began: u64,
    /// When the answer was there; or when it could not happen any more.
    over: u64,
    asked: Asked,
    told: Told,
}

/// The log as it is thought to be: the records, in order.
type State = Rc<Vec<Item>>;

struct Model {
    stride: u64,
}

impl Model {
    /// What an append is answered with, and the log afterwards.
    fn append(&self, state: &State, items: &[Item], expect: Option<u64>) -> (Told, State) {
        let (publisher, seq) = (items[0].publisher, items[0].seq);
        let known: Vec<_> = state.iter().zip(1..).filter(|(item, _)| item.publisher == publisher).collect();
        let next = known.len() as u64 + 1;
        let refused = |code| (Told::Refused(code), Rc::clone(state));
        if seq > next {
            return refused(if known.is_empty() { Code::PublisherForgotten } else { Code::OutOfOrder });
        }
        if seq < next {
            let from = usize::try_from(seq - 1).expect("few");
            let same = known[from..].iter().zip(items).all(|((known, _), item)| *known == item);
            if known[from..].len() < items.len() || !same {
                return refused(Code::PublisherConflict);
            }
            let offset = |at: usize| known[at].1 * self.stride;
            let (first, last) = (offset(from), offset(from + items.len() - 1));
            return (Told::Stored { first, last, duplicate: true }, Rc::clone(state));
        }
        let head = self.head(state);
        if expect.is_some_and(|expect| expect != head) {
            return refused(Code::ExpectFailed);
        }
        let (first, last) = (head + self.stride, head + self.stride * items.len() as u64);
        let after = state.iter().chain(items).copied().collect();
        (Told::Stored { first, last, duplicate: false }, Rc::new(after))
    }

    fn head(&self, state: &State) -> u64 {
        self.stride * state.len() as u64
    }

    /// The log after an operation, if that is told then what it was told. What changes nothing, and nothing is known
    /// of, may as well not have happened.
    fn after(&self, state: &State, operation: &Operation) -> Option<State> {
        let fits = |fits: bool| fits.then(|| Rc::clone(state));
        match (&operation.asked, &operation.told) {
            (Asked::Append(items, expect), Told::Nothing) => {
                let after = self.append(state, items, *expect).1;
                (!Rc::ptr_eq(&after, state)).then_some(after)
            }
            (Asked::Append(items, expect), told) => {
                let (expected, after) = self.append(state, items, *expect);
                (expected == *told).then_some(after)
            }
            (Asked::Head, told) => fits(*told == Told::Head(self.head(state))),
            (Asked::All, Told::All(all)) => {
                let offsets = (1..).map(|number| number * self.stride);
                fits(state.len() == all.len() && offsets.zip(state.iter().copied()).eq(all.iter().copied()))
            }
            (Asked::All, _) => None,
        }
    }

    /// Whether there is an order that explains all of it; if not, how many operations could be explained.
    fn explains(&self, operations: &[Operation]) -> Result<(), usize> {
        let reads = operations.iter().filter_map(|operation| match &operation.told {
            Told::All(all) => Some(all),
            _ => None,
        });
        let longest = reads.max_by_key(|all| all.len()).map(|all| all.iter().map(|(_, item)| *item).collect());
        let (done, seen) = (vec![false; operations.len()], HashSet::new());
        let mut search = Search { model: self, operations, done, seen, most: 0, longest: longest.unwrap_or_default() };
        if search.goes_on(&Rc::default(), 0, 0) { Ok(()) } else { Err(search.most) }
    }
}

struct Search<'a> {
    model: &'a Model,
    operations: &'a [Operation],
    done: Vec<bool>,
    /// What has been tried: which operations are done, and the log after them.
    seen: HashSet<(Vec<bool>, State)>,
    most: usize,
    /// The most that anybody has read. The log is a part of it from the beginning on, or goes on behind it.
    longest: Vec<Item>,
}

impl Search<'_> {
    /// Whether what is left can be explained from this state on; `began` is when the last began of what is done.
    fn goes_on(&mut self, state: &State, count: usize, began: u64) -> bool {
        self.most = self.most.max(count);
        let left = || self.operations.iter().zip(&self.done).enumerate().filter(|(_, (_, done))| !**done);
        // What is not known need not have happened.
        let known = left().filter(|(_, (operation, _))| operation.told != Told::Nothing);
        let Some(first_over) = known.map(|(_, (operation, _))| operation.over).min() else { return true };
        // Whatever began before any of those that are left was over may be next, unless it was over itself before
        // something that is done began.
        let next: Vec<_> = left()
            .filter(|(_, (operation, _))| operation.began < first_over && began < operation.over)
            .filter_map(|(index, (operation, _))| Some((index, self.model.after(state, operation)?)))
            .filter(|(_, after)| after.iter().zip(&self.longest).all(|(item, read)| item == read))
            .collect();
        for (index, after) in next {
            self.done[index] = true;
            let began = began.max(self.operations[index].began);
            if self.seen.insert((self.done.clone(), Rc::clone(&after))) && self.goes_on(&after, count + 1, began) {
                return true;
            }
            self.done[index] = false;
        }
        false
    }
}

/// Takes one answer.
#[derive(Debug)]
struct Once(Mutex<mpsc::Sender<crate::storage::Outcome>>);

impl Reply for Once {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        // Nobody may wait for it any more.
        let _ = self.0.lock().send(answers[0].outcome.clone());
    }
}

/// What all threads share.
struct World {
    stride: u64,
    moment: AtomicU64,
    /// A name for each payload.
    whats: AtomicU64,
    /// The next number of a publisher in a room, as far as anybody knows.
    seqs: Mutex<BTreeMap<(u8, u8), u64>>,
    history: Mutex<Vec<(u8, Operation)>>,
}

impl World {
    fn now(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }
}

fn name(number: u8) -> RoomName {
    room(&format!("room {number}"))
}

fn read_all(broker: &Broker, number: u8, runtime: &tokio::runtime::Runtime) -> Option<Vec<(u64, Item)>> {
    runtime.block_on(async {
        let mut subscription = broker.join(&name(number), Start::Earliest).await.ok()?;
        let mut all = Vec::new();
        loop {
            match tokio::time::timeout(PATIENCE, subscription.next()).await.expect("in time").ok()? {
                Event::Records(records) => all.extend(records.iter().map(|record| {
                    let record = record.expect("whole");
                    let seq = u64::from_le_bytes(record.content.payload[..8].try_into().expect("8 bytes"));
                    let what = u32::from_le_bytes(record.content.payload[8..12].try_into().expect("4 bytes"));
                    (record.offset.0, Item { publisher: record.content.payload[12], seq, what })
                })),
                Event::Live(_) => return Some(all),
                _ => {}
            }
        }
    })
}

/// Hands a publish over; waits for its answer for a while that may be no while at all.
fn append(
    broker: &Broker,
    number: u8,
    items: &[Item],
    expect: Option<u64>,
    patience: Duration,
) -> Result<crate::storage::Outcome, mpsc::RecvTimeoutError> {
    let (mut area, mut hashes) = (Vec::new(), Vec::new());
    for item in items {
        let before = area.len();
        let mut payload = item.seq.to_le_bytes().to_vec();
        payload.extend_from_slice(&item.what.to_le_bytes());
        payload.push(item.publisher);
        payload.resize(13 + item.what as usize % 50, 0);
        RecordArea::push(&mut area, &NewRecord::new(&payload));
        hashes.push(record_hash(&area[before..]));
    }
    let (answer, answered) = mpsc::channel();
    let mut submission = Submission::new(Arc::new(Once(Mutex::new(answer))));
    let Ok(room) = broker.room(&name(number)) else { return Err(mpsc::RecvTimeoutError::Disconnected) };
    let (user, publisher) = (Arc::from(""), PublisherId([items[0].publisher; 16]));
    submission.push(&room, &user, publisher, items[0].seq, expect.map(Offset), 0, &area, &hashes);
    broker.submit(&mut submission);
    answered.recv_timeout(patience)
}

/// One thread's doings in one run of the broker. What it was not told of is open until the run is over.
fn act(world: &World, broker: &Broker, me: u64, mut random: StdRng) -> Vec<(u8, Operation)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut open = Vec::new();
    // Publishes that may be repeated, as they were.
    let mut old: Vec<(u8, Vec<Item>, Option<u64>)> = Vec::new();
    let mut heads = [0; ROOMS as usize];
    for _ in 0..OPERATIONS {
        let mut number = random.random_range(0..ROOMS);
        let dice = random.random_range(0..20);
        let (asked, told, began, over) = if dice < 3 {
            let began = world.now();
            let Ok(room) = broker.room(&name(number)) else { break };
            let head = room.facts().head.0;
            let over = world.now();
            heads[usize::from(number)] = head;
            (Asked::Head, Told::Head(head), began, over)
        } else if dice < 4 {
            let began = world.now();
            let Some(all) = read_all(broker, number, &runtime) else { break };
            let over = world.now();
            (Asked::All, Told::All(all), began, over)
        } else {
            let items;
            let expect;
            if dice < 8 && !old.is_empty() {
                (number, items, expect) = old[random.random_range(0..old.len())].clone();
            } else {
                // Most have an identity of their own; the first one is used by all.
                let publisher = if random.random_bool(0.2) { 0 } else { u8::try_from(me).expect("few") + 1 };
                let count = if random.random_bool(0.2) { random.random_range(2..4) } else { 1 };
                let seq = {
                    let mut seqs = world.seqs.lock();
                    let next = seqs.entry((number, publisher)).or_insert(1);
                    std::mem::replace(next, *next + count)
                };
                let whats = || u32::try_from(world.whats.fetch_add(1, Ordering::SeqCst)).expect("few");
                items = (seq..seq + count).map(|seq| Item { publisher, seq, what: whats() }).collect::<Vec<_>>();
                let head = heads[usize::from(number)];
                expect = random.random_bool(0.4).then(|| head.saturating_sub(random.random_range(0..2) * world.stride));
                old.push((number, items.clone(), expect));
            }
            let patience = match random.random_range(0..6) {
                0 => Duration::ZERO,
                1 => Duration::from_micros(random.random_range(0..1500)),
                _ => PATIENCE,
            };
            let began = world.now();
            let answer = append(broker, number, &items, expect, patience);
            let over = world.now();
            let told = match answer {
                Ok(Ok(Appended { first, last, duplicate, .. })) => {
                    heads[usize::from(number)] = last.0;
                    Told::Stored { first: first.0, last: last.0, duplicate }
                }
                // It may be on the disk all the same.
                Ok(Err(Refused { code: Code::StorageFailed | Code::ShuttingDown, .. })) | Err(_) => Told::Nothing,
                Ok(Err(refused)) => {
                    // The number is not used: who has a new record takes it, or all that follows is out of order.
                    let mut seqs = world.seqs.lock();
                    let next = seqs.get_mut(&(number, items[0].publisher)).expect("it was taken from there");
                    match refused.code {
                        Code::ExpectFailed => *next = (*next).min(items[0].seq),
                        // One before it was refused, and nobody was there to hear it.
                        Code::OutOfOrder => *next = (*next).min(items[0].seq.saturating_sub(1).max(1)),
                        Code::PublisherForgotten => *next = 1,
                        _ => {}
                    }
                    Told::Refused(refused.code)
                }
            };
            (Asked::Append(items, expect), told, began, over)
        };
        let operation = Operation { began, over, asked, told };
        if operation.told == Told::Nothing {
            open.push((number, operation));
        } else {
            world.history.lock().push((number, operation));
        }
        if matches!(broker.health(), Health::Failed(_)) {
            break;
        }
    }
    open
}

/// Some runs of a broker; returns what was done in each room.
fn live(seed: u64) -> (Model, Vec<Vec<Operation>>) {
    let mut random = StdRng::seed_from_u64(seed);
    let stride = if random.random_bool(0.5) { 1 } else { 3 };
    let mut disk = FaultyDisk::new(seed);
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    let world = World {
        stride,
        moment: AtomicU64::new(1),
        whats: AtomicU64::new(0),
        seqs: Mutex::default(),
        history: Mutex::default(),
    };
    for run in 0..RUNS {
        let options = crate::storage::Options {
            offset_stride: stride,
            disk_reserve_bytes: 0,
            tails_bytes_max: 2000,
            stretch_bytes: 12_000,
            ..crate::storage::Options::new("")
        };
        let engine = open_on(options, Arc::new(disk.clone()), Arc::clone(&store)).expect("the log opens");
        let metrics = Arc::new(Metrics::disabled());
        let broker = Broker::with_engine(engine, Limits::default(), 2, metrics).expect("threads");
        if run + 1 < RUNS {
            disk.cut_at(disk.operations() + random.random_range(2..150));
        }
        let open: Vec<_> = std::thread::scope(|scope| {
            let (world, broker) = (&world, &broker);
            let threads: Vec<_> = (0..THREADS)
                .map(|me| {
                    let random = StdRng::seed_from_u64(seed ^ (1 + me + 100 * run));
                    scope.spawn(move || act(world, broker, me, random))
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no thread panics")).collect()
        });
        broker.inner.engine.close();
        let over = world.now();
        world.history.lock().extend(open.into_iter().map(|(room, operation)| (room, Operation { over, ..operation })));
        if run + 1 < RUNS {
            disk = disk.reopen(random.random());
        } else {
            disk = disk.after_kill(seed);
        }
    }
    // What is there in the end, read by another one.
    let options = crate::storage::Options { offset_stride: stride, ..crate::storage::Options::new("") };
    let engine = open_on(options, Arc::new(disk), store).expect("the log opens");
    let broker = Broker::with_engine(engine, Limits::default(), 1, Arc::new(Metrics::disabled())).expect("threads");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    for room in 0..ROOMS {
        let began = world.now();
        let all = read_all(&broker, room, &runtime).expect("it can be read");
        let over = world.now();
        world.history.lock().push((room, Operation { began, over, asked: Asked::All, told: Told::All(all) }));
    }
    let mut rooms = vec![Vec::new(); usize::from(ROOMS)];
    for (room, operation) in world.history.into_inner() {
        rooms[usize::from(room)].push(operation);
    }
    for operations in &mut rooms {
        operations.sort_by_key(|operation| operation.began);
    }
    (Model { stride }, rooms)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}: {error}")))
}

#[test]
fn whatever_publishers_and_readers_are_told_is_what_a_log_that_does_one_thing_after_the_other_would_say() {
    let first = number("ROOMLOG_TEST_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let seeds = number("ROOMLOG_TEST_SEEDS").unwrap_or(SEEDS);
    println!("ROOMLOG_TEST_SEED={first}, {seeds} seeds from there on");
    let mut told = BTreeMap::<_, u64>::new();
    for seed in first..first + seeds {
        let (model, rooms) = live(seed);
        for (number, operations) in rooms.iter().enumerate() {
            for operation in operations {
                *told
                    .entry(match &operation.told {
                        Told::Stored { duplicate: true, .. } => "repeats".to_owned(),
                        Told::Stored { .. } => "stored".to_owned(),
                        Told::Refused(code) => code.name().to_owned(),
                        Told::Head(_) => "heads".to_owned(),
                        Told::All(_) => "whole rooms".to_owned(),
                        Told::Nothing => "unknown".to_owned(),
                    })
                    .or_default() += 1;
            }
            if let Err(most) = model.explains(operations) {
                let list: Vec<_> = operations.iter().map(|operation| format!("{operation:?}")).collect();
                panic!(
                    "seed {seed}, room {number}, stride {}: no order explains more than {most} of {}:\n{}",
                    model.stride,
                    operations.len(),
                    list.join("\n")
                );
            }
        }
    }
    println!("{told:?}");
    let expected = ["expect_failed", "heads", "publisher_conflict", "repeats", "stored", "unknown", "whole rooms"];
    if seeds >= SEEDS {
        let missing: Vec<_> = expected.iter().filter(|what| !told.contains_key(**what)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

/// Histories for the model itself, of one publisher for each append.
fn stored(began: u64, over: u64, publisher: u8, expect: Option<u64>, offset: u64) -> Operation {
    let asked = Asked::Append(vec![Item { publisher, seq: 1, what: 0 }], expect);
    Operation { began, over, asked, told: Told::Stored { first: offset, last: offset, duplicate: false } }
}

fn told(told: Told, operation: Operation) -> Operation {
    Operation { told, ..operation }
}

fn head(began: u64, over: u64, offset: u64) -> Operation {
    Operation { began, over, asked: Asked::Head, told: Told::Head(offset) }
}

#[test]
fn what_a_log_may_say_is_explained() {
    let explained = |operations: &[Operation]| assert_eq!(Model { stride: 1 }.explains(operations), Ok(()));
    // Two at once may be in either order.
    explained(&[stored(1, 4, 1, None, 2), stored(2, 3, 2, None, 1)]);
    explained(&[stored(1, 6, 1, None, 1), head(2, 3, 0), head(4, 5, 1)]);
    let failed = told(Told::Refused(Code::ExpectFailed), stored(1, 6, 2, Some(0), 0));
    explained(&[stored(1, 4, 1, Some(0), 1), failed]);
    // What is not known has happened, or not, or later.
    let unknown = told(Told::Nothing, stored(1, 9, 1, None, 0));
    explained(&[unknown.clone(), head(2, 3, 0), head(4, 5, 1)]);
    explained(&[unknown.clone(), head(2, 3, 0), head(10, 11, 0)]);
    let repeat = told(Told::Stored { first: 1, last: 1, duplicate: true }, stored(2, 3, 1, None, 0));
    explained(&[unknown, repeat]);
}

#[test]
fn what_no_log_may_say_is_not_explained() {
    let wrong = |what: &str, operations: &[Operation]| {
        assert!(Model { stride: 1 }.explains(operations).is_err(), "{what}");
    };
    wrong("an acknowledged record is lost", &[stored(1, 2, 1, None, 1), head(3, 4, 0)]);
    wrong("a record that was seen is lost", &[stored(1, 8, 1, None, 1), head(2, 3, 1), head(4, 5, 0)]);
    wrong("an offset is given away twice", &[stored(1, 3, 1, None, 1), stored(2, 4, 2, None, 1)]);
    wrong("two have met the same head", &[stored(1, 3, 1, Some(0), 1), stored(2, 4, 2, Some(0), 2)]);
    wrong("the order is not that of time", &[stored(1, 2, 1, None, 2), stored(3, 4, 2, None, 1)]);
    wrong("a repeat is stored again", &[stored(1, 2, 1, None, 1), stored(3, 4, 1, None, 2)]);
    let unknown = told(Told::Nothing, stored(1, 5, 1, None, 0));
    wrong("it happens after it could", &[unknown, head(6, 7, 0), head(8, 9, 1)]);
    let refused = told(Told::Refused(Code::ExpectFailed), stored(1, 2, 1, Some(0), 0));
    wrong("a head was as expected, and refused", &[refused]);
}
