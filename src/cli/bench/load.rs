//! The roles of the load, and the threads that play them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::line::{Connected, Role, push};
use super::payload::Stamp;
use super::shared::{Phase, Shared};
use super::tally::Tally;
use crate::client::link::Connector;
use crate::client::{Address, Error};
use crate::protocol::{Batch, ClientFrame, Delivery, Join, JoinId, Publish, RecordArea, ServerFrame, StartAt, Want};
use crate::types::{NewRecord, Offset, PublisherId, RoomName};

/// Connections that one thread makes at a time.
const CONNECTING_MAX: usize = 32;
/// How much is written in one go.
const OUT_BYTES: usize = 32 << 10;
/// A write that takes longer is the broker's doing.
const STALL: Duration = Duration::from_millis(2);

/// One thread: its part of every kind of connection, on a runtime of its own.
pub(super) fn worker(shared: &Arc<Shared>, index: usize, threads: usize) -> Tally {
    let mut tally = Tally::new();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            shared.fail(format_args!("no runtime: {error}"));
            return tally;
        }
    };
    if let Err(error) = runtime.block_on(play(shared, index, threads, &mut tally)) {
        shared.fail(error);
    }
    tally
}

async fn play(shared: &Arc<Shared>, index: usize, threads: usize, tally: &mut Tally) -> Result<(), Error> {
    let plan = &shared.plan;
    let mine = |members: usize| (index..members).step_by(threads);
    let connector = Arc::new(Connector::new(Address::parse(&plan.url)?, &plan.options)?);
    let mut playing = JoinSet::new();

    let follower = |rooms: Vec<(usize, RoomName)>| Subscriber::new(shared, rooms);
    let rooms_of = |member| plan.share(member, plan.subscribers).map(|room| (room, plan.rooms[room].clone())).collect();
    let subscribers = mine(plan.subscribers).map(|member| follower(rooms_of(member)));
    let idle = mine(plan.idle).map(|_| follower(vec![(plan.rooms.len(), plan.idle_room.clone())]));
    for subscriber in connect(&connector, subscribers.chain(idle), plan.timeout, follow).await? {
        playing.spawn(subscribe(subscriber, Arc::clone(shared)));
    }
    let publishers = mine(plan.publishers).map(|member| Publisher::new(shared, member));
    for publisher in connect(&connector, publishers, plan.timeout, async |line| Ok(line)).await? {
        playing.spawn(publish(publisher, Arc::clone(shared)));
    }
    shared.ready();
    while let Some(played) = playing.join_next().await {
        tally.add(&played.map_err(Error::protocol)??);
    }
    Ok(())
}

/// Opens a connection for each role, some at a time, and makes it ready.
async fn connect<R: Role>(
    connector: &Arc<Connector>,
    roles: impl Iterator<Item = R>,
    patience: Duration,
    prepare: impl AsyncFn(Connected<R>) -> Result<Connected<R>, Error>,
) -> Result<Vec<Connected<R>>, Error> {
    let mut roles = roles.peekable();
    let mut connecting = JoinSet::new();
    let mut lines = Vec::new();
    loop {
        while connecting.len() < CONNECTING_MAX
            && let Some(role) = roles.next()
        {
            let connector = Arc::clone(connector);
            connecting.spawn(async move {
                let late = Error::Timeout { what: "connecting", after: patience };
                timeout(patience, Connected::open(&connector, role)).await.unwrap_or(Err(late))
            });
        }
        let Some(line) = connecting.join_next().await else { return Ok(lines) };
        let late = Error::Timeout { what: "a join", after: patience };
        let line = line.map_err(Error::protocol)??;
        lines.push(timeout(patience, prepare(line)).await.unwrap_or(Err(late))?);
    }
}

/// Follows rooms, and checks what comes.
struct Subscriber {
    shared: Arc<Shared>,
    rooms: Vec<(usize, RoomName)>,
    joined: usize,
    /// The last offset of each room.
    offsets: HashMap<JoinId, Offset>,
    /// The last number of each publisher in each room.
    numbers: HashMap<(JoinId, u32), u64>,
    tally: Tally,
}

impl Subscriber {
    fn new(shared: &Arc<Shared>, rooms: Vec<(usize, RoomName)>) -> Self {
        let shared = Arc::clone(shared);
        Self { shared, rooms, joined: 0, offsets: HashMap::new(), numbers: HashMap::new(), tally: Tally::new() }
    }

