//! What the tests of volumes share: disks, a log as a plain list, and ways to compare.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::protocol::{BATCH_BYTES_MAX, Batch, BatchBuilder, RecordArea, RunHeader};
use crate::storage::block_store::{BlockStore, MemoryBlockStore, SledBlockStore};
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::volume::{Input, VolumeError, VolumeId, VolumeInfo, VolumeLimits, Volumes, build};
use crate::types::{NewRecord, Offset, PublisherId, Time};

/// A directory as a disk, of which an operation can be made to fail.
#[derive(Debug)]
pub(super) struct TestDisk {
    root: tempfile::TempDir,
    /// How many more changes succeed; endlessly many if negative.
    changes_left: Arc<AtomicI64>,
}

impl TestDisk {
    pub(super) fn new() -> Arc<Self> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("volumes")).unwrap();
        Arc::new(Self { root, changes_left: Arc::new(AtomicI64::new(-1)) })
    }

    pub(super) fn fail_after(&self, changes: i64) {
        self.changes_left.store(changes, Ordering::SeqCst);
    }

    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.root.path().join(path)
    }
}

fn change(left: &AtomicI64) -> io::Result<()> {
    match left.load(Ordering::SeqCst) {
        0 => Err(io::ErrorKind::StorageFull.into()),
        more if more > 0 => {
            left.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
        _ => Ok(()),
    }
}

impl Disk for TestDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.path(path))?;
        Ok(Arc::new(TestFile { file, changes_left: Arc::clone(&self.changes_left) }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        change(&self.changes_left)?;
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(self.path(path))?;
        Ok(Arc::new(TestFile { file, changes_left: Arc::clone(&self.changes_left) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        change(&self.changes_left)?;
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        change(&self.changes_left)?;
        fs::remove_file(self.path(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(self.path(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(self.path(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names: Vec<_> = fs::read_dir(self.path(path))?
            .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
            .collect::<io::Result<_>>()?;
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        change(&self.changes_left)?;
        fs::File::open(self.path(path))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn used_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(self.path(path))?.len())
    }

    fn root(&self) -> Option<&Path> {
        Some(self.root.path())
    }
}

#[derive(Debug)]
struct TestFile {
    file: fs::File,
    changes_left: Arc<AtomicI64>,
}

impl DiskFile for TestFile {
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        if let Err(error) = change(&self.changes_left) {
            // What fails may have been done in part.
            let part = &bytes[..bytes.len() / 2];
            std::os::unix::fs::FileExt::write_all_at(&self.file, part, position)?;
            return Err(error);
        }
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        change(&self.changes_left)?;
        self.file.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// Where volumes are, for one test.
pub(super) struct Place {
    pub(super) disk: Arc<TestDisk>,
    pub(super) store: Arc<dyn BlockStore>,
}

impl Place {
    pub(super) fn sled() -> Self {
        let disk = TestDisk::new();
        let store = Arc::new(SledBlockStore::new(disk.root.path()));
        Self { disk, store }
    }

    pub(super) fn memory() -> Self {
        Self { disk: TestDisk::new(), store: Arc::new(MemoryBlockStore::new()) }
    }

    /// Builds a volume of everything that the input has.
    pub(super) fn build(&self, id: u64, input: &[Input]) -> VolumeInfo {
        let input = input.iter().cloned().map(Ok);
        self.try_build(id, input, |_| Offset::ZERO).unwrap().expect("there are records")
    }

    /// Builds a volume whose commits are told by its number.
    pub(super) fn try_build(
        &self,
        id: u64,
        input: impl Iterator<Item = Result<Input, VolumeError>>,
        floor: impl FnMut(u64) -> Offset,
    ) -> Result<Option<VolumeInfo>, VolumeError> {
        build(&*self.disk, &*self.store, VolumeId(id), (id * 10, id * 10 + 9), input, floor)
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
