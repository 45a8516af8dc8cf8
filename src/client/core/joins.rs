//! Subscriptions: where each one stands in its room, what waits for the application, and what credit the broker has.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};

use crate::client::link::RoomStream;
use crate::client::state::{Batch, Event, Joined};
use crate::client::{Error, JoinOptions, OnVoid};
use crate::protocol::{self, Cut, Delivery, Gap, Join, JoinId, Mark, RequestId, Resume, StartAt, Void, Want};
use crate::types::{Limits, Offset, Position, RoomName, Start};

/// Events that may wait beside the bytes that credit bounds; a broker that sends more marks than this is broken.
const EVENTS_MAX: usize = 65_536;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Not known to the broker on this connection.
    Idle,
    /// A join is under way.
    Asked,
    Joined,
    /// Nothing more will come.
    Over,
}

/// One subscription.
pub(crate) struct Sub {
    room: RoomName,
    start: Start,
    on_void: OnVoid,
    bytes_max: u64,
    phase: Phase,
    /// The last record received, or where the broker said it begins.
    position: Option<Position>,
    /// The next delivery's `prev` lies from here to `position`; they differ at a start and behind a gap, where the
    /// offset need not be one of a record.
    prev_least: Offset,
    /// Bytes that the broker may still send.
    outstanding: i64,
    /// Bytes that wait for the application.
    queued: u64,
    events: VecDeque<Event>,
    notify: Arc<Notify>,
    first_answer: Option<oneshot::Sender<Result<Joined, Error>>>,
    /// Where the chain broke the last time.
    broken_at: Option<Offset>,
    /// Frames of the room's own stream that came before the answer to the join.
    early: VecDeque<Vec<u8>>,
    early_bytes: u64,
}

/// What is to be done after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    Nothing,
    /// Join again, at the start that is set now.
    Join,
    /// Tell the broker that we leave.
    Leave,
}

#[derive(Default)]
pub(crate) struct Joins {
    subs: HashMap<JoinId, Sub>,
    next: u32,
}

impl Joins {
    pub(crate) fn add(
        &mut self,
        room: RoomName,
        start: Start,
        options: JoinOptions,
        bytes_max: u64,
        first_answer: oneshot::Sender<Result<Joined, Error>>,
    ) -> (JoinId, Arc<Notify>) {
        // Ids are not used again: what is under way for one that has left can be told by its id.
        self.next += 1;
        let join = JoinId(self.next);
        let notify = Arc::new(Notify::new());
        let sub = Sub {
            room,
            start,
            on_void: options.on_void,
            bytes_max: options.bytes_max.unwrap_or(bytes_max).max(1),
            phase: Phase::Idle,
            position: None,
            prev_least: Offset::ZERO,
            outstanding: 0,
            queued: 0,
            events: VecDeque::new(),
            notify: Arc::clone(&notify),
            first_answer: Some(first_answer),
            broken_at: None,
            early: VecDeque::new(),
            early_bytes: 0,
        };
        self.subs.insert(join, sub);
        (join, notify)
    }

    pub(crate) fn sub(&mut self, join: JoinId) -> Option<&mut Sub> {
        self.subs.get_mut(&join)
    }

    /// Forgets a subscription; tells whether the broker must be told.
    pub(crate) fn remove(&mut self, join: JoinId) -> bool {
        self.subs.remove(&join).is_some_and(|sub| matches!(sub.phase, Phase::Asked | Phase::Joined))
    }

    /// The subscriptions that can be resumed in a hello, as many as fit.
    pub(crate) fn resumable(&mut self, rooms_max: usize, bytes_max: usize) -> Vec<JoinId> {
        let mut bytes = 0;
        let mut joins: Vec<_> =
            self.subs.iter().filter(|(_, sub)| sub.phase == Phase::Idle && sub.position.is_some()).collect();
        joins.sort_by_key(|(join, _)| **join);
        let fits = |(_, sub): &(&JoinId, &Sub)| {
            bytes += sub.room.as_str().len() + 48;
            bytes <= bytes_max
        };
        joins.into_iter().take(rooms_max).take_while(fits).map(|(join, _)| *join).collect()
    }

