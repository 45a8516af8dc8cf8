//! The reconnecting client: one connection, over WebSocket or QUIC, for many rooms.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use roomlog::client::{Client, Event, Options};
//! use roomlog::types::{NewRecord, RoomName, Start};
//!
//! let client = Client::connect("ws://127.0.0.1:7400", Options::default()).await?;
//! let room = RoomName::new("kitchen")?;
//! let mut kitchen = client.join(&room, Start::Earliest).await?;
//! client.publish(&room, NewRecord::new(b"hello")).await?;
//! while let Some(event) = kitchen.next().await {
//!     match event {
//!         Event::Batch(batch) => batch.records().for_each(|record| println!("{}", record.offset)),
//!         Event::Live { .. } => break,
//!         other => println!("{other:?}"),
//!     }
//! }
//! client.flush().await?;
//! client.close().await;
//! # Ok(()) }
//! ```
//!
//! A lost connection is made again, with exponential backoff and full jitter, until the client is closed or the
//! broker says to give up. Subscriptions go on from their positions, unacknowledged publishes are sent again under
//! their first identity: nothing is lost and nothing doubled. [`Client::watch`] tells what the connection does.

mod address;
mod backoff;
mod core;
mod driver;
mod error;
// The load generator drives links of its own, without a client on top.
pub(crate) mod link;
mod options;
mod publish;
mod state;
mod subscription;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use crate::protocol::HistoryAt;
pub use error::{Error, ErrorKind};
pub use options::{JoinOptions, OnVoid, Options};
pub use publish::Receipt;
pub use state::{Batch, Event, Joined, LastRecord, Page, Pending, Published, RoomList, RoomSummary, State};
pub use subscription::Subscription;

pub(crate) use address::Address;

use self::core::{Answer, Ask, Core};
use self::driver::Shared;
use self::link::Connector;
use crate::types::{RoomName, Start, Time};

