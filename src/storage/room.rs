//! A room's part in memory: what is known of it, its tail, who follows it, and where the rest lies in the journal.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::block::Block;
use super::commit::{BodyPlace, Floor};
use super::publishers::Publishers;
use crate::lock::Mutex;
use crate::protocol::Batch;
use crate::types::{Offset, RoomName, Time};

/// What is known of a room without reading a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The newest committed offset; [`Offset::ZERO`] if the room never had a record.
    pub head: Offset,
    /// The newest removed offset: nothing up to it is retained.
    pub floor: Offset,
    /// The oldest retained offset; [`Offset::ZERO`] if no record is retained.
    pub first: Offset,
    /// The newest record's time.
    pub time: Time,
    /// The oldest retained record's time.
    pub first_time: Time,
    /// How many records are retained.
    pub records: u64,
    /// The encoded bytes of the retained records.
    pub bytes: u64,
}

impl Facts {
    /// Whether no record is retained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head == self.floor
    }
}

/// Who is told that a room has new records. Called on the thread that commits: must be quick and must not block.
pub trait Follow: Send + Sync {
    /// Records have become visible; `targets` says whether it is worth serving the follower on this thread.
    fn advanced(&self, targets: Targets);
}

/// How many are to be told of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Targets {
    /// So few that waking another thread costs more than writing to their sockets at once; or nothing waits for this
    /// thread.
    Few,
    /// So many that the next commit would wait.
    Many,
}

/// The number of a room in its data directory; rooms get one with their first record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RoomId(pub u64);

/// What a look at the tail gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// The reader has all there is.
    Head,
    /// Batches were taken.
    Batches {
        /// The reader's new place.
        last: Offset,
        /// Whether that is the head.
        head: bool,
    },
    /// The next batch is in memory, but was not taken.
    Refused,
    /// What follows the reader's place is no longer in memory.
    Behind,
    /// The reader's place is below the floor, which is this.
    Below(Offset),
}

/// A room in memory.
pub struct Room {
    name: RoomName,
    state: Mutex<RoomState>,
    followers: Mutex<Followers>,
    /// What only the committer changes.
    pub(crate) log: Mutex<LogState>,
}

#[derive(Default)]
pub(crate) struct RoomState {
    pub(crate) id: Option<RoomId>,
    pub(crate) facts: Facts,
    /// Consecutive batches up to the head; the newest part of the room.
    pub(crate) tail: VecDeque<Block>,
    /// The batches that lie in the journal and not yet in a volume, consecutive up to the head.
    pub(crate) journal: VecDeque<Indexed>,
}

#[derive(Default)]
struct Followers {
    next: u64,
    list: Vec<(u64, Arc<dyn Follow>)>,
    /// Whether the list is away while its followers are told; who leaves meanwhile stands in `gone`.
    away: bool,
    gone: Vec<u64>,
}

/// Names a follower of a room, for [`Room::unfollow`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowId(u64);

impl Room {
    pub(crate) fn new(name: RoomName) -> Self {
        Self { name, state: Mutex::default(), followers: Mutex::default(), log: Mutex::default() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RoomName {
        &self.name
    }

    /// What is known of it.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.state.lock().facts
    }

    /// Its number, once it has one.
    #[must_use]
    pub fn id(&self) -> Option<RoomId> {
        self.state.lock().id
    }

    /// Tells the follower of every commit from now on.
    pub fn follow(&self, follower: Arc<dyn Follow>) -> FollowId {
        let mut followers = self.followers.lock();
        followers.next += 1;
        let id = followers.next;
        followers.list.push((id, follower));
        FollowId(id)
    }

    /// Ends a [`Room::follow`].
    pub fn unfollow(&self, id: FollowId) {
        let mut followers = self.followers.lock();
        if let Ok(at) = followers.list.binary_search_by_key(&id.0, |(id, _)| *id) {
            followers.list.remove(at);
        } else if followers.away {
            followers.gone.push(id.0);
        }
    }

    /// How many follow it.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.followers.lock().list.len()
    }

    /// Gives what follows `after` in the tail, batch by batch, until `take` refuses one. Memory only: never blocks.
    pub fn tail(&self, after: Offset, mut take: impl FnMut(&Block) -> bool) -> Tail {
        let state = self.state.lock();
        if after >= state.facts.head {
            return Tail::Head;
        }
        if after < state.facts.floor {
            return Tail::Below(state.facts.floor);
        }
        let at = state.tail.partition_point(|batch| batch.last <= after);
        // The tail is consecutive up to the head: it has what follows `after` if the batch found begins at it.
        if state.tail.get(at).is_none_or(|batch| batch.prev > after) {
            return Tail::Behind;
        }
        match state.tail.range(at..).take_while(|batch| take(batch)).last() {
            Some(&Block { last, .. }) => Tail::Batches { last, head: last == state.facts.head },
            None => Tail::Refused,
        }
    }

    /// The place behind which the newest `count` records lie, if all of them are in memory and `count` is small: a join
    /// that begins there needs nobody to look it up.
    pub fn before_last(&self, count: u64) -> Option<Offset> {
        /// Records that are counted under the lock.
        const COUNTED_MAX: u64 = 1000;
        if count > COUNTED_MAX {
            return None;
        }
        let state = self.state.lock();
        let mut missing = count;
        for block in state.tail.iter().rev() {
            let batch = Batch::parse(&block.body).ok()?;
            let records = u64::from(batch.header.count);
            match records.checked_sub(missing) {
                Some(0) => return Some(block.prev),
                Some(_) => return batch.before_last(u32::try_from(missing).ok()?).ok(),
                None => missing -= records,
            }
        }
        None
    }

