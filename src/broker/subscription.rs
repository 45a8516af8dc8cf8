//! Reading from inside the process: one room as a stream of events.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::cut::Part;
use super::readers::{JoinFacts, Joining, Output, Readers, Wake};
use super::{Broker, Error};
use crate::protocol::{Batch, JoinId, WireError};
use crate::storage::{Refused, Targets};
use crate::types::{Code, GapReason, Offset, Record, RoomName, Start};

/// How many bytes of records a subscription takes from the log at a time.
const TURN_BYTES: usize = 64 << 10;

/// One room, from a start on, for ever: what is there already, then what comes. Dropped, it leaves the room.
///
/// A subscription is a place in the log. It holds at most the batches of one turn, so an application may be as
/// slow as it likes.
pub struct Subscription {
    readers: Readers,
    woken: Arc<Signal>,
    facts: JoinFacts,
    ahead: std::collections::VecDeque<Output>,
    ended: bool,
}

/// What comes out of a [`Subscription`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Records, in the order of the room.
    Records(Records),
    /// All that was there has been read: from here on it is live. Once.
    Live(Offset),
    /// The records behind `from` and up to `to` are not there any more.
    Gap {
        /// Nothing behind this offset …
        from: Offset,
        /// … and up to this one will come.
        to: Offset,
        /// Why.
        reason: GapReason,
    },
    /// The subscription has fallen behind what is in memory and is served from the store.
    Lagging(Offset),
    /// The subscription is served from memory again.
    CaughtUp(Offset),
}

/// Consecutive records of a room. Cheap to clone: the bytes are shared with everybody who gets the same records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Records(pub Part);

impl Records {
    /// The records, in order.
    ///
    /// # Errors
    /// An item is an error if the bytes are not what was stored; none comes after it.
    pub fn iter(&self) -> impl Iterator<Item = Result<Record<'_>, WireError>> {
        let Part { from, to, prev, ref body, .. } = self.0;
        let (records, error) = match Batch::parse(body) {
            Ok(batch) => (Some(batch.records(prev)), None),
            Err(error) => (None, Some(Err(error))),
        };
        let meant = move |record: &Result<Record<'_>, _>| match record {
            Ok(record) => record.offset >= from && record.offset <= to,
            Err(_) => true,
        };
        records
            .into_iter()
            .flatten()
            .filter(meant)
            .map(move |record| {
                // The batch may hold records before the first meant one: its predecessor is told beside the body.
                record.map(|record| if record.offset == from { Record { prev, ..record } } else { record })
            })
            .chain(error)
    }

    /// The encoded batch.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.0.body
    }
}

#[derive(Default)]
struct Signal(Notify);

impl Wake for Signal {
    fn wake(&self, _targets: Targets) {
        self.0.notify_one();
    }
}

impl Broker {
    /// Reads a room from a start on.
    ///
    /// # Errors
    /// `void_epoch` and `beyond_head` for a position that cannot be gone on from; the storage's trouble.
    pub async fn join(&self, room: &RoomName, start: Start) -> Result<Subscription, Error> {
        let woken = Arc::<Signal>::default();
        let readers = self.readers(self.new_session(), Arc::clone(&woken) as Arc<dyn Wake>);
        let joining = readers.join(JoinId(0), 0, room, start, None)?;
        let nothing = JoinFacts { epoch: self.epoch(), first: Offset::ZERO, head: Offset::ZERO, start: Offset::ZERO };
        let (facts, resolved) = match joining {
            Joining::Joined(facts) => (facts, true),
            Joining::Void(code, JoinFacts { epoch, head, .. }) => {
                return Err(Error { code, message: format!("the room's epoch is {epoch}, its head {head}") });
            }
            Joining::Pending => (nothing, false),
        };
        let mut subscription =
            Subscription { readers, woken, facts, ahead: std::collections::VecDeque::new(), ended: false };
        let mut resolved = resolved;
        while !resolved {
            match subscription.output().await {
                Output::Joined { facts, .. } => {
                    subscription.facts = facts;
                    resolved = true;
                }
                Output::Left { why, .. } => return Err(why.into()),
                _ => {}
            }
        }
        Ok(subscription)
    }
}

impl Subscription {
    /// What it began with.
    #[must_use]
    pub fn facts(&self) -> JoinFacts {
        self.facts
    }

    /// The next event. Cancel-safe: nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// When what is stored cannot be read; the subscription has ended then.
    pub async fn next(&mut self) -> Result<Event, Error> {
        if self.ended {
            return Err(Refused::new(Code::UnknownJoin, "the subscription has ended").into());
        }
        loop {
            return Ok(match self.output().await {
                Output::Records(_, part) => Event::Records(Records(part)),
                Output::Live(_, offset) => Event::Live(offset),
                Output::Gap { from, to, reason, .. } => Event::Gap { from, to, reason },
                Output::Lagging(_, offset) => Event::Lagging(offset),
                Output::CaughtUp(_, offset) => Event::CaughtUp(offset),
                Output::Left { why, .. } => {
                    self.ended = true;
                    return Err(why.into());
                }
                Output::Joined { .. } => continue,
            });
        }
    }

    async fn output(&mut self) -> Output {
        loop {
            if let Some(output) = self.ahead.pop_front() {
                return output;
            }
            let ahead = &mut self.ahead;
            self.readers.pull(TURN_BYTES, TURN_BYTES, |output| ahead.push_back(output));
            if self.ahead.is_empty() {
                self.woken.0.notified().await;
            }
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("facts", &self.facts).finish_non_exhaustive()
    }
}
