//! The fixed pool of threads that read from the store: one block per turn, in turns over sessions, and history
//! requests below live readers.
//!
//! A session with a thousand lagging rooms gets the same share as a session with one.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

/// Whose turn it is.
pub(crate) type SessionKey = u64;

/// How urgent a job is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// A reader that follows a room.
    Live,
    /// A page that somebody asked for.
    History,
}

/// What a job wants after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// Another one.
    Again,
    /// Nothing.
    Done,
}

/// A job: each call reads one block at most.
pub(crate) type Job = Box<dyn FnMut() -> Turn + Send>;

/// After this many turns of live readers a history request gets one, if there is any.
const LIVE_TURNS_PER_HISTORY_TURN: u32 = 8;

#[derive(Default)]
struct Turns {
    order: VecDeque<SessionKey>,
    jobs: HashMap<SessionKey, VecDeque<Job>>,
}

impl Turns {
    fn push(&mut self, session: SessionKey, job: Job) {
        let jobs = self.jobs.entry(session).or_default();
        if jobs.is_empty() {
            self.order.push_back(session);
        }
        jobs.push_back(job);
    }

    fn pop(&mut self) -> Option<(SessionKey, Job)> {
        let session = self.order.pop_front()?;
        let jobs = self.jobs.get_mut(&session).expect("a session in the order has jobs");
        let job = jobs.pop_front().expect("a session in the order has jobs");
        if jobs.is_empty() {
            self.jobs.remove(&session);
        } else {
            self.order.push_back(session);
        }
        Some((session, job))
    }
}

#[derive(Default)]
struct Queue {
    live: Turns,
    history: Turns,
    live_turns: u32,
    /// How many jobs wait.
    waiting: usize,
    closed: bool,
}

impl Queue {
    fn pop(&mut self) -> Option<(Class, SessionKey, Job)> {
        let popped = self.next();
        self.waiting -= usize::from(popped.is_some());
        popped
    }

    fn next(&mut self) -> Option<(Class, SessionKey, Job)> {
        if self.live_turns < LIVE_TURNS_PER_HISTORY_TURN
            && let Some((session, job)) = self.live.pop()
        {
            self.live_turns += 1;
            return Some((Class::Live, session, job));
        }
        self.live_turns = 0;
        if let Some((session, job)) = self.history.pop() {
            return Some((Class::History, session, job));
        }
        self.live.pop().map(|(session, job)| (Class::Live, session, job))
    }

    fn push(&mut self, class: Class, session: SessionKey, job: Job) {
        self.waiting += 1;
        match class {
            Class::Live => self.live.push(session, job),
            Class::History => self.history.push(session, job),
        }
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

impl Shared {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

thread_local! {
    /// The pool that this thread belongs to.
    static POOL_OF_THREAD: Cell<usize> = const { Cell::new(0) };
}

/// The threads. Dropped, they finish the turn they are in and end; jobs that wait are dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Who is told of work where there are no threads.
    #[cfg(test)]
    told: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Pool {
    /// Starts the threads.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let threads = (0..threads.max(1))
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name(format!("roomlog-read-{number}")).spawn(move || run(&shared))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            shared,
            threads,
            #[cfg(test)]
            told: None,
        })
    }

    /// A pool without threads: `told` is called when there is work, which is done by [`Pool::turn`].
    #[cfg(test)]
    pub(crate) fn stepped(told: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { shared: Arc::default(), threads: Vec::new(), told: Some(told) }
    }

    /// One turn on this thread; whether there was one to be had.
    #[cfg(test)]
    pub(crate) fn turn(&self) -> bool {
        let popped = self.shared.queue.lock().pop();
        let Some((class, session, mut job)) = popped else { return false };
        if job() == Turn::Again {
            self.shared.queue.lock().push(class, session, job);
        }
        true
    }

    /// How many jobs wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.shared.queue.lock().waiting
    }

    /// Adds a job behind the others of its session.
    pub(crate) fn submit(&self, class: Class, session: SessionKey, job: Job) {
        let mut queue = self.shared.queue.lock();
        queue.push(class, session, job);
        // A thread of the pool looks for the next job when it is done with its own, and has at hand what this one needs:
        // another thread is woken only if there is more than that.
        let is_next_here = queue.waiting == 1 && POOL_OF_THREAD.get() == self.shared.address();
        drop(queue);
        if !is_next_here {
            self.shared.work.notify_one();
        }
        #[cfg(test)]
        if let Some(told) = &self.told {
            told();
        }
    }
}

