//! One message: what a publisher gives, and what a reader gets.

use bincode::de::{BorrowDecode, BorrowDecoder, Decode as _};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};

use super::{Limits, Offset, PublisherId, Time};

/// A named value beside a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::BorrowDecode)]
pub struct Header<'a> {
    /// The name, UTF-8.
    pub name: &'a str,
    /// The value, any bytes.
    pub value: &'a [u8],
}

/// The headers of a record; most records have none, and then nothing is allocated.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Headers<'a>(pub Vec<Header<'a>>);

impl Encode for Headers<'_> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<'de, C> BorrowDecode<'de, C> for Headers<'de> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let count = usize::try_from(u64::decode(decoder)?).unwrap_or(usize::MAX);
        if count > Limits::CEILINGS.headers {
            return Err(DecodeError::Other("more headers than a record may have"));
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            headers.push(Header::borrow_decode(decoder)?);
        }
        Ok(Self(headers))
    }
}

/// A message on its way into a room. Its encoding *is* the record's encoding in a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default, bincode::Encode, bincode::BorrowDecode)]
pub struct NewRecord<'a> {
    /// A short word; empty for an ordinary message, which is what unread counts count.
    pub kind: &'a str,
    /// The offset it refers to; [`Offset::ZERO`] for none.
    pub reference: Offset,
    /// Named values beside the payload.
    pub headers: Headers<'a>,
    /// The message, any bytes.
    pub payload: &'a [u8],
    /// Room for later versions; empty in this one, and kept as it is by all.
    pub extension: &'a [u8],
}

impl<'a> NewRecord<'a> {
    /// An ordinary message.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self { payload, ..Self::default() }
    }

    /// Whether the record keeps the limits.
    ///
    /// # Errors
    /// The first limit that it breaks.
    pub fn check(&self, limits: &Limits) -> Result<(), RecordFault> {
        let fault = |what, bytes: usize, bytes_max: usize| Err(RecordFault { what, found: bytes, allowed: bytes_max });
        if self.payload.len() > limits.payload_bytes_max {
            return fault("payload bytes", self.payload.len(), limits.payload_bytes_max);
        }
        if self.kind.len() > limits.kind_bytes_max {
            return fault("kind bytes", self.kind.len(), limits.kind_bytes_max);
        }
        if self.extension.len() > limits.extension_bytes_max {
            return fault("extension bytes", self.extension.len(), limits.extension_bytes_max);
        }
        let headers = &self.headers.0;
        if headers.is_empty() {
            return Ok(());
        }
        if headers.len() > limits.headers_max {
            return fault("headers", headers.len(), limits.headers_max);
        }
        let mut total = 0;
        for header in headers {
            if header.name.len() > limits.header_name_bytes_max {
                return fault("header name bytes", header.name.len(), limits.header_name_bytes_max);
            }
            if header.value.len() > limits.header_value_bytes_max {
                return fault("header value bytes", header.value.len(), limits.header_value_bytes_max);
            }
            total += header.name.len() + header.value.len();
        }
        if total > limits.headers_bytes_max {
            return fault("header bytes together", total, limits.headers_bytes_max);
        }
        Ok(())
    }
}

/// The limit that a record breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{found} {what}, at most {allowed} are allowed")]
pub struct RecordFault {
    /// What there is too much of, with its unit.
    pub what: &'static str,
    /// How much there is.
    pub found: usize,
    /// How much there may be.
    pub allowed: usize,
}

/// A message in its room, borrowed from the batch that holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Its place in the room.
    pub offset: Offset,
    /// The place of the record before it in the room; [`Offset::ZERO`] for the first ever.
    pub prev: Offset,
    /// When the server committed it.
    pub time: Time,
    /// Who published it, as the server knows it; empty while anonymous.
    pub user: &'a str,
    /// The outgoing queue it came from.
    pub publisher: PublisherId,
    /// Its number in that queue and room, from 1.
    pub seq: u64,
    /// What the publisher gave.
    pub content: NewRecord<'a>,
}

/// Why records between two offsets are not delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum GapReason {
    /// Retention removed them.
    Retention,
}

impl GapReason {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retention => "retention",
        }
    }
}
