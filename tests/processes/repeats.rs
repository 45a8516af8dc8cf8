//! The server ends between the sync of a commit and its answers: the publisher repeats what it was not told of.

use std::time::Instant;

use roomlog::client::{Client, Error, Published};
use roomlog::types::{NewRecord, PublisherId, RoomName};

use super::reader::{Read, history};
use super::server::{Over, Site, random};
use crate::scenarios::world::{room, soon};
use rand::Rng as _;

/// With this exit code the server ends where the test wants it.
const AT_THE_FAULT: Option<i32> = Some(86);

/// Fewer than the numbers that the broker remembers of a publisher: all may be repeated.
const RECORDS: u32 = 1000;

/// Under way at most, so that they take twenty commits at least.
const UNDER_WAY: usize = 50;

fn payload(number: u32) -> Vec<u8> {
    format!("record {number}").into_bytes()
}

/// Publishes all records; each one's answer.
async fn publish_all(client: &Client, lobby: &RoomName) -> Vec<Result<Published, Error>> {
    let mut receipts = Vec::new();
    for number in 0..RECORDS {
        receipts
            .push(soon("room in the queue", client.enqueue(lobby, &[NewRecord::new(&payload(number))], None)).await);
    }
    let mut answers = Vec::new();
    for receipt in receipts {
        answers.push(match receipt {
            Ok(receipt) => soon("an answer", receipt).await,
            Err(error) => Err(error),
        });
    }
    answers
}

fn assert_once(seen: &[Read], answers: &[Result<Published, Error>]) {
    assert_eq!(seen.len(), RECORDS as usize, "each record is there exactly once");
    for (number, (read, answer)) in (0..).zip(seen.iter().zip(answers)) {
        assert_eq!(read.payload, payload(number));
        assert_eq!(Ok(read.offset), answer.as_ref().map(|published| published.first.0));
    }
}

async fn a_client_rides_it_out(over: Over) {
    let begun = Instant::now();
    let mut random = random("repeats");
    let mut site = Site::new();
    let after: u32 = random.random_range(1..15);
    let mut server = site.variable("ROOMLOG_FAULT_EXIT_AFTER_SYNC", &after.to_string()).start().await;
    let lobby = room("lobby");
    let client = site.client_with(over, |options| options.queue_publishes_max = UNDER_WAY);
    let publishing = tokio::spawn({
        let (client, lobby) = (client.clone(), lobby.clone());
        async move { publish_all(&client, &lobby).await }
    });
    assert_eq!(server.exited().await.code(), AT_THE_FAULT);
    site.unset("ROOMLOG_FAULT_EXIT_AFTER_SYNC");
    let mut server = site.start().await;
    let answers = soon("all answers", publishing).await.expect("published");
    let duplicates = answers.iter().flatten().filter(|published| published.duplicate).count();
    assert!(duplicates > 0, "what was durable and not answered is answered as a duplicate");
    assert_once(&history(&client, &lobby).await, &answers);
    assert_eq!(server.metric("roomlog_duplicates_total", &[]).await, duplicates as f64);
    server.stop().await;
    site.assert_intact();
    println!("{duplicates} duplicates after commit {after}, {over:?}: {:.1} s", begun.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_durable_but_not_answered_is_answered_as_a_duplicate_over_websocket() {
    a_client_rides_it_out(Over::WebSocket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_durable_but_not_answered_is_answered_as_a_duplicate_over_quic() {
    a_client_rides_it_out(Over::Quic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_known_after_its_room_was_unloaded_and_built_into_a_volume() {
    let begun = Instant::now();
    let mut random = random("repeats");
    let mut site = Site::new();
    site.set("storage.stretch_bytes", "1 MiB");
    let after: u32 = random.random_range(1..15);
    let mut server = site.variable("ROOMLOG_FAULT_EXIT_AFTER_SYNC", &after.to_string()).start().await;
    let lobby = room("lobby");
    // With a name of its own it can come again as another client.
    let publisher = |site: &Site| {
        site.client_with(Over::WebSocket, |options| {
            options.publisher = Some(PublisherId([7; 16]));
            options.queue_publishes_max = UNDER_WAY;
        })
    };
    let client = publisher(&site);
    let publishing = tokio::spawn({
        let (client, lobby) = (client.clone(), lobby.clone());
        async move { publish_all(&client, &lobby).await }
    });
    assert_eq!(server.exited().await.code(), AT_THE_FAULT);
    client.close().await;
    let before = soon("the end of publishing", publishing).await.expect("it ends");
    let acknowledged = before.iter().filter(|answer| answer.is_ok()).count();
    site.unset("ROOMLOG_FAULT_EXIT_AFTER_SYNC");

    // Meanwhile others publish so much that the journal becomes a volume, and nobody needs the room.
    let mut server = site.start().await;
    let other = site.client(Over::Quic);
    let (noise, filler) = (room("noise"), vec![b'x'; 16 << 10]);
    while server.metric("roomlog_builds_total", &["build"]).await == 0.0 {
        for _ in 0..64 {
            soon("a publish", other.publish(&noise, NewRecord::new(&filler))).await.expect("stored");
        }
    }
    server.metric_until("roomlog_rooms_loaded", &[], |loaded| loaded <= 1.0).await;

    let client = publisher(&site);
    let answers = publish_all(&client, &lobby).await;
    let duplicates = answers.iter().flatten().filter(|published| published.duplicate).count();
    assert!(duplicates > acknowledged, "{duplicates} duplicates, {acknowledged} of them were acknowledged before");
    for (first, again) in before.iter().zip(&answers).filter_map(|(first, again)| Some((first.as_ref().ok()?, again))) {
        assert_eq!(Ok(first.first), again.as_ref().map(|again| again.first), "the original offset");
    }
    assert_once(&history(&other, &lobby).await, &answers);
    server.metric_until("roomlog_delivered_records_total", &["volume"], |read| read >= duplicates as f64).await;
    server.stop().await;
    site.assert_intact();
    println!("{acknowledged} acknowledged, {duplicates} duplicates: {:.1} s", begun.elapsed().as_secs_f64());
}
