//! The outgoing queue: keeps order and identity of publishes until they are acknowledged.
//!
//! Per room, publishes are sent in order and get their `seq` when they are first sent. After a lost connection
//! they are sent again unchanged, and the broker answers those that it has with their first offsets. So nothing
//! is lost and nothing doubled.
//!
//! A publish that is refused for good leaves its `seq` unused, and whatever was sent behind it is refused too:
//! the broker takes a publisher's numbers only in order. Those records go on under a fresh publisher, for which
//! the old numbers can never be stored behind our back. A publisher that the application has chosen is never
//! exchanged; there the records behind are refused as well.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::client::state::{Pending, Published};
use crate::client::{Error, Options};
use crate::protocol::{self, ClientFrame, Fault, Publish, RecordArea, RequestId, WelcomeLimits, frame_into};
use crate::types::{Code, Offset, PublisherId, RoomName};

/// Publishes of one room that are sent before another room has its turn.
const TURN: usize = 64;
/// Rooms whose numbering is remembered; beyond it those with nothing to send are forgotten.
const ROOMS_MAX: usize = 16_384;
/// How often a publish may go on under a fresh publisher.
const RENEWALS_MAX: u8 = 3;
const RETRY_LEAST: Duration = Duration::from_millis(50);

pub(crate) type Answer = oneshot::Sender<Result<Published, Error>>;

/// One publish on its way.
pub(crate) struct Unit {
    /// Encoded records.
    pub(crate) area: Vec<u8>,
    pub(crate) count: u32,
    pub(crate) expect: Option<Offset>,
    pub(crate) answer: Answer,
    /// Its share of the queue's bounds, given back with it.
    pub(crate) permits: [OwnedSemaphorePermit; 2],
}

struct Queued {
    unit: Option<Unit>,
    /// Its first record's number, once it has been sent under the queue's publisher.
    seq: Option<u64>,
    /// The request that waits for an answer on this connection.
    request: Option<RequestId>,
    /// Sent on a connection that was lost before the answer.
    in_doubt: bool,
    renewals: u8,
}

struct Queue {
    publisher: PublisherId,
    next_seq: u64,
    /// The serial of the first in `units`; serials are our own names for them.
    front: u64,
    units: VecDeque<Queued>,
    /// How many at the front have been sent on this connection.
    sent: usize,
    in_flight: usize,
    /// Something was refused for now: wait for all answers, then send again from the front.
    rewinding: bool,
    /// A chosen publisher's number that was refused for good: what follows takes it, once nothing is in flight.
    unused_seq: Option<u64>,
    hold: Option<Instant>,
    /// Whether it stands in `Outgoing::ready`.
    ready: bool,
}

/// What an answer belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) room: RoomName,
    pub(crate) serial: u64,
    pub(crate) bytes: usize,
}

pub(crate) struct Outgoing {
    publisher: PublisherId,
    /// Chosen by the application: never exchanged.
    chosen: bool,
    first_seq: u64,
    rooms: HashMap<RoomName, Queue>,
    ready: VecDeque<RoomName>,
    /// Rooms that wait until a moment.
    held: Vec<(Instant, RoomName)>,
    /// Rooms have been forgotten: a publisher of before is no good for a room that seems new.
    forgot: bool,
    pub(crate) pending: Pending,
    pub(crate) acknowledged: u64,
}

impl Outgoing {
    pub(crate) fn new(options: &Options) -> std::io::Result<Self> {
        let publisher = match options.publisher {
            Some(publisher) => publisher,
            None => PublisherId::random()?,
        };
        Ok(Self {
            publisher,
            chosen: options.publisher.is_some(),
            first_seq: options.first_seq.max(1),
            rooms: HashMap::new(),
            ready: VecDeque::new(),
            held: Vec::new(),
            forgot: false,
            pending: Pending::default(),
            acknowledged: 0,
        })
    }

