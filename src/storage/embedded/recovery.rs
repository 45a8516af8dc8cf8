//! Opening: lock, manifest, checkpoint, volumes, journal, in this order; nothing is changed before all was read.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::queue::CommitQueue;
use super::{Committed, Embedded, Shared, since};
use crate::metrics::{Budget, Metrics, StorageState};
use crate::protocol::{Batch, RunHeader, WireError};
use crate::storage::ballast::Ballast;
use crate::storage::block_store::{BlockStore, MemoryBlockStore, SledBlockStore};
use crate::storage::catalog::{AtRest, Catalog};
use crate::storage::checkpoint::{self, Checkpoint};
use crate::storage::commit::{Commit, Entry, UnitPlace};
use crate::storage::disk::{DirectoryLock, Disk, MemoryDisk, RealDisk, descriptors_max};
use crate::storage::engine::{Health, record_hash};
use crate::storage::error::StorageError;
use crate::storage::journal::{Journal, JournalOptions};
use crate::storage::manifest::Manifest;
use crate::storage::marks::{CleanMark, Durability, RunMark, judge_last_stop};
use crate::storage::publishers::Memory;
use crate::storage::room::{Indexed, Room, RoomId};
use crate::storage::volume::{VOLUMES, VolumeId, VolumeLimits, Volumes, delete, found};
use crate::storage::{OpenError, Options};
use crate::types::{Epoch, Offset, RoomName, Time};

impl Embedded {
    pub(super) fn open(options: Options, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        check(&options)?;
        if options.durability == Durability::Memory {
            let disk = Arc::new(MemoryDisk::new(options.memory_bytes_max));
            let store = Arc::new(MemoryBlockStore::within(&disk));
            let parts = assemble(options, metrics, disk, store)?;
            return Self::start(parts, None);
        }
        let root = &options.directory;
        let io = |source| OpenError::Storage(StorageError::Io { path: root.clone(), doing: "use", source });
        let disk = Arc::new(RealDisk::new(root));
        disk.create_root().map_err(io)?;
        let lock = DirectoryLock::acquire(root)?;
        let store = Arc::new(SledBlockStore::new(root));
        Self::start(assemble(options, metrics, disk, store)?, Some(lock))
    }
}

/// A log that has been recovered, and whose threads do not run yet.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) journal: Journal,
    pub(super) manifest: Manifest,
    pub(super) next_room: u64,
}

