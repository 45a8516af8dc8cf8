//! Carries out on a broker what a session has decided: the same for every transport.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use super::{Action, Due, End, Life, Outbox, Session, offered, room_name};
use crate::broker::{Asker, Broker, JoinFacts, Joining, Page, PageAt, Readers, Summary};
use crate::metrics::{Operation, Sampled};
use crate::protocol::{
    Credit, Fault, Frames, JoinId, JoinResult, Joined, LastRecord, Leave, PageDelivery, Pong, RequestId, Resume,
    RoomList, RoomSummary, ServerFrame, VERSION, Void, Welcome, WelcomeLimits,
};
use crate::storage::{Refused, Reply, Room, Submission};
use crate::types::{Code, Epoch, RoomName, SessionId, Start, Time};

/// Rooms whose part in memory a session keeps at hand.
const ROOMS_AT_HAND: usize = 64;

/// While more bytes of answers wait to be written, nothing more is read from the peer.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Answers of [`Service::frame`] that need a transport: where the pushes of a room go.
pub(crate) trait Streams {
    /// Access to the readers, under which nothing of them is written to the peer.
    type Access<'a>: Deref<Target = Readers>
    where
        Self: 'a;

    /// The readers of the session.
    fn readers(&self) -> Self::Access<'_>;

    /// Makes a way for the pushes of a room that has just been joined.
    ///
    /// # Errors
    /// When the peer allows no further one.
    fn open(&self, join: JoinId, room: &RoomName) -> Result<(), Refused>;

    /// Ends that way.
    fn close(&self, join: JoinId);
}

/// One session on a broker.
pub(crate) struct Service {
    session: Session,
    broker: Broker,
    outbox: Arc<Outbox>,
    number: u64,
    /// Gone with the session: what it has asked for is given up then.
    here: Arc<()>,
    user: Arc<str>,
    submission: Submission,
    /// The rooms used last, the latest first.
    rooms: Vec<Arc<Room>>,
    /// Requests that read the store wait here, so that one answer at a time takes memory.
    reads: VecDeque<Read>,
    /// Requests that wait for other threads, and the bytes they hold: all that ever began.
    begun: u64,
    begun_bytes: u64,
    /// Publishes that the metrics do not know of yet: they are told once for what was read together.
    publishes: u64,
    sampled: Sampled,
}

/// A request that reads the store.
enum Read {
    History { request: RequestId, room: RoomName, at: PageAt, limit: u32 },
    Rooms { request: RequestId, prefix: String, after: String, limit: usize },
    Summary { request: RequestId, rooms: Vec<RoomName> },
}

impl Read {
    /// What it holds in memory, about.
    fn bytes(&self) -> usize {
        let name = |room: &RoomName| room.as_str().len() + 32;
        match self {
            Self::History { room, .. } => name(room) + 64,
            Self::Rooms { prefix, after, .. } => prefix.len() + after.len() + 64,
            Self::Summary { rooms, .. } => rooms.iter().map(name).sum::<usize>() + 64,
        }
    }
}

impl Service {
    /// A connection whose transport has finished its handshake. `reply` is told the answers to publishes, and
    /// hands them to the same outbox.
    pub(crate) fn new(
        broker: Broker,
        number: u64,
        outbox: Arc<Outbox>,
        reply: Arc<dyn Reply>,
        life: Life,
        now: Instant,
    ) -> Self {
        Self {
            session: Session::new(Arc::clone(broker.shared_limits()), life, now),
            broker,
            outbox,
            number,
            here: Arc::new(()),
            user: Arc::from(""),
            submission: Submission::new(reply),
            rooms: Vec::new(),
            reads: VecDeque::new(),
            begun: 0,
            begun_bytes: 0,
            publishes: 0,
            sampled: Sampled::new(),
        }
    }

