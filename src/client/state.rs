//! What a client tells of itself, and what it gives back.

use bytes::Bytes;
use tokio::time::Instant;

use super::Error;
use crate::protocol;
use crate::types::{Epoch, GapReason, Offset, Position, PublisherId, Record, RoomName, SessionId, Time};

/// What a client's connection is doing.
#[derive(Clone, PartialEq, Debug)]
pub enum State {
    /// A connection is being made.
    Connecting {
        /// How many attempts have failed since a connection last held.
        attempt: u32,
    },
    /// The broker has welcomed us.
    Connected {
        /// The session, for logs.
        session: SessionId,
    },
    /// The next attempt is yet to come.
    Waiting {
        /// How many attempts have failed since a connection last held.
        attempt: u32,
        /// When the next one begins.
        until: Instant,
        /// What ended the last one.
        why: Error,
    },
    /// No attempt will follow.
    Closed {
        /// What closed the client; nothing if the application did.
        why: Option<Error>,
    },
}

/// What is published and not acknowledged yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending {
    /// Publishes.
    pub publishes: usize,
    /// Records in them.
    pub records: usize,
    /// Their encoded records, in bytes.
    pub bytes: usize,
}

/// An acknowledgement: the records are as durable as the broker promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// The first record's offset.
    pub first: Offset,
    /// The last record's offset.
    pub last: Offset,
    /// When they were committed.
    pub time: Time,
    /// Whether an earlier attempt had stored them already; the offsets are those of that time.
    pub duplicate: bool,
    /// The identity under which they are stored.
    pub publisher: PublisherId,
    /// The first record's number in that queue and room.
    pub seq: u64,
}

/// Consecutive records of one room, checked on arrival; cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    pub(crate) room: RoomName,
    pub(crate) epoch: Epoch,
    pub(crate) from: Offset,
    pub(crate) to: Offset,
    pub(crate) prev: Offset,
    pub(crate) body: Bytes,
}

impl Batch {
    /// Takes over a delivered body after checking all of it.
    pub(crate) fn take(
        room: &RoomName,
        epoch: Epoch,
        (from, to, prev): (Offset, Offset, Offset),
        body: &[u8],
    ) -> Result<Self, Error> {
        let batch = protocol::Batch::parse(body).map_err(Error::protocol)?;
        batch.check().map_err(Error::protocol)?;
        if from > to || prev >= from || from < batch.header.first || to > batch.header.last() {
            return Err(Error::protocol(format_args!("a delivery of {from}..={to} behind {prev}, not in its batch")));
        }
        // The copy lets go of the message that it came in, which may be many times as long.
        Ok(Self { room: room.clone(), epoch, from, to, prev, body: Bytes::copy_from_slice(body) })
    }

    /// The room.
    #[must_use]
    pub fn room(&self) -> &RoomName {
        &self.room
    }

    /// The incarnation that the offsets belong to.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The first record's offset.
    #[must_use]
    pub fn from(&self) -> Offset {
        self.from
    }

    /// The last record's offset.
    #[must_use]
    pub fn to(&self) -> Offset {
        self.to
    }

    /// The offset of the record before the first one.
    #[must_use]
    pub fn prev(&self) -> Offset {
        self.prev
    }

    /// The position to resume from once all of it is dealt with.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.to }
    }

    /// The encoded batch; it may hold records outside of `from..=to`, which are not meant.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let mut prev = self.prev;
        protocol::Batch::parse(&self.body)
            .expect("checked on arrival")
            .records(Offset::ZERO)
            .map(|record| record.expect("checked on arrival"))
            .filter(|record| record.offset >= self.from && record.offset <= self.to)
            .map(move |mut record| {
                record.prev = std::mem::replace(&mut prev, record.offset);
                record
            })
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({:?} {:?}..={:?} behind {:?})", self.room, self.from, self.to, self.prev)
    }
}

/// What a joined room was like when it was joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// The oldest retained offset; 0 if the room has no records.
    pub first: Offset,
    /// The newest offset; 0 if the room never had a record.
    pub head: Offset,
    /// What is delivered comes after this offset.
    pub start: Offset,
}

/// What a subscription brings, in order.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Records that follow those before.
    Batch(Batch),
    /// All that there was has been delivered; what follows is new. Comes again after each reconnection.
    Live {
        /// The last offset before.
        offset: Offset,
    },
    /// Records are not there any more.
    Gap {
        /// Nothing behind this offset …
        from: Offset,
        /// … and up to this one will come.
        to: Offset,
        /// Why.
        reason: GapReason,
    },
    /// The broker is reading for us from its store: we are behind.
    Lagging {
        /// The last offset before.
        offset: Offset,
    },
    /// We are back at the recent part.
    CaughtUp {
        /// The last offset before.
        offset: Offset,
    },
    /// The position means nothing any more: the broker's data directory was restored or lost.
    Void {
        /// [`Error::Void`] with the room's present state.
        why: Error,
        /// Whether the subscription begins again at the earliest record; otherwise it ends.
        restarts: bool,
    },
    /// The subscription has ended; nothing follows.
    Left {
        /// Why.
        why: Error,
    },
}

/// A page of a room's history.
#[derive(Clone, PartialEq, Debug)]
pub struct Page {
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// The oldest retained offset; 0 if the room has no records.
    pub first: Offset,
    /// The newest offset; 0 if the room never had a record.
    pub head: Offset,
    /// Whether more records lie in the direction that was asked for.
    pub more: bool,
    /// The records, ascending.
    pub batches: Vec<Batch>,
}

/// What is known of one room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoomSummary {
    /// Its name.
    pub room: RoomName,
    /// The oldest retained offset; 0 if it has no records.
    pub first: Offset,
    /// The newest offset; 0 if it never had a record.
    pub head: Offset,
    /// The newest record's time; 0 if it never had a record.
    pub time: Time,
    /// The newest record, as far as it is retained.
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
    /// The first bytes of its payload, at most 256.
    pub payload: Vec<u8>,
    /// The length of its whole payload, in bytes.
    pub payload_bytes: u32,
}

/// Rooms and their state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoomList {
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// Whether more rooms match than are listed.
    pub more: bool,
    /// The rooms.
    pub rooms: Vec<RoomSummary>,
}