/// Recovers a log on any disk and block store: the tests put failing ones here.
pub(super) fn assemble(
    options: Options,
    metrics: Arc<Metrics>,
    disk: Arc<dyn Disk>,
    store: Arc<dyn BlockStore>,
) -> Result<Parts, OpenError> {
    let begun = Instant::now();
    // Durable before anything is put into them: a manifest may name it as soon as it is there.
    for directory in [VOLUMES, checkpoint::DIRECTORY] {
        let path = Path::new(directory);
        disk.create_dir(path).map_err(StorageError::io(path, "create"))?;
    }
    disk.sync_dir(Path::new("")).map_err(StorageError::io(Path::new(""), "sync"))?;
    let memory = Memory {
        seqs: options.publisher_seqs,
        publishers: options.publishers_per_room,
        age_us: u64::try_from(options.publisher_age_max.as_micros()).unwrap_or(u64::MAX),
    };
    let defaults = JournalOptions::default();
    let journal_options = JournalOptions {
        free_bytes_min: options.disk_reserve_bytes,
        // A file goes only whole: those of a short stretch are short, or they would keep what the stretch gave back.
        file_bytes_max: (options.stretch_bytes / 4).clamp(defaults.file_bytes_min, defaults.file_bytes_max),
        ..defaults
    };
    let run = RunMark::now(options.durability);
    let mut restored = Restored {
        catalog: Catalog::new(AtRest::default(), None),
        at_rest: Vec::new(),
        born: HashMap::new(),
        memory,
        next_room: 1,
        indexed: 0,
    };
    let volume_limits = VolumeLimits::default();
    let volumes = Volumes::new(
        Arc::clone(&disk),
        Arc::clone(&store),
        VolumeLimits {
            cache_bytes_max: options.block_cache_bytes_max,
            held_bytes_max: options.open_volumes_bytes_max as u64,
            // A store and a file each: a quarter of the process's descriptors at most.
            open_max: usize::try_from(descriptors_max() / 8).unwrap_or(usize::MAX).clamp(2, volume_limits.open_max),
            ..volume_limits
        },
    );
    let reserve = if options.durability == Durability::Memory { 0 } else { options.disk_reserve_bytes };
    let ballast = Ballast::open(Arc::clone(&disk), reserve);
    let (journal, manifest) = match Manifest::open(&*disk)? {
        None => {
            let (journal, start) = Journal::create(Arc::clone(&disk), journal_options)?;
            let epoch = Epoch::random().map_err(OpenError::Threads)?;
            let manifest = Manifest::new(epoch, start);
            manifest.swap(&*disk)?;
            (journal, manifest)
        }
        Some(mut manifest) => {
            let clean = CleanMark::read(&*disk)?;
            let last = RunMark::read(&*disk)?;
            let finding = judge_last_stop(last.as_ref(), clean.as_ref(), &run);
            if let Some(number) = manifest.checkpoint {
                let mut at_rest = AtRest::default();
                let checkpoint = Checkpoint::open(&*disk, number, |name, id, facts, place| {
                    restored.next_room = restored.next_room.max(id.0 + 1);
                    at_rest.push(name, id, facts, place);
                });
                at_rest.sort();
                restored.at_rest = at_rest.ids();
                restored.catalog = Catalog::new(at_rest, Some(Arc::new(checkpoint.map_err(fault)?)));
            }
            restored.next_room = restored.next_room.max(manifest.next_room);
            let ids: Vec<_> = manifest.volumes.iter().map(|volume| VolumeId(volume.id)).collect();
            volumes.swap(&ids, &[])?;
            // From here on a start writes.
            ballast.make_house_room(manifest.volumes.len());
            let mut rooms = HashMap::new();
            let (journal, recovery) = Journal::recover(
                Arc::clone(&disk),
                journal_options,
                &manifest.journal,
                &finding.last_stop,
                &mut |commit| restored.visit(commit, &mut rooms),
            )?;
            if let Some(torn) = &recovery.torn {
                tracing::warn!(
                    "{}:{}: a commit that was being written when the broker stopped is dropped; \
                         it was never acknowledged",
                    torn.path.display(),
                    torn.position
                );
            }
            if recovery.dropped > 0 {
                tracing::warn!(
                    "the machine stopped while commits were not synced: {} commits after the torn one are lost",
                    recovery.dropped
                );
            }
            if finding.new_epoch {
                manifest.epoch = Epoch::random().map_err(OpenError::Threads)?;
                manifest.swap(&*disk)?;
            }
            CleanMark::remove(&*disk)?;
            tidy(&*disk, &*store, &manifest)?;
            tracing::info!(
                commits = recovery.commits,
                bytes = recovery.bytes,
                rooms = restored.catalog.counts().0,
                volumes = manifest.volumes.len(),
                "opened in {}",
                since(begun)
            );
            (journal, manifest)
        }
    };
    run.write(&*disk)?;
    let Restored { catalog, next_room, indexed, .. } = restored;
    let end = journal.end();
    for (budget, bytes) in [
        (Budget::Tails, options.tails_bytes_max),
        (Budget::BlockCache, options.block_cache_bytes_max),
        (Budget::OpenVolumes, options.open_volumes_bytes_max),
        (Budget::CommitQueue, options.commit_queue_bytes_max),
    ] {
        metrics.budget_max[budget].set(bytes as f64);
    }
    metrics.storage_state.set(StorageState::Accepting.number());
    let shared = Shared {
        memory,
        metrics,
        epoch: manifest.epoch,
        disk,
        store,
        ballast,
        catalog,
        queue: CommitQueue::default(),
        journal: journal.reader(),
        volumes,
        health: Mutex::new(Health::Ok),
        closed: AtomicBool::new(false),
        behind: AtomicBool::new(false),
        committed: Mutex::new(Committed { seq: end.seq, file: end.file, end: end.position }),
        committed_changed: Condvar::new(),
        indexed: AtomicU64::new(indexed),
        making: AtomicU64::new(end.seq.0),
        clock_ahead_us: AtomicU64::new(0),
        keeper: Mutex::default(),
        keeper_asked: Condvar::new(),
        options,
    };
    Ok(Parts { shared: Arc::new(shared), journal, manifest, next_room })
}

