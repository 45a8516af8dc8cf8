//! The server: the real log on a disk that fails, the real broker on it, and a session on each connection; it ends in
//! all ways in which servers end, and comes back.
//!
//! What is not the real one: threads are tasks that take turns, the loop around a session stands here once more, for
//! streams that are no sockets, and sled's place is taken by a map that is whole or not there.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

use super::World;
use super::network::Wire;
use crate::broker::{Broker, Readers, Wake};
use crate::metrics::{Metrics, Transport};
use crate::protocol::JoinId;
use crate::session::{Due, End, Host, Life, Outbox, Reading, Service, Streams};
use crate::storage::block_store::{BlockStore, MemoryBlockStore};
use crate::storage::disk::{Disk, FaultyDisk};
use crate::storage::embedded::SteppedLog;
use crate::storage::{Answer, Engine, EngineError, Facts, Health, Options, Read, ReadAt, Refused, Reply, Retention};
use crate::storage::{Room, Submission, Targets};
use crate::transport::websocket::{Event, Guard, Out, Pumped, Violation};
use crate::types::{Epoch, Limits, PublisherId, RoomName};

/// Rooms whose names begin so lose their oldest records.
pub(super) const SHORT: &str = "short";

/// How many records those keep.
const SHORT_RECORDS: u64 = 25;

/// As often as the keeper's own thread looks around.
const KEEPER_PERIOD: Duration = Duration::from_millis(100);

/// How a server ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// The process is killed. What it has written is still there, durable or not.
    Kill,
    /// The power goes: of what is not durable, chance keeps some.
    PowerCut,
    /// It is asked to end, and ends in good order.
    Stop,
}

/// What is broken on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sabotage {
    /// The disk says now and then that it has synced the journal, and has not.
    LyingDisk,
    /// Every publish is taken for a new one.
    NoMemory,
}

/// One run of the server, from its start to its end.
struct Run {
    disk: FaultyDisk,
    log: Arc<SteppedLog>,
    broker: Broker,
    /// Once it is set, nothing of this run does anything any more.
    over: AtomicBool,
    /// It ends in this way as soon as a commit is durable, before anybody is told.
    ends_after_commit: Mutex<Option<Ending>>,
    sessions: Mutex<Vec<Weak<Outbox>>>,
}

pub(super) struct Server {
    world: Arc<World>,
    chance: Mutex<StdRng>,
    disk: Mutex<FaultyDisk>,
    store: Arc<dyn BlockStore>,
    run: Mutex<Option<Arc<Run>>>,
    /// How the present run ends, once it is known.
    ending: Mutex<Option<Ending>>,
    ended: Notify,
    /// What it is if the disk does nothing more from some operation on: the power's end or the process's.
    at_operation: Mutex<Ending>,
    /// The machine stays off for so long at least.
    pause: Mutex<Duration>,
    /// It is not to come back.
    last: AtomicBool,
    epoch: Mutex<Option<Epoch>>,
    stride: u64,
}

pub(super) fn limits() -> Limits {
    Limits {
        handshake_timeout: Duration::from_secs(3),
        idle_timeout: Duration::from_secs(9),
        ping_interval: Duration::from_secs(3),
        stall_timeout: Duration::from_secs(30),
        requests_in_flight_max: 12,
        bytes_in_flight_max: 16 << 10,
        ..Limits::default()
    }
}

