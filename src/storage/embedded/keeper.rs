//! The keeper: the house-keeping of the log, on a thread of its own.
//!
//! It reserves journal, builds volumes of closed stretches, writes the checkpoint, applies retention, rewrites
//! volumes with little left in them, and looks whether there is space. All of it in steps of which the manifest
//! swap is the only one that counts: what goes before it can be thrown away, what comes after it can be repeated.

mod retention;
mod rewriting;
mod space;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wildmatch::WildMatch;

use self::retention::Clock;
pub(super) use self::rewriting::Tidied;
use self::space::Lacking;
use super::{Shared, said, since};
use crate::metrics::{Budget, Work};
use crate::storage::catalog::{AtRest, Known};
use crate::storage::checkpoint;
use crate::storage::commit::{BodyPlace, CommitSeq, JournalFileId, SECTOR_BYTES};
use crate::storage::engine::{EngineError, Health};
use crate::storage::error::StorageError;
use crate::storage::journal::{JournalFiles, JournalUse};
use crate::storage::manifest::{Manifest, VolumeEntry};
use crate::storage::marks::Durability;
use crate::storage::options::Retention;
use crate::storage::room::{Indexed, Room};
use crate::storage::volume::{Input, VolumeError, VolumeErrorKind, VolumeId, VolumeInfo, build, delete};
use crate::types::system::steady;
use crate::types::{Offset, Time};

/// How often the keeper looks around when nobody asks.
const PERIOD: Duration = Duration::from_millis(100);

/// Gives this thread a third of the weight of those that live sessions wait for. Less, and under a load that never ends
/// the journal would reach its limit, where publishers wait for the volumes.
///
/// On Linux that is of this thread and of those that it starts. Refused, it competes with everything else.
pub(crate) fn stand_back() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(5);
}

/// For each so many bytes of the budget of open volumes one of the newest is opened at the start: each takes some 3 MiB of
/// memory, and up to 40 ms where nothing of it is in the page cache.
const BUDGET_OF_ONE_AHEAD: usize = 16 << 20;

/// How often it looks at what is slow to change.
const SLOW_PERIOD: Duration = Duration::from_secs(1);

/// How long it waits after work that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// After a look at all volumes the next one waits so many times as long as it took.
const JUDGE_PAUSE: u32 = 20;

/// The input of a build is so long, in bytes, between two looks whether the journal needs a file.
const RESERVE_EVERY_BYTES: usize = 4 << 20;

/// A rewrite looks whether a stretch is due, or the log is closed, once in so many blocks: it costs a few locks.
const LOOK_EVERY_INPUTS: u64 = 64;

/// So many batches in the journal make a stretch due however short they are: what is known of their places is in
/// memory, 256 MiB then.
const INDEXED_BATCHES_MAX: u64 = (256 << 20) / size_of::<Indexed>() as u64;

/// So many rooms that the checkpoint does not know make a stretch due: recovery brings each of them into being again,
/// and until then it takes a kilobyte or more of memory. Rooms that are known do not count, or a log of many busy
/// rooms would be scattered over many volumes.
const BORN_ROOMS_MAX: u64 = 1 << 16;

