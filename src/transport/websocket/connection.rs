//! One WebSocket connection: its task, and what the committer may do of its work.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::fanout::{Fanout, Served};
use super::guard::{Event, Guard, Violation};
use super::out::{Out, Pumped};
use super::peer;
use crate::broker::{Broker, Readers, Wake};
use crate::lock::{Mutex, MutexGuard};
use crate::protocol::JoinId;
use crate::session::{Due, End, Life, Outbox, Reading, Service, Streams};
use crate::storage::{Answer, Refused, Reply, Targets};
use crate::transport::timer::Timer;
use crate::transport::{CLOSE_TIMEOUT, MEMORY_RETRY, QUEUE_RETRY, READ_BYTES, ROUNDS};
use crate::types::RoomName;

/// So much is read of a peer that has been told goodbye, in bytes: more than buffers hold on the way. Who sends on all the
/// same is reset.
const DRAINED_BYTES_MAX: usize = 16 << 20;

/// Writes of a thread that is not the task's: one, and a look at what it has made room for.
const TURNS_IN_PLACE: usize = 2;

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
    /// The socket, for all threads; absent under TLS, where only the task has it.
    direct: Option<TcpStream>,
    fanout: Arc<Fanout>,
    /// Whether it stands in the list of the fan-out.
    in_fanout: AtomicBool,
    /// Whether the task waits for another thread to be done with the writing side.
    wanted: AtomicBool,
    this: Weak<Self>,
}

impl Connection {
    /// A session on a socket. `early` is what was read behind the request for the upgrade, and `send_bytes_max` what
    /// may be begun for the peer.
    pub(crate) fn serve(
        socket: Socket,
        early: &[u8],
        broker: Broker,
        number: u64,
        outbox: Arc<Outbox>,
        send_bytes_max: usize,
        fanout: Arc<Fanout>,
    ) -> Serving {
        let now = Instant::now();
        let (tls, direct) = match socket {
            Socket::Plain(stream) => (None, Some(stream)),
            Socket::Tls(stream) => (Some(stream), None),
        };
        let connection = Arc::new_cyclic(|this| Self {
            out: Mutex::new(Out::new(send_bytes_max)),
            outbox: Arc::clone(&outbox),
            direct,
            fanout,
            in_fanout: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            this: this.clone(),
        });
        let wake = Arc::clone(&connection) as Arc<dyn Wake>;
        connection.out.lock().readers = Some(broker.readers(number, wake));
        let reply = Arc::clone(&connection) as Arc<dyn Reply>;
        let guard = Guard::new(broker.limits().frame_bytes_max());
        let service = Service::new(broker, number, outbox, reply, Life::Session, now);
        let timer = Timer::new(now);
        // A copy: the bytes are part of the buffer of the handshake, which an idle connection is not to keep.
        let early = early.to_vec();
        Serving::Going(Task { connection, tls, service, guard, timer, early, taken: 0, unwritten: false })
    }

    fn direct(&self) -> &TcpStream {
        self.direct.as_ref().expect("a socket without TLS is there for all threads")
    }

    /// Serves the session on this thread if that is worth it, else has it served soon.
    fn advance(&self, targets: Targets) {
        if self.direct.is_none() {
            self.outbox.kick();
        } else if targets == Targets::Few {
            self.write_in_place();
        } else if !self.in_fanout.swap(true, Ordering::SeqCst)
            && let Some(this) = self.this.upgrade()
        {
            self.fanout.push(this);
        }
    }

    /// Writes on this thread what there is, if nobody else is at it and the socket takes it; else wakes the task.
    fn write_in_place(&self) {
        let written = if let Some(direct) = &self.direct
            && let Some(mut out) = self.out.try_lock()
        {
            !out.blocked && out.pump(&self.outbox, TURNS_IN_PLACE, |slices| send(direct, slices)) == Pumped::All
        } else {
            false
        };
        if !written || self.outbox.is_waiting() || self.wanted.swap(false, Ordering::SeqCst) {
            self.outbox.kick();
        }
    }

    /// For the task: the writing side, unless another thread is at it, which wakes the task when it is done.
    fn out_or_wake(&self) -> Option<MutexGuard<'_, Out>> {
        if let Some(out) = self.out.try_lock() {
            return Some(out);
        }
        self.wanted.store(true, Ordering::SeqCst);
        // It may have been done before it could see that.
        let out = self.out.try_lock()?;
        self.wanted.store(false, Ordering::SeqCst);
        Some(out)
    }
}

impl Served for Connection {
    fn serve_in_turn(&self) {
        // Cleared before it is looked at what there is: what comes from here on has it served again.
        self.in_fanout.swap(false, Ordering::SeqCst);
        self.write_in_place();
    }

    fn serve_by_task(&self) {
        self.outbox.kick();
    }
}

impl Wake for Connection {
    fn wake(&self, targets: Targets) {
        self.advance(targets);
    }
}

