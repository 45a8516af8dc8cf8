//! The subscriptions of one session: cursors on logs, and a queue of those that have something to read.
//!
//! Nothing here holds records for a reader beyond the one block that was last read from the store for it. A
//! commit wakes readers; a reader pulls from the log when its session has room for output. A room stands in the
//! queue at most once, so a wake costs as much as there are ready rooms, however many are joined.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;

use super::Inner as BrokerInner;
use super::cut::Part;
use super::lookup::{Lookup, Place, read};
use super::pool::{Class, SessionKey, Turn};
use crate::lock::{Mutex, MutexGuard};
use crate::protocol::JoinId;
use crate::storage::{Block, EngineError, Facts, Follow, FollowId, Read, ReadAt, Refused, Room, Tail, Targets};
use crate::types::{Code, Epoch, GapReason, Offset, RoomName, Start};

/// Blocks that one session may have read ahead of its socket, all its rooms together.
const FETCHES_MAX: usize = 4;

/// What a body costs beside its own bytes when it is sent, at most.
const HEAD_BYTES: usize = 48;

/// How a session is told that one of its rooms has something to read.
pub trait Wake: Send + Sync {
    /// Something can be pulled. Called on the thread that commits, too: must be quick and must not block.
    fn wake(&self, targets: Targets);
}

/// What a reader begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JoinFacts {
    /// The incarnation that all offsets belong to.
    pub epoch: Epoch,
    /// The oldest retained offset; [`Offset::ZERO`] if no record is retained.
    pub first: Offset,
    /// The newest offset.
    pub head: Offset,
    /// What will be delivered comes after this offset.
    pub start: Offset,
}

/// The answer to a join.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Joining {
    /// The room is joined.
    Joined(JoinFacts),
    /// The position cannot be gone on from: [`Code::VoidEpoch`] or [`Code::BeyondHead`].
    Void(Code, JoinFacts),
    /// The start has to be looked up in the store; [`Output::Joined`] will follow.
    Pending,
}

/// What comes out of a room for a reader, in the order of the room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// The start has been found; `tag` is that of the join.
    Joined {
        /// Whose.
        join: JoinId,
        /// The join's.
        tag: u32,
        /// What the reader begins with.
        facts: JoinFacts,
    },
    /// Records.
    Records(JoinId, Part),
    /// The reader has reached the head for the first time, at this offset.
    Live(JoinId, Offset),
    /// The records behind `from` and up to `to` are not there any more.
    Gap {
        /// Whose.
        join: JoinId,
        /// Nothing behind this offset …
        from: Offset,
        /// … and up to this one will be delivered.
        to: Offset,
        /// Why.
        reason: GapReason,
    },
    /// The recent part has left memory; the reader is served from the store.
    Lagging(JoinId, Offset),
    /// The reader is served from memory again.
    CaughtUp(JoinId, Offset),
    /// The join has ended, or has not come about (`tag` is that of the join then).
    Left {
        /// Whose.
        join: JoinId,
        /// The join's, if it is not answered yet.
        tag: Option<u32>,
        /// Why.
        why: Refused,
    },
}

/// Whether there may be more to pull at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pulled {
    /// No room is ready; a wake will tell.
    All,
    /// The bound was reached.
    More,
}

/// What may still come out of a pull.
struct Left {
    bytes: usize,
    /// Whether no body has come out yet.
    is_first: bool,
}

impl Left {
    fn admits(&self, body: &Bytes) -> bool {
        self.is_first || HEAD_BYTES + body.len() <= self.bytes
    }

    fn spend(&mut self, body: &Bytes) {
        self.bytes = self.bytes.saturating_sub(HEAD_BYTES + body.len());
        self.is_first = false;
    }
}

