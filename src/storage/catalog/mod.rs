//! All rooms that have or had records, by name, and those that somebody has asked for but that have none yet.
//!
//! A room at rest is an entry of a table: its name, its number, what is known of it, and where the checkpoint holds
//! what it remembers of its publishers. Only a room in use has a [`Room`].

mod at_rest;

use std::collections::{BTreeMap, HashMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

pub(crate) use self::at_rest::AtRest;
use self::at_rest::Resting;
use super::checkpoint::{Checkpoint, Place};
use super::engine::EngineError;
use super::publishers::Publishers;
use super::room::{Facts, Room, RoomId};
use crate::types::{Offset, RoomName};

/// So many rooms in memory are never too many.
const LOADED_MIN: usize = 1024;

/// So many rooms are looked at while the catalog is held.
const WALK_ROOMS: usize = 1024;

#[derive(Debug)]
pub(crate) struct Catalog {
    rooms: RwLock<Rooms>,
}

#[derive(Debug)]
struct Rooms {
    /// What the checkpoint holds.
    at_rest: AtRest,
    /// Rooms in use; those among the ones at rest, too.
    loaded: BTreeMap<RoomName, InUse>,
    /// How many of the loaded ones are not among those at rest.
    born: usize,
    /// Rooms without records, as long as somebody holds them.
    unborn: HashMap<RoomName, Weak<Room>>,
    /// How large `unborn` may grow before the dead are looked for.
    unborn_sweep: usize,
    /// How many may be loaded before those at rest are looked for.
    loaded_sweep: usize,
    checkpoint: Option<Arc<Checkpoint>>,
}

/// A room in use: what is known of it, it knows itself.
#[derive(Debug)]
struct InUse {
    id: RoomId,
    room: Arc<Room>,
    /// Where it is among those at rest, unless the checkpoint does not know it yet.
    index: Option<usize>,
}

/// What a checkpoint holds of a room's publishers.
struct Stored {
    place: Place,
    checkpoint: Arc<Checkpoint>,
    publishers: Publishers,
}

/// A room that has or had records.
pub(crate) enum Known<'a> {
    /// It is in use.
    Loaded(&'a Arc<Room>),
    /// It is at rest.
    AtRest(&'a Facts, Place),
}

impl Known<'_> {
    fn facts(&self) -> Facts {
        match self {
            Self::Loaded(room) => room.facts(),
            Self::AtRest(facts, _) => **facts,
        }
    }
}

/// All rooms from a name on, in the order of names.
struct Walk<'a> {
    loaded: Peekable<btree_map::Range<'a, RoomName, InUse>>,
    at_rest: &'a AtRest,
    index: usize,
}

impl<'a> Iterator for Walk<'a> {
    type Item = (&'a str, RoomId, Known<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let resting = self.at_rest.get(self.index);
        let next = self.loaded.next_if(|(name, _)| resting.is_none_or(|(resting, _)| name.as_str() <= resting));
        if let Some((name, InUse { id, room, .. })) = next {
            self.index += usize::from(resting.is_some_and(|(resting, _)| resting == name.as_str()));
            return Some((name.as_str(), *id, Known::Loaded(room)));
        }
        let (name, Resting { id, facts, place, .. }) = resting?;
        self.index += 1;
        Some((name, *id, Known::AtRest(facts, *place)))
    }
}

impl Rooms {
    fn walk<'a>(&'a self, from: Bound<&str>) -> Walk<'a> {
        let index = match from {
            Bound::Unbounded => 0,
            Bound::Included(name) => self.at_rest.at_or_behind(0, name),
            Bound::Excluded(name) => {
                let index = self.at_rest.at_or_behind(0, name);
                index + usize::from(self.at_rest.get(index).is_some_and(|(resting, _)| resting == name))
            }
        };
        let loaded = self.loaded.range::<str, _>((from, Bound::Unbounded)).peekable();
        Walk { loaded, at_rest: &self.at_rest, index }
    }

    /// A room that is not loaded.
    fn resting(&self, name: &str) -> Option<&Resting> {
        Some(self.at_rest.get(self.at_rest.find(name)?)?.1)
    }
}

fn behind(name: Option<&str>) -> Bound<&str> {
    name.map_or(Bound::Unbounded, Bound::Excluded)
}

impl Catalog {
    /// With the rooms of a checkpoint, in the order of their names.
    pub(crate) fn new(at_rest: AtRest, checkpoint: Option<Arc<Checkpoint>>) -> Self {
        let rooms = Rooms {
            at_rest,
            loaded: BTreeMap::new(),
            born: 0,
            unborn: HashMap::new(),
            unborn_sweep: LOADED_MIN,
            loaded_sweep: LOADED_MIN,
            checkpoint,
        };
        Self { rooms: RwLock::new(rooms) }
    }

