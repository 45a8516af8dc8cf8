//! Pages of a room's log, and what is known of rooms: answers that may have to read the store.

use std::sync::{Arc, Weak};

use tokio::sync::oneshot;

use super::cut::{Part, cut};
use super::lookup::read;
use super::pool::{Class, SessionKey, Turn};
use super::{Broker, Error, Inner};
use crate::protocol::Batch;
use crate::storage::{Block, EngineError, Facts, Read, ReadAt, Refused, Room};
use crate::types::{Code, Epoch, Offset, Position, RoomName};

/// The bytes of a payload that a [`Summary`] shows.
const SUMMARY_PAYLOAD_BYTES_MAX: usize = 256;

/// Which page of a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageAt {
    /// The newest records before a position; without one, the newest.
    Before(Option<Position>),
    /// The oldest records behind a position; without one, the oldest retained.
    After(Option<Position>),
    /// Records on both sides of a position, itself included.
    Around(Position),
}

/// Part of a room's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// The oldest retained offset; [`Offset::ZERO`] if no record is retained.
    pub first: Offset,
    /// The newest offset.
    pub head: Offset,
    /// Whether more records lie in the direction that was asked for.
    pub more: bool,
    /// The records, ascending.
    pub parts: Vec<Part>,
}

/// The state of a room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Its name.
    pub room: RoomName,
    /// What is known of it.
    pub facts: Facts,
    /// Its newest record, if that is retained.
    pub last: Option<LastRecord>,
}

/// The newest record of a room, cut to a size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastRecord {
    /// Its offset.
    pub offset: Offset,
    /// Who published it.
    pub user: String,
    /// Its kind.
    pub kind: String,
    /// The first bytes of its payload.
    pub payload: Vec<u8>,
    /// The length of its whole payload.
    pub payload_bytes: usize,
}

/// Who asks for something that takes many turns: whose turns these are, and whether anybody still waits for the answer.
pub(crate) struct Asker {
    session: SessionKey,
    here: Weak<()>,
}

impl Asker {
    /// A session, or 0 for who calls the library. What it has asked for is given up when nobody holds `here`.
    pub(crate) fn new(session: SessionKey, here: &Arc<()>) -> Self {
        Self { session, here: Arc::downgrade(here) }
    }
}

impl Broker {
    /// Reads a page: at most `limit` records and about `bytes_max` bytes, at least one record if there is one.
    ///
    /// # Errors
    /// `void_epoch`, `beyond_head`, or the storage's trouble.
    pub async fn history(&self, room: &RoomName, at: PageAt, limit: u32) -> Result<Page, Error> {
        let (answer, answered) = oneshot::channel();
        let here = Arc::new(());
        let bytes_max = self.inner.limits.page_bytes_max;
        self.page(Asker::new(0, &here), room, at, limit, bytes_max, move |page| {
            let _ = answer.send(page);
        });
        Ok(answered.await.unwrap_or_else(|_| Err(closed()))?)
    }

    /// As [`Broker::history`], for a session: `then` is called once, on this thread or on a reading one, and must not wait
    /// for another page; or never, if nobody waits for it any more.
    pub(crate) fn page(
        &self,
        asker: Asker,
        room: &RoomName,
        at: PageAt,
        limit: u32,
        bytes_max: usize,
        then: impl FnOnce(Result<Page, Refused>) + Send + 'static,
    ) {
        let mut then = Some(then);
        let mut walk = match Walk::new(&self.inner, room, at, limit, bytes_max) {
            Ok(walk) => walk,
            Err(refused) => return (then.take().expect("called once"))(Err(refused)),
        };
        let inner = Arc::clone(&self.inner);
        let job = move || {
            let page = match walk.step(&inner) {
                Ok(false) => return Turn::Again,
                Ok(true) => Ok(walk.page(&inner)),
                Err(error) => Err(Refused::from(error)),
            };
            if let Some(then) = then.take() {
                then(page);
            }
            Turn::Done
        };
        self.take_turns(asker, job);
    }

    /// Rooms that have or had records, in the order of their names' bytes, with what is known of them.
    ///
    /// # Errors
    /// The storage's trouble.
    pub async fn rooms(&self, prefix: &str, after: &str, limit: usize) -> Result<(Vec<Summary>, bool), Error> {
        let (answer, answered) = oneshot::channel();
        let here = Arc::new(());
        self.list(Asker::new(0, &here), prefix, after, limit, move |list| {
            let _ = answer.send(list);
        });
        Ok(answered.await.unwrap_or_else(|_| Err(closed()))?)
    }

    /// As [`Broker::rooms`], for a session: `then` is called once, on a reading thread, or never.
    pub(crate) fn list(
        &self,
        asker: Asker,
        prefix: &str,
        after: &str,
        limit: usize,
        then: impl FnOnce(Result<(Vec<Summary>, bool), Refused>) + Send + 'static,
    ) {
        let mut rooms = self.inner.engine.list(prefix, after, limit.saturating_add(1));
        let more = rooms.len() > limit;
        rooms.truncate(limit);
        self.summarize(asker, rooms, move |list| then(list.map(|list| (list, more))));
    }

