//! A disk in memory, with a capacity: for `durability = "memory"`, and for tests without faults.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Disk, DiskFile};

/// Files in memory. Clones share them; all is gone with the last clone.
#[derive(Clone, Debug)]
pub struct MemoryDisk {
    tree: Arc<Mutex<Tree>>,
    space: Arc<Space>,
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Arc<MemoryFile>>,
    directories: BTreeSet<PathBuf>,
}

/// The bytes that there are, for files and for whatever else is to be bounded with them.
#[derive(Debug)]
pub(crate) struct Space {
    capacity_bytes: u64,
    used_bytes: AtomicU64,
}

impl Space {
    pub(crate) fn take(&self, bytes: u64) -> io::Result<()> {
        let taken = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|&used| used <= self.capacity_bytes)
        });
        taken.map(drop).map_err(|_| io::ErrorKind::StorageFull.into())
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl MemoryDisk {
    /// An empty disk; writes beyond the capacity fail with `StorageFull`.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        let space = Arc::new(Space { capacity_bytes, used_bytes: AtomicU64::new(0) });
        let mut tree = Tree::default();
        tree.directories.insert(PathBuf::new());
        Self { tree: Arc::new(Mutex::new(tree)), space }
    }

    /// What its capacity is counted by.
    pub(crate) fn space(&self) -> Arc<Space> {
        Arc::clone(&self.space)
    }
}

fn missing<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotFound.into())
}

impl Tree {
    fn has_parent_of(&self, path: &Path) -> bool {
        path.parent().is_some_and(|parent| self.directories.contains(parent))
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.tree.lock().files.get(path) {
            Some(file) => Ok(file.clone()),
            None => missing(),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut tree = self.tree.lock();
        if !tree.has_parent_of(path) {
            return missing();
        }
        if tree.files.contains_key(path) || tree.directories.contains(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(MemoryFile { bytes: RwLock::default(), space: self.space.clone() });
        tree.files.insert(path.to_path_buf(), file.clone());
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        if tree.directories.contains(to) || tree.directories.contains(from) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !tree.has_parent_of(to) {
            return missing();
        }
        let Some(file) = tree.files.remove(from) else { return missing() };
        tree.files.insert(to.to_path_buf(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.tree.lock().files.remove(path) {
            Some(_) => Ok(()),
            None => missing(),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        if path.ancestors().any(|path| tree.files.contains_key(path)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        tree.directories.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        tree.files.retain(|file, _| !file.starts_with(path));
        tree.directories.retain(|directory| !directory.starts_with(path));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let tree = self.tree.lock();
        let within = |entry: &PathBuf| (entry.parent() == Some(path)).then(|| entry.file_name().map(PathBuf::from));
        let mut names: Vec<PathBuf> = tree.files.keys().chain(&tree.directories).filter_map(within).flatten().collect();
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if self.tree.lock().directories.contains(path) { Ok(()) } else { missing() }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.space.capacity_bytes - self.space.used_bytes.load(Ordering::Relaxed))
    }

    fn used_bytes(&self, path: &Path) -> io::Result<u64> {
        let tree = self.tree.lock();
        let below = tree.files.iter().filter(|(file, _)| file.starts_with(path));
        Ok(below.map(|(_, file)| file.bytes.read().len() as u64).sum())
    }

    fn root(&self) -> Option<&Path> {
        None
    }
}

#[derive(Debug)]
struct MemoryFile {
    bytes: RwLock<Vec<u8>>,
    space: Arc<Space>,
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        self.space.give_back(self.bytes.get_mut().len() as u64);
    }
}

impl DiskFile for MemoryFile {
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let bytes = self.bytes.read();
        let start = usize::try_from(position).unwrap_or(usize::MAX);
        let found = start.checked_add(buffer.len()).and_then(|end| bytes.get(start..end));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_all_at(&self, written: &[u8], position: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let start = usize::try_from(position).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(written.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if end > bytes.len() {
            self.space.take((end - bytes.len()) as u64)?;
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(written);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let (length, old) = (usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?, bytes.len());
        if length > old {
            self.space.take((length - old) as u64)?;
        } else {
            self.space.give_back((old - length) as u64);
        }
        bytes.resize(length, 0);
        bytes.shrink_to_fit();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().len() as u64)
    }
}
