//! Joins: one log from a start on, without a seam between what was and what comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use roomlog::broker::PageAt;
use roomlog::types::{Code, Epoch, Header, Headers, NewRecord, Offset, Position, Start};

use super::scenarios;
use super::world::{Got, Seen, Via, World, after, payloads, room};

scenarios! {
    readers_before_during_and_after_see_the_same_records_in_order,
    a_hundred_readers_of_a_room_see_the_same_records_in_order,
    joins_at_random_moments_under_load_have_unbroken_chains,
    each_start_begins_where_it_says,
    a_position_that_cannot_be_gone_on_from_is_void,
    pages_lead_through_a_room_in_both_directions,
    rooms_are_listed_by_name_in_pages,
    a_record_arrives_as_it_was_published,
    many_records_are_stored_all_or_none,
    refusals_leave_the_room_as_it_was,
}

async fn world(via: Via, stride: u64) -> World {
    World::start(via, |options| options.storage.offset_stride = stride).await
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|number| number.to_string().into_bytes()).collect()
}

async fn readers_before_during_and_after_see_the_same_records_in_order(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (ada, bob, lobby) = (world.peer().await, world.peer().await, room("lobby"));
    let mut before = bob.join(&lobby, Start::New).await.expect("an empty room can be joined");
    assert_eq!(before.next().await, Got::Live(0), "an empty room is live at once");
    for payload in numbers(0..100) {
        ada.publish(&lobby, &payload).await.expect("stored");
    }
    let mut during = bob.join(&lobby, Start::Earliest).await.expect("joined");
    for payload in numbers(100..200) {
        ada.publish(&lobby, &payload).await.expect("stored");
    }
    let mut later = world.peer().await.join(&lobby, Start::Earliest).await.expect("joined");
    let expected = numbers(0..200);
    let first = before.records(0, 200).await;
    assert_eq!(payloads(&first), expected);
    assert_eq!(during.records(0, 200).await, first);
    assert_eq!(later.records(0, 200).await, first);
    assert_eq!(first.last().map(|record| record.offset), Some(200 * stride));
}

/// More than are served where a commit is made, and more than a task of the fan-out takes at a time.
async fn a_hundred_readers_of_a_room_see_the_same_records_in_order(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let lobby = room("lobby");
    let mut readers = Vec::new();
    for _ in 0..100 {
        readers.push(world.peer().await.join(&lobby, Start::New).await.expect("joined"));
    }
    let mut publishers = Vec::new();
    for number in 0..4 {
        let (peer, lobby) = (world.peer().await, lobby.clone());
        publishers.push(tokio::spawn(async move {
            for count in 0..50 {
                peer.publish(&lobby, format!("{number}-{count}").as_bytes()).await.expect("stored");
            }
        }));
    }
    let expected = readers[0].records_at_least(0, 200).await;
    assert_eq!(expected.len(), 200);
    for reader in &mut readers[1..] {
        assert_eq!(reader.records_at_least(0, 200).await, expected);
    }
    for publisher in publishers {
        publisher.await.expect("no panic");
    }
}

async fn joins_at_random_moments_under_load_have_unbroken_chains(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (lobby, done) = (room("lobby"), Arc::new(AtomicBool::new(false)));
    let mut running = Vec::new();
    for number in 0..3 {
        let (peer, done, lobby) = (world.peer().await, Arc::clone(&done), lobby.clone());
        running.push(tokio::spawn(async move {
            let mut count = 0_u32;
            while !done.load(Ordering::Relaxed) {
                peer.publish(&lobby, format!("{number}-{count}").as_bytes()).await.expect("stored");
                count += 1;
            }
            count
        }));
    }
    let reader = world.peer().await;
    for round in 0..15 {
        let mut joined = reader.join(&lobby, Start::Earliest).await.expect("joined");
        let seen = joined.records_at_least(0, 20 + round).await;
        assert!(seen.windows(2).all(|pair| pair[1].prev == pair[0].offset));
        let mut new = reader.join(&lobby, Start::New).await.expect("joined");
        let (_, _, start) = new.position();
        new.records_at_least(start, 5).await;
    }
    done.store(true, Ordering::Relaxed);
    let mut total = 0;
    for publisher in running {
        total += publisher.await.expect("no panic");
    }
    let mut all = reader.join(&lobby, Start::Earliest).await.expect("joined");
    let seen = all.records(0, total as usize).await;
    for number in 0..3 {
        let of: Vec<_> = payloads(&seen)
            .into_iter()
            .filter(|payload| payload.starts_with(format!("{number}-").as_bytes()))
            .collect();
        let expected: Vec<_> = (0..of.len()).map(|count| format!("{number}-{count}").into_bytes()).collect();
        assert_eq!(of, expected, "each publisher's records are in its order, once");
    }
}

