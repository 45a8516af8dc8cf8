//! The fixed pool of threads that read from the store, one block per turn: for sessions that open their rooms first, in
//! the order in which they came, then for those that read much, in turns, and for history requests below both.
//!
//! A session with a thousand lagging rooms gets the same share as a session with one, and neither delays who has just come.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

/// A visitor has so many turns before it is one of those that read much.
const VISIT_TURNS: u32 = 128;

/// After this many turns of visitors those that read much get one.
const VISIT_TURNS_PER_OTHER_TURN: u32 = 4;

/// A session that has wanted nothing for so long comes anew.
const ABSENCE: Duration = Duration::from_millis(200);

/// Sessions that are not looked through for those that have gone.
const VISITS_MIN: usize = 64;

/// Live readers. A session that opens its rooms needs a few blocks and is a visitor: those are served in the order in which
/// they came, one to its end, since what one needs next is close to what it needed last, and all are done sooner. Who reads
/// on becomes one of the others, who have a turn each.
#[derive(Default)]
struct Live {
    visits: HashMap<SessionKey, Visit>,
    /// The jobs of visitors, by the numbers of their visits.
    visitors: BTreeMap<u64, (SessionKey, VecDeque<Job>)>,
    others: Turns,
    /// How many visits there ever were.
    begun: u64,
    /// Turns of visitors that the others have waited for.
    waited: u32,
    /// Visits that were left when they were last looked through.
    left: usize,
}

struct Visit {
    number: u64,
    turns: u32,
    /// Turns that are being taken now.
    running: u32,
    /// When a turn last began or ended.
    last: Instant,
}

impl Live {
    /// Adds a job: a visitor's behind its others, or, if it has been begun, before them.
    fn push(&mut self, session: SessionKey, job: Job, begun: bool, now: Instant) {
        self.forget_absent(now);
        let waits = |number| self.others.jobs.contains_key(&session) || self.visitors.contains_key(number);
        let known = self.visits.get(&session);
        if known.is_none_or(|visit| !begun && !waits(&visit.number) && visit.is_over(now)) {
            self.begun += 1;
            self.visits.insert(session, Visit { number: self.begun, turns: 0, running: 0, last: now });
        }
        let visit = &self.visits[&session];
        if visit.turns >= VISIT_TURNS {
            self.others.push(session, job);
            return;
        }
        let (_, jobs) = self.visitors.entry(visit.number).or_insert_with(|| (session, VecDeque::new()));
        if begun {
            jobs.push_front(job);
        } else {
            jobs.push_back(job);
        }
    }

    fn pop(&mut self, now: Instant) -> Option<(SessionKey, Job)> {
        if self.visitors.is_empty() || self.waited >= VISIT_TURNS_PER_OTHER_TURN {
            self.waited = 0;
            if let Some((session, job)) = self.others.pop() {
                self.turn_of(session, now);
                return Some((session, job));
            }
        }
        let (&number, (session, jobs)) = self.visitors.iter_mut().next()?;
        let session = *session;
        let job = jobs.pop_front().expect("a visitor that waits has jobs");
        self.waited += u32::from(!self.others.order.is_empty());
        if self.turn_of(session, now) >= VISIT_TURNS || self.visitors[&number].1.is_empty() {
            let (_, left) = self.visitors.remove(&number).expect("it was there just now");
            left.into_iter().for_each(|job| self.others.push(session, job));
        }
        Some((session, job))
    }

    /// Counts a turn of a session; how many its visit has had.
    fn turn_of(&mut self, session: SessionKey, now: Instant) -> u32 {
        let visit = self.visits.get_mut(&session).expect("a session that waits is known");
        (visit.turns, visit.last) = (visit.turns.saturating_add(1), now);
        visit.running += 1;
        visit.turns
    }

    /// A turn of a session has ended.
    fn turn_ended(&mut self, session: SessionKey, now: Instant) {
        // A pool that has been closed knows nobody any more.
        if let Some(visit) = self.visits.get_mut(&session) {
            (visit.running, visit.last) = (visit.running.saturating_sub(1), now);
        }
    }

    /// Forgets visits that are over, when there may be as many of them as others.
    fn forget_absent(&mut self, now: Instant) {
        if self.visits.len() < VISITS_MIN.max(2 * self.left) {
            return;
        }
        let Self { visits, visitors, others, .. } = self;
        visits.retain(|session, visit| {
            !visit.is_over(now) || visitors.contains_key(&visit.number) || others.jobs.contains_key(session)
        });
        self.left = visits.len();
    }
}

