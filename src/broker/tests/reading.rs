//! Readers and pages where it is narrow: few places at the store, rooms left and paused, records as large as pages.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::*;
use crate::broker::history::{Asker, Walk};
use crate::broker::readers::{Output, Readers, Wake};
use crate::protocol::JoinId;
use crate::storage::{Engine, EngineError, Outline, Read, ReadAt, Retention, Targets};
use crate::types::Time;

/// A broker that has nothing in tails: every read goes to the store.
async fn without_tails(threads: usize) -> Broker {
    let mut options = Options::in_memory();
    options.storage.tails_bytes_max = 0;
    options.read_threads = threads;
    Broker::open(options).await.expect("memory is enough")
}

#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(&self, _targets: Targets) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Pulls whenever it is woken, as a session does, until `done` says so; panics if that does not come.
fn pull_until(readers: &Readers, woken: &Woken, what: &str, mut done: impl FnMut(Output) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = 0;
    loop {
        assert!(Instant::now() < deadline, "in vain: {what}");
        let wakes = woken.0.load(Ordering::SeqCst);
        if wakes == seen {
            std::thread::yield_now();
            continue;
        }
        seen = wakes;
        let mut ended = false;
        while readers.pull(1 << 20, 1 << 16, |output| ended |= done(output)) == Pulled::More {}
        if ended {
            return;
        }
    }
}

/// Occupies the reading thread until the sender is dropped.
fn occupy(broker: &Broker) -> std::sync::mpsc::Sender<()> {
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    let job = Box::new(move || {
        let _ = may_go.recv();
        pool::Turn::Done
    });
    broker.inner.pool.submit(pool::Class::Live, 0, job);
    go
}

async fn rooms_with_one_record(broker: &Broker, count: u32) -> Vec<RoomName> {
    let rooms: Vec<_> = (0..count).map(|number| room(&format!("room {number}"))).collect();
    for room in &rooms {
        broker.publish(room, b"x").await.expect("stored");
    }
    rooms
}

/// Joins rooms from their beginnings, under ids from 0 on, and takes what comes without the store.
fn join_all(readers: &Readers, rooms: &[RoomName]) {
    for (join, room) in (0..).zip(rooms) {
        readers.join(JoinId(join), 0, room, Start::Earliest, None).expect("joined");
    }
    while readers.pull(1 << 20, 1 << 16, |_| {}) == Pulled::More {}
}

#[tokio::test]
async fn rooms_that_are_left_while_they_wait_for_the_store_do_not_keep_it_from_the_next_one() {
    let broker = without_tails(1).await;
    let rooms = rooms_with_one_record(&broker, 9).await;
    let woken = Arc::<Woken>::default();
    let readers = broker.readers(1, Arc::clone(&woken) as Arc<dyn Wake>);
    let busy = occupy(&broker);
    join_all(&readers, &rooms);
    for join in 4..8 {
        readers.leave(JoinId(join)).expect("joined");
    }
    drop(busy);
    pull_until(&readers, &woken, "the ninth room", |output| matches!(output, Output::Records(JoinId(8), _)));
}

#[tokio::test]
async fn what_is_let_go_of_after_it_was_read_ahead_comes_once_all_the_same() {
    let broker = without_tails(1).await;
    let rooms = rooms_with_one_record(&broker, 9).await;
    let woken = Arc::<Woken>::default();
    let readers = broker.readers(1, Arc::clone(&woken) as Arc<dyn Wake>);
    let busy = occupy(&broker);
    join_all(&readers, &rooms);
    drop(busy);
    let (mut live, mut records) = (0, 0);
    while live < 9 {
        // As many are read ahead as may be.
        let deadline = Instant::now() + PATIENCE;
        while broker.inner.pool.waiting() > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        readers.settle();
        pull_until(&readers, &woken, "those that were let go of", |output| {
            records += u32::from(matches!(output, Output::Records(..)));
            live += u32::from(matches!(output, Output::Live(..)));
            // One at least, and what comes with it.
            true
        });
    }
    assert_eq!(records, 9);
}

