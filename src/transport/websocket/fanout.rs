//! Many sessions told at once: a few tasks serve them one behind the other, instead of each task being woken.
//!
//! A record for a hundred subscribers, or a commit with the publishes of a hundred sessions, makes a hundred
//! connections ready to write at the same moment. Waking a task costs about a fifth of the write that it makes, and all of it on the
//! committer's thread. So the committer only puts connections into a list, which tasks take from that are half as many
//! as the workers of the runtime: the other half is left for reading and committing, and for whoever else is on the
//! machine. A connection whose socket takes no more is left to its own task.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::Notify;

use crate::lock::Mutex;

/// Connections that a task takes at a time, before others get their turn; and so many that wait are reason enough to
/// wake one more task.
const AT_ONCE: usize = 16;

/// After so many turns a task lets others go first: one that wakes itself is often taken over by the next worker, which
/// has to be woken for it.
const TURNS_PER_YIELD: u32 = 4;

/// Every so many times it lets those go first who are not ready yet; else those that are.
const YIELDS_PER_LOOK: u32 = 4;

/// A connection that can be served as one of many.
pub(super) trait Served: Send + Sync + Debug {
    /// Serves it on this thread, as far as that needs no waiting.
    fn serve_in_turn(&self);

    /// Has it served by its own task.
    fn serve_by_task(&self);
}

/// The connections that are to be served.
#[derive(Debug, Default)]
pub(crate) struct Fanout {
    ready: Mutex<Ready>,
    /// While the list is not empty a task is awake, or will be.
    work: Notify,
}

#[derive(Debug, Default)]
struct Ready {
    list: VecDeque<Arc<dyn Served>>,
    closed: bool,
}

impl Fanout {
    /// Adds a connection, which is not in the list.
    pub(super) fn push(&self, connection: Arc<dyn Served>) {
        let mut ready = self.ready.lock();
        if ready.closed {
            return;
        }
        ready.list.push_back(connection);
        let waiting = ready.list.len();
        drop(ready);
        if waiting % AT_ONCE == 1 {
            self.work.notify_one();
        }
    }

    /// Ends it: the server is no more, and neither is a task that serves.
    pub(crate) fn close(&self) {
        let mut ready = self.ready.lock();
        ready.closed = true;
        let list = std::mem::take(&mut ready.list);
        drop(ready);
        // A connection holds the fan-out.
        drop(list);
    }

    /// Serves the next ones; whether there were any.
    fn turn(&self, taken: &mut Vec<Arc<dyn Served>>) -> bool {
        {
            let list = &mut self.ready.lock().list;
            let count = list.len().min(AT_ONCE);
            taken.extend(list.drain(..count));
        }
        let are_there = !taken.is_empty();
        for connection in taken.drain(..) {
            // A task that ended here would serve nobody any more; the connection's own ends if it has to.
            if catch_unwind(AssertUnwindSafe(|| connection.serve_in_turn())).is_err() {
                tracing::error!("serving a connection has panicked");
                connection.serve_by_task();
            }
        }
        are_there
    }

    /// Serves what is in the list, where its tasks may be kept from it.
    pub(crate) fn serve_what_is_ready(&self) {
        let mut taken = Vec::new();
        while self.turn(&mut taken) {}
    }

    /// The tasks that serve, to be spawned on this runtime.
    pub(crate) fn tasks(self: &Arc<Self>) -> impl Iterator<Item = impl Future<Output = ()> + Send + use<>> {
        let tasks = tokio::runtime::Handle::current().metrics().num_workers().div_ceil(2);
        let fanout = Arc::clone(self);
        (0..tasks).map(move |_| Arc::clone(&fanout).serve())
    }

    /// Serves what is added, for ever.
    async fn serve(self: Arc<Self>) {
        let mut taken = Vec::with_capacity(AT_ONCE);
        let mut turn = 0_u32;
        loop {
            if !self.turn(&mut taken) {
                self.work.notified().await;
                continue;
            }
            turn = turn.wrapping_add(1);
            if !turn.is_multiple_of(TURNS_PER_YIELD) {
                continue;
            }
            if turn.is_multiple_of(TURNS_PER_YIELD * YIELDS_PER_LOOK) {
                // Lets the worker look at its sockets, and comes back when nobody else is ready.
                tokio::task::yield_now().await;
            } else {
                behind_others().await;
            }
        }
    }
}

/// Ready when all tasks that are ready now have had their turn.
async fn behind_others() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