/// What is asked of the keeper.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) work: bool,
    pub(super) stop: bool,
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    files: JournalFiles,
    manifest: Manifest,
    rules: Vec<(WildMatch, Retention)>,
    /// Where the commits begin that no volume has; `None` while that is not known.
    begins: Option<(JournalFileId, u64)>,
    /// When the oldest of them was made, or first seen.
    oldest: Option<Time>,
    retry: Option<Instant>,
    /// Set while a volume waits for space.
    lacking: Option<Lacking>,
    /// How many bytes the build that goes on has to leave free on the disk.
    leave_free: u64,
    slow: Instant,
    /// The floors that had risen when all volumes were last found to be worth keeping as they are.
    judged: Option<u64>,
    /// Not looked at before: looking takes no more than a small part of the time.
    judge_after: Instant,
    clock: Clock,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, manifest: Manifest, files: JournalFiles) -> Self {
        let rules = shared.options.retention.iter().map(|rule| (WildMatch::new(&rule.rooms), rule.clone())).collect();
        let (slow, begins, oldest, retry) = (steady(), None, None, None);
        Self {
            shared,
            files,
            manifest,
            rules,
            begins,
            oldest,
            retry,
            lacking: None,
            leave_free: 0,
            slow,
            judged: None,
            judge_after: slow,
            clock: Clock::new(),
        }
    }

    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        stand_back();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work())) {
            // Nothing would shorten the journal any more, and publishers would wait for that.
            shared.fail(format!("the keeper has panicked: {}", said(&*panic)));
        }
    }

    fn work(&mut self) {
        self.open_newest_volumes();
        loop {
            self.step();
            let mut asked = self.shared.keeper.lock();
            if !asked.work && !asked.stop {
                self.shared.keeper_asked.wait_for(&mut asked, PERIOD);
            }
            asked.work = false;
            if asked.stop {
                return;
            }
        }
    }

    /// Opens the volumes that are asked for first when clients come back to their rooms, so that they need not wait for that.
    pub(super) fn open_newest_volumes(&mut self) {
        let most = self.shared.options.open_volumes_bytes_max / BUDGET_OF_ONE_AHEAD;
        // In order of commits, so that the newest is the one that was used last.
        let volumes = self.shared.volumes.infos();
        for info in volumes.iter().skip(volumes.len().saturating_sub(most)) {
            self.reserve();
            if self.is_dead() || self.shared.keeper.lock().stop {
                return;
            }
            match self.shared.volumes.open_ahead(info.id) {
                Ok(()) => {}
                // What little there may be is for those who read.
                Err(error) if error.kind() == VolumeErrorKind::Full => return,
                Err(error) => {
                    tracing::warn!("a volume cannot be opened, and who reads it will be told the same: {error}")
                }
            }
        }
    }

    /// Does what is due.
    pub(super) fn step(&mut self) {
        if self.is_dead() {
            return;
        }
        self.reserve();
        if !self.may_try() {
            return;
        }
        self.build_if_due();
        if steady().duration_since(self.slow) >= SLOW_PERIOD {
            self.slow = steady();
            self.retain();
            self.tidy_volumes();
            self.tend_ballast();
            self.shared.catalog.unload_if_many();
            self.observe();
        }
    }

    /// Whether nothing is to be done any more.
    fn is_dead(&self) -> bool {
        matches!(*self.shared.health.lock(), Health::Failed(_) | Health::Closed)
    }

    /// Whether no work has failed lately.
    fn may_try(&mut self) -> bool {
        if self.retry.is_some_and(|at| steady() < at) {
            return false;
        }
        self.retry = None;
        true
    }

    fn build_if_due(&mut self) {
        if !self.stretch_is_due() {
            self.lacking = None;
        } else if self.may_build() {
            let begun = steady();
            let done = self.build();
            self.finish(Work::Build, begun, done);
        }
    }

    /// What may not wait for the end of a rewrite: that may take minutes, and a stretch goes on growing meanwhile, in
    /// rooms that are kept in memory, in the journal, and in what the next start has to read.
    fn build_meanwhile(&mut self) {
        if !self.is_dead() && self.may_try() {
            let leave_free = self.leave_free;
            self.build_if_due();
            self.leave_free = leave_free;
        }
    }

    /// Rewrites volumes if floors have risen or volumes have come since that was last found to be needless: it means
    /// to read the directories of all volumes.
    fn tidy_volumes(&mut self) {
        let (begun, risen) = (steady(), self.shared.queue.risen_ever());
        if self.judged == Some(risen) || begun < self.judge_after {
            if let Err(error) = self.shared.volumes.sweep() {
                tracing::warn!("a volume that is no longer needed could not be deleted: {error}");
            }
            return;
        }
        match self.rewrite() {
            Ok(Tidied::Nothing) => {
                self.judged = Some(risen);
                self.judge_after = behind(begun, Duration::ZERO);
            }
            Ok(Tidied::Lacking) => {
                self.judge_after = behind(begun, RETRY_AFTER);
            }
            Ok(Tidied::Some) => self.finish(Work::Rewrite, begun, Ok(())),
            Err(KeepError::Volume(VolumeError::Stopped)) => {}
            Err(error) => self.finish(Work::Rewrite, begun, Err(error)),
        }
    }

    fn finish(&mut self, work: Work, begun: Instant, done: Result<(), KeepError>) {
        let metrics = &self.shared.metrics;
        match done {
            Ok(()) => {
                metrics.builds[work].increment(1);
                metrics.build_duration[work].record(steady().duration_since(begun));
                self.observe();
            }
            Err(error) => {
                tracing::warn!("a volume could not be finished, it is tried again: {error}");
                metrics.builds_failed[work].increment(1);
                self.give_up_unfinished();
                self.retry = Some(steady() + RETRY_AFTER);
            }
        }
    }

    /// Sees to it that the committer finds a file to go on in, and that a full disk heals.
    pub(super) fn reserve(&mut self) {
        if self.files.wants_reserve()
            && let Err(error) = self.files.reserve()
            && !error.is_full()
        {
            tracing::warn!("no journal file could be reserved: {error}");
        }
        self.judge_space();
    }

    fn journal_use(&self) -> JournalUse {
        self.files.bytes()
    }

    /// Whether there are commits that no volume has.
    fn has_stretch(&self) -> bool {
        self.shared.committed.lock().seq >= self.manifest.journal.seq
    }

    /// The bytes of commits that no volume has: the file that is written may hold older ones.
    fn stretch_bytes(&self) -> u64 {
        let bytes = self.files.live().into_iter().map(|file| match self.begins {
            Some((id, _)) if file.id < id => 0,
            Some((id, at)) if file.id == id => file.end.saturating_sub(at),
            _ => file.end - SECTOR_BYTES as u64,
        });
        bytes.sum()
    }

    pub(super) fn stretch_is_due(&mut self) -> bool {
        if !self.has_stretch() {
            self.oldest = None;
            return false;
        }
        let now = self.shared.now();
        let oldest = *self.oldest.get_or_insert_with(|| {
            // After a start the time of what was recovered counts.
            let file = self.files.live().into_iter().next().filter(|_| self.begins.is_none());
            file.and_then(|file| file.commits).map_or(now, |commits| commits.first_time)
        });
        let age_max = u64::try_from(self.shared.options.stretch_age_max.as_micros()).unwrap_or(u64::MAX);
        now.0.saturating_sub(oldest.0) > age_max
            || self.is_over()
            || self.shared.indexed.load(Ordering::Relaxed) >= INDEXED_BATCHES_MAX
            || self.born_rooms() >= BORN_ROOMS_MAX
            || self.stretch_bytes() >= self.shared.options.stretch_bytes
    }

    /// How many rooms have come into being since the checkpoint: rooms are numbered from 1 on, and stay.
    fn born_rooms(&self) -> u64 {
        (self.shared.catalog.counts().0 as u64).saturating_sub(self.manifest.next_room.saturating_sub(1))
    }

    /// Whether what no volume has is as long as it may be. Not the length of files: those cannot be shorter than the
    /// one that is written, and publishers would wait for ever where that alone is too long.
    fn is_over(&self) -> bool {
        self.has_stretch() && self.stretch_bytes() >= self.shared.options.journal_bytes_max
    }

    /// Makes a volume of all that is committed by now, and lets that stretch of the journal go.
    pub(super) fn build(&mut self) -> Result<(), KeepError> {
        let begun = Instant::now();
        let stretch = Stretch { last: *self.shared.committed.lock() };
        let first_seq = self.manifest.journal.seq;
        let id = self.next_volume()?;
        // What is at rest has nothing in the journal.
        let rooms = self.shared.catalog.loaded_by_id();
        let next_room = rooms.last().map_or(1, |(id, _)| id.0 + 1).max(self.manifest.next_room);
        let shared = Arc::clone(&self.shared);
        let (floors, mut body) = (shared.catalog.floors(), Vec::new());
        let input = rooms.iter().flat_map(|(id, room)| stretch.places(room).into_iter().map(|indexed| (id.0, indexed)));
        let input = input.map(|(room, indexed): (u64, Indexed)| {
            shared.journal.read(&indexed.place, &mut body).map_err(|error| VolumeError::Input(Box::new(error)))?;
            Ok(Input { room, prev: indexed.prev, body: bytes::Bytes::copy_from_slice(&body) })
        });
        let floor = |room| floors.get(&room).copied().unwrap_or_default();
        let commits = (first_seq.0, stretch.last.seq.0);
        let built = self.build_volume(Work::Build, id, commits, input, floor)?;

        let (checkpoint, at_rest) = self.checkpoint(next_room)?;
        let mut manifest = self.manifest.clone();
        manifest.next_volume += 1;
        manifest.checkpoint = Some(manifest.next_checkpoint);
        manifest.next_checkpoint += 1;
        manifest.next_room = next_room;
        manifest.volumes.extend(built.iter().map(entry));
        manifest.journal = self.files.start_at(stretch.last.seq.next()).ok_or(KeepError::Stretch)?;
        self.swap(manifest)?;
        (self.begins, self.oldest) = (Some((stretch.last.file, stretch.last.end)), None);

        // Published before the journal is dropped: a reader finds the records in one or the other.
        let added: Vec<_> = built.iter().map(|built| built.id).collect();
        self.publish(&added, &[])?;
        for (_, room) in rooms {
            stretch.drop_places(&self.shared, &room);
        }
        self.shared.catalog.checkpointed(Arc::new(checkpoint), at_rest);
        self.files.retire(&self.manifest.journal)?;
        self.shared.behind.store(false, Ordering::Relaxed);
        self.remove_old_checkpoints();
        let unloaded = self.shared.catalog.unload();
        tracing::info!(
            volume = %id,
            records = built.map_or(0, |built| built.records),
            stored_bytes = built.map_or(0, |built| built.stored_bytes),
            unloaded_rooms = unloaded,
            "a stretch of the journal has become a volume in {}",
            since(begun)
        );
        Ok(())
    }

    /// Writes what is known of all rooms below a number. It may see more than the stretch, but nothing that is not
    /// durable when the manifest names it.
    fn checkpoint(&self, next_room: u64) -> Result<(checkpoint::Checkpoint, AtRest), KeepError> {
        let shared = &self.shared;
        let number = self.manifest.next_checkpoint;
        let io =
            |source| KeepError::Storage(StorageError::Io { path: checkpoint::path(number), doing: "write", source });
        let mut writer = checkpoint::Writer::create(&*shared.disk, number).map_err(io)?;
        let before = shared.catalog.checkpoint();
        let (mut at_rest, mut bytes) = (AtRest::with_capacity(shared.catalog.counts().0), Vec::new());
        let now = shared.now();
        shared.catalog.each(|name, id, known| {
            if id.0 >= next_room {
                return Ok(());
            }
            bytes.clear();
            let facts = match known {
                Known::Loaded(room) => {
                    let mut log = room.log.lock();
                    log.publishers.expire(shared.memory, now);
                    log.publishers.encode_into(&mut bytes);
                    log.changed = false;
                    log.facts
                }
                Known::AtRest(facts, place) => {
                    let before = before.as_ref().expect("what is at rest is so in a checkpoint");
                    bytes = before.publishers_bytes(place)?;
                    *facts
                }
            };
            at_rest.push(name, id, facts, writer.room(id, name, &facts, &bytes).map_err(io)?);
            Ok::<_, KeepError>(())
        })?;
        at_rest.sort();
        let written = writer.finish(&*shared.disk).map_err(io)?;
        self.wait_until_durable()?;
        Ok((written, at_rest))
    }

    /// Waits for the commit that is being made, if one is: the checkpoint may have seen it.
    pub(super) fn wait_until_durable(&self) -> Result<(), KeepError> {
        let making = self.shared.making();
        let mut committed = self.shared.committed.lock();
        // Asked each time: a commit that turned out to have nothing to write is made no more.
        while committed.seq < making.min(self.shared.making()) {
            if self.has_failed() {
                return Err(KeepError::Failed);
            }
            self.shared.committed_changed.wait_for(&mut committed, PERIOD);
        }
        drop(committed);
        // A commit that failed is not being made any more either, but rooms remember it.
        if self.has_failed() { Err(KeepError::Failed) } else { Ok(()) }
    }

    fn has_failed(&self) -> bool {
        matches!(*self.shared.health.lock(), Health::Failed(_))
    }

    fn swap(&mut self, manifest: Manifest) -> Result<(), KeepError> {
        if self.shared.options.durability == Durability::Os {
            self.files.sync()?;
        }
        self.shared.ballast.make_house_room(manifest.volumes.len());
        if let Err(error) = manifest.swap(&*self.shared.disk) {
            // The old one or the new one is in force. What the new one names is not touched again: the next
            // attempt takes other numbers, and the next start deletes what is left over.
            self.manifest.next_volume = manifest.next_volume;
            self.manifest.next_checkpoint = manifest.next_checkpoint;
            return Err(error.into());
        }
        self.manifest = manifest;
        self.judged = None;
        Ok(())
    }

    /// Shows volumes that a durable manifest names to readers, in the place of others.
    fn publish(&self, added: &[VolumeId], removed: &[VolumeId]) -> Result<(), KeepError> {
        self.shared.volumes.swap(added, removed).inspect_err(|error| {
            // It was verified just now. Going on would drop the journal of what nobody can read.
            self.shared.fail(format!("a volume that was just built cannot be read: {error}"));
        })?;
        Ok(())
    }

    fn remove_old_checkpoints(&self) {
        let Some(current) = self.manifest.checkpoint else { return };
        let meta = std::path::Path::new(checkpoint::DIRECTORY);
        for name in self.shared.disk.list(meta).unwrap_or_default() {
            if !checkpoint::path(current).ends_with(&name)
                && name.extension().is_some_and(|extension| extension == "rlm")
            {
                let _ = self.shared.disk.remove(&meta.join(&name));
            }
        }
    }

    fn build_volume(
        &mut self,
        work: Work,
        id: VolumeId,
        commits: (u64, u64),
        input: impl IntoIterator<Item = Result<Input, VolumeError>>,
        floor: impl FnMut(u64) -> Offset,
    ) -> Result<Option<VolumeInfo>, KeepError> {
        let shared = Arc::clone(&self.shared);
        let Shared { disk, store, options, .. } = &*shared;
        let (mut bytes, mut inputs) = (0, 0_u64);
        let input = input.into_iter().map(|input| {
            if work == Work::Rewrite && inputs.is_multiple_of(LOOK_EVERY_INPUTS) {
                // Nothing is lost with it: the next start finds the volumes as they were.
                if self.shared.keeper.lock().stop {
                    return Err(VolumeError::Stopped);
                }
                self.build_meanwhile();
            }
            inputs += 1;
            bytes += input.as_ref().map_or(0, |input| input.body.len());
            if bytes >= RESERVE_EVERY_BYTES {
                bytes = 0;
                // The committer makes a file itself if this fails.
                let _ = self.files.reserve();
                // A build may take long, and what comes meanwhile is bounded too.
                if self.is_over() {
                    self.shared.behind.store(true, Ordering::Relaxed);
                }
                self.leaves_enough()?;
            }
            input
        });
        Ok(build(&**disk, &**store, id, commits, options.compression, input, floor)?)
    }

    /// The number of the next volume, with nothing left of an attempt to build it.
    fn next_volume(&self) -> Result<VolumeId, KeepError> {
        let id = VolumeId(self.manifest.next_volume);
        delete(&*self.shared.disk, &*self.shared.store, id)?;
        Ok(id)
    }

    /// Tells the gauges.
    fn observe(&self) {
        let shared = &self.shared;
        let metrics = &shared.metrics;
        let journal = self.journal_use();
        metrics.journal_bytes.set((journal.live + journal.reserved + journal.spare) as f64);
        metrics.builder_backlog.set(self.stretch_bytes() as f64);
        metrics.volumes.set(self.manifest.volumes.len() as f64);
        let volumes =
            self.manifest.volumes.iter().map(|volume| shared.volumes.disk_bytes(VolumeId(volume.id)).unwrap_or(0));
        metrics.volume_bytes.set(volumes.sum::<u64>() as f64);
        let in_use = shared.volumes.in_use();
        metrics.budget_used[Budget::BlockCache].set(in_use.cache_bytes as f64);
        metrics.budget_used[Budget::OpenVolumes].set(in_use.held_bytes as f64);
        metrics.budget_used[Budget::CommitQueue].set(shared.queue.bytes() as f64);
        metrics.budget_used[Budget::JournalIndex]
            .set(shared.indexed.load(Ordering::Relaxed) as f64 * size_of::<Indexed>() as f64);
        metrics.disk_free.set(shared.disk.free_bytes().unwrap_or(0) as f64);
        let (known, loaded) = shared.catalog.counts();
        metrics.rooms.set(known as f64);
        metrics.rooms_loaded.set(loaded as f64);
    }
}

