//! The one place that names the codec: bincode's standard configuration, made strict.
//!
//! bincode 2 reads integers that are longer than they need to be and ignores what follows a value. We refuse
//! both: equal values have equal bytes, so a repeat can be told by its bytes. Every decode is borrowed, a list is
//! bounded before it is read, and all of it runs under a ceiling: no length in a hostile frame allocates anything.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::BorrowDecoder;
use bincode::de::read::Reader as _;
use bincode::enc::write::{SizeWriter, Writer};
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode as _, Encode};

use crate::types::Limits;

/// bincode counts an integer with its width in memory, up to 8 bytes, where it has one byte on the wire.
const DECODE_BYTES_MAX: usize = 8 * Limits::CEILINGS.frame_bytes;

const CONFIG: Configuration<LittleEndian, Varint, Limit<DECODE_BYTES_MAX>> =
    bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();

/// Why bytes are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes end within a value.
    #[error("the bytes end within {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// Bytes follow where the value has ended.
    #[error("{bytes} bytes follow the end of {what}")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// How many bytes are too many.
        bytes: usize,
    },
    /// An integer is written in more bytes than it needs.
    #[error("an integer in {what} is not in its shortest form")]
    NotCanonical {
        /// What was being read.
        what: &'static str,
    },
    /// A value that the format has no meaning for.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl WireError {
    pub(crate) fn invalid(what: &'static str, why: impl ToString) -> Self {
        Self::Invalid { what, why: why.to_string() }
    }
}

struct Appender<'a>(&'a mut Vec<u8>);

impl Writer for Appender<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends the canonical encoding of a value.
#[inline]
pub(crate) fn encode_into<T: Encode + ?Sized>(out: &mut Vec<u8>, value: &T) {
    bincode::encode_into_writer(value, Appender(out), CONFIG).expect("encoding to memory does not fail");
}

/// The length of the canonical encoding of a value, in bytes.
#[inline]
pub(crate) fn encoded_len<T: Encode + ?Sized>(value: &T) -> usize {
    struct Size(SizeWriter);
    impl Writer for &mut Size {
        #[inline]
        fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
            self.0.bytes_written += bytes.len();
            Ok(())
        }
    }
    let mut size = Size(SizeWriter::default());
    bincode::encode_into_writer(value, &mut size, CONFIG).expect("measuring does not fail");
    size.0.bytes_written
}

/// Reads a canonical value from the front; returns it and what follows.
#[inline]
pub(crate) fn decode_head<'a, T>(what: &'static str, bytes: &'a [u8]) -> Result<(T, &'a [u8]), WireError>
where
    T: BorrowDecode<'a, ()> + Encode,
{
    let (value, consumed) =
        bincode::borrow_decode_from_slice::<T, _>(bytes, CONFIG).map_err(|error| explain(what, &error))?;
    if encoded_len(&value) != consumed {
        return Err(WireError::NotCanonical { what });
    }
    Ok((value, &bytes[consumed..]))
}

/// Reads a canonical length from the front; returns it and what follows. As [`decode_head`], which the lengths of
/// most records need not take.
#[inline]
pub(crate) fn decode_length<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), WireError> {
    match bytes {
        [length @ 0..=250, rest @ ..] => Ok((u32::from(*length), rest)),
        [251, low, high, rest @ ..] if *high > 0 || *low > 250 => {
            Ok((u32::from(u16::from_le_bytes([*low, *high])), rest))
        }
        _ => decode_head::<u32>(what, bytes),
    }
}

/// Reads a canonical value that takes all the bytes.
#[inline]
pub(crate) fn decode<'a, T>(what: &'static str, bytes: &'a [u8]) -> Result<T, WireError>
where
    T: BorrowDecode<'a, ()> + Encode,
{
    let (value, rest) = decode_head(what, bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(WireError::Trailing { what, bytes: rest.len() }) }
}