/// The subscriptions of one session.
pub struct Readers {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    broker: Arc<BrokerInner>,
    session: SessionKey,
    wake: Arc<dyn Wake>,
    ready: Mutex<VecDeque<Arc<Reader>>>,
    /// Readers that need the store while the session has read ahead as far as it may.
    waiting: Mutex<VecDeque<Arc<Reader>>>,
    fetches: AtomicUsize,
    /// Starts that are being looked up, those of rooms that have been left meanwhile too.
    lookups: AtomicUsize,
    /// In the order of join ids.
    joins: Mutex<Vec<Arc<Reader>>>,
}

/// One subscription: a place in a room's log.
struct Reader {
    join: JoinId,
    room: Arc<Room>,
    owner: Weak<Shared>,
    this: Weak<Self>,
    /// Whether it stands in the ready queue.
    queued: AtomicBool,
    /// Whether it stands among those that wait for the store.
    waiting: AtomicBool,
    follow: OnceLock<FollowId>,
    state: Mutex<State>,
}

struct State {
    position: Offset,
    credit: Option<i64>,
    stage: Stage,
    paused: bool,
    live: bool,
    lagging: bool,
    fetch: Fetch,
    /// Whether the ties are cut: a session may leave a room that is just being ended.
    over: bool,
}

enum Stage {
    /// The start is being looked up.
    Resolving,
    /// It has been found; the join's answer is due.
    Resolved {
        tag: u32,
        facts: JoinFacts,
    },
    /// It could not be found; the join's answer is due.
    Refused {
        tag: Option<u32>,
        why: Refused,
    },
    Reading,
    Ended,
}

enum Fetch {
    None,
    Asked,
    Done(Result<Read, EngineError>),
}

enum Took {
    More,
    Nothing,
    /// What comes next does not fit behind what has come out.
    Full,
    /// The store is needed, and the session has read ahead as far as it may.
    Wait,
}

impl Readers {
    pub(crate) fn new(broker: Arc<BrokerInner>, session: SessionKey, wake: Arc<dyn Wake>) -> Self {
        let shared = Shared {
            broker,
            session,
            wake,
            ready: Mutex::default(),
            waiting: Mutex::default(),
            fetches: AtomicUsize::new(0),
            lookups: AtomicUsize::new(0),
            joins: Mutex::default(),
        };
        let shared = Arc::new(shared);
        shared.broker.observed(Arc::downgrade(&shared));
        Self { shared }
    }

    /// Begins to read a room. `credit` bounds the bytes of batch bodies until more is granted. What there is can be
    /// pulled at once, of which no wake tells; if the answer is [`Joining::Pending`], a wake tells when.
    ///
    /// # Errors
    /// `already_joined`, `too_many_rooms`, or the storage's trouble.
    pub fn join(
        &self,
        join: JoinId,
        tag: u32,
        room: &RoomName,
        start: Start,
        credit: Option<u64>,
    ) -> Result<Joining, Refused> {
        let shared = &self.shared;
        let rooms_max = shared.broker.limits.rooms_per_session_max;
        // Its facts may have to be read.
        let room = shared.broker.room(room)?;
        let mut joins = shared.joins.lock();
        let at = match joins.binary_search_by_key(&join, |reader| reader.join) {
            Ok(_) => return Err(Refused::new(Code::AlreadyJoined, format!("join id {} is in use", join.0))),
            Err(at) => at,
        };
        if joins.len() >= rooms_max {
            return Err(Refused::new(Code::TooManyRooms, format!("{rooms_max} rooms are joined already")));
        }
        // Looked at before the facts: the place is not to lie behind the head that the answer tells.
        let recent = if let Start::Last(count) = start { room.before_last(count) } else { None };
        let facts = room.facts();
        let epoch = shared.broker.engine.epoch();
        let begin = |start| JoinFacts { epoch, first: facts.first, head: facts.head, start };
        let position = match start {
            Start::New | Start::Last(0) => Some(facts.head),
            Start::Earliest => Some(facts.floor),
            Start::Last(count) if count >= facts.records => Some(facts.floor),
            Start::Last(_) => recent.map(|place| place.max(facts.floor)),
            Start::Since(_) => None,
            Start::After(position) if position.epoch != epoch => {
                return Ok(Joining::Void(Code::VoidEpoch, begin(Offset::ZERO)));
            }
            Start::After(position) if position.offset > facts.head => {
                return Ok(Joining::Void(Code::BeyondHead, begin(Offset::ZERO)));
            }
            Start::After(position) => Some(position.offset),
        };
        if position.is_none() && shared.lookups.fetch_add(1, Ordering::SeqCst) >= rooms_max {
            shared.lookups.fetch_sub(1, Ordering::SeqCst);
            return Err(Refused::new(Code::Busy, format!("{rooms_max} starts are being looked up already")));
        }
        let reader = Arc::new_cyclic(|this| Reader {
            join,
            room,
            this: this.clone(),
            owner: Arc::downgrade(shared),
            queued: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            follow: OnceLock::new(),
            state: Mutex::new(State {
                position: position.unwrap_or_default(),
                credit: credit.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
                stage: if position.is_some() { Stage::Reading } else { Stage::Resolving },
                paused: false,
                live: false,
                lagging: false,
                fetch: Fetch::None,
                over: false,
            }),
        });
        joins.insert(at, Arc::clone(&reader));
        drop(joins);
        shared.broker.metrics_joined(1);
        let _ = reader.follow.set(reader.room.follow(Arc::clone(&reader) as Arc<dyn Follow>));
        let Some(start) = position else {
            reader.resolve(shared, tag, start);
            return Ok(Joining::Pending);
        };
        reader.enqueue_quietly(shared);
        Ok(Joining::Joined(begin(start)))
    }

