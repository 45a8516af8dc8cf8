//! The wiring: listeners, who is let in, plain HTTP, and a graceful end. It decides nothing about records.

mod admin;
mod admission;
mod http;
mod options;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::transport::websocket::Upgrade;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admin::Exporter;
pub use options::{Certificate, Options, broker_options};

use admission::{Admission, Permit};

use crate::broker::Broker;
use crate::metrics::{Budget, Refusal, Transport};
use crate::session::{Outbox, SendBudget};
use crate::transport::quic;
use crate::transport::tls::{Identity, TlsError};
use crate::transport::websocket::{Connection, Socket};

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Unsent bytes that the system keeps of a connection beyond what is in flight: what is behind them stays ours to
/// choose, so that an answer does not wait behind deliveries.
const NOT_SENT_BYTES: u32 = 16 << 10;

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

struct Inner {
    broker: Broker,
    options: Options,
    bound: Bound,
    tls: Option<TlsAcceptor>,
    admission: Arc<Admission>,
    sessions: Mutex<HashMap<u64, Entry>>,
    send_budget: Arc<SendBudget>,
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
        let send_budget = Arc::new(SendBudget::new(options.send_bytes_max));
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        broker.metrics().budget_max[Budget::SendBuffers].set(options.send_bytes_max as f64);
        let inner = Arc::new(Inner {
            broker,
            options,
            bound,
            tls,
            admission,
            sessions: Mutex::default(),
            send_budget,
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

    async fn accept_clients(self: Arc<Self>, listener: TcpListener) {
        while let Some((stream, peer)) = self.accept(&listener).await {
            let Some(permit) = self.admission.enter(Transport::WebSocket, peer.ip()) else {
                self.tasks.spawn(refuse(stream));
                continue;
            };
            let inner = Arc::clone(&self);
            self.tasks.spawn(async move {
                let cut = inner.cut.clone();
                tokio::select! {
                    biased;
                    () = cut.cancelled() => {}
                    () = inner.client(stream, peer, permit) => {}
                }
            });
        }
    }

    async fn accept_operators(self: Arc<Self>, listener: TcpListener) {
        while let Some((stream, _)) = self.accept(&listener).await {
            let inner = Arc::clone(&self);
            self.tasks.spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let answer = admin::answer(&request, &inner);
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                let connection = http(&inner).serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = connection => {}
                    () = inner.stop.cancelled() => {}
                }
            });
        }
    }

    /// The next connection; `None` when the server stops.
    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        const PAUSE: Duration = Duration::from_millis(50);
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => return Some(accepted),
                // A peer that is gone again before it was accepted is nobody's trouble.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Most likely out of descriptors: some may be free in a moment, and nothing is gained by asking
                    // at once.
                    tracing::warn!("a connection cannot be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One TCP connection of a client, until it is over or has become a session.
    async fn client(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, permit: Permit) {
        let _ = stream.set_nodelay(true);
        let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(NOT_SENT_BYTES);
        let timeout = self.broker.limits().handshake_timeout;
        let Some(tls) = self.tls.clone() else {
            return self.requests(TokioIo::new(stream), peer, permit, Socket::plain).await;
        };
        match tokio::time::timeout(timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.requests(TokioIo::new(stream), peer, permit, Socket::tls).await,
            Ok(Err(_)) => self.broker.metrics().connections_refused[Refusal::Handshake].increment(1),
            Err(_) => self.broker.metrics().connections_refused[Refusal::Timeout].increment(1),
        }
    }

    /// HTTP requests, until one of them becomes a session.
    async fn requests<S>(
        self: Arc<Self>,
        stream: S,
        peer: SocketAddr,
        permit: Permit,
        socket: fn(hyper::upgrade::Upgraded) -> Option<(Socket, Bytes)>,
    ) where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let permit = Mutex::new(Some(permit));
        let upgrade = Mutex::new(None);
        let service = service_fn(|request: Request<Incoming>| {
            let answer = self.request(request, peer, &permit, &upgrade);
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let mut connection = std::pin::pin!(http(&self).serve_connection(stream, service).with_upgrades());
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
        if served.is_err_and(|error| error.is_timeout()) {
            self.broker.metrics().connections_refused[Refusal::Timeout].increment(1);
        }
        if let (Some(mut permit), Some(upgrade)) = (permit.lock().take(), upgrade.lock().take()) {
            permit.shaken();
            Arc::clone(&self).begin_session(upgrade, permit, socket);
        }
    }

    fn request(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        permit: &Mutex<Option<Permit>>,
        upgrade: &Mutex<Option<Upgrade>>,
    ) -> Response<http_body_util::Full<Bytes>> {
        match http::judge(&request, &self.options, self.tls.is_some()) {
            http::Asked::Answer(answer, refusal) => {
                if let Some(refusal) = refusal {
                    self.broker.metrics().connections_refused[refusal].increment(1);
                }
                answer
            }
            http::Asked::Upgrade => {
                let forwarded = request.headers().get_all("x-forwarded-for").iter();
                let address = self.admission.peer(peer.ip(), forwarded.filter_map(|value| value.to_str().ok()));
                if !permit.lock().as_mut().is_some_and(|permit| permit.is_from(address)) {
                    return http::plain(StatusCode::SERVICE_UNAVAILABLE, TOO_MANY);
                }
                match crate::transport::websocket::upgrade(&mut request) {
                    Ok((answer, future)) => {
                        *upgrade.lock() = Some(future);
                        let mut answer = answer.map(|_| http_body_util::Full::default());
                        http::name_protocol(&mut answer);
                        answer
                    }
                    Err(error) => http::plain(StatusCode::BAD_REQUEST, &format!("{error}\n")),
                }
            }
        }
    }

    /// A task of its own for the session: what the handshake needed is given back.
    fn begin_session(
        self: Arc<Self>,
        upgrade: Upgrade,
        permit: Permit,
        socket: fn(hyper::upgrade::Upgraded) -> Option<(Socket, Bytes)>,
    ) {
        let number = self.broker.new_session();
        let outbox = self.register(number, Transport::WebSocket);
        let inner = Arc::clone(&self);
        let task = self.tasks.spawn(async move {
            let registered = Registered { inner, number };
            let _permit = permit;
            let Ok(upgraded) = upgrade.await else { return };
            let Some((socket, early)) = socket(upgraded.into_inner().into_inner()) else { return };
            let broker = registered.inner.broker.clone();
            Connection::serve(socket, early, broker, number, outbox).await;
        });
        if let Some(entry) = self.sessions.lock().get_mut(&number) {
            entry.task = Some(task.abort_handle());
        }
    }

    async fn accept_quic(self: Arc<Self>, endpoint: quinn::Endpoint) {
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                incoming = endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let busy = self.admission.handshakes() >= self.options.quic_retry_above;
            if busy && !incoming.remote_address_validated() && incoming.may_retry() {
                // Whoever really is there comes again, with a proof of it; nothing is kept of others.
                let _ = incoming.retry();
                continue;
            }
            let Some(permit) = self.admission.enter(Transport::Quic, incoming.remote_address().ip()) else {
                incoming.refuse();
                continue;
            };
            let inner = Arc::clone(&self);
            self.tasks.spawn(async move {
                let cut = inner.cut.clone();
                tokio::select! {
                    biased;
                    () = cut.cancelled() => {}
                    () = inner.quic(incoming, permit) => {}
                }
            });
        }
        // New connections are refused; those there are end one by one.
        endpoint.set_server_config(None);
        self.cut_or_done().await;
        endpoint.close(quinn::VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
    }

    /// One QUIC connection, until it is over or has become a session.
    async fn quic(self: Arc<Self>, incoming: quinn::Incoming, mut permit: Permit) {
        let timeout = self.broker.limits().handshake_timeout;
        let refused = |why| self.broker.metrics().connections_refused[why].increment(1);
        let connection = match incoming.accept() {
            Ok(connecting) => match tokio::time::timeout(timeout, connecting).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(_)) => return refused(Refusal::Handshake),
                Err(_) => return refused(Refusal::Timeout),
            },
            Err(_) => return refused(Refusal::Handshake),
        };
        permit.shaken();
        let number = self.broker.new_session();
        let outbox = self.register(number, Transport::Quic);
        let inner = Arc::clone(&self);
        let task = self.tasks.spawn(async move {
            let registered = Registered { inner, number };
            let _permit = permit;
            let broker = registered.inner.broker.clone();
            quic::serve(connection, broker, number, outbox).await;
        });
        if let Some(entry) = self.sessions.lock().get_mut(&number) {
            entry.task = Some(task.abort_handle());
        }
    }

    /// Waits until there is no session any more, or what remains is cut.
    async fn cut_or_done(&self) {
        tokio::select! {
            () = self.cut.cancelled() => {}
            () = self.idle.notified() => {}
        }
    }

    fn register(&self, number: u64, transport: Transport) -> Arc<Outbox> {
        let outbox = Arc::new(Outbox::new(Arc::clone(self.broker.metrics()), transport, Arc::clone(&self.send_budget)));
        self.sessions.lock().insert(number, Entry { outbox: Arc::clone(&outbox), task: None });
        if self.stop.is_cancelled() {
            // It was let in just before the others were told.
            outbox.stop(part_of(self.options.reconnect_spread));
        }
        outbox
    }

    async fn upkeep(self: Arc<Self>) {
        let mut interval = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = interval.tick() => {}
            }
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            self.broker.metrics().budget_used[Budget::SendBuffers].set(self.send_budget.used() as f64);
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

fn http(inner: &Inner) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(inner.broker.limits().handshake_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
}

const TOO_MANY: &str = "As many connections as are allowed are open.\n";

/// Tells a peer that there are too many, as far as that can be done without waiting for it.
async fn refuse(stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Retry-After: 5\r\nConnection: close\r\n\r\n{TOO_MANY}",
        TOO_MANY.len()
    );
    if stream.writable().await.is_ok() {
        let _ = stream.try_write(answer.as_bytes());
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("bound", &self.bound).finish_non_exhaustive()
    }
}
