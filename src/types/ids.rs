//! Names and places: what identifies a room, a record, a publisher, a moment.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};

use super::system;

/// The greatest offset or epoch, `2^53 - 1`: a JavaScript number holds it exactly.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// A room's name: UTF-8, 1 to 255 bytes, no control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomName(Arc<str>);

/// Why a text cannot name a room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoomNameError {
    /// The name has no bytes.
    #[error("a room name needs at least 1 byte")]
    Empty,
    /// The name is longer than [`RoomName::BYTES_MAX`].
    #[error("a room name has at most 255 bytes, this one has {bytes}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The name holds a control character (Unicode category Cc).
    #[error("a room name has no control characters, this one has U+{:04X} at byte {at}", *character as u32)]
    Control {
        /// Where it stands, in bytes from the start.
        at: usize,
        /// The character.
        character: char,
    },
}

impl RoomName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Checks and takes over a name.
    ///
    /// # Errors
    /// [`RoomNameError`] says which rule it breaks, and where.
    pub fn new(name: &str) -> Result<Self, RoomNameError> {
        Self::check(name)?;
        Ok(Self(Arc::from(name)))
    }

    /// The rules of [`RoomName::new`] for a borrowed text, without taking it over.
    ///
    /// # Errors
    /// As [`RoomName::new`].
    pub fn check(name: &str) -> Result<(), RoomNameError> {
        if name.is_empty() {
            return Err(RoomNameError::Empty);
        }
        if name.len() > Self::BYTES_MAX {
            return Err(RoomNameError::TooLong { bytes: name.len() });
        }
        match name.char_indices().find(|(_, character)| character.is_control()) {
            Some((at, character)) => Err(RoomNameError::Control { at, character }),
            None => Ok(()),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Borrow<str> for RoomName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for RoomName {
    type Error = RoomNameError;

    fn try_from(name: &str) -> Result<Self, RoomNameError> {
        Self::new(name)
    }
}

/// A record's place in its room: from 1, strictly increasing, never reused, below `2^53`.
///
/// Offsets are not promised to be dense: nobody computes `offset + 1`. `0` stands before everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Offset(pub u64);

impl Offset {
    /// Before every record.
    pub const ZERO: Self = Self(0);
    /// The greatest offset there can be.
    pub const MAX: Self = Self(NUMBER_MAX);
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// The incarnation of a data directory: a random number in `1..2^53`. Another epoch voids all offsets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Epoch(pub u64);

impl Epoch {
    /// A new epoch, from the operating system's randomness.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 8];
        system::fill_random(&mut bytes)?;
        Ok(Self((u64::from_le_bytes(bytes) & NUMBER_MAX).max(1)))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A place in a room's log that means the same for ever: an offset is nothing without its epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Position {
    /// The incarnation of the data directory that the offset belongs to.
    pub epoch: Epoch,
    /// The last record already seen; [`Offset::ZERO`] for none.
    pub offset: Offset,
}

/// Where a join begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Start {
    /// After the head: only what is committed from now on.
    New,
    /// The oldest retained record.
    Earliest,
    /// The newest `n` records, as far as they are retained.
    Last(u64),
    /// The first record after this position: how a reader resumes.
    After(Position),
    /// The first record whose time is this or later.
    Since(Time),
}

/// Microseconds since 1970-01-01 UTC, by the server's clock; never decreasing within a room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Encode, Decode)]
pub struct Time(pub u64);

impl Time {
    /// What the system's clock says now.
    #[must_use]
    pub fn now() -> Self {
        Self(u64::try_from(system::wall().as_micros()).unwrap_or(u64::MAX))
    }
}

/// 16 random bytes that a client makes for each of its outgoing queues.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct PublisherId(pub [u8; 16]);

impl PublisherId {
    /// A new identity, from the operating system's randomness.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        system::fill_random(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for PublisherId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublisherId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One connection after its hello: unique within a run of the broker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct SessionId(pub u64);