    /// A room, loaded.
    pub(crate) fn room(&self, name: &str) -> Result<Arc<Room>, EngineError> {
        {
            let rooms = self.rooms.read();
            if let Some(known) = rooms.loaded.get(name) {
                return Ok(Arc::clone(&known.room));
            }
            // A room without records: what is at rest has none of its name.
            if let Some(room) = rooms.unborn.get(name).and_then(Weak::upgrade) {
                return Ok(room);
            }
        }
        loop {
            // Read before the catalog is locked: a room may remember many publishers.
            let stored = self.stored(name)?;
            let mut rooms = self.rooms.write();
            let Rooms { at_rest, loaded, unborn, unborn_sweep, checkpoint, .. } = &mut *rooms;
            if let Some(known) = loaded.get(name) {
                return Ok(Arc::clone(&known.room));
            }
            if let Some(index) = at_rest.find(name) {
                let Resting { id, facts, place, .. } = *at_rest.get_mut(index);
                let publishers = match (checkpoint.as_ref(), stored) {
                    (Some(checkpoint), Some(stored))
                        if stored.place == place && Arc::ptr_eq(&stored.checkpoint, checkpoint) =>
                    {
                        stored.publishers
                    }
                    // There is a newer checkpoint.
                    _ => continue,
                };
                let name = RoomName::new(name).map_err(|error| EngineError::Io(error.to_string()))?;
                let room = Arc::new(Room::new(name.clone()));
                room.with_state(|state| (state.id, state.facts) = (Some(id), facts));
                {
                    let mut log = room.log.lock();
                    (log.id, log.facts, log.publishers) = (Some(id), facts, publishers);
                }
                loaded.insert(name, InUse { id, room: Arc::clone(&room), index: Some(index) });
                return Ok(room);
            }
            if let Some(room) = unborn.get(name).and_then(Weak::upgrade) {
                return Ok(room);
            }
            if unborn.len() >= *unborn_sweep {
                unborn.retain(|_, room| room.strong_count() > 0);
                *unborn_sweep = (unborn.len() * 2).max(LOADED_MIN);
            }
            let name = RoomName::new(name).map_err(|error| EngineError::Io(error.to_string()))?;
            let room = Arc::new(Room::new(name.clone()));
            unborn.insert(name, Arc::downgrade(&room));
            return Ok(room);
        }
    }

    /// What the checkpoint holds of the publishers of a room that is not loaded.
    fn stored(&self, name: &str) -> Result<Option<Stored>, EngineError> {
        let (place, checkpoint) = {
            let rooms = self.rooms.read();
            match (rooms.resting(name), &rooms.checkpoint) {
                (Some(resting), Some(checkpoint)) => (resting.place, Arc::clone(checkpoint)),
                _ => return Ok(None),
            }
        };
        let publishers = checkpoint.publishers(place)?;
        Ok(Some(Stored { place, checkpoint, publishers }))
    }

    /// A room has its first record.
    pub(crate) fn born(&self, room: &Arc<Room>, id: RoomId) {
        let mut rooms = self.rooms.write();
        rooms.unborn.remove(room.name());
        let index = rooms.at_rest.find(room.name().as_str());
        let known = InUse { id, room: Arc::clone(room), index };
        if rooms.loaded.insert(room.name().clone(), known).is_none() && index.is_none() {
            rooms.born += 1;
        }
    }

    /// There is a new checkpoint, and this is what it holds, in the order of names: all rooms that were at rest, too.
    pub(crate) fn checkpointed(&self, checkpoint: Arc<Checkpoint>, mut at_rest: AtRest) {
        let mut guard = self.rooms.write();
        let rooms = &mut *guard;
        let (mut index, mut born) = (0, 0);
        for (name, known) in &mut rooms.loaded {
            index = at_rest.at_or_behind(index, name.as_str());
            let is_there = at_rest.get(index).is_some_and(|(resting, _)| resting == name.as_str());
            known.index = is_there.then_some(index);
            born += usize::from(!is_there);
        }
        std::mem::swap(&mut rooms.at_rest, &mut at_rest);
        (rooms.born, rooms.checkpoint) = (born, Some(checkpoint));
        drop(guard);
        // The old ones, of which there may be very many, when nobody waits for the catalog.
        drop(at_rest);
    }

    /// The name of a room at rest, by its index.
    pub(crate) fn resting_name(&self, index: usize) -> RoomName {
        owned(self.rooms.read().at_rest.name(index))
    }

    /// The checkpoint that the places of rooms at rest point into.
    pub(crate) fn checkpoint(&self) -> Option<Arc<Checkpoint>> {
        self.rooms.read().checkpoint.clone()
    }

    /// Lets go of rooms that nobody holds and of which the checkpoint and the volumes have everything.
    pub(crate) fn unload(&self) -> usize {
        let (mut last, mut unloaded): (Option<RoomName>, _) = (None, 0);
        loop {
            let mut guard = self.rooms.write();
            let rooms = &mut *guard;
            let from = behind(last.as_ref().map(RoomName::as_str));
            let (mut seen, mut gone) = (0, Vec::new());
            let mut next = None;
            for (name, known) in rooms.loaded.range::<str, _>((from, Bound::Unbounded)).take(WALK_ROOMS) {
                (seen, next) = (seen + 1, Some(name));
                // Nobody can take a new handle while the catalog is locked.
                if let Some(index) = known.index
                    && Arc::strong_count(&known.room) == 1
                    && known.room.is_at_rest()
                {
                    rooms.at_rest.get_mut(index).facts = known.room.facts();
                    gone.push(name.clone());
                }
            }
            last = next.cloned();
            for name in &gone {
                rooms.loaded.remove(name);
            }
            unloaded += gone.len();
            if seen < WALK_ROOMS {
                rooms.loaded_sweep = (rooms.loaded.len() * 2).max(LOADED_MIN);
                return unloaded;
            }
        }
    }

