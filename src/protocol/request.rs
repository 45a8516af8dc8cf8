//! What a client says: the bodies of hello and of every request that this server answers.

use bincode::de::BorrowDecoder;
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Encode};

use super::batch::RecordArea;
use super::number::{JoinId, MAGIC, Number, RequestId, VERSION};
use super::wire::{WireError, decode, decode_with_lists, encode_into, list};
use crate::types::{Limits, Offset, Position, PublisherId, Start, Time};

/// Most elements of the lists here: what decoding may allocate for.
const ROOMS_MAX: usize = Limits::CEILINGS.rooms_per_session;

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

/// What stands in front of the records of a publish.
#[derive(Encode, BorrowDecode)]
pub(super) struct PublishHead<'a> {
    pub(super) request: RequestId,
    pub(super) room: &'a str,
    pub(super) publisher: PublisherId,
    pub(super) seq: u64,
    pub(super) expect: Option<Offset>,
    pub(super) count: u32,
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

/// A request of this version that this server does not offer; [`super::Later`] has its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsupported {
    /// Which.
    pub number: Number,
    /// The request.
    pub request: RequestId,
}

decode_with_lists! {
    HelloBody { token, client, resume[ROOMS_MAX] }
    Summary { request, rooms[ROOMS_MAX] }
}