async fn each_start_begins_where_it_says(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (peer, lobby) = (world.peer().await, room("lobby"));
    let mut last = 0;
    for payload in numbers(0..50) {
        last = peer.publish(&lobby, &payload).await.expect("stored").last;
    }
    let page = peer.page(&lobby, PageAt::After(None), 50).await.expect("a page").0;
    let (epoch, head, _) = peer.join(&lobby, Start::New).await.expect("joined").position();
    assert_eq!(head, last);
    let read = async |start, count: usize, from: usize| {
        let mut reader = peer.join(&lobby, start).await.expect("joined");
        let (_, _, at) = reader.position();
        assert_eq!(payloads(&reader.records(at, count).await), numbers(0..50)[from..], "{start:?}");
        assert_eq!(reader.next().await, Got::Live(last), "{start:?} reaches the head");
    };
    read(Start::Earliest, 50, 0).await;
    read(Start::Last(7), 7, 43).await;
    read(Start::Last(50), 50, 0).await;
    read(Start::Last(1_000_000), 50, 0).await;
    read(after(epoch, page[9].offset), 40, 10).await;
    read(after(epoch, 0), 50, 0).await;
    let mut reader = peer.join(&lobby, Start::Last(0)).await.expect("joined");
    assert_eq!(reader.next().await, Got::Live(last));
    let middle = {
        // The time of a record is not told by a page's records here: read it from the broker.
        let broker = world.broker();
        let page = broker.history(&lobby, PageAt::After(None), 50).await.expect("a page");
        let records: Vec<_> = page
            .parts
            .iter()
            .flat_map(|part| {
                let records = roomlog::broker::Records(part.clone());
                records.iter().map(|record| record.expect("whole").time).collect::<Vec<_>>()
            })
            .collect();
        records[30]
    };
    let mut reader = peer.join(&lobby, Start::Since(middle)).await.expect("joined");
    let (_, _, start) = reader.position();
    let seen = reader.records(start, 20).await;
    assert_eq!(payloads(&seen), numbers(0..50)[30..], "since begins with the first record of that time");
}

async fn a_position_that_cannot_be_gone_on_from_is_void(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (peer, lobby) = (world.peer().await, room("lobby"));
    let stored = peer.publish(&lobby, b"one").await.expect("stored");
    let epoch = world.broker().epoch();
    let other = Epoch(if epoch.0 == 1 { 2 } else { epoch.0 - 1 });
    assert_eq!(peer.join(&lobby, after(other, stored.last)).await.err(), Some(Code::VoidEpoch));
    assert_eq!(peer.join(&lobby, after(epoch, stored.last + 1)).await.err(), Some(Code::BeyondHead));
    let beyond = Position { epoch, offset: Offset(stored.last + 1) };
    assert_eq!(peer.page(&lobby, PageAt::After(Some(beyond)), 1).await.err(), Some(Code::BeyondHead));
    let void = Position { epoch: other, offset: Offset(stored.last) };
    assert_eq!(peer.page(&lobby, PageAt::Before(Some(void)), 1).await.err(), Some(Code::VoidEpoch));
    let mut reader = peer.join(&lobby, Start::Earliest).await.expect("the session goes on");
    assert_eq!(payloads(&reader.records(0, 1).await), [b"one"]);
}

async fn pages_lead_through_a_room_in_both_directions(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (peer, lobby) = (world.peer().await, room("lobby"));
    for payload in numbers(0..95) {
        peer.publish(&lobby, &payload).await.expect("stored");
    }
    let epoch = world.broker().epoch();
    let position = |record: &Seen| Position { epoch, offset: Offset(record.offset) };

    let (mut all, mut at) = (Vec::<Seen>::new(), PageAt::After(None));
    loop {
        let (page, more) = peer.page(&lobby, at, 10).await.expect("a page");
        assert!(page.len() <= 10);
        all.extend(page);
        assert_eq!(more, all.len() < 95);
        if !more {
            break;
        }
        at = PageAt::After(Some(position(all.last().expect("not empty"))));
    }
    assert_eq!(payloads(&all), numbers(0..95));

    let (mut back, mut at) = (Vec::<Seen>::new(), PageAt::Before(None));
    loop {
        let (page, more) = peer.page(&lobby, at, 7).await.expect("a page");
        back.splice(0..0, page);
        assert_eq!(more, back.len() < 95);
        if !more {
            break;
        }
        at = PageAt::Before(Some(position(&back[0])));
    }
    assert_eq!(payloads(&back), numbers(0..95));

    let (around, _) = peer.page(&lobby, PageAt::Around(position(&all[50])), 11).await.expect("a page");
    assert_eq!(payloads(&around), numbers(45..56), "five before, itself, five behind");
    let (empty, more) = peer.page(&room("nobody was here"), PageAt::Before(None), 10).await.expect("a page");
    assert!(empty.is_empty() && !more);
}

