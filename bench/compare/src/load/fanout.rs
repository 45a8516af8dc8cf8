//! Rooms with subscribers, each on a connection of its own, and publishers: as fast as it goes within a window, or at a
//! rate that does not wait for anybody.

use std::time::{Duration, Instant};

use super::{Span, Times};
use crate::histogram::Histogram;
use crate::line::Lines;
use crate::order::Order;
use crate::payload::{self, Payload};
use crate::peers::Target;
use crate::wire::{Event, Start, Wire};

/// Messages written at once at saturation.
const BATCH: usize = 128;
/// Without any delivery for so long, what has not come is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// The same, of those who read again: a kernel that was refused for long waits before it tries again.
const SILENCE_REVIVED: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rooms: u32,
    pub(crate) subscribers_per_room: u32,
    pub(crate) publishers: u32,
    pub(crate) payload_bytes: usize,
}

impl Shape {
    /// One room with one publisher.
    pub(crate) fn one_room(subscribers: u32, payload_bytes: usize) -> Self {
        Self { rooms: 1, subscribers_per_room: subscribers, publishers: 1, payload_bytes }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// Messages on their way at most, on the average of the subscribers.
    Window(u64),
    /// Deliveries per second, by the clock.
    Rate(f64),
}

pub(crate) struct Measured {
    pub(crate) deliveries_per_s: f64,
    pub(crate) deliveries: u64,
    pub(crate) seconds: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
    pub(crate) latency: Histogram,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) disordered: u64,
    pub(crate) foreign: u64,
}

pub(crate) struct Fanout {
    target: Target,
    shape: Shape,
    lines: Lines,
    /// The first connections are the subscribers', in the order of their rooms.
    readers: Vec<Order>,
    /// The next number in each room.
    next: Vec<u32>,
    unanswered: Vec<usize>,
    /// The subscribers that do not read, which come behind the publishers: what they must have had when they do.
    stalled: Vec<Order>,
    turn: usize,
    published: u64,
    delivered: u64,
    clock: Instant,
}

impl Fanout {
    pub(crate) fn open(target: Target, shape: Shape) -> Result<Self, String> {
        let mut lines = Lines::new()?;
        for room in 0..shape.rooms {
            for _ in 0..shape.subscribers_per_room {
                let number = lines.open(&target)?;
                lines.join(number, room, Start::New)?;
            }
        }
        for _ in 0..shape.publishers {
            lines.open(&target)?;
        }
        let readers = (0..shape.rooms * shape.subscribers_per_room).map(|_| Order::default()).collect();
        Ok(Self {
            target,
            shape,
            lines,
            readers,
            next: vec![0; shape.rooms as usize],
            unanswered: vec![0; shape.publishers as usize],
            stalled: Vec::new(),
            turn: 0,
            published: 0,
            delivered: 0,
            clock: Instant::now(),
        })
    }

    /// Adds a subscriber of the first room that does not read.
    pub(crate) fn stall(&mut self) -> Result<(), String> {
        let number = self.lines.open(&self.target)?;
        self.lines.join(number, 0, Start::New)?;
        self.stalled.push(Order::starting(self.next[0]));
        self.lines.forget(number)
    }

    /// Lets the subscribers that do not read go.
    pub(crate) fn unstall(&mut self) {
        let stalled = self.stalled.len();
        self.stalled.clear();
        self.lines.lines.truncate(self.lines.lines.len() - stalled);
    }