fn run(shared: &Shared) {
    // They are more than there are cores, to wait for the disk; those who read the past must not delay what is live.
    crate::storage::stand_back();
    POOL_OF_THREAD.set(shared.address());
    let mut queue = shared.queue.lock();
    loop {
        if queue.closed {
            return;
        }
        let Some((class, session, mut job)) = queue.pop() else {
            shared.work.wait(&mut queue);
            continue;
        };
        drop(queue);
        // A job that panics is over. The thread is not: others wait for it.
        let turn = catch_unwind(AssertUnwindSafe(&mut job)).unwrap_or_else(|_| {
            tracing::error!("a reading thread has panicked, what it read for is given up");
            Turn::Done
        });
        if turn == Turn::Done {
            // What it holds may be the last of a broker, and then this ends the threads.
            drop(job);
            queue = shared.queue.lock();
        } else {
            queue = shared.queue.lock();
            queue.push(class, session, job);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let jobs = {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            (std::mem::take(&mut queue.live), std::mem::take(&mut queue.history))
        };
        self.shared.work.notify_all();
        drop(jobs);
        for thread in self.threads.drain(..) {
            // The last handle of a broker may be dropped by one of these threads itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn note(order: &mpsc::Sender<(SessionKey, u32)>, session: SessionKey, mut turns: u32) -> Job {
        let order = order.clone();
        Box::new(move || {
            let _ = order.send((session, turns));
            turns -= 1;
            if turns == 0 { Turn::Done } else { Turn::Again }
        })
    }

    #[test]
    fn sessions_take_turns_however_many_jobs_each_has() {
        let (order, seen) = mpsc::channel();
        let mut queue = Queue::default();
        for _ in 0..3 {
            queue.push(Class::Live, 1, note(&order, 1, 1));
        }
        queue.push(Class::Live, 2, note(&order, 2, 1));
        while let Some((_, _, mut job)) = queue.pop() {
            job();
        }
        drop((order, queue));
        assert_eq!(seen.iter().map(|(session, _)| session).collect::<Vec<_>>(), [1, 2, 1, 1]);
    }

    #[test]
    fn history_waits_for_live_readers_but_is_not_starved() {
        let (order, seen) = mpsc::channel();
        let mut queue = Queue::default();
        queue.push(Class::History, 9, note(&order, 9, 1));
        for session in 0..20 {
            queue.push(Class::Live, session + 100, note(&order, session + 100, 1));
        }
        while let Some((_, _, mut job)) = queue.pop() {
            job();
        }
        drop((order, queue));
        assert_eq!(seen.iter().position(|(session, _)| session == 9), Some(LIVE_TURNS_PER_HISTORY_TURN as usize));
    }

    #[test]
    fn a_job_gets_as_many_turns_as_it_asks_for() {
        let pool = Pool::start(2).expect("threads can be started");
        let (order, seen) = mpsc::channel();
        pool.submit(Class::Live, 1, note(&order, 1, 3));
        drop(order);
        assert_eq!(seen.iter().map(|(_, turn)| turn).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn what_a_job_submits_is_done_by_its_thread_or_by_others_beside_it() {
        let pool = Arc::new(Pool::start(2).expect("threads can be started"));
        let (here, (done, all)) = (Arc::downgrade(&pool), mpsc::channel());
        let first = move || {
            let pool = here.upgrade().expect("the test holds it");
            let (meet, met) = mpsc::channel();
            pool.submit(Class::Live, 2, note(&done, 2, 1));
            pool.submit(
                Class::Live,
                3,
                Box::new(move || {
                    let _ = meet.send(());
                    Turn::Done
                }),
            );
            // This thread does not look for a job before that: another one has been woken.
            met.recv_timeout(Duration::from_secs(60)).expect("another thread takes one");
            let _ = done.send((1, 1));
            Turn::Done
        };
        pool.submit(Class::Live, 1, Box::new(first));
        let mut sessions: Vec<_> = all.iter().take(2).map(|(session, _)| session).collect();
        sessions.sort_unstable();
        assert_eq!(sessions, [1, 2]);
    }

    #[test]
    fn a_job_that_panics_leaves_the_thread_to_the_others() {
        let pool = Pool::start(1).expect("threads can be started");
        pool.submit(Class::Live, 1, Box::new(|| panic!("as it is meant to be")));
        let (order, seen) = mpsc::channel();
        pool.submit(Class::Live, 1, note(&order, 1, 1));
        assert_eq!(seen.recv_timeout(Duration::from_secs(60)), Ok((1, 1)));
    }

    #[test]
    fn a_pool_may_end_with_a_job_that_is_its_last_owner() {
        struct Last(#[allow(dead_code)] Arc<Pool>, #[allow(dead_code)] mpsc::Sender<()>);
        let pool = Arc::new(Pool::start(1).expect("threads can be started"));
        let (ended, end) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let last = Last(Arc::clone(&pool), ended);
        let job = move || {
            let _ = (&last, may_go.recv());
            Turn::Done
        };
        pool.submit(Class::Live, 1, Box::new(job));
        drop(pool);
        go.send(()).expect("the job waits");
        assert_eq!(end.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
