//! One journal file: its name, its header sector, and how it is made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::storage::commit::{JournalFileId, SECTOR_BYTES, u32_at, u64_at};
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::error::StorageError;

/// The journal's directory in the data directory.
pub const JOURNAL_DIRECTORY: &str = "journal";

/// A file that is still being filled with zeros; whatever stands in it, it is no part of the journal.
const UNFINISHED_NAME: &str = "next.tmp";

const EXTENSION: &str = "rlj";
const MAGIC: [u8; 4] = *b"RLjf";

/// The format of a journal file and of the units in it.
const FORMAT: u32 = 1;

/// Zeros are written in pieces of so many bytes.
const ZEROS_BYTES: usize = 256 << 10;

/// Zeros that are synced together. A device that is told to flush finishes all that it has been given: with a whole
/// file of zeros on their way a commit would wait for as much.
const SYNCED_BYTES: u64 = 1 << 20;

/// The first sector of a journal file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileHeader {
    /// The number of the file, as in its name.
    pub(crate) id: JournalFileId,
    /// Random for each file and each time it is recycled; repeated in each of its units.
    pub(crate) salt: u64,
    /// The length of the whole file in bytes.
    pub(crate) bytes: u64,
}

impl FileHeader {
    pub(crate) fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[0..4].copy_from_slice(&MAGIC);
        sector[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        sector[16..24].copy_from_slice(&self.id.0.to_le_bytes());
        sector[24..32].copy_from_slice(&self.salt.to_le_bytes());
        sector[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32fast::hash(&sector[8..]);
        sector[4..8].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    /// Reads the header of the file with this number.
    fn read(path: &Path, id: JournalFileId, file: &dyn DiskFile) -> Result<Self, StorageError> {
        let damaged = |position, what: String| Err(StorageError::damaged(path, position, what));
        let length = file.len().map_err(StorageError::io(path, "read the length of"))?;
        if length < 2 * SECTOR_BYTES as u64 {
            return damaged(0, format!("{length} bytes, too short for a journal file"));
        }
        let mut sector = [0; SECTOR_BYTES];
        file.read_exact_at(&mut sector, 0).map_err(StorageError::io(path, "read"))?;
        if sector[0..4] != MAGIC {
            return damaged(0, "it does not begin like a journal file".into());
        }
        if u32_at(&sector, 4) != crc32fast::hash(&sector[8..]) {
            return damaged(4, "the checksum of its header is wrong".into());
        }
        let found = u32_at(&sector, 8);
        if found != FORMAT {
            return Err(StorageError::UnknownFormat { path: path.to_path_buf(), found, known: FORMAT });
        }
        let header =
            Self { id: JournalFileId(u64_at(&sector, 16)), salt: u64_at(&sector, 24), bytes: u64_at(&sector, 32) };
        if header.id != id {
            return damaged(16, format!("its header says file {}", header.id));
        }
        if header.bytes != length {
            return damaged(32, format!("its header says {} bytes, the file has {length}", header.bytes));
        }
        Ok(header)
    }
}

/// An open journal file. Readers, the committer and the builder share it.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) header: FileHeader,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Set before the file's bytes change their meaning: what was read from it before that is right.
    pub(crate) gone: AtomicBool,
}

impl OpenFile {
    fn new(header: FileHeader, file: Arc<dyn DiskFile>) -> Self {
        Self { header, file, gone: AtomicBool::new(false) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        path_of(self.header.id)
    }

    /// Opens a file that must be there and whole.
    pub(crate) fn open(disk: &dyn Disk, id: JournalFileId) -> Result<Self, StorageError> {
        let path = path_of(id);
        let file = disk.open(&path).map_err(StorageError::io(&path, "open"))?;
        Ok(Self::new(FileHeader::read(&path, id, &*file)?, file))
    }

    /// Makes a file of zeros. When this returns, it is durable under its name.
    pub(crate) fn create(disk: &dyn Disk, id: JournalFileId, bytes: u64) -> Result<Self, StorageError> {
        let unfinished = unfinished_path();
        remove_unfinished(disk)?;
        let file = disk.create(&unfinished).map_err(StorageError::io(&unfinished, "create"))?;
        let header = FileHeader { id, salt: random_salt()?, bytes };
        let made = fill(&*file, &header).map_err(StorageError::io(&unfinished, "write"));
        let made = made.and_then(|()| put_in_place(disk, &unfinished, id));
        if let Err(error) = made {
            // The space it took is wanted back at once.
            let _ = disk.remove(&unfinished);
            return Err(error);
        }
        Ok(Self::new(header, file))
    }

    /// Makes a new file of an old one that nobody needs. When this returns, it is durable under its new name.
    ///
    /// The header is durable before the name is, so a file never stands under a number that its header does not have.
    pub(crate) fn recycle(disk: &dyn Disk, old: &Spare, id: JournalFileId) -> Result<Self, StorageError> {
        let path = path_of(old.id);
        let header = FileHeader { id, salt: random_salt()?, bytes: old.bytes };
        old.file.write_all_at(&header.encode(), 0).map_err(StorageError::io(&path, "write"))?;
        old.file.sync_data().map_err(StorageError::io(&path, "sync"))?;
        put_in_place(disk, &path, id)?;
        Ok(Self::new(header, old.file.clone()))
    }
}

/// A file that is no longer needed, kept under its old name to be recycled.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) id: JournalFileId,
    pub(crate) bytes: u64,
    pub(crate) file: Arc<dyn DiskFile>,
}

fn fill(file: &dyn DiskFile, header: &FileHeader) -> std::io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES];
    let mut at = 0;
    while at < header.bytes {
        let count = (header.bytes - at).min(ZEROS_BYTES as u64);
        file.write_all_at(&zeros[..usize::try_from(count).expect("at most a piece")], at)?;
        at += count;
        if at % SYNCED_BYTES == 0 {
            file.sync_data()?;
        }
    }
    file.write_all_at(&header.encode(), 0)?;
    file.sync_data()
}

