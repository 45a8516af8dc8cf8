//! Building a volume: the one operation that keeps the house.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::{Batch, WireError};
use crate::storage::Compression;
use crate::storage::block_store::{BlockStore, BlockWriter};
use crate::storage::disk::Disk;
use crate::types::Offset;

use super::block::{BODY_BYTES_CEILING, BlockEncoder};
use super::check::{Depth, verify};
use super::directory::{BlockEntry, DirectoryWriter, ENTRIES_PER_PAGE, Numbered};
use super::merge::{Merge, Merged, OutOfOrder};
use super::volumes::{Volume, Volumes};
use super::{VOLUMES, VolumeError, VolumeId, VolumeInfo, delete};

/// A batch on its way into a volume.
#[derive(Clone, Debug)]
pub struct Input {
    /// The room.
    pub room: u64,
    /// The offset of the record before the batch's first one, in the room.
    pub prev: Offset,
    /// The batch.
    pub body: Bytes,
}

/// Builds a volume, makes it durable, and verifies every block of it by reading it again.
///
/// `input` is in order of room, and of offset within a room; the `prev` of a batch is the last offset of the one
/// before, except for a room's first batch. `floor` says for each room, once, up to which offset records are left
/// out; what is kept keeps its true `prev`. `commits` are the first and the last commit that the input covers.
/// `None` means that nothing was left: there is no volume then, and nothing of it on the disk.
///
/// Memory: a block, a page of the directory, and 8 bytes for each room and 16 for each 63 blocks.
///
/// # Errors
/// See [`VolumeError`]. What was written until then is rubbish that [`delete`] takes away;
/// [`VolumeErrorKind::Full`](super::VolumeErrorKind::Full) is worth another try.
pub fn build(
    disk: &dyn Disk,
    store: &dyn BlockStore,
    id: VolumeId,
    commits: (u64, u64),
    compression: Compression,
    input: impl IntoIterator<Item = Result<Input, VolumeError>>,
    mut floor: impl FnMut(u64) -> Offset,
) -> Result<Option<VolumeInfo>, VolumeError> {
    let made = disk.create_dir(Path::new(VOLUMES)).and_then(|()| disk.sync_dir(Path::new("")));
    made.map_err(VolumeError::io(Path::new(VOLUMES)))?;
    let mut blocks = store.create(&id.blocks_path())?;
    let mut directory = DirectoryWriter::create(disk, id, commits)?;
    let mut encoder = BlockEncoder::new(compression);
    let mut merge = Merge::default();
    let mut room: Option<(u64, Offset)> = None;
    for batch in input {
        let Input { room: of, prev, body } = batch?;
        if body.len() > BODY_BYTES_CEILING {
            return Err(VolumeError::input(format!("a batch of {} bytes in room {of}", body.len())));
        }
        let current = match room {
            Some(current) if current.0 == of => current,
            before => {
                if before.is_some_and(|(before, _)| before > of) {
                    return Err(VolumeError::input(format!("room {of} comes after a room with a greater number")));
                }
                if let Some((before, _)) = before {
                    merge.flush(&mut |merged| write(&mut *blocks, &mut directory, &mut encoder, before, &merged))?;
                }
                merge.restart();
                *room.insert((of, floor(of)))
            }
        };
        let batch = Batch::parse(&body).map_err(VolumeError::input)?;
        merge.add::<VolumeError>(prev, &batch, current.1, &mut |merged| {
            write(&mut *blocks, &mut directory, &mut encoder, of, &merged)
        })?;
    }
    if let Some((last, _)) = room {
        merge.flush(&mut |merged| write(&mut *blocks, &mut directory, &mut encoder, last, &merged))?;
    }
    if directory.blocks() == 0 {
        drop((blocks, directory));
        delete(disk, store, id)?;
        return Ok(None);
    }
    blocks.finish()?;
    // Last of all: with its header the volume is whole.
    let info = directory.finish(disk)?;
    match verify(disk, store, id, Depth::Blocks)?.into_iter().next() {
        Some(finding) => Err(VolumeError::Damaged(finding)),
        None => Ok(Some(info)),
    }
}

