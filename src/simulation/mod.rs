//! A simulated world: the real client, session, broker and log, on a network, a disk and clocks that are not real, all in
//! one thread; everything that happens comes from one seed.
//!
//! What runs is the code that ships, but for: sockets and the handshake (a stream of bytes is opened by the world), the
//! loop around a session (`server.rs` has its like for such streams), threads (the committer, the keeper and the readers
//! take turns with everything else, a turn being one moment), and sled (a map). Time is tokio's, paused: it goes on when
//! nobody has anything to do, so that a minute takes some milliseconds, and it is the same minute again for the same seed.
//!
//! `ROOMLOG_TEST_SEED=7 ROOMLOG_TEST_SEEDS=1 cargo test --all-features --lib simulation::` runs seed 7;
//! `ROOMLOG_SIMULATION_TRACE=FILE` has all that happened written there.

mod history;
mod nemesis;
mod network;
mod people;
mod sabotage;
mod server;
mod trace;

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::history::History;
use self::network::Network;
use self::people::Script;
use self::server::{Sabotage, Server};
use self::trace::Trace;
use crate::protocol::Batch;
use crate::storage::{Engine as _, Read, ReadAt};
use crate::types::RoomName;
use crate::types::system::simulated;

/// The first tier's.
const SEEDS: u64 = 40;

/// After so long in calm, whoever still waits for something waits in vain.
const PATIENCE: Duration = Duration::from_secs(300);

/// The world's clocks: tokio's, which all of it goes by, and one on the wall that can be set.
struct Clock {
    begun: Instant,
    ahead_us: AtomicI64,
}

impl Clock {
    fn step(&self, by: Duration, back: bool) {
        let micros = i64::try_from(by.as_micros()).expect("short");
        self.ahead_us.fetch_add(if back { -micros } else { micros }, Ordering::SeqCst);
    }
}

struct System {
    clock: Arc<Clock>,
    chance: RefCell<StdRng>,
}

impl simulated::System for System {
    fn wall(&self) -> Duration {
        let micros = i64::try_from(self.clock.begun.elapsed().as_micros()).expect("short");
        let micros = 1_800_000_000_000_000 + micros + self.clock.ahead_us.load(Ordering::SeqCst);
        Duration::from_micros(u64::try_from(micros).expect("after 1970"))
    }

    fn steady(&self) -> std::time::Instant {
        Instant::now().into_std()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.chance.borrow_mut().fill_bytes(bytes);
    }
}

/// What everything in the world knows of.
struct World {
    seed: u64,
    trace: Arc<Trace>,
    network: Arc<Network>,
    clock: Arc<Clock>,
    history: Mutex<History>,
    rooms: Vec<RoomName>,
    stride: u64,
    scripts: Mutex<Vec<Arc<Script>>>,
    /// Nothing more goes wrong, and nobody begins anything new.
    calm: watch::Sender<bool>,
    /// The heads of all rooms, once nobody publishes any more.
    settled: watch::Sender<Option<BTreeMap<RoomName, u64>>>,
    failure: watch::Sender<Option<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// Whether the disk is full.
    full: AtomicBool,
    sabotage: Option<Sabotage>,
}

impl World {
    fn say(&self, what: fmt::Arguments<'_>) {
        self.trace.say(what);
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().entry(what).or_default() += 1;
    }

    fn fail(&self, why: String) {
        self.failure.send_if_modified(|failure| failure.is_none() && failure.replace(why).is_none());
    }

    fn is_calm(&self) -> bool {
        *self.calm.borrow()
    }

