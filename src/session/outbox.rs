//! The answers of one session on their way out, and how its task is woken.
//!
//! Answers come from the connection's own task, from the committer and from the reading threads; each holds the
//! lock for as long as it takes to encode one. Whoever writes to the transport takes all of them at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::{Metrics, Transport};
use crate::protocol::{Fault, Published, RequestId, ServerFrame, frame_into};
use crate::storage::{Appended, Outcome, Refused};

/// What is begun for a peer while all peers together hold too much, in bytes.
const PORTION_BYTES_MIN: usize = 1 << 10;

/// An idle session keeps no larger buffer than this.
const KEPT_BYTES_MAX: usize = 4 << 10;

/// The memory that all peers together may take for what they have not taken yet.
///
/// A connection holds some only while its socket takes no more. Beyond the bound nobody is cut off, but what is
/// begun for a connection is little, so that little is left over when it blocks.
#[derive(Debug)]
pub(crate) struct SendBudget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl SendBudget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { used: AtomicUsize::new(0), bytes_max }
    }

    /// How many bytes are held now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A publish without an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) request: RequestId,
    pub(crate) records: u32,
    /// When it arrived, if it is timed.
    pub(crate) since: Option<Instant>,
}

/// The answers of one session.
#[derive(Debug)]
pub(crate) struct Outbox {
    answers: Mutex<Answers>,
    /// Bytes in [`Answers::frames`].
    bytes: AtomicUsize,
    /// How many of the requests that waited for other threads have been answered, and the bytes they held.
    answered: AtomicU64,
    answered_bytes: AtomicU64,
    /// Whether a reading thread is making an answer.
    reading: AtomicBool,
    kicked: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// Whether the task waits for answers to be given, not only for what is to be written.
    waiting: AtomicBool,
    /// Bytes that the connection holds because its peer does not take them.
    held: AtomicUsize,
    budget: Arc<SendBudget>,
    /// 0, or 1 more than the milliseconds after which to come back: the server shuts down.
    stop: AtomicU32,
    metrics: Arc<Metrics>,
    transport: Transport,
}

#[derive(Debug, Default)]
struct Answers {
    frames: Vec<u8>,
    count: u64,
    pending: Vec<Pending>,
    free: Vec<u32>,
    /// Records and bytes whose publishes were answered since the metrics were last moved.
    published: (u64, u64),
}