fn write(
    blocks: &mut dyn BlockWriter,
    directory: &mut DirectoryWriter,
    encoder: &mut BlockEncoder,
    room: u64,
    merged: &Merged,
) -> Result<(), VolumeError> {
    let header = &merged.header;
    let stored = encoder.put(blocks, room, header.first, &merged.body)?;
    directory.push(&BlockEntry {
        room,
        first: header.first,
        last: header.last(),
        prev: merged.prev,
        first_time: header.time,
        last_time: merged.last_time,
        records: header.count,
        body_bytes: u32::try_from(merged.body.len()).expect("the ceiling of a body is far below 4 GiB"),
        stored_bytes: stored.bytes,
        crc: stored.crc,
    })
}

impl From<WireError> for VolumeError {
    fn from(error: WireError) -> Self {
        Self::input(error)
    }
}

impl From<OutOfOrder> for VolumeError {
    fn from(error: OutOfOrder) -> Self {
        Self::input(error)
    }
}

/// The records of older volumes as the input of a new one: how volumes are joined and rewritten.
///
/// The volumes must follow one another. Blocks that are at or below the floor as a whole are not even read. What is
/// read goes through `volumes`, within its limits, but does not displace what its readers have in the cache.
///
/// # Errors
/// When a volume is not one of `volumes`.
pub fn reread<'a>(
    volumes: &'a Volumes,
    ids: &[VolumeId],
    floor: impl FnMut(u64) -> Offset + 'a,
) -> Result<impl Iterator<Item = Result<Input, VolumeError>> + 'a, VolumeError> {
    let mut sources = Vec::new();
    for id in ids {
        sources.push(Source { volume: volumes.volume(*id)?, next: 0, entries: VecDeque::new() });
    }
    sources.sort_by_key(|source| source.volume.info().commit_first);
    Ok(Reread { volumes, sources, room: None, floor, failed: false })
}

struct Source {
    volume: Arc<Volume>,
    next: u64,
    entries: VecDeque<Numbered>,
}

impl Source {
    /// The next entry, which stays.
    fn head(&mut self, volumes: &Volumes) -> Result<Option<Numbered>, VolumeError> {
        if self.entries.is_empty() {
            let mut entries = volumes.entries(&self.volume)?;
            let end = entries.len().min(self.next + ENTRIES_PER_PAGE);
            for number in self.next..end {
                self.entries.push_back(Numbered { number, entry: entries.entry(number)? });
            }
            self.next = end;
        }
        Ok(self.entries.front().copied())
    }
}

struct Reread<'a, F> {
    volumes: &'a Volumes,
    sources: Vec<Source>,
    /// The room whose blocks are taken, and its floor.
    room: Option<(u64, Offset)>,
    floor: F,
    failed: bool,
}

impl<F: FnMut(u64) -> Offset> Reread<'_, F> {
    fn input(&mut self) -> Result<Option<Input>, VolumeError> {
        loop {
            // The oldest volume that has more of the room; or else the next room.
            let (mut taken, mut next_room) = (None, None);
            for (index, source) in self.sources.iter_mut().enumerate() {
                let Some(head @ Numbered { entry, .. }) = source.head(self.volumes)? else { continue };
                if self.room.is_some_and(|(room, _)| room == entry.room) {
                    taken = Some((index, head));
                    break;
                }
                next_room = Some(next_room.map_or(entry.room, |room: u64| room.min(entry.room)));
            }
            let Some((index, Numbered { number, entry })) = taken else {
                let Some(room) = next_room else { return Ok(None) };
                self.room = Some((room, (self.floor)(room)));
                continue;
            };
            let source = &mut self.sources[index];
            source.entries.pop_front();
            if self.room.is_some_and(|(_, floor)| entry.last > floor) {
                let body = self.volumes.read_uncached(&source.volume, number, &entry)?;
                return Ok(Some(Input { room: entry.room, prev: entry.prev, body }));
            }
        }
    }
}

impl<F: FnMut(u64) -> Offset> Iterator for Reread<'_, F> {
    type Item = Result<Input, VolumeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let input = self.input().transpose();
        self.failed = matches!(input, Some(Err(_)));
        input
    }
}
