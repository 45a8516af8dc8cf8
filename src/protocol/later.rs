//! Operations that protocol version 1 specifies and this server does not offer yet.
//!
//! A request of these is read whole, so that a malformed one is a bad frame and a good one is answered
//! `not_supported`. Answers and pushes are here so that `docs/protocol.md` is checked against bytes.

use bincode::de::BorrowDecoder;
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Encode};

use super::number::{JoinId, Number, RequestId};
use super::wire::{WireError, decode, decode_with_lists, encode_into, list};
use crate::types::{Epoch, Offset, Position, Time};

/// Most elements of the lists here: what decoding may allocate for.
const LIST_MAX: usize = 10_000;

/// Replaces the session's token before it runs out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Refresh<'a> {
    /// The request.
    pub request: RequestId,
    /// The new token, for the same user.
    pub token: &'a str,
}

/// Sends an ephemeral message to those who have joined a room with signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Signal<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// What it is, as `typing`; a later one of the same user and kind takes its place.
    pub kind: &'a str,
    /// Any bytes, at most 4 KiB.
    pub payload: &'a [u8],
    /// After how long it is stopped unless it is repeated, in milliseconds; 0 = it is a moment, and never stopped.
    pub ttl_ms: u32,
}

/// Moves a cursor of the session's user; it never moves back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct CursorSet<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// `read`, `delivered`, or a consumer's name; 1 to 64 bytes.
    pub cursor: &'a str,
    /// The last record that is behind the user.
    pub position: Position,
}

/// Reads cursors of the session's user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct CursorGet<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// Which; empty for all.
    pub cursor: &'a str,
}

/// Makes the session's user a member of a room, changes what is shown of it, or ends it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct PresenceSet<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// What to show of the user, at most 1 KiB; absent = the user leaves.
    pub data: Option<&'a [u8]>,
}

/// Reads members of a room, in the order of their users' bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct PresenceGet<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// Only users behind this one; empty for the first page.
    pub after: &'a str,
    /// How many at most.
    pub limit: u32,
}

/// How long a room keeps its records; each absent = as the broker's configuration says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, BorrowDecode)]
pub struct RoomSettings {
    /// At most so old, in milliseconds.
    pub retain_age_ms: Option<u64>,
    /// At most so many bytes.
    pub retain_bytes: Option<u64>,
    /// At most so many records.
    pub retain_records: Option<u64>,
}

/// Creates a room with settings ([`Number::RoomCreate`]), or changes a room's settings ([`Number::RoomUpdate`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct RoomSet<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// All of its settings.
    pub settings: RoomSettings,
}

/// Removes all records of a room; its name and head stay, so that no offset is ever used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct RoomDelete<'a> {
    /// The request.
    pub request: RequestId,
    /// The room.
    pub room: &'a str,
    /// Only if this is the room's head.
    pub expect: Option<Offset>,
}

/// A cursor of the session's user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Cursor<'a> {
    /// Its name.
    pub cursor: &'a str,
    /// Where it stands.
    pub offset: Offset,
    /// When it was moved there.
    pub time: Time,
}

/// Answers a cursor request.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct Cursors<'a> {
    /// The request.
    pub request: RequestId,
    /// The incarnation that the offsets belong to.
    pub epoch: Epoch,
    /// The cursors, in the order of their names' bytes; one that was never moved is not among them.
    pub cursors: Vec<Cursor<'a>>,
}

/// A user present in a room, one entry however many connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct Member<'a> {
    /// Who.
    pub user: &'a str,
    /// Since when.
    pub since: Time,
    /// What the user last chose to show.
    pub data: &'a [u8],
}

/// Answers a presence request.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct Members<'a> {
    /// The request.
    pub request: RequestId,
    /// How many members the room has.
    pub count: u32,
    /// Whether more follow behind the last one.
    pub more: bool,
    /// The members.
    pub members: Vec<Member<'a>>,
}

/// The session's token runs out; without a refresh the session ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct RefreshRequired {
    /// How long the token is still good, in milliseconds.
    pub within_ms: u32,
}

/// An ephemeral message in a joined room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct SignalPush<'a> {
    /// The room.
    pub join: JoinId,
    /// Who sent it.
    pub user: &'a str,
    /// As in [`Signal::kind`].
    pub kind: &'a str,
    /// As in [`Signal::payload`].
    pub payload: &'a [u8],
    /// The room's head when it was sent.
    pub head: Offset,
    /// As in [`Signal::ttl_ms`].
    pub ttl_ms: u32,
}

/// An ephemeral message is over: it ran out, or its sender is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct SignalStopped<'a> {
    /// The room.
    pub join: JoinId,
    /// Who had sent it.
    pub user: &'a str,
    /// Which.
    pub kind: &'a str,
}