fn check(options: &Options) -> Result<(), OpenError> {
    let fault = |what: String| Err(OpenError::Options(what));
    if options.offset_stride == 0 {
        return fault("offset_stride is 0, but must be at least 1".to_owned());
    }
    if options.commit_bytes_max == 0 || options.commit_bytes_max > 16 << 20 {
        return fault(format!("commit_bytes_max is {}, but must be from 1 to 16 MiB", options.commit_bytes_max));
    }
    if options.journal_bytes_max < options.stretch_bytes {
        return fault(format!(
            "journal_bytes_max is {}, but must be at least stretch_bytes, {}",
            options.journal_bytes_max, options.stretch_bytes
        ));
    }
    Ok(())
}

fn fault(checkpoint::Fault { file, position, what }: checkpoint::Fault) -> OpenError {
    OpenError::Storage(StorageError::damaged(Path::new(&file), position, what))
}

/// Deletes what an interrupted build or swap has left: a durable manifest names neither.
fn tidy(disk: &dyn Disk, store: &dyn BlockStore, manifest: &Manifest) -> Result<(), OpenError> {
    for id in found(disk)? {
        if !manifest.volumes.iter().any(|volume| volume.id == id.0) {
            tracing::info!("volume {id} is not part of the log and is deleted: it was being built or given up");
            delete(disk, store, id)?;
        }
    }
    let meta = Path::new(checkpoint::DIRECTORY);
    for name in disk.list(meta).map_err(StorageError::io(meta, "list"))? {
        let named = manifest.checkpoint.is_some_and(|number| checkpoint::path(number).ends_with(&name));
        let ours = name.extension().is_some_and(|extension| extension == "rlm");
        if ours && !named {
            let path = meta.join(&name);
            disk.remove(&path).map_err(StorageError::io(&path, "remove"))?;
        }
    }
    Ok(())
}

/// The rooms as the checkpoint and the journal tell of them.
struct Restored {
    catalog: Catalog,
    /// The rooms of the checkpoint by their numbers, each with its index there.
    at_rest: Vec<(RoomId, usize)>,
    /// Those that have come into being since.
    born: HashMap<RoomId, RoomName>,
    memory: Memory,
    next_room: u64,
    /// Batches in the journal.
    indexed: u64,
}

impl Restored {
    fn visit(&mut self, commit: &Commit<'_>, rooms: &mut HashMap<RoomId, Arc<Room>>) -> Result<(), StorageError> {
        let damaged = |error: &dyn ToString| {
            let path = crate::storage::journal::path_of(commit.place.file);
            StorageError::damaged(&path, commit.place.at, error.to_string())
        };
        for entry in commit.entries() {
            match entry {
                Entry::Room { room, name } => {
                    let id = RoomId(room);
                    let name = RoomName::new(name).map_err(|error| damaged(&error))?;
                    let known = self.name(id);
                    if known.as_ref().is_some_and(|known| *known != name) {
                        return Err(damaged(&format_args!("room {room} comes into being a second time")));
                    }
                    if known.is_none() {
                        self.born.insert(id, name.clone());
                        let room = self.catalog.room(name.as_str()).map_err(|error| damaged(&error))?;
                        room.log.lock().id = Some(id);
                        room.with_state(|state| state.id = Some(id));
                        self.catalog.born(&room, id);
                        rooms.insert(id, room);
                    }
                    self.next_room = self.next_room.max(room + 1);
                }
                Entry::Floor { room, floor } => {
                    self.room(RoomId(room), rooms).map_err(|error| damaged(&error))?.rise(&floor);
                }
                Entry::Batch { room, prev, body, span } => {
                    let room = self.room(RoomId(room), rooms).map_err(|error| damaged(&error))?;
                    self.batch(&room, prev, body, commit.place, span).map_err(|error| damaged(&error))?;
                    self.indexed += 1;
                }
            }
        }
        Ok(())
    }

