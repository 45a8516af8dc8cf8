//! Blocks in sled 0.34.7, one database per volume: the only file that names sled.
//!
//! A database is written once, in key order, and then only read. What that rests on, all of it tested:
//!
//! - `flush()` is not durable on Linux (`sync_file_range` only), so [`Writer::finish`] syncs every file itself.
//! - A page beyond a quarter of a segment becomes a file under `blobs/` that nobody syncs. Values of at most 32 KiB
//!   in segments of 2 MiB, written as [`Writer`] does, stay far below; that `blobs/` is empty is checked.
//! - Opening writes: it clears the log behind the last entry, and the first open writes a snapshot of the page
//!   table. So a volume is opened once before it counts as finished, and synced again.
//! - An open database keeps in memory what was read of it: its cache looks at what it holds only after 64 looks at
//!   pages of one of its 256 shards. [`LOOKS`] makes it look.
//! - It panics where it finds damage, on our thread: every call is made inside `catch_unwind`.
//! - It creates what is missing: an absent database would open as an empty one, so we look first.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{BlockKey, BlockReader, BlockStore, BlockStoreError, BlockWriter, VALUE_BYTES_MAX};

/// sled's unit of allocation, in bytes. It is part of the format: a volume opens only with the one it was made with.
const SEGMENT_BYTES: usize = 2 << 20;

/// sled's page cache, in bytes: so small that a shard which looks at what it holds keeps one leaf.
const CACHE_BYTES: u64 = 1 << 20;

/// So many looks at a page make its shard let go of all others.
const LOOKS: usize = 64;

/// Whenever leaves of so many bytes have been read, [`LOOKS`] looks follow at the last one.
const LOOKS_EVERY_BYTES: usize = 128 << 10;

/// What a leaf takes however short its values are, in bytes.
const LEAF_BYTES_MIN: usize = 2 << 10;

/// What an open database keeps of what was read, in bytes: in each shard the leaf that was looked at, and what was read
/// until the next of its leaves is, which on average is as much as 256 times what is read between looks.
const HELD_BYTES_MAX: u64 = (256 * (LOOKS_EVERY_BYTES + LEAF_BYTES)) as u64;

/// How long to wait for a database that is just being closed by another thread.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A [`BlockStore`] of sled databases below a directory.
#[derive(Clone, Debug)]
pub struct SledBlockStore {
    root: PathBuf,
}

impl SledBlockStore {
    /// A store whose directories are relative to `root`, the data directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }
}

impl BlockStore for SledBlockStore {
    fn create(&self, directory: &Path) -> Result<Box<dyn BlockWriter>, BlockStoreError> {
        let path = self.root.join(directory);
        if path.exists() {
            return Err(BlockStoreError::io(&path, io::ErrorKind::AlreadyExists.into()));
        }
        let database = Database::open(&path)?;
        Ok(Box::new(Writer { path, database, last: None, keys: 0, waiting: VecDeque::new() }))
    }

    fn open(&self, directory: &Path) -> Result<Arc<dyn BlockReader>, BlockStoreError> {
        let path = self.root.join(directory);
        for name in ["conf", "db"] {
            let file = path.join(name);
            if let Err(error) = fs::metadata(&file) {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => BlockStoreError::damaged(&file, "the file is missing"),
                    _ => BlockStoreError::io(&file, error),
                });
            }
        }
        let database = match Database::open(&path) {
            Ok(database) => database,
            Err(error @ BlockStoreError::Damaged { .. }) => {
                // The snapshot only saves reading the log. It is set aside only when it is what is damaged: reading
                // a damaged log from its beginning would clear what sled does not understand.
                if !set_aside_damaged_snapshots(&path).map_err(|error| BlockStoreError::io(&path, error))? {
                    return Err(error);
                }
                tracing::warn!(volume = %path.display(), %error, "a damaged snapshot was set aside");
                Database::open(&path)?
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Reader { database, read_bytes: AtomicUsize::new(0) }))
    }

    fn remove(&self, directory: &Path) -> Result<(), BlockStoreError> {
        // Renamed first, so that what is there under the volume's own name is never half of it.
        let path = self.root.join(directory);
        let doomed = path.with_extension("doomed");
        let removed = || {
            remove_dir(&doomed)?;
            match fs::rename(&path, &doomed) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
            sync_dir(path.parent().unwrap_or(&self.root))?;
            remove_dir(&doomed)
        };
        removed().map_err(|error| BlockStoreError::io(&path, error))
    }

    fn used_bytes(&self, directory: &Path) -> Result<u64, BlockStoreError> {
        let path = self.root.join(directory);
        used_bytes(&path).map_err(|error| BlockStoreError::io(&path, error))
    }
}

