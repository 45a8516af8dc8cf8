//! Every reason the broker gives for a refusal: a number, a stable name, and what to do about it.

use std::fmt;

/// What a peer does about a [`Code`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// The request itself is wrong: repeating it unchanged gives the same answer.
    Change,
    /// A limit, or the broker's own trouble: the same request may succeed later.
    Retry,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $sentence:literal;)*) => {
        /// Why something was refused.
        ///
        /// The hundreds are the advice: 1xx the request is wrong, do not repeat it; 2xx a limit, try later;
        /// 3xx the broker's trouble, try later. Numbers and names are stable for ever.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// All codes, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The stable name, as in metrics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// A sentence for a person.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }

            /// The code of a number, if this version knows it.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// A frame that this protocol has no meaning for.
    BadFrame = 100, "bad_frame", "The frame could not be read.";
    /// No protocol version in common.
    BadVersion = 101, "bad_version", "No protocol version in common.";
    /// A request before the hello.
    HelloRequired = 102, "hello_required", "The first frame of a connection is a hello.";
    /// A name that cannot name a room.
    BadRoom = 103, "bad_room", "A room name is UTF-8 of 1 to 255 bytes without control characters.";
    /// More than a limit told in the welcome.
    TooLarge = 104, "too_large", "Larger than a limit told in the welcome.";
    /// Part of the protocol, but not of this server.
    NotSupported = 105, "not_supported", "This server does not offer that.";
    /// The join id is in use on this session.
    AlreadyJoined = 106, "already_joined", "The join id is in use on this session.";
    /// The join id is not in use on this session.
    UnknownJoin = 107, "unknown_join", "The join id is not in use on this session.";
    /// The position belongs to another epoch.
    VoidEpoch = 108, "void_epoch", "The position belongs to another incarnation of the data directory.";
    /// The position is beyond the head.
    BeyondHead = 109, "beyond_head", "The position is beyond the newest record of the room.";
    /// A repeat with another payload.
    PublisherConflict = 110, "publisher_conflict", "This publisher and seq were stored with another content.";
    /// A seq that skips one.
    OutOfOrder = 111, "out_of_order", "A publisher's seq rises by 1 per record of a room, from 1.";
    /// A repeat of a seq that is no longer remembered.
    TooOld = 112, "too_old", "The seq is older than what is remembered, so a repeat cannot be told from a new record.";
    /// A publisher that is no longer remembered.
    PublisherForgotten = 113, "publisher_forgotten", "The publisher is not remembered, so a repeat cannot be told from a new record.";
    /// The head was not as expected.
    ExpectFailed = 114, "expect_failed", "The head of the room is not the expected one.";
    /// No right to do this.
    NotAllowed = 115, "not_allowed", "Not allowed.";

    /// Too much in flight.
    Busy = 200, "busy", "Too much is in flight; wait for answers.";
    /// More rooms than a session may join.
    TooManyRooms = 201, "too_many_rooms", "The session has joined as many rooms as it may.";
    /// The peer allows no further stream.
    TooManyStreams = 202, "too_many_streams", "The peer allows no further stream for this room.";
    /// More connections than allowed.
    TooManyConnections = 203, "too_many_connections", "As many connections as are allowed are open.";
    /// Too many requests in too little time.
    RateLimited = 204, "rate_limited", "Too many requests in too little time.";

    /// No space is left for new records.
    StorageFull = 300, "storage_full", "No space is left for new records; reading goes on.";
    /// A write or a sync of the journal failed.
    StorageFailed = 301, "storage_failed", "Storage failed; nothing more is accepted until the broker is restarted.";
    /// The broker is closing.
    ShuttingDown = 302, "shutting_down", "The broker is shutting down.";
    /// Not to be had just now.
    Unavailable = 303, "unavailable", "Not available just now.";
}

impl Code {
    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn advice(self) -> Advice {
        if self.number() < 200 { Advice::Change } else { Advice::Retry }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// That something is refused, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The reason.
    pub code: Code,
    /// What exactly, for a person.
    pub message: String,
}

impl Refused {
    /// A refusal.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
