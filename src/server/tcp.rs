//! TCP: connections that are let in, and the HTTP request that becomes a WebSocket.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use super::admission::Permit;
use super::descriptors::is_among_the_last;
use super::{Inner, admin, http};
use crate::metrics::{Refusal, Transport};
use crate::transport::websocket::{Connection, Socket, Upgrade};

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Unsent bytes that the system keeps of a connection beyond what is in flight: what is behind them stays ours to
/// choose, so that an answer does not wait behind deliveries.
const NOT_SENT_BYTES: u32 = 16 << 10;

/// How long an answer may take that is being written when the server stops. A request that is not whole by then gets none.
const LAST_ANSWER: Duration = Duration::from_secs(1);

const TOO_MANY: &str = "As many connections as are allowed are open.\n";

/// Takes the socket, and what was read behind the request, out of an upgraded connection.
type TakeSocket = fn(Upgraded) -> Option<(Socket, Bytes)>;

impl Inner {
    pub(super) async fn accept_clients(self: Arc<Self>, listener: TcpListener) {
        while let Some((stream, peer)) = self.accept(&listener).await {
            let Some(permit) = self.admission.enter(Transport::WebSocket, peer.ip()) else {
                refuse(stream);
                continue;
            };
            self.spawn_until_cut(Arc::clone(&self).client(stream, peer, permit));
        }
    }

    pub(super) async fn accept_operators(self: Arc<Self>, listener: TcpListener) {
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
        let mut pause = Duration::from_millis(20);
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if is_among_the_last(&stream) => {
                    self.broker.metrics().connections_refused[Refusal::TooMany].increment(1);
                    refuse(stream);
                    tracing::warn!("a connection is refused: the last descriptors are left to the store");
                    rest(&mut pause).await;
                }
                Ok(accepted) => return Some(accepted),
                // A peer that is gone again before it was accepted is nobody's trouble.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!("a connection cannot be accepted: {error}");
                    rest(&mut pause).await;
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
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(timeout, tls.accept(stream)) => accepted,
            () = self.stop.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => self.requests(TokioIo::new(stream), peer, permit, Socket::tls).await,
            Ok(Err(_)) => self.broker.metrics().connections_refused[Refusal::Handshake].increment(1),
            Err(_) => self.broker.metrics().connections_refused[Refusal::Timeout].increment(1),
        }
    }

    /// HTTP requests, until one of them becomes a session.
    async fn requests<S>(self: Arc<Self>, stream: S, peer: SocketAddr, permit: Permit, socket: TakeSocket)
    where
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
            // Pages are short: whoever is still at it holds a place that a session could have.
            () = tokio::time::sleep(self.broker.limits().idle_timeout) => return,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(LAST_ANSWER, connection.as_mut()).await {
                    Ok(served) => served,
                    Err(_) => return,
                }
            }
        };
        if served.is_err_and(|error| error.is_timeout()) {
            self.broker.metrics().connections_refused[Refusal::Timeout].increment(1);
        }
        let taken = (permit.lock().take(), upgrade.lock().take());
        if let (Some(permit), Some(upgrade)) = taken
            && let Ok(upgraded) = upgrade.await
            && let Some((socket, early)) = socket(upgraded.into_inner().into_inner())
        {
            let send_bytes_max = self.options.websocket_send_bytes_max;
            let fanout = Arc::clone(&self.fanout);
            self.begin_session(Transport::WebSocket, permit, |broker, number, outbox| {
                Connection::serve(socket, &early, broker, number, outbox, send_bytes_max, fanout)
            });
        }
    }

    fn request(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        permit: &Mutex<Option<Permit>>,
        upgrade: &Mutex<Option<Upgrade>>,
    ) -> Response<Full<Bytes>> {
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
                        let mut answer = answer.map(|_| Full::default());
                        http::name_protocol(&mut answer);
                        answer
                    }
                    Err(error) => http::plain(StatusCode::BAD_REQUEST, &format!("{error}\n")),
                }
            }
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

/// Out of descriptors: some may be free in a moment, and nothing is gained by asking at once.
async fn rest(pause: &mut Duration) {
    const PAUSE_MAX: Duration = Duration::from_secs(1);
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(PAUSE_MAX);
}

/// Tells a peer that there are too many, at once: one that waited for its turn would keep its descriptor meanwhile.
fn refuse(stream: TcpStream) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Retry-After: 5\r\nConnection: close\r\n\r\n{TOO_MANY}",
        TOO_MANY.len()
    );
    // Nothing was sent yet, so the socket has room for it.
    let _ = socket2::SockRef::from(&stream).send(answer.as_bytes());
}
