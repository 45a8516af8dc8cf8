//! The server is killed again and again while a publisher and subscribers go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rand::Rng as _;
use roomlog::client::{Client, Receipt};
use roomlog::types::{NewRecord, RoomName, Start};
use tokio::sync::mpsc;

use super::reader::{Acknowledged, Follower, assert_all, history};
use super::server::{Over, Site, pause, random, within_ms};
use crate::scenarios::world::{room, soon};

/// Kills of each test; there are two.
const KILLS: usize = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_record_outlives_fifteen_kills_while_publishing_over_websocket() {
    survive(Over::WebSocket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_record_outlives_fifteen_kills_while_publishing_over_quic() {
    survive(Over::Quic).await;
}

/// The payload of a number: not all of one length.
fn payload(number: u64) -> Vec<u8> {
    format!("{number} {}", "x".repeat(number as usize % 200)).into_bytes()
}

fn number(bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).expect("as it was published");
    let number = text.split(' ').next().and_then(|number| number.parse().ok()).expect("it begins with a number");
    assert_eq!(bytes, payload(number), "the whole payload is as it was published");
    number
}

/// A publisher of numbered records, as fast as it can, until it is told to stop.
struct Publisher {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    done: tokio::task::JoinHandle<Acknowledged>,
}

impl Publisher {
    fn start(client: Client, lobby: RoomName) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (receipts, mut taken) = mpsc::channel::<(u64, Receipt)>(10_000);
        let (stopped, kept) = (Arc::clone(&stop), client.clone());
        tokio::spawn(async move {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                let payload = payload(number);
                let receipt = client.enqueue(&lobby, &[NewRecord::new(&payload)], None).await.expect("taken");
                receipts.send((number, receipt)).await.expect("they are taken");
                number += 1;
            }
        });
        let acknowledged = Arc::clone(&count);
        let done = tokio::spawn(async move {
            let mut offsets = Acknowledged::new();
            while let Some((number, receipt)) = taken.recv().await {
                let published = receipt.await.unwrap_or_else(|error| panic!("number {number}: {error}"));
                offsets.insert(number, published.first.0);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            drop(kept);
            offsets
        });
        Self { stop, acknowledged: count, done }
    }

    /// Waits for so many more acknowledgements.
    async fn more(&self, count: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + count;
        let more = async {
            while self.acknowledged.load(Ordering::Relaxed) < goal && !self.done.is_finished() {
                pause().await;
            }
        };
        soon("more acknowledgements", more).await;
    }

    async fn stop(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        soon("all acknowledgements", self.done).await.expect("every record is acknowledged")
    }
}

async fn survive(over: Over) {
    let begun = Instant::now();
    let mut random = random("kills");
    let mut site = Site::new();
    // Small, so that volumes are built, and rooms read out of them, between kills.
    site.set("storage.stretch_bytes", "1 MiB").set("storage.tails_bytes_max", "1 MiB");
    let mut server = site.start().await;
    let lobby = room("lobby");
    let publisher = Publisher::start(site.client(over), lobby.clone());
    let follow = async |over| {
        let mut follower = Follower::join(site.client(over), &lobby, Start::Earliest).await;
        let (last, mut told) = tokio::sync::oneshot::channel();
        let done = tokio::spawn(async move {
            let mut seen = Vec::new();
            loop {
                tokio::select! {
                    records = follower.next() => seen.extend(records),
                    last = &mut told => {
                        // Nobody tells it if the test has failed elsewhere.
                        let Ok(last) = last else { return seen };
                        if seen.last().is_none_or(|read| read.offset < last) {
                            seen.extend(follower.up_to(last).await);
                        }
                        return seen;
                    }
                }
            }
        });
        (last, done)
    };
    let mut followers = vec![follow(Over::WebSocket).await, follow(Over::Quic).await];
    for kill in 0..KILLS {
        publisher.more(random.random_range(1..4000)).await;
        // Somewhere in what follows, which nobody can tell.
        tokio::time::sleep_until(within_ms(&mut random, 20)).await;
        server.kill().await;
        server = site.spawn();
        if random.random_bool(0.3) {
            // Not even its start is spared.
            let until = within_ms(&mut random, 150);
            let _ = tokio::time::timeout_at(until, server.listens()).await;
            server.kill().await;
            server = site.spawn();
        }
        assert!(soon("the server to listen", server.listens()).await, "{}", site.log());
        if kill % 5 == 0 {
            followers.push(follow(if kill % 2 == 0 { Over::WebSocket } else { Over::Quic }).await);
        }
    }
    publisher.more(1000).await;
    let acknowledged = publisher.stop().await;
    let (count, last) = (acknowledged.len() as u64, *acknowledged.values().last().expect("some"));
    for (tell, done) in followers {
        tell.send(last).expect("it goes on");
        let seen = soon("a follower's last record", done).await.expect("its chain is unbroken");
        assert_all(&seen, &acknowledged, number, count);
    }
    for over in [Over::WebSocket, Over::Quic] {
        assert_all(&history(&site.client(over), &lobby).await, &acknowledged, number, count);
    }
    server.stop().await;
    site.assert_intact();
    println!("{count} records, {KILLS} kills over {over:?}: {:.1} s", begun.elapsed().as_secs_f64());
}