fn put_in_place(disk: &dyn Disk, from: &Path, id: JournalFileId) -> Result<(), StorageError> {
    let path = path_of(id);
    disk.rename(from, &path).map_err(StorageError::io(&path, "put in place"))?;
    sync_directory(disk)
}

pub(crate) fn sync_directory(disk: &dyn Disk) -> Result<(), StorageError> {
    let path = Path::new(JOURNAL_DIRECTORY);
    disk.sync_dir(path).map_err(StorageError::io(path, "sync"))
}

fn random_salt() -> Result<u64, StorageError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| StorageError::io(&unfinished_path(), "get randomness for")(std::io::Error::other(error)))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Gives what stands where a header should the header of this file; its salt stays, and is returned.
#[cfg(feature = "fuzzing")]
pub(super) fn mend(id: JournalFileId, file: &mut [u8]) -> Option<u64> {
    let bytes = file.len() as u64;
    let sector = file.get_mut(..SECTOR_BYTES)?;
    let header = FileHeader { id, salt: u64_at(sector, 24), bytes };
    sector.copy_from_slice(&header.encode());
    Some(header.salt)
}

fn unfinished_path() -> PathBuf {
    Path::new(JOURNAL_DIRECTORY).join(UNFINISHED_NAME)
}

/// Removes a file whose making was interrupted.
pub(crate) fn remove_unfinished(disk: &dyn Disk) -> Result<(), StorageError> {
    let path = unfinished_path();
    match disk.remove(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StorageError::io(&path, "remove")),
    }
}

/// Where a journal file is, relative to the data directory.
#[must_use]
pub fn path_of(id: JournalFileId) -> PathBuf {
    Path::new(JOURNAL_DIRECTORY).join(format!("{:020}.{EXTENSION}", id.0))
}

/// The numbers of the journal files that are there, rising. Other names are left alone.
pub(crate) fn list(disk: &dyn Disk) -> Result<Vec<JournalFileId>, StorageError> {
    let directory = Path::new(JOURNAL_DIRECTORY);
    let names = disk.list(directory).map_err(StorageError::io(directory, "list"))?;
    let number = |name: &PathBuf| {
        let id = JournalFileId(name.file_stem()?.to_str()?.parse().ok()?);
        (directory.join(name) == path_of(id)).then_some(id)
    };
    let mut ids: Vec<JournalFileId> = names.iter().filter_map(number).collect();
    ids.sort_unstable();
    Ok(ids)
}
