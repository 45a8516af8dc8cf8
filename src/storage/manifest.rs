//! The manifest: the one file that says what belongs to the data directory, replaced whole.
//!
//! Nothing is deleted or recycled unless a durable manifest says so, and a directory that it does not name is not
//! touched by the code here.

use std::path::Path;

use bincode::{Decode, Encode};

use super::checked_file::{BODY_AT, FileKind, read_checked, write_checked};
use super::commit::{CommitSeq, JournalFileId};
use super::disk::Disk;
use super::error::StorageError;
use super::journal::JournalStart;
use crate::protocol::{WireError, decode_head, encode_into};
use crate::types::Epoch;

/// The manifest's name in the data directory.
pub const MANIFEST_NAME: &str = "manifest";

const KIND: FileKind = FileKind { magic: *b"RLmf", format: FORMAT };

/// The format of the whole data directory: the manifest's, and of all that it names.
pub const FORMAT: u32 = 1;

/// A finished volume, as the manifest names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct VolumeEntry {
    /// Its number, never used again.
    pub id: u64,
    /// The first commit whose records may be in it.
    pub first_seq: CommitSeq,
    /// The last commit whose records may be in it.
    pub last_seq: CommitSeq,
    /// How many records were put into it.
    pub records: u64,
    /// How many bytes its blocks had when it was written.
    pub bytes: u64,
}

/// What belongs to the data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// The incarnation of the directory.
    pub epoch: Epoch,
    /// The least room id that was never given away when the metadata checkpoint was written.
    pub next_room: u64,
    /// The least volume id that was never given away.
    pub next_volume: u64,
    /// The least checkpoint id that was never given away.
    pub next_checkpoint: u64,
    /// Where the journal that is still needed begins.
    pub journal: JournalStart,
    /// The checkpoint of the rooms' metadata, complete up to the first needed commit; `None` before the first one.
    pub checkpoint: Option<u64>,
    /// The volumes, by rising id.
    pub volumes: Vec<VolumeEntry>,
}

impl Manifest {
    /// The manifest of a directory in which nothing was ever committed.
    #[must_use]
    pub fn new(epoch: Epoch, journal: JournalStart) -> Self {
        Self { epoch, next_room: 1, next_volume: 1, next_checkpoint: 1, journal, checkpoint: None, volumes: Vec::new() }
    }

    /// Reads the manifest and changes nothing; `None` if there is none.
    ///
    /// What it says may not be durable yet, if a process was killed right after it replaced the file: a start uses
    /// [`Manifest::open`].
    ///
    /// # Errors
    /// [`StorageError::Damaged`], [`StorageError::UnknownFormat`] or [`StorageError::Io`].
    pub fn read(disk: &dyn Disk) -> Result<Option<Self>, StorageError> {
        let path = Path::new(MANIFEST_NAME);
        let Some(body) = read_checked(disk, path, KIND)? else { return Ok(None) };
        Self::decode(&body).map(Some).map_err(|(at, error)| StorageError::damaged(path, BODY_AT + at as u64, error))
    }