    /// Grants a joined room more bytes.
    ///
    /// # Errors
    /// `unknown_join`.
    pub fn credit(&self, join: JoinId, bytes: u64) -> Result<(), Refused> {
        let reader = self.find(join)?;
        if let Some(credit) = &mut reader.state.lock().credit {
            *credit = credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        reader.enqueue(&self.shared);
        Ok(())
    }

    /// Stops pulling a room until [`Readers::resume`]: its output has nowhere to go. What was read ahead for it is
    /// dropped, so that however many rooms are paused, the others get their blocks from the store.
    pub fn pause(&self, join: JoinId) {
        let Ok(reader) = self.find(join) else { return };
        let mut state = reader.state.lock();
        state.paused = true;
        let dropped = state.drop_fetched();
        drop(state);
        if dropped {
            self.shared.fetch_used();
        }
    }

    /// Ends a [`Readers::pause`].
    pub fn resume(&self, join: JoinId) {
        if let Ok(reader) = self.find(join) {
            reader.state.lock().paused = false;
            reader.enqueue(&self.shared);
        }
    }

    /// Drops what was read ahead for all rooms; for who will not pull for a while. It is read again then.
    pub fn settle(&self) {
        let shared = &self.shared;
        if shared.fetches.load(Ordering::SeqCst) == 0 {
            return;
        }
        let dropped = shared.joins.lock().iter().filter(|reader| reader.state.lock().drop_fetched()).count();
        for _ in 0..dropped {
            shared.fetch_used();
        }
    }

    /// Ends a join; nothing of it comes out afterwards.
    ///
    /// # Errors
    /// `unknown_join`.
    pub fn leave(&self, join: JoinId) -> Result<(), Refused> {
        let mut joins = self.shared.joins.lock();
        let at = joins.binary_search_by_key(&join, |reader| reader.join).map_err(|_| unknown(join))?;
        let reader = joins.remove(at);
        drop(joins);
        reader.end(&self.shared);
        Ok(())
    }

    /// How many rooms are joined.
    #[must_use]
    pub fn joined(&self) -> usize {
        self.shared.joins.lock().len()
    }

    /// Takes what ready rooms have, in turns of at most `turn_bytes` each, until the next body with its head would
    /// exceed `bytes_max` bytes in all or no room is ready. The first body comes out whatever its size. Never blocks.
    pub fn pull(&self, bytes_max: usize, turn_bytes: usize, mut out: impl FnMut(Output)) -> Pulled {
        let shared = &self.shared;
        let mut left = Left { bytes: bytes_max, is_first: true };
        while left.bytes > 0 {
            let Some(reader) = shared.next_ready() else { return Pulled::All };
            // For what a turn tells beside records.
            left.bytes = left.bytes.saturating_sub(HEAD_BYTES);
            match reader.take(shared, turn_bytes, &mut left, &mut out) {
                Took::More => reader.enqueue_quietly(shared),
                Took::Nothing => {}
                Took::Full => {
                    reader.enqueue_in_front(shared);
                    return Pulled::More;
                }
                Took::Wait => {
                    if !reader.waiting.swap(true, Ordering::SeqCst) {
                        shared.waiting.lock().push_back(reader);
                    }
                }
            }
        }
        if shared.ready.lock().is_empty() && !shared.admits() { Pulled::All } else { Pulled::More }
    }

    /// How many readers wait for a place among those that read ahead.
    #[cfg(test)]
    pub(super) fn waiting_for_store(&self) -> usize {
        self.shared.waiting.lock().len()
    }

    fn find(&self, join: JoinId) -> Result<Arc<Reader>, Refused> {
        let joins = self.shared.joins.lock();
        let at = joins.binary_search_by_key(&join, |reader| reader.join).map_err(|_| unknown(join))?;
        Ok(Arc::clone(&joins[at]))
    }
}

fn unknown(join: JoinId) -> Refused {
    Refused::new(Code::UnknownJoin, format!("join id {} is not in use", join.0))
}

impl Drop for Readers {
    fn drop(&mut self) {
        // First, so that none of those that end looks for itself there, nor lets the next one ask the store.
        let waiting = std::mem::take(&mut *self.shared.waiting.lock());
        drop(waiting);
        let joins = std::mem::take(&mut *self.shared.joins.lock());
        for reader in joins {
            reader.end(&self.shared);
        }
        self.shared.ready.lock().clear();
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers").field("session", &self.shared.session).field("joined", &self.joined()).finish()
    }
}

impl Shared {
    /// For each reader: how far it is behind the head, in offsets, and whether it was live and needs the store now.
    pub(super) fn each_lag(&self, mut each: impl FnMut(u64, bool)) {
        for reader in &*self.joins.lock() {
            let state = reader.state.lock();
            if matches!(state.stage, Stage::Reading) {
                let (position, live) = (state.position, state.live);
                drop(state);
                let (behind, in_store) = reader.room.lag(position);
                each(behind, in_store && live);
            }
        }
    }

