//! Commits by workers that would sleep, and by the committer's thread: whoever makes them, each publish has its answer.

use std::thread::ThreadId;

use super::committing::{record, started, submit_one, wait_for};
use super::*;
use crate::turn;

/// Which threads have answered.
#[derive(Debug, Default)]
struct Threads(Mutex<Vec<ThreadId>>);

impl Reply for Threads {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        self.0.lock().extend(answers.iter().map(|_| std::thread::current().id()));
    }
}

fn memory() -> Arc<dyn BlockStore> {
    Arc::new(MemoryBlockStore::default())
}

#[test]
fn a_worker_that_would_sleep_makes_the_commit() {
    let log = started(options(1), memory());
    let threads = Arc::<Threads>::default();
    turn::before_sleep();
    // The committer's thread is at rest only when it has got there, and the keeper may have looked just now.
    wait_for("a commit by this thread", || {
        let before = threads.0.lock().len();
        let this_turn = turn::begin();
        submit_one(&log, Arc::clone(&threads) as Arc<dyn Reply>);
        drop(this_turn);
        turn::before_sleep();
        wait_for("the answer", || threads.0.lock().len() > before);
        threads.0.lock().last() == Some(&std::thread::current().id())
    });
    log.close();
}

#[test]
fn what_a_worker_forgets_is_committed_all_the_same() {
    let log = started(options(1), memory());
    let threads = Arc::<Threads>::default();
    turn::before_sleep();
    for _ in 0..3 {
        let before = threads.0.lock().len();
        let this_turn = turn::begin();
        submit_one(&log, Arc::clone(&threads) as Arc<dyn Reply>);
        drop(this_turn);
        // It blocks, and never tells that it sleeps.
        wait_for("the answer", || threads.0.lock().len() > before);
    }
    log.close();
}

#[test]
fn a_log_whose_last_owner_is_dropped_in_a_workers_commit_is_closed() {
    #[derive(Debug)]
    struct LastOwner(Mutex<Option<Arc<Embedded>>>, Arc<Threads>);
    impl Reply for LastOwner {
        fn answered(&self, answers: &[Answer], targets: Targets) {
            drop(self.0.lock().take());
            self.1.answered(answers, targets);
        }
    }
    let threads = Arc::<Threads>::default();
    turn::before_sleep();
    wait_for("a commit by this thread", || {
        let log = Arc::new(started(options(1), memory()));
        let (shared, before) = (Arc::clone(&log.shared), threads.0.lock().len());
        // From here on the publisher alone holds the log, and the queue the publisher.
        let this_turn = turn::begin();
        let owner = Arc::new(LastOwner(Mutex::new(Some(Arc::clone(&log))), Arc::clone(&threads)));
        submit_one(&*log, owner);
        drop((log, this_turn));
        turn::before_sleep();
        wait_for("the answer", || threads.0.lock().len() > before);
        wait_for("the log is closed", || *shared.health.lock() == Health::Closed);
        threads.0.lock().last() == Some(&std::thread::current().id())
    });
}

#[test]
fn workers_and_the_thread_take_turns_and_nothing_is_left_or_made_twice() {
    seeds().into_iter().for_each(take_turns);
}

fn take_turns(seed: u64) {
    const WORKERS: u8 = 3;
    const PUBLISHES: u32 = 1000;
    let log = started(options(1), memory());
    let answers = Arc::<Answers>::default();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (log, answers) = (&log, &answers);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed + u64::from(worker));
                let (area, hash) = record();
                let room = log.room(&RoomName::new("one").expect("a name")).expect("a room");
                let mut submission = Submission::new(Arc::clone(answers) as Arc<dyn Reply>);
                for seq in 1..=u64::from(PUBLISHES) {
                    let this_turn = turn::begin();
                    submission.push(&room, &Arc::from(""), PublisherId([worker; 16]), seq, None, 0, &area, &[hash]);
                    log.submit(&mut submission);
                    drop(this_turn);
                    if random.random_ratio(1, 2) {
                        turn::before_sleep();
                    }
                    if random.random_ratio(1, 50) {
                        std::thread::sleep(Duration::from_micros(random.random_range(1..300)));
                    }
                }
            });
        }
    });
    let all = usize::from(WORKERS) * PUBLISHES as usize;
    wait_for("all answers", || answers.0.lock().len() >= all);
    let mut firsts: Vec<_> =
        answers.0.lock().iter().map(|(_, outcome)| outcome.clone().expect("stored").first.0).collect();
    firsts.sort_unstable();
    assert!(firsts.iter().copied().eq(1..=all as u64), "seed {seed}");
    log.close();
}
