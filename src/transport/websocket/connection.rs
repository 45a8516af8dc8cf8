//! One WebSocket connection: its task, and what the committer may do of its work.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::server::TlsStream;

use super::guard::{Event, Guard, Violation};
use super::out::{Out, Pumped};
use crate::broker::{Broker, Readers, Wake};
use crate::protocol::JoinId;
use crate::session::{Due, End, Life, Outbox, Reading, Service, Streams};
use crate::storage::{Outcome, Refused, Reply, Targets};
use crate::transport::timer::Timer;
use crate::transport::{CLOSE_TIMEOUT, QUEUE_RETRY, READ_BYTES, ROUNDS};
use crate::types::RoomName;

/// A stream that has become a WebSocket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// Under TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// The socket of a connection that has been upgraded without TLS, and what was read behind the request.
    pub(crate) fn plain(upgraded: Upgraded) -> Option<(Self, Bytes)> {
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
        Some((Self::Plain(parts.io.into_inner()), parts.read_buf))
    }

    /// As [`Socket::plain`], under TLS.
    pub(crate) fn tls(upgraded: Upgraded) -> Option<(Self, Bytes)> {
        let parts = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>().ok()?;
        Some((Self::Tls(Box::new(parts.io.into_inner())), parts.read_buf))
    }
}

/// What the task, the committer and the reading threads share.
#[derive(Debug)]
pub(crate) struct Connection {
    out: Mutex<Out>,
    outbox: Arc<Outbox>,
    /// The way to the socket for other threads; absent under TLS, where only the task writes.
    direct: Option<OwnedWriteHalf>,
}

impl Connection {
    /// Serves a session until it is over. `early` is what was read behind the request for the upgrade, and
    /// `send_bytes_max` what may be begun for the peer.
    pub(crate) async fn serve(
        socket: Socket,
        early: Bytes,
        broker: Broker,
        number: u64,
        outbox: Arc<Outbox>,
        send_bytes_max: usize,
    ) {
        let now = Instant::now();
        let (half, direct) = match socket {
            Socket::Plain(stream) => {
                let (read, write) = stream.into_split();
                (Half::Plain(read), Some(write))
            }
            Socket::Tls(stream) => (Half::Tls(stream), None),
        };
        let connection =
            Arc::new(Self { out: Mutex::new(Out::new(send_bytes_max)), outbox: Arc::clone(&outbox), direct });
        let wake = Arc::clone(&connection) as Arc<dyn Wake>;
        connection.out.lock().readers = Some(broker.readers(number, wake));
        let reply = Arc::clone(&connection) as Arc<dyn Reply>;
        let guard = Guard::new(broker.limits().frame_bytes_max());
        let service = Service::new(broker, number, outbox, reply, Life::Session, now);
        let timer = Timer::new(now);
        let mut task = Task { connection, half, service, guard, timer, early, taken: 0 };
        let over = std::future::poll_fn(|cx| task.poll(cx)).await;
        task.finish(over).await;
    }

    /// Serves the session on this thread if that is worth it and nobody else is at it, else wakes its task.
    fn advance(&self, targets: Targets) {
        if targets == Targets::Few
            && let Some(direct) = &self.direct
            && let Some(mut out) = self.out.try_lock()
            && !out.blocked
            && out.pump(&self.outbox, 1, |slices| direct.try_write_vectored(slices)) == Pumped::All
            && !self.outbox.is_waiting()
        {
            return;
        }
        self.outbox.kick();
    }
}

impl Wake for Connection {
    fn wake(&self, targets: Targets) {
        self.advance(targets);
    }
}

impl Reply for Connection {
    fn answered(&self, tag: u32, bytes: usize, outcome: Outcome) {
        self.outbox.answered(tag, bytes, outcome);
    }

    fn flush(&self, targets: Targets) {
        self.outbox.flushed();
        self.advance(targets);
    }
}

impl Streams for Connection {
    type Access<'a> = MappedMutexGuard<'a, Readers>;

