//! The ballast: space that the log holds for itself, so that it opens, reads and tidies on a disk that others filled.
//!
//! One file whose content means nothing. It is cut by as much as is missing when something small has to be written
//! and the disk has no space for it, and grows again when there is. Its bytes are random, so that neither a file
//! system that compresses nor a copy that leaves holes makes nothing of it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::Disk;
use super::error::is_full;

/// The ballast's name in the data directory.
pub const BALLAST_NAME: &str = "ballast";

/// What opening, reading and tidying need at least, in bytes: a few small files.
const HOUSE_BYTES_MIN: u64 = 16 << 10;

/// What is asked of a long ballast for that, in bytes: a file system that writes nothing in place takes more.
pub(crate) const HOUSE_BYTES_MAX: u64 = 4 << 20;

/// What the manifest takes for a volume at most, in bytes.
const VOLUME_ENTRY_BYTES: u64 = 48;

/// The longest ballast, in bytes.
const BALLAST_BYTES_MAX: u64 = 16 << 20;

/// The part of the reserve that the ballast may be as long as, as a divisor: a log without a reserve has none.
const RESERVE_PARTS: u64 = 16;

/// The length is a multiple of this, in bytes: file systems give space by the block.
const BLOCK_BYTES: u64 = 4096;

/// It is written in pieces of so many bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Bytes of it that are synced together, so that no commit waits behind all of it.
const SYNCED_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Ballast {
    disk: Arc<dyn Disk>,
    bytes_max: u64,
    /// The length of the file; 0 if there is none.
    held: Mutex<u64>,
}

impl Ballast {
    /// What there is of it; changes nothing. `disk_reserve_bytes` says how long it may become.
    pub(crate) fn open(disk: Arc<dyn Disk>, disk_reserve_bytes: u64) -> Self {
        let path = Path::new(BALLAST_NAME);
        let length = disk.open(path).and_then(|file| file.len()).unwrap_or(0);
        // Less than its length, if someone has put a file with holes there.
        let held = length.min(disk.used_bytes(path).unwrap_or(0));
        let bytes_max = (disk_reserve_bytes / RESERVE_PARTS).min(BALLAST_BYTES_MAX) / BLOCK_BYTES * BLOCK_BYTES;
        Self { disk, bytes_max, held: Mutex::new(held) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        *self.held.lock()
    }

    /// Makes room for the small files and a manifest of so many volumes. No more than a quarter of a long ballast is
    /// asked for: who fills the disk takes what is given, and there are more starts than one.
    pub(crate) fn make_house_room(&self, volumes: usize) -> bool {
        let needed = HOUSE_BYTES_MIN + volumes as u64 * VOLUME_ENTRY_BYTES;
        self.make_room(needed.max((self.bytes() / 4).min(HOUSE_BYTES_MAX)))
    }

    /// Makes room for all of so many bytes, or gives nothing: part of a file is of no use.
    pub(crate) fn make_room_for_all(&self, bytes: u64) -> bool {
        let free = self.disk.free_bytes().unwrap_or(0);
        free >= bytes || free.saturating_add(self.bytes()) >= bytes && self.make_room(bytes)
    }

    /// Cuts the ballast by what is missing of so many free bytes; tells whether it did. It never fails: what is
    /// written next says whether there was space.
    pub(crate) fn make_room(&self, bytes: u64) -> bool {
        let mut held = self.held.lock();
        let missing = bytes.saturating_sub(self.disk.free_bytes().unwrap_or(u64::MAX));
        if missing == 0 || *held == 0 {
            return false;
        }
        let left = held.saturating_sub(missing.next_multiple_of(BLOCK_BYTES));
        match self.cut(left) {
            Ok(()) => {
                tracing::warn!("the disk is full: the ballast gives {} bytes, {left} are left", *held - left);
                *held = left;
                true
            }
            Err(error) => {
                tracing::warn!("the disk is full, and the ballast cannot be cut: {error}");
                false
            }
        }
    }

    /// Makes it so long, or as long as it may be, if so many bytes stay free.
    pub(crate) fn grow(&self, bytes: u64, free_bytes_min: u64) {
        let mut held = self.held.lock();
        let wanted = bytes.next_multiple_of(BLOCK_BYTES).max(*held).min(self.bytes_max);
        if wanted == *held {
            return;
        }
        let free = self.disk.free_bytes().unwrap_or(0);
        if wanted > *held && free < (wanted - *held).saturating_add(free_bytes_min) {
            return;
        }
        let resized = if wanted < *held { self.cut(wanted) } else { self.extend(*held, wanted) };
        match resized {
            Ok(()) => *held = wanted,
            Err(error) => {
                let _ = self.cut(*held);
                if !is_full(&error) {
                    tracing::warn!("the ballast cannot be made {wanted} bytes long: {error}");
                }
            }
        }
    }

    fn cut(&self, left: u64) -> io::Result<()> {
        let path = Path::new(BALLAST_NAME);
        if left > 0 {
            let file = self.disk.open(path)?;
            file.set_len(left)?;
            // On some file systems freed space can be used only when that is durable.
            return file.sync_data();
        }
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.disk.sync_dir(Path::new("")),
        }
    }

