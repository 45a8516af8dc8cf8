//! The wiring: listeners, who is let in, plain HTTP, and a graceful end. It decides nothing about records.

mod admin;
mod admission;
mod descriptors;
mod http;
mod options;
mod tcp;
mod udp;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admin::Exporter;
pub use descriptors::raise_descriptor_limit;
pub use options::{Certificate, Options, broker_options};

use admission::{Admission, Permit};

use crate::broker::Broker;
use crate::metrics::{Budget, Transport};
use crate::session::{Host, Outbox};
use crate::storage::Rouse;
use crate::transport::quic;
use crate::transport::tls::{Identity, TlsError};
use crate::transport::websocket::Fanout;

/// Connections that the system holds until they are accepted.
const BACKLOG: u32 = 1024;

/// How often histograms are taken over and gauges are set.
const UPKEEP: Duration = Duration::from_secs(2);

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A listener is beyond loopback, and nobody would have to prove who they are.
    #[error(
        "{address} is beyond loopback, and this server has no authentication: anybody who reaches it could read and \
         write every room; set allow_anonymous = true to have it so"
    )]
    Anonymous {
        /// The listener's address.
        address: SocketAddr,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is no certificate to be had.
    #[error("{0}")]
    Certificate(String),
}

impl From<TlsError> for StartError {
    fn from(error: TlsError) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// The addresses that are really listened on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Bound {
    /// WebSocket and plain HTTP.
    pub listen: Option<SocketAddr>,
    /// QUIC.
    pub quic: Option<SocketAddr>,
    /// Metrics and health.
    pub admin: Option<SocketAddr>,
}

/// A running server. Dropped without [`Server::stop`], its sessions are cut.
#[derive(Debug)]
pub struct Server {
    inner: Arc<Inner>,
}

/// Wakes a worker of the runtime. One that commits looks at no sockets, and the others may be asleep; and what it has made
/// ready last, which may be a task of the fan-out, nobody takes from it.
#[derive(Debug)]
struct Rouser {
    runtime: tokio::runtime::Handle,
    fanout: Arc<Fanout>,
}

impl Rouser {
    /// `None` where there is a single worker, which everybody would have to wait for.
    fn of_this_runtime(fanout: &Arc<Fanout>) -> Option<Arc<dyn Rouse>> {
        let runtime = tokio::runtime::Handle::current();
        let has_others = runtime.metrics().num_workers() > 1;
        has_others.then(|| Arc::new(Self { runtime, fanout: Arc::clone(fanout) }) as Arc<dyn Rouse>)
    }
}

impl Rouse for Rouser {
    fn rouse(&self) {
        // Whoever runs this goes on with what else there is, and then sleeps where the sockets are.
        let fanout = Arc::clone(&self.fanout);
        drop(self.runtime.spawn(async move { fanout.serve_what_is_ready() }));
    }
}

struct Inner {
    broker: Broker,
    options: Options,
    bound: Bound,
    tls: Option<TlsAcceptor>,
    admission: Arc<Admission>,
    sessions: Mutex<HashMap<u64, Entry>>,
    host: Arc<Host>,
    fanout: Arc<Fanout>,
    /// The tasks of the fan-out: as many as may run at a time.
    _fanout_tasks: JoinSet<()>,
    /// Accept loops and upkeep end.
    stop: CancellationToken,
    /// Everything ends.
    cut: CancellationToken,
    /// The last session of a stopping server is over.
    idle: Notify,
    tasks: TaskTracker,
    started: Instant,
}

/// A session that can be asked to end.
struct Entry {
    outbox: Arc<Outbox>,
    task: Option<AbortHandle>,
}

