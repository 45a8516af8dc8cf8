//! Reading: tail, journal, volumes, floor, in this order.
//!
//! A volume is published before its stretch of the journal is dropped, so a reader that looks in this order finds
//! every retained record; one that loses the journal between finding and reading looks again.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Shared;
use crate::protocol::{BATCH_BYTES_MAX, Batch, BatchBuilder};
use crate::storage::Source;
use crate::storage::block::Block;
use crate::storage::engine::{EngineError, Outline, Read, ReadAt};
use crate::storage::error::StorageError;
use crate::storage::room::{Indexed, Room, RoomId, RoomState};
use crate::storage::volume::{self, VolumeErrorKind};
use crate::types::Offset;

/// The stretch can be dropped between finding a place and reading it, but not often: a volume takes seconds.
const TRIES_MAX: usize = 8;

/// Where a block was found.
enum Found {
    Tail(Block),
    /// Neighbours in the journal, to be read as one block.
    Journal(Vec<Indexed>),
    /// Not in memory and not in the journal.
    Older(Option<RoomId>),
    Nothing,
}

impl Shared {
    pub(super) fn read(&self, room: &Room, at: ReadAt) -> Result<Read, EngineError> {
        let read = self.look(room, at);
        // Asked afterwards: a close takes the volumes away, and what is not found then is not missing.
        if self.closed.load(Ordering::SeqCst) { Err(EngineError::Closed) } else { read }
    }

    /// As [`Engine::outline`](crate::storage::Engine::outline). Trouble is left to whoever reads the block.
    pub(super) fn outline(&self, room: &Room, before: Offset) -> Option<Outline> {
        let (found, floor) = room.with_state(|state| (find(state, ReadAt::Before(before)), state.facts.floor));
        let outline = match found {
            Found::Tail(Block { first, last, prev, body, .. }) => {
                Outline { first, last, prev, records: Batch::parse(&body).ok()?.header.count }
            }
            Found::Older(Some(id)) => {
                let entry = self.volumes.locate_before(id.0, before).ok()??.entry;
                Outline { first: entry.first, last: entry.last, prev: entry.prev, records: entry.records }
            }
            Found::Journal(_) | Found::Older(None) | Found::Nothing => return None,
        };
        (outline.first > floor).then_some(outline)
    }

    fn look(&self, room: &Room, at: ReadAt) -> Result<Read, EngineError> {
        for _ in 0..TRIES_MAX {
            let block = match room.with_state(|state| find(state, at)) {
                Found::Tail(block) => Some(block),
                Found::Nothing => None,
                Found::Journal(places) => match self.read_journal(&places, at) {
                    Ok(block) => Some(block),
                    Err(StorageError::Gone { .. }) => continue,
                    Err(error) => return Err(EngineError::Damaged(error.to_string())),
                },
                Found::Older(None) => None,
                Found::Older(Some(id)) => match self.read_volume(room, id, at)? {
                    Older::Block(block) => Some(block),
                    Older::Nothing => None,
                    Older::Again => continue,
                },
            };
            return Ok(block.map_or(Read::Nothing, Read::Block));
        }
        Err(EngineError::Io(format!("room {:?} could not be read while its journal was being dropped", room.name())))
    }

    /// Neighbours in the journal as one block, or as many of them as one body can hold.
    fn read_journal(&self, mut places: &[Indexed], at: ReadAt) -> Result<Block, StorageError> {
        loop {
            let block = self.join_journal(places)?;
            // The further a run is behind the first record of its body, the longer its head is.
            if block.body.len() <= BATCH_BYTES_MAX || places.len() == 1 {
                return Ok(block);
            }
            let (front, back) = places.split_at(places.len() / 2);
            places = if matches!(at, ReadAt::Before(_)) { back } else { front };
        }
    }

    fn join_journal(&self, places: &[Indexed]) -> Result<Block, StorageError> {
        let (first, last) = (places[0], places[places.len() - 1]);
        let block = |body| Block {
            first: first.first,
            last: last.last,
            prev: first.prev,
            last_time: last.last_time,
            body,
            source: Source::Journal,
        };
        let mut body = Vec::new();
        self.journal.read(&first.place, &mut body)?;
        if places.len() == 1 {
            return Ok(block(Bytes::from(body)));
        }
        let mut builder = BatchBuilder::new();
        for indexed in places {
            self.journal.read(&indexed.place, &mut body)?;
            let runs = Batch::parse(&body).and_then(|batch| {
                for run in batch.runs() {
                    builder.push_run(&run?);
                }
                Ok(())
            });
            runs.map_err(|error| {
                StorageError::damaged(
                    std::path::Path::new(&format!("journal file {}", indexed.place.file)),
                    indexed.place.at,
                    error,
                )
            })?;
        }
        Ok(block(builder.finish().1))
    }

