//! Rooms at rest, in the order of their names: two allocations, however many they are.
//!
//! A log may have very many rooms that nobody uses. A name and an entry of a map for each, allocated between what rooms
//! in use need for a moment, would keep that memory from being given back, too.

use crate::storage::checkpoint::Place;
use crate::storage::room::{Facts, RoomId};

/// The rooms that a checkpoint holds.
#[derive(Debug, Default)]
pub(crate) struct AtRest {
    /// One name behind the other.
    names: String,
    rooms: Vec<Resting>,
}

/// What is known of a room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resting {
    pub(super) id: RoomId,
    pub(super) facts: Facts,
    /// Where the checkpoint holds its publishers.
    pub(super) place: Place,
    name_at: usize,
    name_bytes: u8,
}

impl AtRest {
    /// Room for so many without growing.
    pub(crate) fn with_capacity(rooms: usize) -> Self {
        Self { names: String::new(), rooms: Vec::with_capacity(rooms) }
    }

    /// Adds a room. Those of a checkpoint of today come in the order of their names; else [`AtRest::sort`] has to follow.
    pub(crate) fn push(&mut self, name: &str, id: RoomId, facts: Facts, place: Place) {
        let name_bytes = u8::try_from(name.len()).expect("a name has at most 255 bytes");
        self.rooms.push(Resting { id, facts, place, name_at: self.names.len(), name_bytes });
        self.names.push_str(name);
    }

    /// Puts the rooms into the order of their names, and gives back what is not needed.
    pub(crate) fn sort(&mut self) {
        if !self.rooms.is_sorted_by(|one, next| name_in(&self.names, one) < name_in(&self.names, next)) {
            let names = &self.names;
            self.rooms.sort_unstable_by(|one, other| name_in(names, one).cmp(name_in(names, other)));
        }
        self.names.shrink_to_fit();
        self.rooms.shrink_to_fit();
    }

    pub(super) fn len(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn name(&self, index: usize) -> &str {
        name_in(&self.names, &self.rooms[index])
    }

    pub(super) fn get(&self, index: usize) -> Option<(&str, &Resting)> {
        let room = self.rooms.get(index)?;
        Some((name_in(&self.names, room), room))
    }

    pub(super) fn get_mut(&mut self, index: usize) -> &mut Resting {
        &mut self.rooms[index]
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.rooms.binary_search_by(|room| name_in(&self.names, room).cmp(name)).ok()
    }

    /// The first room whose name is not before this one, looked for from `from` on: near it in few steps.
    pub(super) fn at_or_behind(&self, from: usize, name: &str) -> usize {
        let (mut low, mut step) = (from, 1);
        while low + step < self.rooms.len() && self.name(low + step) < name {
            low += step;
            step *= 2;
        }
        let high = (low + step + 1).min(self.rooms.len());
        low + self.rooms[low..high].partition_point(|room| name_in(&self.names, room) < name)
    }

    /// The numbers of all rooms, each with the room's index, in rising order.
    pub(crate) fn ids(&self) -> Vec<(RoomId, usize)> {
        let mut ids: Vec<_> = self.rooms.iter().enumerate().map(|(index, room)| (room.id, index)).collect();
        ids.sort_unstable_by_key(|(id, _)| *id);
        ids
    }
}

fn name_in<'a>(names: &'a str, room: &Resting) -> &'a str {
    &names[room.name_at..room.name_at + usize::from(room.name_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_rest(names: &[&str]) -> AtRest {
        let mut at_rest = AtRest::with_capacity(names.len());
        for (id, name) in (1..).zip(names) {
            at_rest.push(name, RoomId(id), Facts::default(), Place::default());
        }
        at_rest.sort();
        at_rest
    }

    #[test]
    fn rooms_are_found_by_name_in_whatever_order_they_came() {
        let long = "x".repeat(255);
        for names in [&["b", "a", "ab", "é", &long, "c"], &["a", "ab", "b", "c", &long, "é"]] {
            let at_rest = at_rest(names);
            for (id, name) in (1..).zip(names) {
                let index = at_rest.find(name).expect("it is there");
                let (found, room) = at_rest.get(index).expect("it is there");
                assert_eq!((found, room.id), (*name, RoomId(id)));
            }
            assert_eq!(at_rest.find("aa"), None);
            assert_eq!(at_rest.ids().iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn the_next_name_is_found_from_any_place_before_it() {
        let names: Vec<_> = (0..500).map(|number| format!("{:04}", number * 2)).collect();
        let at_rest = at_rest(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for number in 0..1002 {
            let expected = usize::div_ceil(number, 2).min(500);
            for from in (0..=expected).step_by(7) {
                assert_eq!(at_rest.at_or_behind(from, &format!("{number:04}")), expected, "{number} from {from}");
            }
        }
        assert_eq!(AtRest::default().at_or_behind(0, "a"), 0);
    }
}