impl Server {
    pub(super) fn new(world: &Arc<World>, seed: u64, stride: u64) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            disk: Mutex::new(FaultyDisk::new(seed)),
            store: Arc::new(MemoryBlockStore::new()),
            run: Mutex::new(None),
            ending: Mutex::new(None),
            ended: Notify::new(),
            at_operation: Mutex::new(Ending::PowerCut),
            pause: Mutex::new(Duration::ZERO),
            last: AtomicBool::new(false),
            epoch: Mutex::new(None),
            stride,
        })
    }

    fn options(&self) -> Options {
        let rule = Retention { rooms: format!("{SHORT}*"), max_records: Some(SHORT_RECORDS), ..Retention::default() };
        Options {
            stretch_bytes: 24 << 10,
            journal_bytes_max: 96 << 10,
            tails_bytes_max: 4 << 10,
            block_cache_bytes_max: 8 << 10,
            commit_queue_bytes_max: 24 << 10,
            commit_bytes_max: 8 << 10,
            disk_reserve_bytes: 0,
            rewrite_below_percent: 80,
            offset_stride: self.stride,
            retention: vec![rule],
            ..Options::new("")
        }
    }

    pub(super) fn chance<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.chance.lock())
    }

    /// The disk that is in the machine now.
    pub(super) fn disk(&self) -> FaultyDisk {
        self.disk.lock().clone()
    }

    pub(super) fn is_up(&self) -> bool {
        self.run.lock().is_some()
    }

    /// The heads that the server knows of, where it knows of later ones.
    pub(super) fn heads(&self, mut heads: BTreeMap<RoomName, u64>) -> BTreeMap<RoomName, u64> {
        let run = self.run.lock().clone().expect("it is calm, and the server is up");
        for (room, head) in &mut heads {
            *head = run.log.facts(room.as_str()).map_or(*head, |facts| facts.head.0);
        }
        heads
    }

    /// Ends the present run, if there is one; it comes back after a pause.
    pub(super) fn end(&self, how: Ending, pause: Duration) {
        *self.pause.lock() = pause;
        let run = self.run.lock().clone();
        if let Some(run) = run {
            self.ends(&run, how);
        }
    }

    /// Ends the present run as soon as a commit is durable.
    pub(super) fn end_after_commit(&self, how: Ending, pause: Duration) {
        *self.pause.lock() = pause;
        if let Some(run) = &*self.run.lock() {
            *run.ends_after_commit.lock() = Some(how);
        }
    }

    /// Ends the present run in the middle of what it does with the disk.
    pub(super) fn end_at_operation(&self, operation: u64, how: Ending, pause: Duration) {
        *self.pause.lock() = pause;
        *self.at_operation.lock() = how;
        self.disk().cut_at(operation);
    }

    /// Ends it in good order, for good.
    pub(super) fn end_for_good(&self) {
        self.last.store(true, Ordering::SeqCst);
        self.end(Ending::Stop, Duration::ZERO);
    }

    /// Whether the present run has lost its storage.
    pub(super) fn has_failed(&self) -> bool {
        self.run.lock().as_ref().is_some_and(|run| matches!(run.log.health(), Health::Failed(_)))
    }

    /// From this moment on the run is no more.
    fn ends(&self, run: &Arc<Run>, how: Ending) {
        if how != Ending::Stop && run.over.swap(true, Ordering::SeqCst) {
            return;
        }
        if how != Ending::Stop {
            self.world.network.server_gone(how == Ending::PowerCut);
        }
        *self.ending.lock() = Some(how);
        self.ended.notify_one();
    }

    /// To be asked before anything of a run is shown to others: without power nothing is.
    fn goes_on(&self, run: &Arc<Run>) -> bool {
        if run.over.load(Ordering::SeqCst) {
            return false;
        }
        if run.disk.free_bytes().is_err() {
            self.ends(run, *self.at_operation.lock());
            return false;
        }
        true
    }

    /// Starts the server, and again whenever it has ended.
    pub(super) async fn live(self: Arc<Self>) {
        let mut after_kill = false;
        loop {
            let Some(run) = self.start().await else { continue };
            if after_kill && !self.world.is_calm() && self.chance(|chance| chance.random_bool(0.2)) {
                // What was found after a kill need not be durable: is it, when it has been shown to somebody?
                let soon = Duration::from_millis(self.chance(|chance| chance.random_range(0..500)));
                let (server, run) = (Arc::clone(&self), Arc::clone(&run));
                self.world.spawn(async move {
                    sleep(soon).await;
                    server.ends(&run, Ending::PowerCut);
                });
            }
            let mut ending = self.next_ending().await;
            if ending == Ending::Stop {
                ending = self.stop(&run).await;
            }
            self.world.say(format_args!("the server ends: {ending:?}"));
            self.world.count(match ending {
                Ending::Kill => "kills",
                Ending::PowerCut => "power cuts",
                Ending::Stop => "stops",
            });
            *self.run.lock() = None;
            let seed = self.chance(|chance| chance.random());
            let disk = self.disk();
            let dark = ending == Ending::PowerCut || ending == Ending::Stop && disk.free_bytes().is_err();
            *self.disk.lock() = if dark { disk.reopen(seed) } else { disk.after_kill(seed) };
            *self.at_operation.lock() = Ending::PowerCut;
            if ending == Ending::PowerCut && !self.world.is_calm() && self.chance(|chance| chance.random_bool(0.25)) {
                let disk = self.disk();
                disk.cut_at(disk.operations() + 1 + self.chance(|chance| chance.random_range(0..12)));
            }
            after_kill = ending == Ending::Kill;
            if self.last.load(Ordering::SeqCst) {
                return;
            }
            let pause = *self.pause.lock();
            sleep(pause).await;
        }
    }

    async fn next_ending(&self) -> Ending {
        loop {
            self.ended.notified().await;
            if let Some(ending) = self.ending.lock().take() {
                return ending;
            }
        }
    }

    /// Ends a run in good order, unless that is cut short.
    async fn stop(&self, run: &Arc<Run>) -> Ending {
        self.world.network.shut_door();
        let sessions: Vec<_> = run.sessions.lock().iter().filter_map(Weak::upgrade).collect();
        for outbox in sessions {
            outbox.stop(Duration::from_millis(500));
        }
        let patience = Instant::now() + Duration::from_secs(5);
        while Instant::now() < patience && run.sessions.lock().iter().any(|outbox| outbox.strong_count() > 0) {
            sleep(Duration::from_millis(10)).await;
        }
        if self.goes_on(run) {
            run.over.store(true, Ordering::SeqCst);
            run.log.close();
            self.world.network.server_gone(false);
        }
        self.ending.lock().take().unwrap_or(Ending::Stop)
    }

    /// `None` if the power went meanwhile.
    async fn start(self: &Arc<Self>) -> Option<Arc<Run>> {
        let disk = self.disk();
        let submitted = Arc::new(Notify::new());
        let wanted = Arc::new(Notify::new());
        let told = {
            let submitted = Arc::clone(&submitted);
            move || submitted.notify_one()
        };
        let sabotage = self.world.sabotage;
        let seen: Arc<dyn Disk> = match sabotage {
            Some(Sabotage::LyingDisk) => Arc::new(super::sabotage::LyingDisk(disk.clone())),
            _ => Arc::new(disk.clone()),
        };
        let log = match SteppedLog::open(self.options(), seen, Arc::clone(&self.store), told) {
            Ok(log) => Arc::new(log),
            Err(error) => {
                let off = disk.free_bytes().is_err();
                self.world.say(format_args!("the log does not open: {error}"));
                if off {
                    self.world.count("power cuts while the log is opened");
                } else if !self.world.full.load(Ordering::SeqCst) {
                    self.world.fail(format!("the log does not open: {error}"));
                }
                let seed = self.chance(|chance| chance.random());
                *self.disk.lock() = if off { disk.reopen(seed) } else { disk.after_kill(seed) };
                sleep(Duration::from_millis(200)).await;
                return None;
            }
        };
        let epoch = *self.epoch.lock().get_or_insert(log.epoch());
        if epoch != log.epoch() {
            self.world.fail("the epoch has changed, although nothing may have been lost".to_owned());
        }
        let engine: Arc<dyn Engine> = match sabotage {
            Some(Sabotage::NoMemory) => Arc::new(Forgetful(Arc::clone(&log))),
            _ => Arc::clone(&log) as _,
        };
        let told = {
            let wanted = Arc::clone(&wanted);
            move || wanted.notify_one()
        };
        let broker = Broker::stepped(engine, limits(), Arc::new(told));
        let over = AtomicBool::new(false);
        let run =
            Arc::new(Run { disk, log, broker, over, ends_after_commit: Mutex::new(None), sessions: Mutex::default() });
        self.ending.lock().take();
        *self.run.lock() = Some(Arc::clone(&run));
        let (door, visitors) = mpsc::unbounded_channel();
        self.world.network.open_door(door);
        self.world.say(format_args!("the server is up"));
        self.world.spawn(Arc::clone(self).commits(Arc::clone(&run), Arc::clone(&submitted)));
        self.world.spawn(Arc::clone(self).keeps(Arc::clone(&run), submitted));
        self.world.spawn(Arc::clone(self).reads(Arc::clone(&run), wanted));
        self.world.spawn(Arc::clone(self).lets_in(Arc::clone(&run), visitors));
        Some(run)
    }

    async fn commits(self: Arc<Self>, run: Arc<Run>, submitted: Arc<Notify>) {
        loop {
            submitted.notified().await;
            loop {
                // What the disk takes; sometimes it takes long.
                let millis = self.chance(|chance| match chance.random_range(0..50) {
                    0 => chance.random_range(0..2000),
                    1..25 => chance.random_range(0..6),
                    _ => 0,
                });
                sleep(Duration::from_millis(millis)).await;
                if !self.goes_on(&run) {
                    return;
                }
                if run.log.must_wait() {
                    self.world.count("commits that wait for the keeper");
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
                let operations = run.disk.operations();
                let answered = run.log.commit();
                self.world.say(format_args!("commit: {answered}, disk operation {}", run.disk.operations()));
                if !self.goes_on(&run) {
                    return;
                }
                if run.disk.operations() > operations
                    && let Some(how) = run.ends_after_commit.lock().take()
                {
                    self.world.count("ends between sync and answer");
                    return self.ends(&run, how);
                }
                if !answered {
                    break;
                }
            }
        }
    }

    async fn keeps(self: Arc<Self>, run: Arc<Run>, submitted: Arc<Notify>) {
        loop {
            sleep(KEEPER_PERIOD).await;
            if !self.goes_on(&run) {
                return;
            }
            let before = run.disk.operations();
            run.log.keep();
            if run.log.waits() {
                submitted.notify_one();
            }
            if run.disk.operations() != before {
                self.world.say(format_args!("the keeper: disk operation {}", run.disk.operations()));
            }
            if !self.goes_on(&run) {
                return;
            }
        }
    }

    async fn reads(self: Arc<Self>, run: Arc<Run>, wanted: Arc<Notify>) {
        loop {
            wanted.notified().await;
            loop {
                let millis = self.chance(|chance| if chance.random_bool(0.3) { chance.random_range(0..20) } else { 0 });
                sleep(Duration::from_millis(millis)).await;
                if !self.goes_on(&run) {
                    return;
                }
                let read = run.broker.read_turn();
                self.world.say(format_args!("a read: {read}"));
                if !self.goes_on(&run) {
                    return;
                }
                if !read {
                    break;
                }
            }
        }
    }

    async fn lets_in(self: Arc<Self>, run: Arc<Run>, mut visitors: mpsc::UnboundedReceiver<Arc<Wire>>) {
        let budget = Arc::new(Host::new(64 << 10, 64 << 10, None));
        while let Some(wire) = visitors.recv().await {
            if !self.goes_on(&run) {
                return;
            }
            let outbox = Outbox::new(Arc::new(Metrics::disabled()), Transport::WebSocket, Arc::clone(&budget));
            let outbox = Arc::new(outbox);
            {
                let mut sessions = run.sessions.lock();
                sessions.retain(|outbox| outbox.strong_count() > 0);
                sessions.push(Arc::downgrade(&outbox));
            }
            let number = run.broker.new_session();
            self.world.spawn(serve(Arc::clone(&self), Arc::clone(&run), wire, outbox, number));
        }
    }
}