    /// The state of named rooms, in their order; a room that never had a record has empty facts.
    ///
    /// # Errors
    /// The storage's trouble.
    pub async fn summary(&self, rooms: &[RoomName]) -> Result<Vec<Summary>, Error> {
        let (answer, answered) = oneshot::channel();
        let here = Arc::new(());
        self.summaries(Asker::new(0, &here), rooms, move |list| {
            let _ = answer.send(list);
        });
        Ok(answered.await.unwrap_or_else(|_| Err(closed()))?)
    }

    /// As [`Broker::summary`], for a session: `then` is called once, on a reading thread, or never.
    pub(crate) fn summaries(
        &self,
        asker: Asker,
        rooms: &[RoomName],
        then: impl FnOnce(Result<Vec<Summary>, Refused>) + Send + 'static,
    ) {
        let known = |room: &RoomName| (room.clone(), self.inner.engine.facts(room.as_str()).unwrap_or_default());
        self.summarize(asker, rooms.iter().map(known).collect(), then);
    }

    /// Reads the newest record of each room, one room per turn.
    fn summarize(
        &self,
        asker: Asker,
        rooms: Vec<(RoomName, Facts)>,
        then: impl FnOnce(Result<Vec<Summary>, Refused>) + Send + 'static,
    ) {
        let inner = Arc::clone(&self.inner);
        let mut list = Vec::with_capacity(rooms.len());
        let mut rooms = rooms.into_iter();
        let mut then = Some(then);
        let job = move || {
            let answer = match rooms.next() {
                Some((room, facts)) => match if facts.is_empty() { Ok(None) } else { last_record(&inner, &room) } {
                    Ok(last) => {
                        list.push(Summary { room, facts, last });
                        return Turn::Again;
                    }
                    Err(refused) => Err(refused),
                },
                None => Ok(std::mem::take(&mut list)),
            };
            if let Some(then) = then.take() {
                then(answer);
            }
            Turn::Done
        };
        self.take_turns(asker, job);
    }

    /// Has a job done by the reading threads, turn by turn, as long as somebody waits for what comes of it.
    fn take_turns(&self, asker: Asker, mut job: impl FnMut() -> Turn + Send + 'static) {
        let Asker { session, here } = asker;
        let job = move || if here.strong_count() == 0 { Turn::Done } else { job() };
        self.inner.pool.submit(Class::History, session, Box::new(job));
    }
}

fn closed() -> Refused {
    Refused::new(Code::ShuttingDown, "the broker has been closed")
}

fn last_record(inner: &Inner, name: &RoomName) -> Result<Option<LastRecord>, Refused> {
    let room = inner.room(name)?;
    let Read::Block(block) = read(&*inner.engine, &room, ReadAt::Before(Offset::MAX))? else { return Ok(None) };
    let damaged = |error| Refused::new(Code::StorageFailed, format!("room {name:?}: {error}"));
    let batch = Batch::parse(&block.body).map_err(damaged)?;
    let Some(record) = batch.records(block.prev).last().transpose().map_err(damaged)? else { return Ok(None) };
    let payload = record.content.payload;
    Ok(Some(LastRecord {
        offset: record.offset,
        user: record.user.to_owned(),
        kind: record.content.kind.to_owned(),
        payload: payload[..payload.len().min(SUMMARY_PAYLOAD_BYTES_MAX)].to_vec(),
        payload_bytes: payload.len(),
    }))
}

/// A page being read: forward and backward from the position in turns, as far as it is wanted.
pub(super) struct Walk {
    room: Arc<Room>,
    backward: Option<Direction>,
    forward: Option<Direction>,
    bytes_left: usize,
    /// Blocks behind one another in the room, each cut to what is meant.
    parts: std::collections::VecDeque<Part>,
    more_back: bool,
    more_forth: bool,
    around: bool,
    forth_is_next: bool,
}

#[derive(Clone, Copy)]
struct Direction {
    at: Offset,
    records_left: u32,
}

impl Walk {
    pub(super) fn new(
        inner: &Inner,
        room: &RoomName,
        at: PageAt,
        limit: u32,
        bytes_max: usize,
    ) -> Result<Self, Refused> {
        if limit == 0 {
            return Err(Refused::new(Code::BadFrame, "a page has at least 1 record"));
        }
        let room = inner.room(room)?;
        let head = room.facts().head;
        let offset = |position: Position| {
            if position.epoch != inner.engine.epoch() {
                let message = format!("epoch {}, the present one is {}", position.epoch, inner.engine.epoch());
                Err(Refused::new(Code::VoidEpoch, message))
            } else if position.offset > head {
                Err(Refused::new(Code::BeyondHead, format!("offset {}, the head is {head}", position.offset)))
            } else {
                Ok(position.offset)
            }
        };
        let direction = |at, records_left| (records_left > 0).then_some(Direction { at, records_left });
        let (backward, forward) = match at {
            PageAt::Before(position) => (direction(position.map_or(Ok(Offset::MAX), offset)?, limit), None),
            PageAt::After(position) => (None, direction(position.map_or(Ok(Offset::ZERO), offset)?, limit)),
            PageAt::Around(position) => {
                let at = offset(position)?;
                // What lies before, and the record itself with what lies behind it.
                (direction(at, limit / 2), direction(Offset(at.0.saturating_sub(1)), limit - limit / 2))
            }
        };
        let around = matches!(at, PageAt::Around(_));
        let parts = std::collections::VecDeque::new();
        Ok(Self {
            room,
            backward,
            forward,
            bytes_left: bytes_max,
            parts,
            more_back: false,
            more_forth: false,
            around,
            forth_is_next: true,
        })
    }

