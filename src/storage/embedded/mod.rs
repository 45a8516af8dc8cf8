//! The embedded log: a committer thread, a journal, volumes, and the house-keeping between them.
//!
//! Two threads: the committer's (`committer.rs`) makes records durable and visible, unless a publisher's own thread does
//! (`seat.rs`); the keeper (`keeper.rs`) turns
//! closed stretches of journal into volumes, applies retention, and looks after space. Reads come from whatever
//! thread wants to read, and look at tail, journal, volumes and floor, in this order.

mod committer;
#[cfg(feature = "fault-injection")]
mod fault;
mod keeper;
mod queue;
mod reading;
mod recovery;
mod seat;
#[cfg(test)]
mod stepped;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use self::queue::CommitQueue;
use super::ballast::Ballast;
use super::block_store::BlockStore;
use super::catalog::Catalog;
use super::commit::{CommitSeq, JournalFileId, UnitPlace};
use super::disk::Disk;
use super::engine::{Answer, Engine, EngineError, Health, Outline, Read, ReadAt, Rouse, Submission};
use super::journal::JournalReader;
use super::publishers::Memory;
use super::room::{Facts, Room};
use super::volume::Volumes;
use super::{OpenError, Options};
use crate::metrics::{Budget, Metrics};
use crate::types::{Code, Epoch, Offset, Refused, RoomName, Time};

pub(crate) use self::keeper::stand_back;
#[cfg(all(test, feature = "server", feature = "client"))]
pub(crate) use self::stepped::SteppedLog;

/// What the threads of a log share.
pub(crate) struct Shared {
    options: Options,
    memory: Memory,
    metrics: Arc<Metrics>,
    epoch: Epoch,
    disk: Arc<dyn Disk>,
    store: Arc<dyn BlockStore>,
    ballast: Ballast,
    catalog: Catalog,
    queue: CommitQueue,
    journal: JournalReader,
    volumes: Volumes,
    health: Mutex<Health>,
    /// Whether the directory may be another's by now.
    closed: AtomicBool,
    /// Whether the journal has grown to its limit: commits wait for the keeper, and so do publishers.
    behind: AtomicBool,
    /// The last durable commit.
    committed: Mutex<Committed>,
    committed_changed: Condvar,
    /// Batches in the journal indexes of all rooms.
    indexed: AtomicU64,
    /// The commit being made, as a number; equal to the last durable one while none is.
    making: AtomicU64,
    /// How far the clock has been pushed ahead of the system's, for tests of retention, in microseconds.
    clock_ahead_us: AtomicU64,
    keeper: Mutex<keeper::Asked>,
    keeper_asked: Condvar,
}

/// How far the journal has got.
#[derive(Clone, Copy, Debug)]
struct Committed {
    seq: CommitSeq,
    /// The journal file of the last commit, and where in it the commit ends.
    file: JournalFileId,
    end: u64,
}

impl Shared {
    fn now(&self) -> Time {
        Time(Time::now().0 + self.clock_ahead_us.load(Ordering::Relaxed))
    }

    fn committed(&self, seq: CommitSeq, place: UnitPlace, tails_bytes: usize) {
        let end = place.at + u64::from(place.bytes);
        *self.committed.lock() = Committed { seq, file: place.file, end };
        self.committed_changed.notify_all();
        self.metrics.budget_used[Budget::Tails].set(tails_bytes as f64);
    }

    /// The commit being made, or the last one.
    fn making(&self) -> CommitSeq {
        CommitSeq(self.making.load(Ordering::SeqCst))
    }

    /// The last act of a clean close.
    fn mark_clean(&self, mut journal: super::journal::Journal) -> Result<(), super::error::StorageError> {
        journal.sync()?;
        super::marks::CleanMark { end: journal.end() }.write(&*self.disk)
    }

    fn nudge_keeper(&self) {
        self.keeper.lock().work = true;
        self.keeper_asked.notify_one();
    }
}

/// The embedded log of one data directory.
pub(crate) struct Embedded {
    shared: Arc<Shared>,
    seat: Arc<seat::Seat>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    committer: JoinHandle<super::journal::Journal>,
    keeper: JoinHandle<()>,
    /// Held as long as the directory is ours.
    lock: Option<super::disk::DirectoryLock>,
}

/// Opens the log of a directory, or makes a new one.
///
/// # Errors
/// See [`OpenError`].
pub fn open(options: Options, metrics: Arc<Metrics>) -> Result<Arc<dyn Engine>, OpenError> {
    Ok(Arc::new(Embedded::open(options, metrics)?))
}

/// Opens a log on any disk and block store, for tests of what is above.
#[cfg(test)]
pub(crate) fn open_on(
    options: Options,
    disk: Arc<dyn Disk>,
    store: Arc<dyn BlockStore>,
) -> Result<Arc<dyn Engine>, OpenError> {
    let parts = recovery::assemble(options, Arc::new(Metrics::disabled()), disk, store)?;
    Ok(Arc::new(Embedded::start(parts, None)?))
}

