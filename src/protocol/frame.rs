//! Every frame of protocol version 1: its number, its fields in the order of their bytes.
//!
//! Numbers are append-only: 1–63 requests, 64–127 answers, 128–191 pushes that a client must know, 192–255 pushes
//! that a client may skip. A field is never added to a frame of this version; that takes another version.

use bincode::de::BorrowDecoder;
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Encode};

use super::batch::RecordArea;
use super::later::Later;
use super::wire::{WireError, decode, decode_head, encode_into, list};
use crate::types::{Code, Epoch, GapReason, Limits, Offset, Position, PublisherId, RoomName, SessionId, Start, Time};

/// The four bytes that every hello begins with.
pub const MAGIC: [u8; 4] = *b"RLOG";

/// The protocol version of this module.
pub const VERSION: u8 = 1;

/// A request's number on its session, chosen by the client; its answer repeats it. 0 is the hello's.
pub type RequestId = u32;

/// The client's name for a joined room on its session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Encode, bincode::Decode)]
pub struct JoinId(pub u32);

macro_rules! numbers {
    ($($(#[$doc:meta])* $variant:ident = $number:literal;)*) => {
        /// The first byte of a frame.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Number {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Number {
            /// All numbers of this version.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number of a first byte, if this version knows it.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

numbers! {
    /// Opens a session.
    Hello = 1;
    /// Subscribes to a room from a start.
    Join = 2;
    /// Grants a joined room more bytes.
    Credit = 3;
    /// Ends a join.
    Leave = 4;
    /// Appends records to a room.
    Publish = 5;
    /// Reads a page of a room.
    History = 6;
    /// Lists rooms by name.
    Rooms = 7;
    /// Tells the state of named rooms.
    Summary = 8;
    /// Asks for a sign of life.
    Ping = 9;
    /// Replaces the session's token. Not in this server.
    Refresh = 10;
    /// Sends an ephemeral message. Not in this server.
    Signal = 11;
    /// Moves a cursor. Not in this server.
    CursorSet = 12;
    /// Reads cursors. Not in this server.
    CursorGet = 13;
    /// Sets the session's presence in a room. Not in this server.
    PresenceSet = 14;
    /// Reads a room's members. Not in this server.
    PresenceGet = 15;
    /// Creates a room with settings. Not in this server.
    RoomCreate = 16;
    /// Deletes a room. Not in this server.
    RoomDelete = 17;
    /// Changes a room's settings. Not in this server.
    RoomUpdate = 18;

    /// Answers a hello.
    Welcome = 64;
    /// Answers a join.
    Joined = 65;
    /// Answers a join whose position is void.
    Void = 66;
    /// Answers a request that has no result.
    Ok = 67;
    /// Answers a publish.
    Published = 68;
    /// Answers a history request.
    Page = 69;
    /// Answers rooms and summary.
    RoomList = 70;
    /// Answers a ping.
    Pong = 71;
    /// Answers a request that was refused.
    Error = 72;
    /// Answers a cursor request. Not sent by this server.
    Cursors = 73;
    /// Answers a presence request. Not sent by this server.
    Members = 74;

    /// Records of a joined room.
    Delivery = 128;
    /// The reader has reached the head for the first time.
    Live = 129;
    /// Records that are not there any more.
    Gap = 130;
    /// The reader is being served from the store.
    Lagging = 131;
    /// The reader is back at the recent part.
    CaughtUp = 132;
    /// The broker has ended a join.
    Left = 133;
    /// The broker is about to end the session.
    Goodbye = 134;
    /// The session's token runs out. Not sent by this server.
    RefreshRequired = 135;
    /// Something went wrong that no request asked for.
    Fault = 136;

    /// An ephemeral message. Not sent by this server.
    SignalPush = 192;
    /// The end of an ephemeral message. Not sent by this server.
    SignalStopped = 193;
    /// A cursor of a joined room has moved. Not sent by this server.
    CursorMoved = 194;
    /// The members of a joined room. Not sent by this server.
    PresenceSnapshot = 195;
    /// Changes of the members of a joined room. Not sent by this server.
    PresenceDiff = 196;
}

impl Number {
    /// Whether a client that does not know a push of this first byte skips it.
    #[must_use]
    pub const fn ignorable(byte: u8) -> bool {
        byte >= 192
    }
}

/// Opens a session. Everything but the body is the same in every version, so that any version can be refused well.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Hello<'a> {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// The lowest version that the client speaks.
    pub version_min: u8,
    /// The highest version that the client speaks.
    pub version_max: u8,
    /// A [`HelloBody`] of version 1.
    pub body: &'a [u8],
}

impl<'a> Hello<'a> {
    /// A hello of this version.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self { magic: MAGIC, version_min: VERSION, version_max: VERSION, body }
    }
}

/// What a hello of version 1 says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode)]
pub struct HelloBody<'a> {
    /// Who the client is. This server has no authentication and refuses a token rather than ignoring it.
    pub token: Option<&'a str>,
    /// The program that connects, for logs; at most 255 bytes.
    pub client: &'a str,
    /// The rooms to go on with.
    pub resume: Vec<Resume<'a>>,
}

impl HelloBody<'_> {
    /// The bytes for [`Hello::body`].
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_into(&mut bytes, self);
        bytes
    }

    /// Reads the bytes of [`Hello::body`].
    ///
    /// # Errors
    /// When they are not exactly one body.
    pub fn parse(bytes: &[u8]) -> Result<HelloBody<'_>, WireError> {
        decode("a hello's body", bytes)
    }
}