    /// Reads one block; whether the page is complete.
    pub(super) fn step(&mut self, inner: &Inner) -> Result<bool, EngineError> {
        // In turns, so that neither side takes all the bytes; forth first, where the record itself is.
        match (self.backward, self.forward) {
            (Some(direction), forward) if forward.is_none() || !self.forth_is_next => {
                self.backward = self.step_back(inner, direction)?;
                self.forth_is_next = true;
            }
            (_, Some(direction)) => {
                self.forward = self.step_forth(inner, direction)?;
                self.forth_is_next = false;
            }
            (_, None) => {}
        }
        Ok(self.backward.is_none() && self.forward.is_none())
    }

    fn step_back(&mut self, inner: &Inner, direction: Direction) -> Result<Option<Direction>, EngineError> {
        let Read::Block(block) = read(&*inner.engine, &self.room, ReadAt::Before(direction.at))? else {
            return Ok(None);
        };
        let floor = self.room.facts().floor;
        let offsets = self.offsets(&block, floor, direction.at)?;
        let skip = offsets.len().saturating_sub(direction.records_left as usize);
        let Some(&first) = offsets.get(skip) else { return Ok(None) };
        let Some(part) = self.part(&block, Offset(first.0 - 1), Offset(direction.at.0 - 1), floor)? else {
            return Ok(None);
        };
        if !self.admit(&part) {
            self.more_back = true;
            return Ok(None);
        }
        let before = part.prev;
        self.parts.push_front(part);
        let taken = u32::try_from(offsets.len() - skip).expect("not more than wanted");
        let records_left = direction.records_left - taken;
        self.more_back = before > floor;
        Ok((records_left > 0 && self.more_back).then_some(Direction { at: first, records_left }))
    }

    fn step_forth(&mut self, inner: &Inner, direction: Direction) -> Result<Option<Direction>, EngineError> {
        let Read::Block(block) = read(&*inner.engine, &self.room, ReadAt::After(direction.at))? else {
            return Ok(None);
        };
        let floor = self.room.facts().floor;
        let after = direction.at.max(floor);
        let mut offsets = self.offsets(&block, after, Offset(Offset::MAX.0 + 1))?;
        offsets.truncate(direction.records_left as usize);
        let Some(&last) = offsets.last() else { return Ok(None) };
        let Some(part) = self.part(&block, after, last, floor)? else { return Ok(None) };
        if !self.admit(&part) {
            self.more_forth = true;
            return Ok(None);
        }
        if self.parts.back().is_some_and(|last| last.to < part.prev) {
            // Retention has overtaken the walk: what was read so far is below the floor now. A page has no holes.
            self.parts.clear();
            self.more_back = false;
        }
        self.parts.push_back(part);
        let records_left = direction.records_left - u32::try_from(offsets.len()).expect("not more than wanted");
        self.more_forth = last < self.room.facts().head;
        Ok((records_left > 0 && self.more_forth).then_some(Direction { at: last, records_left }))
    }

    /// The offsets of a block's records behind `after` and before `before`.
    fn offsets(&self, block: &Block, after: Offset, before: Offset) -> Result<Vec<Offset>, EngineError> {
        let offsets = Batch::parse(&block.body).and_then(|batch| {
            let within = |offset: &Offset| *offset > after && *offset < before;
            let offsets = batch.records(block.prev).map(|record| Ok(record?.offset));
            offsets.filter(|offset| offset.as_ref().map_or(true, within)).collect()
        });
        offsets.map_err(|error| self.damaged(&error))
    }

    fn part(&self, block: &Block, after: Offset, to: Offset, floor: Offset) -> Result<Option<Part>, EngineError> {
        cut(block, after, to, floor).map_err(|error| self.damaged(&error))
    }

    fn damaged(&self, error: &crate::protocol::WireError) -> EngineError {
        EngineError::Damaged(format!("room {:?}: {error}", self.room.name()))
    }

    /// Whether there is room for a part: always for the first one.
    fn admit(&mut self, part: &Part) -> bool {
        let fits = self.parts.is_empty() || part.body.len() <= self.bytes_left;
        self.bytes_left = self.bytes_left.saturating_sub(part.body.len());
        fits
    }

    pub(super) fn page(&mut self, inner: &Inner) -> Page {
        let facts = self.room.facts();
        let older = |part: &Part| part.prev > self.room.facts().floor;
        let more = self.more_forth || self.more_back || (self.around && self.parts.front().is_some_and(older));
        let parts = std::mem::take(&mut self.parts).into();
        Page { epoch: inner.engine.epoch(), first: facts.first, head: facts.head, more, parts }
    }
}
