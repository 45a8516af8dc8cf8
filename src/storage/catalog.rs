//! All rooms that have or had records, by name, and those that somebody has asked for but that have none yet.
//!
//! A room at rest is an entry of a map: its name, its number, what is known of it, and where the checkpoint holds
//! what it remembers of its publishers. Only a room in use has a [`Room`].

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

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
    known: BTreeMap<RoomName, Known>,
    /// Rooms without records, as long as somebody holds them.
    unborn: HashMap<RoomName, Weak<Room>>,
    /// How large `unborn` may grow before the dead are looked for.
    unborn_sweep: usize,
    loaded: usize,
    /// How many may be loaded before those at rest are looked for.
    loaded_sweep: usize,
    checkpoint: Option<Arc<Checkpoint>>,
}

/// What a checkpoint holds of a room's publishers.
struct Stored {
    place: Place,
    checkpoint: Arc<Checkpoint>,
    publishers: Publishers,
}

/// A room that has or had records.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) id: RoomId,
    /// What is known of it, unless it is loaded: then its own facts count.
    facts: Facts,
    /// Where the checkpoint holds its publishers.
    place: Option<Place>,
    room: Option<Arc<Room>>,
}

impl Known {
    fn facts(&self) -> Facts {
        self.room.as_ref().map_or(self.facts, |room| room.facts())
    }
}

impl Catalog {
    pub(crate) fn new() -> Self {
        let rooms = Rooms {
            known: BTreeMap::new(),
            unborn: HashMap::new(),
            unborn_sweep: LOADED_MIN,
            loaded: 0,
            loaded_sweep: LOADED_MIN,
            checkpoint: None,
        };
        Self { rooms: RwLock::new(rooms) }
    }

