//! Publishing: into the queue with back-pressure, out of it with an acknowledgement.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::core::Unit;
use super::{Client, Error, Published};
use crate::protocol::RecordArea;
use crate::types::{Limits, NewRecord, Offset, RoomName};

/// A publish that is on its way: a future of its acknowledgement.
///
/// Dropping it gives up the answer, not the publish.
#[derive(Debug)]
#[must_use = "without it nobody learns whether the records were stored"]
pub struct Receipt(oneshot::Receiver<Result<Published, Error>>);

impl Future for Receipt {
    type Output = Result<Published, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.unwrap_or(Err(Error::Closed { why: None })))
    }
}

/// Encoded records with their share of the queue still to be got.
struct Encoded {
    area: Vec<u8>,
    count: u32,
    expect: Option<Offset>,
}

impl Encoded {
    fn new(records: &[NewRecord<'_>], expect: Option<Offset>) -> Result<Self, Error> {
        let allowed = Limits::CEILINGS.publish_records;
        if records.is_empty() || records.len() > allowed {
            return Err(Error::TooLarge { what: "records in a publish", found: records.len(), allowed });
        }
        let mut area = Vec::new();
        for record in records {
            let allowed = Limits::CEILINGS.payload_bytes;
            if record.payload.len() > allowed {
                return Err(Error::TooLarge { what: "payload bytes", found: record.payload.len(), allowed });
            }
            RecordArea::push(&mut area, record);
        }
        Ok(Self { area, count: u32::try_from(records.len()).expect("below the ceiling"), expect })
    }

    /// What it takes of the queue's bytes; one that is larger than the queue takes all of it.
    fn bytes(&self, client: &Client) -> u32 {
        let bytes_max = client.inner.options.queue_bytes_max.clamp(1, u32::MAX as usize);
        u32::try_from(self.area.len().clamp(1, bytes_max)).expect("clamped")
    }
}

impl Client {
    /// Publishes one record and waits until it is as durable as the broker promises, through lost connections.
    ///
    /// Cancel-safe in this sense: a call that is dropped before the queue had room publishes nothing; after that the
    /// record is published all the same.
    ///
    /// # Errors
    /// The broker refuses it; a limit is exceeded; whether it was stored cannot be told any more
    /// ([`Error::InDoubt`]); the client is closed.
    pub async fn publish(&self, room: &RoomName, record: NewRecord<'_>) -> Result<Published, Error> {
        self.enqueue(room, &[record], None).await?.await
    }

    /// Publishes records of one room, all or none, one behind the other; with `expect`, only if that is the room's
    /// head. Otherwise as [`Client::publish`].
    ///
    /// # Errors
    /// As [`Client::publish`]; `expect_failed` if the head is another one.
    pub async fn publish_all(
        &self,
        room: &RoomName,
        records: &[NewRecord<'_>],
        expect: Option<Offset>,
    ) -> Result<Published, Error> {
        self.enqueue(room, records, expect).await?.await
    }

    /// As [`Client::publish_all`], but waits only until the queue has room; the receipt is the acknowledgement to
    /// come. Publishes of one room are stored in the order in which they were taken into the queue.
    ///
    /// Cancel-safe: dropped before it is done, nothing is published.
    ///
    /// # Errors
    /// A limit is exceeded, or the client is closed.
    pub async fn enqueue(
        &self,
        room: &RoomName,
        records: &[NewRecord<'_>],
        expect: Option<Offset>,
    ) -> Result<Receipt, Error> {
        let encoded = Encoded::new(records, expect)?;
        let bytes = encoded.bytes(self);
        let permits = async {
            let publish = Arc::clone(&self.inner.queue_publishes).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&self.inner.queue_bytes).acquire_many_owned(bytes).await.ok()?;
            Some([publish, bytes])
        };
        tokio::select! {
            biased;
            permits = permits => {
                let permits = permits.ok_or(Error::Closed { why: None })?;
                self.push(room, encoded, permits)
            }
            () = self.inner.shared.stop.cancelled() => Err(Error::Closed { why: None }),
        }
    }

    /// As [`Client::enqueue`], but never waits.
    ///
    /// # Errors
    /// As [`Client::enqueue`]; [`Error::QueueFull`] if the queue has no room.
    pub fn try_enqueue(
        &self,
        room: &RoomName,
        records: &[NewRecord<'_>],
        expect: Option<Offset>,
    ) -> Result<Receipt, Error> {
        let encoded = Encoded::new(records, expect)?;
        let publish = Arc::clone(&self.inner.queue_publishes).try_acquire_owned();
        let bytes = Arc::clone(&self.inner.queue_bytes).try_acquire_many_owned(encoded.bytes(self));
        match (publish, bytes) {
            (Ok(publish), Ok(bytes)) => self.push(room, encoded, [publish, bytes]),
            _ => Err(Error::QueueFull),
        }
    }

    fn push(&self, room: &RoomName, encoded: Encoded, permits: [OwnedSemaphorePermit; 2]) -> Result<Receipt, Error> {
        let Encoded { area, count, expect } = encoded;
        let (answer, result) = oneshot::channel();
        {
            let mut core = self.inner.shared.core.lock();
            if let Some(error) = core.closed() {
                return Err(error.clone());
            }
            core.outgoing.push(room, Unit { area, count, expect, answer, permits });
        }
        self.inner.shared.wake.notify_one();
        Ok(Receipt(result))
    }
}
