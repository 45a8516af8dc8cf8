//! The streams of a connection: one for each joined room, so that a room that is not read delays no other.
//!
//! A room's stream holds at most one turn of the room, and while the peer takes nothing of it the room is not
//! pulled at all. Each stream wakes by its own name: however many are stalled, only those that move are looked at.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake as TaskWake, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use quinn::{SendStream, VarInt, WriteError};

use crate::broker::{Output, Pulled, Readers};
use crate::metrics::Sampled;
use crate::protocol::{JoinId, StreamHead};
use crate::session::{Outbox, Streams};
use crate::storage::Refused;
use crate::transport::encode::{self, Place, Tally};
use crate::types::{Code, Epoch, RoomName};

/// What is pulled from the readers before streams are written, in bytes.
const PULL_BYTES: usize = 64 << 10;

/// One room's turn while others wait, in bytes.
const TURN_BYTES: usize = 16 << 10;

/// A body below this is copied: quinn walks its unacknowledged chunks one by one for each packet.
const COPIED_BYTES_MAX: usize = 4 << 10;

/// The rooms of one connection.
pub(crate) struct Rooms {
    connection: quinn::Connection,
    epoch: Epoch,
    outbox: Arc<Outbox>,
    readers: Readers,
    streams: Mutex<HashMap<JoinId, Stream>>,
    /// Bytes that all streams hold.
    held: AtomicUsize,
    /// The streams that were blocked and can be written again.
    writable: Arc<Mutex<Vec<JoinId>>>,
}

/// The way of one room's pushes.
struct Stream {
    send: SendStream,
    /// What quinn has not taken yet, in order: small things copied together, large bodies shared.
    chunks: Vec<Bytes>,
    tail: BytesMut,
    /// The bytes of the chunks when they were last counted.
    held: usize,
    paused: bool,
    /// The room has ended: the stream ends behind what is in it.
    last: bool,
    waker: Waker,
}

/// Wakes the connection's task in the name of one stream.
struct StreamWaker {
    join: JoinId,
    writable: Arc<Mutex<Vec<JoinId>>>,
    outbox: Arc<Outbox>,
}

impl TaskWake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut writable = self.writable.lock();
        if !writable.contains(&self.join) {
            writable.push(self.join);
        }
        drop(writable);
        self.outbox.kick();
    }
}

impl Stream {
    fn add(&mut self, frame: &[u8], body: Option<Bytes>) {
        self.tail.extend_from_slice(frame);
        let Some(body) = body else { return };
        if body.len() < COPIED_BYTES_MAX {
            self.tail.extend_from_slice(&body);
        } else {
            self.close_tail();
            self.chunks.push(body);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.split().freeze());
        }
    }

    /// Gives quinn as much as it takes; whether that was all.
    fn write(&mut self, tally: &mut Tally) -> Result<bool, WriteError> {
        self.close_tail();
        let waker = self.waker.clone();
        let written = write_chunks(&mut self.send, &mut self.chunks, &mut Context::from_waker(&waker), tally)?;
        if written && self.last {
            let _ = self.send.finish();
        }
        Ok(written)
    }
}

/// Gives quinn as much of the chunks as it takes; whether that was all. If not, `cx` is woken when it takes more.
pub(crate) fn write_chunks(
    send: &mut SendStream,
    chunks: &mut Vec<Bytes>,
    cx: &mut Context<'_>,
    tally: &mut Tally,
) -> Result<bool, WriteError> {
    while !chunks.is_empty() {
        // Dropped without having written, this has done nothing: quinn says so.
        let written = match pin!(send.write_chunks(chunks)).poll(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(written) => written?,
        };
        tally.calls += 1;
        tally.bytes += written.bytes as u64;
        chunks.drain(..written.chunks);
    }
    Ok(true)
}

impl Rooms {
    pub(crate) fn new(connection: quinn::Connection, epoch: Epoch, outbox: Arc<Outbox>, readers: Readers) -> Self {
        Self {
            connection,
            epoch,
            outbox,
            readers,
            streams: Mutex::default(),
            held: AtomicUsize::new(0),
            writable: Arc::default(),
        }
    }

