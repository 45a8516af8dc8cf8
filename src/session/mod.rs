//! What one connection may do next: hello first, then requests under limits. The state machine is sans-IO.
//!
//! [`Session`] turns a frame and the time into an [`Action`], or ends; it knows no socket, no broker and no clock.
//! [`Service`] carries the actions out on a broker, and [`Outbox`] keeps the answers until the transport has
//! room for them. Transports move bytes and decide nothing.

mod clocks;
mod end;
mod host;
mod outbox;
mod service;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use clocks::{Due, Life};
pub(crate) use end::End;
pub(crate) use host::Host;
pub(crate) use outbox::Outbox;
pub(crate) use service::{Reading, Service, Streams};

use clocks::Clocks;

use crate::broker::{PageAt, Part};
use crate::metrics::Operation;
use crate::protocol::{
    Batch, ClientFrame, Credit, HelloBody, History, HistoryAt, Join, JoinId, Leave, MAGIC, MembersWanted, Number,
    Publish, RecordArea, RequestId, Resume, Rooms, Summary, VERSION, Want,
};
use crate::storage::{Refused, record_hash};
use crate::types::{Code, Limits, Offset, PublisherId, RoomName, Start};

/// Bytes of a client's name in its hello.
const CLIENT_BYTES_MAX: usize = 255;

/// Rooms of one answer to a rooms request; more are told as `more`.
const ROOMS_MAX: usize = 1000;

/// What is to be done for a frame.
#[derive(Debug)]
pub(crate) enum Action<'a> {
    /// Answer the hello, after joining these rooms.
    Welcome {
        /// The rooms to go on with.
        resume: Vec<Resume<'a>>,
        /// The program that connects.
        client: &'a str,
    },
    /// Join a room.
    Join {
        request: RequestId,
        join: JoinId,
        room: RoomName,
        start: Start,
        credit: Option<u64>,
    },
    Credit(Credit),
    Leave(Leave),
    /// Append the records, whose hashes are in [`Session::hashes`].
    Publish {
        request: RequestId,
        /// A room's name that has not been checked yet: it is looked up among the rooms in use first.
        room: &'a str,
        publisher: PublisherId,
        seq: u64,
        expect: Option<Offset>,
        area: RecordArea<'a>,
    },
    History {
        request: RequestId,
        room: RoomName,
        at: PageAt,
        limit: u32,
    },
    Rooms {
        request: RequestId,
        prefix: &'a str,
        after: &'a str,
        limit: usize,
    },
    Summary {
        request: RequestId,
        rooms: Vec<RoomName>,
    },
    Pong {
        request: RequestId,
    },
    /// Answer with an error; the session goes on.
    Refuse {
        request: RequestId,
        why: Refused,
    },
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    limits: Arc<Limits>,
    open: bool,
    clocks: Clocks,
    hashes: Vec<u32>,
}

impl Session {
    /// A connection whose transport has finished its handshake now.
    pub(crate) fn new(limits: Arc<Limits>, life: Life, now: Instant) -> Self {
        Self { limits, open: false, clocks: Clocks::new(life, now), hashes: Vec::new() }
    }

    /// The limits it keeps.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the hello has come.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// The hashes of the records of the last [`Action::Publish`].
    pub(crate) fn hashes(&self) -> &[u32] {
        &self.hashes
    }

    /// Its clocks.
    pub(crate) fn clocks(&mut self) -> &mut Clocks {
        &mut self.clocks
    }

    /// What is due now.
    pub(crate) fn tick(&mut self, now: Instant) -> Due {
        self.clocks.tick(now, &self.limits)
    }