    /// How far a place is behind the head, in offsets, and whether what follows it has left memory.
    pub fn lag(&self, after: Offset) -> (u64, bool) {
        let state = self.state.lock();
        let behind = state.facts.head.0.saturating_sub(after.0);
        (behind, behind > 0 && state.tail.front().is_none_or(|front| front.prev > after))
    }

    /// Whether the checkpoint and the volumes have everything of it.
    pub(crate) fn is_at_rest(&self) -> bool {
        let changed = self.log.lock().changed;
        let state = self.state.lock();
        !changed && state.tail.is_empty() && state.journal.is_empty() && state.id.is_some()
    }

    /// Makes a risen floor effective.
    pub(crate) fn rise(&self, rise: &Floor) {
        let mut log = self.log.lock();
        let facts = &mut log.facts;
        if rise.floor <= facts.floor {
            return;
        }
        facts.floor = rise.floor;
        facts.records = facts.records.saturating_sub(rise.records);
        facts.bytes = facts.bytes.saturating_sub(rise.bytes);
        let mut state = self.state.lock();
        if facts.is_empty() {
            (facts.first, facts.first_time) = (Offset::ZERO, Time::default());
        } else if rise.first != Offset::ZERO {
            (facts.first, facts.first_time) = (rise.first, rise.first_time);
        } else if let Some(next) = state.journal.iter().find(|batch| batch.first > rise.floor) {
            // All that there was has gone, but there is more by now.
            (facts.first, facts.first_time) = (next.first, next.first_time);
        }
        let facts = *facts;
        log.changed = true;
        state.facts = facts;
    }

    pub(crate) fn with_state<T>(&self, work: impl FnOnce(&mut RoomState) -> T) -> T {
        work(&mut self.state.lock())
    }

    /// Wakes all followers, and asks `targets` for each of them; called by one thread at a time.
    ///
    /// Not under the lock: a follower that is served at once may write to its socket, and may leave the room.
    pub(crate) fn notify(&self, targets: impl Fn() -> Targets) {
        let mut list = {
            let mut followers = self.followers.lock();
            followers.away = true;
            std::mem::take(&mut followers.list)
        };
        for (_, follower) in &list {
            follower.advanced(targets());
        }
        let mut followers = self.followers.lock();
        followers.away = false;
        if !followers.gone.is_empty() {
            let gone = std::mem::take(&mut followers.gone);
            list.retain(|(id, _)| !gone.contains(id));
        }
        // Who came meanwhile has a greater number, and has looked at the log since.
        list.append(&mut followers.list);
        followers.list = list;
    }
}

impl RoomState {
    /// Drops the oldest batch of the tail.
    pub(crate) fn pop_tail(&mut self) {
        self.tail.pop_front();
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Room").field("name", &self.name).field("facts", &state.facts).finish_non_exhaustive()
    }
}

/// What only the committer changes of a room.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    pub(crate) id: Option<RoomId>,
    /// What will be known of the room once the commit being made is durable.
    pub(crate) facts: Facts,
    pub(crate) publishers: Publishers,
    /// The room's place in the commit being made, and which one that is.
    pub(crate) slot: (u64, usize),
    /// Whether the checkpoint does not have all of it.
    pub(crate) changed: bool,
}

/// A batch that lies in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indexed {
    pub(crate) first: Offset,
    pub(crate) last: Offset,
    pub(crate) prev: Offset,
    pub(crate) first_time: Time,
    pub(crate) last_time: Time,
    pub(crate) place: BodyPlace,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves the room as soon as it is told, and brings another one.
    struct Fickle {
        room: Arc<Room>,
        me: Mutex<Option<FollowId>>,
        told: Mutex<u32>,
        next: Mutex<Option<Arc<Fickle>>>,
    }

    impl Follow for Fickle {
        fn advanced(&self, _targets: Targets) {
            *self.told.lock() += 1;
            if let Some(me) = self.me.lock().take() {
                self.room.unfollow(me);
            }
            if let Some(next) = self.next.lock().take() {
                *next.me.lock() = Some(self.room.follow(Arc::clone(&next) as Arc<dyn Follow>));
            }
        }
    }

    #[test]
    fn a_follower_may_leave_the_room_and_bring_others_while_it_is_told() {
        let room = Arc::new(Room::new(RoomName::new("tea").expect("a name")));
        let fickle = |next| {
            let (me, told, next) = (Mutex::new(None), Mutex::new(0), Mutex::new(next));
            Arc::new(Fickle { room: Arc::clone(&room), me, told, next })
        };
        let second = fickle(None);
        let first = fickle(Some(Arc::clone(&second)));
        *first.me.lock() = Some(room.follow(Arc::clone(&first) as Arc<dyn Follow>));
        for expected in [(1, 0), (1, 1), (1, 1)] {
            room.notify(|| Targets::Few);
            assert_eq!((*first.told.lock(), *second.told.lock()), expected);
        }
        assert_eq!(room.followers(), 0);
    }
}
