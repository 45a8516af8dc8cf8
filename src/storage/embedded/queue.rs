//! The commit queue: what waits while the last commit is being made durable.
//!
//! Sessions append to it under one lock per hand-over; the committer takes all of it at once. Both sides keep
//! their buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;

use crate::lock::Mutex;
use crate::storage::commit::Floor;
use crate::storage::engine::{Append, Part, Reply, Submission};
use crate::storage::room::Room;

/// What waits for the next commit, in the order in which it came.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) appends: Vec<Append>,
    pub(crate) parts: Vec<Part>,
    /// For each row of publishes of one session: where it ends in `parts`, and who is answered.
    pub(crate) replies: Vec<(usize, Arc<dyn Reply>)>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) hashes: Vec<u32>,
    pub(crate) floors: Vec<Rise>,
}

/// A floor that is to rise.
#[derive(Clone, Debug)]
pub(crate) struct Rise {
    pub(crate) room: Arc<Room>,
    pub(crate) floor: Floor,
}

/// A place between two publishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Place {
    /// The publish behind it.
    pub(crate) part: usize,
    /// Where the bytes of that begin.
    pub(crate) bytes: usize,
    /// Where the hashes of that begin.
    pub(crate) hashes: usize,
}

impl Place {
    /// The place behind a publish, where the one of this index begins.
    pub(crate) fn behind(next: usize, part: &Part) -> Self {
        Self { part: next, bytes: part.bytes_end, hashes: part.hashes_end }
    }
}

impl Gathered {
    /// Where an append begins.
    pub(crate) fn start_of(&self, append: usize) -> Place {
        let before = append.checked_sub(1).map(|before| self.appends[before].parts_end);
        before.map_or(Place::default(), |end| Place::behind(end, &self.parts[end - 1]))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.floors.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        /// What an unusual load may leave behind in buffers, in bytes.
        const KEPT_BYTES_MAX: usize = 16 << 20;
        self.appends.clear();
        self.parts.clear();
        self.replies.clear();
        self.hashes.clear();
        self.floors.clear();
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.appends.shrink_to(KEPT_BYTES_MAX / size_of::<Append>());
        self.parts.shrink_to(KEPT_BYTES_MAX / size_of::<Part>());
        self.hashes.shrink_to(KEPT_BYTES_MAX / size_of::<u32>());
    }
}

#[derive(Default)]
pub(crate) struct CommitQueue {
    gathered: Mutex<Gathered>,
    /// What the appends that are not answered yet weigh.
    bytes: AtomicUsize,
    /// Floors that are to rise and have not been committed yet.
    rising: AtomicUsize,
    risen: AtomicU64,
    /// Whether nobody is to look at what waits, until somebody claims it.
    asleep: AtomicBool,
    closed: AtomicBool,
    committer: std::sync::OnceLock<Thread>,
}

/// What publishes take in memory, if each is an append of its own: most records of a chat are shorter than what is
/// noted of each.
fn weight(bytes: usize, parts: usize) -> usize {
    bytes + parts * (size_of::<Append>() + size_of::<Part>())
}

impl CommitQueue {
    /// The thread that is woken when something waits.
    pub(crate) fn set_committer(&self, thread: Thread) {
        let _ = self.committer.set(thread);
    }

    /// Adds a session's appends; false if the queue is closed. Wakes nobody: see [`CommitQueue::claim`].
    pub(crate) fn submit(&self, submission: &mut Submission) -> bool {
        let mut gathered = self.gathered.lock();
        if self.closed.load(Ordering::SeqCst) {
            return false;
        }
        self.bytes.fetch_add(weight(submission.bytes.len(), submission.parts.len()), Ordering::Relaxed);
        let (bytes, hashes, parts) = (gathered.bytes.len(), gathered.hashes.len(), gathered.parts.len());
        gathered.bytes.extend_from_slice(&submission.bytes);
        gathered.hashes.extend_from_slice(&submission.hashes);
        gathered.parts.extend(submission.parts.iter().map(|part| Part {
            bytes_end: part.bytes_end + bytes,
            hashes_end: part.hashes_end + hashes,
            ..*part
        }));
        gathered.appends.extend(submission.appends.drain(..).map(|mut append| {
            append.parts_end += parts;
            append
        }));
        let end = gathered.parts.len();
        match gathered.replies.last_mut() {
            Some((last, reply)) if Arc::ptr_eq(reply, &submission.reply) => *last = end,
            _ => gathered.replies.push((end, Arc::clone(&submission.reply))),
        }
        drop(gathered);
        submission.clear();
        true
    }

    /// Adds floors that are to rise.
    pub(crate) fn rise(&self, floors: impl IntoIterator<Item = Rise>) {
        let mut gathered = self.gathered.lock();
        let before = gathered.floors.len();
        gathered.floors.extend(floors);
        self.rising.fetch_add(gathered.floors.len() - before, Ordering::SeqCst);
        drop(gathered);
        self.wake();
    }

    /// How many floors are to rise and have not been committed yet.
    pub(crate) fn rising(&self) -> usize {
        self.rising.load(Ordering::SeqCst)
    }

    /// So many floors have risen, or will not.
    pub(crate) fn risen(&self, floors: usize) {
        self.risen.fetch_add(floors as u64, Ordering::SeqCst);
        self.rising.fetch_sub(floors, Ordering::SeqCst);
    }

    /// How many floors have risen since the start.
    pub(crate) fn risen_ever(&self) -> u64 {
        self.risen.load(Ordering::SeqCst)
    }

    /// Exchanges what waits for an empty `Gathered`.
    pub(crate) fn take(&self, empty: &mut Gathered) {
        std::mem::swap(&mut *self.gathered.lock(), empty);
    }

    /// What waits or is being committed, in bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// So many publishes, with so many bytes of records, have been answered.
    pub(crate) fn answered(&self, parts: usize, bytes: usize) {
        self.bytes.fetch_sub(weight(bytes, parts), Ordering::Relaxed);
    }

    /// No more is taken; what waits still is.
    pub(crate) fn close(&self) {
        let gathered = self.gathered.lock();
        self.closed.store(true, Ordering::SeqCst);
        drop(gathered);
        self.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether nobody is to look at what waits: then it is the caller who has to see to it that somebody does.
    pub(crate) fn claim(&self) -> bool {
        self.asleep.swap(false, Ordering::SeqCst)
    }

    /// Wakes the committer's thread: for what has been claimed, or to look at who is at it.
    pub(crate) fn unpark(&self) {
        if let Some(thread) = self.committer.get() {
            thread.unpark();
        }
    }

    /// Wakes the committer's thread if nobody is to look at what waits: a system call only then.
    pub(crate) fn wake(&self) {
        if self.claim() {
            self.unpark();
        }
    }

    /// Puts the queue to sleep: whoever submits from here on sees to it. Whether there is something all the same that
    /// the caller has to look at.
    pub(crate) fn rest(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let waits = !self.gathered.lock().is_empty() || self.is_closed();
        waits && self.claim()
    }
}
