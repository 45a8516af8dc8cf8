//! What is broken on purpose: a simulation that finds nothing is worth something only if it would have found these.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::disk::{Disk, DiskFile, FaultyDisk};

/// How often it lies.
const LIE_EVERY: u64 = 10;

/// A disk that says now and then that it has synced the journal, and has not.
#[derive(Debug)]
pub(super) struct LyingDisk(pub(super) FaultyDisk);

#[derive(Debug)]
struct LyingFile {
    file: Arc<dyn DiskFile>,
    syncs: AtomicU64,
}

impl LyingDisk {
    fn file(path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        if path.starts_with("journal") { Arc::new(LyingFile { file, syncs: AtomicU64::new(0) }) } else { file }
    }
}

impl Disk for LyingDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Self::file(path, self.0.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Self::file(path, self.0.create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }

    fn used_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.used_bytes(path)
    }

    fn root(&self) -> Option<&Path> {
        None
    }
}

impl DiskFile for LyingFile {
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        let lies = self.syncs.fetch_add(1, Ordering::SeqCst) % LIE_EVERY == LIE_EVERY - 1;
        if lies { Ok(()) } else { self.file.sync_data() }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}
