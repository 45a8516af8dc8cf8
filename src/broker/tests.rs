use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::storage::block_store::{BlockStore, MemoryBlockStore};
use crate::storage::disk::{Fault, FaultyDisk};
use crate::storage::embedded::open_on;
use crate::types::{NewRecord, Offset, Position, Start};

mod linearizable;
mod reading;
mod stress;

/// However slow the machine: longer is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let event = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("in time");
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

/// A broker on a disk that fails when it is told to.
fn on(disk: &FaultyDisk, store: &Arc<dyn BlockStore>) -> Broker {
    let options = crate::storage::Options { disk_reserve_bytes: 0, ..crate::storage::Options::new("") };
    let engine = open_on(options, Arc::new(disk.clone()), Arc::clone(store)).expect("the disk can be read");
    Broker::with_engine(engine, Limits::default(), 1, Arc::new(Metrics::disabled())).expect("threads")
}

#[tokio::test]
async fn after_a_fail_stop_reading_goes_on_and_the_broker_can_be_closed_and_opened_again() {
    let (disk, store) = (FaultyDisk::new(1), Arc::new(MemoryBlockStore::default()) as Arc<dyn BlockStore>);
    let broker = on(&disk, &store);
    let lobby = room("lobby");
    let publisher = broker.publisher("");
    for number in 0..10_u32 {
        publisher.publish(&lobby, &[NewRecord::new(&number.to_le_bytes())], None).await.expect("stored");
    }
    assert_eq!(broker.health(), Health::Ok);
    for operation in 1..50 {
        disk.fail_at(disk.operations() + operation, Fault::Eio);
    }
    let refused = publisher.publish(&lobby, &[NewRecord::new(b"lost")], None).await.expect_err("the disk fails");
    assert_eq!((refused.code, refused.kind()), (Code::StorageFailed, ErrorKind::Reopen));
    assert!(matches!(broker.health(), Health::Failed(_)));
    let again = publisher.publish(&lobby, &[NewRecord::new(b"lost too")], None).await.expect_err("nothing more");
    assert_eq!(again.code, Code::StorageFailed);
    let mut reader = broker.join(&lobby, Start::Earliest).await.expect("reading goes on");
    assert_eq!(payloads(&mut reader, 10).await.len(), 10);
    broker.close().await;
    drop((reader, publisher, broker));

    let disk = disk.after_kill(2);
    let broker = on(&disk, &store);
    assert_eq!(broker.health(), Health::Ok);
    let mut reader = broker.join(&lobby, Start::Earliest).await.expect("joined");
    let seen = payloads(&mut reader, 10).await;
    assert_eq!(seen, (0..10_u32).map(|number| number.to_le_bytes().to_vec()).collect::<Vec<_>>());
    broker.publish(&lobby, b"goes on").await.expect("stored");
    broker.close().await;
}

#[tokio::test]
async fn a_closed_broker_answers_everything_and_hangs_nobody() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let lobby = room("lobby");
    broker.publish(&lobby, b"one").await.expect("stored");
    let mut reader = broker.join(&lobby, Start::Earliest).await.expect("joined");
    assert_eq!(payloads(&mut reader, 1).await.len(), 1);
    broker.close().await;
    broker.close().await;
    let publish = tokio::time::timeout(PATIENCE, broker.publish(&lobby, b"two")).await.expect("an answer");
    assert_eq!(publish.expect_err("closed").code, Code::ShuttingDown);
    let page =
        tokio::time::timeout(PATIENCE, broker.history(&lobby, PageAt::Before(None), 10)).await.expect("an answer");
    assert_eq!(page.expect_err("closed").code, Code::ShuttingDown);
}

#[tokio::test]
async fn two_brokers_in_one_process_share_nothing() {
    let (one, two) = (TempDir::new().expect("a directory"), TempDir::new().expect("a directory"));
    let (one, two) = (open(&one).await, open(&two).await);
    let lobby = room("lobby");
    one.publish(&lobby, b"one").await.expect("stored");
    assert_ne!(one.epoch(), two.epoch());
    assert_eq!(two.summary(&[lobby]).await.expect("answered")[0].facts.head, Offset::ZERO);
}

#[tokio::test]
async fn one_directory_serves_one_broker_at_a_time() {
    let directory = TempDir::new().expect("a directory");
    let broker = open(&directory).await;
    let refused = Broker::open(Options::new(directory.path())).await.expect_err("in use");
    assert!(refused.to_string().contains("in use"), "{refused}");
    broker.close().await;
    open(&directory).await.close().await;
}

#[tokio::test]
async fn a_page_around_a_record_holds_it_however_large_its_neighbours_are() {
    let broker = Broker::open(Options::in_memory()).await.expect("memory is enough");
    let lobby = room("lobby");
    let mut offsets = Vec::new();
    for _ in 0..20 {
        offsets.push(broker.publish(&lobby, &vec![0; 200_000]).await.expect("stored").first);
    }
    for middle in [0, 1, 10, 19].map(|index: usize| offsets[index]) {
        let position = Position { epoch: broker.epoch(), offset: middle };
        let page = broker.history(&lobby, PageAt::Around(position), 20).await.expect("a page");
        assert!(page.parts.iter().any(|part| part.from <= middle && middle <= part.to), "{middle} is on its page");
        assert!(page.more, "there is more on either side or on both");
        let alone = broker.history(&lobby, PageAt::Around(position), 1).await.expect("a page");
        assert_eq!(alone.parts.len(), 1);
        assert!(alone.more, "a page of one record leaves out others");
    }
    broker.close().await;
}