/// What the session's task and the committer share.
struct Connection {
    server: Arc<Server>,
    run: Arc<Run>,
    wire: Arc<Wire>,
    out: Mutex<Out>,
    outbox: Arc<Outbox>,
}

impl Connection {
    /// As the transport does it: at once, if nobody else is at it and it is little.
    fn advance(&self, targets: Targets) {
        let written = targets == Targets::Few
            // An end that is to come between sync and answer is one in which nobody is told.
            && self.run.ends_after_commit.lock().is_none()
            && self.server.goes_on(&self.run)
            && self.out.try_lock().is_some_and(|mut out| {
                !out.blocked
                    && out.pump(&self.outbox, 2, |slices| self.wire.down.try_write(slices)) == Pumped::All
            });
        if !written || self.outbox.is_waiting() {
            self.outbox.kick();
        }
    }
}

impl Wake for Connection {
    fn wake(&self, targets: Targets) {
        self.advance(targets);
    }
}

impl Reply for Connection {
    fn answered(&self, answers: &[Answer], targets: Targets) {
        self.outbox.answered(answers);
        self.advance(targets);
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Streams for Connection {
    type Access<'a> = Access<'a>;

    fn readers(&self) -> Access<'_> {
        Access(self.out.lock())
    }

    fn open(&self, _join: JoinId, _room: &RoomName) -> Result<(), Refused> {
        Ok(())
    }

    fn close(&self, _join: JoinId) {}
}

struct Access<'a>(MutexGuard<'a, Out>);