    fn extend(&self, from: u64, to: u64) -> io::Result<()> {
        let path = Path::new(BALLAST_NAME);
        let file = match self.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.disk.create(path),
            file => file,
        }?;
        let (mut piece, mut at) = (vec![0; PIECE_BYTES], from);
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let mut state = u64::from_le_bytes(seed);
        while at < to {
            let count = usize::try_from(to - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            scramble(&mut piece[..count], &mut state);
            file.write_all_at(&piece[..count], at)?;
            at += count as u64;
            if (at - from).is_multiple_of(SYNCED_BYTES) {
                file.sync_data()?;
            }
        }
        file.sync_data()?;
        self.disk.sync_dir(Path::new(""))
    }
}

/// Bytes that nothing compresses: SplitMix64 (Steele, Lea, Flood 2014), as the system's own randomness would take a
/// tenth of a second of a core.
fn scramble(bytes: &mut [u8], state: &mut u64) {
    for word in bytes.chunks_mut(8) {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Fault, FaultyDisk};

    /// A disk with so much beyond the ballast, whose ballast is 64 KiB.
    fn with_ballast(free_bytes: u64) -> (FaultyDisk, Ballast) {
        let disk = FaultyDisk::new(1);
        let ballast = Ballast::open(Arc::new(disk.clone()), 1 << 20);
        ballast.grow(u64::MAX >> 1, 0);
        disk.set_capacity((64 << 10) + free_bytes);
        (disk, ballast)
    }

    #[test]
    fn it_gives_what_is_missing_and_no_more_and_takes_it_back_when_there_is_space() {
        let (disk, ballast) = with_ballast(1000);
        assert!(!ballast.make_room(1000), "so much is free");
        assert!(ballast.make_room(5000));
        assert_eq!((ballast.bytes(), disk.free_bytes().expect("a number")), (60 << 10, 5096));
        ballast.grow(u64::MAX >> 1, 1001);
        assert_eq!(ballast.bytes(), 60 << 10, "no 1001 bytes would stay free");
        ballast.grow(u64::MAX >> 1, 1000);
        assert_eq!((ballast.bytes(), disk.free_bytes().expect("a number")), (64 << 10, 1000));
        assert!(!ballast.make_room_for_all(66_537), "so much is not there");
        assert_eq!(ballast.bytes(), 64 << 10);
        assert!(ballast.make_room(1 << 30));
        assert_eq!((ballast.bytes(), disk.free_bytes().expect("a number")), (0, 66_536));
        assert!(!ballast.make_room(1 << 30), "there is none any more");
    }

    #[test]
    fn it_is_found_again_after_a_power_cut_and_is_none_without_a_reserve() {
        let (disk, ballast) = with_ballast(0);
        ballast.make_room(10_000);
        for seed in 0..20 {
            assert_eq!(Ballast::open(Arc::new(disk.reopen(seed)), 1 << 20).bytes(), ballast.bytes());
        }
        let unwanted = Ballast::open(Arc::new(disk.clone()), 0);
        unwanted.grow(1 << 20, 0);
        assert_eq!(unwanted.bytes(), 0);
        assert!(disk.open(Path::new(BALLAST_NAME)).is_err());
    }

    #[test]
    fn one_that_cannot_be_made_takes_no_space() {
        let made = with_ballast(0).0.operations();
        for operation in 1..=made {
            for fault in [Fault::Enospc, Fault::Eio, Fault::Short { bytes: 600 }] {
                let disk = FaultyDisk::new(1);
                disk.fail_at(operation, fault);
                let ballast = Ballast::open(Arc::new(disk.clone()), 1 << 20);
                ballast.grow(64 << 10, 0);
                assert_eq!(ballast.bytes(), 0, "{operation}: {fault:?}");
                assert_eq!(disk.used_bytes(Path::new("")).expect("a number"), 0, "{operation}: {fault:?}");
                ballast.grow(64 << 10, 0);
                assert_eq!(ballast.bytes(), 64 << 10, "it is tried again");
            }
        }
    }
}
