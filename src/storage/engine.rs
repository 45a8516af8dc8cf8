//! The seam between the broker core and whatever keeps the log.
//!
//! The embedded engine is a journal and sled volumes ([`super::embedded`]). Another engine could be a cluster
//! of logs elsewhere: so nothing here leans on dense offsets, appends complete by a call back, and reads that
//! may have to wait are made from threads that may.

use std::fmt::Debug;
use std::sync::Arc;

use super::block::Block;
use super::room::{Facts, Room, Targets};
use crate::protocol::BATCH_BYTES_MAX;
use crate::types::{Epoch, Offset, PublisherId, Refused, RoomName, Time};

/// A log of rooms.
pub trait Engine: Send + Sync + Debug + 'static {
    /// The incarnation that all offsets belong to.
    fn epoch(&self) -> Epoch;

    /// A room's part in memory, with its state loaded. A room that has no records yet costs no storage.
    ///
    /// # Errors
    /// When the room's state cannot be read.
    fn room(&self, name: &RoomName) -> Result<Arc<Room>, EngineError>;

    /// Hands over appends; each is answered through its [`Reply`] when it is as durable as promised, or refused.
    /// Never blocks. The submission is empty afterwards and keeps its buffers.
    fn submit(&self, submission: &mut Submission);

    /// As [`Engine::submit`], for a caller who can do without this thread for a moment: where a commit is quick and nobody
    /// else publishes, it is made here and now. Should it take longer, `rouse` is told. An engine need not do that.
    fn submit_here(&self, submission: &mut Submission, rouse: &Arc<dyn Rouse>) {
        let _ = rouse;
        self.submit(submission);
    }

    /// How many bytes the appends that wait take in memory, with what is noted of each, and how many they may;
    /// beyond it callers stop submitting.
    fn queue(&self) -> (usize, usize);

    /// Reads one block from where it lies, memory or disk. May block.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    fn read(&self, room: &Room, at: ReadAt) -> Result<Read, EngineError>;

    /// What the block is like that [`ReadAt::Before`] finds, where that is known without reading it and all of the
    /// block is retained; `None` if it has to be read. Whoever looks for a place far back is spared the blocks in front of
    /// it. May block.
    fn outline(&self, room: &Room, before: Offset) -> Option<Outline>;

    /// Rooms that have or had records, in the order of their names' bytes: those behind `after` that begin with
    /// `prefix`, `limit` at most.
    fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<(RoomName, Facts)>;

    /// What is known of a room that has or had records, without loading it.
    fn facts(&self, name: &str) -> Option<Facts>;

    /// Whether records can be stored.
    fn health(&self) -> Health;

    /// Commits what was submitted, and ends. Later submissions are refused. Blocks until all is on disk.
    fn close(&self);
}

/// Has others do what a thread would do that is within a commit.
pub trait Rouse: Send + Sync + Debug {
    /// The commit takes long. May be called again and again.
    fn rouse(&self);
}

/// Which block to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadAt {
    /// The first block with a record behind this offset.
    After(Offset),
    /// The last block with a record before this offset.
    Before(Offset),
    /// The first block with a record of this time or later.
    Since(Time),
}

/// What a read found.
#[derive(Clone, Debug)]
pub enum Read {
    /// A block.
    Block(Block),
    /// No retained record lies there.
    Nothing,
}

/// A block, without what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outline {
    /// The first record's offset.
    pub first: Offset,
    /// The last record's offset.
    pub last: Offset,
    /// The offset of the record before the first, in the room.
    pub prev: Offset,
    /// How many records.
    pub records: u32,
}

/// Whether records can be stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// They can.
    Ok,
    /// No space is left; heals by itself when there is some again.
    Full(String),
    /// A write or a sync failed; only a restart helps.
    Failed(String),
    /// The engine has been closed.
    Closed,
}

/// Why an engine could not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// What is stored cannot be read, or is not what was written.
    #[error("{0}")]
    Damaged(String),
    /// The file system said no.
    #[error("{0}")]
    Io(String),
    /// The engine has been closed.
    #[error("the log has been closed")]
    Closed,
}

/// The records of consecutive publishes that one run takes, in bytes: a part of a batch, so that a batch which ends
/// before a run that does not fit is nearly full.
const RUN_BYTES_MAX: usize = BATCH_BYTES_MAX / 4;