    pub(crate) fn push(&mut self, room: &RoomName, unit: Unit) {
        if self.rooms.len() >= ROOMS_MAX && !self.chosen && !self.rooms.contains_key(room) {
            self.rooms.retain(|_, queue| !queue.units.is_empty());
            self.forgot = true;
        }
        self.pending.publishes += 1;
        self.pending.records += unit.count as usize;
        self.pending.bytes += unit.area.len();
        let queue = self.rooms.entry(room.clone()).or_insert_with(|| Queue {
            publisher: if self.forgot { fresh(self.publisher) } else { self.publisher },
            next_seq: self.first_seq,
            front: 0,
            units: VecDeque::new(),
            sent: 0,
            in_flight: 0,
            rewinding: false,
            unused_seq: None,
            hold: None,
            ready: false,
        });
        queue.units.push_back(Queued { unit: Some(unit), seq: None, request: None, in_doubt: false, renewals: 0 });
        if queue.hold.is_none() && !queue.rewinding {
            mark_ready(&mut self.ready, queue, room);
        }
    }

    /// Appends the next publish that may go, framed; tells what its answer will belong to.
    pub(crate) fn next(
        &mut self,
        request: RequestId,
        limits: &WelcomeLimits,
        bytes_free: usize,
        out: &mut Vec<u8>,
    ) -> Option<Sent> {
        loop {
            let room = self.ready.front()?.clone();
            let queue = self.rooms.get_mut(&room).expect("a ready room has a queue");
            let Some(index) = queue.next_to_send() else {
                queue.ready = false;
                self.ready.pop_front();
                continue;
            };
            let queued = &mut queue.units[index];
            let unit = queued.unit.as_ref().expect("what is to be sent is not done");
            if let Some(error) = beyond(limits, unit, &room) {
                let done = queue.refuse(index, error, self.chosen, false);
                subtract(&mut self.pending, done);
                continue;
            }
            // One that is larger than the broker wants in flight goes alone.
            if unit.area.len() > bytes_free && bytes_free < limits.bytes_in_flight as usize {
                return None;
            }
            let seq = *queued.seq.get_or_insert_with(|| {
                let seq = queue.next_seq;
                queue.next_seq += u64::from(unit.count);
                seq
            });
            queued.request = Some(request);
            let frame = ClientFrame::Publish(Publish {
                request,
                room: room.as_str(),
                publisher: queue.publisher,
                seq,
                expect: unit.expect,
                count: unit.count,
                records: RecordArea(&unit.area),
            });
            frame_into(out, |out| frame.encode_into(out));
            let sent = Sent { room: room.clone(), serial: queue.front + index as u64, bytes: unit.area.len() };
            queue.sent = index + 1;
            queue.in_flight += 1;
            if queue.sent.is_multiple_of(TURN) {
                // The others have their turn.
                self.ready.rotate_left(1);
            }
            return Some(sent);
        }
    }

    /// Room for more: looks at what was held back. Returns when to look again.
    pub(crate) fn release(&mut self, now: Instant) -> Option<Instant> {
        let mut index = 0;
        while index < self.held.len() {
            if self.held[index].0 > now {
                index += 1;
                continue;
            }
            let (_, room) = self.held.swap_remove(index);
            if let Some(queue) = self.rooms.get_mut(&room) {
                queue.hold = None;
                if !queue.rewinding {
                    mark_ready(&mut self.ready, queue, &room);
                }
            }
        }
        self.held.iter().map(|(until, _)| *until).min()
    }

    pub(crate) fn published(&mut self, request: RequestId, sent: &Sent, answer: &protocol::Published) {
        let Some((queue, index)) = self.locate(request, sent) else { return };
        queue.answered(index);
        let publisher = queue.publisher;
        let queued = &mut queue.units[index];
        let seq = queued.seq.expect("what was sent has a seq");
        let published = Published {
            first: answer.first,
            last: answer.last,
            time: answer.time,
            duplicate: answer.duplicate,
            publisher,
            seq,
        };
        let done = finish(queued, Ok(published));
        queue.trim();
        self.acknowledged += 1;
        subtract(&mut self.pending, done);
        self.settle(&sent.room);
    }

