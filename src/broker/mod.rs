//! The core: rooms, subscriptions, fan-out. No sockets, no frames, no global state; this is the embedding API.
//!
//! A publish goes to the engine, which makes it durable and visible. A subscription is a cursor: it is woken, and
//! pulls from the log at its own speed. `docs/architecture.md` shows the whole path of a record.

mod cut;
mod history;
mod lookup;
mod pool;
mod publisher;
mod readers;
mod subscription;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use cut::Part;
#[cfg(feature = "server")]
pub(crate) use history::Asker;
pub use history::{LastRecord, Page, PageAt, Summary};
pub use publisher::{Message, Publisher};
pub use readers::{JoinFacts, Joining, Output, Pulled, Readers, Wake};
pub use subscription::{Event, Records, Subscription};

use crate::metrics::Metrics;
use crate::storage::{Engine, EngineError, Health, Refused, Room, Submission};
use crate::types::{Code, Epoch, Limits, RoomName};

/// What a broker is opened with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The limits of records, requests and sessions.
    pub limits: Limits,
    /// Threads that read from the store.
    pub read_threads: usize,
    /// The log.
    pub storage: crate::storage::Options,
    /// Where what happens is counted; [`Metrics::disabled`] by default.
    pub metrics: Arc<Metrics>,
}

impl Options {
    /// The defaults, with the log in this directory, which is made if there is none.
    #[must_use]
    pub fn new(directory: impl Into<std::path::PathBuf>) -> Self {
        Self::with_storage(crate::storage::Options::new(directory))
    }

    /// The defaults, with everything in memory and gone at the end.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::with_storage(crate::storage::Options::in_memory())
    }

    fn with_storage(storage: crate::storage::Options) -> Self {
        Self { limits: Limits::default(), read_threads: 6, storage, metrics: Arc::new(Metrics::disabled()) }
    }
}

/// Why something could not be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    /// The reason.
    pub code: Code,
    /// What exactly, for a person.
    pub message: String,
}

/// What to do about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong: change it.
    Request,
    /// Too much at once, or no space: try again later.
    Later,
    /// Storage has failed or the broker is closed: open it again.
    Reopen,
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.code {
            Code::StorageFailed | Code::ShuttingDown => ErrorKind::Reopen,
            code if code.advice() == crate::types::Advice::Change => ErrorKind::Request,
            _ => ErrorKind::Later,
        }
    }
}

impl From<Refused> for Error {
    fn from(Refused { code, message }: Refused) -> Self {
        Self { code, message }
    }
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        let code = match error {
            EngineError::Closed => Code::ShuttingDown,
            _ => Code::StorageFailed,
        };
        Self::new(code, error.to_string())
    }
}

/// Why a broker could not be opened.
pub use crate::storage::OpenError;

/// A broker: rooms that are logs, in one data directory of its own. Cheap to clone; all clones are the same one.
///
/// Dropped without [`Broker::close`], what was accepted is still committed, but the next open has to look through
/// the journal's end.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) pool: pool::Pool,
    pub(crate) metrics: Arc<Metrics>,
    sessions: AtomicU64,
    /// The sessions' sets of readers, and some that are gone.
    reader_sets: parking_lot::Mutex<Vec<std::sync::Weak<readers::Shared>>>,
    /// The outgoing queues of [`Broker::publish`].
    own_queues: Arc<publisher::Queues>,
    cuts: cut::Cuts,
}