/// Publishes of one outgoing queue into one room on their way into the log, each with seqs behind the one before.
///
/// Mostly one. Those that were read from a socket together are judged and stored together, so that what is done for
/// each of them is little; each is answered, and stored or refused as a whole, all the same.
#[derive(Debug)]
pub struct Append {
    /// The room.
    pub room: Arc<Room>,
    /// Who publishes; set by the server.
    pub user: Arc<str>,
    /// The outgoing queue.
    pub publisher: PublisherId,
    /// The first record's number in it.
    pub seq: u64,
    /// Append only if this is the head; only of a single publish.
    pub expect: Option<Offset>,
    /// How many records, at least 1.
    pub count: u32,
    /// Where its publishes end among those of the submission; they begin where the append before ends.
    pub(crate) parts_end: usize,
}

/// One publish.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// What the answer repeats.
    pub(crate) tag: u32,
    /// How many records.
    pub(crate) count: u32,
    /// Where the records end in the submission's bytes; they begin where the publish before ends.
    pub(crate) bytes_end: usize,
    /// Where the hashes end in the submission's hashes.
    pub(crate) hashes_end: usize,
}

/// Appends of one session, handed over together: one lock per read from a socket, not per record.
#[derive(Debug)]
pub struct Submission {
    pub(crate) appends: Vec<Append>,
    pub(crate) parts: Vec<Part>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) hashes: Vec<u32>,
    pub(crate) reply: Arc<dyn Reply>,
    /// Where the bytes of the last append begin.
    last_start: usize,
}

impl Submission {
    /// An empty submission whose appends are answered there.
    #[must_use]
    pub fn new(reply: Arc<dyn Reply>) -> Self {
        let (appends, parts, bytes, hashes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { appends, parts, bytes, hashes, reply, last_start: 0 }
    }

    /// Adds a publish. `area` holds its records, `hashes` gives the CRC32 of each (see [`record_hash`]).
    #[allow(clippy::too_many_arguments)]
    pub fn push(
        &mut self,
        room: &Arc<Room>,
        user: &Arc<str>,
        publisher: PublisherId,
        seq: u64,
        expect: Option<Offset>,
        tag: u32,
        area: &[u8],
        hashes: &[u32],
    ) {
        self.hashes.extend_from_slice(hashes);
        let count = u32::try_from(hashes.len()).expect("a publish is bounded in records");
        let start = self.bytes.len();
        self.bytes.extend_from_slice(area);
        let (bytes_end, hashes_end) = (self.bytes.len(), self.hashes.len());
        self.parts.push(Part { tag, count, bytes_end, hashes_end });
        let parts_end = self.parts.len();
        if let Some(last) = self.appends.last_mut()
            && last.publisher == publisher
            && last.seq + u64::from(last.count) == seq
            && (last.expect, expect) == (None, None)
            && Arc::ptr_eq(&last.room, room)
            && Arc::ptr_eq(&last.user, user)
            && bytes_end - self.last_start <= RUN_BYTES_MAX
        {
            last.count += count;
            last.parts_end = parts_end;
            return;
        }
        let (room, user) = (Arc::clone(room), Arc::clone(user));
        self.appends.push(Append { room, user, publisher, seq, expect, count, parts_end });
        self.last_start = start;
    }

    /// Empties it, and keeps its buffers.
    pub(crate) fn clear(&mut self) {
        self.appends.clear();
        self.parts.clear();
        self.bytes.clear();
        self.hashes.clear();
        self.last_start = 0;
    }

    /// Whether it holds no append.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty()
    }

    /// The records' bytes in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// What tells a repeat from a conflict: the CRC32 of an encoded record.
#[must_use]
pub fn record_hash(record: &[u8]) -> u32 {
    crc32fast::hash(record)
}

/// What became of one publish.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The publish's tag.
    pub tag: u32,
    /// How many records it has.
    pub count: u32,
    /// Their bytes, which are no longer in flight.
    pub bytes: usize,
    /// Where they are, or why they are not.
    pub outcome: Outcome,
}

/// Takes the answers to publishes. Called on the thread that commits, which may be a worker of the
/// runtime: must be quick and must not block.
pub trait Reply: Send + Sync + Debug {
    /// What a commit has answered of the publishes that were handed over together, in their order; `targets` says
    /// whether it is worth sending the answers on this thread.
    fn answered(&self, answers: &[Answer], targets: Targets);
}

/// Where the records are, or why they are not stored.
pub type Outcome = Result<Appended, Refused>;

/// The records are in the log, as durable as promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// The first record's offset.
    pub first: Offset,
    /// The last record's offset.
    pub last: Offset,
    /// When they were committed.
    pub time: Time,
    /// Whether they had been stored before.
    pub duplicate: bool,
}
