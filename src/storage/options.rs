//! What the embedded log is opened with, and why it could not be opened.

use std::path::PathBuf;
use std::time::Duration;

use super::error::StorageError;
use super::marks::Durability;
use super::volume::VolumeError;

/// How blocks of volumes are compressed on the disk. On the wire nothing is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// LZ4.
    #[default]
    Lz4,
    /// Not at all.
    None,
}

/// What is kept of the rooms whose names match a pattern; what is absent has no bound.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// `*` stands for any characters, `?` for one.
    pub rooms: String,
    /// Records older than this go.
    pub max_age: Option<Duration>,
    /// The oldest records go while the room's encoded records take more bytes.
    pub max_bytes: Option<u64>,
    /// The oldest records go while the room has more.
    pub max_records: Option<u64>,
}

/// What the embedded log is opened with.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The data directory; made if there is none. Unused with [`Durability::Memory`].
    pub directory: PathBuf,
    /// When an append is acknowledged.
    pub durability: Durability,
    /// Appends that wait for their commit, in bytes of records; beyond it publishers wait.
    pub commit_queue_bytes_max: usize,
    /// One commit, in bytes of records; what waits beyond it goes into the next.
    pub commit_bytes_max: usize,
    /// A stretch of journal so long is made a volume, in bytes.
    pub stretch_bytes: u64,
    /// A stretch of journal so old is made a volume.
    pub stretch_age_max: Duration,
    /// So much journal may be in no volume yet while volumes are built; beyond it publishers wait, in bytes.
    pub journal_bytes_max: u64,
    /// The newest batches of all rooms that are kept in memory, in bytes.
    pub tails_bytes_max: usize,
    /// Decoded blocks of volumes that are kept in memory, in bytes.
    pub block_cache_bytes_max: usize,
    /// What sled may keep of the volumes that are open, in bytes.
    pub open_volumes_bytes_max: usize,
    /// Publishes are refused when less of the disk is free, in bytes. A sixteenth, at most 16 MiB, is held in a file
    /// of its own beyond that, for opening and tidying on a full disk; 0 = neither.
    pub disk_reserve_bytes: u64,
    /// Memory for everything with [`Durability::Memory`], in bytes.
    pub memory_bytes_max: u64,
    /// How blocks are compressed.
    pub compression: Compression,
    /// A volume is rewritten when no more than this part of its bytes is still retained, in percent.
    pub rewrite_below_percent: u8,
    /// What is kept; the first rule whose pattern matches a room's name holds for it, none = for ever.
    pub retention: Vec<Retention>,
    /// The newest seqs that are remembered of a publisher in a room.
    pub publisher_seqs: usize,
    /// The publishers that are remembered in a room.
    pub publishers_per_room: usize,
    /// How long a publisher is remembered in a room.
    pub publisher_age_max: Duration,
    /// The distance from one offset to the next, at least 1. Readers must not lean on 1: the tests also use others.
    pub offset_stride: u64,
}

impl Options {
    /// The defaults, with the log in this directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            durability: Durability::Fsync,
            commit_queue_bytes_max: 64 << 20,
            commit_bytes_max: 8 << 20,
            stretch_bytes: 256 << 20,
            stretch_age_max: Duration::from_secs(24 * 3600),
            journal_bytes_max: 2 << 30,
            tails_bytes_max: 64 << 20,
            block_cache_bytes_max: 32 << 20,
            open_volumes_bytes_max: 256 << 20,
            disk_reserve_bytes: 256 << 20,
            memory_bytes_max: 1 << 30,
            compression: Compression::Lz4,
            rewrite_below_percent: 33,
            retention: Vec::new(),
            publisher_seqs: 1024,
            publishers_per_room: 10_000,
            publisher_age_max: Duration::from_secs(24 * 3600),
            offset_stride: 1,
        }
    }

    /// The defaults, with everything in memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { durability: Durability::Memory, ..Self::new("") }
    }
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory is in use, of another version, damaged, or not to be read: the sentence says which, and where.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A volume is damaged or cannot be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The options cannot be.
    #[error("{0}")]
    Options(String),
    /// Threads could not be started.
    #[error("threads cannot be started: {0}")]
    Threads(std::io::Error),
}