impl Broker {
    /// Opens the log in a directory, or makes a new one. Recovery reads on a thread that may block.
    ///
    /// # Errors
    /// The directory is in use, cannot be used, is damaged, or is of another version: see [`OpenError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        tokio::task::spawn_blocking(move || Self::open_blocking(options)).await.expect("opening does not panic")
    }

    /// As [`Broker::open`], on the calling thread.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_blocking(options: Options) -> Result<Self, OpenError> {
        let Options { limits, read_threads, storage, metrics } = options;
        limits.check().map_err(OpenError::Options)?;
        let engine = crate::storage::embedded::open(storage, Arc::clone(&metrics))?;
        Self::with_engine(engine, limits, read_threads, metrics).map_err(OpenError::Threads)
    }

    /// A broker over another log.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn with_engine(
        engine: Arc<dyn Engine>,
        limits: Limits,
        read_threads: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        Ok(Self::with_pool(engine, limits, pool::Pool::start(read_threads)?, metrics))
    }

    /// A broker that has no thread of its own: `told` is called when there is something to read, which
    /// [`Broker::read_turn`] does.
    #[cfg(test)]
    pub(crate) fn stepped(engine: Arc<dyn Engine>, limits: Limits, told: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self::with_pool(engine, limits, pool::Pool::stepped(told), Arc::new(Metrics::disabled()))
    }

    /// Reads one block on this thread; whether there was one to read.
    #[cfg(test)]
    pub(crate) fn read_turn(&self) -> bool {
        self.inner.pool.turn()
    }

    fn with_pool(engine: Arc<dyn Engine>, limits: Limits, pool: pool::Pool, metrics: Arc<Metrics>) -> Self {
        let inner = Inner {
            engine,
            limits: Arc::new(limits),
            pool,
            metrics,
            sessions: AtomicU64::new(0),
            reader_sets: parking_lot::Mutex::default(),
            own_queues: Arc::default(),
            cuts: cut::Cuts::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The incarnation of the data directory.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.engine.epoch()
    }

    /// The limits it was opened with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// As [`Broker::limits`], for those who keep them.
    #[cfg(feature = "server")]
    pub(crate) fn shared_limits(&self) -> &Arc<Limits> {
        &self.inner.limits
    }

    /// Whether records can be stored.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.engine.health()
    }

    /// Where what happens is counted.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// Brings those gauges up to date that are costly to keep so: call it before the metrics are read. Looks at every
    /// subscription once.
    pub fn observe(&self) {
        let (mut lagging, mut greatest) = (0_u32, 0);
        let mut sets = self.inner.reader_sets.lock().clone();
        sets.retain(|set| {
            let Some(set) = set.upgrade() else { return false };
            set.each_lag(|behind, in_store| {
                lagging += u32::from(in_store);
                greatest = greatest.max(behind);
            });
            true
        });
        self.inner.metrics.subscriptions_lagging.set(f64::from(lagging));
        self.inner.metrics.subscription_lag.set(greatest as f64);
    }

    /// A number that no other session of this broker has or had.
    #[must_use]
    pub fn new_session(&self) -> u64 {
        self.inner.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An empty set of subscriptions for a session; `wake` is told when something can be pulled.
    #[must_use]
    pub fn readers(&self, session: u64, wake: Arc<dyn Wake>) -> Readers {
        Readers::new(Arc::clone(&self.inner), session, wake)
    }

    /// A room's part in memory, for [`Submission::push`]. Hold it while the session publishes there.
    ///
    /// # Errors
    /// When the room's state cannot be read.
    pub fn room(&self, name: &RoomName) -> Result<Arc<Room>, Refused> {
        self.inner.room(name)
    }

    /// Hands over appends; never blocks. See [`Broker::queue`] for back-pressure.
    pub fn submit(&self, submission: &mut Submission) {
        self.inner.engine.submit(submission);
    }

    /// As [`Broker::submit`], from a thread that may make the commit itself if that is quick.
    #[cfg(feature = "server")]
    pub(crate) fn submit_here(&self, submission: &mut Submission, rouse: &Arc<dyn crate::storage::Rouse>) {
        self.inner.engine.submit_here(submission, rouse);
    }

    /// How many bytes of appends wait, and how many may: while more wait, do not read from publishers.
    #[must_use]
    pub fn queue(&self) -> (usize, usize) {
        self.inner.engine.queue()
    }

    /// Commits what was accepted, and closes the log: the directory is free for another broker afterwards, and
    /// what is still held of this one answers `shutting_down`.
    pub async fn close(&self) {
        let engine = Arc::clone(&self.inner.engine);
        let _ = tokio::task::spawn_blocking(move || engine.close()).await;
    }
}

impl Inner {
    pub(crate) fn room(&self, name: &RoomName) -> Result<Arc<Room>, Refused> {
        Ok(self.engine.room(name)?)
    }

    fn metrics_joined(&self, more: i32) {
        self.metrics.subscriptions.increment(f64::from(more));
    }

    /// A session has a set of readers, to be looked at by [`Broker::observe`].
    fn observed(&self, set: std::sync::Weak<readers::Shared>) {
        let mut sets = self.reader_sets.lock();
        if sets.len() == sets.capacity() {
            sets.retain(|set| set.strong_count() > 0);
        }
        sets.push(set);
    }

    fn metrics_gap(&self) {
        self.metrics.gaps[crate::types::GapReason::Retention].increment(1);
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("engine", &self.inner.engine).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
