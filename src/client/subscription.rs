//! A joined room, as the application sees it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Notify;

use super::Inner;
use super::state::{Event, Joined};
use crate::protocol::JoinId;
use crate::types::{Position, RoomName};

/// A joined room: what it brings, in order, across lost connections. Dropping it leaves the room.
///
/// What waits here is bounded ([`super::JoinOptions::bytes_max`]): the broker is granted more only as events are
/// taken. An application that is slow in one room does not hold up the others.
pub struct Subscription {
    inner: Arc<Inner>,
    room: RoomName,
    join: JoinId,
    notify: Arc<Notify>,
    /// Set before the application gets hold of the subscription.
    pub(crate) joined: Option<Joined>,
}

impl Subscription {
    pub(crate) fn new(inner: Arc<Inner>, room: RoomName, join: JoinId, notify: Arc<Notify>) -> Self {
        Self { inner, room, join, notify, joined: None }
    }

    /// The room.
    #[must_use]
    pub fn room(&self) -> &RoomName {
        &self.room
    }

    /// What the room was like when it was joined first.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn joined(&self) -> Joined {
        self.joined.expect("set when the broker answered")
    }

    /// The position of the last record received, which may still wait to be taken; to resume a later run, take
    /// [`super::Batch::position`] of what has been dealt with.
    #[must_use]
    pub fn received(&self) -> Option<Position> {
        self.inner.shared.core.lock().joins.sub(self.join).and_then(|sub| sub.position())
    }

    /// The next event; `None` after [`Event::Left`].
    ///
    /// Cancel-safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            if self.inner.shared.core.lock().joins.sub(self.join).is_none_or(|sub| sub.is_over()) {
                return None;
            }
            // It keeps a notification that came since the look.
            self.notify.notified().await;
        }
    }

    /// The next event, if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        let (event, send) = self.inner.shared.core.lock().take(self.join)?;
        if send {
            self.inner.shared.wake.notify_one();
        }
        Some(event)
    }

    /// Leaves the room; as dropping it.
    pub fn leave(self) {}
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.inner.shared.core.lock().leave(self.join);
        self.inner.shared.wake.notify_one();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("room", &self.room)
            .field("received", &self.received())
            .finish_non_exhaustive()
    }
}