    fn readers(&self) -> Self::Access<'_> {
        // While this is held nothing is pulled: a join's answer is queued before its first record.
        MutexGuard::map(self.out.lock(), |out| out.readers.as_mut().expect("the session is not over"))
    }

    fn open(&self, _join: JoinId, _room: &RoomName) -> Result<(), Refused> {
        Ok(())
    }

    fn close(&self, _join: JoinId) {}
}

/// What the task reads from; under TLS also what it writes to.
#[derive(Debug)]
enum Half {
    Plain(OwnedReadHalf),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Half {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(half) => Pin::new(half).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

/// Why the task has nothing more to do.
#[derive(Debug)]
enum Over {
    /// The peer is gone.
    Gone,
    /// The peer has closed.
    Closed,
    Violation(Violation),
    End(End),
}

impl From<Violation> for Over {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

struct Task {
    connection: Arc<Connection>,
    half: Half,
    service: Service,
    guard: Guard,
    timer: Timer,
    early: Bytes,
    /// The bytes that the socket had taken when its progress was last looked at.
    taken: u64,
}

thread_local! {
    // One for all connections of a thread.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

impl Task {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        let now = Instant::now();
        self.connection.outbox.take_kick(cx);
        match self.rounds(cx, now) {
            Ok(retry) => self.wait(cx, now, retry),
            Err(over) => Poll::Ready(over),
        }
    }

    /// Writes and reads until there is nothing to do; returns when to look again if nobody wakes the task.
    fn rounds(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, Over> {
        for _ in 0..ROUNDS {
            match self.write(cx, now) {
                Pumped::Broken => return Err(Over::Gone),
                Pumped::More => cx.waker().wake_by_ref(),
                Pumped::All | Pumped::Blocked => {}
            }
            self.service.read_on();
            if let Some(after) = self.connection.outbox.stopped() {
                // What was accepted is committed and answered first.
                self.connection.outbox.set_waiting(true);
                return match self.service.in_flight().0 {
                    0 => Err(Over::End(End::ShuttingDown { after })),
                    _ => Ok(None),
                };
            }
            let mut reading = self.service.reads_from_peer();
            if reading == Reading::PausedUntilWoken {
                // An answer that was given between the first look and this is not told.
                self.connection.outbox.set_waiting(true);
                reading = self.service.reads_from_peer();
            }
            if reading != Reading::PausedUntilWoken {
                self.connection.outbox.set_waiting(false);
            }
            self.service.session().clocks().reading(now, reading == Reading::Goes);
            match reading {
                Reading::Goes => {}
                Reading::PausedUntilWoken => return Ok(None),
                Reading::PausedForQueue => return Ok(Some(now + QUEUE_RETRY)),
            }
            match self.read(cx, now) {
                Poll::Ready(read) => read?,
                Poll::Pending => return Ok(None),
            }
        }
        cx.waker().wake_by_ref();
        Ok(None)
    }

    /// Looks at the clocks, and arms the timer.
    fn wait(&mut self, cx: &mut Context<'_>, now: Instant, retry: Option<Instant>) -> Poll<Over> {
        match self.service.tick(now) {
            Due::Nothing => {}
            Due::End(end) => return Poll::Ready(Over::End(end)),
            Due::Ping => {
                self.connection.out.lock().ping();
                cx.waker().wake_by_ref();
            }
        }
        self.timer.arm(self.service.session().deadline().into_iter().chain(retry), cx);
        Poll::Pending
    }

    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Pumped {
        let mut out = self.connection.out.lock();
        let pumped = pump(&self.connection, &mut self.half, &mut out, cx);
        let clocks = self.service.session().clocks();
        match pumped {
            Pumped::Blocked => clocks.blocked(now, out.taken != self.taken),
            _ => clocks.flowing(now),
        }
        self.taken = out.taken;
        pumped
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Result<(), Over>> {
        if !self.early.is_empty() {
            let early = std::mem::take(&mut self.early);
            return Poll::Ready(self.take(&early, now));
        }
        READ.with_borrow_mut(|bytes| {
            let mut buffer = ReadBuf::new(bytes);
            match ready!(self.half.poll_read(cx, &mut buffer)) {
                Err(_) => return Poll::Ready(Err(Over::Gone)),
                Ok(()) if buffer.filled().is_empty() => return Poll::Ready(Err(Over::Gone)),
                Ok(()) => {}
            }
            Poll::Ready(self.take(buffer.filled(), now))
        })
    }

    fn take(&mut self, bytes: &[u8], now: Instant) -> Result<(), Over> {
        let Self { connection, service, guard, .. } = self;
        let mut completed = false;
        let read = guard.read(bytes, |event| {
            match event {
                Event::Message(message) => {
                    completed = true;
                    service.message(message, &**connection)?;
                }
                Event::Ping(payload) => connection.out.lock().pong(payload),
                Event::Pong => {}
                Event::Close => return Err(Over::Closed),
            }
            Ok(())
        });
        // What came before an error was accepted.
        service.submit();
        service.session().clocks().heard(now, completed, guard.within_message());
        read
    }

    /// Sends the last frames, and gives the peer time to take them and to close.
    async fn finish(mut self, over: Over) {
        tracing::debug!(?over, "a WebSocket session ends");
        let connection = Arc::clone(&self.connection);
        drop(connection.out.lock().readers.take());
        let (code, reason) = match &over {
            Over::Gone => return,
            Over::Closed => (Some(1000), String::new()),
            Over::Violation(violation) => (Some(violation.code), violation.reason.to_owned()),
            Over::End(end) => {
                connection.outbox.goodbye(end);
                (Some(end.close().websocket()), end.reason())
            }
        };
        connection.out.lock().close(code, &reason);
        let half = &mut self.half;
        let written = std::future::poll_fn(|cx| {
            connection.outbox.take_kick(cx);
            let pumped = pump(&connection, half, &mut connection.out.lock(), cx);
            match pumped {
                Pumped::All => Poll::Ready(true),
                Pumped::Broken => Poll::Ready(false),
                Pumped::Blocked => Poll::Pending,
                Pumped::More => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        });
        if !tokio::time::timeout(CLOSE_TIMEOUT, written).await.unwrap_or(false) {
            return;
        }
        if let Some(direct) = &connection.direct {
            let _ = socket2::SockRef::from(direct.as_ref()).shutdown(Shutdown::Write);
        }
        // A socket closed with unread bytes in it is reset, and the peer might not see what was written last.
        let drained = std::future::poll_fn(|cx| {
            READ.with_borrow_mut(|bytes| {
                for _ in 0..ROUNDS {
                    let mut buffer = ReadBuf::new(bytes);
                    if ready!(half.poll_read(cx, &mut buffer)).is_err() || buffer.filled().is_empty() {
                        return Poll::Ready(());
                    }
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
        });
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, drained).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The readers hold the connection, and the connection the readers.
        let readers = self.connection.out.lock().readers.take();
        drop(readers);
    }
}

/// Writes what there is; if the socket takes no more, `cx` is woken when it does.
fn pump(connection: &Connection, half: &mut Half, out: &mut Out, cx: &mut Context<'_>) -> Pumped {
    let outbox = &connection.outbox;
    match half {
        Half::Plain(_) => {
            let direct = connection.direct.as_ref().expect("a socket without TLS has a way for all threads");
            loop {
                let pumped = out.pump(outbox, ROUNDS, |slices| direct.try_write_vectored(slices));
                if pumped != Pumped::Blocked {
                    return pumped;
                }
                match direct.as_ref().poll_write_ready(cx) {
                    Poll::Pending => return Pumped::Blocked,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Pumped::Broken,
                }
            }
        }
        Half::Tls(stream) => {
            let pumped =
                out.pump(outbox, ROUNDS, |slices| match Pin::new(&mut *stream).poll_write_vectored(cx, slices) {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                });
            match Pin::new(&mut *stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => pumped,
                Poll::Ready(Err(_)) => Pumped::Broken,
                Poll::Pending if pumped == Pumped::Broken => pumped,
                Poll::Pending => Pumped::Blocked,
            }
        }
    }
}
