//! The volumes that exist, as readers see them: found by room and place, opened when needed, closed by budget.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::storage::block_store::{BlockReader, BlockStore};
use crate::storage::disk::Disk;
use crate::types::{Offset, Time};

use super::block::read_block;
use super::cache::BodyCache;
use super::directory::{BlockEntry, Directory, Entries, Numbered, Sought};
use super::{VolumeError, VolumeId, VolumeInfo, delete};

/// How much memory and how many descriptors the volumes may take.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct VolumeLimits {
    /// Bytes of bodies kept for the next reader. 32 MiB.
    pub cache_bytes_max: usize,
    /// Bytes that open block stores may hold in memory; beyond it the least recently used one is closed. 256 MiB.
    /// Counted by what each read brings with it, with a volume's mean size of a block.
    pub held_bytes_max: u64,
    /// How many block stores, and how many directory files, may be open. 256.
    pub open_max: usize,
}

impl Default for VolumeLimits {
    fn default() -> Self {
        Self { cache_bytes_max: 32 << 20, held_bytes_max: 256 << 20, open_max: 256 }
    }
}

/// What the volumes take now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VolumesUse {
    /// How many volumes there are.
    pub volumes: usize,
    /// How many were removed but are not deleted yet.
    pub doomed: usize,
    /// Open block stores.
    pub open_stores: usize,
    /// Open directory files.
    pub open_files: usize,
    /// Bytes that open block stores hold.
    pub held_bytes: u64,
    /// Bytes of the cached bodies.
    pub cache_bytes: usize,
    /// Bytes of the indexes and filters, which always are in memory.
    pub index_bytes: usize,
}

/// A block's place: the volume stays readable while this lives, so do not keep it.
#[derive(Clone, Debug)]
pub struct Located {
    volume: Arc<Volume>,
    number: u64,
    /// What the volume's directory says of the block.
    pub entry: BlockEntry,
}

/// A block that was read.
#[derive(Clone, Debug)]
pub struct Block {
    /// What the volume's directory says of it: `first`, `last`, `prev` and times among it.
    pub entry: BlockEntry,
    /// The batch. It may begin before and end behind the place that was asked for.
    pub body: Bytes,
}

/// How much of a volume is above the floors of its rooms.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Live {
    /// Records in all.
    pub records: u64,
    /// Records above the floor; estimated in blocks that the floor cuts.
    pub live_records: u64,
    /// Stored bytes in all.
    pub stored_bytes: u64,
    /// Stored bytes of the records above the floor; estimated in blocks that the floor cuts.
    pub live_stored_bytes: u64,
    /// The blocks that a rewrite would read.
    pub live_blocks: u64,
}

/// The volumes that exist. Readers and the builder share it; removing a volume disturbs nobody who reads it.
#[derive(Debug)]
pub struct Volumes {
    disk: Arc<dyn Disk>,
    store: Arc<dyn BlockStore>,
    limits: VolumeLimits,
    // In order of commits; replaced as a whole, so a search sees one state.
    live: RwLock<Arc<Vec<Arc<Volume>>>>,
    doomed: Mutex<Vec<Arc<Volume>>>,
    // Those whose block store is open. Never locked while a volume's own store is.
    open: Mutex<Vec<Arc<Volume>>>,
    open_files: AtomicUsize,
    cache: Mutex<BodyCache>,
    uses: AtomicU64,
    /// Nothing is opened any more.
    closed: AtomicBool,
}

/// A volume that readers may hold.
#[derive(Debug)]
pub(super) struct Volume {
    directory: Directory,
    store: Mutex<StoreSlot>,
    used: AtomicU64,
}

/// A block store is open only once: one that was closed here may still be in the hands of a reader, and is taken
/// back then instead of being opened again.
#[derive(Default, Debug)]
struct StoreSlot {
    open: Option<Arc<dyn BlockReader>>,
    closed: Option<Weak<dyn BlockReader>>,
    /// Which groups of keys have come into memory since it was opened, a bit for each, and about how many bytes are there.
    /// A store that is taken back has them still.
    held_groups: Vec<u64>,
    held_bytes: u64,
}