    /// A room, loaded.
    pub(crate) fn room(&self, name: &str) -> Result<Arc<Room>, EngineError> {
        {
            let rooms = self.rooms.read();
            if let Some(known) = rooms.known.get(name) {
                if let Some(room) = &known.room {
                    return Ok(Arc::clone(room));
                }
            } else if let Some(room) = rooms.unborn.get(name).and_then(Weak::upgrade) {
                return Ok(room);
            }
        }
        loop {
            // Read before the catalog is locked: a room may remember many publishers.
            let stored = self.stored(name)?;
            let mut rooms = self.rooms.write();
            let Rooms { known, unborn, unborn_sweep, loaded, checkpoint, .. } = &mut *rooms;
            if let Some((name, _)) = known.get_key_value(name) {
                let name = name.clone();
                let known = known.get_mut(&name).expect("it was found just now");
                if let Some(room) = &known.room {
                    return Ok(Arc::clone(room));
                }
                let publishers = match (known.place, checkpoint.as_ref(), stored) {
                    (Some(place), Some(checkpoint), stored) => match stored {
                        Some(stored) if stored.place == place && Arc::ptr_eq(&stored.checkpoint, checkpoint) => {
                            stored.publishers
                        }
                        // There is a newer checkpoint.
                        _ => continue,
                    },
                    _ => Publishers::default(),
                };
                let room = Arc::new(Room::new(name));
                room.with_state(|state| (state.id, state.facts) = (Some(known.id), known.facts));
                {
                    let mut log = room.log.lock();
                    (log.id, log.facts, log.publishers) = (Some(known.id), known.facts, publishers);
                }
                known.room = Some(Arc::clone(&room));
                *loaded += 1;
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
            let place = rooms.known.get(name).filter(|known| known.room.is_none()).and_then(|known| known.place);
            match (place, &rooms.checkpoint) {
                (Some(place), Some(checkpoint)) => (place, Arc::clone(checkpoint)),
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
        let known = Known { id, facts: Facts::default(), place: None, room: Some(Arc::clone(room)) };
        if rooms.known.insert(room.name().clone(), known).is_none_or(|old| old.room.is_none()) {
            rooms.loaded += 1;
        }
    }

    /// A room as the checkpoint tells of it.
    pub(crate) fn restore(&self, name: RoomName, id: RoomId, facts: Facts, place: Place) {
        self.rooms.write().known.insert(name, Known { id, facts, place: Some(place), room: None });
    }

    /// The checkpoint that the places of rooms point into, and where each room's new place is.
    pub(crate) fn checkpointed(&self, checkpoint: Arc<Checkpoint>, places: &HashMap<RoomId, Place>) {
        let mut rooms = self.rooms.write();
        for known in rooms.known.values_mut() {
            known.place = places.get(&known.id).copied();
        }
        rooms.checkpoint = Some(checkpoint);
    }

    pub(crate) fn set_checkpoint(&self, checkpoint: Arc<Checkpoint>) {
        self.rooms.write().checkpoint = Some(checkpoint);
    }

    /// Lets go of rooms that nobody holds and of which the checkpoint and the volumes have everything.
    pub(crate) fn unload(&self) -> usize {
        let (mut behind, mut unloaded): (Option<RoomName>, _) = (None, 0);
        loop {
            let mut rooms = self.rooms.write();
            let from = behind.as_ref().map_or(Bound::Unbounded, |name| Bound::Excluded(name.as_str()));
            let (mut seen, mut last, mut gone) = (0, None, 0);
            for (name, known) in rooms.known.range_mut::<str, _>((from, Bound::Unbounded)).take(WALK_ROOMS) {
                (seen, last) = (seen + 1, Some(name));
                // Nobody can take a new handle while the catalog is locked.
                if let Some(room) = known.room.take_if(|room| Arc::strong_count(room) == 1 && room.is_at_rest()) {
                    known.facts = room.facts();
                    gone += 1;
                }
            }
            behind = last.cloned();
            rooms.loaded -= gone;
            unloaded += gone;
            if seen < WALK_ROOMS {
                rooms.loaded_sweep = (rooms.loaded * 2).max(LOADED_MIN);
                return unloaded;
            }
        }
    }

    /// Lets go of rooms if there have become many: they are loaded for a look too, and a volume may be long in coming.
    pub(crate) fn unload_if_many(&self) {
        let many = {
            let rooms = self.rooms.read();
            rooms.loaded > rooms.loaded_sweep
        };
        if many {
            self.unload();
        }
    }

    pub(crate) fn facts(&self, name: &str) -> Option<Facts> {
        self.rooms.read().known.get(name).map(Known::facts)
    }

    pub(crate) fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<(RoomName, Facts)> {
        let rooms = self.rooms.read();
        let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let matching = rooms.known.range::<str, _>((from, Bound::Unbounded));
        let matching = matching.take_while(|(name, _)| name.as_str().starts_with(prefix));
        matching.take(limit).map(|(name, known)| (name.clone(), known.facts())).collect()
    }

    /// Rooms known and rooms loaded.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let rooms = self.rooms.read();
        (rooms.known.len(), rooms.loaded)
    }

    /// All rooms in the order of their numbers.
    pub(crate) fn by_id(&self) -> Vec<(RoomId, RoomName)> {
        let rooms = self.rooms.read();
        let mut list: Vec<_> = rooms.known.iter().map(|(name, known)| (known.id, name.clone())).collect();
        list.sort_unstable_by_key(|(id, _)| *id);
        list
    }

    /// The floors that have risen, by the number of the room.
    pub(crate) fn floors(&self) -> HashMap<u64, Offset> {
        let mut floors = HashMap::new();
        self.walk(|_, known| {
            let floor = known.facts().floor;
            if floor > Offset::ZERO {
                floors.insert(known.id.0, floor);
            }
            true
        });
        floors
    }

    /// The room if it is loaded, else what the checkpoint holds of it.
    pub(crate) fn entry(&self, name: &RoomName) -> Option<Loaded> {
        let rooms = self.rooms.read();
        let known = rooms.known.get(name)?;
        Some(match (&known.room, known.place, &rooms.checkpoint) {
            (Some(room), ..) => Loaded::Yes(Arc::clone(room)),
            (None, Some(place), Some(checkpoint)) => Loaded::No(known.facts, place, Arc::clone(checkpoint)),
            (None, ..) => Loaded::Bare(known.facts),
        })
    }

    /// The room, if it is loaded.
    pub(crate) fn loaded(&self, name: &RoomName) -> Option<Arc<Room>> {
        self.rooms.read().known.get(name).and_then(|known| known.room.clone())
    }

    /// The first rooms whose facts satisfy a test, `limit` at most, without loading them.
    pub(crate) fn filter(&self, limit: usize, mut test: impl FnMut(&RoomName, &Facts) -> bool) -> Vec<RoomName> {
        let mut found = Vec::new();
        self.walk(|name, known| {
            if found.len() < limit && test(name, &known.facts()) {
                found.push(name.clone());
            }
            found.len() < limit
        });
        found
    }

    /// Looks at all rooms, a few at a time, as long as `look` wants more: who waits for the catalog meanwhile, the
    /// committer among them, gets it in between. Rooms that come into being meanwhile may be missing.
    fn walk(&self, mut look: impl FnMut(&RoomName, &Known) -> bool) {
        let mut behind: Option<RoomName> = None;
        loop {
            let rooms = self.rooms.read();
            let from = behind.as_ref().map_or(Bound::Unbounded, |name| Bound::Excluded(name.as_str()));
            let (mut seen, mut last) = (0, None);
            for (name, known) in rooms.known.range::<str, _>((from, Bound::Unbounded)).take(WALK_ROOMS) {
                if !look(name, known) {
                    return;
                }
                (seen, last) = (seen + 1, Some(name));
            }
            if seen < WALK_ROOMS {
                return;
            }
            behind = last.cloned();
        }
    }
}

/// A room of the catalog, for the checkpoint.
pub(crate) enum Loaded {
    Yes(Arc<Room>),
    No(Facts, Place, Arc<Checkpoint>),
    Bare(Facts),
}
