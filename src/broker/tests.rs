use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::types::{NewRecord, Offset, Position, Start};

mod reading;
mod stress;

fn room(name: &str) -> RoomName {
    RoomName::new(name).expect("a good name")
}

async fn open(directory: &TempDir) -> Broker {
    Broker::open(Options::new(directory.path())).await.expect("the directory is fine")
}

/// Reads payloads until `count` have come.
async fn payloads(subscription: &mut Subscription, count: usize) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let event = tokio::time::timeout(Duration::from_secs(10), subscription.next()).await.expect("in time");
        if let Event::Records(records) = event.expect("the log can be read") {
            seen.extend(records.iter().map(|record| record.expect("whole").content.payload.to_vec()));
        }
    }
    seen
}

#[tokio::test]
async fn what_was_published_is_read_by_a_join_before_and_after_a_restart() {
    let directory = TempDir::new().expect("a directory");
    let broker = open(&directory).await;
    let lobby = room("lobby");
    let mut before = broker.join(&lobby, Start::New).await.expect("an empty room can be joined");
    for number in 0..100_u32 {
        let appended = broker.publish(&lobby, &number.to_le_bytes()).await.expect("stored");
        assert_eq!(appended.first, Offset(u64::from(number) + 1));
    }
    let expected: Vec<_> = (0..100_u32).map(|number| number.to_le_bytes().to_vec()).collect();
    assert_eq!(payloads(&mut before, 100).await, expected);
    let mut after = broker.join(&lobby, Start::Earliest).await.expect("joined");
    assert_eq!(payloads(&mut after, 100).await, expected);
    let epoch = broker.epoch();
    broker.close().await;
    let refused = broker.publish(&lobby, b"too late").await.expect_err("closed");
    assert_eq!(refused.code, Code::ShuttingDown);

    let broker = open(&directory).await;
    assert_eq!(broker.epoch(), epoch);
    let mut again = broker.join(&lobby, Start::Last(10)).await.expect("joined");
    assert_eq!(payloads(&mut again, 10).await, expected[90..]);
    let middle = Start::After(Position { epoch, offset: Offset(50) });
    let mut resumed = broker.join(&lobby, middle).await.expect("joined");
    assert_eq!(payloads(&mut resumed, 50).await, expected[50..]);
    broker.close().await;
}

#[tokio::test]
async fn records_of_one_publisher_keep_their_order_when_nobody_waits() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let publisher = broker.publisher("ada");
    let lobby = room("lobby");
    let tasks = (0..500_u32).map(|number| {
        let (publisher, lobby) = (publisher.clone(), lobby.clone());
        async move { publisher.publish(&lobby, &[NewRecord::new(&number.to_le_bytes())], None).await }
    });
    let mut all = tokio::task::JoinSet::new();
    for task in tasks {
        all.spawn(task);
    }
    while let Some(done) = all.join_next().await {
        done.expect("no panic").expect("stored");
    }
    let mut reader = broker.join(&lobby, Start::Earliest).await.expect("joined");
    assert_eq!(payloads(&mut reader, 500).await.len(), 500);
}