/// A room to go on with: a join whose start is a position.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Resume<'a> {
    /// The client's name for the room from now on.
    pub join: JoinId,
    /// The room.
    pub room: &'a str,
    /// The last record that the client has.
    pub position: Position,
    /// As in [`Join::credit_bytes`].
    pub credit_bytes: Option<u64>,
    /// As in [`Join::want`].
    pub want: Want,
}

/// How much of a room's members a join wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, BorrowDecode)]
pub enum MembersWanted {
    /// Nothing.
    #[default]
    None,
    /// How many there are.
    Count,
    /// Who they are.
    Members,
}

/// What a join wants of a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Want {
    /// The room's records.
    pub records: bool,
    /// Ephemeral messages. Not in this server.
    pub signals: bool,
    /// Members. Not in this server.
    pub presence: MembersWanted,
    /// Moves of cursors. Not in this server.
    pub cursors: bool,
}

impl Want {
    /// The records, and nothing else: all that this server offers.
    pub const RECORDS: Self = Self { records: true, signals: false, presence: MembersWanted::None, cursors: false };
}

/// Subscribes to a room.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Join<'a> {
    /// The request.
    pub request: RequestId,
    /// The client's name for the room from now on.
    pub join: JoinId,
    /// The room.
    pub room: &'a str,
    /// Where to begin.
    pub start: StartAt<'a>,
    /// How many bytes of batch bodies in [`Number::Delivery`] frames the client takes before it grants
    /// more; absent = no bound. A delivery is sent while any credit is left, so it may be overdrawn by one.
    pub credit_bytes: Option<u64>,
    /// What of the room.
    pub want: Want,
}

/// A start as it is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub enum StartAt<'a> {
    /// See [`Start::New`].
    New,
    /// See [`Start::Earliest`].
    Earliest,
    /// See [`Start::Last`].
    Last(u64),
    /// See [`Start::After`].
    After(Position),
    /// See [`Start::Since`].
    Since(Time),
    /// After the session user's cursor of this name. Not in this server.
    Cursor(&'a str),
}

impl From<Start> for StartAt<'_> {
    fn from(start: Start) -> Self {
        match start {
            Start::New => Self::New,
            Start::Earliest => Self::Earliest,
            Start::Last(count) => Self::Last(count),
            Start::After(position) => Self::After(position),
            Start::Since(time) => Self::Since(time),
        }
    }
}