    /// Queues a reader that was not queued, and wakes the session.
    fn make_ready(&self, reader: Arc<Reader>, targets: Targets) {
        self.ready.lock().push_back(reader);
        self.wake.wake(targets);
    }

    /// The next reader to take from: a ready one, or else one that has waited for the store, if it may be asked now.
    fn next_ready(&self) -> Option<Arc<Reader>> {
        let ready = self.ready.lock().pop_front();
        if let Some(reader) = ready {
            // Cleared before the log is looked at, so that a commit from here on queues the reader again.
            reader.queued.store(false, Ordering::SeqCst);
            return Some(reader);
        }
        // Each that waits is looked at again as long as there is a place: one that has left the room or needs the
        // store no more does not keep it from the next one.
        if self.fetches.load(Ordering::SeqCst) < FETCHES_MAX { self.next_waiting() } else { None }
    }

    fn next_waiting(&self) -> Option<Arc<Reader>> {
        let reader = self.waiting.lock().pop_front()?;
        reader.waiting.store(false, Ordering::SeqCst);
        Some(reader)
    }

    /// Takes a reader that has ended from those that wait, who may be kept there for as long as the store is slow.
    fn forget_waiting(&self, reader: &Reader) {
        if reader.waiting.load(Ordering::SeqCst) {
            let mut waiting = self.waiting.lock();
            let at = waiting.iter().position(|other| std::ptr::eq(&**other, reader));
            let gone = at.and_then(|at| waiting.remove(at));
            drop(waiting);
            drop(gone);
        }
    }

