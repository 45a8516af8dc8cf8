//! Who makes commits: the committer's thread, or a worker that would sleep otherwise (see [`crate::turn`]).
//!
//! Whoever finds the committer at rest when he submits has to see to it that somebody goes to work. A worker makes one
//! commit, of all that has been read until then; what has come meanwhile it leaves to the committer's thread, so that
//! under load one thread reads while another syncs.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Shared;
use super::committer::{Committer, Step};
use crate::lock::Mutex;
use crate::storage::journal::Journal;
use crate::turn::{self, Chore};

/// How long the committer waits before it looks whether the journal has become shorter.
const BEHIND_PERIOD: Duration = Duration::from_millis(20);

/// While a commit takes longer than this on average, in microseconds, no worker makes any: it would be missed.
const BY_WORKERS_MAX_US: u64 = 1000;

thread_local! {
    static COMMITS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is within a commit.
pub(super) fn commits_here() -> bool {
    COMMITS.get()
}

/// The committer, for one thread at a time.
pub(super) struct Seat {
    shared: Arc<Shared>,
    committer: Mutex<Option<Committer>>,
    /// How long a commit takes, in microseconds: a moving average of eight.
    commit_us: AtomicU64,
}

impl Seat {
    pub(super) fn new(shared: Arc<Shared>, committer: Committer) -> Self {
        Self { shared, committer: Mutex::new(Some(committer)), commit_us: AtomicU64::new(0) }
    }

    /// To be called by whoever has submitted something.
    pub(super) fn see_to_it(self: &Arc<Self>) {
        if !self.shared.queue.claim() {
            return;
        }
        if self.commit_us.load(Ordering::Relaxed) > BY_WORKERS_MAX_US {
            self.leave();
        } else {
            turn::keep(self);
        }
    }

    /// The committer's thread: runs until the queue is closed and empty; gives back the journal.
    pub(super) fn run(&self) -> Journal {
        let queue = &self.shared.queue;
        queue.set_committer(std::thread::current());
        loop {
            let mut seat = self.committer.lock();
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
                    queue.wait();
                }
                Step::Closed => return seat.take().expect("it was there just now").into_journal(),
            }
        }
    }

    fn step(&self, committer: &mut Committer) -> Step {
        let begun = Instant::now();
        COMMITS.set(true);
        let step = committer.step();
        COMMITS.set(false);
        if step == Step::Answered {
            let taken_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX / 8);
            let average = self.commit_us.load(Ordering::Relaxed);
            self.commit_us.store((7 * average + taken_us) / 8, Ordering::Relaxed);
        }
        step
    }
}

impl Chore for Seat {
    fn run(self: Arc<Self>) {
        if let Some(mut seat) = self.committer.try_lock()
            && let Some(committer) = &mut *seat
            && !committer.must_wait()
        {
            self.step(committer);
            drop(seat);
            if !self.shared.queue.rest() {
                return;
            }
        }
        self.leave();
    }

    fn leave(&self) {
        self.shared.queue.unpark();
    }
}