impl Deref for Access<'_> {
    type Target = Readers;

    fn deref(&self) -> &Readers {
        self.0.readers.as_ref().expect("the session is not over")
    }
}

#[derive(Debug)]
enum Over {
    /// The peer, or the server itself.
    Gone,
    Closed,
    Violation(Violation),
    End(End),
}

impl From<Violation> for Over {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

struct Task {
    connection: Arc<Connection>,
    service: Service,
    guard: Guard,
    timer: Option<std::pin::Pin<Box<Sleep>>>,
    taken: u64,
    unwritten: bool,
}

impl Task {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        let now = Instant::now();
        self.unwritten |= self.connection.outbox.take_kick(cx);
        let retry = match self.rounds(cx, now) {
            Ok(retry) => retry,
            Err(over) => return Poll::Ready(over),
        };
        match self.service.tick(now.into_std()) {
            Due::Nothing => {}
            Due::End(end) => return Poll::Ready(Over::End(end)),
            Due::Ping => {
                self.connection.out.lock().ping();
                self.unwritten = true;
                cx.waker().wake_by_ref();
            }
            // This transport tells nothing of its peer: one that is gone is given up for its stall.
            Due::Settle | Due::Look(_) => {}
        }
        let deadline = self.service.session().deadline().map(Instant::from_std);
        if let Some(at) = deadline.into_iter().chain(retry).min() {
            let mut timer = Box::pin(sleep_until(at));
            if timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            self.timer = Some(timer);
        }
        Poll::Pending
    }