/// Reads a list of at most `count_max` elements.
///
/// bincode's own `Vec` allocates for all elements that a length announces. Every element takes at least a byte,
/// so a length beyond what is left of the frame is refused first, and the rest is allocated as it is read.
pub(crate) fn list<'de, T, D>(decoder: &mut D, count_max: usize) -> Result<Vec<T>, DecodeError>
where
    D: BorrowDecoder<'de>,
    T: BorrowDecode<'de, D::Context>,
{
    const COUNT_AT_ONCE: usize = 64;
    let count = usize::try_from(u64::decode(decoder)?).unwrap_or(usize::MAX);
    if decoder.borrow_reader().peek_read(count).is_none() {
        return Err(DecodeError::UnexpectedEnd { additional: count });
    }
    if count > count_max {
        return Err(DecodeError::Other("a list has more elements than it may have"));
    }
    let mut list = Vec::with_capacity(count.min(COUNT_AT_ONCE));
    for _ in 0..count {
        list.push(T::borrow_decode(decoder)?);
    }
    Ok(list)
}

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

#[cold]
fn explain(what: &'static str, error: &DecodeError) -> WireError {
    match error {
        DecodeError::UnexpectedEnd { .. } => WireError::Truncated { what },
        // A length beyond the ceiling is a length beyond the bytes: no frame is so long.
        DecodeError::LimitExceeded => WireError::Truncated { what },
        DecodeError::UnexpectedVariant { type_name, found, .. } => {
            WireError::invalid(what, format_args!("{found} is no variant of {type_name}"))
        }
        DecodeError::Utf8 { .. } => WireError::invalid(what, "a text is not UTF-8"),
        other => WireError::invalid(what, other),
    }
}

/// Why the front of a stream is not a frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The length is beyond what is allowed.
    #[error("a frame of {bytes} bytes, at most {bytes_max} are allowed")]
    TooLarge {
        /// The length that the prefix announces.
        bytes: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// A frame without even a number.
    #[error("a frame of 0 bytes")]
    Empty,
    /// The length prefix is not in its shortest form, or not a length at all.
    #[error("the length of a frame is not in its shortest form")]
    NotCanonical,
}

/// Reads the frame at the front of a stream: its bytes without the length prefix, and how many bytes it took in all.
///
/// `None` means that more bytes are needed. The limit is checked as soon as the length is there.
///
/// # Errors
/// See [`FrameError`]; the stream cannot be followed any further.
#[inline]
pub fn split_frame(bytes: &[u8], bytes_max: usize) -> Result<Option<(&[u8], usize)>, FrameError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (length, prefix) = match first {
        0 => return Err(FrameError::Empty),
        1..=250 => (u64::from(first), 1),
        251..=253 => {
            let wide = 1_usize << (first - 250);
            let Some(bytes) = bytes.get(1..=wide) else { return Ok(None) };
            let mut length = [0; 8];
            length[..wide].copy_from_slice(bytes);
            let length = u64::from_le_bytes(length);
            let least = match wide {
                2 => 251,
                4 => 1 << 16,
                _ => 1 << 32,
            };
            if length < least {
                return Err(FrameError::NotCanonical);
            }
            (length, 1 + wide)
        }
        _ => return Err(FrameError::NotCanonical),
    };
    if length.saturating_add(prefix as u64) > bytes_max as u64 {
        return Err(FrameError::TooLarge { bytes: length, bytes_max });
    }
    let end = prefix + usize::try_from(length).expect("below the limit, which is a usize");
    Ok(bytes.get(prefix..end).map(|frame| (frame, end)))
}

/// Appends a frame: its length prefix, then what `fill` appends.
pub fn frame_into(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    // Most frames are short: write behind a one-byte prefix, and move only those that are not.
    out.push(0);
    fill(out);
    let length = out.len() - start - 1;
    if length <= 250 {
        out[start] = u8::try_from(length).expect("at most 250");
    } else {
        let mut prefix = Vec::with_capacity(5);
        encode_into(&mut prefix, &u32::try_from(length).expect("frames are below 4 GiB"));
        out.splice(start..=start, prefix);
    }
}

/// Walks the frames of one message; ends at the first error, or at the end.
#[derive(Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    bytes_max: usize,
}

impl<'a> Frames<'a> {
    /// The frames of `bytes`, none longer than `bytes_max` with its prefix.
    #[must_use]
    pub fn new(bytes: &'a [u8], bytes_max: usize) -> Self {
        Self { rest: bytes, bytes_max }
    }

    /// What follows the last whole frame.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        match split_frame(self.rest, self.bytes_max) {
            Ok(Some((frame, taken))) => {
                self.rest = &self.rest[taken..];
                Some(Ok(frame))
            }
            Ok(None) => None,
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}