    /// Reads the manifest and makes sure that it is durable, so that what it no longer names may be deleted.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn open(disk: &dyn Disk) -> Result<Option<Self>, StorageError> {
        let manifest = Self::read(disk)?;
        if manifest.is_some() {
            let path = Path::new(MANIFEST_NAME);
            disk.open(path).and_then(|file| file.sync_data()).map_err(StorageError::io(path, "sync"))?;
            disk.sync_dir(Path::new("")).map_err(StorageError::io(path, "sync the directory of"))?;
        }
        Ok(manifest)
    }

    /// Replaces the manifest. When this returns, it is durable.
    ///
    /// # Errors
    /// [`StorageError::Io`]: the old one or the new one is in force, and nothing may be deleted that either of them
    /// names, until a later swap succeeds.
    pub fn swap(&self, disk: &dyn Disk) -> Result<(), StorageError> {
        let mut body = Vec::new();
        self.encode(&mut body);
        write_checked(disk, Path::new(MANIFEST_NAME), KIND, &body)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_into(out, &self.epoch);
        encode_into(out, &(self.next_room, self.next_volume, self.next_checkpoint));
        encode_into(out, &self.journal);
        encode_into(out, &self.checkpoint);
        encode_into(out, &(self.volumes.len() as u64));
        self.volumes.iter().for_each(|volume| encode_into(out, volume));
    }

    /// On failure, tells where in the body.
    fn decode(body: &[u8]) -> Result<Self, (usize, WireError)> {
        let mut rest = body;
        let at = |rest: &[u8]| body.len() - rest.len();
        macro_rules! next {
            ($kind:ty, $what:literal) => {{
                let (value, behind) = decode_head::<$kind>($what, rest).map_err(|error| (at(rest), error))?;
                rest = behind;
                value
            }};
        }
        let epoch = next!(Epoch, "the epoch");
        let (next_room, next_volume, next_checkpoint) = next!((u64, u64, u64), "the next ids");
        let journal = next!(JournalStart, "the start of the journal");
        let checkpoint = next!(Option<u64>, "the checkpoint");
        let count = next!(u64, "the number of volumes");
        let mut volumes: Vec<VolumeEntry> = Vec::new();
        for _ in 0..count {
            let volume = next!(VolumeEntry, "a volume");
            let rises = volumes.last().is_none_or(|before| before.id < volume.id);
            if !rises || volume.id >= next_volume || volume.first_seq > volume.last_seq {
                return Err((at(rest), WireError::invalid("a volume", "an impossible id or range of commits")));
            }
            volumes.push(volume);
        }
        if !rest.is_empty() {
            return Err((at(rest), WireError::Trailing { what: "the manifest", bytes: rest.len() }));
        }
        let possible = journal.file >= JournalFileId(1)
            && journal.file_first_seq >= CommitSeq(1)
            && journal.file_first_seq <= journal.seq
            && checkpoint.is_none_or(|id| id < next_checkpoint);
        if !possible || !(1..1 << 53).contains(&epoch.0) {
            return Err((0, WireError::invalid("the manifest", "an impossible epoch, checkpoint or start")));
        }
        Ok(Self { epoch, next_room, next_volume, next_checkpoint, journal, checkpoint, volumes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::FaultyDisk;

    fn volume(id: u64, first: u64, last: u64) -> VolumeEntry {
        VolumeEntry { id, first_seq: CommitSeq(first), last_seq: CommitSeq(last), records: 1, bytes: 1 }
    }

    fn manifest() -> Manifest {
        let journal = JournalStart { file: JournalFileId(3), file_first_seq: CommitSeq(9), seq: CommitSeq(11) };
        Manifest {
            next_volume: 9,
            volumes: vec![volume(3, 1, 8), volume(4, 9, 10)],
            ..Manifest::new(Epoch(5), journal)
        }
    }

    fn read_back(manifest: &Manifest) -> Result<Manifest, StorageError> {
        let disk = FaultyDisk::new(1);
        manifest.swap(&disk)?;
        Ok(Manifest::open(&disk)?.expect("it was written"))
    }

    #[test]
    fn a_manifest_with_many_volumes_is_read_as_it_was_written() {
        let mut many = manifest();
        many.volumes = (1..100_000).map(|id| volume(id, id, id)).collect();
        many.next_volume = 100_000;
        assert_eq!(read_back(&many).expect("whole"), many);
        assert_eq!(Manifest::read(&FaultyDisk::new(1)).expect("nothing is wrong"), None);
    }

    #[test]
    fn what_cannot_be_is_damage_though_its_checksum_is_right() {
        type Change = fn(&mut Manifest);
        let impossible: [Change; 8] = [
            |manifest| manifest.epoch = Epoch(0),
            |manifest| manifest.epoch = Epoch(1 << 53),
            |manifest| manifest.checkpoint = Some(1),
            |manifest| manifest.journal.file = JournalFileId(0),
            |manifest| manifest.journal.seq = CommitSeq(8),
            |manifest| manifest.volumes.swap(0, 1),
            |manifest| manifest.volumes[1].last_seq = CommitSeq(8),
            |manifest| manifest.next_volume = 4,
        ];
        assert_eq!(read_back(&manifest()).expect("whole"), manifest());
        for (index, change) in impossible.into_iter().enumerate() {
            let mut changed = manifest();
            change(&mut changed);
            assert!(matches!(read_back(&changed), Err(StorageError::Damaged { .. })), "change {index}");
        }
        let mut body = Vec::new();
        manifest().encode(&mut body);
        for length in 0..body.len() {
            assert!(Manifest::decode(&body[..length]).is_err(), "{length} bytes");
        }
        body.push(0);
        assert!(Manifest::decode(&body).is_err(), "a byte follows");
    }
}