impl Outbox {
    pub(crate) fn new(metrics: Arc<Metrics>, transport: Transport, budget: Arc<SendBudget>) -> Self {
        Self {
            answers: Mutex::default(),
            bytes: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            answered_bytes: AtomicU64::new(0),
            reading: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            waker: Mutex::new(None),
            waiting: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            budget,
            stop: AtomicU32::new(0),
            metrics,
            transport,
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    /// Appends an answer or a push of the session. Wakes nobody.
    pub(crate) fn push(&self, frame: &ServerFrame<'_>) {
        self.push_with(|out| frame_into(out, |out| frame.encode_into(out)));
    }

    /// Appends a frame with its length. Wakes nobody.
    pub(crate) fn push_bytes(&self, frame: &[u8]) {
        self.push_with(|out| out.extend_from_slice(frame));
    }

    /// Appends a refusal. Wakes nobody.
    pub(crate) fn refuse(&self, request: RequestId, why: &Refused) {
        self.metrics.errors[why.code].increment(1);
        self.push(&ServerFrame::Error(Fault::new(request, why.code, &why.message)));
    }

    /// Appends the goodbye of an end.
    pub(crate) fn goodbye(&self, end: &super::End) {
        self.metrics.errors[end.close().code].increment(1);
        self.push_with(|out| end.goodbye(out));
    }

    fn push_with(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut answers = self.answers.lock();
        write(&mut answers.frames);
        answers.count += 1;
        self.bytes.store(answers.frames.len(), Ordering::Relaxed);
    }

    /// How many bytes wait to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Gives the answers to `write`, which has to leave the buffer empty; returns how many frames they were.
    pub(crate) fn take(&self, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
        if self.bytes() == 0 {
            return 0;
        }
        let mut answers = self.answers.lock();
        write(&mut answers.frames);
        debug_assert!(answers.frames.is_empty(), "what is left would be sent twice");
        if answers.frames.capacity() > KEPT_BYTES_MAX {
            answers.frames = Vec::new();
        }
        self.bytes.store(0, Ordering::Relaxed);
        std::mem::take(&mut answers.count)
    }

    /// Notes a publish that is about to be submitted; returns its tag.
    pub(crate) fn begin(&self, pending: Pending) -> u32 {
        let mut answers = self.answers.lock();
        if let Some(tag) = answers.free.pop() {
            answers.pending[tag as usize] = pending;
            return tag;
        }
        answers.pending.push(pending);
        u32::try_from(answers.pending.len() - 1).expect("requests in flight are bounded")
    }

    /// Answers a publish. To be followed by [`Outbox::flushed`].
    pub(crate) fn answered(&self, tag: u32, bytes: usize, outcome: Outcome) {
        let mut answers = self.answers.lock();
        let Pending { request, records, since } = answers.pending[tag as usize];
        answers.free.push(tag);
        match outcome {
            Ok(Appended { first, last, time, duplicate }) => {
                if !duplicate {
                    answers.published.0 += u64::from(records);
                    answers.published.1 += bytes as u64;
                }
                let published = ServerFrame::Published(Published { request, first, last, time, duplicate });
                frame_into(&mut answers.frames, |out| published.encode_into(out));
            }
            Err(Refused { code, message }) => {
                self.metrics.errors[code].increment(1);
                let error = ServerFrame::Error(Fault::new(request, code, &message));
                frame_into(&mut answers.frames, |out| error.encode_into(out));
            }
        }
        answers.count += 1;
        self.bytes.store(answers.frames.len(), Ordering::Relaxed);
        self.done(bytes);
        drop(answers);
        if let Some(since) = since {
            self.metrics.publish_to_ack.record(since.elapsed());
        }
    }

    /// Answers a request that waited for a reading thread.
    pub(crate) fn answer(&self, request: RequestId, answer: &Result<ServerFrame<'_>, Refused>, bytes: usize) {
        self.push_with(|out| {
            match answer {
                Ok(frame) => frame_into(out, |out| frame.encode_into(out)),
                Err(why) => {
                    self.metrics.errors[why.code].increment(1);
                    let error = ServerFrame::Error(Fault::new(request, why.code, &why.message));
                    frame_into(out, |out| error.encode_into(out));
                }
            }
            self.done(bytes);
        });
    }

    /// All answers of a commit have been given.
    pub(crate) fn flushed(&self) {
        let (records, bytes) = std::mem::take(&mut self.answers.lock().published);
        if records > 0 {
            self.metrics.published_records[self.transport].increment(records);
            self.metrics.published_bytes[self.transport].increment(bytes);
        }
    }

    /// A request that waited for another thread has been answered. To be called while the answer cannot be taken yet:
    /// who has read it may send the next request at once, and must not find that it still counts.
    fn done(&self, bytes: usize) {
        self.answered_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    /// How many such requests have been answered, and the bytes they held.
    pub(crate) fn answered_so_far(&self) -> (u64, u64) {
        (self.answered.load(Ordering::SeqCst), self.answered_bytes.load(Ordering::Relaxed))
    }

    /// Notes that a reading thread is about to make an answer, unless one is making one already.
    pub(crate) fn begin_reading(&self) -> bool {
        !self.reading.swap(true, Ordering::AcqRel)
    }

    /// The answer has been made.
    pub(crate) fn end_reading(&self) {
        self.reading.store(false, Ordering::Release);
    }

    /// Wakes the session's task, unless it has been woken and has not looked yet.
    pub(crate) fn kick(&self) {
        if !self.kicked.swap(true, Ordering::SeqCst)
            && let Some(waker) = &*self.waker.lock()
        {
            waker.wake_by_ref();
        }
    }

    /// Whether the task has been woken since this was last asked; from now on it is woken through `cx`.
    pub(crate) fn take_kick(&self, cx: &Context<'_>) -> bool {
        {
            let mut waker = self.waker.lock();
            if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Says whether the task waits for answers to be given: then it has to be woken although they have been written.
    /// To be followed by another look at what it waits for.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::SeqCst);
    }

    /// See [`Outbox::set_waiting`].
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Says how many bytes the connection holds because its peer does not take them.
    pub(crate) fn hold(&self, bytes: usize) {
        let before = self.held.swap(bytes, Ordering::Relaxed);
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.budget.used.fetch_sub(before, Ordering::Relaxed);
    }

    /// How much to begin for a peer that takes `bytes` at its best.
    pub(crate) fn portion(&self, bytes: usize) -> usize {
        if self.budget.used() < self.budget.bytes_max { bytes } else { bytes.min(PORTION_BYTES_MIN) }
    }

    /// Asks the session to end because the server does.
    pub(crate) fn stop(&self, after: Duration) {
        let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX - 1);
        self.stop.store(after_ms.saturating_add(1), Ordering::SeqCst);
        self.kick();
    }

    /// Whether the server shuts down, and when to come back.
    pub(crate) fn stopped(&self) -> Option<Duration> {
        let after = self.stop.load(Ordering::SeqCst);
        (after > 0).then(|| Duration::from_millis(u64::from(after - 1)))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.hold(0);
    }
}