    fn delivery(&mut self, delivery: &Delivery<'_>) -> Result<(), Error> {
        let header = delivery.header;
        let (now, measuring) = (self.shared.nanos(), self.shared.is_measuring());
        // The chain is checked by offsets here, and by our own numbers below.
        let last = self.offsets.insert(header.join, header.to);
        if last.is_some_and(|last| last != header.prev) {
            self.tally.broken += 1;
        }
        let mut count = 0;
        for record in Batch::parse(delivery.body).map_err(Error::protocol)?.records(Offset::ZERO) {
            let record = record.map_err(Error::protocol)?;
            if record.offset < header.from || record.offset > header.to {
                continue;
            }
            count += 1;
            let Some(stamp) = Stamp::read(record.content.payload) else {
                self.tally.foreign += 1;
                continue;
            };
            let last = self.numbers.entry((header.join, stamp.publisher)).or_default();
            self.tally.follow(last, stamp.seq);
            if measuring {
                self.tally.to_delivery.saturating_record(now.saturating_sub(stamp.nanos) / 1000);
            }
        }
        if measuring {
            self.tally.delivered_measured += count;
        }
        self.shared.had(count);
        Ok(())
    }
}

impl Role for Subscriber {
    fn frame(&mut self, frame: &ServerFrame<'_>) -> Result<(), Error> {
        match frame {
            ServerFrame::Delivery(delivery) => self.delivery(delivery)?,
            ServerFrame::Joined(_) => self.joined += 1,
            ServerFrame::Error(fault) => return Err(Error::refused(fault)),
            ServerFrame::Left(cut) => return Err(Error::protocol(format_args!("a join was ended: {}", cut.message))),
            _ => {}
        }
        Ok(())
    }
}

/// Joins all the rooms of a subscriber.
async fn follow(mut line: Connected<Subscriber>) -> Result<Connected<Subscriber>, Error> {
    let rooms = line.line.role.lock().rooms.clone();
    let in_flight_max = (line.limits.requests_in_flight as usize).max(1);
    for (sent, part) in rooms.chunks(in_flight_max).scan(0, |sent, part| {
        *sent += part.len();
        Some((*sent, part))
    }) {
        let mut out = Vec::new();
        for (index, room) in part {
            let join = JoinId(u32::try_from(*index).unwrap_or(u32::MAX));
            let request = join.0.wrapping_add(1);
            let (room, start, want) = (room.as_str(), StartAt::New, Want::RECORDS);
            push(&mut out, &ClientFrame::Join(Join { request, join, room, start, credit_bytes: None, want }));
        }
        line.send(&mut out).await?;
        while line.line.role.lock().joined < sent {
            line.woken().await?;
        }
    }
    Ok(line)
}

async fn subscribe(mut line: Connected<Subscriber>, shared: Arc<Shared>) -> Result<Tally, Error> {
    let mut phase = shared.phase();
    loop {
        tokio::select! {
            woken = line.woken() => woken?,
            over = phase.wait_for(|phase| *phase == Phase::Over) => {
                // The sender lives as long as we do.
                drop(over);
                return Ok(std::mem::replace(&mut line.line.role.lock().tally, Tally::new()));
            }
        }
    }
}

/// One publish that waits for its answer.
#[derive(Clone, Copy, Default)]
struct Slot {
    room: usize,
    /// When it should have been sent.
    nanos: u64,
}

/// Publishes, and times the answers.
struct Publisher {
    shared: Arc<Shared>,
    member: usize,
    slots: Vec<Slot>,
    in_flight: usize,
    tally: Tally,
}

impl Publisher {
    fn new(shared: &Arc<Shared>, member: usize) -> Self {
        Self { shared: Arc::clone(shared), member, slots: Vec::new(), in_flight: 0, tally: Tally::new() }
    }
}

impl Role for Publisher {
    fn frame(&mut self, frame: &ServerFrame<'_>) -> Result<(), Error> {
        match frame {
            ServerFrame::Published(published) => {
                let window = self.slots.len();
                let slot = self.slots[published.request as usize % window];
                let records = self.shared.plan.batch as u64;
                self.in_flight -= 1;
                *self.tally.acknowledged.entry(slot.room).or_default() += records;
                if self.shared.is_measuring() {
                    self.tally.acknowledged_measured += records;
                    let nanos = self.shared.nanos().saturating_sub(slot.nanos);
                    self.tally.to_ack.saturating_record(nanos / 1000);
                }
                Ok(())
            }
            // To go on after a refusal would need a client's care; the load is within the broker's limits.
            ServerFrame::Error(fault) => Err(Error::refused(fault)),
            _ => Ok(()),
        }
    }
}

