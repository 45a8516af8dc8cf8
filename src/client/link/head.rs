//! What a room's stream begins with.

use crate::protocol::{JoinId, WireError, decode_head};
use crate::types::Epoch;

/// The head of a server-opened stream: whose records follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::BorrowDecode)]
pub(crate) struct StreamHead<'a> {
    /// The client's name for the room.
    pub(crate) join: JoinId,
    /// The room.
    pub(crate) room: &'a str,
    /// The incarnation that the offsets belong to.
    pub(crate) epoch: Epoch,
}

impl<'a> StreamHead<'a> {
    /// Longer than any head: a join id, a room's name, an epoch.
    const BYTES_MAX: usize = 512;

    /// Reads a head from the front of a stream and tells how long it was; `None` if more bytes are needed.
    pub(crate) fn split(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, WireError> {
        match decode_head("a stream's head", bytes) {
            Ok((head, rest)) => Ok(Some((head, bytes.len() - rest.len()))),
            Err(WireError::Truncated { .. }) if bytes.len() < Self::BYTES_MAX => Ok(None),
            Err(error) => Err(error),
        }
    }
}