    /// When something will be due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.clocks.deadline(&self.limits)
    }

    /// What to do for a frame (without its length prefix). `in_flight` is how many requests have no answer yet.
    ///
    /// # Errors
    /// When the frame ends the session.
    pub(crate) fn frame<'a>(&mut self, frame: &'a [u8], in_flight: usize) -> Result<(Operation, Action<'a>), End> {
        if !self.open {
            return self.hello(frame).map(|action| (Operation::Hello, action));
        }
        let (operation, request, action) = match ClientFrame::parse(frame)? {
            ClientFrame::Hello(_) => return Err(End::BadFrame("a second hello".to_owned())),
            ClientFrame::Join(join) => (Operation::Join, join.request, Self::join(join)),
            ClientFrame::Credit(credit) => (Operation::Credit, credit.request, Ok(Action::Credit(credit))),
            ClientFrame::Leave(leave) => (Operation::Leave, leave.request, Ok(Action::Leave(leave))),
            ClientFrame::Publish(publish) => {
                let request = publish.request;
                (Operation::Publish, request, self.publish(publish)?)
            }
            ClientFrame::History(history) => (Operation::History, history.request, Self::history(history)),
            ClientFrame::Rooms(rooms) => (Operation::Rooms, rooms.request, Self::rooms(rooms)),
            ClientFrame::Summary(summary) => (Operation::Summary, summary.request, self.summary(summary)),
            ClientFrame::Ping(ping) => (Operation::Ping, ping.request, Ok(Action::Pong { request: ping.request })),
            ClientFrame::Unsupported(unsupported) => {
                let why = Refused::new(Code::NotSupported, format!("{:?} is not offered", unsupported.number));
                (Operation::Other, unsupported.request, Err(why))
            }
        };
        let waits = matches!(
            action,
            Ok(Action::Publish { .. } | Action::History { .. } | Action::Rooms { .. } | Action::Summary { .. })
        );
        let action = if waits && in_flight >= self.limits.requests_in_flight_max {
            let message = format!("{in_flight} requests are without an answer");
            Err(Refused::new(Code::Busy, message))
        } else {
            action
        };
        Ok((operation, action.unwrap_or_else(|why| Action::Refuse { request, why })))
    }

    fn hello<'a>(&mut self, frame: &'a [u8]) -> Result<Action<'a>, End> {
        // Any first byte but a hello's is a request, or what might be one, before the hello.
        if frame.first() != Some(&(Number::Hello as u8)) {
            return Err(End::HelloRequired);
        }
        let ClientFrame::Hello(hello) = ClientFrame::parse(frame)? else { return Err(End::HelloRequired) };
        debug_assert_eq!(hello.magic, MAGIC, "the codec has checked it");
        let (min, max) = (hello.version_min, hello.version_max);
        if min != VERSION || max < VERSION {
            // The body has the form of the lowest version, so a lower one than ours cannot be read either.
            return Err(End::BadVersion { min, max });
        }
        let body = HelloBody::parse(hello.body)?;
        if body.token.is_some() {
            return Err(End::Token);
        }
        if body.client.len() > CLIENT_BYTES_MAX {
            let message = format!("the client's name has {} bytes, at most {CLIENT_BYTES_MAX}", body.client.len());
            return Err(End::TooLarge(message));
        }
        let rooms_max = self.limits.rooms_per_session_max;
        if body.resume.len() > rooms_max {
            let message = format!("{} rooms to resume, a session has at most {rooms_max}", body.resume.len());
            return Err(End::TooLarge(message));
        }
        self.open = true;
        self.clocks.welcomed();
        Ok(Action::Welcome { resume: body.resume, client: body.client })
    }

    fn join<'a>(join: Join<'_>) -> Result<Action<'a>, Refused> {
        let Join { request, join, room, start, credit_bytes: credit, want } = join;
        offered(want)?;
        let room = room_name(room)?;
        let Some(start) = start.start() else {
            return Err(Refused::new(Code::NotSupported, "cursors are not offered"));
        };
        Ok(Action::Join { request, join, room, start, credit })
    }

    /// A publish: its frame is only known to be well formed when all of its records are.
    fn publish<'a>(&mut self, publish: Publish<'a>) -> Result<Result<Action<'a>, Refused>, End> {
        let Publish { request, room, publisher, seq, expect, count, records: area } = publish;
        let limits = &self.limits;
        let mut fault = None;
        if area.0.len() > limits.publish_bytes_max {
            fault = Some(format!("{} bytes of records, at most {}", area.0.len(), limits.publish_bytes_max));
        }
        self.hashes.clear();
        let mut rest = area;
        while let Some((bytes, behind)) = rest.split_first()? {
            let record = RecordArea::record(bytes)?;
            if fault.is_none() {
                fault = record.check(limits).err().map(|fault| fault.to_string());
            }
            self.hashes.push(record_hash(bytes));
            rest = behind;
        }
        let records = self.hashes.len();
        if records != count as usize {
            return Err(End::BadFrame(format!("a publish of {count} records holds {records}")));
        }
        if records > limits.publish_records_max {
            fault = Some(format!("{records} records, a publish has at most {}", limits.publish_records_max));
        }
        if let Some(message) = fault {
            return Ok(Err(Refused::new(Code::TooLarge, message)));
        }
        if records == 0 {
            return Ok(Err(Refused::new(Code::BadFrame, "a publish has at least 1 record")));
        }
        if seq == 0 || seq.checked_add(records as u64).is_none_or(|behind| behind > Offset::MAX.0) {
            return Ok(Err(Refused::new(Code::OutOfOrder, "a seq is at least 1 and below 2^53")));
        }
        Ok(Ok(Action::Publish { request, room, publisher, seq, expect, area }))
    }

    fn history<'a>(history: History<'_>) -> Result<Action<'a>, Refused> {
        let History { request, room, at, limit } = history;
        let room = room_name(room)?;
        if limit == 0 {
            return Err(Refused::new(Code::BadFrame, "a page has at least 1 record"));
        }
        let at = match at {
            HistoryAt::Before(position) => PageAt::Before(position),
            HistoryAt::After(position) => PageAt::After(position),
            HistoryAt::Around(position) => PageAt::Around(position),
        };
        Ok(Action::History { request, room, at, limit })
    }

    fn rooms(rooms: Rooms<'_>) -> Result<Action<'_>, Refused> {
        let Rooms { request, prefix, after, limit } = rooms;
        let limit = (limit as usize).min(ROOMS_MAX);
        if limit == 0 {
            return Err(Refused::new(Code::BadFrame, "a list has at least 1 room"));
        }
        if prefix.len() > RoomName::BYTES_MAX || after.len() > RoomName::BYTES_MAX {
            return Err(Refused::new(Code::BadRoom, Code::BadRoom.sentence()));
        }
        Ok(Action::Rooms { request, prefix, after, limit })
    }

    fn summary<'a>(&self, summary: Summary<'_>) -> Result<Action<'a>, Refused> {
        let Summary { request, rooms } = summary;
        let rooms_max = self.limits.rooms_per_session_max;
        if rooms.len() > rooms_max {
            return Err(Refused::new(Code::TooLarge, format!("{} rooms, at most {rooms_max}", rooms.len())));
        }
        let rooms = rooms.into_iter().map(room_name).collect::<Result<_, _>>()?;
        Ok(Action::Summary { request, rooms })
    }
}

