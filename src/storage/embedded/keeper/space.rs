//! Space: when publishes are refused for want of it, and what a volume may take of it.
//!
//! The reserve is left to others by everything that only moves records. What gives back more than it takes may go
//! into the reserve, and into the ballast: otherwise a disk that the log itself has filled would never heal.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{KeepError, Keeper, RETRY_AFTER, behind};
use crate::metrics::StorageState;
use crate::storage::ballast::HOUSE_BYTES_MAX;
use crate::storage::checkpoint;
use crate::storage::engine::Health;
use crate::storage::marks::Durability;
use crate::storage::options::Options;
use crate::storage::volume::{Live, VolumeError, VolumeId, delete};
use crate::types::system::steady;

/// What a block takes on the disk beyond its bytes, in bytes: its part of sled's log and of the directory.
const BLOCK_OVERHEAD_BYTES: u64 = 512;

/// Two neighbouring blocks of a room have together more than a block may have; so its blocks are this long on average.
const BLOCK_MEAN_BYTES: u64 = 16 << 10;

/// What sled's segments and its snapshot take of a volume however short, in bytes.
const VOLUME_OVERHEAD_BYTES: u64 = 8 << 20;

/// What a checkpoint takes for a room beyond what the one before it took, in bytes.
const ROOM_BYTES: u64 = 128;

/// A stretch that is due and for whose volume there is no space.
pub(super) struct Lacking {
    /// So much has to be free, in bytes.
    needed_bytes: u64,
    /// Not reckoned again before: floors may have risen by then.
    look_after: Instant,
}

impl Keeper {
    /// Refuses publishes while too little is free, and takes them again when there is enough.
    pub(in crate::storage::embedded) fn judge_space(&mut self) {
        let shared = Arc::clone(&self.shared);
        let reserve = shared.options.disk_reserve_bytes;
        let mut free = shared.disk.free_bytes().unwrap_or(0);
        if free < reserve && self.journal_use().spare > 0 {
            // Publishes are refused anyway: no file is recycled for them, and without the spares they may go on.
            if let Err(error) = self.files.remove_spares() {
                tracing::warn!("a journal file that is not needed could not be removed: {error}");
            }
            free = shared.disk.free_bytes().unwrap_or(0);
        }
        let full = matches!(*shared.health.lock(), Health::Full(_));
        let over = self.is_over();
        if over != shared.behind.swap(over, Ordering::Relaxed) && over {
            tracing::warn!("the journal has grown to its limit: publishers wait until a volume is built");
        }
        let enough = free >= reserve;
        // Publishers would wait for a volume that is not built.
        let stuck = self.lacking.as_ref().filter(|_| over).map(|lacking| lacking.needed_bytes);
        // Some space is not enough for a file that could not be made.
        if full && enough && stuck.is_none() && !self.files.wants_reserve() {
            tracing::info!("there is space again, publishes are accepted");
            *shared.health.lock() = Health::Ok;
            shared.metrics.storage_state.set(StorageState::Accepting.number());
        } else if !full && !enough {
            shared.full(format!("{free} bytes are free on the disk, {reserve} must stay free"));
        } else if !full && let Some(needed) = stuck {
            shared.full(format!(
                "the journal has grown to its limit, and {needed} bytes must be free on the disk for a volume of it"
            ));
        }
    }

    /// Lets the ballast grow with the journal: a log of a few records takes no 16 MiB.
    pub(in crate::storage::embedded) fn tend_ballast(&self) {
        if *self.shared.health.lock() == Health::Ok {
            let free_bytes_min = self.shared.options.disk_reserve_bytes.max(HOUSE_BYTES_MAX);
            self.shared.ballast.grow(self.journal_use().live, free_bytes_min);
        }
    }

    /// Whether there is space for a volume of the stretch: above the reserve, or else where dropping the stretch
    /// gives back more. What retention has taken is not written, so that may be much.
    pub(in crate::storage::embedded) fn may_build(&mut self) -> bool {
        let (begun, shared) = (steady(), Arc::clone(&self.shared));
        let free = shared.disk.free_bytes().unwrap_or(0);
        if self.lacking.as_ref().is_some_and(|lacking| free < lacking.needed_bytes && begun < lacking.look_after) {
            return false;
        }
        // A bound that costs nothing, and then one that looks at every batch.
        let most = self.volume_bytes(self.stretch_bytes(), shared.indexed.load(Ordering::Relaxed));
        let reserve = self.volume_reserve_bytes();
        if free >= most.saturating_add(reserve) {
            (self.lacking, self.leave_free) = (None, reserve);
            return true;
        }
        let (bodies, blocks) = self.retained_of_stretch();
        let needed = self.volume_bytes(bodies, blocks);
        if self.may_take(needed, self.droppable_bytes()) {
            self.lacking = None;
            return true;
        }
        if self.lacking.is_none() {
            tracing::warn!("a volume waits until {needed} bytes are free on the disk beyond the reserve");
        }
        let look_after = behind(begun, RETRY_AFTER);
        self.lacking = Some(Lacking { needed_bytes: needed.saturating_add(reserve), look_after });
        false
    }

