//! Everything at once, on real threads: publishers, readers that join, pause and leave, a keeper that builds volumes
//! and raises floors all the time. Each reader proves its chain; in the end each has all there is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::broker::readers::{Output, Readers, Wake};
use crate::protocol::JoinId;
use crate::storage::{Retention, Targets};
use crate::types::Time;

const ROOMS: u32 = 6;
const PUBLISHES: u32 = 300;

fn name(number: u32) -> RoomName {
    // Retention cuts every other room.
    room(&format!("{} {number}", if number.is_multiple_of(2) { "cut" } else { "whole" }))
}

#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(&self, _targets: Targets) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a session knows of a room that it has joined.
struct Joined {
    room: u32,
    at: Option<Offset>,
    live: bool,
    paused: bool,
    limited: bool,
}

struct Session {
    broker: Broker,
    readers: Readers,
    woken: Arc<Woken>,
    seen: u64,
    joined: HashMap<JoinId, Joined>,
    next: u32,
    records: u64,
}

impl Session {
    fn new(broker: &Broker) -> Self {
        let woken = Arc::<Woken>::default();
        let readers = broker.readers(broker.new_session(), Arc::clone(&woken) as Arc<dyn Wake>);
        let broker = broker.clone();
        Self { broker, readers, woken, seen: 0, joined: HashMap::new(), next: 0, records: 0 }
    }

    fn join(&mut self, number: u32, start: Start, credit: Option<u64>) {
        self.next += 1;
        let join = JoinId(self.next);
        let at = match self.readers.join(join, 7, &name(number), start, credit) {
            Ok(Joining::Joined(facts)) => Some(facts.start),
            Ok(Joining::Pending) => None,
            Ok(Joining::Void(code, facts)) => panic!("{code}: {facts:?}"),
            // So many rooms were left while their starts were being looked up that there may not be one more now.
            Err(refused) if refused.code == Code::Busy => return,
            Err(refused) => panic!("{refused:?}"),
        };
        let limited = credit.is_some();
        self.joined.insert(join, Joined { room: number, at, live: false, paused: false, limited });
    }

    /// Pulls if it was woken, and proves what comes out; only then, so that a wake-up that is lost is found.
    fn pull(&mut self, bytes_max: usize) {
        let wakes = self.woken.0.load(Ordering::SeqCst);
        if wakes == self.seen {
            return std::thread::yield_now();
        }
        self.seen = wakes;
        loop {
            let (joined, records) = (&mut self.joined, &mut self.records);
            let pulled = self.readers.pull(bytes_max, 4 << 10, |output| match output {
                Output::Joined { join, tag, facts } => {
                    let known = joined.get_mut(&join).expect("joined");
                    assert_eq!((tag, known.at.replace(facts.start)), (7, None));
                }
                Output::Records(join, part) => {
                    let known = joined.get_mut(&join).expect("nothing comes of a room that was left");
                    assert!(!known.paused, "nothing comes of a paused room");
                    let mut at = known.at.expect("the join was answered");
                    assert_eq!(part.prev, at, "room {}: the chain is unbroken", known.room);
                    for record in Records(part).iter() {
                        let record = record.expect("whole");
                        assert_eq!(record.prev, at);
                        at = record.offset;
                        *records += 1;
                    }
                    known.at = Some(at);
                }
                Output::Live(join, at) => {
                    let known = joined.get_mut(&join).expect("joined");
                    assert_eq!((known.at, std::mem::replace(&mut known.live, true)), (Some(at), false));
                }
                Output::Gap { join, from, to, .. } => {
                    let known = joined.get_mut(&join).expect("joined");
                    assert!(known.room.is_multiple_of(2), "retention cuts only some");
                    assert_eq!(known.at.replace(to), Some(from));
                    assert!(to > from);
                }
                Output::Lagging(..) | Output::CaughtUp(..) => {}
                Output::Left { why, .. } => panic!("{why:?}"),
            });
            if pulled == Pulled::All {
                return;
            }
        }
    }

    fn step(&mut self, random: &mut StdRng) {
        let some = {
            let all: Vec<_> = self.joined.keys().copied().collect();
            (!all.is_empty()).then(|| all[random.random_range(0..all.len())])
        };
        match (random.random_range(0..40), some) {
            (0..3, _) if self.joined.len() < 12 => {
                let number = random.random_range(0..ROOMS);
                let start = match random.random_range(0..5) {
                    0 => Start::New,
                    1 => Start::Last(random.random_range(0..100)),
                    2 => Start::Since(Time(Time::now().0 - random.random_range(0..500_000))),
                    3 => {
                        let head = self.broker.inner.engine.facts(name(number).as_str()).unwrap_or_default().head;
                        let offset = Offset(random.random_range(0..=head.0));
                        Start::After(Position { epoch: self.broker.epoch(), offset })
                    }
                    _ => Start::Earliest,
                };
                let credit = random.random_bool(0.3).then(|| random.random_range(0..5000));
                self.join(number, start, credit);
            }
            (3, Some(join)) => {
                self.readers.leave(join).expect("joined");
                self.joined.remove(&join);
            }
            (4..7, Some(join)) => {
                self.readers.pause(join);
                self.joined.get_mut(&join).expect("known").paused = true;
            }
            (7..10, Some(join)) => {
                self.joined.get_mut(&join).expect("known").paused = false;
                self.readers.resume(join);
            }
            (10..14, Some(join)) => self.readers.credit(join, 3000).expect("joined"),
            _ => self.pull(random.random_range(1..20_000)),
        }
    }

