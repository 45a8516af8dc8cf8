//! What was asked, answered and read, by everybody; and what must be true of it.
//!
//! - What was acknowledged is stored, at the offset that was told, behind the head that was expected.
//! - What was delivered is stored; an offset means one record, to all readers, at all times.
//! - No record is stored twice, and none that was refused or that nobody has published.
//! - Records of one publisher in one room are stored in the order in which it published them.
//! - Each reader gets the record behind the last one it got, or is told of a gap where there may be one: offsets are a
//!   fixed stride apart here, so that it is known which one that is.

use std::collections::{BTreeMap, HashMap};

use crate::client::{Batch, Joined};
use crate::types::RoomName;

#[derive(Default)]
pub(super) struct History {
    stride: u64,
    rooms: BTreeMap<RoomName, Room>,
}

#[derive(Default)]
struct Room {
    records: BTreeMap<u64, Vec<u8>>,
    places: HashMap<Vec<u8>, u64>,
    invented: HashMap<Vec<u8>, Fate>,
    /// What each publisher has published here, in order.
    orders: BTreeMap<String, Vec<Vec<u8>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Unknown,
    Acknowledged,
    Refused,
}

/// The part of a payload that tells what it is.
pub(super) fn name(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == b'|').unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

impl History {
    pub(super) fn new(stride: u64) -> Self {
        Self { stride, ..Self::default() }
    }

    /// Somebody is about to publish a record.
    pub(super) fn invented(&mut self, room: &RoomName, by: &str, payload: &[u8]) {
        let room = self.rooms.entry(room.clone()).or_default();
        room.invented.insert(payload.to_vec(), Fate::Unknown);
        room.orders.entry(by.to_owned()).or_default().push(payload.to_vec());
    }

    pub(super) fn acknowledged(
        &mut self,
        room: &RoomName,
        payloads: &[Vec<u8>],
        (first, last): (u64, u64),
        expect: Option<u64>,
    ) {
        let stride = self.stride;
        assert_eq!(last, first + stride * (payloads.len() as u64 - 1), "{room:?}: the records are not contiguous");
        if let Some(expect) = expect {
            assert_eq!(first, expect + stride, "{room:?}: stored behind another head than was expected");
        }
        for (index, payload) in payloads.iter().enumerate() {
            self.saw(room, first + stride * index as u64, payload, "an acknowledgement");
            let fate = self.rooms.get_mut(room).and_then(|room| room.invented.get_mut(payload));
            *fate.expect("seen just now") = Fate::Acknowledged;
        }
    }

    pub(super) fn refused(&mut self, room: &RoomName, payloads: &[Vec<u8>]) {
        let known = self.rooms.get_mut(room).expect("a room that was published to");
        for payload in payloads {
            let fate = known.invented.get_mut(payload).expect("it was published");
            assert_ne!(*fate, Fate::Acknowledged, "{room:?}: {} is refused and acknowledged", name(payload));
            *fate = Fate::Refused;
        }
    }

    /// Somebody knows that a record has this offset.
    pub(super) fn saw(&mut self, room: &RoomName, offset: u64, payload: &[u8], by: &str) {
        let known = self.rooms.entry(room.clone()).or_default();
        assert!(known.invented.contains_key(payload), "{room:?}, {by}: nobody has published {}", name(payload));
        if let Some(other) = known.records.get(&offset) {
            assert!(
                other == payload,
                "{room:?}, {by}: offset {offset} is {}, and was {} before",
                name(payload),
                name(other)
            );
            return;
        }
        if let Some(other) = known.places.get(payload) {
            panic!("{room:?}, {by}: {} is stored at {other} and at {offset}", name(payload));
        }
        known.records.insert(offset, payload.to_vec());
        known.places.insert(payload.to_vec(), offset);
    }

    /// The newest offset that anybody knows of.
    pub(super) fn head(&self, room: &RoomName) -> u64 {
        self.rooms.get(room).and_then(|room| room.records.last_key_value()).map_or(0, |(offset, _)| *offset)
    }

    pub(super) fn records(&self) -> usize {
        self.rooms.values().map(|room| room.records.len()).sum()
    }

    /// All that is stored in the end.
    pub(super) fn stored(&mut self, room: &RoomName, floor: u64, stored: &[(u64, u64, Vec<u8>)]) {
        let mut at = floor;
        for (offset, prev, payload) in stored {
            assert_eq!((*offset, *prev), (at + self.stride, at), "{room:?}: the chain of what is stored is broken");
            at = *offset;
            self.saw(room, *offset, payload, "what is stored");
        }
        let Some(known) = self.rooms.get(room) else { return };
        for (offset, payload) in known.records.range(floor + 1..) {
            assert!(
                *offset <= at,
                "{room:?}: {} was acknowledged or delivered at {offset}, and is not stored; the head is {at}",
                name(payload)
            );
        }
        for (payload, fate) in &known.invented {
            let place = known.places.get(payload);
            assert!(!(*fate == Fate::Refused && place.is_some()), "{room:?}: {} was refused", name(payload));
        }
        for (by, payloads) in &known.orders {
            let mut last = 0;
            for payload in payloads {
                let Some(place) = known.places.get(payload) else { continue };
                assert!(*place > last, "{room:?}: {} of {by} is stored before one that it follows", name(payload));
                last = *place;
            }
        }
    }
}

/// One reader of one room, through all its subscriptions.
pub(super) struct Chain {
    pub(super) room: RoomName,
    pub(super) who: String,
    /// The last offset it knows of; `None` before it has joined.
    pub(super) at: Option<u64>,
    /// Whether retention may overtake it.
    pub(super) may_miss: bool,
}