    /// A source of chance of its own.
    fn chance(&self, whose: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ whose.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A task whose panic is the end of the world.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let (world, task) = (Arc::clone(self), tokio::spawn(task));
        tokio::spawn(async move {
            if let Err(error) = task.await
                && let Ok(panic) = error.try_into_panic()
            {
                world.fail(said(&*panic).to_owned());
            }
        })
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("something that is not a text")
}

/// What came of a seed.
struct Report {
    counts: BTreeMap<&'static str, u64>,
    records: usize,
}

/// One world from its beginning to its end; panics if a promise is broken.
fn run(seed: u64, trace: &Arc<Trace>, sabotage: Option<Sabotage>) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let report = catch_unwind(AssertUnwindSafe(|| runtime.block_on(story(seed, trace, sabotage))));
    drop(runtime);
    simulated::set(None);
    report.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn story(seed: u64, trace: &Arc<Trace>, sabotage: Option<Sabotage>) -> Report {
    trace.begin();
    let mut chance = StdRng::seed_from_u64(seed);
    let (publishers, repeaters) = (chance.random_range(1..4), chance.random_range(1..3));
    let (subscribers, stride) = (chance.random_range(1..5), if chance.random_bool(0.5) { 1 } else { 3 });
    let clients = publishers + repeaters + subscribers + 1;
    let clock = Arc::new(Clock { begun: Instant::now(), ahead_us: AtomicI64::new(0) });
    let system = System { clock: Arc::clone(&clock), chance: RefCell::new(StdRng::seed_from_u64(!seed)) };
    simulated::set(Some(Rc::new(system)));
    let rooms = ["one", "two", "short one"];
    let world = Arc::new(World {
        seed,
        trace: Arc::clone(trace),
        network: Arc::new(Network::new(chance.random(), clients, Arc::clone(trace))),
        clock,
        history: Mutex::new(History::new(stride)),
        rooms: rooms.iter().map(|name| RoomName::new(name).expect("a name")).collect(),
        stride,
        scripts: Mutex::default(),
        calm: watch::Sender::new(false),
        settled: watch::Sender::new(None),
        failure: watch::Sender::new(None),
        counts: Mutex::default(),
        full: AtomicBool::new(false),
        sabotage,
    });
    let server = Server::new(&world, chance.random(), stride);
    let until = Instant::now() + Duration::from_millis(chance.random_range(5_000..40_000));
    let mut failed = world.failure.subscribe();
    let failed = failed.wait_for(Option::is_some);
    let lived = live(&world, &server, [publishers, repeaters, subscribers], until);
    tokio::select! {
        biased;
        failure = failed => panic!("{}", failure.expect("the world is there").as_deref().unwrap_or_default()),
        () = lived => {}
    }
    check_disk(&world, &server);
    let mut counts = world.counts.lock().clone();
    *counts.entry("reads of what came late").or_default() += world.network.late();
    let records = world.history.lock().records();
    Report { counts, records }
}

async fn live(
    world: &Arc<World>,
    server: &Arc<Server>,
    [publishers, repeaters, subscribers]: [usize; 3],
    until: Instant,
) {
    let serving = world.spawn(Arc::clone(server).live());
    let clients = publishers + repeaters + subscribers + 1;
    let mut whos = 0..clients;
    let mut next = || whos.next().expect("one for each");
    let mut writing = Vec::new();
    for _ in 0..publishers {
        writing.push(world.spawn(people::publisher(Arc::clone(world), next())));
    }
    for _ in 0..repeaters {
        writing.push(world.spawn(people::repeater(Arc::clone(world), next())));
    }
    writing.push(world.spawn(people::ghost(Arc::clone(world), next())));
    let reading: Vec<_> =
        (0..subscribers).map(|_| world.spawn(people::subscriber(Arc::clone(world), next()))).collect();
    nemesis::nemesis(Arc::clone(world), Arc::clone(server), clients, until).await;
    world.calm.send_replace(true);
    in_time("the publishers", writing).await;
    let heads = {
        let history = world.history.lock();
        world.rooms.iter().map(|room| (room.clone(), history.head(room))).collect()
    };
    // What was published with an unknown outcome may be stored or not: the server knows.
    let heads = server.heads(heads);
    world.settled.send_replace(Some(heads));
    in_time("the readers", reading).await;
    server.end_for_good();
    in_time("the server", vec![serving]).await;
}

async fn in_time(who: &str, tasks: Vec<JoinHandle<()>>) {
    let all = async {
        for task in tasks {
            task.await.expect("panics are told otherwise");
        }
    };
    assert!(tokio::time::timeout(PATIENCE, all).await.is_ok(), "{who} wait for something that does not come");
}

/// Reads all that is stored, with the power cut after the end, and without.
fn check_disk(world: &World, server: &Server) {
    for cut in [false, true] {
        let disk = if cut { server.disk().reopen(world.seed) } else { server.disk().after_kill(world.seed) };
        let log = server::reopened(server, disk);
        for name in &world.rooms {
            let room = log.room(name).expect("a room");
            let facts = room.facts();
            let (mut at, mut stored) = (facts.floor, Vec::new());
            while let Read::Block(block) = log.read(&room, ReadAt::After(at)).expect("it can be read") {
                let batch = Batch::parse(&block.body).expect("a batch");
                for record in batch.records(block.prev) {
                    let record = record.expect("a record");
                    if record.offset > at {
                        stored.push((record.offset.0, record.prev.0, record.content.payload.to_vec()));
                        at = record.offset;
                    }
                }
            }
            assert_eq!(at, facts.head, "{name:?}: all is there up to the head");
            world.history.lock().stored(name, facts.floor.0, &stored);
        }
    }
}

/// Runs a seed, and tells how to run it again if a promise is broken.
fn run_and_tell(seed: u64) -> Report {
    let trace = Arc::<Trace>::default();
    let report = catch_unwind(AssertUnwindSafe(|| run(seed, &trace, None)));
    let lines = trace.lines();
    if let Ok(path) = std::env::var("ROOMLOG_SIMULATION_TRACE") {
        std::fs::write(path, lines.join("\n")).expect("the file can be written");
    }
    report.unwrap_or_else(|panic| {
        let end = lines.len().saturating_sub(60);
        panic!(
            "seed {seed}: {}\nthe end of {} lines:\n{}\nagain: ROOMLOG_TEST_SEED={seed} ROOMLOG_TEST_SEEDS=1 \
             cargo test --all-features --lib simulation::",
            said(&*panic),
            lines.len(),
            lines[end..].join("\n")
        )
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}: {error}")))
}

#[test]
fn whatever_goes_wrong_nothing_is_lost_or_doubled_and_all_come_back() {
    let first = number("ROOMLOG_TEST_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let seeds = number("ROOMLOG_TEST_SEEDS").unwrap_or(SEEDS);
    println!("ROOMLOG_TEST_SEED={first}, {seeds} seeds from there on");
    let mut counts = BTreeMap::<_, u64>::new();
    let mut records = 0;
    for seed in first..first + seeds {
        let report = run_and_tell(seed);
        records += report.records;
        for (what, count) in report.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{seeds} seeds, {records} records, {counts:?}");
    // Nothing goes wrong where nothing happens.
    let expected = [
        "acknowledged",
        "acknowledged repeats",
        "acknowledged repeats out of order",
        "clock steps",
        "deliveries",
        "disk faults",
        "ends between sync and answer",
        "full disks",
        "gaps",
        "kills",
        "kills at an operation",
        "looks at a log that has failed",
        "pages",
        "partitions",
        "power cuts",
        "power cuts at an operation",
        "readers that lag",
        "reads of what came late",
        "stops",
        "unexpected heads",
        "unknown outcomes",
    ];
    if seeds >= SEEDS {
        let missing: Vec<_> =
            expected.iter().filter(|what| counts.get(*what).is_none_or(|count| *count == 0)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

#[test]
fn one_seed_has_one_trace() {
    let first = number("ROOMLOG_TEST_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    for seed in first..first + 3 {
        println!("ROOMLOG_TEST_SEED={seed}");
        let traces = [(); 2].map(|()| {
            let trace = Arc::<Trace>::default();
            run(seed, &trace, None);
            trace
        });
        if traces[0].hash() != traces[1].hash() {
            let (one, other) = (traces[0].lines(), traces[1].lines());
            let at = one.iter().zip(&other).position(|(one, other)| one != other);
            let at = at.unwrap_or_else(|| one.len().min(other.len()));
            let around = at.saturating_sub(5)..at + 2;
            let cut = |lines: &[String]| lines[around.start..around.end.min(lines.len())].join("\n");
            panic!("seed {seed} has two traces, which part at line {at}:\n{}\n---\n{}", cut(&one), cut(&other));
        }
        println!("seed {seed}: {} lines, {:016x}", traces[0].lines().len(), traces[0].hash());
        assert!(traces[0].lines().len() > 100, "little has happened");
    }
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    for sabotage in [Sabotage::LyingDisk, Sabotage::NoMemory] {
        let found = (0..100).find_map(|seed| {
            let trace = Arc::<Trace>::default();
            let run = catch_unwind(AssertUnwindSafe(|| run(seed, &trace, Some(sabotage))));
            run.err().map(|panic| (seed, said(&*panic).to_owned()))
        });
        let (seed, what) = found.unwrap_or_else(|| panic!("{sabotage:?} is not found"));
        println!("{sabotage:?} is found with seed {seed}: {what}");
    }
}
