//! What the server says: the bodies of answers and pushes, and the head of a room's stream on QUIC.

use bincode::de::BorrowDecoder;
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Encode};

use super::number::{JoinId, RequestId};
use super::wire::{WireError, decode_head, decode_with_lists, encode_into, list};
use crate::types::{Code, Epoch, GapReason, Limits, Offset, RoomName, SessionId, Time};

/// Most elements of the lists here: what decoding may allocate for.
const ROOMS_MAX: usize = Limits::CEILINGS.rooms_per_session;
const DELIVERIES_MAX: usize = Limits::CEILINGS.page_deliveries;
const FEATURES_MAX: usize = 256;

/// Answers a hello.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct Welcome<'a> {
    /// The version that both speak from now on.
    pub version: u8,
    /// The session, for logs.
    pub session: SessionId,
    /// Who the client is to the server; empty while anonymous.
    pub user: &'a str,
    /// The server's clock.
    pub time: Time,
    /// What the client has to keep to.
    pub limits: WelcomeLimits,
    /// What the server offers beyond the least: names of operations.
    pub features: Vec<&'a str>,
    /// How often the server asks a quiet client for a sign of life, in milliseconds.
    pub ping_interval_ms: u32,
    /// One result for each room of the hello's resume list, in its order.
    pub resumed: Vec<JoinResult<'a>>,
}

/// The limits that a client is told; bytes and counts. See [`crate::types::Limits`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, BorrowDecode)]
#[allow(missing_docs)]
pub struct WelcomeLimits {
    pub frame_bytes: u32,
    pub payload_bytes: u32,
    pub kind_bytes: u32,
    pub headers: u32,
    pub header_name_bytes: u32,
    pub header_value_bytes: u32,
    pub headers_bytes: u32,
    pub extension_bytes: u32,
    pub publish_records: u32,
    pub publish_bytes: u32,
    pub page_bytes: u32,
    pub rooms_per_session: u32,
    pub requests_in_flight: u32,
    pub bytes_in_flight: u32,
    pub idle_timeout_ms: u32,
    pub stall_timeout_ms: u32,
}

impl From<&Limits> for WelcomeLimits {
    fn from(limits: &Limits) -> Self {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let milliseconds = |value: std::time::Duration| u32::try_from(value.as_millis()).unwrap_or(u32::MAX);
        Self {
            frame_bytes: number(limits.frame_bytes_max()),
            payload_bytes: number(limits.payload_bytes_max),
            kind_bytes: number(limits.kind_bytes_max),
            headers: number(limits.headers_max),
            header_name_bytes: number(limits.header_name_bytes_max),
            header_value_bytes: number(limits.header_value_bytes_max),
            headers_bytes: number(limits.headers_bytes_max),
            extension_bytes: number(limits.extension_bytes_max),
            publish_records: number(limits.publish_records_max),
            publish_bytes: number(limits.publish_bytes_max),
            page_bytes: number(limits.page_bytes_max),
            rooms_per_session: number(limits.rooms_per_session_max),
            requests_in_flight: number(limits.requests_in_flight_max),
            bytes_in_flight: number(limits.bytes_in_flight_max),
            idle_timeout_ms: milliseconds(limits.idle_timeout),
            stall_timeout_ms: milliseconds(limits.stall_timeout),
        }
    }
}

/// What became of a room of the resume list.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub enum JoinResult<'a> {
    /// It is joined, and its records follow.
    Joined(Joined),
    /// Its position is void; it is not joined.
    Void(Void),
    /// It was refused; it is not joined.
    Refused(Fault<'a>),
}

/// Answers a join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Joined {
    /// The request; 0 within a welcome.
    pub request: RequestId,
    /// The room.
    pub join: JoinId,
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// The oldest retained offset; 0 if the room has no records.
    pub first: Offset,
    /// The newest offset; 0 if the room never had a record.
    pub head: Offset,
    /// What will be delivered comes after this offset.
    pub start: Offset,
}

/// Answers a join whose position cannot be gone on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Void {
    /// The request; 0 within a welcome.
    pub request: RequestId,
    /// The join id, free again.
    pub join: JoinId,
    /// [`Code::VoidEpoch`] or [`Code::BeyondHead`], as a number.
    pub code: u16,
    /// The room's epoch.
    pub epoch: Epoch,
    /// The oldest retained offset.
    pub first: Offset,
    /// The newest offset.
    pub head: Offset,
}

/// Answers a publish, when its records are as durable as the server promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Published {
    /// The request.
    pub request: RequestId,
    /// The first record's offset.
    pub first: Offset,
    /// The last record's offset.
    pub last: Offset,
    /// When they were committed; 0 in a duplicate, of which that is not remembered.
    pub time: Time,
    /// Whether they had been stored before; the offsets are those of that time.
    pub duplicate: bool,
}

/// Answers a history request.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct Page<'a> {
    /// The request.
    pub request: RequestId,
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// The oldest retained offset; 0 if the room has no records.
    pub first: Offset,
    /// The newest offset; 0 if the room never had a record.
    pub head: Offset,
    /// Whether more records lie in the direction that was asked for.
    pub more: bool,
    /// The records, ascending.
    pub deliveries: Vec<PageDelivery<'a>>,
}