/// When the next publish is due; always, without a rate.
struct Pace {
    interval: Option<Duration>,
    next: Instant,
    /// The broker has kept us from sending in time: delays count from when we should have sent.
    held_up: bool,
}

impl Pace {
    fn new(shared: &Shared, member: usize) -> Self {
        let plan = &shared.plan;
        let interval =
            plan.rate.map(|rate| Duration::from_secs_f64(plan.batch as f64 * plan.publishers as f64 / rate as f64));
        // Spread over the interval, so that not all send at the same moment.
        let first = interval.map(|interval| interval.mul_f64(member as f64 / plan.publishers as f64));
        Self { interval, next: Instant::now() + first.unwrap_or_default(), held_up: false }
    }

    /// Whether something is due, and how long it has been.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        let Some(interval) = self.interval else { return Some(Duration::ZERO) };
        if self.next > now {
            self.held_up = false;
            return None;
        }
        // A timer that was late is ours; a full window or a full socket is not.
        let late = if self.held_up { now - self.next } else { Duration::ZERO };
        self.next += interval;
        Some(late)
    }
}

async fn publish(mut line: Connected<Publisher>, shared: Arc<Shared>) -> Result<Tally, Error> {
    let plan = &shared.plan;
    let member = line.line.role.lock().member;
    let area_bytes = plan.batch * (plan.payload_bytes + 16);
    let window = plan
        .window
        .min(line.limits.requests_in_flight as usize)
        .min(line.limits.bytes_in_flight as usize / area_bytes)
        .max(1);
    line.line.role.lock().slots = vec![Slot::default(); window];
    let publisher = PublisherId::random().map_err(Error::protocol)?;
    let mut rooms: Vec<(usize, u64)> = plan.share(member, plan.publishers).map(|room| (room, 0)).collect();
    let (share, mut turn) = (rooms.len(), 0);
    let mut request = 0_u32;
    let mut payload = vec![b'.'; plan.payload_bytes];
    let (mut out, mut area) = (Vec::new(), Vec::new());

    let mut phase = shared.phase();
    tokio::select! {
        _ = phase.wait_for(|phase| *phase >= Phase::Publishing) => {}
        woken = async { loop { line.woken().await? } } => return woken,
    }
    let mut pace = Pace::new(&shared, member);
    loop {
        let publishing = *phase.borrow_and_update() == Phase::Publishing;
        let mut full = false;
        out.clear();
        {
            let mut role = line.line.role.lock();
            while publishing && out.len() < OUT_BYTES {
                full = role.in_flight >= window;
                if full {
                    pace.held_up = true;
                    break;
                }
                let Some(late) = pace.take(Instant::now()) else { break };
                let nanos = shared.nanos().saturating_sub(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX));
                let (room, seq) = &mut rooms[turn];
                turn = (turn + 1) % share;
                area.clear();
                for index in 1..=plan.batch as u64 {
                    let publisher = u32::try_from(member).unwrap_or(u32::MAX);
                    Stamp { publisher, seq: *seq + index, nanos }.write(&mut payload);
                    RecordArea::push(&mut area, &NewRecord::new(&payload));
                }
                // The slot is free: answers come in order, and no more than the window is under way.
                request = request.wrapping_add(1).max(1);
                role.slots[request as usize % window] = Slot { room: *room, nanos };
                role.in_flight += 1;
                role.tally.sent += plan.batch as u64;
                let frame = ClientFrame::Publish(Publish {
                    request,
                    room: plan.rooms[*room].as_str(),
                    publisher,
                    seq: *seq + 1,
                    expect: None,
                    count: u32::try_from(plan.batch).unwrap_or(u32::MAX),
                    records: RecordArea(&area),
                });
                push(&mut out, &frame);
                *seq += plan.batch as u64;
            }
            if !publishing && role.in_flight == 0 {
                let tally = std::mem::replace(&mut role.tally, Tally::new());
                shared.drained(&tally);
                return Ok(tally);
            }
        }
        if !out.is_empty() {
            let began = Instant::now();
            line.send(&mut out).await?;
            pace.held_up |= began.elapsed() > STALL;
            continue;
        }
        let timed = pace.interval.is_some() && publishing && !full;
        tokio::select! {
            woken = line.woken() => woken?,
            () = tokio::time::sleep_until(pace.next), if timed => {}
            _ = phase.changed() => {
                if *phase.borrow() == Phase::Over {
                    return Ok(std::mem::replace(&mut line.line.role.lock().tally, Tally::new()));
                }
            }
        }
    }
}