impl Visit {
    fn is_over(&self, now: Instant) -> bool {
        // Who is served is not absent, however long that takes.
        self.running == 0 && now.duration_since(self.last) > ABSENCE
    }
}

/// Jobs of sessions: one of each in turn.
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
    live: Live,
    history: Turns,
    live_turns: u32,
    /// How many jobs wait.
    waiting: usize,
    closed: bool,
}

impl Queue {
    fn pop(&mut self, now: Instant) -> Option<(Class, SessionKey, Job)> {
        let popped = self.next(now);
        self.waiting -= usize::from(popped.is_some());
        popped
    }

    fn next(&mut self, now: Instant) -> Option<(Class, SessionKey, Job)> {
        if self.live_turns < LIVE_TURNS_PER_HISTORY_TURN
            && let Some((session, job)) = self.live.pop(now)
        {
            self.live_turns += 1;
            return Some((Class::Live, session, job));
        }
        self.live_turns = 0;
        if let Some((session, job)) = self.history.pop() {
            return Some((Class::History, session, job));
        }
        self.live.pop(now).map(|(session, job)| (Class::Live, session, job))
    }

    /// A turn has ended; `job` wants another one.
    fn turn_ended(&mut self, class: Class, session: SessionKey, job: Option<Job>, now: Instant) {
        if let Some(job) = job {
            self.push(class, session, job, true, now);
        }
        if class == Class::Live {
            self.live.turn_ended(session, now);
        }
    }

    /// Adds a job, a new one or one that wants another turn.
    fn push(&mut self, class: Class, session: SessionKey, job: Job, begun: bool, now: Instant) {
        self.waiting += 1;
        match class {
            Class::Live => self.live.push(session, job, begun, now),
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
        // Dropped, should one of the threads not start, it ends the others.
        let mut pool = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            #[cfg(test)]
            told: None,
        };
        for number in 0..threads.max(1) {
            let (builder, shared) = (std::thread::Builder::new(), Arc::clone(&shared));
            pool.threads.push(builder.name(format!("roomlog-read-{number}")).spawn(move || run(&shared))?);
        }
        Ok(pool)
    }

    /// A pool without threads: `told` is called when there is work, which is done by [`Pool::turn`].
    #[cfg(test)]
    pub(crate) fn stepped(told: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { shared: Arc::default(), threads: Vec::new(), told: Some(told) }
    }

    /// One turn on this thread; whether there was one to be had.
    #[cfg(test)]
    pub(crate) fn turn(&self) -> bool {
        let popped = self.shared.queue.lock().pop(Instant::now());
        let Some((class, session, mut job)) = popped else { return false };
        let again = job() == Turn::Again;
        self.shared.queue.lock().turn_ended(class, session, again.then_some(job), Instant::now());
        true
    }

