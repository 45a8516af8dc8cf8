//! What frames are told apart by: the protocol's names, its version, the numbers of frames, requests and joins.

use bincode::Encode;

/// The four bytes that every hello begins with.
pub const MAGIC: [u8; 4] = *b"RLOG";

/// The protocol version of this module.
pub const VERSION: u8 = 1;

/// Its name among the protocols of a TLS handshake, for QUIC.
pub const ALPN: &[u8] = b"roomlog/1";

/// Its name among the sub-protocols of a WebSocket.
pub const SUB_PROTOCOL: &str = "roomlog.v1";

/// The path of the WebSocket.
pub const WEBSOCKET_PATH: &str = "/v1/ws";

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