    fn read_volume(&self, room: &Room, id: RoomId, at: ReadAt) -> Result<Older, EngineError> {
        let (before, floor) =
            room.with_state(|state| (state.journal.front().map(|front| front.first), state.facts.floor));
        let begun = std::time::Instant::now();
        let read_at = || match at {
            // Blocks below the floor may still be there.
            ReadAt::After(offset) => self.volumes.read_after(id.0, offset.max(floor)),
            ReadAt::Before(offset) => self.volumes.read_before(id.0, offset),
            ReadAt::Since(time) => self.volumes.read_since(id.0, time),
        };
        let mut read = read_at();
        // To open a volume is to write to it.
        while matches!(&read, Err(error) if error.kind() == VolumeErrorKind::Full) && self.ballast.make_house_room(0) {
            read = read_at();
        }
        let read = read.map_err(|error| EngineError::Damaged(error.to_string()))?;
        self.metrics.volume_read_duration.record(begun.elapsed());
        let (after, facts) = room.with_state(|state| (state.journal.front().map(|front| front.first), state.facts));
        let damaged = |what: String| Err(EngineError::Damaged(format!("room {:?}: {what}", room.name())));
        if let Some(volume::Block { entry, body }) = read {
            let volume::BlockEntry { first, last, prev, last_time, .. } = entry;
            if last > facts.floor {
                if let ReadAt::After(offset) = at
                    && prev > offset.max(facts.floor)
                {
                    let offset = offset.max(facts.floor);
                    return damaged(format!("the records behind offset {offset} and up to {prev} are in no volume"));
                }
                return Ok(Older::Block(Block { first, last, prev, last_time, body, source: Source::Volume }));
            }
            return match at {
                // Retention has overtaken the read.
                ReadAt::After(_) => Ok(Older::Again),
                // What is before it is below the floor as well.
                ReadAt::Before(_) => Ok(Older::Nothing),
                // A record that is gone was of that time, so all that are retained are.
                ReadAt::Since(_) => Ok(match self.look(room, ReadAt::After(facts.floor))? {
                    Read::Block(block) => Older::Block(block),
                    Read::Nothing => Older::Nothing,
                }),
            };
        }
        if before != after {
            return Ok(Older::Again);
        }
        // Nothing there: right only where nothing is retained.
        let expected = match at {
            ReadAt::After(offset) => offset < facts.head && offset >= facts.floor && after.is_none(),
            ReadAt::Before(_) | ReadAt::Since(_) => false,
        };
        if expected {
            return damaged(format!(
                "no volume holds what follows {at:?}, though nothing up to its head {} was removed",
                facts.head
            ));
        }
        Ok(match (at, after) {
            // Times lie between the volumes and the journal: the journal's first batch is the first of that time.
            (ReadAt::Since(_), Some(_)) => match room.with_state(|state| journal_from(state, 0)) {
                Some(places) => match self.read_journal(&places, at) {
                    Ok(block) => Older::Block(block),
                    Err(StorageError::Gone { .. }) => Older::Again,
                    Err(error) => return Err(EngineError::Damaged(error.to_string())),
                },
                None => Older::Nothing,
            },
            _ => Older::Nothing,
        })
    }
}

enum Older {
    Block(Block),
    Nothing,
    /// The journal was dropped meanwhile: look again.
    Again,
}

/// Looks where a block is, without reading it.
fn find(state: &RoomState, at: ReadAt) -> Found {
    let facts = &state.facts;
    if facts.is_empty() {
        return Found::Nothing;
    }
    let (tail, journal) = (&state.tail, &state.journal);
    match at {
        ReadAt::After(offset) => {
            let offset = offset.max(facts.floor);
            if offset >= facts.head {
                return Found::Nothing;
            }
            if tail.front().is_some_and(|front| front.prev <= offset) {
                let index = tail.partition_point(|batch| batch.last <= offset);
                return Found::Tail(tail[index].clone());
            }
            if journal.front().is_some_and(|front| front.prev <= offset) {
                let index = journal.partition_point(|batch| batch.last <= offset);
                return journal_from(state, index).map_or(Found::Nothing, Found::Journal);
            }
            Found::Older(state.id)
        }
        ReadAt::Before(offset) => {
            if offset <= facts.first {
                return Found::Nothing;
            }
            if tail.front().is_some_and(|front| front.first < offset) {
                let index = tail.partition_point(|batch| batch.first < offset) - 1;
                return Found::Tail(tail[index].clone());
            }
            if journal.front().is_some_and(|front| front.first < offset) {
                let index = journal.partition_point(|batch| batch.first < offset) - 1;
                return Found::Journal(journal_up_to(state, index));
            }
            Found::Older(state.id)
        }
        ReadAt::Since(time) => {
            if facts.time < time {
                return Found::Nothing;
            }
            // The first batch of a part tells only of its own time: something older may be of that time too.
            if tail.front().is_some_and(|front| front.last_time < time) {
                let index = tail.partition_point(|batch| batch.last_time < time);
                return tail.get(index).map_or(Found::Nothing, |batch| Found::Tail(batch.clone()));
            }
            if journal.front().is_some_and(|front| front.last_time < time) {
                let index = journal.partition_point(|batch| batch.last_time < time);
                return journal_from(state, index).map_or(Found::Nothing, Found::Journal);
            }
            Found::Older(state.id)
        }
    }
}

/// Neighbours in the journal from an index on, as many as make one block.
fn journal_from(state: &RoomState, index: usize) -> Option<Vec<Indexed>> {
    let first = *state.journal.get(index)?;
    let (mut places, mut bytes) = (vec![first], first.place.bytes as usize);
    for next in state.journal.range(index + 1..) {
        bytes += next.place.bytes as usize;
        if bytes > BATCH_BYTES_MAX {
            break;
        }
        places.push(*next);
    }
    Some(places)
}

/// Neighbours in the journal up to an index, as many as make one block.
fn journal_up_to(state: &RoomState, index: usize) -> Vec<Indexed> {
    let last = state.journal[index];
    let (mut places, mut bytes) = (vec![last], last.place.bytes as usize);
    for before in state.journal.range(..index).rev() {
        bytes += before.place.bytes as usize;
        if bytes > BATCH_BYTES_MAX || before.last <= state.facts.floor {
            break;
        }
        places.push(*before);
    }
    places.reverse();
    places
}