    /// The state machine.
    pub(crate) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Carries out all frames of a message, which holds whole frames. Publishes are kept until
    /// [`Service::submit`].
    ///
    /// # Errors
    /// When the session is to end.
    pub(crate) fn message(&mut self, message: &[u8], streams: &impl Streams) -> Result<(), End> {
        let mut frames = Frames::new(message, self.session.limits().frame_bytes_max());
        let mut count = 0;
        for frame in frames.by_ref() {
            self.frame(frame?, streams)?;
            count += 1;
        }
        self.outbox.metrics().frames_received[self.outbox.transport()].increment(count);
        match frames.rest() {
            [] => Ok(()),
            rest => Err(End::BadFrame(format!("{} bytes follow the last whole frame of a message", rest.len()))),
        }
    }

    /// Carries out a frame (without its length prefix).
    ///
    /// # Errors
    /// When the session is to end.
    pub(crate) fn frame(&mut self, frame: &[u8], streams: &impl Streams) -> Result<(), End> {
        let (operation, action) = self.session.frame(frame, self.in_flight().0)?;
        if operation == Operation::Publish {
            self.publishes += 1;
        } else {
            self.outbox.metrics().requests[operation].increment(1);
        }
        match action {
            Action::Welcome { resume, client } => self.welcome(&resume, client, streams),
            Action::Join { request, join, room, start, credit } => {
                let access = streams.readers();
                match Self::enter(&access, streams, join, request, &room, start, credit) {
                    Ok(Joining::Joined(facts)) => {
                        self.outbox.push(&ServerFrame::Joined(joined(request, join, facts)));
                    }
                    Ok(Joining::Void(code, facts)) => {
                        self.outbox.push(&ServerFrame::Void(void(request, join, code, facts)));
                    }
                    Ok(Joining::Pending) => {}
                    Err(why) => self.outbox.refuse(request, &why),
                }
            }
            Action::Credit(Credit { request, join, bytes }) => {
                if let Err(why) = streams.readers().credit(join, bytes) {
                    self.outbox.refuse(request, &why);
                }
            }
            Action::Leave(Leave { request, join }) => {
                let access = streams.readers();
                match access.leave(join) {
                    Ok(()) => {
                        streams.close(join);
                        self.outbox.push(&ServerFrame::Ok(request));
                    }
                    Err(why) => self.outbox.refuse(request, &why),
                }
            }
            Action::Publish { request, room, publisher, seq, expect, area } => match self.room(room) {
                Ok(at) => {
                    if self.sampled.choose() {
                        self.outbox.time(request);
                    }
                    let (room, hashes) = (&self.rooms[at], self.session.hashes());
                    self.submission.push(room, &self.user, publisher, seq, expect, request, area.0, hashes);
                    self.begun += 1;
                    self.begun_bytes += area.0.len() as u64;
                }
                Err(why) => self.outbox.refuse(request, &why),
            },
            Action::History { request, room, at, limit } => {
                self.read_later(Read::History { request, room, at, limit });
            }
            Action::Rooms { request, prefix, after, limit } => {
                let (prefix, after) = (prefix.to_owned(), after.to_owned());
                self.read_later(Read::Rooms { request, prefix, after, limit });
            }
            Action::Summary { request, rooms } => self.read_later(Read::Summary { request, rooms }),
            Action::Pong { request } => self.outbox.push(&ServerFrame::Pong(Pong { request, time: Time::now() })),
            Action::Refuse { request, why } => self.outbox.refuse(request, &why),
        }
        Ok(())
    }

    /// Hands over the publishes of the frames so far. To be called before waiting for more.
    pub(crate) fn submit(&mut self) {
        if self.publishes > 0 {
            self.outbox.metrics().requests[Operation::Publish].increment(std::mem::take(&mut self.publishes));
        }
        if !self.submission.is_empty() {
            match &self.outbox.host().rouse {
                Some(rouse) => self.broker.submit_here(&mut self.submission, rouse),
                None => self.broker.submit(&mut self.submission),
            }
        }
    }