    /// Whether one that waits for the store may ask it now.
    fn admits(&self) -> bool {
        self.fetches.load(Ordering::SeqCst) < FETCHES_MAX && !self.waiting.lock().is_empty()
    }

    /// Takes a place among the blocks that are read ahead, if there is one.
    fn fetch_admitted(&self) -> bool {
        let admitted = self.fetches.fetch_add(1, Ordering::SeqCst) < FETCHES_MAX;
        if !admitted {
            self.fetches.fetch_sub(1, Ordering::SeqCst);
        }
        admitted
    }

    /// One block that was read ahead is no more: let a waiting reader ask for its own. The pull that this wakes sees
    /// to the others.
    fn fetch_used(&self) {
        self.fetches.fetch_sub(1, Ordering::SeqCst);
        if let Some(reader) = self.next_waiting() {
            reader.enqueue(self);
        }
    }
}

impl Follow for Reader {
    fn advanced(&self, targets: Targets) {
        // Looked at first: under load it mostly is queued, and then nothing else of it is touched.
        if !self.queued.swap(true, Ordering::SeqCst)
            && let (Some(owner), Some(this)) = (self.owner.upgrade(), self.this.upgrade())
        {
            owner.make_ready(this, targets);
        }
    }
}

impl Reader {
    /// Queues the reader if it is not queued, and wakes its session.
    fn enqueue(self: &Arc<Self>, shared: &Shared) {
        self.enqueue_for(shared, Targets::Many);
    }