impl StartAt<'_> {
    /// The start, unless it is one that this server does not offer.
    #[must_use]
    pub fn start(self) -> Option<Start> {
        Some(match self {
            Self::New => Start::New,
            Self::Earliest => Start::Earliest,
            Self::Last(count) => Start::Last(count),
            Self::After(position) => Start::After(position),
            Self::Since(time) => Start::Since(time),
            Self::Cursor(_) => return None,
        })
    }
}

/// Grants a joined room more bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Credit {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub join: JoinId,
    /// How many bytes more.
    pub bytes: u64,
}

/// Ends a join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Leave {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub join: JoinId,
}

/// Appends records to a room: all or none, one behind the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// The outgoing queue that the records come from.
    pub publisher: PublisherId,
    /// The first record's number in that queue and room; the others follow.
    pub seq: u64,
    /// Append only if this is the room's head.
    pub expect: Option<Offset>,
    /// How many records.
    pub count: u32,
    /// The records: all the rest of the frame.
    pub records: RecordArea<'a>,
}

#[derive(Encode, BorrowDecode)]
struct PublishHead<'a> {
    request: RequestId,
    room: &'a str,
    publisher: PublisherId,
    seq: u64,
    expect: Option<Offset>,
    count: u32,
}

/// Which page of a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub enum HistoryAt {
    /// The newest records before this position; without one, before everything that is yet to come.
    Before(Option<Position>),
    /// The oldest records after this position; without one, from the oldest retained.
    After(Option<Position>),
    /// Records on both sides of this position, itself included, as evenly as there are any.
    Around(Position),
}

/// Reads a page of a room.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct History<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// Which page.
    pub at: HistoryAt,
    /// How many records at most.
    pub limit: u32,
}

/// Lists rooms by name, in the order of their bytes.
#[derive(Clone, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Rooms<'a> {
    /// The request.
    pub request: RequestId,
    /// What the names begin with; empty for all.
    pub prefix: &'a str,
    /// Only names behind this one; empty for the first page.
    pub after: &'a str,
    /// How many at most; the server may answer fewer and say that there are more.
    pub limit: u32,
}

/// Tells the state of named rooms.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct Summary<'a> {
    /// The request.
    pub request: RequestId,
    /// The rooms; the answer has one entry for each, in this order.
    pub rooms: Vec<&'a str>,
}

/// Asks for a sign of life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Ping {
    /// The request.
    pub request: RequestId,
}

/// A request of this version that this server does not offer; [`Later`] has its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsupported {
    /// Which.
    pub number: Number,
    /// The request.
    pub request: RequestId,
}

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