    /// Whether there is space for what is left of a volume.
    pub(super) fn may_rewrite(&mut self, id: VolumeId, live: &Live) -> Result<bool, KeepError> {
        if live.live_blocks == 0 {
            return Ok(true);
        }
        let needed = self.blocks_bytes(live.live_stored_bytes, live.live_blocks);
        let given = self.shared.volumes.disk_bytes(id)?;
        Ok(self.may_take(needed, given))
    }

    /// Whether there is space for volumes of so many bytes to be joined: that gives next to nothing back.
    pub(super) fn may_join(&mut self, stored_bytes: u64) -> bool {
        let needed = self.blocks_bytes(stored_bytes, stored_bytes / BLOCK_MEAN_BYTES);
        self.may_take(needed, 0)
    }

    /// Whether so much may be taken of the disk for giving so much back, and how much has to stay free meanwhile.
    fn may_take(&mut self, needed: u64, given: u64) -> bool {
        let (shared, reserve) = (&self.shared, self.volume_reserve_bytes());
        let free = shared.disk.free_bytes().unwrap_or(0);
        if free >= needed.saturating_add(reserve) {
            self.leave_free = reserve;
            return true;
        }
        if given <= needed || !shared.ballast.make_room_for_all(needed) {
            return false;
        }
        self.leave_free = 0;
        true
    }

    /// What volumes leave free. In memory the space is the log's alone, and a volume is how it lasts longer.
    fn volume_reserve_bytes(&self) -> u64 {
        let Options { durability, disk_reserve_bytes, .. } = self.shared.options;
        if durability == Durability::Memory { 0 } else { disk_reserve_bytes }
    }

    /// An error if less is free than the work that goes on has to leave.
    pub(super) fn leaves_enough(&self) -> Result<(), VolumeError> {
        if self.shared.disk.free_bytes().unwrap_or(0) >= self.leave_free {
            return Ok(());
        }
        let source = std::io::Error::new(std::io::ErrorKind::StorageFull, "it would take from the reserve");
        Err(VolumeError::Io { path: crate::storage::volume::VOLUMES.into(), source })
    }

    /// Gives back at once what a failed attempt has taken.
    pub(super) fn give_up_unfinished(&self) {
        self.give_up(VolumeId(self.manifest.next_volume));
        let _ = self.shared.disk.remove(&checkpoint::path(self.manifest.next_checkpoint));
    }

    /// Gives back what a volume has taken that will not be finished.
    pub(super) fn give_up(&self, id: VolumeId) {
        if let Err(error) = delete(&*self.shared.disk, &*self.shared.store, id) {
            tracing::warn!("what is left of an unfinished volume could not be deleted: {error}");
        }
    }

    /// What blocks take at most, when they are written as a volume.
    fn blocks_bytes(&self, bytes: u64, blocks: u64) -> u64 {
        // In memory there are no segments.
        let fixed = if self.shared.disk.root().is_some() { VOLUME_OVERHEAD_BYTES } else { 0 };
        bytes
            .saturating_add(bytes / 8)
            .saturating_add(blocks.saturating_mul(BLOCK_OVERHEAD_BYTES))
            .saturating_add(fixed)
    }

    /// The same with the checkpoint that a volume of the stretch comes with.
    fn volume_bytes(&self, bodies: u64, blocks: u64) -> u64 {
        let before = self.shared.disk.used_bytes(Path::new(checkpoint::DIRECTORY)).unwrap_or(0);
        let rooms = self.shared.catalog.counts().0 as u64 * ROOM_BYTES;
        // An eighth for what publishers are remembered by.
        self.blocks_bytes(bodies, blocks).saturating_add(bodies / 8).saturating_add(before).saturating_add(rooms)
    }

    /// The bytes of batches in the journal that retention has left, and how many blocks they make at most.
    fn retained_of_stretch(&self) -> (u64, u64) {
        let floors = self.shared.catalog.floors();
        let (mut bodies, mut blocks) = (0, 0);
        // What is at rest has nothing in the journal.
        for (id, room) in self.shared.catalog.loaded_by_id() {
            let floor = floors.get(&id.0).copied().unwrap_or_default();
            let (mut bytes, mut batches) = (0, 0);
            room.with_state(|state| {
                for indexed in state.journal.iter().filter(|indexed| indexed.last > floor) {
                    bytes += u64::from(indexed.place.bytes);
                    batches += 1;
                }
            });
            bodies += bytes;
            blocks += batches.min(1 + bytes / BLOCK_MEAN_BYTES);
        }
        (bodies, blocks)
    }

    /// The files that go when the stretch has become a volume: all but the one that is written.
    fn droppable_bytes(&self) -> u64 {
        let live = self.files.live();
        live.iter().rev().skip(1).map(|file| file.bytes).sum()
    }
}