    /// Begins the next request that reads the store, if the answer before it has left. To be called whenever the
    /// task has been woken.
    pub(crate) fn read_on(&mut self) {
        if self.outbox.bytes() >= ANSWER_BYTES_MAX || self.reads.is_empty() || !self.outbox.begin_reading() {
            return;
        }
        let Some(read) = self.reads.pop_front() else { return };
        let (outbox, bytes) = (Arc::clone(&self.outbox), read.bytes());
        let answer = move |request, answer: Result<ServerFrame<'_>, Refused>| {
            outbox.answer(request, &answer, bytes);
            outbox.end_reading();
            outbox.kick();
        };
        let asker = Asker::new(self.number, &self.here);
        let epoch = self.broker.epoch();
        match read {
            Read::History { request, room, at, limit } => {
                let bytes_max = self.session.limits().page_bytes_max;
                let counted = Arc::clone(&self.outbox);
                self.broker.page(asker, &room, at, limit, bytes_max, move |page| match page {
                    Ok(page) => {
                        count_delivered(&counted, &page);
                        let deliveries = page.parts.iter().map(|part| PageDelivery {
                            from: part.from,
                            to: part.to,
                            prev: part.prev,
                            body: &part.body,
                        });
                        let Page { epoch, first, head, more, .. } = page;
                        let deliveries = deliveries.collect();
                        let page = crate::protocol::Page { request, epoch, first, head, more, deliveries };
                        answer(request, Ok(ServerFrame::Page(page)));
                    }
                    Err(why) => answer(request, Err(why)),
                });
            }
            Read::Rooms { request, prefix, after, limit } => {
                self.broker.list(asker, &prefix, &after, limit, move |list| match list {
                    Ok((rooms, more)) => answer(request, Ok(room_list(request, epoch, more, &rooms))),
                    Err(why) => answer(request, Err(why)),
                });
            }
            Read::Summary { request, rooms } => {
                self.broker.summaries(asker, &rooms, move |list| match list {
                    Ok(rooms) => answer(request, Ok(room_list(request, epoch, false, &rooms))),
                    Err(why) => answer(request, Err(why)),
                });
            }
        }
    }

    /// Whether the peer is to be read from: not while it has too much in flight, does not take its answers, or
    /// memory that all share is used up.
    pub(crate) fn reads_from_peer(&self) -> Reading {
        let limits = self.session.limits();
        if self.in_flight().1 >= limits.bytes_in_flight_max || self.outbox.bytes() >= ANSWER_BYTES_MAX {
            return Reading::PausedUntilWoken;
        }
        let (waiting, waiting_max) = self.broker.queue();
        match self.outbox.may_receive() {
            _ if waiting >= waiting_max => Reading::PausedForQueue,
            true => Reading::Goes,
            false => Reading::PausedForMemory,
        }
    }

    /// Requests without an answer, and their bytes.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        let (answered, answered_bytes) = self.outbox.answered_so_far();
        let (requests, bytes) = (self.begun - answered, self.begun_bytes.saturating_sub(answered_bytes));
        (usize::try_from(requests).unwrap_or(usize::MAX), usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// What is due now.
    pub(crate) fn tick(&mut self, now: Instant) -> Due {
        self.session.tick(now)
    }

    fn read_later(&mut self, read: Read) {
        self.begun += 1;
        self.begun_bytes += read.bytes() as u64;
        self.reads.push_back(read);
    }

    fn welcome(&mut self, resume: &[Resume<'_>], client: &str, streams: &impl Streams) {
        tracing::debug!(session = self.number, client, rooms = resume.len(), "a session begins");
        let metrics = self.outbox.metrics();
        metrics.sessions_opened[self.outbox.transport()].increment(1);
        metrics.sessions[self.outbox.transport()].increment(1.0);
        let access = streams.readers();
        let mut refusals = Vec::new();
        let mut joins = Vec::with_capacity(resume.len());
        for Resume { join, room, position, credit_bytes, want } in resume {
            let entered = offered(*want).and_then(|()| room_name(room)).and_then(|room| {
                Self::enter(&access, streams, *join, 0, &room, Start::After(*position), *credit_bytes)
            });
            joins.push(entered.map_err(|why| {
                metrics.errors[why.code].increment(1);
                refusals.push(why);
                refusals.len() - 1
            }));
        }
        let resumed = resume.iter().zip(&joins).map(|(resume, entered)| match entered {
            Ok(Joining::Joined(facts)) => JoinResult::Joined(joined(0, resume.join, *facts)),
            Ok(Joining::Void(code, facts)) => JoinResult::Void(void(0, resume.join, *code, *facts)),
            Ok(Joining::Pending) => unreachable!("a position needs no looking up"),
            Err(at) => JoinResult::Refused(Fault::new(0, refusals[*at].code, &refusals[*at].message)),
        });
        let limits = self.session.limits();
        self.outbox.push(&ServerFrame::Welcome(Welcome {
            version: VERSION,
            session: SessionId(self.number),
            user: &self.user,
            time: Time::now(),
            limits: WelcomeLimits::from(limits),
            features: Vec::new(),
            ping_interval_ms: u32::try_from(limits.ping_interval.as_millis()).unwrap_or(u32::MAX),
            resumed: resumed.collect(),
        }));
    }

    fn enter<S: Streams>(
        access: &S::Access<'_>,
        streams: &S,
        join: JoinId,
        request: RequestId,
        room: &RoomName,
        start: Start,
        credit: Option<u64>,
    ) -> Result<Joining, Refused> {
        let joining = access.join(join, request, room, start, credit)?;
        if !matches!(joining, Joining::Void(..))
            && let Err(why) = streams.open(join, room)
        {
            let _ = access.leave(join);
            return Err(why);
        }
        Ok(joining)
    }

    /// A room's part in memory: one of the last ones, or looked up. Returns its place among those at hand.
    fn room(&mut self, name: &str) -> Result<usize, Refused> {
        if let Some(at) = self.rooms.iter().position(|room| room.name().as_str() == name) {
            // The one asked for most comes to the front without moving all the others.
            self.rooms.swap(at, at / 2);
            return Ok(at / 2);
        }
        let room = self.broker.room(&room_name(name)?)?;
        if self.rooms.len() >= ROOMS_AT_HAND {
            self.rooms.pop();
        }
        self.rooms.push(room);
        Ok(self.rooms.len() - 1)
    }
}

/// Whether the peer is to be read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reading {
    /// It is.
    Goes,
    /// Not until the session's task is woken: an answer will do that.
    PausedUntilWoken,
    /// Not while the commit queue is full, of which nobody tells.
    PausedForQueue,
    /// Not while messages that are not complete take all memory that they may, of which nobody tells.
    PausedForMemory,
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.session.is_open() {
            self.outbox.metrics().sessions[self.outbox.transport()].decrement(1.0);
        }
    }
}