impl From<&crate::types::Limits> for WelcomeLimits {
    fn from(limits: &crate::types::Limits) -> Self {
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
    /// When they were committed.
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

/// A refusal. As an answer it repeats the request; as a push ([`Number::Fault`]) that is 0.
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

/// A frame from a client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum ClientFrame<'a> {
    /// See [`Hello`].
    Hello(Hello<'a>),
    /// See [`Join`].
    Join(Join<'a>),
    /// See [`Credit`].
    Credit(Credit),
    /// See [`Leave`].
    Leave(Leave),
    /// See [`Publish`].
    Publish(Publish<'a>),
    /// See [`History`].
    History(History<'a>),
    /// See [`Rooms`].
    Rooms(Rooms<'a>),
    /// See [`Summary`].
    Summary(Summary<'a>),
    /// See [`Ping`].
    Ping(Ping),
    /// See [`Unsupported`]; the whole request has been read, and is a [`Later`].
    Unsupported(Unsupported),
}

/// A frame from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum ServerFrame<'a> {
    /// See [`Welcome`].
    Welcome(Welcome<'a>),
    /// See [`Joined`].
    Joined(Joined),
    /// See [`Void`].
    Void(Void),
    /// The request has been carried out.
    Ok(RequestId),
    /// See [`Published`].
    Published(Published),
    /// See [`Page`].
    Page(Page<'a>),
    /// See [`RoomList`].
    RoomList(RoomList<'a>),
    /// See [`Pong`].
    Pong(Pong),
    /// See [`Fault`]: the answer to a request.
    Error(Fault<'a>),
    /// See [`Delivery`].
    Delivery(Delivery<'a>),
    /// The reader has reached the head for the first time.
    Live(Mark),
    /// See [`Gap`].
    Gap(Gap),
    /// The reader is being served from the store.
    Lagging(Mark),
    /// The reader is back at the recent part.
    CaughtUp(Mark),
    /// See [`Cut`].
    Left(Cut<'a>),
    /// See [`Goodbye`].
    Goodbye(Goodbye<'a>),
    /// See [`Fault`]: something that no request asked for.
    Fault(Fault<'a>),
}

impl<'a> ClientFrame<'a> {
    /// Reads a frame without its length prefix.
    ///
    /// # Errors
    /// When it is not exactly one canonical frame of a client.
    pub fn parse(frame: &'a [u8]) -> Result<Self, WireError> {
        let (&byte, body) = frame.split_first().ok_or(WireError::Truncated { what: "a frame" })?;
        let number = Number::from_byte(byte)
            .filter(|number| (*number as u8) < 64)
            .ok_or_else(|| WireError::invalid("a frame", format_args!("{byte} is no request")))?;
        Ok(match number {
            Number::Hello => {
                let hello: Hello<'a> = decode("a hello", body)?;
                if hello.magic != MAGIC {
                    return Err(WireError::invalid("a hello", "it does not begin with RLOG"));
                }
                Self::Hello(hello)
            }
            Number::Join => Self::Join(decode("a join", body)?),
            Number::Credit => Self::Credit(decode("a credit", body)?),
            Number::Leave => Self::Leave(decode("a leave", body)?),
            Number::Publish => {
                let (head, records) = decode_head::<PublishHead<'a>>("a publish", body)?;
                let PublishHead { request, room, publisher, seq, expect, count } = head;
                Self::Publish(Publish { request, room, publisher, seq, expect, count, records: RecordArea(records) })
            }
            Number::History => Self::History(decode("a history request", body)?),
            Number::Rooms => Self::Rooms(decode("a rooms request", body)?),
            Number::Summary => Self::Summary(decode("a summary request", body)?),
            Number::Ping => Self::Ping(decode("a ping", body)?),
            _ => Self::Unsupported(Unsupported {
                number,
                request: Later::parse(frame)?.and_then(|later| later.request()).unwrap_or_default(),
            }),
        })
    }

    /// Appends the frame without its length prefix.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(body) => put(out, Number::Hello, body),
            Self::Join(body) => put(out, Number::Join, body),
            Self::Credit(body) => put(out, Number::Credit, body),
            Self::Leave(body) => put(out, Number::Leave, body),
            Self::Publish(Publish { request, room, publisher, seq, expect, count, records }) => {
                out.push(Number::Publish as u8);
                let (request, room, publisher, seq) = (*request, *room, *publisher, *seq);
                encode_into(out, &PublishHead { request, room, publisher, seq, expect: *expect, count: *count });
                out.extend_from_slice(records.0);
            }
            Self::History(body) => put(out, Number::History, body),
            Self::Rooms(body) => put(out, Number::Rooms, body),
            Self::Summary(body) => put(out, Number::Summary, body),
            Self::Ping(body) => put(out, Number::Ping, body),
            // Of a request that is only refused, nothing but its number and id is kept.
            Self::Unsupported(body) => put(out, body.number, &body.request),
        }
    }
}

impl<'a> ServerFrame<'a> {
    /// Reads a frame without its length prefix; `None` for an unknown push that may be skipped.
    ///
    /// # Errors
    /// When it is not exactly one canonical frame of a server.
    pub fn parse(frame: &'a [u8]) -> Result<Option<Self>, WireError> {
        let (&byte, body) = frame.split_first().ok_or(WireError::Truncated { what: "a frame" })?;
        Ok(Some(match Number::from_byte(byte) {
            Some(Number::Welcome) => Self::Welcome(decode("a welcome", body)?),
            Some(Number::Joined) => Self::Joined(decode("a joined", body)?),
            Some(Number::Void) => Self::Void(decode("a void", body)?),
            Some(Number::Ok) => Self::Ok(decode("an ok", body)?),
            Some(Number::Published) => Self::Published(decode("a published", body)?),
            Some(Number::Page) => Self::Page(decode("a page", body)?),
            Some(Number::RoomList) => Self::RoomList(decode("a room list", body)?),
            Some(Number::Pong) => Self::Pong(decode("a pong", body)?),
            Some(Number::Error) => Self::Error(decode("an error", body)?),
            Some(Number::Delivery) => {
                let (header, body) = decode_head("a delivery", body)?;
                Self::Delivery(Delivery { header, body })
            }
            Some(Number::Live) => Self::Live(decode("a live mark", body)?),
            Some(Number::Gap) => Self::Gap(decode("a gap", body)?),
            Some(Number::Lagging) => Self::Lagging(decode("a lagging mark", body)?),
            Some(Number::CaughtUp) => Self::CaughtUp(decode("a caught-up mark", body)?),
            Some(Number::Left) => Self::Left(decode("a left", body)?),
            Some(Number::Goodbye) => Self::Goodbye(decode("a goodbye", body)?),
            Some(Number::Fault) => Self::Fault(decode("a fault", body)?),
            _ if Number::ignorable(byte) => return Ok(None),
            _ => return Err(WireError::invalid("a frame", format_args!("{byte} is no frame of a server"))),
        }))
    }

    /// Appends the frame without its length prefix.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(body) => put(out, Number::Welcome, body),
            Self::Joined(body) => put(out, Number::Joined, body),
            Self::Void(body) => put(out, Number::Void, body),
            Self::Ok(body) => put(out, Number::Ok, body),
            Self::Published(body) => put(out, Number::Published, body),
            Self::Page(body) => put(out, Number::Page, body),
            Self::RoomList(body) => put(out, Number::RoomList, body),
            Self::Pong(body) => put(out, Number::Pong, body),
            Self::Error(body) => put(out, Number::Error, body),
            Self::Delivery(Delivery { header, body }) => {
                out.push(Number::Delivery as u8);
                encode_into(out, header);
                out.extend_from_slice(body);
            }
            Self::Live(body) => put(out, Number::Live, body),
            Self::Gap(body) => put(out, Number::Gap, body),
            Self::Lagging(body) => put(out, Number::Lagging, body),
            Self::CaughtUp(body) => put(out, Number::CaughtUp, body),
            Self::Left(body) => put(out, Number::Left, body),
            Self::Goodbye(body) => put(out, Number::Goodbye, body),
            Self::Fault(body) => put(out, Number::Fault, body),
        }
    }
}

/// Most elements of the lists of a frame: what decoding may allocate for.
const ROOMS_MAX: usize = Limits::CEILINGS.rooms_per_session;
const DELIVERIES_MAX: usize = Limits::CEILINGS.page_deliveries;
const FEATURES_MAX: usize = 256;

/// Reads a struct field by field, and its lists bounded.
macro_rules! decode_with_lists {
    ($($name:ident { $($field:ident $([$max:ident])?),* $(,)? })*) => {
        $(impl<'de, C> BorrowDecode<'de, C> for $name<'de> {
            fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
                // A struct's fields are evaluated as they are written: in the order of their bytes.
                Ok(Self { $($field: decode_with_lists!(@field decoder $($max)?),)* })
            }
        })*
    };
    (@field $decoder:ident) => { BorrowDecode::borrow_decode($decoder)? };
    (@field $decoder:ident $max:ident) => { list($decoder, $max)? };
}
pub(super) use decode_with_lists;

decode_with_lists! {
    HelloBody { token, client, resume[ROOMS_MAX] }
    Summary { request, rooms[ROOMS_MAX] }
    Welcome { version, session, user, time, limits, features[FEATURES_MAX], ping_interval_ms, resumed[ROOMS_MAX] }
    Page { request, epoch, first, head, more, deliveries[DELIVERIES_MAX] }
    RoomList { request, epoch, more, rooms[ROOMS_MAX] }
}

fn put(out: &mut Vec<u8>, number: Number, body: &impl Encode) {
    out.push(number as u8);
    encode_into(out, body);
}
