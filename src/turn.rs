//! What a worker of the runtime does itself before it sleeps, instead of waking another thread for it.
//!
//! A publish on a quiet server is read by one thread and committed by another; to wake that one takes longer than the
//! work that it does, and while it syncs the first has nothing to do but to sleep. So what a task has begun is kept
//! until its worker would go to sleep, when all that was ready has been looked at, and then done by the worker itself. A
//! worker that does not come to sleep leaves it to those whose work it is, after [`TURNS_MAX`] more turns.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// So many more turns a worker may take before it leaves what it has kept to others.
const TURNS_MAX: u32 = 32;

/// Something that has to be done soon, by this thread or by another.
pub(crate) trait Chore: Send + Sync + 'static {
    /// Does it on this thread.
    fn run(self: Arc<Self>);

    /// Wakes whoever else does it.
    fn leave(&self);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Who knows what the thread does next: it may block for ever.
    Elsewhere,
    /// In a task that comes back to the runtime.
    Turn,
    /// Before it sleeps.
    BeforeSleep,
}

struct Worker {
    /// Whether it has ever told that it would sleep.
    tells: Cell<bool>,
    phase: Cell<Phase>,
    turns: Cell<u32>,
    kept: RefCell<VecDeque<Arc<dyn Chore>>>,
}

thread_local! {
    static WORKER: Worker = const {
        Worker {
            tells: Cell::new(false),
            phase: Cell::new(Phase::Elsewhere),
            turns: Cell::new(0),
            kept: RefCell::new(VecDeque::new()),
        }
    };
}

impl Worker {
    fn leave_all(&self) {
        while let Some(chore) = self.kept.borrow_mut().pop_front() {
            chore.leave();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.leave_all();
    }
}

/// A task's turn on this thread, which afterwards goes back to the runtime.
pub(crate) struct Turn {
    /// What the thread was at before.
    before: Phase,
    /// It is this thread's.
    _not_send: PhantomData<*const ()>,
}

/// Begins a turn.
pub(crate) fn begin() -> Turn {
    let before = WORKER.with(|worker| {
        let before = worker.phase.replace(Phase::Turn);
        if before != Phase::BeforeSleep && !worker.kept.borrow().is_empty() {
            worker.turns.set(worker.turns.get() + 1);
            if worker.turns.get() > TURNS_MAX {
                worker.leave_all();
            }
        }
        before
    });
    Turn { before, _not_send: PhantomData }
}

impl Drop for Turn {
    fn drop(&mut self) {
        WORKER.with(|worker| worker.phase.set(self.before));
    }
}

/// Keeps something until the thread would sleep; leaves it to others at once if this thread is none that tells, or
/// does not come back from here to where it does.
pub(crate) fn keep<C: Chore>(chore: &Arc<C>) {
    // A thread that ends has nothing any more.
    let kept = WORKER.try_with(|worker| {
        let keeps = worker.tells.get() && worker.phase.get() != Phase::Elsewhere;
        if keeps {
            let mut kept = worker.kept.borrow_mut();
            if kept.is_empty() {
                worker.turns.set(0);
            }
            kept.push_back(Arc::clone(chore) as Arc<dyn Chore>);
        }
        keeps
    });
    if kept != Ok(true) {
        chore.leave();
    }
}

/// To be called whenever a worker would sleep, in no task: does what was kept.
pub(crate) fn before_sleep() {
    WORKER.with(|worker| {
        worker.tells.set(true);
        worker.phase.set(Phase::BeforeSleep);
        loop {
            let Some(chore) = worker.kept.borrow_mut().pop_front() else { break };
            // A worker that ended here would be missed by all.
            if catch_unwind(AssertUnwindSafe(|| chore.run())).is_err() {
                tracing::error!("what a worker has kept for itself has panicked");
            }
        }
        worker.phase.set(Phase::Elsewhere);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counted {
        run: AtomicU32,
        left: AtomicU32,
    }

    impl Chore for Counted {
        fn run(self: Arc<Self>) {
            self.run.fetch_add(1, Ordering::SeqCst);
        }

        fn leave(&self) {
            self.left.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Counted {
        fn counts(&self) -> (u32, u32) {
            (self.run.load(Ordering::SeqCst), self.left.load(Ordering::SeqCst))
        }
    }

    /// On a thread of its own: what a thread has kept is its own.
    fn on_a_thread(test: impl FnOnce(&Arc<Counted>) + Send) -> (u32, u32) {
        let chore = Arc::<Counted>::default();
        std::thread::scope(|scope| scope.spawn(|| test(&chore)).join().expect("the test does not panic"));
        chore.counts()
    }

    #[test]
    fn what_is_kept_in_a_turn_is_done_before_sleep() {
        let counts = on_a_thread(|chore| {
            before_sleep();
            let turn = begin();
            keep(chore);
            drop(turn);
            assert_eq!(chore.counts(), (0, 0));
            before_sleep();
        });
        assert_eq!(counts, (1, 0));
    }

    #[test]
    fn a_thread_that_never_tells_keeps_nothing() {
        let counts = on_a_thread(|chore| {
            let _turn = begin();
            keep(chore);
        });
        assert_eq!(counts, (0, 1));
    }

    #[test]
    fn outside_of_a_turn_nothing_is_kept() {
        let counts = on_a_thread(|chore| {
            before_sleep();
            drop(begin());
            keep(chore);
        });
        assert_eq!(counts, (0, 1));
    }

    #[test]
    fn a_worker_that_does_not_come_to_sleep_leaves_it_to_others() {
        let counts = on_a_thread(|chore| {
            before_sleep();
            let turn = begin();
            keep(chore);
            drop(turn);
            for _ in 0..TURNS_MAX {
                drop(begin());
            }
            assert_eq!(chore.counts(), (0, 0));
            drop(begin());
            assert_eq!(chore.counts(), (0, 1));
            before_sleep();
        });
        assert_eq!(counts, (0, 1));
    }

    #[test]
    fn a_thread_that_ends_leaves_it_to_others() {
        let counts = on_a_thread(|chore| {
            before_sleep();
            let _turn = begin();
            keep(chore);
        });
        assert_eq!(counts, (0, 1));
    }

    #[test]
    fn what_panics_is_survived_and_what_it_keeps_is_done() {
        struct Panics(Arc<Counted>);
        impl Chore for Panics {
            fn run(self: Arc<Self>) {
                keep(&self.0);
                panic!("as it is meant to be");
            }

            fn leave(&self) {}
        }
        let counts = on_a_thread(|chore| {
            before_sleep();
            let turn = begin();
            keep(&Arc::new(Panics(Arc::clone(chore))));
            drop(turn);
            before_sleep();
        });
        assert_eq!(counts, (1, 0));
    }
}