    fn rounds(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, Over> {
        for _ in 0..4 {
            let Connection { server, run, outbox, .. } = &*self.connection;
            if !server.goes_on(run) {
                return Err(Over::Gone);
            }
            if self.unwritten || outbox.bytes() > 0 {
                let mut out = self.connection.out.lock();
                let pumped = pump(&self.connection, &mut out, cx);
                let clocks = self.service.session().clocks();
                match pumped {
                    Pumped::Blocked => clocks.blocked(now.into_std(), out.taken != self.taken),
                    _ => clocks.flowing(now.into_std()),
                }
                self.taken = out.taken;
                self.unwritten = pumped != Pumped::All;
                match pumped {
                    Pumped::Broken => return Err(Over::Gone),
                    Pumped::More => cx.waker().wake_by_ref(),
                    Pumped::All | Pumped::Blocked => {}
                }
            }
            self.service.read_on();
            if let Some(end) = outbox.asked_to_end() {
                outbox.set_waiting(true);
                return match self.service.in_flight().0 {
                    0 => Err(Over::End(end)),
                    _ => Ok(None),
                };
            }
            let reading = self.service.reads_from_peer();
            outbox.set_waiting(reading == Reading::PausedUntilWoken);
            self.service.session().clocks().reading(now.into_std(), reading == Reading::Goes);
            match reading {
                Reading::Goes => {}
                Reading::PausedUntilWoken => return Ok(None),
                Reading::PausedForQueue | Reading::PausedForMemory => return Ok(Some(now + Duration::from_millis(2))),
            }
            let mut buffer = [0; 4096];
            match self.connection.wire.up.poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(None),
                Poll::Ready(Err(_) | Ok(0)) => return Err(Over::Gone),
                Poll::Ready(Ok(bytes)) => self.take(&buffer[..bytes], now)?,
            }
        }
        cx.waker().wake_by_ref();
        Ok(None)
    }

    fn take(&mut self, bytes: &[u8], now: Instant) -> Result<(), Over> {
        let Self { connection, service, guard, unwritten, .. } = self;
        let mut completed = false;
        let read = guard.read(bytes, |event| {
            match event {
                Event::Message(message) => {
                    completed = true;
                    service.message(message, &**connection)?;
                }
                Event::Ping(payload) => {
                    connection.out.lock().pong(payload);
                    *unwritten = true;
                }
                Event::Pong => {}
                Event::Close => return Err(Over::Closed),
            }
            Ok(())
        });
        *unwritten = true;
        service.submit();
        service.session().clocks().heard(now.into_std(), completed, guard.within_message());
        read
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The readers hold the connection, and the connection the readers.
        let readers = self.connection.out.lock().readers.take();
        drop(readers);
    }
}