    /// Lets go of rooms if there have become many: they are loaded for a look too, and a volume may be long in coming.
    pub(crate) fn unload_if_many(&self) {
        let many = {
            let rooms = self.rooms.read();
            rooms.loaded.len() > rooms.loaded_sweep
        };
        if many {
            self.unload();
        }
    }

    pub(crate) fn facts(&self, name: &str) -> Option<Facts> {
        let rooms = self.rooms.read();
        match rooms.loaded.get(name) {
            Some(known) => Some(known.room.facts()),
            None => rooms.resting(name).map(|resting| resting.facts),
        }
    }

    pub(crate) fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<(RoomName, Facts)> {
        let rooms = self.rooms.read();
        let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let matching = rooms.walk(from).take_while(|(name, ..)| name.starts_with(prefix));
        matching.take(limit).map(|(name, _, known)| (owned(name), known.facts())).collect()
    }

    /// Rooms known and rooms loaded.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let rooms = self.rooms.read();
        (rooms.at_rest.len() + rooms.born, rooms.loaded.len())
    }

    /// The rooms that are loaded, in the order of their numbers.
    pub(crate) fn loaded_by_id(&self) -> Vec<(RoomId, Arc<Room>)> {
        let rooms = self.rooms.read();
        let mut list: Vec<_> = rooms.loaded.values().map(|known| (known.id, Arc::clone(&known.room))).collect();
        list.sort_unstable_by_key(|(id, _)| *id);
        list
    }

    /// The floors that have risen, by the number of the room.
    pub(crate) fn floors(&self) -> HashMap<u64, Offset> {
        let mut floors = HashMap::new();
        self.walk(|_, id, known| {
            let floor = known.facts().floor;
            if floor > Offset::ZERO {
                floors.insert(id.0, floor);
            }
            true
        });
        floors
    }

    /// The first rooms whose facts satisfy a test, `limit` at most, without loading them.
    pub(crate) fn filter(&self, limit: usize, mut test: impl FnMut(&str, &Facts) -> bool) -> Vec<RoomName> {
        let mut found = Vec::new();
        self.walk(|name, _, known| {
            if found.len() < limit && test(name, &known.facts()) {
                found.push(owned(name));
            }
            found.len() < limit
        });
        found
    }

    /// Looks at all rooms in the order of their names, a few at a time, as long as `look` wants more: who waits for the
    /// catalog meanwhile, the committer among them, gets it in between. Rooms that come into being meanwhile may be
    /// missing.
    fn walk(&self, mut look: impl FnMut(&str, RoomId, Known<'_>) -> bool) {
        let mut last: Option<String> = None;
        loop {
            let rooms = self.rooms.read();
            let (mut seen, mut next) = (0, None);
            for (name, id, known) in rooms.walk(behind(last.as_deref())).take(WALK_ROOMS) {
                if !look(name, id, known) {
                    return;
                }
                (seen, next) = (seen + 1, Some(name));
            }
            if seen < WALK_ROOMS {
                return;
            }
            last = next.map(str::to_owned);
        }
    }

    /// As [`walk`](Self::walk) for all rooms, but `look` may take its time: the catalog is not held meanwhile.
    pub(crate) fn each<E>(&self, mut look: impl FnMut(&str, RoomId, Known<'_>) -> Result<(), E>) -> Result<(), E> {
        enum Seen {
            Loaded(Arc<Room>),
            AtRest(Facts, Place),
        }
        let (mut names, mut some) = (String::new(), Vec::with_capacity(WALK_ROOMS));
        let mut last: Option<String> = None;
        loop {
            {
                let rooms = self.rooms.read();
                for (name, id, known) in rooms.walk(behind(last.as_deref())).take(WALK_ROOMS) {
                    names.push_str(name);
                    let seen = match known {
                        Known::Loaded(room) => Seen::Loaded(Arc::clone(room)),
                        Known::AtRest(facts, place) => Seen::AtRest(*facts, place),
                    };
                    some.push((name.len(), id, seen));
                }
            }
            let (mut rest, mut name) = (&names[..], "");
            for (bytes, id, seen) in &some {
                (name, rest) = rest.split_at(*bytes);
                match seen {
                    Seen::Loaded(room) => look(name, *id, Known::Loaded(room))?,
                    Seen::AtRest(facts, place) => look(name, *id, Known::AtRest(facts, *place))?,
                }
            }
            if some.len() < WALK_ROOMS {
                return Ok(());
            }
            last = Some(name.to_owned());
            names.clear();
            some.clear();
        }
    }
}

fn owned(name: &str) -> RoomName {
    RoomName::new(name).expect("a room has it")
}

#[cfg(test)]
mod tests;