/// A cursor has moved in a joined room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, BorrowDecode)]
pub struct CursorMoved<'a> {
    /// The room.
    pub join: JoinId,
    /// Whose.
    pub user: &'a str,
    /// Which.
    pub cursor: &'a str,
    /// Where it stands now.
    pub offset: Offset,
}

/// All members of a joined room; what was told of them before is void.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct PresenceSnapshot<'a> {
    /// The room.
    pub join: JoinId,
    /// How many members there are.
    pub count: u32,
    /// The members; empty for a join that wants the count only.
    pub members: Vec<Member<'a>>,
}

/// What has changed since the snapshot or the diff before.
#[derive(Clone, PartialEq, Eq, Debug, Encode)]
pub struct PresenceDiff<'a> {
    /// The room.
    pub join: JoinId,
    /// How many members there are now.
    pub count: u32,
    /// Members who came, or who show something else.
    pub came: Vec<Member<'a>>,
    /// Users who are gone.
    pub gone: Vec<&'a str>,
}

decode_with_lists! {
    Cursors { request, epoch, cursors[LIST_MAX] }
    Members { request, count, more, members[LIST_MAX] }
    PresenceSnapshot { join, count, members[LIST_MAX] }
    PresenceDiff { join, count, came[LIST_MAX], gone[LIST_MAX] }
}

macro_rules! later {
    ($($(#[$doc:meta])* $variant:ident($body:ty) $what:literal;)*) => {
        /// A frame of an operation that this server does not offer yet, whoever sends it.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Later<'a> {
            $($(#[$doc])* $variant($body),)*
        }

        impl<'a> Later<'a> {
            /// The frame's first byte.
            #[must_use]
            pub fn number(&self) -> Number {
                match self { $(Self::$variant(_) => Number::$variant,)* }
            }

            /// Reads a frame without its length prefix; `None` if its first byte is none of these.
            ///
            /// # Errors
            /// When it is one of these, but not canonical.
            pub fn parse(frame: &'a [u8]) -> Result<Option<Self>, WireError> {
                let (&byte, body) = frame.split_first().ok_or(WireError::Truncated { what: "a frame" })?;
                Ok(match Number::from_byte(byte) {
                    $(Some(Number::$variant) => Some(Self::$variant(decode($what, body)?)),)*
                    _ => None,
                })
            }

            /// Appends the frame without its length prefix.
            pub fn encode_into(&self, out: &mut Vec<u8>) {
                out.push(self.number() as u8);
                match self { $(Self::$variant(body) => encode_into(out, body),)* }
            }
        }
    };
}

later! {
    /// See [`Refresh`].
    Refresh(Refresh<'a>) "a refresh";
    /// See [`Signal`].
    Signal(Signal<'a>) "a signal";
    /// See [`CursorSet`].
    CursorSet(CursorSet<'a>) "a cursor_set";
    /// See [`CursorGet`].
    CursorGet(CursorGet<'a>) "a cursor_get";
    /// See [`PresenceSet`].
    PresenceSet(PresenceSet<'a>) "a presence_set";
    /// See [`PresenceGet`].
    PresenceGet(PresenceGet<'a>) "a presence_get";
    /// See [`RoomSet`].
    RoomCreate(RoomSet<'a>) "a room_create";
    /// See [`RoomDelete`].
    RoomDelete(RoomDelete<'a>) "a room_delete";
    /// See [`RoomSet`].
    RoomUpdate(RoomSet<'a>) "a room_update";
    /// See [`Cursors`].
    Cursors(Cursors<'a>) "a cursors";
    /// See [`Members`].
    Members(Members<'a>) "a members";
    /// See [`RefreshRequired`].
    RefreshRequired(RefreshRequired) "a refresh_required";
    /// See [`SignalPush`].
    SignalPush(SignalPush<'a>) "a signal";
    /// See [`SignalStopped`].
    SignalStopped(SignalStopped<'a>) "a signal_stopped";
    /// See [`CursorMoved`].
    CursorMoved(CursorMoved<'a>) "a cursor_moved";
    /// See [`PresenceSnapshot`].
    PresenceSnapshot(PresenceSnapshot<'a>) "a presence_snapshot";
    /// See [`PresenceDiff`].
    PresenceDiff(PresenceDiff<'a>) "a presence_diff";
}

impl Later<'_> {
    /// The request's id, in a request or its answer.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        Some(match self {
            Self::Refresh(body) => body.request,
            Self::Signal(body) => body.request,
            Self::CursorSet(body) => body.request,
            Self::CursorGet(body) => body.request,
            Self::PresenceSet(body) => body.request,
            Self::PresenceGet(body) => body.request,
            Self::RoomCreate(body) | Self::RoomUpdate(body) => body.request,
            Self::RoomDelete(body) => body.request,
            Self::Cursors(body) => body.request,
            Self::Members(body) => body.request,
            _ => return None,
        })
    }
}