    /// The subscribers that did not read do so now, until they have had everything since they joined. Nobody publishes
    /// meanwhile. What they had, lost, and had doubled, out of order or from elsewhere; and the seconds.
    pub(crate) fn revive(&mut self) -> Result<(u64, u64, u64, f64), String> {
        let first = self.lines.lines.len() - self.stalled.len();
        for number in first..self.lines.lines.len() {
            self.lines.remember(number)?;
        }
        let (published, begun, mut had, mut last) = (self.next[0], Instant::now(), 0, Instant::now());
        while last.elapsed() < SILENCE_REVIVED && self.stalled.iter().any(|order| order.lost(published) > 0) {
            self.lines.wait(Duration::from_millis(20))?;
            let ready = std::mem::take(&mut self.lines.ready);
            for &(number, ..) in &ready {
                let order = number.checked_sub(first).map(|index| &mut self.stalled[index]);
                let before = had;
                match order {
                    Some(order) => self.lines.read(number, &mut |event: Event<'_>| {
                        if let Event::Delivered(bytes) = event {
                            had += 1;
                            order.take(payload::seq(bytes));
                        }
                    })?,
                    None => self.lines.read(number, &mut |_: Event<'_>| {})?,
                }
                self.lines.flush(number)?;
                if had > before {
                    last = Instant::now();
                }
            }
            self.lines.ready = ready;
        }
        let lost = self.stalled.iter().map(|order| order.lost(published)).sum();
        let odd = self.stalled.iter().map(|order| order.duplicated + order.disordered + order.foreign).sum();
        Ok((had, lost, odd, begun.elapsed().as_secs_f64()))
    }