#[tokio::test]
async fn paused_rooms_do_not_keep_the_others_from_the_store() {
    let broker = without_tails(1).await;
    let rooms = rooms_with_one_record(&broker, 9).await;
    for pause_late in [false, true] {
        let woken = Arc::<Woken>::default();
        let readers = broker.readers(1, Arc::clone(&woken) as Arc<dyn Wake>);
        let busy = occupy(&broker);
        join_all(&readers, &rooms);
        let pause = || (0..4).for_each(|join| readers.pause(JoinId(join)));
        if !pause_late {
            pause();
        }
        drop(busy);
        let deadline = Instant::now() + PATIENCE;
        while broker.inner.pool.waiting() > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        if pause_late {
            pause();
        }
        let mut live = 0;
        pull_until(&readers, &woken, "the other five", |output| {
            live += u32::from(matches!(output, Output::Live(..)));
            live == 5
        });
        (0..4).for_each(|join| readers.resume(JoinId(join)));
        pull_until(&readers, &woken, "those that were paused", |output| {
            live += u32::from(matches!(output, Output::Live(..)));
            live == 9
        });
    }
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_read() {
    let memory = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let rooms = rooms_with_one_record(&memory, 50).await;
    let broker = Broker::stepped(Arc::clone(&memory.inner.engine), Limits::default(), Arc::new(|| {}));
    let here = Arc::new(());
    let answered = Arc::new(AtomicBool::new(false));
    let ask = || {
        let answered = Arc::clone(&answered);
        broker.summaries(Asker::new(7, &here), &rooms, move |_| answered.store(true, Ordering::SeqCst));
    };
    ask();
    // A turn for each room, and one for the answer.
    (0..50).for_each(|_| assert!(broker.read_turn()));
    assert!(!answered.load(Ordering::SeqCst));
    assert!(broker.read_turn() && answered.swap(false, Ordering::SeqCst) && !broker.read_turn());
    ask();
    assert!(broker.read_turn());
    drop(here);
    assert!(broker.read_turn() && !broker.read_turn(), "it is given up at its next turn");
    let mut summary = Box::pin(broker.summary(&rooms));
    assert!(tokio::time::timeout(Duration::ZERO, &mut summary).await.is_err() && broker.read_turn());
    drop(summary);
    assert!(broker.read_turn() && !broker.read_turn(), "so is what is no longer awaited");
    assert!(!answered.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_session_that_joins_and_leaves_all_the_time_has_few_jobs_at_the_store() {
    let broker = without_tails(1).await;
    let rooms = rooms_with_one_record(&broker, 1).await;
    broker.publish(&rooms[0], b"x").await.expect("stored");
    let readers = broker.readers(1, Arc::<Woken>::default());
    let busy = occupy(&broker);
    let mut refused = 0;
    for _ in 0..3000 {
        for start in [Start::Earliest, Start::Since(Time(1))] {
            match readers.join(JoinId(1), 0, &rooms[0], start, None) {
                Ok(_) => {
                    while readers.pull(1 << 20, 1 << 16, |_| {}) == Pulled::More {}
                    readers.leave(JoinId(1)).expect("joined");
                }
                Err(why) => {
                    assert_eq!(why.code, Code::Busy);
                    refused += 1;
                }
            }
        }
    }
    let most = broker.limits().rooms_per_session_max;
    let waiting = readers.waiting_for_store();
    assert!(waiting <= 1, "{waiting} readers wait for the store, all but one of rooms that were left");
    assert!(refused > 0 && broker.inner.pool.waiting() <= most + 4, "{} jobs", broker.inner.pool.waiting());
    drop(busy);
    let deadline = Instant::now() + PATIENCE;
    while readers.join(JoinId(1), 0, &rooms[0], Start::Since(Time(1)), None).is_err() {
        assert!(Instant::now() < deadline, "the lookups of rooms that were left come to an end");
    }
}

#[test]
fn metrics_may_be_observed_while_readers_begin_to_lag() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let broker = runtime.block_on(without_tails(2));
    let (done, ended) = std::sync::mpsc::channel();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let observing = {
        let (broker, stop) = (broker.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                broker.observe();
            }
        })
    };
    runtime.spawn(async move {
        let lobby = room("lobby");
        let mut subscription = broker.join(&lobby, Start::New).await.expect("joined");
        for _ in 0..2000 {
            broker.publish(&lobby, b"x").await.expect("stored");
            payloads(&mut subscription, 1).await;
        }
        done.send(()).expect("the test waits");
    });
    let in_time = ended.recv_timeout(PATIENCE);
    stop.store(true, Ordering::SeqCst);
    assert!(in_time.is_ok(), "readers and observer wait for each other");
    observing.join().expect("no panic");
}