    fn name(&self, id: RoomId) -> Option<RoomName> {
        if let Some(name) = self.born.get(&id) {
            return Some(name.clone());
        }
        let at = self.at_rest.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.catalog.resting_name(self.at_rest[at].1))
    }

    fn room(&self, id: RoomId, rooms: &mut HashMap<RoomId, Arc<Room>>) -> Result<Arc<Room>, String> {
        if let Some(room) = rooms.get(&id) {
            return Ok(Arc::clone(room));
        }
        let name = self.name(id).ok_or_else(|| format!("room {} is not known", id.0))?;
        let room = self.catalog.room(name.as_str()).map_err(|error| error.to_string())?;
        rooms.insert(id, Arc::clone(&room));
        Ok(room)
    }

    /// A batch of the journal: its place, and, unless the checkpoint has seen it, what it adds to the room.
    fn batch(
        &self,
        room: &Room,
        prev: Offset,
        body: &[u8],
        place: UnitPlace,
        span: crate::storage::commit::BodySpan,
    ) -> Result<(), WireError> {
        let batch = Batch::parse(body)?;
        let mut log = room.log.lock();
        let head = log.facts.head;
        let seen = batch.header.last() <= head;
        // A checkpoint that was written while this batch was being made has seen the records at its front.
        let seen_in_part = !seen && batch.header.first <= head;
        if !seen && !seen_in_part && prev != head {
            return Err(WireError::invalid(
                "a batch",
                format_args!("it follows offset {prev} of room {:?}, whose head is {head}", room.name()),
            ));
        }
        let was_empty = log.facts.is_empty();
        let mut last_time = Time::default();
        let mut hashes = Vec::new();
        for run in batch.runs() {
            let run = run?;
            last_time = run.time;
            let RunHeader { step, publisher, count, .. } = run.header;
            let seen = if run.first > head { 0 } else { ((head.0 - run.first.0) / step + 1).min(count.into()) };
            if seen == u64::from(count) {
                continue;
            }
            hashes.clear();
            let (mut area, mut new, mut at) = (run.area, run.area, 0);
            while let Some((record, rest)) = area.split_first()? {
                if at < seen {
                    new = rest;
                } else {
                    hashes.push(record_hash(record));
                }
                area = rest;
                at += 1;
            }
            let user = Arc::from(run.header.user);
            let (seq, first) = (run.header.seq + seen, Offset(run.first.0 + seen * step));
            log.publishers.note(self.memory, &user, publisher, seq, &hashes, first, step, run.time);
            log.facts.records += u64::from(count) - seen;
            log.facts.bytes += new.0.len() as u64;
        }
        let (first, last, first_time) = (batch.header.first, batch.header.last(), batch.header.time);
        if !seen {
            let facts = &mut log.facts;
            if was_empty {
                (facts.first, facts.first_time) = (first, first_time);
            }
            (facts.head, facts.time) = (last, last_time);
            log.changed = true;
        } else if !was_empty && log.facts.first <= log.facts.floor && first > log.facts.floor {
            // The checkpoint had seen more than the floor's commit, which could not name the first that stays.
            (log.facts.first, log.facts.first_time) = (first, first_time);
        }
        let facts = log.facts;
        drop(log);
        room.with_state(|state| {
            state.facts = facts;
            state.journal.push_back(Indexed { first, last, prev, first_time, last_time, place: place.body(span) });
        });
        Ok(())
    }
}
