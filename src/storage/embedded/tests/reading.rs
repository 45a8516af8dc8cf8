//! Reads at the edges: below the floor, across journal and volumes, at a close.

use super::*;

fn short_log(disk: &FaultyDisk) -> Stepped {
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    Stepped::open(options(1), disk, &store).expect("a new log")
}

/// 600 records in a volume of several blocks, of which retention has left the last five.
fn cut_volume(log: &mut Stepped) -> Arc<Room> {
    let mut publisher = Source::new("short-a");
    for _ in 0..30 {
        log.publish(&[publisher.next(20, 300)]).pop().expect("one answer").expect("stored");
    }
    log.keeper.build().expect("built");
    log.keeper.retain();
    assert_eq!(log.committer.step(), Step::Answered);
    let room = log.shared.catalog.room("short-a").expect("a room");
    assert_eq!((room.facts().floor, room.facts().first), (Offset(595), Offset(596)));
    room
}

#[test]
fn a_read_from_below_the_floor_finds_the_oldest_that_is_retained() {
    let disk = FaultyDisk::new(1);
    let mut log = short_log(&disk);
    let room = cut_volume(&mut log);
    let oldest = Time(1);
    for at in [ReadAt::After(Offset::ZERO), ReadAt::After(Offset(300)), ReadAt::Since(oldest)] {
        match log.shared.read(&room, at).expect("readable") {
            Read::Block(block) => assert!(block.prev <= Offset(595) && block.last > Offset(595), "{at:?}: {block:?}"),
            Read::Nothing => panic!("{at:?} finds nothing, though five records are retained"),
        }
    }
    let before = log.shared.read(&room, ReadAt::Before(Offset(596))).expect("readable");
    assert!(matches!(before, Read::Nothing), "nothing is retained before the first: {before:?}");
}

#[test]
fn a_read_that_the_close_overtakes_is_not_told_as_damage() {
    let disk = FaultyDisk::new(1);
    let mut log = short_log(&disk);
    let room = cut_volume(&mut log);
    log.shared.closed.store(true, Ordering::SeqCst);
    log.shared.volumes.close();
    let read = log.shared.read(&room, ReadAt::After(Offset(595)));
    assert!(matches!(read, Err(EngineError::Closed)), "{read:?}");
}

/// Found by a reader in the midst of a burst: the heads of runs were not counted when a batch was filled, nor that they
/// get longer when neighbours of the journal are joined.
#[test]
fn a_body_of_more_than_64_kib_is_a_single_record() {
    let disk = FaultyDisk::new(1);
    let mut log = short_log(&disk);
    // `read` looks at every body, forward and backward.
    let mut publisher = Source::new("one");
    for bytes in (BATCH_BYTES_MAX - 300..BATCH_BYTES_MAX + 10).step_by(5) {
        log.publish(&[publisher.next(2, bytes / 2), publisher.next(1, 10)]);
        log.publish(&[publisher.next(1, bytes)]);
        log.publish(&[publisher.next(20, bytes / 10)]);
    }
    assert_eq!(log.read("one").len(), 62 * 24);
    for commit in 0..60_u64 {
        // Neighbours in time as far apart as commits of a quiet room.
        log.shared.clock_ahead_us.fetch_add(100_000_000, Ordering::Relaxed);
        let one = |publisher: u8| Publish {
            room: "two".to_owned(),
            publisher: PublisherId([publisher; 16]),
            seq: commit + 1,
            payloads: vec![vec![b'x'; 3]],
        };
        let publishes: Vec<_> = (0..100).map(one).collect();
        assert!(log.publish(&publishes).iter().all(Result::is_ok));
    }
    assert_eq!(log.read("two").len(), 6000);
}