/// An engine into which a record is published while a read is going on.
#[derive(Debug)]
struct Late {
    engine: Arc<dyn Engine>,
    broker: Broker,
    published: parking_lot::Mutex<bool>,
}

impl Engine for Late {
    fn epoch(&self) -> Epoch {
        self.engine.epoch()
    }

    fn room(&self, name: &RoomName) -> Result<Arc<Room>, EngineError> {
        self.engine.room(name)
    }

    fn submit(&self, submission: &mut Submission) {
        self.engine.submit(submission);
    }

    fn queue(&self) -> (usize, usize) {
        self.engine.queue()
    }

    fn read(&self, room: &Room, at: ReadAt) -> Result<Read, EngineError> {
        let read = self.engine.read(room, at);
        if !std::mem::replace(&mut *self.published.lock(), true) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(self.broker.publish(room.name(), b"late")).expect("stored");
        }
        read
    }

    fn outline(&self, room: &Room, before: Offset) -> Option<Outline> {
        self.engine.outline(room, before)
    }

    fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<(RoomName, crate::storage::Facts)> {
        self.engine.list(prefix, after, limit)
    }

    fn facts(&self, name: &str) -> Option<crate::storage::Facts> {
        self.engine.facts(name)
    }

    fn health(&self) -> Health {
        self.engine.health()
    }

    fn close(&self) {
        self.engine.close();
    }
}

#[tokio::test]
async fn a_join_since_now_misses_nothing_that_is_committed_while_it_is_looked_up() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let lobby = room("lobby");
    let early = broker.publish(&lobby, b"early").await.expect("stored");
    let engine = Arc::clone(&broker.inner.engine);
    let late = Late { engine, broker: broker.clone(), published: parking_lot::Mutex::new(false) };
    let metrics = Arc::clone(broker.metrics());
    let around = Broker::with_engine(Arc::new(late), Limits::default(), 1, metrics).expect("threads");
    let since = Start::Since(Time(early.time.0 + 1));
    let mut subscription = around.join(&lobby, since).await.expect("joined");
    assert_eq!(payloads(&mut subscription, 1).await, [b"late".to_vec()]);
}

#[tokio::test]
async fn a_page_around_a_position_holds_its_record_however_large_those_before_it_are() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let lobby = room("lobby");
    for _ in 0..30 {
        broker.publish(&lobby, &vec![0; 60 << 10]).await.expect("stored");
    }
    let position = Position { epoch: broker.epoch(), offset: Offset(25) };
    let page = broker.history(&lobby, PageAt::Around(position), 100).await.expect("a page");
    let mut offsets = Vec::new();
    for part in &page.parts {
        let records = Records(part.clone());
        offsets.extend(records.iter().map(|record| record.expect("whole").offset.0));
    }
    assert_eq!(*offsets.last().expect("records"), 30, "{offsets:?}");
    assert_eq!(offsets, (offsets[0]..=30).collect::<Vec<_>>());
    assert!(offsets[0] < 20, "both sides: {offsets:?}");
    assert!(page.more, "there is more before");
}

/// Pulls once, and says how many bytes each body has that comes out.
fn pull_once(readers: &Readers, bytes_max: usize) -> (Vec<usize>, Pulled) {
    let mut bodies = Vec::new();
    let pulled = readers.pull(bytes_max, 16 << 10, |output| {
        if let Output::Records(_, part) = output {
            bodies.push(part.body.len());
        }
    });
    (bodies, pulled)
}

