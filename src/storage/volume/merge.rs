//! Batches of one room, one after the other, become the blocks of a volume.

use bytes::Bytes;

use crate::protocol::{Batch, BatchBuilder, BatchHeader, Run, RunHeader, WireError};
use crate::types::{Offset, Time};

/// Blocks are filled up to this many bytes; a single larger record has one of its own.
///
/// So a block is one value of the block store even where it does not compress. Twice as much would save little
/// space, and every read of a few records would cost twice as much.
pub(super) const BODY_BYTES_TARGET: usize = super::block::PART_BYTES_MAX;

/// A batch header and the header of one run, without its user, are not longer.
const HEADERS_BYTES_MAX: usize = 32 + 64;

/// A run below this many bytes is not split to fill a block.
const SPLIT_BYTES_MIN: usize = BODY_BYTES_TARGET / 8;

/// A merged block.
pub(super) struct Merged {
    pub(super) header: BatchHeader,
    pub(super) prev: Offset,
    pub(super) last_time: Time,
    pub(super) body: Bytes,
}

/// Merges the batches of one room; begin another one for the next room.
#[derive(Default)]
pub(super) struct Merge {
    builder: BatchBuilder,
    /// The record before the first one in the builder.
    prev: Offset,
    /// The last record seen, kept or not.
    last: Offset,
    last_time: Time,
}

impl Merge {
    /// Forgets the room, so that the buffers serve the next one. Nothing may be pending.
    pub(super) fn restart(&mut self) {
        debug_assert!(self.builder.is_empty());
        self.last = Offset::ZERO;
        self.last_time = Time(0);
    }

    /// Adds a batch whose first record follows `prev`; records at or below the floor are left out.
    pub(super) fn add<E: From<WireError> + From<OutOfOrder>>(
        &mut self,
        prev: Offset,
        batch: &Batch<'_>,
        floor: Offset,
        emit: &mut impl FnMut(Merged) -> Result<(), E>,
    ) -> Result<(), E> {
        let out_of_order = |last, last_time, first, time| OutOfOrder { last, last_time, prev, first, time };
        let chained = prev == self.last || self.last == Offset::ZERO;
        let header = &batch.header;
        if !chained || header.first <= prev || header.time < self.last_time {
            return Err(out_of_order(self.last, self.last_time, header.first, header.time).into());
        }
        self.last = prev;
        for run in batch.runs() {
            let run = run?;
            if run.first <= self.last || run.time < self.last_time {
                return Err(out_of_order(self.last, self.last_time, run.first, run.time).into());
            }
            if run.last() <= floor {
                self.last = run.last();
                continue;
            }
            let fits = self.fits(&run, run.area.0.len());
            if run.first > floor && (fits || run.area.0.len() < SPLIT_BYTES_MIN) {
                if !fits {
                    self.flush(emit)?;
                }
                self.push(run.first, &run, run.header.seq, run.header.count, run.area.0);
            } else {
                self.split(&run, floor, emit)?;
            }
        }
        if self.last != batch.header.last() {
            return Err(out_of_order(self.last, self.last_time, header.last(), header.time).into());
        }
        Ok(())
    }

    /// Hands out what is left.
    pub(super) fn flush<E>(&mut self, emit: &mut impl FnMut(Merged) -> Result<(), E>) -> Result<(), E> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let (header, body) = self.builder.finish();
        emit(Merged { header, prev: self.prev, last_time: self.last_time, body })
    }

    fn fits(&self, run: &Run<'_>, bytes: usize) -> bool {
        self.builder.len() + bytes + run.header.user.len() + HEADERS_BYTES_MAX <= BODY_BYTES_TARGET
    }

    fn push(&mut self, first: Offset, run: &Run<'_>, seq: u64, count: u32, area: &[u8]) {
        if self.builder.is_empty() {
            self.prev = self.last;
        }
        self.builder.push(first, run.time, count, area, RunHeader { seq, ..run.header });
        self.last = self.builder.last();
        self.last_time = run.time;
    }

    /// Adds those records of a run that are above the floor, in as many blocks as they need.
    fn split<E: From<WireError> + From<OutOfOrder>>(
        &mut self,
        run: &Run<'_>,
        floor: Offset,
        emit: &mut impl FnMut(Merged) -> Result<(), E>,
    ) -> Result<(), E> {
        // `part` is where the records begin that are not yet pushed, and how many they are.
        let (mut area, mut offset, mut seq) = (run.area, run.first, run.header.seq);
        let mut part = (area.0, offset, seq, 0_u32);
        let mut left = run.header.count;
        while let Some((_, rest)) = area.split_first()? {
            if left == 0 {
                return Err(WireError::invalid("a run", "it holds more records than it says").into());
            }
            if offset <= floor {
                self.last = offset;
            } else {
                if part.3 == 0 {
                    part = (area.0, offset, seq, 0);
                }
                let pending = part.0.len() - area.0.len();
                let with_this = part.0.len() - rest.0.len();
                if !self.fits(run, with_this) && (part.3 > 0 || !self.builder.is_empty()) {
                    if part.3 > 0 {
                        self.push(part.1, run, part.2, part.3, &part.0[..pending]);
                    }
                    self.flush(emit)?;
                    part = (area.0, offset, seq, 0);
                }
                part.3 += 1;
            }
            (area, seq, left) = (rest, seq + 1, left - 1);
            offset = Offset(offset.0 + run.header.step);
        }
        if left > 0 {
            return Err(WireError::invalid("a run", "it holds fewer records than it says").into());
        }
        if part.3 > 0 {
            self.push(part.1, run, part.2, part.3, part.0);
        }
        Ok(())
    }
}

/// A batch does not follow the one before it.
#[derive(Debug, thiserror::Error)]
#[error("a batch with {first} at {time:?} follows {prev}, but the last record was {last} at {last_time:?}")]
pub(super) struct OutOfOrder {
    last: Offset,
    last_time: Time,
    prev: Offset,
    first: Offset,
    time: Time,
}
