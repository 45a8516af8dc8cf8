//! The client against a scripted peer, over real sockets.

mod connection;
mod joining;
mod peer;
mod publishing;

use std::time::Duration;

use super::{Client, Event, Options, State, Subscription};
use crate::types::RoomName;
use peer::{PATIENCE, Peer, soon};

/// Attempts follow each other at once, and none is given up because the machine is slow.
fn options() -> Options {
    Options {
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        connect_timeout: PATIENCE,
        request_timeout: PATIENCE,
        silence_timeout: PATIENCE,
        insecure: true,
        ..Options::default()
    }
}

fn room(name: &str) -> RoomName {
    RoomName::new(name).expect("a room name")
}

fn open(peer: &Peer) -> Client {
    Client::open(&peer.url(), options()).expect("a client")
}

async fn next(subscription: &mut Subscription) -> Event {
    soon("an event", subscription.next()).await.expect("an event, not the end")
}

/// The offsets of the batch that comes next.
async fn offsets(subscription: &mut Subscription) -> Vec<u64> {
    match next(subscription).await {
        Event::Batch(batch) => batch.records().map(|record| record.offset.0).collect(),
        other => panic!("{other:?} is no batch"),
    }
}

/// Lets the clock of the client, and of its peer, go ahead.
async fn ahead(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

async fn wait_for(client: &Client, what: &str, condition: impl FnMut(&State) -> bool) -> State {
    soon(what, client.watch().wait_for(condition)).await.expect("the client lives").clone()
}
