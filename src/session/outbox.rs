//! The answers of one session on their way out, and how its task is woken.
//!
//! Answers come from the connection's own task, from the committer and from the reading threads; each holds the
//! lock for as long as it takes to encode one. Whoever writes to the transport takes all of them at once.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::End;
use super::host::Host;
use crate::lock::Mutex;
use crate::metrics::{Metrics, Transport};
use crate::protocol::{Fault, Published, RequestId, ServerFrame, frame_into};
use crate::storage::{Answer, Appended, Refused};

/// What is begun for a peer while all peers together hold too much, in bytes.
const PORTION_BYTES_MIN: usize = 1 << 10;

/// An idle session keeps no larger buffer than this.
const KEPT_BYTES_MAX: usize = 4 << 10;

/// What a message that is not complete may take without being counted, in bytes: 64 KiB of it in a buffer that has grown by
/// doubling.
const PARTIAL_BYTES_MIN: usize = 128 << 10;

thread_local! {
    static ENCODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The answers of one session.
#[derive(Debug)]
pub(crate) struct Outbox {
    answers: Mutex<Answers>,
    /// A publish without an answer that is timed, and when it came.
    timed: Mutex<Option<(RequestId, Instant)>>,
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
    /// What a message takes that is not complete, in bytes; and what of it counts.
    partial: AtomicUsize,
    over: AtomicUsize,
    /// Whether it has gone on since the server last looked, and whether more of it is not read.
    goes_on: AtomicBool,
    paused: AtomicBool,
    crowded_out: AtomicBool,
    host: Arc<Host>,
    /// 0, or 1 more than the milliseconds after which to come back: the server shuts down.
    stop: AtomicU32,
    metrics: Arc<Metrics>,
    transport: Transport,
}

#[derive(Debug, Default)]
struct Answers {
    frames: Vec<u8>,
    count: u64,
}

impl Outbox {
    pub(crate) fn new(metrics: Arc<Metrics>, transport: Transport, host: Arc<Host>) -> Self {
        Self {
            answers: Mutex::default(),
            timed: Mutex::default(),
            bytes: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            answered_bytes: AtomicU64::new(0),
            reading: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            waker: Mutex::new(None),
            waiting: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            partial: AtomicUsize::new(0),
            over: AtomicUsize::new(0),
            goes_on: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            crowded_out: AtomicBool::new(false),
            host,
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
    pub(crate) fn goodbye(&self, end: &End) {
        self.metrics.errors[end.close().code].increment(1);
        self.push_with(|out| end.goodbye(out));
    }

    fn push_with(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut answers = self.answers.lock();
        write(&mut answers.frames);
        answers.count += 1;
        self.bytes.store(answers.frames.len(), Ordering::Relaxed);
    }

    /// What the connections of this server share.
    pub(crate) fn host(&self) -> &Host {
        &self.host
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

    /// Times the answer to a publish that is about to be submitted, unless another one is being timed.
    pub(crate) fn time(&self, request: RequestId) {
        self.timed.lock().get_or_insert_with(|| (request, Instant::now()));
    }

    /// Answers publishes, whose tags are their requests. Wakes nobody.
    pub(crate) fn answered(&self, published: &[Answer]) {
        ENCODED.with_borrow_mut(|encoded| {
            encoded.clear();
            self.encode(published, encoded);
        });
        let mut timed = self.timed.lock();
        if let Some((request, since)) = *timed
            && published.iter().any(|answer| answer.tag == request)
        {
            *timed = None;
            self.metrics.publish_to_ack.record(since.elapsed());
        }
    }

    /// Encodes answers before they are put where others look, who would have to wait meanwhile.
    fn encode(&self, published: &[Answer], encoded: &mut Vec<u8>) {
        let (mut records, mut bytes, mut bytes_answered) = (0, 0, 0);
        for answer in published {
            let request = answer.tag;
            bytes_answered += answer.bytes as u64;
            match &answer.outcome {
                &Ok(Appended { first, last, time, duplicate }) => {
                    if !duplicate {
                        records += u64::from(answer.count);
                        bytes += answer.bytes as u64;
                    }
                    let published = ServerFrame::Published(Published { request, first, last, time, duplicate });
                    frame_into(encoded, |out| published.encode_into(out));
                }
                Err(Refused { code, message }) => {
                    self.metrics.errors[*code].increment(1);
                    let error = ServerFrame::Error(Fault::new(request, *code, message));
                    frame_into(encoded, |out| error.encode_into(out));
                }
            }
        }
        let mut answers = self.answers.lock();
        answers.frames.extend_from_slice(encoded);
        answers.count += published.len() as u64;
        self.bytes.store(answers.frames.len(), Ordering::Relaxed);
        self.done(published.len() as u64, bytes_answered);
        drop(answers);
        if records > 0 {
            self.metrics.published_records[self.transport].increment(records);
            self.metrics.published_bytes[self.transport].increment(bytes);
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
            self.done(1, bytes as u64);
        });
    }

    /// So many requests that waited for other threads have been answered. To be called while the answer cannot be taken yet:
    /// who has read it may send the next request at once, and must not find that it still counts.
    fn done(&self, requests: u64, bytes: u64) {
        self.answered_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.answered.fetch_add(requests, Ordering::SeqCst);
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
        // Only the task says so, and nearly always what holds already.
        if self.waiting.load(Ordering::Relaxed) != waiting {
            self.waiting.store(waiting, Ordering::SeqCst);
        }
    }

    /// See [`Outbox::set_waiting`].
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Says how many bytes the connection holds because its peer does not take them.
    pub(crate) fn hold(&self, bytes: usize) {
        self.host.send.hold(&self.held, bytes);
    }

    /// Says how much memory a message takes that is not complete, in bytes: after each read, as long as one is under way.
    pub(crate) fn receives(&self, bytes: usize) {
        if bytes == 0 && self.partial.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.partial.store(bytes, Ordering::Relaxed);
        self.goes_on.store(true, Ordering::Relaxed);
        self.host.receive.hold(&self.over, bytes.saturating_sub(PARTIAL_BYTES_MIN));
    }

    /// Whether more of a message may be received: not of a long one while all together hold too much.
    pub(crate) fn may_receive(&self) -> bool {
        let may = self.partial.load(Ordering::Relaxed) < PARTIAL_BYTES_MIN || !self.host.receive.is_used_up();
        if self.paused.load(Ordering::Relaxed) == may {
            self.paused.store(!may, Ordering::Relaxed);
        }
        may
    }

    /// Of a long message that has not gone on since this was last asked: whether it is the server that does not read, and
    /// what of it counts.
    pub(crate) fn stale(&self) -> Option<(bool, usize)> {
        let goes_on = self.goes_on.swap(false, Ordering::Relaxed);
        let over = self.over.load(Ordering::Relaxed);
        let stays = over > 0 && !goes_on && !self.crowded_out.load(Ordering::Relaxed);
        stays.then(|| (self.paused.load(Ordering::Relaxed), over))
    }

    /// Asks the session to end, since its message takes memory that others need.
    pub(crate) fn crowd_out(&self) {
        self.crowded_out.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// How much to begin for a peer that takes `bytes` at its best.
    pub(crate) fn portion(&self, bytes: usize) -> usize {
        if self.host.send.is_used_up() { bytes.min(PORTION_BYTES_MIN) } else { bytes }
    }

    /// Asks the session to end because the server does.
    pub(crate) fn stop(&self, after: Duration) {
        let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX - 1);
        self.stop.store(after_ms.saturating_add(1), Ordering::SeqCst);
        self.kick();
    }

    /// Why the session is to end, if somebody has asked it to. What was accepted is committed and answered first.
    pub(crate) fn asked_to_end(&self) -> Option<End> {
        let after = self.stop.load(Ordering::SeqCst);
        if after > 0 {
            return Some(End::ShuttingDown { after: Duration::from_millis(u64::from(after - 1)) });
        }
        let crowded_out = self.crowded_out.load(Ordering::SeqCst);
        crowded_out.then(|| End::Crowded { bytes_max: self.host.receive.bytes_max() })
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.hold(0);
        self.receives(0);
    }
}
