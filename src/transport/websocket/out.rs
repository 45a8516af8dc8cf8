//! The writing side of a WebSocket: what is half written, the answers, and what the readers have, in this order.
//!
//! One function writes, and any thread may call it: the connection's task, or the committer for the few that it
//! serves itself. Bodies of batches are shared bytes; only heads and small bodies are copied, into a buffer of the
//! thread. A connection keeps bytes of its own only while its socket takes no more.

use std::cell::RefCell;
use std::io::{ErrorKind, IoSlice};

use bytes::Bytes;

use crate::broker::{Output, Pulled, Readers};
use crate::metrics::Sampled;
use crate::session::Outbox;
use crate::transport::encode::{self, Tally};

/// One room's turn while others wait, in bytes.
const TURN_BYTES: usize = 16 << 10;

/// Slices of one write call.
const SLICES_MAX: usize = 64;

/// A body below this is cheaper to copy than to point at.
const COPIED_BYTES_MAX: usize = 512;

/// A buffer of a thread is not kept above this.
const KEPT_BYTES_MAX: usize = 128 << 10;

/// What is to be written, in order: bytes of the buffer, and shared bytes between them.
#[derive(Debug, Default)]
struct Work {
    buffer: Vec<u8>,
    /// Shared bytes, each with where in the buffer it stands.
    shared: Vec<(usize, Bytes)>,
    /// The bytes of both.
    bytes: usize,
}

impl Work {
    fn clear(&mut self) {
        self.buffer.clear();
        self.shared.clear();
        self.bytes = 0;
        if self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    fn share(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.shared.push((self.buffer.len(), bytes));
    }

    /// The slices behind `written`; returns how many there are.
    fn slices<'a>(&'a self, written: usize, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut count, mut skip, mut at) = (0, written, 0);
        let mut add = |part: &'a [u8]| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() && count < slices.len() {
                slices[count] = IoSlice::new(&part[skipped..]);
                count += 1;
            }
        };
        for (place, bytes) in &self.shared {
            add(&self.buffer[at..*place]);
            add(bytes);
            at = *place;
        }
        add(&self.buffer[at..]);
        count
    }

    /// What is behind `written`, as work of its own that needs no more memory than it has bytes.
    fn rest(&self, written: usize) -> Self {
        self.behind(written, |_| false)
    }

    /// As [`rest`](Self::rest), with a copy of what nobody else shares.
    fn settled(&self, written: usize) -> Self {
        let mut rest = self.behind(written, Bytes::is_unique);
        rest.buffer.shrink_to_fit();
        rest
    }

    fn behind(&self, written: usize, copied: impl Fn(&Bytes) -> bool) -> Self {
        let mut rest = Self::default();
        let (mut skip, mut at) = (written, 0);
        for (place, bytes) in &self.shared {
            rest.keep(&self.buffer[at..*place], &mut skip);
            if copied(bytes) {
                rest.keep(bytes, &mut skip);
            } else {
                if skip < bytes.len() {
                    rest.share(bytes.slice(skip..));
                }
                skip = skip.saturating_sub(bytes.len());
            }
            at = *place;
        }
        rest.keep(&self.buffer[at..], &mut skip);
        rest
    }

    fn keep(&mut self, part: &[u8], skip: &mut usize) {
        let skipped = (*skip).min(part.len());
        *skip -= skipped;
        self.buffer.extend_from_slice(&part[skipped..]);
        self.bytes += part.len() - skipped;
    }
}

thread_local! {
    static WORK: RefCell<Work> = RefCell::default();
}

/// How far the writing has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pumped {
    /// All that there was has been written.
    All,
    /// The socket takes no more for now.
    Blocked,
    /// There may be more: it is somebody else's turn.
    More,
    /// The socket is broken.
    Broken,
}

/// The writing side of one connection.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// The subscriptions; absent once the session is over.
    pub(crate) readers: Option<Readers>,
    /// What the socket has not taken yet.
    rest: Option<Box<Work>>,
    /// How many bytes of it have been written since.
    written: usize,
    /// Control frames that go before everything else but what is half written.
    control: Vec<u8>,
    /// What goes behind the answers, and nothing behind it.
    last: Option<Vec<u8>>,
    /// Whether the last frame has been gathered.
    closed: bool,
    /// Whether the socket took less than it was given.
    pub(crate) blocked: bool,
    /// Bytes that the socket has taken, ever.
    pub(crate) taken: u64,
    sampled: Sampled,
    /// What is pulled from the readers for one write, in bytes. Only a single body may exceed it.
    write_bytes: usize,
}

impl Out {
    /// The writing side of a session that has joined nothing; `send_bytes_max` is what may be begun for its peer.
    pub(crate) fn new(send_bytes_max: usize) -> Self {
        Self { write_bytes: send_bytes_max.max(1), ..Self::default() }
    }

    /// Queues a pong. One that waits already is replaced: a peer that floods pings costs one pong at a time.
    pub(crate) fn pong(&mut self, payload: &[u8]) {
        self.control.clear();
        control(&mut self.control, 0x8a, payload);
    }

    /// Queues a ping, unless a control frame waits already: the peer is not reading then.
    pub(crate) fn ping(&mut self) {
        if self.control.is_empty() {
            control(&mut self.control, 0x89, &[]);
        }
    }