fn joined(request: RequestId, join: JoinId, facts: JoinFacts) -> Joined {
    let JoinFacts { epoch, first, head, start } = facts;
    Joined { request, join, epoch, first, head, start }
}

fn void(request: RequestId, join: JoinId, code: Code, facts: JoinFacts) -> Void {
    let JoinFacts { epoch, first, head, .. } = facts;
    Void { request, join, code: code.number(), epoch, first, head }
}

fn room_list(request: RequestId, epoch: Epoch, more: bool, rooms: &[Summary]) -> ServerFrame<'_> {
    ServerFrame::RoomList(RoomList { request, epoch, more, rooms: rooms.iter().map(room_summary).collect() })
}

fn room_summary(summary: &Summary) -> RoomSummary<'_> {
    let last = summary.last.as_ref().map(|last| LastRecord {
        offset: last.offset,
        user: &last.user,
        kind: &last.kind,
        payload: &last.payload,
        payload_bytes: u32::try_from(last.payload_bytes).unwrap_or(u32::MAX),
    });
    let (room, facts) = (summary.room.as_str(), &summary.facts);
    let (first, head, time) = (facts.first, facts.head, facts.time);
    RoomSummary { room, first, head, time, last, cursor: None, unread: None, members: None }
}

fn count_delivered(outbox: &Outbox, page: &Page) {
    for part in &page.parts {
        let way = (outbox.transport(), part.source);
        outbox.metrics().delivered_records[way].increment(super::records_meant(part));
        outbox.metrics().delivered_bytes[way].increment(part.body.len() as u64);
    }
}