/// Writes a database in key order, so that each value is written once.
///
/// A leaf that gets its 17th key is split, and half of what is in it is written again: values that are put where
/// leaves still grow take twice the space and twice the time. So a key is put without its value first, and its
/// value only when [`KEYS_AHEAD`] more keys are there, into a leaf that will not be split any more.
///
/// Whoever reads a value gets all of its leaf into memory. So a long value is followed by keys without one, which
/// nobody asks for: the leaf has [`LEAF_BYTES`] or so of values instead of nine of the longest.
struct Writer {
    path: PathBuf,
    database: Database,
    last: Option<BlockKey>,
    /// How many keys were put.
    keys: usize,
    /// Values, with how many keys there were when theirs was put.
    waiting: VecDeque<(usize, BlockKey, Vec<u8>)>,
}

/// How many keys are put before the value of the first of them: more than the keys of a leaf.
const KEYS_AHEAD: usize = 24;

/// About how many bytes of values a leaf is to have.
const LEAF_BYTES: usize = 32 << 10;

/// The keys without a value behind one of so many bytes.
fn fillers(value_bytes: usize) -> u8 {
    let keys = (LEAF_KEYS * value_bytes).div_ceil(LEAF_BYTES).max(1);
    u8::try_from(keys - 1).expect("a value is at most a leaf")
}

impl BlockWriter for Writer {
    fn put(&mut self, key: BlockKey, value: &[u8]) -> Result<(), BlockStoreError> {
        assert!(self.last.is_none_or(|last| last < key) && value.len() <= VALUE_BYTES_MAX);
        self.last = Some(key);
        let key_bytes = encode(key);
        self.put_key(&key_bytes)?;
        self.waiting.push_back((self.keys, key, value.to_vec()));
        for number in 0..fillers(value.len()) {
            // A byte more: behind this key, and before every other.
            self.put_key(&[&key_bytes[..], &[number]].concat())?;
        }
        while self.waiting.front().is_some_and(|(keys, ..)| self.keys - keys >= KEYS_AHEAD) {
            self.put_waiting()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), BlockStoreError> {
        while !self.waiting.is_empty() {
            self.put_waiting()?;
        }
        let Self { path, database, .. } = *self;
        database.call(|db| db.flush())?;
        drop(database);
        sync_files(&path).map_err(|error| BlockStoreError::io(&path, error))?;
        drop(Database::open(&path)?);
        let blobs = fs::read_dir(path.join("blobs")).map_err(|error| BlockStoreError::io(&path, error))?;
        if let Some(blob) = blobs.into_iter().next() {
            let blob = blob.map_err(|error| BlockStoreError::io(&path, error))?.path();
            return Err(BlockStoreError::damaged(&blob, "a page has left the log"));
        }
        sync_files(&path)
            .and_then(|()| path.parent().map_or(Ok(()), sync_dir))
            .map_err(|error| BlockStoreError::io(&path, error))
    }
}

impl Writer {
    fn put_key(&mut self, key: &[u8]) -> Result<(), BlockStoreError> {
        self.keys += 1;
        self.database.call(|db| db.insert(key, &[])).map(drop)
    }

