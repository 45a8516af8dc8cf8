//! A subscriber that believes nothing: every record follows the one before it, across all restarts of the server.

use std::collections::BTreeMap;

use roomlog::client::{Client, Event, HistoryAt, Subscription};
use roomlog::types::{Offset, Position, Record, RoomName, Start};

use crate::scenarios::world::soon;

/// A record as far as these tests look at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Read {
    pub(crate) offset: u64,
    pub(crate) payload: Vec<u8>,
}

/// Checks that records follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    at: u64,
    /// Whether it begins at the very first record.
    whole: bool,
}

impl Chain {
    pub(crate) fn after(at: u64) -> Self {
        Self { at, whole: at == 0 }
    }

    pub(crate) fn add(&mut self, record: &Record<'_>) -> Read {
        let (offset, prev) = (record.offset.0, record.prev.0);
        assert!(offset > self.at, "record {offset} comes after {}", self.at);
        if self.whole || self.at > 0 {
            assert_eq!(prev, self.at, "between {} and {offset} something is missing", self.at);
        }
        self.at = offset;
        self.whole = false;
        Read { offset, payload: record.content.payload.to_vec() }
    }
}

/// A subscription and its chain.
pub(crate) struct Follower {
    subscription: Subscription,
    chain: Chain,
    // Keeps the connection.
    _client: Client,
}

impl Follower {
    pub(crate) async fn join(client: Client, room: &RoomName, start: Start) -> Self {
        let subscription = soon("a join", client.join(room, start)).await.expect("joined");
        let chain = Chain::after(subscription.joined().start.0);
        Self { subscription, chain, _client: client }
    }

    /// Records that have come next; none if something else has.
    pub(crate) async fn next(&mut self) -> Vec<Read> {
        match soon("an event", self.subscription.next()).await.expect("the subscription goes on") {
            Event::Batch(batch) => batch.records().map(|record| self.chain.add(&record)).collect(),
            Event::Live { .. } | Event::Lagging { .. } | Event::CaughtUp { .. } => Vec::new(),
            other => panic!("nothing explains {other:?}"),
        }
    }

    /// All up to the record with this offset.
    pub(crate) async fn up_to(&mut self, last: u64) -> Vec<Read> {
        let mut seen = Vec::new();
        while self.chain.at < last {
            seen.extend(self.next().await);
        }
        assert_eq!(self.chain.at, last, "nothing follows the last record");
        seen
    }
}

/// A room from its first record to its last, page by page.
pub(crate) async fn history(client: &Client, room: &RoomName) -> Vec<Read> {
    let (mut seen, mut chain, mut at) = (Vec::new(), Chain::after(0), HistoryAt::After(None));
    loop {
        let page = soon("a page", client.history(room, at, 1000)).await.expect("a page");
        for batch in &page.batches {
            seen.extend(batch.records().map(|record| chain.add(&record)));
        }
        if !page.more {
            assert_eq!(page.head.0, chain.at, "the last page ends with the last record");
            return seen;
        }
        at = HistoryAt::After(Some(Position { epoch: page.epoch, offset: Offset(chain.at) }));
    }
}

/// Acknowledged offsets by the number that was published.
pub(crate) type Acknowledged = BTreeMap<u64, u64>;

/// Fails unless a room holds exactly the numbers 0, 1, 2 … up to `count`, each where it was acknowledged.
pub(crate) fn assert_all(seen: &[Read], acknowledged: &Acknowledged, number: impl Fn(&[u8]) -> u64, count: u64) {
    for (expected, read) in (0..).zip(seen) {
        assert_eq!(number(&read.payload), expected, "at offset {}", read.offset);
        assert_eq!(acknowledged.get(&expected), Some(&read.offset), "number {expected} is where it was acknowledged");
    }
    assert_eq!((seen.len() as u64, acknowledged.len() as u64), (count, count));
}