/// A connection to a broker that is made again whenever it is lost. Cheap to clone; all clones share it.
///
/// It is closed by [`Client::close`], or when the last clone and the last [`Subscription`] are dropped: what is
/// not acknowledged then is not sent any more, so [`Client::flush`] first.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    shared: Arc<Shared>,
    options: Options,
    queue_bytes: Arc<Semaphore>,
    queue_publishes: Arc<Semaphore>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Client {
    /// Connects to `ws://host:port`, `wss://host:port` or `quic://host:port`, and waits for the broker's welcome
    /// through as many attempts as [`Options::request_timeout`] allows.
    ///
    /// Cancel-safe: dropping the future closes the client.
    ///
    /// # Errors
    /// The address is none, the certificates cannot be read, or there is no connection in time: then the error is
    /// that of the last attempt.
    pub async fn connect(url: &str, options: Options) -> Result<Self, Error> {
        let client = Self::open(url, options)?;
        client.connected().await?;
        Ok(client)
    }

    /// Begins to connect in the background; what is asked of the client meanwhile waits.
    ///
    /// # Errors
    /// The address is none, or the certificates cannot be read.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(url: &str, options: Options) -> Result<Self, Error> {
        let address = Address::parse(url)?;
        let randomness = |error: std::io::Error| Error::Unreachable { address: url.to_owned(), why: error.to_string() };
        let connector = Connector::new(address, &options)?;
        Self::over(connector, options).map_err(randomness)
    }

    /// As [`Client::open`], to a server that is reached through no socket.
    #[cfg(test)]
    pub(crate) fn dial(dial: Arc<dyn link::Dial>, options: Options) -> Self {
        Self::over(Connector::Dial(dial), options).expect("there is randomness")
    }

    fn over(connector: Connector, options: Options) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(&options)?),
            wake: Notify::new(),
            progress: Notify::new(),
            state: watch::Sender::new(State::Connecting { attempt: 0 }),
            stop: CancellationToken::new(),
        });
        tokio::spawn(driver::run(Arc::clone(&shared), connector, options.clone()));
        let queue_bytes = Arc::new(Semaphore::new(options.queue_bytes_max.clamp(1, u32::MAX as usize)));
        let queue_publishes = Arc::new(Semaphore::new(options.queue_publishes_max.clamp(1, u32::MAX as usize)));
        Ok(Self { inner: Arc::new(Inner { shared, options, queue_bytes, queue_publishes }) })
    }

    /// Waits until the broker has welcomed us. Cancel-safe.
    ///
    /// # Errors
    /// The client is closed, or there was no welcome within [`Options::request_timeout`]: then the error is that of
    /// the last attempt.
    pub async fn connected(&self) -> Result<(), Error> {
        let timeout = self.inner.options.request_timeout;
        let deadline = Instant::now() + timeout;
        let mut watch = self.watch();
        let mut last = Error::Timeout { what: "connecting", after: timeout };
        loop {
            match &*watch.borrow_and_update() {
                State::Connected { .. } => return Ok(()),
                State::Closed { why: Some(why) } => return Err(why.clone()),
                State::Closed { why: None } => return Err(Error::Closed { why: None }),
                State::Waiting { why, .. } => last = why.clone(),
                State::Connecting { .. } => {}
            }
            if !matches!(tokio::time::timeout_at(deadline, watch.changed()).await, Ok(Ok(()))) {
                return Err(last);
            }
        }
    }

    /// What the connection is doing now.
    #[must_use]
    pub fn state(&self) -> State {
        self.inner.shared.state.borrow().clone()
    }

    /// Tells each change of [`Client::state`]; only the newest is kept for a slow watcher.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.inner.shared.state.subscribe()
    }

    /// What is published and not acknowledged yet.
    #[must_use]
    pub fn pending(&self) -> Pending {
        self.inner.shared.core.lock().outgoing.pending
    }

    /// How many publishes the broker has acknowledged since the client was opened.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.inner.shared.core.lock().outgoing.acknowledged
    }

    /// Joins a room; see [`Client::join_with`].
    ///
    /// # Errors
    /// As [`Client::join_with`].
    pub async fn join(&self, room: &RoomName, start: Start) -> Result<Subscription, Error> {
        self.join_with(room, start, JoinOptions::default()).await
    }

    /// Joins a room from a start on, and waits until the broker has taken the join. The subscription then outlives
    /// lost connections.
    ///
    /// Cancel-safe: a join that is dropped is left.
    ///
    /// # Errors
    /// The broker refuses it; the position is void ([`Error::Void`], unless [`OnVoid::Restart`]); no answer within
    /// [`Options::request_timeout`]; the client is closed.
    pub async fn join_with(&self, room: &RoomName, start: Start, options: JoinOptions) -> Result<Subscription, Error> {
        let (answer, joined) = oneshot::channel();
        let shared = &self.inner.shared;
        let mut subscription = {
            let mut core = shared.core.lock();
            if let Some(error) = core.closed() {
                return Err(error.clone());
            }
            let bytes_max = self.inner.options.join_bytes_max;
            let (id, notify) = core.joins.add(room.clone(), start, options, bytes_max, answer);
            core.join(id);
            Subscription::new(Arc::clone(&self.inner), room.clone(), id, notify)
        };
        shared.wake.notify_one();
        subscription.joined = Some(self.wait("a join", joined).await?);
        Ok(subscription)
    }

    /// Reads a page of a room, ascending, of at most `limit` records. Cancel-safe.
    ///
    /// # Errors
    /// The broker refuses it, as for a position that is void; no answer within [`Options::request_timeout`], lost
    /// connections included; the client is closed.
    pub async fn history(&self, room: &RoomName, at: HistoryAt, limit: u32) -> Result<Page, Error> {
        match self.ask("a history request", Ask::History { room: room.clone(), at, limit }).await? {
            Answer::Page(page) => Ok(page),
            other => Err(unfitting(&other)),
        }
    }

    /// Lists rooms whose names begin with `prefix`, behind `after` (empty for the first page), in the order of
    /// their bytes. Cancel-safe.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn rooms(&self, prefix: &str, after: &str, limit: u32) -> Result<RoomList, Error> {
        let ask = Ask::Rooms { prefix: prefix.to_owned(), after: after.to_owned(), limit };
        match self.ask("a rooms request", ask).await? {
            Answer::Rooms(list) => Ok(list),
            other => Err(unfitting(&other)),
        }
    }

    /// The state of some rooms, one entry for each, in this order. Cancel-safe.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn summary(&self, rooms: &[RoomName]) -> Result<RoomList, Error> {
        match self.ask("a summary request", Ask::Summary { rooms: rooms.to_vec() }).await? {
            Answer::Rooms(list) => Ok(list),
            other => Err(unfitting(&other)),
        }
    }

    /// Asks the broker for a sign of life; returns its clock. Cancel-safe.
    ///
    /// # Errors
    /// As [`Client::history`].
    pub async fn ping(&self) -> Result<Time, Error> {
        match self.ask("a ping", Ask::Time).await? {
            Answer::Time(time) => Ok(time),
            other => Err(unfitting(&other)),
        }
    }

    /// Waits until every publish so far, and any that is added meanwhile, is answered. Cancel-safe.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn flush(&self) -> Result<(), Error> {
        let shared = &self.inner.shared;
        loop {
            // Registered before the look, so that no answer falls between the two.
            let progress = shared.progress.notified();
            {
                let core = shared.core.lock();
                if let Some(error) = core.closed() {
                    return Err(error.clone());
                }
                if core.outgoing.pending.publishes == 0 {
                    return Ok(());
                }
            }
            progress.await;
        }
    }

    /// Ends the connection at once and for good, and waits until that is done. Publishes without an
    /// acknowledgement fail; [`Client::flush`] first. Cancel-safe: the client is closed in any case.
    pub async fn close(&self) {
        self.inner.shared.stop.cancel();
        let mut watch = self.watch();
        let _ = watch.wait_for(|state| matches!(state, State::Closed { .. })).await;
    }

    async fn ask(&self, what: &'static str, ask: Ask) -> Result<Answer, Error> {
        let (answer, result) = oneshot::channel();
        let shared = &self.inner.shared;
        let id = {
            let mut core = shared.core.lock();
            if let Some(error) = core.closed() {
                return Err(error.clone());
            }
            core.ask(ask, answer)
        };
        // However this call ends, nobody waits afterwards.
        let _forget = Forget { shared, id };
        shared.wake.notify_one();
        self.wait(what, result).await
    }

    async fn wait<T>(&self, what: &'static str, answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        let after = self.inner.options.request_timeout;
        match tokio::time::timeout(after, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Closed { why: None }),
            Err(_) => Err(Error::Timeout { what, after }),
        }
    }
}

struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.core.lock().forget(self.id);
    }
}

fn unfitting(answer: &Answer) -> Error {
    Error::protocol(format_args!("an answer that does not fit its request: {answer:?}"))
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("state", &self.state()).field("pending", &self.pending()).finish_non_exhaustive()
    }
}
