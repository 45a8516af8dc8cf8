//! Where a scenario takes place: a broker on a real disk, and peers that reach it in one of several ways.

use roomlog::broker::{self, Broker, Event, PageAt, Publisher, Subscription};
use roomlog::client::{self, Client};
use roomlog::server::{self, Server};
use roomlog::types::{Code, Epoch, NewRecord, Offset, Position, Record, RoomName, Start};
use tempfile::TempDir;

pub(crate) use crate::raw::PATIENCE;

/// How peers reach the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    Memory,
    WebSocket,
    Quic,
}

pub(crate) struct World {
    pub(crate) via: Via,
    pub(crate) directory: TempDir,
    pub(crate) options: broker::Options,
    broker: Option<Broker>,
    server: Option<Server>,
}

pub(crate) fn room(name: &str) -> RoomName {
    RoomName::new(name).expect("a good name")
}

/// Waits for what must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

impl World {
    /// A broker on an empty directory; `tweak` changes what it is opened with.
    pub(crate) async fn start(via: Via, tweak: impl FnOnce(&mut broker::Options)) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut options = broker::Options::new(directory.path());
        options.storage.disk_reserve_bytes = 0;
        options.limits.handshake_timeout = PATIENCE;
        tweak(&mut options);
        let mut world = Self { via, directory, options, broker: None, server: None };
        world.open().await;
        world
    }

    async fn open(&mut self) {
        let broker = Broker::open(self.options.clone()).await.expect("the broker opens");
        if self.via != Via::Memory {
            let mut options = server::Options::default();
            options.listen = Some("127.0.0.1:0".parse().expect("an address"));
            options.quic_listen = Some("127.0.0.1:0".parse().expect("an address"));
            options.admin_listen = None;
            let server = Server::start(broker.clone(), options).await.expect("the server starts");
            self.server = Some(server);
        }
        self.broker = Some(broker);
    }

    /// Closes the broker and opens it again; peers of before are gone.
    pub(crate) async fn restart(&mut self) {
        match self.server.take() {
            Some(server) => server.stop().await,
            None => self.broker().close().await,
        }
        self.broker = None;
        self.open().await;
    }

    pub(crate) fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("open")
    }

    /// Where clients connect to.
    pub(crate) fn url(&self) -> String {
        let bound = self.server.as_ref().expect("there is a server").bound();
        match self.via {
            Via::Memory => unreachable!("nobody connects to memory"),
            Via::WebSocket => format!("ws://{}", bound.listen.expect("it listens")),
            Via::Quic => format!("quic://{}", bound.quic.expect("it listens")),
        }
    }

    /// A new peer.
    pub(crate) async fn peer(&self) -> Peer {
        if self.via == Via::Memory {
            let broker = self.broker().clone();
            let publisher = broker.publisher("");
            return Peer::Memory(broker, publisher);
        }
        let mut options = client::Options::default();
        options.insecure = true;
        (options.connect_timeout, options.request_timeout) = (PATIENCE, PATIENCE);
        Peer::Client(soon("a connection", Client::connect(&self.url(), options)).await.expect("connected"))
    }
}

/// Somebody who publishes and reads.
#[derive(Clone)]
pub(crate) enum Peer {
    Memory(Broker, Publisher),
    Client(Client),
}

/// Where records went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// A record as a scenario sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) offset: u64,
    pub(crate) prev: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) kind: String,
    pub(crate) reference: u64,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

impl From<Record<'_>> for Seen {
    fn from(record: Record<'_>) -> Self {
        let headers = record.content.headers.0.iter().map(|header| (header.name.to_owned(), header.value.to_vec()));
        Self {
            offset: record.offset.0,
            prev: record.prev.0,
            payload: record.content.payload.to_vec(),
            kind: record.content.kind.to_owned(),
            reference: record.content.reference.0,
            headers: headers.collect(),
        }
    }
}

/// What a reader gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Got {
    Records(Vec<Seen>),
    Live(u64),
    Gap(u64, u64),
    Lagging,
    CaughtUp,
    Ended(String),
}

impl Peer {
    pub(crate) async fn publish(&self, room: &RoomName, payload: &[u8]) -> Result<Stored, Code> {
        self.publish_all(room, &[NewRecord::new(payload)], None).await
    }