    pub(crate) fn refused(&mut self, request: RequestId, sent: &Sent, fault: &Fault<'_>, now: Instant) {
        let chosen = self.chosen;
        let Some((queue, index)) = self.locate(request, sent) else { return };
        queue.answered(index);
        let code = Code::from_number(fault.code);
        let identity = matches!(code, Some(Code::OutOfOrder | Code::PublisherForgotten | Code::TooOld));
        let mut done = Pending::default();
        let queued = &mut queue.units[index];
        if identity && queue.rewinding {
            // Behind one that was refused for now: it goes again with that one.
        } else if fault.retry {
            queue.rewinding = true;
            let until = now + Duration::from_millis(fault.retry_after_ms.into()).max(RETRY_LEAST);
            queue.hold = Some(until);
            self.held.push((until, sent.room.clone()));
        } else if identity && queued.in_doubt {
            let error = Error::InDoubt { code: fault.code, message: fault.message.to_owned() };
            done = finish(queued, Err(error));
            queue.trim();
        } else if identity
            && !chosen
            && queued.renewals < RENEWALS_MAX
            && (queued.seq != Some(1) || queued.renewals > 0)
        {
            queue.renew(index);
        } else {
            // Something is stored under these numbers: they are not free for what follows.
            let taken = matches!(code, Some(Code::TooOld | Code::PublisherConflict));
            done = queue.refuse(index, Error::refused(fault), chosen, taken);
        }
        subtract(&mut self.pending, done);
        self.settle(&sent.room);
    }

    /// The connection is gone: what was under way is in doubt, and goes again.
    pub(crate) fn disconnected(&mut self) {
        self.ready.clear();
        let mut rooms = Vec::new();
        for (room, queue) in &mut self.rooms {
            for queued in queue.units.iter_mut().take(queue.sent) {
                queued.in_doubt |= queued.request.take().is_some();
            }
            (queue.sent, queue.in_flight, queue.rewinding, queue.ready) = (0, 0, false, false);
            if !queue.units.is_empty() {
                rooms.push(room.clone());
            }
        }
        // Not in the order of a hash, which is another one in each run.
        rooms.sort_unstable();
        for room in rooms {
            let queue = self.rooms.get_mut(&room).expect("just seen");
            if queue.hold.is_none() {
                mark_ready(&mut self.ready, queue, &room);
            }
        }
    }

    /// Ends everything with an error.
    pub(crate) fn close(&mut self, error: &Error) {
        let mut rooms: Vec<_> = self.rooms.iter_mut().collect();
        rooms.sort_unstable_by_key(|(room, _)| *room);
        for (_, queue) in rooms {
            for queued in &mut queue.units {
                finish(queued, Err(error.clone()));
            }
        }
        self.rooms.clear();
        self.ready.clear();
        self.held.clear();
        self.pending = Pending::default();
    }

    fn locate(&mut self, request: RequestId, sent: &Sent) -> Option<(&mut Queue, usize)> {
        let queue = self.rooms.get_mut(&sent.room)?;
        let index = usize::try_from(sent.serial.checked_sub(queue.front)?).ok()?;
        let queued = queue.units.get(index)?;
        // An answer to what has gone on under another publisher is of no interest.
        (queued.request == Some(request)).then_some((queue, index))
    }

    /// After an answer: whatever waited for it may go on.
    fn settle(&mut self, room: &RoomName) {
        let Some(queue) = self.rooms.get_mut(room) else { return };
        if queue.rewinding && queue.in_flight == 0 {
            queue.rewinding = false;
            queue.sent = 0;
        }
        if !queue.rewinding && queue.hold.is_none() && queue.sent < queue.units.len() {
            mark_ready(&mut self.ready, queue, room);
        }
    }
}