async fn rooms_are_listed_by_name_in_pages(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let peer = world.peer().await;
    for name in ["b", "a/2", "a/1", "a/3", "ä", "c"] {
        peer.publish(&room(name), b"x").await.expect("stored");
    }
    let names =
        |(list, more): (Vec<(String, u64)>, bool)| (list.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), more);
    assert_eq!(
        names(peer.rooms("", "", 100).await),
        (["a/1", "a/2", "a/3", "b", "c", "ä"].map(String::from).to_vec(), false)
    );
    assert_eq!(names(peer.rooms("a/", "", 2).await), (["a/1", "a/2"].map(String::from).to_vec(), true));
    assert_eq!(names(peer.rooms("a/", "a/2", 2).await), (vec!["a/3".to_owned()], false));
    assert_eq!(names(peer.rooms("nothing", "", 2).await), (vec![], false));
}

async fn a_record_arrives_as_it_was_published(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (peer, lobby) = (world.peer().await, room("☃ room"));
    let stored = peer.publish(&lobby, &[0, 255, 10, 13, 0]).await.expect("stored");
    let edit = NewRecord {
        kind: "edit",
        reference: Offset(stored.first),
        headers: Headers(vec![
            Header { name: "content-type", value: b"text/plain" },
            Header { name: "x", value: &[0, 1] },
        ]),
        payload: b"better",
        extension: b"",
    };
    peer.publish_all(&lobby, &[edit], None).await.expect("stored");
    peer.publish(&lobby, b"").await.expect("an empty payload is one");
    let large = vec![7; 256 << 10];
    peer.publish(&lobby, &large).await.expect("the largest payload is stored");
    let mut reader = peer.join(&lobby, Start::Earliest).await.expect("joined");
    let seen = reader.records(0, 4).await;
    assert_eq!(seen[0].payload, [0, 255, 10, 13, 0]);
    assert_eq!((seen[1].kind.as_str(), seen[1].reference), ("edit", stored.first));
    assert_eq!(seen[1].headers, [("content-type".to_owned(), b"text/plain".to_vec()), ("x".to_owned(), vec![0, 1])]);
    assert_eq!(seen[2].payload, b"");
    assert_eq!(seen[3].payload, large);
}

async fn many_records_are_stored_all_or_none(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (peer, lobby) = (world.peer().await, room("lobby"));
    let payloads_: Vec<_> = numbers(0..1000);
    let records: Vec<_> = payloads_.iter().map(|payload| NewRecord::new(payload)).collect();
    let stored = peer.publish_all(&lobby, &records, None).await.expect("stored");
    assert_eq!((stored.first, stored.last), (stride, 1000 * stride));
    let big = vec![b'x'; 100 << 10];
    let large: Vec<_> = (0..10).map(|_| NewRecord::new(&big)).collect();
    peer.publish_all(&lobby, &large, None).await.expect("a megabyte in one publish");
    let mut reader = peer.join(&lobby, Start::Earliest).await.expect("joined");
    let seen = reader.records(0, 1010).await;
    assert_eq!(payloads(&seen[..1000]), payloads_);
    assert!(seen[1000..].iter().all(|record| record.payload == big));
}

async fn refusals_leave_the_room_as_it_was(via: Via, stride: u64) {
    let world = world(via, stride).await;
    let (peer, lobby) = (world.peer().await, room("lobby"));
    let stored = peer.publish(&lobby, b"one").await.expect("stored");
    let two = [NewRecord::new(b"two")];
    assert_eq!(peer.publish_all(&lobby, &two, Some(stored.last + 1)).await, Err(Code::ExpectFailed));
    let next = peer.publish_all(&lobby, &two, Some(stored.last)).await.expect("the head is as expected");
    assert_eq!(next.first, stored.last + stride);
    let huge = vec![0; (256 << 10) + 1];
    assert_eq!(peer.publish(&lobby, &huge).await, Err(Code::TooLarge));
    peer.publish(&lobby, b"three").await.expect("a refusal does not end the queue");
    let mut reader = peer.join(&lobby, Start::Earliest).await.expect("joined");
    assert_eq!(payloads(&reader.records(0, 3).await), [&b"one"[..], b"two", b"three"]);
}
