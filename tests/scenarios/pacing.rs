//! Pacing: a client that grants little at a time gets everything all the same.

use roomlog::client::{Event, JoinOptions};
use roomlog::types::{NewRecord, Start};

use super::scenarios;
use super::world::{Peer, Via, World, room, soon};

scenarios! {
    a_window_smaller_than_a_batch_is_overdrawn_and_made_up_for,
}

/// Each delivery may overdraw the window by nearly a batch: if the two sides counted that differently, the reader would
/// wait for ever after a few.
async fn a_window_smaller_than_a_batch_is_overdrawn_and_made_up_for(via: Via, stride: u64) {
    let world = World::start(via, |options| options.storage.offset_stride = stride).await;
    let (peer, lobby) = (world.peer().await, room("lobby"));
    let payload = vec![b'x'; 900];
    let records: Vec<_> = (0..1000).map(|_| NewRecord::new(&payload)).collect();
    for _ in 0..3 {
        peer.publish_all(&lobby, &records, None).await.expect("stored");
    }
    let Peer::Client(client) = peer else { return };
    for window in [1, 10_000, 65_536, 100_000] {
        let options = JoinOptions::default().bytes_max(window);
        let mut paced = soon("a join", client.join_with(&lobby, Start::Earliest, options)).await.expect("joined");
        let mut seen = 0;
        while seen < 3000 {
            match soon("a batch", paced.next()).await {
                Some(Event::Batch(batch)) => seen += batch.records().count(),
                Some(Event::Left { why }) => panic!("it ended: {why}"),
                Some(_) => {}
                None => panic!("it ended"),
            }
        }
        assert_eq!(seen, 3000, "with a window of {window} bytes");
    }
}
