//! What the tests of volumes share: disks, a log as a plain list, and ways to compare.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::protocol::{BATCH_BYTES_MAX, Batch, BatchBuilder, RecordArea, RunHeader};
use crate::storage::Compression;
use crate::storage::block_store::{BlockStore, MemoryBlockStore, SledBlockStore};
use crate::storage::disk::{Disk, FaultyDisk, RealDisk};
use crate::storage::volume::{
    Finding, Input, VolumeError, VolumeId, VolumeInfo, VolumeLimits, Volumes, build, check_volume,
};
use crate::types::{NewRecord, Offset, PublisherId, Time};

/// Where volumes are, for one test.
pub(super) struct Place {
    // Removed with the place.
    root: Option<tempfile::TempDir>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) store: Arc<dyn BlockStore>,
}

impl Place {
    pub(super) fn sled() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (disk, store) = (Arc::new(RealDisk::new(root.path())), Arc::new(SledBlockStore::new(root.path())));
        Self { root: Some(root), disk, store }
    }

    /// Blocks in memory, directory files where told.
    pub(super) fn memory(disk: impl Disk) -> Self {
        Self { root: None, disk: Arc::new(disk), store: Arc::new(MemoryBlockStore::new()) }
    }

    /// The same blocks beside another disk.
    pub(super) fn with_disk(&self, disk: impl Disk) -> Self {
        Self { root: None, disk: Arc::new(disk), store: self.store.clone() }
    }

    /// Both kinds.
    pub(super) fn both() -> [Self; 2] {
        [Self::memory(FaultyDisk::new(0)), Self::sled()]
    }

    /// Where a file of a place with a root is for the operating system.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.root.as_ref().expect("asked of places with a root").path().join(path)
    }

    /// Builds a volume of everything that the input has; its commits are told by its number.
    pub(super) fn build(&self, id: u64, input: &[Input]) -> VolumeInfo {
        let input = input.iter().cloned().map(Ok);
        self.try_build(id, input, |_| Offset::ZERO).unwrap().expect("there are records")
    }

    pub(super) fn try_build(
        &self,
        id: u64,
        input: impl Iterator<Item = Result<Input, VolumeError>>,
        floor: impl FnMut(u64) -> Offset,
    ) -> Result<Option<VolumeInfo>, VolumeError> {
        build(&*self.disk, &*self.store, VolumeId(id), (id * 10, id * 10 + 9), Compression::Lz4, input, floor)
    }

    pub(super) fn check(&self, id: u64) -> Vec<Finding> {
        check_volume(&*self.disk, &*self.store, VolumeId(id)).unwrap()
    }

    pub(super) fn open(&self, ids: &[u64]) -> Volumes {
        self.open_within(ids, VolumeLimits::default())
    }

    pub(super) fn open_within(&self, ids: &[u64], limits: VolumeLimits) -> Volumes {
        let volumes = Volumes::new(self.disk.clone(), self.store.clone(), limits);
        let ids: Vec<_> = ids.iter().copied().map(VolumeId).collect();
        volumes.swap(&ids, &[]).unwrap();
        volumes
    }
}

/// A record, as a test remembers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Remembered {
    pub(super) offset: Offset,
    pub(super) prev: Offset,
    pub(super) time: Time,
    user: String,
    publisher: PublisherId,
    seq: u64,
    payload: Vec<u8>,
}

/// A log as a plain list, and the batches that a journal would have of it.
#[derive(Default)]
pub(super) struct Log {
    pub(super) rooms: BTreeMap<u64, Vec<Remembered>>,
    time: u64,
    seq: u64,
}

/// How a log's records are.
pub(super) struct Shape {
    pub(super) rooms: u64,
    pub(super) batches: usize,
    pub(super) striding: bool,
    pub(super) payload_bytes_max: usize,
}