    /// Moves records from the readers to their streams; whether there may be more at once.
    pub(crate) fn pump(&self, sampled: &mut Sampled, tally: &mut Tally) -> Pulled {
        let mut streams = self.streams.lock();
        for join in std::mem::take(&mut *self.writable.lock()) {
            self.write(&mut streams, join, tally);
        }
        let mut frame = Vec::new();
        let mut touched = Vec::new();
        let (pull_bytes, turn_bytes) = (self.outbox.portion(PULL_BYTES), self.outbox.portion(TURN_BYTES));
        let pulled = self.readers.pull(pull_bytes, turn_bytes, |output| {
            tally.output(&output, sampled, self.outbox.metrics());
            let left = match output {
                Output::Left { join, tag: Some(_), .. } => Some(join),
                _ => None,
            };
            frame.clear();
            let (place, body) = encode::frame(output, &mut frame);
            let (join, last) = match place {
                Place::Answers => {
                    self.outbox.push_bytes(&frame);
                    return;
                }
                Place::Room(join) => (join, false),
                Place::LastOfRoom(join) => (join, true),
            };
            if left.is_some() {
                // The answer to the join; its stream ends without having carried anything.
                self.outbox.push_bytes(&frame);
                frame.clear();
            }
            let Some(stream) = streams.get_mut(&join) else { return };
            stream.add(&frame, body);
            stream.last |= last;
            if touched.last() != Some(&join) {
                touched.push(join);
            }
        });
        for join in touched {
            self.write(&mut streams, join, tally);
        }
        self.outbox.hold(self.held.load(Ordering::Relaxed));
        pulled
    }

    fn write(&self, streams: &mut HashMap<JoinId, Stream>, join: JoinId, tally: &mut Tally) {
        let Some(stream) = streams.get_mut(&join) else { return };
        let written = stream.write(tally);
        self.account(stream);
        match written {
            Ok(true) if stream.last => _ = streams.remove(&join),
            Ok(true) => {
                if std::mem::take(&mut stream.paused) {
                    self.readers.resume(join);
                }
            }
            Ok(false) => {
                if !std::mem::replace(&mut stream.paused, true) {
                    self.readers.pause(join);
                }
            }
            // The peer wants no more of the room, or is gone.
            Err(_) => {
                if let Some(mut stream) = streams.remove(&join) {
                    stream.chunks.clear();
                    self.account(&mut stream);
                }
                let _ = self.readers.leave(join);
            }
        }
    }

    /// Counts what a stream holds.
    fn account(&self, stream: &mut Stream) {
        let held = stream.chunks.iter().map(Bytes::len).sum();
        self.held.fetch_add(held, Ordering::Relaxed);
        self.held.fetch_sub(std::mem::replace(&mut stream.held, held), Ordering::Relaxed);
    }
}

impl Streams for Rooms {
    type Access<'a> = &'a Readers;

    fn readers(&self) -> &Readers {
        &self.readers
    }

    fn open(&self, join: JoinId, room: &RoomName) -> Result<(), Refused> {
        let refused = |code: Code| Err(Refused::new(code, code.sentence()));
        let send = match pin!(self.connection.open_uni()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(send)) => send,
            Poll::Ready(Err(_)) => return refused(Code::Unavailable),
            Poll::Pending => return refused(Code::TooManyStreams),
        };
        let (writable, outbox) = (Arc::clone(&self.writable), Arc::clone(&self.outbox));
        let waker = Waker::from(Arc::new(StreamWaker { join, writable, outbox }));
        let mut head = Vec::with_capacity(StreamHead::BYTES_MAX);
        StreamHead { join, room: room.as_str(), epoch: self.epoch }.encode_into(&mut head);
        let tail = BytesMut::from(&head[..]);
        let stream = Stream { send, chunks: Vec::new(), tail, held: 0, paused: false, last: false, waker };
        self.streams.lock().insert(join, stream);
        Ok(())
    }

    fn close(&self, join: JoinId) {
        if let Some(mut stream) = self.streams.lock().remove(&join) {
            self.held.fetch_sub(stream.held, Ordering::Relaxed);
            let _ = match stream.write(&mut Tally::default()) {
                Ok(true) => stream.send.finish(),
                _ => stream.send.reset(VarInt::from_u32(0)),
            };
        }
    }
}
