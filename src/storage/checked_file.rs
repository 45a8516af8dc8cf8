//! Small files that are replaced whole: a header with magic, format, length and checksum, and one body.
//!
//! A reader finds either the old file or the new one, never a part: the new one is written beside the old one,
//! synced, renamed over it, and the directory is synced.

use std::io;
use std::path::{Path, PathBuf};

use super::commit::{u32_at, u64_at};
use super::disk::Disk;
use super::error::StorageError;

const HEADER_BYTES: usize = 24;

/// What a file is, and the one format of it that this program knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileKind {
    /// The first four bytes.
    pub magic: [u8; 4],
    /// The format; the header is the same in every format.
    pub format: u32,
}

/// The name beside a file under which its successor is written.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Replaces or makes a file. When this returns, the new content is durable.
///
/// # Errors
/// [`StorageError::Io`], also when the disk is full. The old file is then still there, or the new one is, and
/// which one survives a power cut is not known: a caller that goes on writes the file again.
pub fn write_checked(disk: &dyn Disk, path: &Path, kind: FileKind, body: &[u8]) -> Result<(), StorageError> {
    let next = beside(path);
    let written = write_beside(disk, &next, kind, body);
    if written.is_err() {
        // The space it takes may be what is missing.
        let _ = disk.remove(&next);
    }
    written?;
    disk.rename(&next, path).map_err(StorageError::io(path, "replace"))?;
    disk.sync_dir(parent(path)).map_err(StorageError::io(path, "sync the directory of"))
}

fn write_beside(disk: &dyn Disk, next: &Path, kind: FileKind, body: &[u8]) -> Result<(), StorageError> {
    // What an earlier attempt left behind: a file whose sync may have failed is never used again.
    match disk.remove(next) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.map_err(StorageError::io(next, "remove"))?,
    }
    let file = disk.create(next).map_err(StorageError::io(next, "create"))?;
    let header = header(kind, body);
    file.write_all_at(&header, 0).map_err(StorageError::io(next, "write"))?;
    file.write_all_at(body, HEADER_BYTES as u64).map_err(StorageError::io(next, "write"))?;
    file.sync_data().map_err(StorageError::io(next, "sync"))
}

fn header(kind: FileKind, body: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(&kind.magic);
    header[8..12].copy_from_slice(&kind.format.to_le_bytes());
    header[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
    let crc = checksum(&header, body);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    header
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[8..]);
    hasher.update(body);
    hasher.finalize()
}

/// Reads a file that [`write_checked`] wrote; `None` if there is none.
///
/// # Errors
/// [`StorageError::Damaged`] if any byte of it is not as written, [`StorageError::UnknownFormat`] if it is whole but
/// of another format, [`StorageError::Io`] if it cannot be read.
pub fn read_checked(disk: &dyn Disk, path: &Path, kind: FileKind) -> Result<Option<Vec<u8>>, StorageError> {
    let file = match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(StorageError::io(path, "open"))?,
    };
    let length = file.len().map_err(StorageError::io(path, "read the length of"))?;
    let damaged = |position, what: String| StorageError::damaged(path, position, what);
    let Some(body_bytes) = length.checked_sub(HEADER_BYTES as u64) else {
        return Err(damaged(0, format!("{length} bytes, too short for its header of {HEADER_BYTES}")));
    };
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(StorageError::io(path, "read"))?;
    if header[0..4] != kind.magic {
        return Err(damaged(0, "it does not begin like a file of its kind".into()));
    }
    if u64_at(&header, 16) != body_bytes {
        let says = u64_at(&header, 16);
        return Err(damaged(16, format!("its header says {says} bytes of content, {body_bytes} are there")));
    }
    let body_bytes = usize::try_from(body_bytes).map_err(|_| damaged(16, "it does not fit into memory".into()))?;
    let mut body = vec![0; body_bytes];
    file.read_exact_at(&mut body, HEADER_BYTES as u64).map_err(StorageError::io(path, "read"))?;
    if u32_at(&header, 4) != checksum(&header, &body) {
        return Err(damaged(4, "its checksum is not that of its content".into()));
    }
    let found = u32_at(&header, 8);
    if found != kind.format {
        return Err(StorageError::UnknownFormat { path: path.to_path_buf(), found, known: kind.format });
    }
    Ok(Some(body))
}