impl Chain {
    pub(super) fn joined(&mut self, joined: &Joined) {
        let start = joined.start.0;
        match self.at {
            Some(at) => assert_eq!(start, at, "{:?}, {}: it goes on somewhere else", self.room, self.who),
            None => self.at = Some(start),
        }
        assert!(start <= joined.head.0, "{:?}, {}: it begins behind the head", self.room, self.who);
    }

    pub(super) fn batch(&mut self, history: &mut History, batch: &Batch) {
        for record in batch.records() {
            let at = self.at.expect("it has joined");
            assert_eq!(
                (record.prev.0, record.offset.0),
                (at, at + history.stride),
                "{:?}, {}: behind {at} comes {}",
                self.room,
                self.who,
                name(record.content.payload)
            );
            history.saw(&self.room, record.offset.0, record.content.payload, &self.who);
            self.at = Some(record.offset.0);
        }
    }

    pub(super) fn gap(&mut self, from: u64, to: u64) {
        assert!(self.may_miss, "{:?}, {}: a gap from {from} to {to}, where nothing goes", self.room, self.who);
        let at = self.at.expect("it has joined");
        assert!(from == at && to > from, "{:?}, {}: a gap from {from} to {to} behind {at}", self.room, self.who);
        self.at = Some(to);
    }
}

/// A page has no holes.
pub(super) fn page(history: &mut History, room: &RoomName, who: &str, batches: &[Batch]) {
    let mut at = None;
    for record in batches.iter().flat_map(Batch::records) {
        let (prev, offset) = (record.prev.0, record.offset.0);
        assert_eq!(prev + history.stride, offset, "{room:?}, a page of {who}: {offset} says {prev}");
        assert!(at.is_none_or(|at| at == prev), "{room:?}, a page of {who}: behind {at:?} comes {offset}");
        at = Some(offset);
        history.saw(room, offset, record.content.payload, who);
    }
}

mod tests {
    use super::*;

    fn found(what: &str, story: impl FnOnce(&mut History) + std::panic::UnwindSafe) {
        let room = RoomName::new("a room").expect("a name");
        let mut history = History::new(1);
        for payload in [b"a", b"b", b"c"] {
            history.invented(&room, "one", payload);
        }
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story(&mut history)));
        assert!(found.is_err(), "{what} is not found");
    }

    fn room() -> RoomName {
        RoomName::new("a room").expect("a name")
    }

    fn stored(records: &[(u64, u64, &[u8])]) -> Vec<(u64, u64, Vec<u8>)> {
        records.iter().map(|(offset, prev, payload)| (*offset, *prev, payload.to_vec())).collect()
    }

    #[test]
    fn a_good_history_is_good() {
        let mut history = History::new(1);
        for payload in [b"a", b"b", b"c"] {
            history.invented(&room(), "one", payload);
        }
        history.acknowledged(&room(), &[b"a".to_vec()], (1, 1), Some(0));
        history.refused(&room(), &[b"c".to_vec()]);
        history.saw(&room(), 2, b"b", "a reader");
        history.stored(&room(), 0, &stored(&[(1, 0, b"a"), (2, 1, b"b")]));
        assert_eq!(history.head(&room()), 2);
    }

    #[test]
    fn every_breach_of_a_promise_is_found() {
        found("an acknowledged record that is not stored", |history| {
            history.acknowledged(&room(), &[b"a".to_vec()], (1, 1), None);
            history.stored(&room(), 0, &[]);
        });
        found("an acknowledged record at another offset", |history| {
            history.acknowledged(&room(), &[b"b".to_vec()], (1, 1), None);
            history.stored(&room(), 0, &stored(&[(1, 0, b"a"), (2, 1, b"b")]));
        });
        found("a record that is stored twice", |history| {
            history.stored(&room(), 0, &stored(&[(1, 0, b"a"), (2, 1, b"a")]));
        });
        found("a hole", |history| history.stored(&room(), 0, &stored(&[(1, 0, b"a"), (3, 1, b"b")])));
        found("an order that is none", |history| {
            history.stored(&room(), 0, &stored(&[(1, 0, b"b"), (2, 1, b"a")]));
        });
        found("a refused record that is stored", |history| {
            history.refused(&room(), &[b"a".to_vec()]);
            history.stored(&room(), 0, &stored(&[(1, 0, b"a")]));
        });
        found("a record of nobody", |history| history.saw(&room(), 1, b"x", "a reader"));
        found("an offset with two meanings", |history| {
            history.saw(&room(), 1, b"a", "a reader");
            history.saw(&room(), 1, b"b", "another");
        });
        found("a delivered record that is lost", |history| {
            history.saw(&room(), 2, b"b", "a reader");
            history.stored(&room(), 0, &stored(&[(1, 0, b"a")]));
        });
        found("an append behind another head", |history| {
            history.acknowledged(&room(), &[b"a".to_vec()], (2, 2), Some(0));
        });
        let chain = |at| Chain { room: room(), who: "a reader".to_owned(), at: Some(at), may_miss: false };
        found("a gap where there is none", |_| chain(1).gap(1, 2));
        found("a reader that goes on somewhere else", |_| {
            let (first, head, start) = (crate::types::Offset(1), crate::types::Offset(9), crate::types::Offset(3));
            chain(2).joined(&Joined { epoch: crate::types::Epoch(1), first, head, start });
        });
    }
}