    /// Ends the output with a close frame behind the answers: nothing goes behind it.
    pub(crate) fn close(&mut self, code: Option<u16>, reason: &str) {
        let mut payload = Vec::with_capacity(125);
        if let Some(code) = code {
            payload.extend_from_slice(&code.to_be_bytes());
            let mut end = reason.len().min(123);
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            payload.extend_from_slice(&reason.as_bytes()[..end]);
        }
        control(self.last.get_or_insert_default(), 0x88, &payload);
    }

    /// Lets go of what was read ahead, and of shared bytes that only this connection keeps, but for those that the
    /// socket has not taken: a peer that does not read costs what waits for it, and not whole bodies.
    pub(crate) fn settle(&mut self) {
        if let Some(readers) = &self.readers {
            readers.settle();
        }
        if let Some(rest) = &mut self.rest {
            **rest = rest.settled(std::mem::take(&mut self.written));
        }
    }

    /// Writes with `write`, which takes some of the slices or says that it would block, until there is nothing
    /// more, the socket takes no more, or `turns` writes have been made.
    pub(crate) fn pump(
        &mut self,
        outbox: &Outbox,
        turns: usize,
        mut write: impl FnMut(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> Pumped {
        let mut tally = Tally::default();
        let pumped = WORK.with_borrow_mut(|work| {
            let pumped = self.turns(outbox, turns, work, &mut tally, &mut write);
            work.clear();
            pumped
        });
        tally.flush(outbox.metrics(), outbox.transport());
        let blocked = pumped == Pumped::Blocked;
        if blocked || self.blocked {
            outbox.hold(self.rest.as_ref().map_or(0, |rest| rest.bytes - self.written));
        }
        self.blocked = blocked;
        pumped
    }

    fn turns(
        &mut self,
        outbox: &Outbox,
        turns: usize,
        work: &mut Work,
        tally: &mut Tally,
        write: &mut impl FnMut(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> Pumped {
        if let Some(rest) = self.rest.take() {
            let mut written = self.written;
            let pumped = self.write(&rest, &mut written, tally, write);
            self.written = written;
            if pumped != Pumped::All {
                self.rest = Some(rest);
                return pumped;
            }
        }
        for _ in 0..turns {
            work.clear();
            let more = self.fill(outbox, work, tally);
            if work.bytes + work.buffer.len() == 0 {
                return if more { Pumped::More } else { Pumped::All };
            }
            work.bytes += work.buffer.len();
            let mut written = 0;
            let pumped = self.write(work, &mut written, tally, write);
            if pumped != Pumped::All {
                self.rest = Some(Box::new(work.rest(written)));
                self.written = 0;
                return pumped;
            }
            if !more && outbox.bytes() == 0 {
                return Pumped::All;
            }
        }
        Pumped::More
    }

    /// Writes `work` from `written` on.
    fn write(
        &mut self,
        work: &Work,
        written: &mut usize,
        tally: &mut Tally,
        write: &mut impl FnMut(&[IoSlice<'_>]) -> std::io::Result<usize>,
    ) -> Pumped {
        while *written < work.bytes {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = work.slices(*written, &mut slices);
            match write(&slices[..count]) {
                Ok(0) => return Pumped::Broken,
                Ok(taken) => {
                    tally.calls += 1;
                    *written += taken;
                    self.taken += taken as u64;
                    tally.bytes += taken as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Pumped::Blocked,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Pumped::Broken,
            }
        }
        Pumped::All
    }

    /// Gathers what is to be written next; whether there may be more.
    fn fill(&mut self, outbox: &Outbox, work: &mut Work, tally: &mut Tally) -> bool {
        if self.closed {
            return false;
        }
        work.buffer.append(&mut self.control);
        tally.frames += outbox.take(|frames| {
            message_head(frames.len(), &mut work.buffer);
            if frames.len() <= KEPT_BYTES_MAX / 4 {
                work.buffer.append(frames);
            } else {
                work.share(Bytes::from(std::mem::take(frames)));
            }
        });
        if let Some(last) = &mut self.last {
            work.buffer.append(last);
            self.closed = true;
            return false;
        }
        let Some(readers) = &self.readers else { return false };
        let (metrics, sampled) = (outbox.metrics(), &mut self.sampled);
        let pulled = readers.pull(outbox.portion(self.write_bytes), TURN_BYTES, |output| {
            tally.output(&output, sampled, metrics);
            add(output, work);
        });
        pulled == Pulled::More
    }
}

/// Adds an output as one message.
fn add(output: Output, work: &mut Work) {
    // The head of the message has to tell the length of what is behind it: written first, then moved to its place.
    let start = work.buffer.len();
    let (_, body) = encode::frame(output, &mut work.buffer);
    let end = work.buffer.len();
    let body_bytes = body.as_ref().map_or(0, Bytes::len);
    message_head(end - start + body_bytes, &mut work.buffer);
    work.buffer[start..].rotate_left(end - start);
    if let Some(body) = body {
        if body_bytes < COPIED_BYTES_MAX {
            work.buffer.extend_from_slice(&body);
        } else {
            work.share(body);
        }
    }
}

/// Appends the head of a binary message that is not fragmented; a server's has no mask.
fn message_head(bytes: usize, out: &mut Vec<u8>) {
    out.push(0x82);
    match (u8::try_from(bytes), u16::try_from(bytes)) {
        (Ok(bytes @ ..=125), _) => out.push(bytes),
        (_, Ok(bytes)) => {
            out.push(126);
            out.extend_from_slice(&bytes.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
}

fn control(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.push(first);
    out.push(u8::try_from(payload.len()).expect("a control frame has at most 125 bytes"));
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests;