fn pump(connection: &Connection, out: &mut Out, cx: &mut Context<'_>) -> Pumped {
    loop {
        let pumped = out.pump(&connection.outbox, 4, |slices| connection.wire.down.try_write(slices));
        if pumped != Pumped::Blocked || connection.wire.down.poll_writable(cx).is_pending() {
            return pumped;
        }
    }
}

async fn serve(server: Arc<Server>, run: Arc<Run>, wire: Arc<Wire>, outbox: Arc<Outbox>, number: u64) {
    let window = server.chance(|chance| chance.random_range(512..16_384));
    let (broker, world) = (run.broker.clone(), Arc::clone(&server.world));
    let out = Mutex::new(Out::new(window));
    let connection = Arc::new(Connection { server, run, wire, out, outbox });
    connection.out.lock().readers = Some(broker.readers(number, Arc::clone(&connection) as Arc<dyn Wake>));
    let reply = Arc::clone(&connection) as Arc<dyn Reply>;
    let guard = Guard::new(limits().frame_bytes_max());
    let now = Instant::now().into_std();
    let service = Service::new(broker, number, Arc::clone(&connection.outbox), reply, Life::Session, now);
    let (timer, taken, unwritten) = (None, 0, false);
    let mut task = Task { connection: Arc::clone(&connection), service, guard, timer, taken, unwritten };
    let over = std::future::poll_fn(|cx| task.poll(cx)).await;
    drop(task);
    world.say(format_args!("connection {} ends for the server: {over:?}", connection.wire.number));
    finish(&connection, &over).await;
    connection.wire.down.finish();
    connection.wire.up.break_writer();
}

/// Sends the last frames, if the peer takes them.
async fn finish(connection: &Arc<Connection>, over: &Over) {
    let (code, reason) = match over {
        Over::Gone => return,
        Over::Closed => (Some(1000), String::new()),
        Over::Violation(violation) => {
            connection.server.world.fail(format!("a client broke the protocol: {violation:?}"));
            (Some(violation.code), violation.reason.to_owned())
        }
        Over::End(end) => {
            connection.outbox.goodbye(end);
            (Some(end.close().websocket()), end.reason())
        }
    };
    connection.out.lock().close(code, &reason);
    let written = std::future::poll_fn(|cx| {
        connection.outbox.take_kick(cx);
        if !connection.server.goes_on(&connection.run) {
            return Poll::Ready(());
        }
        match pump(connection, &mut connection.out.lock(), cx) {
            Pumped::All | Pumped::Broken => Poll::Ready(()),
            Pumped::Blocked => Poll::Pending,
            Pumped::More => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    });
    let _ = timeout(Duration::from_secs(2), written).await;
}

/// A log that takes every publish for a new one.
#[derive(Debug)]
struct Forgetful(Arc<SteppedLog>);

impl Engine for Forgetful {
    fn epoch(&self) -> Epoch {
        self.0.epoch()
    }

    fn room(&self, name: &RoomName) -> Result<Arc<Room>, EngineError> {
        self.0.room(name)
    }

    fn submit(&self, submission: &mut Submission) {
        for append in &mut submission.appends {
            append.publisher = PublisherId::random().expect("there is randomness");
            append.seq = 1;
        }
        self.0.submit(submission);
    }

    fn queue(&self) -> (usize, usize) {
        self.0.queue()
    }

    fn read(&self, room: &Room, at: ReadAt) -> Result<Read, EngineError> {
        self.0.read(room, at)
    }

    fn outline(&self, room: &Room, before: crate::types::Offset) -> Option<crate::storage::Outline> {
        self.0.outline(room, before)
    }

    fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<(RoomName, Facts)> {
        self.0.list(prefix, after, limit)
    }

    fn facts(&self, name: &str) -> Option<Facts> {
        self.0.facts(name)
    }

    fn health(&self) -> Health {
        self.0.health()
    }

    fn close(&self) {
        self.0.close();
    }
}

/// A log of its own on a disk as it is now, to read all that there is.
pub(super) fn reopened(server: &Server, disk: FaultyDisk) -> SteppedLog {
    let log = SteppedLog::open(server.options(), Arc::new(disk), Arc::clone(&server.store), || ());
    log.unwrap_or_else(|error| panic!("the log does not open in the end: {error}"))
}
