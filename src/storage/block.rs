//! The unit of reading: a batch of a room, wherever it was found.

use bytes::Bytes;

use crate::metrics::Source;
use crate::types::{Offset, Time};

/// A batch of a room, and the one fact that the batch itself does not hold.
#[derive(Clone, Debug)]
pub struct Block {
    /// The first record's offset.
    pub first: Offset,
    /// The last record's offset.
    pub last: Offset,
    /// The offset of the record before the first, in the room.
    pub prev: Offset,
    /// The last record's time.
    pub last_time: Time,
    /// The batch body.
    pub body: Bytes,
    /// Where it came from.
    pub source: Source,
}
