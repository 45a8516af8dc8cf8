//! Looking for the place where a join begins, one block at a time; and how the store is read for all.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::protocol::Batch;
use crate::storage::{Block, Engine, EngineError, Outline, Read, ReadAt, Room};
use crate::types::{Offset, Start};

/// Reads; a panic is damage that nobody has foreseen, and whoever waits for the block is told.
pub(super) fn read(engine: &dyn Engine, room: &Room, at: ReadAt) -> Result<Read, EngineError> {
    let read = catch_unwind(AssertUnwindSafe(|| engine.read(room, at)));
    read.unwrap_or_else(|_| Err(EngineError::Damaged(format!("room {:?}: reading {at:?} has panicked", room.name()))))
}

/// How many blocks a step passes over without reading them.
const OUTLINES_PER_STEP: u32 = 32;

/// Where a reader begins.
pub(super) struct Place {
    /// The offset of the record before the first one that is meant.
    pub(super) start: Offset,
    /// The block that follows it, if it was read: the reader wants it next.
    pub(super) block: Option<Block>,
}

/// Finds where a start lies; a step reads one block at most.
pub(super) struct Lookup {
    start: Start,
    /// How many records lie behind `before`.
    seen: u64,
    before: Offset,
}

impl Lookup {
    pub(super) fn new(start: Start) -> Self {
        Self { start, seen: 0, before: Offset::MAX }
    }

    /// The place that the start means, once it is found.
    pub(super) fn step(&mut self, engine: &dyn Engine, room: &Room) -> Result<Option<Place>, EngineError> {
        let damaged = |error| EngineError::Damaged(format!("room {:?}: {error}", room.name()));
        match self.start {
            Start::Last(count) => {
                for _ in 0..OUTLINES_PER_STEP {
                    let outline = catch_unwind(AssertUnwindSafe(|| engine.outline(room, self.before)));
                    let Ok(Some(Outline { first, last, prev, records })) = outline else { break };
                    let seen = self.seen + u64::from(records);
                    if last >= self.before || seen > count {
                        break;
                    }
                    if seen == count {
                        return Ok(Some(Place { start: prev, block: None }));
                    }
                    (self.seen, self.before) = (seen, first);
                }
                let Read::Block(block) = read(engine, room, ReadAt::Before(self.before))? else {
                    return Ok(Some(Place { start: room.facts().floor, block: None }));
                };
                let batch = Batch::parse(&block.body).map_err(damaged)?;
                let mut offsets = Vec::with_capacity(batch.header.count as usize);
                for record in batch.records(block.prev) {
                    let record = record.map_err(damaged)?;
                    if record.offset < self.before {
                        offsets.push(record.prev);
                    }
                }
                let wanted = count - self.seen;
                if let Some(at) = (offsets.len() as u64).checked_sub(wanted) {
                    let start = offsets[usize::try_from(at).expect("an index")];
                    return Ok(Some(Place { start, block: Some(block) }));
                }
                self.seen += offsets.len() as u64;
                self.before = block.first;
                Ok(None)
            }
            Start::Since(time) => {
                // Looked at before: what is committed during the read may be of that time.
                let head = room.facts().head;
                let Read::Block(block) = read(engine, room, ReadAt::Since(time))? else {
                    return Ok(Some(Place { start: head, block: None }));
                };
                let batch = Batch::parse(&block.body).map_err(damaged)?;
                for record in batch.records(block.prev) {
                    let record = record.map_err(damaged)?;
                    if record.time >= time {
                        let start = record.prev;
                        return Ok(Some(Place { start, block: Some(block) }));
                    }
                }
                Ok(Some(Place { start: block.last, block: None }))
            }
            Start::New | Start::Earliest | Start::After(_) => unreachable!("these starts need no lookup"),
        }
    }
}