#[tokio::test]
async fn no_more_comes_out_than_was_asked_for_unless_it_is_a_single_body() {
    for (broker, place) in
        [(without_tails(1).await, "store"), (Broker::open(Options::in_memory()).await.expect("memory"), "tail")]
    {
        let woken = Arc::<Woken>::default();
        let readers = broker.readers(1, Arc::clone(&woken) as Arc<dyn Wake>);
        let sizes = [30_000, 30_000, 30_000, 64_000, 100, 100, 64_000];
        for (join, size) in (0..).zip(sizes) {
            let room = room(&format!("room {join}"));
            broker.publish(&room, &vec![0; size]).await.expect("stored");
            readers.join(JoinId(join), 0, &room, Start::Earliest, None).expect("joined");
        }
        let (mut bodies, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(60));
        while bodies.len() < sizes.len() {
            assert!(Instant::now() < deadline, "{place}: only {bodies:?}");
            let (pulled, more) = pull_once(&readers, 65_000);
            assert!(pulled.len() <= 1 || pulled.iter().sum::<usize>() <= 65_000, "{place}: {pulled:?}");
            assert!(more == Pulled::All || !pulled.is_empty(), "{place}: a pull that is not the last gives something");
            bodies.extend(pulled);
            std::thread::yield_now();
        }
        let (single, _) = {
            let big = room("room 3");
            readers.leave(JoinId(3)).expect("joined");
            readers.join(JoinId(9), 0, &big, Start::Earliest, None).expect("joined");
            loop {
                let pulled = pull_once(&readers, 1000);
                assert!(Instant::now() < deadline, "{place}: the record never comes");
                if !pulled.0.is_empty() {
                    break pulled;
                }
            }
        };
        assert!(single.len() == 1 && single[0] > 64_000, "{place}: {single:?}");
    }
}

#[tokio::test]
async fn the_newest_records_are_joined_at_once_if_they_are_in_memory() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let lobby = room("lobby");
    let publisher = broker.publisher("ada");
    let mut records = 0;
    for count in [1, 4, 1, 3, 2] {
        publisher.publish(&lobby, &vec![NewRecord::new(b"x"); count], None).await.expect("stored");
        records += count as u64;
    }
    let readers = broker.readers(1, Arc::<Woken>::default());
    for count in 1..=records + 1 {
        let join = JoinId(u32::try_from(count).expect("few"));
        let joined = readers.join(join, 0, &lobby, Start::Last(count), None).expect("joined");
        let Joining::Joined(facts) = joined else { panic!("the newest {count} need looking up: {joined:?}") };
        assert_eq!((facts.start, facts.head), (Offset(records.saturating_sub(count)), Offset(records)));
    }
}

#[tokio::test]
async fn readers_that_join_at_one_place_within_a_batch_share_what_is_encoded_for_them() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let lobby = room("lobby");
    broker.publisher("ada").publish(&lobby, &vec![NewRecord::new(b"x"); 100], None).await.expect("stored");
    let readers = broker.readers(1, Arc::<Woken>::default());
    let bodies = |join, count| {
        readers.join(JoinId(join), 0, &lobby, Start::Last(count), None).expect("joined");
        let mut bodies = Vec::new();
        let mut take = |output| {
            if let Output::Records(_, part) = output {
                assert_eq!((part.prev, part.from, part.to), (Offset(100 - count), Offset(101 - count), Offset(100)));
                bodies.push(part.body);
            }
        };
        while readers.pull(1 << 20, 1 << 16, &mut take) == Pulled::More {}
        assert_eq!(bodies.len(), 1);
        bodies.remove(0)
    };
    let (first, second, other) = (bodies(1, 10), bodies(2, 10), bodies(3, 9));
    assert_eq!(first.as_ptr(), second.as_ptr(), "the same bytes");
    assert_ne!(first, other, "another place is another part");
}

