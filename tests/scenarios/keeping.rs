//! Keeping: what was stored is there after restarts, out of volumes, and as far as retention says.

use roomlog::broker::PageAt;
use roomlog::storage::Retention;
use roomlog::types::Start;

use super::scenarios;
use super::world::{Got, Via, World, after, payloads, room};

scenarios! {
    records_and_positions_outlive_a_restart,
    history_from_volumes_is_the_same_as_from_memory,
    retention_tells_a_gap_and_goes_on,
    a_room_trimmed_to_nothing_goes_on_at_its_next_offset,
}

fn text(number: u32) -> Vec<u8> {
    format!("record {number} {}", "x".repeat(number as usize % 300)).into_bytes()
}

async fn records_and_positions_outlive_a_restart(via: Via, stride: u64) {
    let mut world = World::start(via, |options| options.storage.offset_stride = stride).await;
    let lobby = room("lobby");
    let peer = world.peer().await;
    for number in 0..50 {
        peer.publish(&lobby, &text(number)).await.expect("stored");
    }
    let epoch = world.broker().epoch();
    let mut reader = peer.join(&lobby, Start::Earliest).await.expect("joined");
    let seen = reader.records_at_least(0, 20).await;
    let at = seen[19].offset;
    drop((reader, peer));
    world.restart().await;
    assert_eq!(world.broker().epoch(), epoch, "an orderly restart keeps the epoch");
    let peer = world.peer().await;
    let stored = peer.publish(&lobby, &text(50)).await.expect("stored");
    assert_eq!(stored.first, 51 * stride, "offsets go on");
    let mut resumed = peer.join(&lobby, after(epoch, at)).await.expect("a position needs no session");
    let rest = resumed.records(at, 31).await;
    assert_eq!(payloads(&rest), (20..51).map(text).collect::<Vec<_>>());
}

async fn history_from_volumes_is_the_same_as_from_memory(via: Via, stride: u64) {
    let mut world = World::start(via, |options| {
        options.storage.offset_stride = stride;
        options.storage.stretch_bytes = 256 << 10;
        options.storage.tails_bytes_max = 64 << 10;
    })
    .await;
    let rooms = [room("a"), room("b"), room("c")];
    let peer = world.peer().await;
    for number in 0..3000 {
        peer.publish(&rooms[number as usize % 3], &text(number)).await.expect("stored");
    }
    for round in 0..2 {
        for (index, name) in rooms.iter().enumerate() {
            let expected: Vec<_> = (0..3000).filter(|number| *number as usize % 3 == index).map(text).collect();
            let mut reader = world.peer().await.join(name, Start::Earliest).await.expect("joined");
            let seen = reader.records(0, 1000).await;
            assert_eq!(payloads(&seen), expected, "round {round}");
            let mut last = world.peer().await.join(name, Start::Last(700)).await.expect("joined");
            let (_, _, start) = last.position();
            assert_eq!(payloads(&last.records(start, 700).await), expected[300..]);
            let (page, more) = world.peer().await.page(name, PageAt::Before(None), 400).await.expect("a page");
            assert_eq!(payloads(&page), expected[600..]);
            assert!(more);
        }
        world.restart().await;
    }
    let volumes = std::fs::read_dir(world.directory.path().join("volumes")).expect("there are volumes");
    assert!(volumes.count() > 0, "some of it came out of volumes");
}

fn keep(records: u64) -> Retention {
    Retention { rooms: "short/*".to_owned(), max_records: Some(records), ..Retention::default() }
}

async fn retention_tells_a_gap_and_goes_on(via: Via, stride: u64) {
    let world = World::start(via, |options| {
        options.storage.offset_stride = stride;
        options.storage.retention = vec![keep(10)];
    })
    .await;
    let (peer, short, long) = (world.peer().await, room("short/one"), room("long"));
    for number in 0..100 {
        peer.publish(&short, &text(number)).await.expect("stored");
        peer.publish(&long, &text(number)).await.expect("stored");
    }
    let epoch = world.broker().epoch();
    // Retention is a matter of a second or two; wait for it by looking.
    let first = loop {
        let (page, _) = peer.page(&short, PageAt::After(None), 100).await.expect("a page");
        if page.len() == 10 {
            break page[0].offset;
        }
        assert!(page.len() > 10, "retention keeps ten");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(first, 91 * stride);
    let mut reader = peer.join(&short, after(epoch, 5 * stride)).await.expect("joined");
    assert_eq!(reader.next().await, Got::Gap(5 * stride, 90 * stride));
    assert_eq!(payloads(&reader.records(90 * stride, 10).await), (90..100).map(text).collect::<Vec<_>>());
    let mut earliest = peer.join(&short, Start::Earliest).await.expect("joined");
    assert_eq!(earliest.records(90 * stride, 10).await.len(), 10, "earliest begins at the floor, without a gap");
    let mut untouched = peer.join(&long, Start::Earliest).await.expect("joined");
    untouched.records(0, 100).await;
}

async fn a_room_trimmed_to_nothing_goes_on_at_its_next_offset(via: Via, stride: u64) {
    let mut world = World::start(via, |options| {
        options.storage.offset_stride = stride;
        options.storage.stretch_bytes = 64 << 10;
        let nothing =
            Retention { rooms: "*".to_owned(), max_age: Some(std::time::Duration::ZERO), ..Retention::default() };
        options.storage.retention = vec![nothing];
    })
    .await;
    let lobby = room("lobby");
    let peer = world.peer().await;
    for number in 0..20 {
        peer.publish(&lobby, &text(number)).await.expect("stored");
    }
    let epoch = world.broker().epoch();
    loop {
        let (page, _) = peer.page(&lobby, PageAt::After(None), 100).await.expect("a page");
        if page.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    drop(peer);
    world.restart().await;
    let peer = world.peer().await;
    let mut reader = peer.join(&lobby, after(epoch, 20 * stride)).await.expect("the head is remembered");
    assert_eq!(reader.next().await, Got::Live(20 * stride));
    let stored = peer.publish(&lobby, b"next").await.expect("stored");
    assert_eq!(stored.first, 21 * stride, "no offset is used twice");
    assert_eq!(payloads(&reader.records(20 * stride, 1).await), [b"next"]);
}