    /// Lets everything flow and waits until all that there is has come.
    fn finish(mut self) -> u64 {
        for (join, known) in &mut self.joined {
            known.paused = false;
            self.readers.resume(*join);
            if known.limited {
                self.readers.credit(*join, 1 << 40).expect("joined");
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.pull(1 << 16);
            let behind: Vec<_> = self
                .joined
                .values()
                .filter(|known| {
                    let head = self.broker.inner.engine.facts(name(known.room).as_str()).unwrap_or_default().head;
                    !known.live || known.at != Some(head)
                })
                .map(|known| (known.room, known.at, known.live))
                .collect();
            if behind.is_empty() {
                return self.records;
            }
            assert!(Instant::now() < deadline, "a wake-up was lost: {behind:?}");
        }
    }
}

/// A page from anywhere is a chain, and ends where it says.
fn look_at_history(broker: &Broker, random: &mut StdRng, runtime: &tokio::runtime::Runtime) {
    let room = name(random.random_range(0..ROOMS));
    let head = broker.inner.engine.facts(room.as_str()).unwrap_or_default().head;
    let position = Position { epoch: broker.epoch(), offset: Offset(random.random_range(0..=head.0)) };
    let at = match random.random_range(0..4) {
        0 => PageAt::Before(None),
        1 => PageAt::Before(Some(position)),
        2 => PageAt::Around(position),
        _ => PageAt::After(random.random_bool(0.5).then_some(position)),
    };
    let page = runtime.block_on(broker.history(&room, at, random.random_range(1..200))).expect("a page");
    let mut last = None;
    for part in page.parts {
        for record in Records(part).iter() {
            let record = record.expect("whole");
            let crate::types::Record { offset, prev, .. } = record;
            assert!(last.is_none_or(|last| prev == last), "{at:?}: {offset} says {prev}, but comes behind {last:?}");
            last = Some(offset);
        }
    }
    if matches!(at, PageAt::After(_)) && !page.more && !room.as_str().starts_with("cut") && head > Offset::ZERO {
        assert!(last.is_some_and(|last| last >= head) || position.offset == head, "{at:?}: {last:?}, {head}");
    }
}

fn run(seed: u64, tails_bytes_max: usize) {
    println!("ROOMLOG_TEST_SEED={seed} (tails of {tails_bytes_max} bytes)");
    let mut options = Options::in_memory();
    options.storage.tails_bytes_max = tails_bytes_max;
    options.storage.stretch_bytes = 20_000;
    options.storage.rewrite_below_percent = 90;
    let rule = Retention { rooms: "cut *".to_owned(), max_records: Some(60), ..Retention::default() };
    options.storage.retention = vec![rule];
    let broker = Broker::open_blocking(options).expect("memory is enough");
    let published = AtomicBool::new(false);
    let (broker, published) = (&broker, &published);
    let records = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed ^ number);
                    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                    let publisher = broker.publisher("ada");
                    for _ in 0..PUBLISHES {
                        let payload = vec![b'x'; random.random_range(0..600)];
                        let records = vec![NewRecord::new(&payload); random.random_range(1..4)];
                        let room = name(random.random_range(0..ROOMS));
                        runtime.block_on(publisher.publish(&room, &records, None)).expect("stored");
                        // The keeper is to have its turns while records come.
                        std::thread::park_timeout(Duration::from_millis(random.random_range(0..12)));
                    }
                })
            })
            .collect();
        let sessions: Vec<_> = (0..4)
            .map(|number| {
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed ^ (100 + number));
                    let mut session = Session::new(broker);
                    while !published.load(Ordering::SeqCst) {
                        session.step(&mut random);
                    }
                    session.finish()
                })
            })
            .collect();
        scope.spawn(move || {
            let mut random = StdRng::seed_from_u64(!seed);
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            while !published.load(Ordering::SeqCst) {
                look_at_history(broker, &mut random, &runtime);
                runtime.block_on(broker.rooms("", "", 10)).expect("a list");
                broker.observe();
            }
        });
        for publisher in publishers {
            publisher.join().expect("a publisher");
        }
        published.store(true, Ordering::SeqCst);
        sessions.into_iter().map(|session| session.join().expect("a session")).sum::<u64>()
    });
    assert!(records > 0);
    broker.inner.engine.close();
    assert_eq!(broker.health(), Health::Closed);
}

#[test]
fn readers_have_unbroken_chains_and_miss_no_wake_up_whatever_goes_on_around_them() {
    let seed = std::env::var("ROOMLOG_TEST_SEED")
        .map_or_else(|_| rand::random::<u32>().into(), |seed| seed.parse().expect("ROOMLOG_TEST_SEED is a number"));
    for tails_bytes_max in [0, 10_000] {
        run(seed, tails_bytes_max);
    }
}
