//! Publishing from inside the process: an outgoing queue with an identity, as a client has one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Broker, Error};
use crate::protocol::RecordArea;
use crate::storage::{Answer, Appended, Outcome, Refused, Reply, Submission, Targets, record_hash};
use crate::types::{Code, NewRecord, Offset, PublisherId, RoomName};

/// The longest user, in bytes: as for a room's name.
const USER_BYTES_MAX: usize = 255;

/// Rooms in which a queue has an identity. Beyond it all are forgotten: a new one may be begun at any time.
const QUEUES_MAX: usize = 10_000;

/// What [`Publisher::publish`] is given: one record, or several that belong together.
pub type Message<'a> = NewRecord<'a>;

/// An outgoing queue of this process. Records published through one publisher into one room are stored in the
/// order in which the calls were made, as long as none is refused: those made behind a refused one before it was
/// known go out again, in whatever order they are polled. Cheap to clone; all clones are the same queue.
#[derive(Clone)]
pub struct Publisher {
    broker: Broker,
    user: Arc<str>,
    rooms: Arc<Queues>,
}

/// The queue's next number in each room.
pub(super) type Queues = Mutex<HashMap<RoomName, Queue>>;

pub(super) struct Queue {
    publisher: PublisherId,
    seq: u64,
}

impl Broker {
    /// A new outgoing queue; `user` is who its records are said to be from.
    #[must_use]
    pub fn publisher(&self, user: &str) -> Publisher {
        Publisher { broker: self.clone(), user: Arc::from(user), rooms: Arc::default() }
    }

    /// Publishes one payload through a queue of the broker's own, from no user.
    ///
    /// # Errors
    /// See [`Publisher::publish`].
    pub async fn publish(&self, room: &RoomName, payload: &[u8]) -> Result<Appended, Error> {
        let rooms = Arc::clone(&self.inner.own_queues);
        let publisher = Publisher { broker: self.clone(), user: Arc::from(""), rooms };
        publisher.publish(room, &[NewRecord::new(payload)], None).await
    }
}

impl Publisher {
    /// Appends records to a room, all or none, one behind the other; returns when they are as durable as the
    /// broker promises. With `expect`, only if that is the room's head.
    ///
    /// The records are handed over before the first await: a call that is dropped has been made all the same.
    ///
    /// # Errors
    /// `busy` while as many bytes wait for their commit as may ([`Broker::queue`]): nothing was handed over.
    /// [`Error`] says why nothing was stored; [`Error::kind`] what to do.
    pub async fn publish(
        &self,
        room: &RoomName,
        records: &[NewRecord<'_>],
        expect: Option<Offset>,
    ) -> Result<Appended, Error> {
        let limits = &self.broker.inner.limits;
        let too_large = |message: String| Error { code: Code::TooLarge, message };
        if records.is_empty() || records.len() > limits.publish_records_max {
            let message = format!("{} records, a publish has 1 to {}", records.len(), limits.publish_records_max);
            return Err(too_large(message));
        }
        let mut area = Vec::new();
        for record in records {
            record.check(limits).map_err(|fault| too_large(fault.to_string()))?;
            RecordArea::push(&mut area, record);
        }
        if area.len() > limits.publish_bytes_max {
            let message = format!("{} bytes, a publish has at most {}", area.len(), limits.publish_bytes_max);
            return Err(too_large(message));
        }
        if self.user.len() > USER_BYTES_MAX {
            return Err(too_large(format!(
                "a user of {} bytes, at most {USER_BYTES_MAX} are allowed",
                self.user.len()
            )));
        }
        let (waiting, waiting_max) = self.broker.queue();
        if waiting >= waiting_max {
            let message = format!("{waiting} bytes wait for their commit, at most {waiting_max} may");
            return Err(Error { code: Code::Busy, message });
        }
        loop {
            let (publisher, answered) = self.hand_over(room, &area, expect)?;
            let outcome = answered.await.unwrap_or_else(|_| Err(Refused::new(Code::ShuttingDown, "the broker ended")));
            match outcome {
                Ok(appended) => return Ok(appended),
                Err(refused) => {
                    // A refusal leaves a hole in the queue's numbers: what was handed over behind it is out of
                    // order, or of a queue whose beginning the room never saw. After long silence the room has
                    // forgotten the queue. Nothing was stored, so it goes out again under a new identity.
                    let again = matches!(refused.code, Code::OutOfOrder | Code::PublisherForgotten);
                    self.renew(room, publisher);
                    if !again {
                        return Err(refused.into());
                    }
                }
            }
        }
    }

    fn hand_over(
        &self,
        room: &RoomName,
        area: &[u8],
        expect: Option<Offset>,
    ) -> Result<(PublisherId, oneshot::Receiver<Outcome>), Error> {
        let target = self.broker.room(room)?;
        let mut hashes = Vec::new();
        let mut rest = RecordArea(area);
        while let Some((record, behind)) = rest.split_first().expect("it was encoded just now") {
            hashes.push(record_hash(record));
            rest = behind;
        }
        let (answer, answered) = oneshot::channel();
        let mut submission = Submission::new(Arc::new(Once(Mutex::new(Some(answer)))));
        // Handed over under the lock, so that the order of numbers is the order in the commit queue.
        let mut rooms = self.rooms.lock();
        if rooms.len() >= QUEUES_MAX && !rooms.contains_key(room) {
            rooms.clear();
        }
        let queue = match rooms.entry(room.clone()) {
            std::collections::hash_map::Entry::Occupied(queue) => queue.into_mut(),
            std::collections::hash_map::Entry::Vacant(none) => none.insert(Queue { publisher: identity()?, seq: 1 }),
        };
        let publisher = queue.publisher;
        let count = hashes.len() as u64;
        submission.push(&target, &self.user, publisher, queue.seq, expect, 0, area, &hashes);
        queue.seq += count;
        self.broker.submit(&mut submission);
        drop(rooms);
        Ok((publisher, answered))
    }

    fn renew(&self, room: &RoomName, publisher: PublisherId) {
        let mut rooms = self.rooms.lock();
        if rooms.get(room).is_some_and(|queue| queue.publisher == publisher) {
            rooms.remove(room);
        }
    }
}

fn identity() -> Result<PublisherId, Error> {
    PublisherId::random().map_err(|error| Error { code: Code::Unavailable, message: error.to_string() })
}

#[derive(Debug)]
struct Once(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Reply for Once {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        if let ([Answer { outcome, .. }], Some(answer)) = (answers, self.0.lock().take()) {
            let _ = answer.send(outcome.clone());
        }
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("user", &self.user).finish_non_exhaustive()
    }
}
