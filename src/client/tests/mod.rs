//! The client against a scripted peer, over real sockets.

mod connection;
mod joining;
mod peer;
mod publishing;

use std::time::Duration;

use super::{Client, Event, Options, State, Subscription};
use crate::types::RoomName;
use peer::{Peer, soon};

/// Attempts follow each other at once.
fn options() -> Options {
    Options {
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
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

async fn wait_for(client: &Client, what: &str, condition: impl FnMut(&State) -> bool) -> State {
    soon(what, client.watch().wait_for(condition)).await.expect("the client lives").clone()
}