    /// Puts the value that waits longest.
    fn put_waiting(&mut self) -> Result<(), BlockStoreError> {
        let Some((_, key, value)) = self.waiting.pop_front() else { return Ok(()) };
        self.database.call(|db| db.insert(encode(key), value)).map(drop)
    }
}

/// How many values of this length a leaf has.
fn values_held_together(value_bytes: usize) -> usize {
    LEAF_KEYS.div_ceil(1 + usize::from(fillers(value_bytes.min(VALUE_BYTES_MAX))))
}

#[derive(Debug)]
struct Reader {
    database: Database,
    /// The bytes of the leaves that were read since sled was last made to look.
    read_bytes: AtomicUsize,
}

/// The keys of a leaf: one that gets its 17th key keeps nine of them, and keys rise.
const LEAF_KEYS: usize = 9;

impl BlockReader for Reader {
    fn get(&self, key: BlockKey) -> Result<Option<Bytes>, BlockStoreError> {
        let bytes = encode(key);
        let value = self.database.call(|db| db.get(bytes))?;
        let value_bytes = value.as_ref().map_or(0, |value| value.len());
        let leaf_bytes = (values_held_together(value_bytes) * value_bytes).max(LEAF_BYTES_MIN);
        if self.read_bytes.fetch_add(leaf_bytes, Ordering::Relaxed) + leaf_bytes >= LOOKS_EVERY_BYTES {
            self.read_bytes.store(0, Ordering::Relaxed);
            self.database.call(|db| (0..LOOKS).try_for_each(|_| db.contains_key(bytes).map(drop)))?;
        }
        Ok(value.map(Bytes::from_owner))
    }

    fn held_bytes_max(&self) -> u64 {
        HELD_BYTES_MAX
    }

    fn keys_held_together(&self, value_bytes: usize) -> u64 {
        values_held_together(value_bytes) as u64
    }
}

/// An open database; every use of it comes back, whatever sled does.
#[derive(Debug)]
struct Database {
    path: PathBuf,
    // `None` only while it is being dropped.
    db: Option<sled::Db>,
}

impl Database {
    fn open(path: &Path) -> Result<Self, BlockStoreError> {
        let config =
            sled::Config::new().path(path).segment_size(SEGMENT_BYTES).flush_every_ms(None).cache_capacity(CACHE_BYTES);
        let patience_ends = Instant::now() + LOCK_PATIENCE;
        loop {
            match guard(path, || config.open()) {
                // Another thread has let go of the last handle, but has not yet closed it; sled tells only by text.
                Err(BlockStoreError::Io { source, .. })
                    if source.to_string().contains("could not acquire lock") && Instant::now() < patience_ends =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return Ok(Self { path: path.to_owned(), db: Some(opened?) }),
            }
        }
    }

    fn call<T>(&self, operation: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, BlockStoreError> {
        let db = self.db.as_ref().expect("taken only by drop");
        guard(&self.path, || operation(db))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let db = self.db.take();
        let closed = guard(&self.path, || {
            drop(db);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::warn!(volume = %self.path.display(), %error, "closing failed");
        }
    }
}

fn guard<T>(path: &Path, operation: impl FnOnce() -> sled::Result<T>) -> Result<T, BlockStoreError> {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(BlockStoreError::io(path, error))
        }
        Ok(Err(sled::Error::Corruption { at, .. })) => {
            Err(BlockStoreError::damaged(path, format_args!("sled reads damaged bytes at {at:?}")))
        }
        Ok(Err(error)) => Err(BlockStoreError::damaged(path, error)),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map(String::as_str);
            let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(BlockStoreError::damaged(path, format_args!("sled gave up: {why}")))
        }
    }
}

/// `(room, first, part)` big-endian, so that sled's order of bytes is the order of keys.
fn encode(key: BlockKey) -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&key.room.to_be_bytes());
    bytes[8..16].copy_from_slice(&key.first.to_be_bytes());
    bytes[16..].copy_from_slice(&key.part.to_be_bytes());
    bytes
}

/// Renames the snapshots whose own checksum fails (a length of 8 bytes and a CRC32 of 4 end them); says whether
/// there was one. A snapshot that was never finished is one of them.
fn set_aside_damaged_snapshots(path: &Path) -> io::Result<bool> {
    let mut found = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("snap.")) else { continue };
        let bytes = fs::read(entry.path())?;
        let whole = bytes.split_last_chunk::<4>().is_some_and(|(rest, crc)| {
            rest.len() > 8 && crc32fast::hash(&rest[..rest.len() - 8]) == u32::from_le_bytes(*crc)
        });
        if !whole {
            fs::rename(entry.path(), path.join(format!("damaged.{name}")))?;
            found = true;
        }
    }
    Ok(found)
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Syncs every file of a closed volume, and the directories that name them.
fn sync_files(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_files(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(path)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn used_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { used_bytes(&entry.path())? } else { allocated_bytes(&metadata) };
    }
    Ok(bytes)
}

#[cfg(unix)]
fn allocated_bytes(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    metadata.blocks() * 512
}

#[cfg(not(unix))]
fn allocated_bytes(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}