impl Reply for Connection {
    fn answered(&self, answers: &[Answer], targets: Targets) {
        self.outbox.answered(answers);
        self.advance(targets);
    }
}

impl Streams for Connection {
    type Access<'a> = Access<'a>;

    fn readers(&self) -> Self::Access<'_> {
        // While this is held nothing is pulled: a join's answer is queued before its first record.
        Access(self.out.lock())
    }

    fn open(&self, _join: JoinId, _room: &RoomName) -> Result<(), Refused> {
        Ok(())
    }

    fn close(&self, _join: JoinId) {}
}

/// The readers of a session that is not over, under the lock of what writes.
pub(crate) struct Access<'a>(MutexGuard<'a, Out>);

impl Deref for Access<'_> {
    type Target = Readers;

    fn deref(&self) -> &Readers {
        self.0.readers.as_ref().expect("the session is not over")
    }
}

/// A session being served: done when it is over.
///
/// Written by hand, since most sessions are idle and an `async fn` would keep room for its end from the beginning.
#[expect(clippy::large_enum_variant, reason = "the large one is what it is for nearly all its life")]
pub(crate) enum Serving {
    /// The session goes on.
    Going(Task),
    /// Its last frames are sent.
    Ending(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// It is over.
    Over,
}

impl Future for Serving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Going(task) = &mut *self {
            let over = ready!(task.poll(cx));
            let Self::Going(task) = std::mem::replace(&mut *self, Self::Over) else {
                unreachable!("it was matched just now")
            };
            *self = Self::Ending(Box::pin(task.finish(over)));
        }
        match &mut *self {
            Self::Ending(end) => end.as_mut().poll(cx),
            Self::Going(_) | Self::Over => Poll::Ready(()),
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

/// What the task of a connection owns.
pub(crate) struct Task {
    connection: Arc<Connection>,
    tls: Option<Box<TlsStream<TcpStream>>>,
    service: Service,
    guard: Guard,
    timer: Timer,
    early: Vec<u8>,
    /// The bytes that the socket had taken when its progress was last looked at.
    taken: u64,
    /// Whether there may be something to write beside answers.
    unwritten: bool,
}

thread_local! {
    // One for all connections of a thread.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

impl Task {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        let now = Instant::now();
        self.unwritten |= self.connection.outbox.take_kick(cx);
        match self.rounds(cx, now) {
            Ok(retry) => self.wait(cx, now, retry),
            Err(over) => Poll::Ready(over),
        }
    }

    /// Writes and reads until there is nothing to do; returns when to look again if nobody wakes the task.
    fn rounds(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Option<Instant>, Over> {
        for _ in 0..ROUNDS {
            // TLS may have something to say by itself.
            if self.unwritten || self.tls.is_some() || self.connection.outbox.bytes() > 0 {
                let pumped = self.write(cx, now);
                self.unwritten = pumped != Some(Pumped::All);
                match pumped {
                    Some(Pumped::Broken) => return Err(Over::Gone),
                    Some(Pumped::More) => cx.waker().wake_by_ref(),
                    Some(Pumped::All | Pumped::Blocked) | None => {}
                }
            }
            self.service.read_on();
            if let Some(end) = self.connection.outbox.asked_to_end() {
                // What was accepted is committed and answered first.
                self.let_go_of_message();
                self.connection.outbox.set_waiting(true);
                return match self.service.in_flight().0 {
                    0 => Err(Over::End(end)),
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
                Reading::PausedForMemory => return Ok(Some(now + MEMORY_RETRY)),
            }
            match self.read(cx) {
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
                self.unwritten = true;
                cx.waker().wake_by_ref();
            }
            Due::Settle => self.connection.out.lock().settle(),
            Due::Look(time) => {
                let socket = self.tls.as_ref().map_or_else(|| self.connection.direct(), |tls| tls.get_ref().0);
                if peer::is_gone(socket, time) {
                    return Poll::Ready(Over::End(End::Idle(time)));
                }
            }
        }
        self.timer.arm(self.service.session().deadline().into_iter().chain(retry), cx);
        Poll::Pending
    }

    /// `None` while another thread is at it.
    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<Pumped> {
        let mut out = self.connection.out_or_wake()?;
        let pumped = pump(&self.connection, self.tls.as_deref_mut(), &mut out, cx);
        let clocks = self.service.session().clocks();
        match pumped {
            Pumped::Blocked => clocks.blocked(now, out.taken != self.taken),
            _ => clocks.flowing(now),
        }
        self.taken = out.taken;
        Some(pumped)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        if !self.early.is_empty() {
            let early = std::mem::take(&mut self.early);
            return Poll::Ready(self.take(&early));
        }
        READ.with_borrow_mut(|buffer| {
            let read = read(&self.connection, self.tls.as_deref_mut(), buffer, cx);
            match ready!(read) {
                Err(_) | Ok(0) => Poll::Ready(Err(Over::Gone)),
                Ok(bytes) => Poll::Ready(self.take(&buffer[..bytes])),
            }
        })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let Self { connection, service, guard, unwritten, .. } = self;
        let mut completed = false;
        let read = guard.read(bytes, |event| {
            match event {
                Event::Message(message) => {
                    completed = true;
                    service.message(message, &**connection)?;
                }
                Event::Ping(payload) => {
                    connection.out.lock().pong(payload);
                    *unwritten = true;
                }
                Event::Pong => {}
                Event::Close => return Err(Over::Closed),
            }
            Ok(())
        });
        // What came before an error was accepted.
        service.submit();
        // Looked at anew: a commit may have been made meanwhile.
        service.session().clocks().heard(Instant::now(), completed, guard.within_message());
        connection.outbox.receives(guard.held_bytes());
        read
    }

    /// Nothing more is read: what is here of a message will not become one.
    fn let_go_of_message(&mut self) {
        self.guard.let_go();
        self.connection.outbox.receives(0);
    }

    /// Sends the last frames, and gives the peer time to take them and to close.
    async fn finish(mut self, over: Over) {
        tracing::debug!(?over, "a WebSocket session ends");
        let connection = Arc::clone(&self.connection);
        drop(connection.out.lock().readers.take());
        self.let_go_of_message();
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
        let tls = &mut self.tls;
        let written = std::future::poll_fn(|cx| {
            connection.outbox.take_kick(cx);
            let pumped = pump(&connection, tls.as_deref_mut(), &mut connection.out.lock(), cx);
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
            let _ = socket2::SockRef::from(direct).shutdown(Shutdown::Write);
        }
        // A socket closed with unread bytes in it is reset, and the peer might not see what was written last.
        let mut left = DRAINED_BYTES_MAX;
        let drained = std::future::poll_fn(|cx| {
            READ.with_borrow_mut(|buffer| {
                for _ in 0..ROUNDS {
                    match ready!(read(&connection, tls.as_deref_mut(), buffer, cx)) {
                        Ok(count @ 1..) if count < left => left -= count,
                        _ => return Poll::Ready(()),
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

/// Reads what there is: how many bytes, 0 at the end.
fn read(
    connection: &Connection,
    tls: Option<&mut TlsStream<TcpStream>>,
    buffer: &mut [u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if let Some(stream) = tls {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
        return Poll::Ready(Ok(buffer.filled().len()));
    }
    let direct = connection.direct();
    loop {
        ready!(direct.poll_read_ready(cx))?;
        let mut read = Err(Errno::AGAIN);
        let _ = direct.try_io(Interest::READABLE, || {
            read = rustix::net::recv(direct, &mut *buffer, RecvFlags::empty()).map(|(bytes, _)| bytes);
            match read {
                // All there was: the next poll would be told so by a call of its own. What comes from here on makes
                // the socket ready anew, and this forgets nothing that came before.
                Ok(bytes) if bytes > 0 && bytes < buffer.len() => Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        match read {
            Err(Errno::AGAIN | Errno::INTR) => {}
            read => return Poll::Ready(read.map_err(io::Error::from)),
        }
    }
}

/// Writes without waiting.
fn send(direct: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match slices {
        // Most writes are of one piece, and a call for a single one is quicker.
        [slice] => direct.try_io(Interest::WRITABLE, || Ok(rustix::net::send(direct, slice, SendFlags::NOSIGNAL)?)),
        _ => direct.try_write_vectored(slices),
    }
}

/// Writes what there is; if the socket takes no more, `cx` is woken when it does.
fn pump(
    connection: &Connection,
    tls: Option<&mut TlsStream<TcpStream>>,
    out: &mut Out,
    cx: &mut Context<'_>,
) -> Pumped {
    let outbox = &connection.outbox;
    let Some(stream) = tls else {
        let direct = connection.direct();
        loop {
            let pumped = out.pump(outbox, ROUNDS, |slices| send(direct, slices));
            if pumped != Pumped::Blocked {
                return pumped;
            }
            match direct.poll_write_ready(cx) {
                Poll::Pending => return Pumped::Blocked,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Pumped::Broken,
            }
        }
    };
    let pumped = out.pump(outbox, ROUNDS, |slices| match Pin::new(&mut *stream).poll_write_vectored(cx, slices) {
        Poll::Ready(written) => written,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    });
    match Pin::new(stream).poll_flush(cx) {
        Poll::Ready(Ok(())) => pumped,
        Poll::Ready(Err(_)) => Pumped::Broken,
        Poll::Pending if pumped == Pumped::Broken => pumped,
        Poll::Pending => Pumped::Blocked,
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_is_small() {
        let bytes = size_of::<Serving>() + size_of::<Connection>() + size_of::<Outbox>();
        assert!(bytes <= 1024, "{bytes} bytes");
    }
}
