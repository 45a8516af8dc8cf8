//! One QUIC connection: its task.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};

use super::rooms::{Rooms, write_chunks};
use crate::broker::{Broker, Pulled, Wake};
use crate::metrics::Sampled;
use crate::protocol::split_frame;
use crate::session::{Due, End, Life, Outbox, Reading, Service};
use crate::storage::{Answer, Reply, Targets};
use crate::transport::encode::Tally;
use crate::transport::timer::Timer;
use crate::transport::{CLOSE_TIMEOUT, MEMORY_RETRY, QUEUE_RETRY, READ_BYTES, ROUNDS};

/// Serves a session until it is over.
pub(crate) async fn serve(connection: quinn::Connection, broker: Broker, number: u64, outbox: Arc<Outbox>) {
    let now = Instant::now();
    let stopped = std::future::poll_fn(|cx| {
        outbox.take_kick(cx);
        outbox.asked_to_end().map_or(Poll::Pending, Poll::Ready)
    });
    let opened = tokio::select! {
        opened = connection.accept_bi() => opened.map_err(|_| None),
        () = tokio::time::sleep(broker.limits().handshake_timeout) => {
            Err(Some(End::HelloTimeout(broker.limits().handshake_timeout)))
        }
        end = stopped => Err(Some(end)),
    };
    let (send, recv) = match opened {
        Ok(streams) => streams,
        Err(None) => return,
        Err(Some(end)) => return close(&connection, &end),
    };
    // Answers go before the pushes of any room.
    let _ = send.set_priority(1);
    let woken = Arc::new(Woken { outbox: Arc::clone(&outbox) });
    let readers = broker.readers(number, Arc::clone(&woken) as Arc<dyn Wake>);
    let rooms = Rooms::new(connection.clone(), broker.epoch(), Arc::clone(&outbox), readers);
    let service = Service::new(broker, number, Arc::clone(&outbox), woken, Life::Transport, now);
    let timer = Timer::new(now);
    let answers = Vec::new();
    let (partial, sampled) = (Vec::new(), Sampled::new());
    let mut task = Task { send, recv, answers, partial, rooms, service, outbox, timer, sampled };
    let over = tokio::select! {
        biased;
        over = std::future::poll_fn(|cx| task.poll(cx)) => over,
        what = anything_else(&connection) => Over::End(End::BadFrame(format!("{what} beside the stream of requests"))),
    };
    task.finish(&connection, over).await;
}

/// What a client has sent beside its stream of requests, which it must not.
async fn anything_else(connection: &quinn::Connection) -> &'static str {
    tokio::select! {
        Ok(_) = connection.accept_bi() => "a stream",
        Ok(_) = connection.accept_uni() => "a stream",
        Ok(_) = connection.read_datagram() => "a datagram",
        // The connection is gone, which the task finds out by itself.
        else => std::future::pending().await,
    }
}

/// What the committer and the reading threads know of a connection. Only its own task writes.
#[derive(Debug)]
struct Woken {
    outbox: Arc<Outbox>,
}

impl Wake for Woken {
    fn wake(&self, _targets: Targets) {
        self.outbox.kick();
    }
}

impl Reply for Woken {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        self.outbox.answered(answers);
        self.outbox.kick();
    }
}

/// Why the task has nothing more to do.
#[derive(Debug)]
enum Over {
    /// The peer is gone, or has closed.
    Gone,
    End(End),
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

struct Task {
    send: SendStream,
    recv: RecvStream,
    /// Answers that the stream has not taken yet.
    answers: Vec<Bytes>,
    /// The front of a frame that is not complete.
    partial: Vec<u8>,
    rooms: Rooms,
    service: Service,
    outbox: Arc<Outbox>,
    timer: Timer,
    sampled: Sampled,
}

impl Task {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        let now = Instant::now();
        self.outbox.take_kick(cx);
        let mut tally = Tally::default();
        let rounds = self.rounds(cx, now, &mut tally);
        tally.flush(self.outbox.metrics(), self.outbox.transport());
        let retry = match rounds {
            Ok(retry) => retry,
            Err(over) => return Poll::Ready(over),
        };
        if let Due::End(end) = self.service.tick(now) {
            return Poll::Ready(Over::End(end));
        }
        self.timer.arm(self.service.session().deadline().into_iter().chain(retry), cx);
        Poll::Pending
    }