#[tokio::test]
async fn the_newest_records_are_found_in_volumes_whose_blocks_are_passed_over() {
    const RECORDS: u64 = 40;
    let mut options = Options::in_memory();
    options.storage.tails_bytes_max = 0;
    options.storage.stretch_age_max = Duration::ZERO;
    let broker = Broker::open(options).await.expect("memory is enough");
    let lobby = room("lobby");
    // Three or so make a block.
    for number in 0..RECORDS {
        broker.publish(&lobby, &[number as u8; 9000]).await.expect("stored");
    }
    let (engine, in_memory) = (&broker.inner.engine, broker.room(&lobby).expect("a room"));
    let deadline = Instant::now() + PATIENCE;
    while engine.outline(&in_memory, Offset::MAX).is_none_or(|outline| outline.last != Offset(RECORDS)) {
        assert!(Instant::now() < deadline, "all of it becomes volumes");
        tokio::task::yield_now().await;
    }
    for count in 1..RECORDS {
        let mut newest = broker.join(&lobby, Start::Last(count)).await.expect("joined");
        let seen = payloads(&mut newest, usize::try_from(count).expect("few")).await;
        assert_eq!(
            seen.iter().map(|payload| payload[0]).collect::<Vec<_>>(),
            ((RECORDS - count) as u8..RECORDS as u8).collect::<Vec<_>>()
        );
    }
    let mut lookup = crate::broker::lookup::Lookup::new(Start::Last(RECORDS - 1));
    let place = lookup.step(&**engine, &in_memory).expect("readable").expect("one step: a single block is read");
    assert_eq!(place.start, Offset(1));
}

/// A broker that keeps the newest five records of each room, has nothing in tails and builds volumes at once.
async fn that_keeps_five() -> Broker {
    let mut options = Options::in_memory();
    options.storage.tails_bytes_max = 0;
    options.storage.stretch_age_max = Duration::ZERO;
    options.storage.rewrite_below_percent = 0;
    let rule = Retention { rooms: "*".to_owned(), max_records: Some(5), ..Retention::default() };
    options.storage.retention = vec![rule];
    Broker::open(options).await.expect("memory is enough")
}

/// Publishes fifty more records and waits until retention has cut all but five.
async fn publish_fifty_and_keep_five(broker: &Broker, room: &RoomName) {
    for _ in 0..50 {
        broker.publish(room, &[0; 2000]).await.expect("stored");
    }
    let deadline = Instant::now() + PATIENCE;
    while broker.inner.engine.facts(room.as_str()).expect("a room").records > 5 {
        assert!(Instant::now() < deadline, "retention has to cut");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn history_from_the_beginning_begins_where_retention_has_cut() {
    let broker = that_keeps_five().await;
    let lobby = room("lobby");
    publish_fifty_and_keep_five(&broker, &lobby).await;
    let page = broker.history(&lobby, PageAt::After(None), 100).await.expect("a page");
    assert_eq!((page.parts.first().map(|part| part.from), page.first), (Some(Offset(46)), Offset(46)));
    let mut since = broker.join(&lobby, Start::Since(Time(1))).await.expect("joined");
    assert_eq!(payloads(&mut since, 5).await.len(), 5);
}

#[tokio::test]
async fn a_page_that_retention_overtakes_while_it_is_read_has_no_hole() {
    let broker = that_keeps_five().await;
    let lobby = room("lobby");
    for _ in 0..2 {
        broker.publish(&lobby, &[0; 60_000]).await.expect("stored, in a block of its own");
    }
    let inner = &broker.inner;
    let mut walk = Walk::new(inner, &lobby, PageAt::After(None), 100, 1 << 20).expect("a room");
    assert!(!walk.step(inner).expect("read"), "only the first block has been read");
    publish_fifty_and_keep_five(&broker, &lobby).await;
    while !walk.step(inner).expect("read") {}
    let parts: Vec<_> = walk.page(inner).parts.iter().map(|part| (part.prev.0, part.from.0, part.to.0)).collect();
    assert!(parts.windows(2).all(|pair| pair[1].0 == pair[0].2), "{parts:?}");
    assert_eq!((parts[0].1, parts[parts.len() - 1].2), (48, 52), "{parts:?}");
}

#[tokio::test]
async fn what_is_published_behind_a_refused_record_is_stored() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let publisher = broker.publisher("ada");
    let lobby = room("lobby");
    let one = [NewRecord::new(b"x")];
    let (refused, second, third) = tokio::join!(
        publisher.publish(&lobby, &one, Some(Offset(99))),
        publisher.publish(&lobby, &one, None),
        publisher.publish(&lobby, &one, None)
    );
    assert_eq!(refused.expect_err("the room has no such head").code, Code::ExpectFailed);
    let offsets = (second.expect("stored").first.0, third.expect("stored").first.0);
    assert!(offsets == (1, 2) || offsets == (2, 1), "{offsets:?}");
}