    fn enqueue_for(self: &Arc<Self>, shared: &Shared, targets: Targets) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            shared.make_ready(Arc::clone(self), targets);
        }
    }

    /// Queues the reader if it is not queued; for who is pulling anyway.
    fn enqueue_quietly(self: Arc<Self>, shared: &Shared) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            shared.ready.lock().push_back(self);
        }
    }

    /// Queues the reader before all others: it has not had its turn.
    fn enqueue_in_front(self: Arc<Self>, shared: &Shared) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            shared.ready.lock().push_front(self);
        }
    }

    /// One turn: what the room has, as far as `turn_bytes` and what is left go.
    fn take(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        turn_bytes: usize,
        left: &mut Left,
        out: &mut impl FnMut(Output),
    ) -> Took {
        let join = self.join;
        let mut state = self.state.lock();
        match state.stage {
            Stage::Resolving | Stage::Ended => return Took::Nothing,
            Stage::Resolved { tag, facts } => {
                state.stage = Stage::Reading;
                state.position = facts.start;
                out(Output::Joined { join, tag, facts });
            }
            Stage::Refused { .. } => {
                let Stage::Refused { tag, why } = std::mem::replace(&mut state.stage, Stage::Ended) else {
                    unreachable!("it was matched just now")
                };
                drop(state);
                out(Output::Left { join, tag, why });
                self.owner_forgets(shared);
                return Took::Nothing;
            }
            Stage::Reading => {}
        }
        if state.paused || state.credit.is_some_and(|credit| credit <= 0) {
            return Took::Nothing;
        }
        match std::mem::replace(&mut state.fetch, Fetch::None) {
            Fetch::None => {}
            Fetch::Asked => {
                state.fetch = Fetch::Asked;
                return Took::Nothing;
            }
            Fetch::Done(read) => {
                if matches!(&read, Ok(Read::Block(block)) if !left.admits(&block.body)) {
                    state.fetch = Fetch::Done(read);
                    return Took::Full;
                }
                shared.fetch_used();
                return self.deliver(shared, state, read, left, out);
            }
        }
        let (mut taken, position) = (0, state.position);
        let mut cut_front = None;
        let tail = self.room.tail(position, |block| {
            let turn_is_over = taken > 0 && taken + block.body.len() > turn_bytes;
            if cut_front.is_some() || turn_is_over || !left.admits(&block.body) {
                return false;
            }
            if block.prev < position {
                // The reader begins within this batch; only the first batch of a read can be so.
                cut_front = Some(block.clone());
                return true;
            }
            taken += block.body.len();
            left.spend(&block.body);
            let &Block { first, last, prev, source, .. } = block;
            out(Output::Records(join, Part { from: first, to: last, prev, body: block.body.clone(), source }));
            true
        });
        if let Some(block) = cut_front {
            // What follows it in the tail comes in the next turn, behind it.
            return self.deliver(shared, state, Ok(Read::Block(block)), left, out);
        }
        match tail {
            Tail::Refused => Took::Full,
            Tail::Batches { last, head } => {
                state.position = last;
                state.spend(taken);
                if std::mem::take(&mut state.lagging) {
                    out(Output::CaughtUp(join, last));
                }
                if head {
                    state.arrive(join, out)
                } else {
                    return Took::More;
                }
                Took::Nothing
            }
            Tail::Head => {
                if std::mem::take(&mut state.lagging) {
                    out(Output::CaughtUp(join, position));
                }
                state.arrive(join, out);
                Took::Nothing
            }
            Tail::Below(floor) => {
                state.position = floor;
                shared.broker.metrics_gap();
                out(Output::Gap { join, from: position, to: floor, reason: GapReason::Retention });
                Took::More
            }
            Tail::Behind => {
                if !shared.fetch_admitted() {
                    return Took::Wait;
                }
                if state.live && !std::mem::replace(&mut state.lagging, true) {
                    out(Output::Lagging(join, position));
                }
                state.fetch = Fetch::Asked;
                drop(state);
                self.fetch(shared, position);
                Took::Nothing
            }
        }
    }

    /// Gives out a block that is not known to begin right behind the reader's place.
    fn deliver(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        mut state: MutexGuard<'_, State>,
        read: Result<Read, EngineError>,
        left: &mut Left,
        out: &mut impl FnMut(Output),
    ) -> Took {
        let join = self.join;
        let floor = self.room.facts().floor;
        if state.position < floor {
            // Retention has overtaken the read.
            return Took::More;
        }
        let part = match read {
            Ok(Read::Block(block)) => (shared.broker.cuts)
                .cut(&block, state.position, floor)
                .map_err(|error| format!("room {:?} behind offset {}: {error}", self.room.name(), state.position))
                .map_err(|message| Refused::new(Code::StorageFailed, message))
                .map(|part| (part, block.last)),
            // The records went away between the look at the tail and the read: look again.
            Ok(Read::Nothing) => return Took::More,
            Err(error) => Err(Refused::from(error)),
        };
        match part {
            Ok((part, last)) => {
                if let Some(part) = part {
                    left.spend(&part.body);
                    state.spend(part.body.len());
                    out(Output::Records(join, part));
                }
                state.position = state.position.max(last);
                Took::More
            }
            Err(why) => {
                if why.code != Code::ShuttingDown {
                    tracing::error!(room = %self.room.name(), "a reader is ended: {}", why.message);
                }
                state.stage = Stage::Ended;
                drop(state);
                out(Output::Left { join, tag: None, why });
                self.owner_forgets(shared);
                Took::Nothing
            }
        }
    }

    /// Asks the pool for the block behind a place.
    fn fetch(self: &Arc<Self>, shared: &Arc<Shared>, position: Offset) {
        let (reader, engine) = (Arc::clone(self), Arc::clone(&shared.broker.engine));
        let job = Box::new(move || {
            // Many may have left since they asked: nothing is read for them. The place counts until here, so that
            // a session never has more jobs than places, however often it joins and leaves.
            let wanted = reader.owner.strong_count() > 0 && reader.state.lock().wants_blocks();
            let read = wanted.then(|| read(&*engine, &reader.room, ReadAt::After(position)));
            let Some(owner) = reader.owner.upgrade() else { return Turn::Done };
            let mut state = reader.state.lock();
            match read {
                Some(read) if state.wants_blocks() => {
                    state.fetch = Fetch::Done(read);
                    drop(state);
                    // This thread has the bytes at hand, and will be asked for the next ones.
                    reader.enqueue_for(&owner, Targets::Few);
                }
                _ => {
                    state.fetch = Fetch::None;
                    drop(state);
                    owner.fetch_used();
                    // It may have been resumed meanwhile.
                    reader.enqueue(&owner);
                }
            }
            Turn::Done
        });
        shared.broker.pool.submit(Class::Live, shared.session, job);
    }

    /// Looks up the start of a join in the store.
    fn resolve(self: &Arc<Self>, shared: &Arc<Shared>, tag: u32, start: Start) {
        let (reader, engine) = (Arc::clone(self), Arc::clone(&shared.broker.engine));
        let mut lookup = Lookup::new(start);
        let job = Box::new(move || {
            let Some(owner) = reader.owner.upgrade() else { return Turn::Done };
            if !matches!(reader.state.lock().stage, Stage::Resolving) {
                owner.lookups.fetch_sub(1, Ordering::SeqCst);
                return Turn::Done;
            }
            let mut found = None;
            let stage = match lookup.step(&*engine, &reader.room) {
                Ok(None) => return Turn::Again,
                Ok(Some(Place { start, block })) => {
                    found = block;
                    let Facts { first, head, floor, .. } = reader.room.facts();
                    let facts = JoinFacts { epoch: engine.epoch(), first, head, start: start.max(floor) };
                    Stage::Resolved { tag, facts }
                }
                Err(error) => Stage::Refused { tag: Some(tag), why: error.into() },
            };
            owner.lookups.fetch_sub(1, Ordering::SeqCst);
            let mut state = reader.state.lock();
            if matches!(state.stage, Stage::Resolving) {
                state.stage = stage;
                // What is given out next lies in it. Without credit it would hold a place for nothing.
                if let Some(block) = found
                    && !state.paused
                    && state.credit.is_none_or(|credit| credit > 0)
                    && owner.fetch_admitted()
                {
                    state.fetch = Fetch::Done(Ok(Read::Block(block)));
                }
                drop(state);
                reader.enqueue(&owner);
            }
            Turn::Done
        });
        shared.broker.pool.submit(Class::Live, shared.session, job);
    }

    fn owner_forgets(self: &Arc<Self>, shared: &Shared) {
        shared.joins.lock().retain(|reader| !Arc::ptr_eq(reader, self));
        self.end(shared);
    }

    /// Cuts the ties; called once the session no longer knows the reader.
    fn end(&self, shared: &Shared) {
        if let Some(follow) = self.follow.get() {
            self.room.unfollow(*follow);
        }
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        state.stage = Stage::Ended;
        let dropped = state.drop_fetched();
        drop(state);
        if dropped {
            shared.fetch_used();
        }
        shared.forget_waiting(self);
        shared.broker.metrics_joined(-1);
    }
}

impl State {
    /// Drops a block that was read ahead; whether there was one. One that is being read is dropped when it comes.
    fn drop_fetched(&mut self) -> bool {
        let dropped = matches!(self.fetch, Fetch::Done(_));
        if dropped {
            self.fetch = Fetch::None;
        }
        dropped
    }

    /// Whether what is read for it would be taken.
    fn wants_blocks(&self) -> bool {
        !self.paused && matches!(self.stage, Stage::Reading)
    }

    fn spend(&mut self, bytes: usize) {
        if let Some(credit) = &mut self.credit {
            *credit -= i64::try_from(bytes).unwrap_or(i64::MAX);
        }
    }

    fn arrive(&mut self, join: JoinId, out: &mut impl FnMut(Output)) {
        if !std::mem::replace(&mut self.live, true) {
            out(Output::Live(join, self.position));
        }
    }
}