fn entry(info: &VolumeInfo) -> VolumeEntry {
    VolumeEntry {
        id: info.id.0,
        first_seq: CommitSeq(info.commit_first),
        last_seq: CommitSeq(info.commit_last),
        records: info.records,
        bytes: info.stored_bytes,
    }
}

/// When to do again what has been done since then: not before it has been left alone for much longer than it took.
fn behind(begun: Instant, least: Duration) -> Instant {
    let now = steady();
    now + least.max(now.duration_since(begun) * JUDGE_PAUSE)
}

/// A stretch of the journal: everything up to a commit.
struct Stretch {
    last: super::Committed,
}

impl Stretch {
    fn holds(&self, place: BodyPlace) -> bool {
        (place.file, place.at) < (self.last.file, self.last.end)
    }

    /// The batches of a room that lie in the stretch.
    fn places(&self, room: &Room) -> Vec<Indexed> {
        room.with_state(|state| state.journal.iter().take_while(|indexed| self.holds(indexed.place)).copied().collect())
    }

    fn drop_places(&self, shared: &Shared, room: &Room) {
        room.with_state(|state| {
            let before = state.journal.len();
            while state.journal.front().is_some_and(|indexed| self.holds(indexed.place)) {
                state.journal.pop_front();
            }
            shared.indexed.fetch_sub((before - state.journal.len()) as u64, Ordering::Relaxed);
            if state.journal.is_empty() {
                state.journal.shrink_to_fit();
            }
        });
    }
}

/// Why the keeper could not finish a piece of work; it tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the journal no longer has the end of the stretch")]
    Stretch,
    #[error("storage has failed")]
    Failed,
}