/// A room's name, or the answer to one that is not.
pub(crate) fn room_name(name: &str) -> Result<RoomName, Refused> {
    RoomName::new(name).map_err(|error| Refused::new(Code::BadRoom, error.to_string()))
}

/// Refuses what this server does not offer, rather than ignoring that it was asked for.
pub(crate) fn offered(want: Want) -> Result<(), Refused> {
    let refused = |what| Err(Refused::new(Code::NotSupported, what));
    if want.signals {
        return refused("signals are not offered");
    }
    if want.presence != MembersWanted::None {
        return refused("presence is not offered");
    }
    if want.cursors {
        return refused("cursors are not offered");
    }
    if !want.records {
        return refused("a join without records is not offered");
    }
    Ok(())
}

/// How many records of a part are meant: the number that a reader takes over.
pub(crate) fn records_meant(part: &Part) -> u64 {
    let Ok(batch) = Batch::parse(&part.body) else { return 0 };
    if batch.header.first >= part.from && batch.header.last() <= part.to {
        return u64::from(batch.header.count);
    }
    let meant = batch.meant(part.prev, Offset(part.from.0.saturating_sub(1)), part.to);
    meant.ok().flatten().map_or(0, |meant| u64::from(meant.count))
}

#[cfg(test)]
pub(crate) mod tests;