    /// Writes and reads until there is nothing to do; returns when to look again if nobody wakes the task.
    fn rounds(&mut self, cx: &mut Context<'_>, now: Instant, tally: &mut Tally) -> Result<Option<Instant>, Over> {
        for _ in 0..ROUNDS {
            self.write_answers(cx, now, tally)?;
            if self.rooms.pump(&mut self.sampled, tally) == Pulled::More {
                cx.waker().wake_by_ref();
            }
            if self.outbox.bytes() > 0 {
                // The answer to a join whose start had to be looked up.
                self.write_answers(cx, now, tally)?;
            }
            self.service.read_on();
            if let Some(end) = self.outbox.asked_to_end() {
                // What was accepted is committed and answered first.
                self.let_go_of_message();
                return match self.service.in_flight().0 {
                    0 => Err(Over::End(end)),
                    _ => Ok(None),
                };
            }
            let reading = match self.answers.is_empty() {
                true => self.service.reads_from_peer(),
                false => Reading::PausedUntilWoken,
            };
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

    /// Writes the answers, if those before them have been taken.
    fn write_answers(&mut self, cx: &mut Context<'_>, now: Instant, tally: &mut Tally) -> Result<(), Over> {
        if self.answers.is_empty() {
            let answers = &mut self.answers;
            tally.frames += self.outbox.take(|frames| answers.push(Bytes::from(std::mem::take(frames))));
        }
        let before = tally.bytes;
        let written = write_chunks(&mut self.send, &mut self.answers, cx, tally).map_err(|_| Over::Gone)?;
        let clocks = self.service.session().clocks();
        if written {
            clocks.flowing(now);
        } else {
            clocks.blocked(now, tally.bytes != before);
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        // Dropped without having read, this has done nothing: quinn says so.
        let read = match pin!(self.recv.read_chunk(READ_BYTES, true)).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => read,
        };
        let Ok(Some(chunk)) = read else { return Poll::Ready(Err(Over::Gone)) };
        let taken = self.take(&chunk.bytes);
        // What came before an error was accepted.
        self.service.submit();
        let completed = !matches!(taken, Ok(0));
        // Looked at anew: a commit may have been made meanwhile.
        self.service.session().clocks().heard(Instant::now(), completed, !self.partial.is_empty());
        self.outbox.receives(self.partial.capacity());
        Poll::Ready(taken.map(|_| ()).map_err(Over::End))
    }

    /// Carries out the frames that are complete; returns how many those were.
    fn take(&mut self, bytes: &[u8]) -> Result<u64, End> {
        let bytes_max = self.service.session().limits().frame_bytes_max();
        let mut partial = std::mem::take(&mut self.partial);
        let mut rest = if partial.is_empty() {
            bytes
        } else {
            partial.extend_from_slice(bytes);
            &partial
        };
        let mut count = 0;
        while let Some((frame, taken)) = split_frame(rest, bytes_max)? {
            self.service.frame(frame, &self.rooms)?;
            rest = &rest[taken..];
            count += 1;
        }
        self.outbox.metrics().frames_received[self.outbox.transport()].increment(count);
        self.partial = rest.to_vec();
        Ok(count)
    }

    /// Nothing more is read: what is here of a frame will not become one.
    fn let_go_of_message(&mut self) {
        self.partial = Vec::new();
        self.outbox.receives(0);
    }

    /// Sends the goodbye, and gives the peer time to take it.
    async fn finish(mut self, connection: &quinn::Connection, over: Over) {
        tracing::debug!(?over, "a QUIC session ends");
        self.let_go_of_message();
        let Over::End(end) = over else { return };
        self.outbox.goodbye(&end);
        let outbox = &self.outbox;
        let (send, answers) = (&mut self.send, &mut self.answers);
        let mut tally = Tally::default();
        let written = std::future::poll_fn(|cx| {
            loop {
                match write_chunks(send, answers, cx, &mut tally) {
                    Ok(false) => return Poll::Pending,
                    Err(_) => return Poll::Ready(false),
                    Ok(true) if outbox.bytes() == 0 => return Poll::Ready(send.finish().is_ok()),
                    Ok(true) => {
                        tally.frames += outbox.take(|frames| answers.push(Bytes::from(std::mem::take(frames))));
                    }
                }
            }
        });
        if tokio::time::timeout(CLOSE_TIMEOUT, written).await.unwrap_or(false) {
            // A close takes back what the peer has not acknowledged.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.send.stopped()).await;
        }
        tally.flush(outbox.metrics(), outbox.transport());
        close(connection, &end);
    }
}

fn close(connection: &quinn::Connection, end: &End) {
    connection.close(VarInt::from(end.close().quic()), end.reason().as_bytes());
}