impl Embedded {
    fn start(parts: recovery::Parts, lock: Option<super::disk::DirectoryLock>) -> Result<Self, OpenError> {
        let recovery::Parts { shared, journal, manifest, next_room } = parts;
        let mut keeper = keeper::Keeper::new(Arc::clone(&shared), manifest, journal.files());
        // On a full disk the first publish is refused already.
        keeper.judge_space();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let committer = committer::Committer::new(Arc::clone(&shared), journal, next_room).on_cores(cores);
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let seat = Arc::new(seat::Seat::new(Arc::clone(&shared), committer));
        let taken = Arc::clone(&seat);
        let committer = spawn("roomlog-commit").spawn(move || taken.run()).map_err(OpenError::Threads)?;
        let keeper = spawn("roomlog-keep").spawn(move || keeper.run()).map_err(OpenError::Threads)?;
        Ok(Self { shared, seat, threads: Mutex::new(Some(Threads { committer, keeper, lock })) })
    }

    fn refuse(submission: &mut Submission) {
        let mut start = 0;
        let answers = submission.parts.iter().map(|part| {
            let bytes = part.bytes_end - std::mem::replace(&mut start, part.bytes_end);
            let outcome = Err(Refused::new(Code::ShuttingDown, "the log has been closed"));
            Answer { tag: part.tag, count: part.count, bytes, outcome }
        });
        let answers: Vec<_> = answers.collect();
        submission.clear();
        submission.reply.answered(&answers, super::room::Targets::Many);
    }
}

impl Engine for Embedded {
    fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    fn room(&self, name: &RoomName) -> Result<Arc<Room>, EngineError> {
        self.shared.catalog.room(name.as_str())
    }

    fn submit(&self, submission: &mut Submission) {
        if self.shared.queue.submit(submission) {
            self.shared.queue.wake();
        } else {
            Self::refuse(submission);
        }
    }

    fn submit_here(&self, submission: &mut Submission, rouse: &Arc<dyn Rouse>) {
        let bytes = submission.bytes();
        if self.shared.queue.submit(submission) {
            self.seat.see_to_it_here(bytes, &submission.reply, rouse);
        } else {
            Self::refuse(submission);
        }
    }

    fn queue(&self) -> (usize, usize) {
        (self.shared.queue.bytes(), self.shared.options.commit_queue_bytes_max)
    }

    fn read(&self, room: &Room, at: ReadAt) -> Result<Read, EngineError> {
        self.shared.read(room, at)
    }

    fn outline(&self, room: &Room, before: Offset) -> Option<Outline> {
        self.shared.outline(room, before)
    }

    fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<(RoomName, Facts)> {
        self.shared.catalog.list(prefix, after, limit)
    }

    fn facts(&self, name: &str) -> Option<Facts> {
        self.shared.catalog.facts(name)
    }

    fn health(&self) -> Health {
        self.shared.health.lock().clone()
    }

    fn close(&self) {
        // Held to the end: whoever else closes comes back when it is closed.
        let mut held = self.threads.lock();
        let Some(threads) = held.take() else { return };
        if self.seat.commits_here() {
            // The last owner was a publisher or a follower. The committer cannot wait for its own end.
            self.shared.queue.close();
            let shared = Arc::clone(&self.shared);
            let closing = std::thread::Builder::new().name("roomlog-close".to_owned());
            if let Err(error) = closing.spawn(move || threads.close(&shared)) {
                tracing::error!("the log is not closed, the next start looks through its end: {error}");
            }
            return;
        }
        threads.close(&self.shared);
    }
}

impl Threads {
    fn close(self, shared: &Shared) {
        let Self { committer, keeper, lock } = self;
        shared.queue.close();
        let journal = committer.join();
        {
            let mut asked = shared.keeper.lock();
            asked.stop = true;
            shared.keeper_asked.notify_one();
        }
        let kept = keeper.join();
        let mut health = shared.health.lock();
        match (&*health, journal, kept) {
            (Health::Failed(_), ..) => {}
            (_, Ok(journal), Ok(())) => {
                if let Err(error) = shared.mark_clean(journal) {
                    tracing::warn!("the journal was not closed cleanly, the next start looks through its end: {error}");
                }
                *health = Health::Closed;
            }
            _ => *health = Health::Failed("a thread of the log has panicked".to_owned()),
        }
        drop(health);
        shared.closed.store(true, Ordering::SeqCst);
        shared.volumes.close();
        drop(lock);
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("directory", &self.shared.options.directory)
            .field("epoch", &self.shared.epoch)
            .finish_non_exhaustive()
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("something that is not a text")
}

/// How long something took, for messages.
fn since(begun: Instant) -> String {
    format!("{:.3} s", begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod durable_tests;
