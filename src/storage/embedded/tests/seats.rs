//! Commits on publishers' threads and on the committer's: whoever makes them, each publish has its answer.

use std::sync::atomic::AtomicU32;
use std::thread::ThreadId;
use std::time::Instant;

use super::committing::{record, started, wait_for};
use super::*;
use crate::storage::Rouse;

/// Counts how often it was told.
#[derive(Debug, Default)]
struct Told(AtomicU32);

impl Rouse for Told {
    fn rouse(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Which threads have answered.
#[derive(Debug, Default)]
struct Threads(Mutex<Vec<ThreadId>>);

impl Threads {
    fn count(&self) -> usize {
        self.0.lock().len()
    }

    fn last(&self) -> Option<ThreadId> {
        self.0.lock().last().copied()
    }
}

impl Reply for Threads {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        self.0.lock().extend(answers.iter().map(|_| std::thread::current().id()));
    }
}

fn memory() -> Arc<dyn BlockStore> {
    Arc::new(MemoryBlockStore::default())
}

/// One that publishes on its own thread.
struct Publishing<'a> {
    log: &'a Embedded,
    room: Arc<Room>,
    submission: Submission,
    publisher: PublisherId,
    seq: u64,
    rouse: Arc<dyn Rouse>,
}

impl<'a> Publishing<'a> {
    fn new(log: &'a Embedded, publisher: u8, reply: Arc<dyn Reply>, rouse: &Arc<Told>) -> Self {
        let room = log.room(&RoomName::new("one").expect("a name")).expect("a room");
        let (submission, rouse) = (Submission::new(reply), Arc::clone(rouse) as Arc<dyn Rouse>);
        Self { log, room, submission, publisher: PublisherId([publisher; 16]), seq: 0, rouse }
    }

    fn publish(&mut self) {
        let (area, hash) = record();
        self.seq += 1;
        self.submission.push(&self.room, &Arc::from(""), self.publisher, self.seq, None, 0, &area, &[hash]);
        self.log.submit_here(&mut self.submission, &self.rouse);
    }
}

#[test]
fn who_publishes_alone_commits_on_his_own_thread() {
    let log = started(options(1), memory());
    let threads = Arc::<Threads>::default();
    let mut publishing = Publishing::new(&log, 1, Arc::clone(&threads) as Arc<dyn Reply>, &Arc::default());
    let mut here = 0;
    for _ in 0..100 {
        let before = threads.count();
        publishing.publish();
        wait_for("the answer", || threads.count() > before);
        here += u32::from(threads.last() == Some(std::thread::current().id()));
    }
    // The committer's thread may be looking around, and then makes it.
    assert!(here > 0, "none of 100");
    log.close();
}

#[test]
fn a_log_whose_last_owner_is_dropped_in_his_own_commit_is_closed() {
    #[derive(Debug)]
    struct LastOwner(Mutex<Option<Arc<Embedded>>>, Arc<Threads>);
    impl Reply for LastOwner {
        fn answered(&self, answers: &[Answer], targets: Targets) {
            drop(self.0.lock().take());
            self.1.answered(answers, targets);
        }
    }
    let threads = Arc::<Threads>::default();
    wait_for("a commit by this thread", || {
        let log = Arc::new(started(options(1), memory()));
        let (shared, before) = (Arc::clone(&log.shared), threads.count());
        let owner = Arc::new(LastOwner(Mutex::new(Some(Arc::clone(&log))), Arc::clone(&threads)));
        let (seat, rouse) = (Arc::clone(&log.seat), Arc::<Told>::default() as Arc<dyn Rouse>);
        let room = log.room(&RoomName::new("one").expect("a name")).expect("a room");
        let (area, hash) = record();
        let mut submission = Submission::new(owner as Arc<dyn Reply>);
        submission.push(&room, &Arc::from(""), PublisherId([1; 16]), 1, None, 0, &area, &[hash]);
        // From here on the publisher alone holds the log, and the queue the publisher.
        drop(log);
        assert!(shared.queue.submit(&mut submission));
        seat.see_to_it_here(1, &submission.reply, &rouse);
        drop(submission);
        wait_for("the answer", || threads.count() > before);
        wait_for("the log is closed", || *shared.health.lock() == Health::Closed);
        threads.last() == Some(std::thread::current().id())
    });
}

#[test]
fn a_commit_that_takes_long_on_a_publishers_thread_rouses_others() {
    let log = started(options(1), memory());
    let (threads, told) = (Arc::<Threads>::default(), Arc::<Told>::default());
    let mut publishing = Publishing::new(&log, 1, Arc::clone(&threads) as Arc<dyn Reply>, &told);
    wait_for("a commit by this thread", || {
        let before = threads.count();
        publishing.publish();
        wait_for("the answer", || threads.count() > before);
        threads.last() == Some(std::thread::current().id())
    });
    assert_eq!(told.0.load(Ordering::SeqCst), 0, "quick commits disturb nobody");
    // Whoever answers is within the commit, and takes long.
    #[derive(Debug)]
    struct Slow(Arc<Told>, Arc<Threads>);
    impl Reply for Slow {
        fn answered(&self, answers: &[Answer], targets: Targets) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while self.0.0.load(Ordering::SeqCst) == 0 && Instant::now() < deadline {
                std::thread::yield_now();
            }
            self.1.answered(answers, targets);
        }
    }
    let slow = Arc::new(Slow(Arc::clone(&told), Arc::clone(&threads)));
    let mut slowly = Publishing::new(&log, 2, slow as Arc<dyn Reply>, &told);
    // The first that the seat does not know waits until nobody else has published for a moment.
    std::thread::sleep(Duration::from_millis(20));
    let before = threads.count();
    slowly.publish();
    assert_eq!((threads.count(), threads.last()), (before + 1, Some(std::thread::current().id())));
    assert!(told.0.load(Ordering::SeqCst) > 0, "nobody was told");
    // From now on the average is too long: the committer's thread makes the next one.
    publishing.publish();
    wait_for("the answer", || threads.count() > before + 1);
    assert_ne!(threads.last(), Some(std::thread::current().id()));
    log.close();
}

#[test]
fn publishers_and_the_thread_take_turns_and_nothing_is_left_or_made_twice() {
    seeds().into_iter().for_each(take_turns);
}

fn take_turns(seed: u64) {
    const PUBLISHERS: u8 = 3;
    const PUBLISHES: u32 = 1000;
    let log = started(options(1), memory());
    let (answers, told) = (Arc::<Answers>::default(), Arc::<Told>::default());
    std::thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let (log, answers, told) = (&log, &answers, &told);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed + u64::from(publisher));
                let mut publishing = Publishing::new(log, publisher, Arc::clone(answers) as Arc<dyn Reply>, told);
                for _ in 0..PUBLISHES {
                    publishing.publish();
                    if random.random_ratio(1, 50) {
                        std::thread::sleep(Duration::from_micros(random.random_range(1..500)));
                    }
                }
            });
        }
    });
    let all = usize::from(PUBLISHERS) * PUBLISHES as usize;
    wait_for("all answers", || answers.0.lock().len() >= all);
    let answers = answers.0.lock();
    let mut firsts: Vec<_> = answers.iter().map(|(_, outcome)| outcome.clone().expect("stored").first.0).collect();
    firsts.sort_unstable();
    assert!(firsts.iter().copied().eq(1..=all as u64), "seed {seed}");
    log.close();
}