/// Part of a page: as a delivery, without a join id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct PageDelivery<'a> {
    /// As in [`DeliveryHeader::from`].
    pub from: Offset,
    /// As in [`DeliveryHeader::to`].
    pub to: Offset,
    /// As in [`DeliveryHeader::prev`].
    pub prev: Offset,
    /// A batch body.
    pub body: &'a [u8],
}

/// Answers rooms and summary.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct RoomList<'a> {
    /// The request.
    pub request: RequestId,
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// Whether more rooms match than are listed.
    pub more: bool,
    /// The rooms.
    pub rooms: Vec<RoomSummary<'a>>,
}

/// The state of a room.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct RoomSummary<'a> {
    /// Its name.
    pub room: &'a str,
    /// The oldest retained offset; 0 if it has no records.
    pub first: Offset,
    /// The newest offset; 0 if it never had a record.
    pub head: Offset,
    /// The newest record's time; 0 if it never had a record.
    pub time: Time,
    /// The newest record, as far as it is retained.
    pub last: Option<LastRecord<'a>>,
    /// The user's read cursor. Absent in this server.
    pub cursor: Option<Offset>,
    /// Ordinary messages behind that cursor. Absent in this server.
    pub unread: Option<u64>,
    /// How many members there are. Absent in this server.
    pub members: Option<u32>,
}

/// The newest record of a room, cut to a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct LastRecord<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Who published it.
    pub user: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// The first bytes of its payload, at most 256.
    pub payload: &'a [u8],
    /// The length of its whole payload, in bytes.
    pub payload_bytes: u32,
}

/// Answers a ping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Pong {
    /// The request.
    pub request: RequestId,
    /// The server's clock.
    pub time: Time,
}

/// A refusal. As an answer it repeats the request; as a push ([`super::Number::Fault`]) that is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Fault<'a> {
    /// The request.
    pub request: RequestId,
    /// [`Code::number`].
    pub code: u16,
    /// What exactly was wrong, for a person.
    pub message: &'a str,
    /// Whether the same request may succeed later.
    pub retry: bool,
    /// When to try again, in milliseconds; 0 if there is nothing to say.
    pub retry_after_ms: u32,
}

impl<'a> Fault<'a> {
    /// A refusal with its usual advice.
    #[must_use]
    pub fn new(request: RequestId, code: Code, message: &'a str) -> Self {
        let retry = code.advice() == crate::types::Advice::Retry;
        Self { request, code: code.number(), message, retry, retry_after_ms: if retry { 1000 } else { 0 } }
    }
}

/// What stands in front of a shared batch body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct DeliveryHeader {
    /// The room.
    pub join: JoinId,
    /// Records of the body before this offset are not meant.
    pub from: Offset,
    /// Records of the body behind this offset are not meant.
    pub to: Offset,
    /// The offset of the record before the first meant one.
    pub prev: Offset,
}

/// Records of a joined room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery<'a> {
    /// Whose, and which records.
    pub header: DeliveryHeader,
    /// A batch body: all the rest of the frame.
    pub body: &'a [u8],
}

/// A moment in a joined room: live, lagging, caught up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Mark {
    /// The room.
    pub join: JoinId,
    /// The last offset that was delivered before this, or the start.
    pub offset: Offset,
}

/// Records that are not there any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Gap {
    /// The room.
    pub join: JoinId,
    /// Nothing behind this offset …
    pub from: Offset,
    /// … and up to this one will be delivered.
    pub to: Offset,
    /// Why.
    pub reason: GapReason,
}

/// The broker has ended a join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Cut<'a> {
    /// The room.
    pub join: JoinId,
    /// [`Code::number`].
    pub code: u16,
    /// Why, for a person.
    pub message: &'a str,
}

/// The broker is about to end the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Goodbye<'a> {
    /// [`Code::number`].
    pub code: u16,
    /// Why, for a person.
    pub reason: &'a str,
    /// Whether to connect again.
    pub reconnect: bool,
    /// How long to wait before, in milliseconds.
    pub after_ms: u32,
}

/// What each of a room's streams on QUIC begins with, once and without a length in front; frames follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct StreamHead<'a> {
    /// The room, by the client's name for it.
    pub join: JoinId,
    /// The room, by its own name.
    pub room: &'a str,
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
}

impl<'a> StreamHead<'a> {
    /// The longest head, in bytes: two integers and a room's name behind its length.
    pub const BYTES_MAX: usize = 5 + 3 + RoomName::BYTES_MAX + 9;

    /// Appends the head.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode_into(out, self);
    }

    /// Reads the head at the front of a stream, and how many bytes it took; `None` while it is not all there.
    ///
    /// # Errors
    /// When no more bytes could make it a canonical head of a room.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, WireError> {
        match decode_head::<Self>("the head of a stream", bytes) {
            Ok((head, rest)) => {
                RoomName::check(head.room).map_err(|error| WireError::invalid("the head of a stream", error))?;
                Ok(Some((head, bytes.len() - rest.len())))
            }
            Err(WireError::Truncated { .. }) if bytes.len() < Self::BYTES_MAX => Ok(None),
            Err(error) => Err(error),
        }
    }
}

decode_with_lists! {
    Welcome { version, session, user, time, limits, features[FEATURES_MAX], ping_interval_ms, resumed[ROOMS_MAX] }
    Page { request, epoch, first, head, more, deliveries[DELIVERIES_MAX] }
    RoomList { request, epoch, more, rooms[ROOMS_MAX] }
}