    /// The resume list of a hello; each of `joins` counts as asked for.
    pub(crate) fn resume(&mut self, joins: &[JoinId]) -> Vec<Resume<'_>> {
        for join in joins {
            self.subs.get_mut(join).expect("a resumable subscription").ask();
        }
        let entry = |join: &JoinId| {
            let sub = &self.subs[join];
            let position = sub.position.expect("a resumable subscription has a position");
            let credit_bytes = Some(sub.outstanding.unsigned_abs());
            Resume { join: *join, room: sub.room.as_str(), position, credit_bytes, want: Want::RECORDS }
        };
        joins.iter().map(entry).collect()
    }

    /// All that the broker does not know of.
    pub(crate) fn idle(&self) -> Vec<JoinId> {
        let mut joins: Vec<_> =
            self.subs.iter().filter(|(_, sub)| sub.phase == Phase::Idle).map(|(join, _)| *join).collect();
        joins.sort();
        joins
    }

    pub(crate) fn disconnected(&mut self) {
        for sub in self.subs.values_mut().filter(|sub| sub.phase != Phase::Over) {
            sub.phase = Phase::Idle;
            sub.outstanding = 0;
            sub.early.clear();
            sub.early_bytes = 0;
        }
    }

    pub(crate) fn close(&mut self, error: &Error) {
        let mut subs: Vec<_> = self.subs.iter_mut().collect();
        subs.sort_unstable_by_key(|(join, _)| **join);
        for (_, sub) in subs {
            sub.end(error.clone());
        }
    }
}