impl Volume {
    pub(super) fn info(&self) -> &VolumeInfo {
        self.directory.info()
    }
}

impl Volumes {
    /// No volumes yet; [`Volumes::swap`] adds those of the manifest.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, store: Arc<dyn BlockStore>, limits: VolumeLimits) -> Self {
        Self {
            disk,
            store,
            live: RwLock::default(),
            doomed: Mutex::default(),
            open: Mutex::default(),
            open_files: AtomicUsize::new(0),
            cache: Mutex::new(BodyCache::new(limits.cache_bytes_max)),
            uses: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            limits,
        }
    }

    /// Adds finished volumes and removes others, for all readers at once. Only directory files are read.
    ///
    /// Call it when the manifest that says so is durable. Removed volumes are deleted by [`Volumes::sweep`].
    ///
    /// # Errors
    /// When an added volume's directory cannot be read; nothing is changed then.
    pub fn swap(&self, added: &[VolumeId], removed: &[VolumeId]) -> Result<(), VolumeError> {
        let mut new = Vec::with_capacity(added.len());
        for id in added {
            new.push(Arc::new(Volume {
                directory: Directory::open(&*self.disk, *id)?,
                store: Mutex::default(),
                used: AtomicU64::new(0),
            }));
        }
        let mut doomed = Vec::new();
        {
            let mut live = self.live.write();
            let (gone, mut kept): (Vec<_>, Vec<_>) =
                live.iter().cloned().partition(|volume| removed.contains(&volume.info().id));
            kept.extend(new);
            kept.sort_by_key(|volume| volume.info().commit_first);
            *live = Arc::new(kept);
            doomed.extend(gone);
        }
        for volume in &doomed {
            self.cache.lock().remove_volume(volume.info().id);
        }
        self.doomed.lock().extend(doomed);
        Ok(())
    }

    /// Deletes the removed volumes that nobody reads any more; says how many were deleted. The others wait for the
    /// next call. Blocks, so it is the builder's to call.
    ///
    /// # Errors
    /// When the file system says no; the volume is tried again at the next call.
    pub fn sweep(&self) -> Result<usize, VolumeError> {
        let mut waiting = std::mem::take(&mut *self.doomed.lock());
        let (mut deleted, mut failed) = (0, None);
        waiting.retain(|volume| {
            let id = volume.info().id;
            self.open.lock().retain(|open| open.info().id != id);
            self.close_store(volume);
            // The only owner left: nobody can find it, and nobody has it.
            if Arc::strong_count(volume) > 1 || failed.is_some() {
                return true;
            }
            self.close_file(volume);
            // A reader may have cached a body after the swap.
            self.cache.lock().remove_volume(id);
            match delete(&*self.disk, &*self.store, id) {
                Ok(()) => deleted += 1,
                Err(error) => failed = Some(error),
            }
            failed.is_some()
        });
        self.doomed.lock().extend(waiting);
        failed.map_or(Ok(deleted), Err)
    }

    /// The volumes, in order of commits.
    #[must_use]
    pub fn infos(&self) -> Vec<VolumeInfo> {
        self.live().iter().map(|volume| *volume.info()).collect()
    }

    /// What the volumes take now.
    #[must_use]
    pub fn in_use(&self) -> VolumesUse {
        let (open_stores, held_bytes) = {
            let open = self.open.lock();
            (open.len(), open.iter().map(|volume| volume.held_bytes()).sum())
        };
        let live = self.live();
        VolumesUse {
            volumes: live.len(),
            doomed: self.doomed.lock().len(),
            open_stores,
            open_files: self.open_files.load(Ordering::Relaxed),
            held_bytes,
            cache_bytes: self.cache.lock().bytes(),
            index_bytes: live.iter().map(|volume| volume.directory.memory_bytes()).sum(),
        }
    }

    /// Bytes that a volume takes on the disk, its directory file included.
    ///
    /// # Errors
    /// When the volume is not here, or the file system says no.
    pub fn disk_bytes(&self, id: VolumeId) -> Result<u64, VolumeError> {
        let volume = self.volume(id)?;
        Ok(self.store.used_bytes(&id.blocks_path())? + volume.directory.file_bytes())
    }

    /// The first block of a room that has a record behind an offset.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn locate_after(&self, room: u64, offset: Offset) -> Result<Option<Located>, VolumeError> {
        self.search(room, Towards::First, |entries| entries.after(room, offset))
    }

    /// The last block of a room that has a record before an offset.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn locate_before(&self, room: u64, offset: Offset) -> Result<Option<Located>, VolumeError> {
        self.search(room, Towards::Last, |entries| entries.before(room, offset))
    }

    /// The first block of a room that has a record of this time or later.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn locate_since(&self, room: u64, time: Time) -> Result<Option<Located>, VolumeError> {
        self.search(room, Towards::First, |entries| entries.since(room, time))
    }

    /// Opens a volume before somebody waits for it, unless as many are open as may be. Blocks.
    ///
    /// # Errors
    /// When it is not here or cannot be opened; whoever reads it will be told the same.
    pub fn open_ahead(&self, id: VolumeId) -> Result<(), VolumeError> {
        if self.open.lock().len() < self.limits.open_max {
            // Looks at the directory jump about, and would wait for a page each: read once, it is in the page cache.
            self.live_of(id, |_| Offset::ZERO)?;
            self.open_store(&self.volume(id)?)?;
        }
        Ok(())
    }

    /// Reads a block.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read(&self, located: &Located) -> Result<Block, VolumeError> {
        let entry = located.entry;
        let key = (located.volume.info().id, entry.room, entry.first.0);
        if let Some(body) = self.cache.lock().body(key) {
            return Ok(Block { entry, body });
        }
        let body = self.read_uncached(&located.volume, located.number, &entry)?;
        self.cache.lock().insert(key, body.clone());
        Ok(Block { entry, body })
    }

    /// Reads what [`Volumes::locate_after`] finds.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read_after(&self, room: u64, offset: Offset) -> Result<Option<Block>, VolumeError> {
        self.locate_after(room, offset)?.map(|located| self.read(&located)).transpose()
    }

    /// Reads what [`Volumes::locate_before`] finds.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read_before(&self, room: u64, offset: Offset) -> Result<Option<Block>, VolumeError> {
        self.locate_before(room, offset)?.map(|located| self.read(&located)).transpose()
    }

    /// Reads what [`Volumes::locate_since`] finds.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read_since(&self, room: u64, time: Time) -> Result<Option<Block>, VolumeError> {
        self.locate_since(room, time)?.map(|located| self.read(&located)).transpose()
    }

    /// What a volume has of a room: all counts are live ones above a floor of 0.
    ///
    /// # Errors
    /// When the volume is not here, or its directory cannot be read.
    pub fn of_room(&self, id: VolumeId, room: u64) -> Result<Live, VolumeError> {
        let volume = self.volume(id)?;
        let mut live = Live::default();
        if volume.directory.may_hold(room) {
            let mut entries = self.entries(&volume)?;
            for number in entries.of_room(room)? {
                live.add(&entries.entry(number)?, Offset::ZERO);
            }
        }
        Ok(live)
    }

    /// How much of a volume is above the floors, each of which is asked for once. Reads the whole directory.
    ///
    /// # Errors
    /// When the volume is not here, or its directory cannot be read.
    pub fn live_of(&self, id: VolumeId, mut floor: impl FnMut(u64) -> Offset) -> Result<Live, VolumeError> {
        let volume = self.volume(id)?;
        let mut entries = self.entries(&volume)?;
        let (mut live, mut room) = (Live::default(), None);
        for number in 0..entries.len() {
            let entry = entries.entry(number)?;
            let (_, floor) = match room {
                Some(known @ (of, _)) if of == entry.room => known,
                _ => *room.insert((entry.room, floor(entry.room))),
            };
            live.add(&entry, floor);
        }
        Ok(live)
    }

    fn live(&self) -> Arc<Vec<Arc<Volume>>> {
        Arc::clone(&self.live.read())
    }

    pub(super) fn volume(&self, id: VolumeId) -> Result<Arc<Volume>, VolumeError> {
        let live = self.live();
        let volume = live.iter().find(|volume| volume.info().id == id);
        volume.cloned().ok_or_else(|| VolumeError::NoVolume(id))
    }

    /// A binary search over the volumes that may have the room. Volumes do not overlap, so a room's records in one
    /// are all before those in the next.
    fn search(
        &self,
        room: u64,
        towards: Towards,
        mut seek: impl FnMut(&mut Entries<'_>) -> Result<Sought, VolumeError>,
    ) -> Result<Option<Located>, VolumeError> {
        let live = self.live();
        let mut candidates: Vec<_> = live.iter().filter(|volume| volume.directory.may_hold(room)).collect();
        let (mut low, mut high, mut best) = (0, candidates.len(), None);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = match seek(&mut self.entries(candidates[middle])?)? {
                Sought::NoRoom => {
                    candidates.remove(middle);
                    high -= 1;
                    continue;
                }
                Sought::NotHere => None,
                Sought::Found(Numbered { number, entry }) => {
                    Some(Located { volume: Arc::clone(candidates[middle]), number, entry })
                }
            };
            // A find may be bettered only on the side that is asked for; without one, look on the other side.
            if found.is_some() == (towards == Towards::First) {
                high = middle
            } else {
                low = middle + 1
            }
            best = found.or(best);
        }
        Ok(best)
    }

    /// Begins a look at a volume's entries.
    pub(super) fn entries<'a>(&self, volume: &'a Volume) -> Result<Entries<'a>, VolumeError> {
        self.touch(volume);
        let (entries, opened) = volume.directory.entries(&*self.disk)?;
        if opened && self.open_files.fetch_add(1, Ordering::Relaxed) >= self.limits.open_max {
            let live = self.live();
            let others = live.iter().filter(|other| other.info().id != volume.info().id);
            let open = others.filter(|other| other.directory.file_is_open());
            if let Some(oldest) = open.min_by_key(|other| other.used.load(Ordering::Relaxed)) {
                self.close_file(oldest);
            }
        }
        Ok(entries)
    }

    /// Reads a block past the cache. `number` is its entry's.
    pub(super) fn read_uncached(
        &self,
        volume: &Arc<Volume>,
        number: u64,
        entry: &BlockEntry,
    ) -> Result<Bytes, VolumeError> {
        let store = self.open_store(volume)?;
        let body = read_block(volume.info().id, &*store, entry);
        volume.hold(number, &*store);
        // Let go before the limits are looked at, which may close it.
        drop(store);
        self.close_beyond_limits();
        body
    }

    fn open_store(&self, volume: &Arc<Volume>) -> Result<Arc<dyn BlockReader>, VolumeError> {
        self.touch(volume);
        let store = {
            // Locked while it opens: whoever else wants this volume waits for the one database there can be.
            let mut slot = volume.store.lock();
            if let Some(open) = &slot.open {
                return Ok(Arc::clone(open));
            }
            if self.closed.load(Ordering::SeqCst) {
                return Err(VolumeError::Stopped);
            }
            let store = match slot.closed.take().and_then(|closed| closed.upgrade()) {
                Some(store) => store,
                None => {
                    (slot.held_groups, slot.held_bytes) = (Vec::new(), 0);
                    self.store.open(&volume.info().id.blocks_path())?
                }
            };
            slot.open = Some(Arc::clone(&store));
            store
        };
        self.open.lock().push(Arc::clone(volume));
        Ok(store)
    }

    fn close_beyond_limits(&self) {
        loop {
            let oldest = {
                let mut open = self.open.lock();
                let held: u64 = open.iter().map(|volume| volume.held_bytes()).sum();
                let too_many_bytes = held > self.limits.held_bytes_max;
                if !too_many_bytes && open.len() <= self.limits.open_max {
                    return;
                }
                // To close one of which nothing has been read would make no room.
                let those = open.iter().enumerate().filter(|(_, volume)| !too_many_bytes || volume.held_bytes() > 0);
                let oldest = those.min_by_key(|(_, volume)| volume.used.load(Ordering::Relaxed));
                let Some((oldest, _)) = oldest else { return };
                open.swap_remove(oldest)
            };
            self.close_store(&oldest);
        }
    }

    /// Lets go of all volumes, so that another process may open them; nothing is found afterwards.
    pub fn close(&self) {
        // Looked at under the lock of each store: what is being opened now is closed below, and nothing is opened later.
        self.closed.store(true, Ordering::SeqCst);
        let live = std::mem::take(&mut *self.live.write());
        let doomed = std::mem::take(&mut *self.doomed.lock());
        self.open.lock().clear();
        for volume in live.iter().chain(&doomed) {
            self.close_store(volume);
            self.close_file(volume);
            self.cache.lock().remove_volume(volume.info().id);
        }
    }

    fn close_store(&self, volume: &Volume) {
        let mut slot = volume.store.lock();
        if let Some(open) = slot.open.take() {
            slot.closed = Some(Arc::downgrade(&open));
            // Closed within the lock, so that it is not opened again before it is closed.
            drop(open);
        }
    }

    fn close_file(&self, volume: &Volume) {
        if volume.directory.close_file() {
            self.open_files.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn touch(&self, volume: &Volume) {
        volume.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Towards {
    First,
    Last,
}

impl Volume {
    fn held_bytes(&self) -> u64 {
        self.store.lock().held_bytes
    }

    fn mean_block_bytes(&self) -> usize {
        usize::try_from(self.info().stored_bytes / self.info().blocks.max(1))
            .expect("a block is in memory when it is written")
    }

    /// Counts what a read has brought into memory, if it is not there already.
    fn hold(&self, number: u64, store: &dyn BlockReader) {
        let together = store.keys_held_together(self.mean_block_bytes());
        let Some(group) = number.checked_div(together) else { return };
        let (word, bit) = (usize::try_from(group / 64).expect("a number of memory"), 1 << (group % 64));
        let mut slot = self.store.lock();
        if slot.held_groups.len() <= word {
            slot.held_groups.resize(word + 1, 0);
        }
        if slot.held_groups[word] & bit == 0 {
            slot.held_groups[word] |= bit;
            let held_bytes = slot.held_bytes + self.mean_block_bytes() as u64 * together;
            slot.held_bytes = held_bytes.min(store.held_bytes_max());
        }
    }
}

impl Live {
    fn add(&mut self, entry: &BlockEntry, floor: Offset) {
        let (records, stored) = (u64::from(entry.records), u64::from(entry.stored_bytes));
        self.records += records;
        self.stored_bytes += stored;
        if entry.last <= floor {
            return;
        }
        self.live_blocks += 1;
        // Offsets need not be dense, but within a block they are nearly even.
        let span = entry.last.0 - entry.first.0 + 1;
        let above = (entry.last.0 - floor.0.max(entry.first.0 - 1)).max(1);
        let share = |whole: u64| u64::try_from(u128::from(whole) * u128::from(above) / u128::from(span));
        self.live_records += share(records).expect("a part of the whole").max(1);
        self.live_stored_bytes += share(stored).expect("a part of the whole").max(1);
    }
}