    pub(crate) async fn publish_all(
        &self,
        room: &RoomName,
        records: &[NewRecord<'_>],
        expect: Option<u64>,
    ) -> Result<Stored, Code> {
        let expect = expect.map(Offset);
        match self {
            Self::Memory(_, publisher) => {
                let stored = soon("a publish", publisher.publish(room, records, expect)).await;
                stored.map(|stored| Stored { first: stored.first.0, last: stored.last.0 }).map_err(|error| error.code)
            }
            Self::Client(client) => {
                let stored = soon("a publish", client.publish_all(room, records, expect)).await;
                stored
                    .map(|stored| Stored { first: stored.first.0, last: stored.last.0 })
                    .map_err(|error| error.code().unwrap_or_else(|| panic!("no answer: {error}")))
            }
        }
    }

    pub(crate) async fn join(&self, room: &RoomName, start: Start) -> Result<Reader, Code> {
        match self {
            Self::Memory(broker, _) => {
                let joined = soon("a join", broker.join(room, start)).await;
                joined.map(|joined| Reader::Memory(Box::new(joined))).map_err(|error| error.code)
            }
            Self::Client(client) => match soon("a join", client.join(room, start)).await {
                Ok(joined) => Ok(Reader::Client(joined)),
                Err(error) => Err(error.code().unwrap_or_else(|| panic!("no answer: {error}"))),
            },
        }
    }

    /// A page: its records, and whether there are more.
    pub(crate) async fn page(&self, room: &RoomName, at: PageAt, limit: u32) -> Result<(Vec<Seen>, bool), Code> {
        match self {
            Self::Memory(broker, _) => {
                let page = soon("a page", broker.history(room, at, limit)).await.map_err(|error| error.code)?;
                let records = page.parts.into_iter().flat_map(|part| {
                    let records = broker::Records(part);
                    records.iter().map(|record| Seen::from(record.expect("whole"))).collect::<Vec<_>>()
                });
                Ok((records.collect(), page.more))
            }
            Self::Client(client) => {
                let at = match at {
                    PageAt::Before(position) => client::HistoryAt::Before(position),
                    PageAt::After(position) => client::HistoryAt::After(position),
                    PageAt::Around(position) => client::HistoryAt::Around(position),
                };
                let page = soon("a page", client.history(room, at, limit)).await;
                let page = page.map_err(|error| error.code().unwrap_or_else(|| panic!("no answer: {error}")))?;
                Ok((page.batches.iter().flat_map(|batch| batch.records().map(Seen::from)).collect(), page.more))
            }
        }
    }

    /// Names and heads of rooms, and whether there are more.
    pub(crate) async fn rooms(&self, prefix: &str, after: &str, limit: u32) -> (Vec<(String, u64)>, bool) {
        match self {
            Self::Memory(broker, _) => {
                let (rooms, more) = soon("rooms", broker.rooms(prefix, after, limit as usize)).await.expect("listed");
                (rooms.iter().map(|summary| (summary.room.to_string(), summary.facts.head.0)).collect(), more)
            }
            Self::Client(client) => {
                let list = soon("rooms", client.rooms(prefix, after, limit)).await.expect("listed");
                (list.rooms.iter().map(|summary| (summary.room.to_string(), summary.head.0)).collect(), list.more)
            }
        }
    }
}

/// Somebody who reads a room.
pub(crate) enum Reader {
    Memory(Box<Subscription>),
    Client(client::Subscription),
}

impl Reader {
    pub(crate) fn position(&self) -> (Epoch, u64, u64) {
        match self {
            Self::Memory(subscription) => {
                let facts = subscription.facts();
                (facts.epoch, facts.head.0, facts.start.0)
            }
            Self::Client(subscription) => {
                let joined = subscription.joined();
                (joined.epoch, joined.head.0, joined.start.0)
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Got {
        match self {
            Self::Memory(subscription) => match soon("an event", subscription.next()).await {
                Ok(Event::Records(records)) => {
                    Got::Records(records.iter().map(|record| Seen::from(record.expect("whole"))).collect())
                }
                Ok(Event::Live(offset)) => Got::Live(offset.0),
                Ok(Event::Gap { from, to, .. }) => Got::Gap(from.0, to.0),
                Ok(Event::Lagging(_)) => Got::Lagging,
                Ok(Event::CaughtUp(_)) => Got::CaughtUp,
                Ok(other) => panic!("an event that no scenario knows: {other:?}"),
                Err(error) => Got::Ended(error.to_string()),
            },
            Self::Client(subscription) => match soon("an event", subscription.next()).await {
                Some(client::Event::Batch(batch)) => Got::Records(batch.records().map(Seen::from).collect()),
                Some(client::Event::Live { offset }) => Got::Live(offset.0),
                Some(client::Event::Gap { from, to, .. }) => Got::Gap(from.0, to.0),
                Some(client::Event::Lagging { .. }) => Got::Lagging,
                Some(client::Event::CaughtUp { .. }) => Got::CaughtUp,
                Some(other) => Got::Ended(format!("{other:?}")),
                None => Got::Ended("over".to_owned()),
            },
        }
    }

    /// The next `count` records and no more; the chain of `prev` from `after` on is checked. Marks are passed over.
    pub(crate) async fn records(&mut self, after: u64, count: usize) -> Vec<Seen> {
        let seen = self.records_at_least(after, count).await;
        assert_eq!(seen.len(), count, "no more than was asked for");
        seen
    }

    /// As [`Reader::records`], and what else came in the last batch.
    pub(crate) async fn records_at_least(&mut self, mut after: u64, count: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        while seen.len() < count {
            match self.next().await {
                Got::Records(records) => {
                    for record in records {
                        assert!(record.prev <= after, "between {after} and {record:?} something is missing");
                        assert!(record.offset > after, "{record:?} comes after {after}");
                        after = record.offset;
                        seen.push(record);
                    }
                }
                Got::Ended(why) => panic!("the reader ended after {} records: {why}", seen.len()),
                Got::Gap(from, to) => panic!("a gap from {from} to {to} that nothing explains"),
                Got::Live(_) | Got::Lagging | Got::CaughtUp => {}
            }
        }
        seen
    }
}

pub(crate) fn after(epoch: Epoch, offset: u64) -> Start {
    Start::After(Position { epoch, offset: Offset(offset) })
}

pub(crate) fn payloads(seen: &[Seen]) -> Vec<Vec<u8>> {
    seen.iter().map(|record| record.payload.clone()).collect()
}
