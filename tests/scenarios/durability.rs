//! The weaker durabilities: what they keep, and what they say about it.

use roomlog::storage::Durability;
use roomlog::types::{Code, Start};

use super::scenarios;
use super::world::{Got, Via, World, after, payloads, room};

scenarios! {
    with_os_durability_an_orderly_restart_keeps_records_and_epoch,
    with_memory_durability_every_start_is_a_new_epoch_and_nothing_is_written,
}

async fn with_os_durability_an_orderly_restart_keeps_records_and_epoch(via: Via, stride: u64) {
    let mut world = World::start(via, |options| {
        options.storage.offset_stride = stride;
        options.storage.durability = Durability::Os;
        options.storage.stretch_bytes = 128 << 10;
    })
    .await;
    let (peer, lobby, epoch) = (world.peer().await, room("lobby"), world.broker().epoch());
    for number in 0..500_u32 {
        peer.publish(&lobby, &number.to_le_bytes()).await.expect("stored");
    }
    drop(peer);
    world.restart().await;
    assert_eq!(world.broker().epoch(), epoch);
    let mut reader = world.peer().await.join(&lobby, Start::Earliest).await.expect("joined");
    let expected: Vec<_> = (0..500_u32).map(|number| number.to_le_bytes().to_vec()).collect();
    assert_eq!(payloads(&reader.records(0, 500).await), expected);
}

async fn with_memory_durability_every_start_is_a_new_epoch_and_nothing_is_written(via: Via, stride: u64) {
    let mut world = World::start(via, |options| {
        options.storage.offset_stride = stride;
        options.storage.durability = Durability::Memory;
        options.storage.stretch_bytes = 128 << 10;
        options.storage.tails_bytes_max = 16 << 10;
    })
    .await;
    let (peer, lobby, epoch) = (world.peer().await, room("lobby"), world.broker().epoch());
    let mut last = 0;
    for number in 0..1000_u32 {
        last = peer.publish(&lobby, &number.to_le_bytes()).await.expect("stored").last;
    }
    let mut reader = peer.join(&lobby, Start::Earliest).await.expect("joined");
    assert_eq!(reader.records(0, 1000).await.len(), 1000, "out of volumes in memory, too");
    let written = std::fs::read_dir(world.directory.path()).expect("the directory is there").count();
    assert_eq!(written, 0, "nothing is on the disk");
    drop((peer, reader));
    world.restart().await;
    assert_ne!(world.broker().epoch(), epoch);
    let peer = world.peer().await;
    assert_eq!(peer.join(&lobby, after(epoch, last)).await.err(), Some(Code::VoidEpoch));
    let mut reader = peer.join(&lobby, Start::Earliest).await.expect("joined");
    assert_eq!(reader.next().await, Got::Live(0));
}
