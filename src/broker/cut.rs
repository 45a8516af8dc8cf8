//! Which part of a block a reader is meant to have, and in which bytes.

use bytes::Bytes;

use crate::lock::Mutex;
use crate::protocol::{Batch, BatchBuilder, Meant, WireError};
use crate::storage::{Block, Source};
use crate::types::Offset;

/// Records on their way to a reader: a batch body, and which of its records are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Records of the body before this offset are not meant.
    pub from: Offset,
    /// Records of the body behind this offset are not meant.
    pub to: Offset,
    /// The offset of the record before the first meant one.
    pub prev: Offset,
    /// A batch body, shared with everybody who gets the same records.
    pub body: Bytes,
    /// Where the body came from.
    pub source: Source,
}

/// What was encoded anew lately, for the next reader that is meant to have the same: many join a busy room at one place.
#[derive(Default)]
pub(super) struct Cuts([Mutex<Option<Kept>>; SLOTS]);

/// How many are kept, each a batch body and a part of it.
const SLOTS: usize = 8;

struct Kept {
    whole: Bytes,
    after: Offset,
    part: Part,
}

impl Cuts {
    /// As [`cut`], to the end of the block.
    pub(super) fn cut(&self, block: &Block, after: Offset, floor: Offset) -> Result<Option<Part>, WireError> {
        let after = after.max(floor);
        if block.prev >= after && block.first > floor {
            return cut(block, after, Offset::MAX, floor);
        }
        let place = block.body.as_ptr() as usize;
        let slot = &self.0[((place >> 6) ^ after.0 as usize) % SLOTS];
        if let Some(kept) = &*slot.lock()
            && kept.after == after
            && (kept.whole.as_ptr() as usize, kept.whole.len()) == (place, block.body.len())
        {
            return Ok(Some(Part { source: block.source, ..kept.part.clone() }));
        }
        let part = cut(block, after, Offset::MAX, floor)?;
        if let Some(part) = &part
            && part.body.as_ptr() as usize != place
        {
            // What is kept cannot be freed, so no other body comes to lie in its place.
            *slot.lock() = Some(Kept { whole: block.body.clone(), after, part: part.clone() });
        }
        Ok(part)
    }
}

/// The part of a block behind `after` and above `floor`, up to `to`; `None` if nothing of it is meant.
///
/// The body is the block's own unless less than half of its records are meant, or one of them is below the floor:
/// then it is encoded anew.
pub(crate) fn cut(block: &Block, after: Offset, to: Offset, floor: Offset) -> Result<Option<Part>, WireError> {
    let whole_front = block.prev >= after && block.first > floor;
    if whole_front && to >= block.last {
        let Block { first, last, prev, ref body, source, .. } = *block;
        return Ok(Some(Part { from: first, to: last, prev, body: body.clone(), source }));
    }
    let after = after.max(floor);
    let batch = Batch::parse(&block.body)?;
    let Some(Meant { from, to, prev, count }) = batch.meant(block.prev, after, to)? else { return Ok(None) };
    let body = if block.first > floor && count >= batch.header.count.div_ceil(2) {
        block.body.clone()
    } else {
        let mut builder = BatchBuilder::new();
        builder.push_part(&batch, from, to)?;
        builder.finish().1
    };
    Ok(Some(Part { from, to, prev, body, source: block.source }))
}