impl Queue {
    /// The next that may be sent now.
    fn next_to_send(&mut self) -> Option<usize> {
        if self.rewinding || self.hold.is_some() {
            return None;
        }
        while self.units.get(self.sent).is_some_and(|queued| queued.unit.is_none()) {
            self.sent += 1;
        }
        let queued = self.units.get(self.sent)?;
        if let (Some(unused), None) = (self.unused_seq, queued.seq) {
            if self.in_flight > 0 {
                return None;
            }
            self.unused_seq = None;
            self.next_seq = unused;
        }
        Some(self.sent)
    }

    fn answered(&mut self, index: usize) {
        self.units[index].request = None;
        self.in_flight -= 1;
    }

    /// Fails one for good; what was sent behind it goes on under a fresh publisher.
    fn refuse(&mut self, index: usize, error: Error, chosen: bool, taken: bool) -> Pending {
        let seq = self.units[index].seq;
        let done = finish(&mut self.units[index], Err(error));
        if let Some(seq) = seq.filter(|_| !taken) {
            if chosen {
                self.unused_seq = Some(self.unused_seq.map_or(seq, |unused| unused.min(seq)));
            } else if self.units.iter().skip(index + 1).any(|queued| queued.seq.is_some()) {
                // None of them can have been stored, not even in a session before: their turn never came.
                self.renew(index + 1);
            } else {
                self.next_seq = seq;
            }
        }
        self.trim();
        done
    }

    /// Gives all from `index` on a fresh publisher, and sends them again.
    fn renew(&mut self, index: usize) {
        self.publisher = fresh(self.publisher);
        self.next_seq = 1;
        for queued in self.units.iter_mut().skip(index) {
            if queued.request.take().is_some() {
                self.in_flight -= 1;
            }
            queued.seq = None;
            queued.in_doubt = false;
            queued.renewals = queued.renewals.saturating_add(1);
        }
        self.sent = self.sent.min(index);
    }

    fn trim(&mut self) {
        while self.units.front().is_some_and(|queued| queued.unit.is_none()) {
            self.units.pop_front();
            self.front += 1;
            self.sent = self.sent.saturating_sub(1);
        }
    }
}

/// Answers the application and gives the queue's bounds back what it took.
fn finish(queued: &mut Queued, result: Result<Published, Error>) -> Pending {
    let Some(unit) = queued.unit.take() else { return Pending::default() };
    let Unit { area, count, answer, permits, .. } = unit;
    drop(permits);
    // The application may not care any more.
    let _ = answer.send(result);
    Pending { publishes: 1, records: count as usize, bytes: area.len() }
}

fn subtract(pending: &mut Pending, done: Pending) {
    pending.publishes -= done.publishes;
    pending.records -= done.records;
    pending.bytes -= done.bytes;
}

fn mark_ready(ready: &mut VecDeque<RoomName>, queue: &mut Queue, room: &RoomName) {
    if !queue.ready {
        queue.ready = true;
        ready.push_back(room.clone());
    }
}

/// Another publisher. Without randomness the old one with its bits turned is as good as any: it was random.
fn fresh(old: PublisherId) -> PublisherId {
    PublisherId::random().unwrap_or_else(|_| PublisherId(old.0.map(|byte| byte.rotate_left(3) ^ 0x5a)))
}

/// What the broker would not take, and would end the session for.
fn beyond(limits: &WelcomeLimits, unit: &Unit, room: &RoomName) -> Option<Error> {
    let frame = unit.area.len() + room.as_str().len() + 64;
    for (what, found, allowed) in [
        ("records in a publish", unit.count as usize, limits.publish_records),
        ("bytes of records in a publish", unit.area.len(), limits.publish_bytes.max(limits.payload_bytes)),
        ("bytes in a publish", frame, limits.frame_bytes),
    ] {
        if found > allowed as usize {
            return Some(Error::TooLarge { what, found, allowed: allowed as usize });
        }
    }
    None
}
