//! Who makes commits: the committer's thread, or the thread of the only one who publishes just now.
//!
//! To wake a thread takes longer than all work on a small commit. So a session that publishes while nobody else does
//! commits on its own thread; whatever comes meanwhile is left to the committer's thread, and so is everything as soon as
//! several publish, who are committed together. That thread also watches: if a commit on another one takes long, it has
//! others do what that one would do.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::committer::{Committer, Step, address};
use super::{Shared, said};
use crate::lock::Mutex;
use crate::storage::engine::{Reply, Rouse};
use crate::storage::journal::Journal;

/// How long the committer waits before it looks whether the journal has become shorter.
const BEHIND_PERIOD: Duration = Duration::from_millis(20);

/// While a commit takes longer than this on average, in microseconds, it is none for a publisher's thread.
const COMMIT_HERE_MAX_US: u64 = 1000;

/// A submission of more than so many bytes of records is none for a publisher's thread: that reads what comes behind it
/// while the other one syncs.
const SUBMISSION_HERE_BYTES_MAX: usize = 16 << 10;

/// How often the committer's thread looks at a commit that another one makes: it is long when it is still the same one.
const WATCH_PERIOD: Duration = Duration::from_millis(5);

thread_local! {
    /// The seat in which this thread is.
    static SITS_IN: Cell<usize> = const { Cell::new(0) };
}

/// The committer, for one thread at a time.
pub(super) struct Seat {
    shared: Arc<Shared>,
    committer: Mutex<Option<Committer>>,
    /// How long a commit takes, in microseconds: a moving average of eight.
    commit_us: AtomicU64,
    /// When the last one ended, in microseconds since `origin`, and who alone was answered, or 0.
    ended_us: AtomicU64,
    answered_alone: AtomicUsize,
    origin: Instant,
    /// Counts commits on publishers' threads, twice each: odd while one is being made.
    here: AtomicU64,
    /// Whether the committer's thread watches these.
    watched: AtomicBool,
    /// Who is told when the one that is being made takes long.
    rouse: Mutex<Option<Arc<dyn Rouse>>>,
}

impl Seat {
    pub(super) fn new(shared: Arc<Shared>, committer: Committer) -> Self {
        Self {
            shared,
            committer: Mutex::new(Some(committer)),
            commit_us: AtomicU64::new(0),
            ended_us: AtomicU64::new(0),
            answered_alone: AtomicUsize::new(0),
            origin: Instant::now(),
            here: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            rouse: Mutex::default(),
        }
    }

    /// Whether this thread is within a commit of this log.
    pub(super) fn commits_here(&self) -> bool {
        SITS_IN.get() == std::ptr::from_ref(self).addr()
    }

    /// To be called by whoever has submitted so many bytes, and whose thread may be used.
    pub(super) fn see_to_it_here(&self, bytes: usize, reply: &Arc<dyn Reply>, rouse: &Arc<dyn Rouse>) {
        if !self.shared.queue.claim() {
            return;
        }
        if bytes > SUBMISSION_HERE_BYTES_MAX || !self.is_alone(reply) || !self.commit_here(rouse) {
            self.shared.queue.unpark();
        }
    }

    /// Whether commits are quick, and nobody else seems to publish.
    fn is_alone(&self, reply: &Arc<dyn Reply>) -> bool {
        let commit_us = self.commit_us.load(Ordering::Relaxed);
        commit_us <= COMMIT_HERE_MAX_US
            && (self.answered_alone.load(Ordering::Relaxed) == address(reply)
                || self.now_us() > self.ended_us.load(Ordering::Relaxed) + 2 * commit_us)
    }

    /// Makes a commit on this thread; whether nothing is left to do.
    fn commit_here(&self, rouse: &Arc<dyn Rouse>) -> bool {
        *self.rouse.lock() = Some(Arc::clone(rouse));
        self.here.fetch_add(1, Ordering::SeqCst);
        if !self.watched.swap(true, Ordering::SeqCst) {
            self.shared.queue.unpark();
        }
        let made = match self.committer.try_lock().as_deref_mut() {
            Some(Some(committer)) if !committer.must_wait() => {
                self.step(committer);
                true
            }
            _ => false,
        };
        self.here.fetch_add(1, Ordering::SeqCst);
        made && !self.shared.queue.rest()
    }

    /// The committer's thread: runs until the queue is closed and empty; gives back the journal.
    pub(super) fn run(&self) -> Journal {
        self.shared.queue.set_committer(std::thread::current());
        loop {
            // Never waited for: who has it is watched.
            let Some(mut seat) = self.committer.try_lock() else {
                self.rest();
                continue;
            };
            let committer = seat.as_mut().expect("only this thread takes it away");
            if committer.must_wait() {
                drop(seat);
                std::thread::park_timeout(BEHIND_PERIOD);
                continue;
            }
            match self.step(committer) {
                Step::Answered => {}
                Step::Idle => {
                    drop(seat);
                    self.rest();
                }
                Step::Closed => return seat.take().expect("it was there just now").into_journal(),
            }
        }
    }

    /// Sleeps until there is something to do for the committer's thread; watches commits on others.
    fn rest(&self) {
        let mut seen = None;
        loop {
            let here = self.here.load(Ordering::SeqCst);
            let is_being_made = here % 2 == 1;
            // Whoever makes it looks at what has come when he is done.
            if !is_being_made && self.shared.queue.rest() {
                return;
            }
            if seen.replace(here) == Some(here) {
                if is_being_made {
                    let rouse = self.rouse.lock().clone();
                    if let Some(rouse) = rouse {
                        rouse.rouse();
                    }
                } else {
                    // None was made since the last look: the next one wakes this thread.
                    self.watched.store(false, Ordering::SeqCst);
                    if self.here.load(Ordering::SeqCst) == here {
                        std::thread::park();
                        seen = None;
                        continue;
                    }
                    self.watched.store(true, Ordering::SeqCst);
                }
            }
            if is_being_made || self.watched.load(Ordering::SeqCst) {
                std::thread::park_timeout(WATCH_PERIOD);
            } else {
                std::thread::park();
            }
        }
    }

    fn step(&self, committer: &mut Committer) -> Step {
        let begun = Instant::now();
        let before = SITS_IN.replace(std::ptr::from_ref(self).addr());
        let step = catch_unwind(AssertUnwindSafe(|| committer.step()));
        SITS_IN.set(before);
        let step = step.unwrap_or_else(|panic| {
            self.shared.fail(format!("the committer has panicked: {}", said(&*panic)));
            Step::Answered
        });
        if step == Step::Answered {
            let taken_us = micros(begun.elapsed());
            let average = self.commit_us.load(Ordering::Relaxed);
            self.commit_us.store((7 * average + taken_us) / 8, Ordering::Relaxed);
            self.ended_us.store(self.now_us(), Ordering::Relaxed);
            self.answered_alone.store(committer.answered_alone.unwrap_or(0), Ordering::Relaxed);
        }
        step
    }

    fn now_us(&self) -> u64 {
        micros(self.origin.elapsed())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 8)
}