impl Server {
    /// Starts to listen. The broker is closed by [`Server::stop`].
    ///
    /// # Errors
    /// See [`StartError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(broker: Broker, options: Options) -> Result<Self, StartError> {
        for address in [options.listen, options.quic_listen, options.admin_listen].into_iter().flatten() {
            if !address.ip().to_canonical().is_loopback() && !options.allow_anonymous {
                return Err(StartError::Anonymous { address });
            }
        }
        let identity = match &options.certificate {
            Certificate::Files { chain, key } => Some(Identity::read(chain, key)?),
            _ if options.quic_listen.is_none() => None,
            Certificate::Development(directory) => Some(Identity::development(directory)?),
            Certificate::Passing => Some(Identity::passing()?),
        };
        let tls = match (&options.certificate, &identity) {
            (Certificate::Files { .. }, Some(identity)) => Some(TlsAcceptor::from(identity.tcp()?)),
            _ => None,
        };
        let clients = options.listen.map(listen).transpose()?;
        let operators = options.admin_listen.map(listen).transpose()?;
        let endpoint = match (options.quic_listen, &identity) {
            (Some(address), Some(identity)) => {
                let config = quic::config(identity, broker.limits(), options.quic_send_bytes_max)?;
                Some(quic::listen(address, identity, config).map_err(|source| StartError::Listen { address, source })?)
            }
            _ => None,
        };
        let bound = Bound {
            listen: clients.as_ref().map(|(_, address)| *address),
            quic: endpoint.as_ref().and_then(|endpoint| endpoint.local_addr().ok()),
            admin: operators.as_ref().map(|(_, address)| *address),
        };
        let admission = Arc::new(Admission::new(&options, Arc::clone(broker.metrics())));
        let fanout = Arc::<Fanout>::default();
        let rouse = Rouser::of_this_runtime(&fanout);
        let host = Arc::new(Host::new(options.send_bytes_max, options.receive_bytes_max, rouse));
        for (budget, of) in [(Budget::SendBuffers, &host.send), (Budget::ReceiveBuffers, &host.receive)] {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            broker.metrics().budget_max[budget].set(of.bytes_max() as f64);
        }
        let inner = Arc::new(Inner {
            broker,
            options,
            bound,
            tls,
            admission,
            sessions: Mutex::default(),
            host,
            _fanout_tasks: fanout.tasks().collect(),
            fanout,
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            idle: Notify::new(),
            tasks: TaskTracker::new(),
            started: Instant::now(),
        });
        if let Some((listener, _)) = clients {
            inner.tasks.spawn(Arc::clone(&inner).accept_clients(listener));
        }
        if let Some(endpoint) = endpoint {
            inner.tasks.spawn(Arc::clone(&inner).accept_quic(endpoint));
        }
        if let Some((listener, _)) = operators {
            inner.tasks.spawn(Arc::clone(&inner).accept_operators(listener));
        }
        inner.tasks.spawn(Arc::clone(&inner).upkeep());
        Ok(Self { inner })
    }

    /// Serves until `stop` is ready, and then stops as [`Server::stop`] does. `started` is told the server once it
    /// listens.
    ///
    /// # Errors
    /// As [`Server::start`]; the broker is not closed then.
    pub async fn run(
        broker: Broker,
        options: Options,
        started: impl FnOnce(&Self),
        stop: impl Future<Output = ()>,
    ) -> Result<(), StartError> {
        let server = Self::start(broker, options).await?;
        started(&server);
        stop.await;
        server.stop().await;
        Ok(())
    }

    /// The addresses that are really listened on.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.inner.bound
    }

    /// The broker behind it.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.inner.broker
    }

    /// Stops listening, lets what was accepted be committed and answered, says goodbye to every session with a time
    /// of its own to come back at, and closes the broker. What is not done by `shutdown_deadline` is cut.
    pub async fn stop(self) {
        let inner = &self.inner;
        inner.stop.cancel();
        let spread = inner.options.reconnect_spread;
        for entry in inner.sessions.lock().values() {
            entry.outbox.stop(part_of(spread));
        }
        if inner.sessions.lock().is_empty() {
            inner.idle.notify_one();
        }
        inner.tasks.close();
        if tokio::time::timeout(inner.options.shutdown_deadline, inner.tasks.wait()).await.is_err() {
            tracing::warn!(sessions = inner.sessions.lock().len(), "the time to stop is over; what remains is cut");
            inner.cut();
            inner.tasks.wait().await;
        }
        inner.broker.close().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        self.inner.cut();
    }
}