    /// Publishes and measures; at the end everything on its way is waited for.
    pub(crate) fn run(&mut self, mode: Mode, times: Times) -> Result<Measured, String> {
        let fan = u64::from(self.shape.subscribers_per_room);
        let mut payload = Payload::new(self.shape.payload_bytes);
        let mut latency = Histogram::new();
        let before = self.counts();
        let start = Instant::now();
        let mut span = None;
        let (mut from, mut to) = (0, 0);
        let mut spent = None;
        let mut last_delivery = Instant::now();
        let (mut sent, run_start_ns) = (0_u64, self.now_ns());
        let interval_ns = match mode {
            Mode::Rate(rate) => 1e9 * fan as f64 / rate,
            Mode::Window(_) => 0.0,
        };
        loop {
            if span.is_none() && start.elapsed() >= times.warm_up {
                (span, from) = (Some(Span::begin(self.target.pid)?), self.delivered);
            }
            let publishing = span.as_ref().is_none_or(|span: &Span| span.start.elapsed() < times.measured);
            let measuring = publishing && span.is_some();
            if let Some(span) = span.as_ref().filter(|_| !publishing && spent.is_none()) {
                (to, spent) = (self.delivered, Some(span.end()?));
            }
            if !publishing {
                let done = self.delivered >= self.published * fan;
                if done || last_delivery.elapsed() > SILENCE {
                    break;
                }
            }

            let timeout = match mode {
                Mode::Rate(_) if publishing => {
                    let due = run_start_ns + (sent as f64 * interval_ns) as u64;
                    Duration::from_nanos(due.saturating_sub(self.now_ns()).min(20_000_000))
                }
                _ => Duration::from_millis(20),
            };
            let timed = matches!(mode, Mode::Rate(_));
            self.publish_due(mode, publishing, &mut payload, &mut sent, run_start_ns, interval_ns)?;
            self.lines.wait(if publishing { timeout } else { Duration::from_millis(20) })?;
            let ready = std::mem::take(&mut self.lines.ready);
            for (number, readable, writable) in &ready {
                if *writable {
                    self.lines.flush(*number)?;
                }
                if *readable {
                    let now_ns = self.now_ns();
                    let reader = *number;
                    let had = self.delivered;
                    if let Some(order) = self.readers.get_mut(reader) {
                        let delivered = &mut self.delivered;
                        let latency = &mut latency;
                        self.lines.read(reader, &mut |event: Event<'_>| {
                            if let Event::Delivered(bytes) = event {
                                *delivered += 1;
                                let seq = payload::seq(bytes);
                                order.take(seq);
                                if timed && measuring && seq.is_some() {
                                    latency.add(now_ns.saturating_sub(payload::due_ns(bytes)));
                                }
                            }
                        })?;
                    } else {
                        let unanswered = &mut self.unanswered[reader - self.readers.len()];
                        self.lines.read(reader, &mut |event: Event<'_>| {
                            if let Event::Answered(count) = event {
                                *unanswered = unanswered.saturating_sub(count as usize);
                            }
                        })?;
                    }
                    self.lines.flush(reader)?;
                    if self.delivered > had {
                        last_delivery = Instant::now();
                    }
                    // Reading a thousand sockets takes milliseconds; what falls due meanwhile must not wait for that.
                    self.publish_due(mode, publishing, &mut payload, &mut sent, run_start_ns, interval_ns)?;
                }
            }
            self.lines.ready = ready;
        }
        let spent = spent.ok_or("nothing was measured")?;
        let after = self.counts();
        let lost = after.0 - before.0;
        // What is lost is not waited for again by the next part.
        self.delivered = self.published * fan;
        Ok(Measured {
            deliveries_per_s: (to - from) as f64 / spent.seconds,
            deliveries: to - from,
            seconds: spent.seconds,
            server_cpu_s: spent.server_cpu_s,
            client_cpu_s: spent.client_cpu_s,
            latency,
            lost,
            duplicated: after.1 - before.1,
            disordered: after.2 - before.2,
            foreign: after.3 - before.3,
        })
    }

    fn publish_due(
        &mut self,
        mode: Mode,
        publishing: bool,
        payload: &mut Payload,
        sent: &mut u64,
        run_start_ns: u64,
        interval_ns: f64,
    ) -> Result<(), String> {
        if !publishing {
            return Ok(());
        }
        let fan = u64::from(self.shape.subscribers_per_room);
        match mode {
            Mode::Window(window) => {
                let in_flight = self.published - self.delivered / fan;
                // Whole batches, or all of a small window that is free.
                // With many rooms: one message to each room of a publisher.
                let of_publisher = (self.shape.rooms / self.shape.publishers) as usize;
                let most = if of_publisher > 1 { of_publisher } else { BATCH };
                let batch = most.min((window / 2).max(1) as usize);
                let mut free = window.saturating_sub(in_flight) as usize;
                for _ in 0..self.shape.publishers {
                    if free < batch || !self.publish(batch, payload, None)? {
                        break;
                    }
                    free -= batch;
                }
                Ok(())
            }
            Mode::Rate(_) => {
                // Who falls behind the clock still has to read: else a rate that is beyond this thread would never end.
                for _ in 0..BATCH {
                    let due = run_start_ns + (*sent as f64 * interval_ns) as u64;
                    if due > self.now_ns() || !self.publish(1, payload, Some(due))? {
                        break;
                    }
                    *sent += 1;
                }
                Ok(())
            }
        }
    }

    /// The next publisher writes so many messages, over its rooms in turn. False when it may not.
    fn publish(&mut self, count: usize, payload: &mut Payload, due_ns: Option<u64>) -> Result<bool, String> {
        let publishers = self.shape.publishers as usize;
        let publisher = self.turn % publishers;
        let number = self.readers.len() + publisher;
        let line = &mut self.lines.lines[number];
        if self.unanswered[publisher] + count > line.driver.unanswered_max() || !line.out.is_empty() {
            return Ok(false);
        }
        // Written singly, a publisher goes round its rooms; written in batches, each batch goes round.
        let due_ns_given = due_ns.is_some();
        let due_ns = due_ns.unwrap_or_else(|| self.clock.elapsed().as_nanos() as u64);
        let rooms = self.shape.rooms as usize;
        let mine = (rooms / publishers).max(1);
        for index in 0..count {
            let step = if due_ns_given { self.turn / publishers } else { index };
            let room = (publisher + step % mine * publishers) % rooms;
            let seq = self.next[room];
            self.next[room] += 1;
            line.driver.publish(room as u32, payload.write(seq, due_ns), &mut line.out);
        }
        line.driver.seal(&mut line.out);
        if line.driver.unanswered_max() < usize::MAX {
            self.unanswered[publisher] += count;
        }
        self.turn += 1;
        self.published += count as u64;
        self.lines.flush(number)?;
        Ok(true)
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    /// Lost, duplicated, disordered, foreign, so far.
    fn counts(&self) -> (u64, u64, u64, u64) {
        let fan = self.shape.subscribers_per_room as usize;
        self.readers.iter().enumerate().fold((0, 0, 0, 0), |sum, (index, order)| {
            let lost = order.lost(self.next[index / fan]);
            (sum.0 + lost, sum.1 + order.duplicated, sum.2 + order.disordered, sum.3 + order.foreign)
        })
    }
}