/// Where the body of such a file begins: what a decoder found at a place of the body is at that much more.
pub const BODY_AT: u64 = HEADER_BYTES as u64;

/// Removes a file durably; nothing happens if there is none.
///
/// # Errors
/// [`StorageError::Io`].
pub fn remove_durably(disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.map_err(StorageError::io(path, "remove"))?,
    }
    disk.sync_dir(parent(path)).map_err(StorageError::io(path, "sync the directory of"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Fault, FaultyDisk};

    const KIND: FileKind = FileKind { magic: *b"test", format: 3 };

    fn read(disk: &FaultyDisk) -> Result<Option<Vec<u8>>, StorageError> {
        read_checked(disk, Path::new("d/file"), KIND)
    }

    fn with_file(body: &[u8]) -> FaultyDisk {
        let disk = FaultyDisk::new(1);
        disk.create_dir(Path::new("d")).expect("the disk is fine");
        disk.sync_dir(Path::new("")).expect("the disk is fine");
        write_checked(&disk, Path::new("d/file"), KIND, body).expect("the disk is fine");
        disk
    }

    #[test]
    fn every_flipped_bit_and_every_other_length_is_damage() {
        let disk = with_file(&[7; 700]);
        assert_eq!(read(&disk).expect("whole"), Some(vec![7; 700]));
        for at in 0..700 + HEADER_BYTES as u64 {
            for bit in 0..8 {
                disk.flip(Path::new("d/file"), at, 1 << bit);
                assert!(matches!(read(&disk), Err(StorageError::Damaged { .. })), "byte {at}, bit {bit}");
                disk.flip(Path::new("d/file"), at, 1 << bit);
            }
        }
        let file = disk.open(Path::new("d/file")).expect("it is there");
        for length in (0..700 + HEADER_BYTES as u64).chain([800, 5000]) {
            let disk = disk.after_kill(0);
            let file_now = disk.open(Path::new("d/file")).expect("it is there");
            file_now.set_len(length).expect("the disk is fine");
            assert!(matches!(read(&disk), Err(StorageError::Damaged { .. })), "{length} bytes");
        }
        drop(file);
    }

    #[test]
    fn a_whole_file_of_another_format_is_not_called_damaged() {
        let disk = with_file(b"later");
        let error =
            read_checked(&disk, Path::new("d/file"), FileKind { format: 2, ..KIND }).expect_err("another format");
        assert_eq!(error.to_string(), "d/file: format 3, but this program knows format 2 only");
    }

    #[test]
    fn a_replacement_that_fails_or_loses_power_at_any_operation_leaves_the_old_file_or_the_new_one() {
        let (old, new) = (vec![1; 900], vec![2; 1800]);
        let disk = with_file(&old);
        let started = disk.after_kill(1);
        write_checked(&started, Path::new("d/file"), KIND, &new).expect("the disk is fine");
        for operation in 1..=started.operations() {
            for fault in [Fault::Eio, Fault::Enospc, Fault::Torn, Fault::Short { bytes: 600 }] {
                let disk = disk.after_kill(operation);
                disk.fail_at(operation, fault);
                let result = write_checked(&disk, Path::new("d/file"), KIND, &new);
                let found = |disk: &FaultyDisk| read(disk).expect("never damaged").expect("never missing");
                for seed in 0..20 {
                    let after = found(&disk.reopen(seed));
                    assert!(after == new || (after == old && result.is_err()), "{operation}: {fault:?}");
                }
                write_checked(&disk, Path::new("d/file"), KIND, b"again").expect("it can be tried again");
                assert_eq!(found(&disk.reopen(1)), b"again");
                assert_eq!(disk.list(Path::new("d")).expect("a list").len(), 1, "nothing is left beside it");
            }
        }
    }
}