    /// How many jobs wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.shared.queue.lock().waiting
    }

    /// Adds a job behind the others of its session.
    pub(crate) fn submit(&self, class: Class, session: SessionKey, job: Job) {
        let now = Instant::now();
        let mut queue = self.shared.queue.lock();
        queue.push(class, session, job, false, now);
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
        let Some((class, session, mut job)) = queue.pop(Instant::now()) else {
            shared.work.wait(&mut queue);
            continue;
        };
        drop(queue);
        // A job that panics is over. The thread is not: others wait for it.
        let turn = catch_unwind(AssertUnwindSafe(&mut job)).unwrap_or_else(|_| {
            tracing::error!("a reading thread has panicked, what it read for is given up");
            Turn::Done
        });
        // What it holds may be the last of a broker, and then this ends the threads.
        let job = (turn == Turn::Again).then_some(job);
        queue = shared.queue.lock();
        queue.turn_ended(class, session, job, Instant::now());
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

    use super::*;

    fn note(order: &mpsc::Sender<(SessionKey, u32)>, session: SessionKey, mut turns: u32) -> Job {
        let order = order.clone();
        Box::new(move || {
            let _ = order.send((session, turns));
            turns -= 1;
            if turns == 0 { Turn::Done } else { Turn::Again }
        })
    }

    /// A queue whose jobs are run one after the other, and a log of whose they were.
    struct Stepped {
        queue: Queue,
        order: mpsc::Sender<(SessionKey, u32)>,
        seen: mpsc::Receiver<(SessionKey, u32)>,
        now: Instant,
    }

    impl Stepped {
        fn new() -> Self {
            let (order, seen) = mpsc::channel();
            Self { queue: Queue::default(), order, seen, now: Instant::now() }
        }

        fn submit(&mut self, class: Class, session: SessionKey, turns: u32) {
            let job = note(&self.order, session, turns);
            self.queue.push(class, session, job, false, self.now);
        }

        /// Whose the next turns are.
        fn run(&mut self, turns: usize) -> Vec<SessionKey> {
            for _ in 0..turns {
                let Some((class, session, mut job)) = self.queue.pop(self.now) else { break };
                let again = job() == Turn::Again;
                self.queue.turn_ended(class, session, again.then_some(job), self.now);
            }
            self.seen.try_iter().map(|(session, _)| session).collect()
        }

        /// Makes a session one that reads much.
        fn read_much(&mut self, session: SessionKey) {
            self.submit(Class::Live, session, VISIT_TURNS);
            assert_eq!(self.run(VISIT_TURNS as usize), vec![session; VISIT_TURNS as usize]);
        }
    }

    #[test]
    fn who_is_being_served_is_not_absent_however_long_that_takes() {
        let mut stepped = Stepped::new();
        stepped.submit(Class::Live, 7, 1);
        let (class, session, mut job) = stepped.queue.pop(stepped.now).expect("it was submitted");
        stepped.submit(Class::Live, 3, 1);
        stepped.now += 2 * ABSENCE;
        stepped.submit(Class::Live, 7, 1);
        assert_eq!(job(), Turn::Done);
        stepped.queue.turn_ended(class, session, None, stepped.now);
        assert_eq!(stepped.run(9), [7, 7, 3]);
    }

    #[test]
    fn who_has_come_is_served_to_the_end_in_the_order_of_coming() {
        let mut stepped = Stepped::new();
        for session in [7, 3] {
            stepped.submit(Class::Live, session, 2);
            stepped.submit(Class::Live, session, 1);
        }
        assert_eq!(stepped.run(4), [7, 7, 7, 3]);
        // It goes on where it was although others have come meanwhile.
        stepped.submit(Class::Live, 7, 1);
        stepped.submit(Class::Live, 1, 1);
        assert_eq!(stepped.run(9), [7, 3, 3, 1]);
        // After a while it comes anew.
        stepped.now += 2 * ABSENCE;
        for session in [1, 7] {
            stepped.submit(Class::Live, session, 1);
        }
        assert_eq!(stepped.run(9), [1, 7]);
    }

    #[test]
    fn those_that_read_much_take_turns_however_many_jobs_each_has() {
        let mut stepped = Stepped::new();
        stepped.read_much(1);
        stepped.read_much(2);
        for _ in 0..3 {
            stepped.submit(Class::Live, 1, 1);
        }
        stepped.submit(Class::Live, 2, 2);
        assert_eq!(stepped.run(9), [1, 2, 1, 2, 1]);
    }

    #[test]
    fn those_that_read_much_wait_for_who_has_come_but_are_not_starved() {
        let mut stepped = Stepped::new();
        stepped.read_much(1);
        stepped.submit(Class::Live, 1, 9);
        stepped.submit(Class::Live, 2, 9);
        let visits = VISIT_TURNS_PER_OTHER_TURN as usize;
        let expected: Vec<_> = [vec![2; visits], vec![1], vec![2; visits], vec![1]].concat();
        assert_eq!(stepped.run(expected.len()), expected);
    }

    #[test]
    fn a_visit_ends_while_there_are_jobs_left() {
        let mut stepped = Stepped::new();
        stepped.submit(Class::Live, 1, 2 * VISIT_TURNS);
        stepped.submit(Class::Live, 2, 1);
        let seen = stepped.run(VISIT_TURNS as usize + 3);
        assert_eq!(seen[VISIT_TURNS as usize..], [2, 1, 1]);
        assert_eq!(stepped.run(usize::MAX).len(), VISIT_TURNS as usize - 2);
        assert_eq!(stepped.queue.waiting, 0);
    }

    #[test]
    fn sessions_that_are_gone_are_forgotten() {
        let mut stepped = Stepped::new();
        for session in 0..10_000 {
            stepped.submit(Class::Live, session, 1);
            stepped.run(1);
            stepped.now += ABSENCE / 10;
        }
        assert!(stepped.queue.live.visits.len() <= VISITS_MIN, "{}", stepped.queue.live.visits.len());
    }

    #[test]
    fn history_waits_for_live_readers_but_is_not_starved() {
        let mut stepped = Stepped::new();
        stepped.submit(Class::History, 9, 1);
        for session in 0..20 {
            stepped.submit(Class::Live, session + 100, 1);
        }
        let seen = stepped.run(usize::MAX);
        assert_eq!(seen.iter().position(|session| *session == 9), Some(LIVE_TURNS_PER_HISTORY_TURN as usize));
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
