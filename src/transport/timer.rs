//! One timer per connection that is armed anew only when it has to be: most deadlines move away before they come.

use std::pin::Pin;
use std::task::Context;
use std::time::Instant;

use tokio::time::Sleep;

/// Wakes a task at a deadline, or sooner.
#[derive(Debug)]
pub(crate) struct Timer {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
    /// Whether the task has been told to the sleep: a task's waker stays the same.
    armed: bool,
}

impl Timer {
    /// A timer that is due at once.
    pub(crate) fn new(now: Instant) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep_until(now.into())), at: now, armed: false }
    }

    /// Wakes the task at the first of these deadlines, or sooner.
    pub(crate) fn arm(&mut self, deadlines: impl Iterator<Item = Instant>, cx: &mut Context<'_>) {
        let Some(deadline) = deadlines.min() else { return };
        // A later deadline needs no new timer: the earlier one finds that nothing is due.
        if self.armed && deadline >= self.at && !self.sleep.is_elapsed() {
            return;
        }
        (self.at, self.armed) = (deadline, true);
        self.sleep.as_mut().reset(deadline.into());
        // A task whose turn is over would be told to wait without the sleep having been told of it.
        let sleep = std::pin::pin!(tokio::task::unconstrained(self.sleep.as_mut()));
        if sleep.poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}