/// A random part of a time.
fn part_of(time: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness all come back at once, which is a pity but no fault.
    let _ = getrandom::fill(&mut random);
    time.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bind = || {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        // A port whose last connections are still being taken down is free all the same.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind().map_err(|source| StartError::Listen { address, source })
}

impl Inner {
    fn cut(&self) {
        self.cut.cancel();
        for entry in self.sessions.lock().values() {
            if let Some(task) = &entry.task {
                task.abort();
            }
        }
    }

    fn register(&self, number: u64, transport: Transport) -> Arc<Outbox> {
        let outbox = Arc::new(Outbox::new(Arc::clone(self.broker.metrics()), transport, Arc::clone(&self.host)));
        self.sessions.lock().insert(number, Entry { outbox: Arc::clone(&outbox), task: None });
        if self.stop.is_cancelled() {
            // It was let in just before the others were told.
            outbox.stop(part_of(self.options.reconnect_spread));
        }
        outbox
    }

    /// Where messages that are not complete take all that they may, sends away the largest of which nothing has come since
    /// the last look, until a quarter is free.
    fn make_room(&self) {
        let receive = &self.host.receive;
        let mut stale: Vec<_> = {
            let sessions = self.sessions.lock();
            let stale = sessions.values().filter_map(|Entry { outbox, .. }| Some((outbox.stale()?, outbox)));
            stale.map(|((is_paused, bytes), outbox)| (is_paused, bytes, Arc::clone(outbox))).collect()
        };
        if !receive.is_used_up() {
            return;
        }
        // Those first who might have sent more, and have not.
        stale.sort_unstable_by_key(|(is_paused, bytes, _)| (*is_paused, Reverse(*bytes)));
        let mut used = receive.used();
        for (_, bytes, outbox) in stale {
            if used < receive.bytes_max() / 4 * 3 {
                break;
            }
            outbox.crowd_out();
            used = used.saturating_sub(bytes);
        }
    }

    /// A task for what is no session yet; it ends when everything does.
    fn spawn_until_cut(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// A task of its own for a session, which `serve` makes of its number and its outbox: what the handshake needed is
    /// given back.
    fn begin_session<F>(
        self: &Arc<Self>,
        transport: Transport,
        mut permit: Permit,
        serve: impl FnOnce(Broker, u64, Arc<Outbox>) -> F,
    ) where
        F: Future<Output = ()> + Send + Unpin + 'static,
    {
        permit.shaken();
        let number = self.broker.new_session();
        let outbox = self.register(number, transport);
        let registered = Registered { inner: Arc::clone(self), number };
        let mut served = serve(self.broker.clone(), number, outbox);
        let task = self.tasks.spawn(async move {
            let _until_it_is_over = (&permit, &registered);
            // Borrowed: what is moved into the future of an `async` block from outside is there twice.
            std::future::poll_fn(|cx| Pin::new(&mut served).poll(cx)).await;
        });
        if let Some(entry) = self.sessions.lock().get_mut(&number) {
            entry.task = Some(task.abort_handle());
        }
    }

    async fn upkeep(self: Arc<Self>) {
        let mut interval = tokio::time::interval(UPKEEP);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = interval.tick() => {}
            }
            let Host { send, receive, .. } = &*self.host;
            for (budget, of) in [(Budget::SendBuffers, send), (Budget::ReceiveBuffers, receive)] {
                #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                self.broker.metrics().budget_used[budget].set(of.used() as f64);
            }
            self.make_room();
            if let Some(exporter) = &self.options.exporter {
                self.broker.observe();
                exporter.upkeep();
            }
        }
    }
}

/// A session that is known to the server as long as this lives.
struct Registered {
    inner: Arc<Inner>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut sessions = self.inner.sessions.lock();
        sessions.remove(&self.number);
        let idle = sessions.is_empty();
        drop(sessions);
        if idle && self.inner.stop.is_cancelled() {
            self.inner.idle.notify_one();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.fanout.close();
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("bound", &self.bound).finish_non_exhaustive()
    }
}