/// The seed of a random test: told, so that it can be run again.
pub(super) fn seeded(test: &str) -> StdRng {
    let seed = match std::env::var("ROOMLOG_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ROOMLOG_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("{test}: ROOMLOG_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

impl Log {
    /// Goes on with the log, and returns what was added, sorted as the builder needs it.
    pub(super) fn stretch(&mut self, random: &mut StdRng, shape: &Shape) -> Vec<Input> {
        let mut input = Vec::new();
        for _ in 0..shape.batches {
            let room = random.random_range(0..shape.rooms).pow(3);
            let runs = random.random_range(1..5);
            input.extend(self.batch(random, room, runs, shape));
        }
        // Stable: the order within a room is the order of commit.
        input.sort_by_key(|input| input.room);
        input
    }

    fn batch(&mut self, random: &mut StdRng, room: u64, runs: usize, shape: &Shape) -> Vec<Input> {
        let records = self.rooms.entry(room).or_default();
        let mut inputs = Vec::new();
        let mut builder = BatchBuilder::new();
        let mut last = records.last().map_or(Offset::ZERO, |record| record.offset);
        let mut prev = last;
        for _ in 0..runs {
            let step = if shape.striding { random.random_range(1..9) } else { 1 };
            let gap = if shape.striding { random.random_range(1..99) } else { 1 };
            self.time += random.random_range(0..2000);
            let user = ["", "ada", "a user with a longer name"][random.random_range(0..3)];
            let publisher = PublisherId([random.random_range(0..4); 16]);
            let (mut area, mut count, first_seq) = (Vec::new(), 0_u32, self.seq + 1);
            let first = Offset(last.0 + gap);
            for _ in 0..random.random_range(1..40) {
                let length = match random.random_range(0..20) {
                    0 => random.random_range(0..=shape.payload_bytes_max),
                    1 => 0,
                    _ => random.random_range(0..200),
                };
                if count > 0 && area.len() + length > BATCH_BYTES_MAX {
                    break;
                }
                // Half random and half repeated, so that some of it compresses.
                let mut payload = vec![random.random(); length];
                random.fill(&mut payload[..length / 2]);
                RecordArea::push(&mut area, &NewRecord::new(&payload));
                let offset = Offset(first.0 + u64::from(count) * step);
                self.seq += 1;
                records.push(Remembered {
                    offset,
                    prev: last,
                    time: Time(self.time),
                    user: user.to_owned(),
                    publisher,
                    seq: self.seq,
                    payload,
                });
                (last, count) = (offset, count + 1);
            }
            if !builder.is_empty() && builder.len() + area.len() > BATCH_BYTES_MAX {
                let before = builder.last();
                inputs.push(Input { room, prev, body: builder.finish().1 });
                prev = before;
            }
            let header =
                RunHeader { offset_delta: 0, step, time_delta: 0, user, publisher, seq: first_seq, count, bytes: 0 };
            builder.push(first, Time(self.time), count, &area, header);
        }
        inputs.push(Input { room, prev, body: builder.finish().1 });
        inputs
    }

    /// Drops what is at or below a floor.
    pub(super) fn trim(&mut self, room: u64, floor: Offset) {
        if let Some(records) = self.rooms.get_mut(&room) {
            records.retain(|record| record.offset > floor);
        }
    }
}

/// Decodes a body, from its first record on.
pub(super) fn remembered(prev: Offset, body: &[u8]) -> Vec<Remembered> {
    let batch = Batch::parse(body).unwrap();
    batch.check().unwrap();
    batch
        .records(prev)
        .map(|record| {
            let record = record.unwrap();
            Remembered {
                offset: record.offset,
                prev: record.prev,
                time: record.time,
                user: record.user.to_owned(),
                publisher: record.publisher,
                seq: record.seq,
                payload: record.content.payload.to_vec(),
            }
        })
        .collect()
}

/// Reads a room from its beginning to its end.
pub(super) fn read_room(volumes: &Volumes, room: u64) -> Result<Vec<Remembered>, VolumeError> {
    let mut records = Vec::new();
    let mut after = Offset::ZERO;
    while let Some(block) = volumes.read_after(room, after)? {
        // When volumes are joined meanwhile, a block may begin before the place that was asked for.
        let found = remembered(block.entry.prev, &block.body);
        records.extend(found.into_iter().filter(|record| record.offset > after));
        after = block.entry.last;
    }
    Ok(records)
}

/// Compares every room of the log with what is in the volumes.
pub(super) fn assert_same(log: &Log, volumes: &Volumes) {
    for (room, records) in &log.rooms {
        let found = read_room(volumes, *room).unwrap();
        assert_eq!(found.len(), records.len(), "room {room}");
        for (found, record) in found.iter().zip(records) {
            assert!(found == record, "room {room}: {:?} instead of {:?}", found.offset, record.offset);
        }
    }
}