impl Sub {
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// The frame to join with.
    pub(crate) fn join(&mut self, request: RequestId, join: JoinId) -> Join<'_> {
        self.ask();
        let start = match self.position {
            Some(position) => StartAt::After(position),
            None => self.start.into(),
        };
        let credit_bytes = Some(self.outstanding.unsigned_abs());
        Join { request, join, room: self.room.as_str(), start, credit_bytes, want: Want::RECORDS }
    }

    fn ask(&mut self) {
        self.phase = Phase::Asked;
        self.outstanding = signed(self.bytes_max.saturating_sub(self.queued));
    }

    /// The broker has joined us.
    pub(crate) fn joined(&mut self, joined: &protocol::Joined) -> Result<(), Error> {
        if self.phase != Phase::Asked {
            return Err(Error::protocol("an answer to a join that was not asked for"));
        }
        self.phase = Phase::Joined;
        match self.position {
            Some(position) if position.epoch != joined.epoch => {
                return Err(Error::protocol("a room that goes on in another epoch"));
            }
            Some(_) => {}
            None => {
                self.position = Some(Position { epoch: joined.epoch, offset: joined.start });
                self.prev_least = Offset::ZERO;
            }
        }
        if let Some(answer) = self.first_answer.take() {
            let protocol::Joined { epoch, first, head, start, .. } = *joined;
            let _ = answer.send(Ok(Joined { epoch, first, head, start }));
        }
        Ok(())
    }

    /// The broker says that our position means nothing.
    pub(crate) fn void(&mut self, void: &Void) -> Then {
        self.phase = Phase::Idle;
        let why = Error::Void { code: void.code, epoch: void.epoch, first: void.first, head: void.head };
        if self.on_void == OnVoid::Restart {
            (self.position, self.prev_least, self.broken_at) = (None, Offset::ZERO, None);
            self.start = Start::Earliest;
            if self.first_answer.is_none() {
                self.push(Event::Void { why, restarts: true });
            }
            return Then::Join;
        }
        if self.first_answer.is_none() {
            self.push(Event::Void { why: why.clone(), restarts: false });
        }
        self.end(why);
        Then::Nothing
    }

    /// The broker refused to join us; true if it is worth another attempt.
    pub(crate) fn refused(&mut self, error: Error, retry: bool) -> bool {
        self.phase = Phase::Idle;
        if !retry {
            self.end(error);
        }
        retry
    }

    pub(crate) fn left(&mut self, cut: &Cut<'_>) {
        let retry = cut.code >= 200;
        let (message, retry_after) = (cut.message.to_owned(), std::time::Duration::ZERO);
        self.end(Error::Refused { code: cut.code, message, retry, retry_after });
    }

    /// Nothing more will come.
    pub(crate) fn end(&mut self, why: Error) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        match self.first_answer.take() {
            Some(answer) => {
                let _ = answer.send(Err(why));
            }
            None => self.push(Event::Left { why }),
        }
    }

    /// Keeps a frame of the room's own stream until the answer to the join is there.
    pub(crate) fn keep_early(&mut self, stream: &RoomStream, frame: &[u8]) -> Result<bool, Error> {
        if stream.room != self.room.as_str() {
            return Err(Error::protocol("a stream of another room than its join"));
        }
        if self.phase == Phase::Asked {
            self.early_bytes += frame.len() as u64;
            if self.early_bytes > self.bytes_max + 2 * Limits::CEILINGS.frame_bytes as u64 {
                return Err(Error::protocol("more deliveries than there was credit for"));
            }
            self.early.push_back(frame.to_vec());
            return Ok(true);
        }
        if self.position.is_some_and(|position| position.epoch != stream.epoch) {
            return Err(Error::protocol("a stream of another epoch than its join"));
        }
        Ok(false)
    }

    pub(crate) fn take_early(&mut self) -> VecDeque<Vec<u8>> {
        self.early_bytes = 0;
        std::mem::take(&mut self.early)
    }

    pub(crate) fn deliver(&mut self, delivery: &Delivery<'_>) -> Result<Then, Error> {
        let Some(position) = self.receiving()? else { return Ok(Then::Nothing) };
        let header = &delivery.header;
        let batch = Batch::take(&self.room, position.epoch, (header.from, header.to, header.prev), delivery.body)?;
        if header.prev < self.prev_least || header.prev > position.offset || header.from <= position.offset {
            let error =
                Error::ChainBroken { room: self.room.to_string(), position: position.offset, prev: header.prev };
            // Asking again at the same place has not helped: that is for the application to know.
            if self.broken_at.replace(position.offset) == Some(position.offset) {
                self.end(error);
                return Ok(Then::Leave);
            }
            return Err(error);
        }
        let bytes = delivery.body.len() as u64;
        // Below zero when the last one overdrew it, as it may: the broker counts so, too, and grants have to make up
        // for that.
        self.outstanding = self.outstanding.saturating_sub(signed(bytes));
        self.queued += bytes;
        if self.queued > self.bytes_max + Limits::CEILINGS.frame_bytes as u64 {
            return Err(Error::protocol("more deliveries than there was credit for"));
        }
        self.position = Some(Position { offset: header.to, ..position });
        self.prev_least = header.to;
        self.push(Event::Batch(batch));
        self.bounded()
    }

    pub(crate) fn gap(&mut self, gap: &Gap) -> Result<Then, Error> {
        let Some(position) = self.receiving()? else { return Ok(Then::Nothing) };
        if gap.from > position.offset || gap.to < gap.from {
            return Err(Error::ChainBroken { room: self.room.to_string(), position: position.offset, prev: gap.from });
        }
        // What lay within the gap has no known offsets: any of them may be the next one's `prev`.
        self.position = Some(Position { offset: gap.to.max(position.offset), ..position });
        self.push(Event::Gap { from: gap.from, to: gap.to, reason: gap.reason });
        self.bounded()
    }

    pub(crate) fn mark(&mut self, mark: &Mark, event: fn(Offset) -> Event) -> Result<Then, Error> {
        if self.receiving()?.is_some() {
            self.push(event(mark.offset));
        }
        self.bounded()
    }

    fn receiving(&self) -> Result<Option<Position>, Error> {
        match self.phase {
            Phase::Joined => Ok(self.position),
            Phase::Over => Ok(None),
            Phase::Idle | Phase::Asked => Err(Error::protocol("a delivery before the answer to its join")),
        }
    }

    fn bounded(&self) -> Result<Then, Error> {
        if self.events.len() > EVENTS_MAX { Err(Error::protocol("marks without end")) } else { Ok(Then::Nothing) }
    }

    fn push(&mut self, event: Event) {
        self.events.push_back(event);
        self.notify.notify_one();
    }

    /// Takes what comes next; the second is whether credit should be granted now.
    pub(crate) fn take(&mut self) -> Option<(Event, bool)> {
        let event = self.events.pop_front()?;
        if let Event::Batch(batch) = &event {
            self.queued -= batch.body.len() as u64;
        }
        let grant = self.phase == Phase::Joined && self.due() >= self.bytes_max.div_ceil(4);
        Some((event, grant))
    }

    /// Whether nothing waits and nothing will come.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over && self.events.is_empty()
    }

    fn due(&self) -> u64 {
        u64::try_from(signed(self.bytes_max) - self.outstanding - signed(self.queued)).unwrap_or(0)
    }

    /// How much to grant; counted as granted.
    pub(crate) fn grant(&mut self) -> Option<u64> {
        let due = self.due();
        if self.phase != Phase::Joined || due == 0 {
            return None;
        }
        self.outstanding += signed(due);
        Some(due)
    }

    /// Where it stands: the last record received.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
