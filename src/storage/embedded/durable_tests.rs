//! At the very moment of an acknowledgement, and of a wake, the power goes: the record is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::committer::Committer;
use super::recovery::{Parts, assemble};
use super::*;
use crate::protocol::{Batch, RecordArea};
use crate::storage::block_store::{BlockStore, MemoryBlockStore};
use crate::storage::disk::FaultyDisk;
use crate::storage::engine::{Reply, record_hash};
use crate::storage::marks::Durability;
use crate::storage::room::{Follow, Targets};
use crate::types::{NewRecord, Offset, PublisherId};

/// Opens what is left of the disk if the power goes now, and looks how many records the room has.
#[derive(Debug)]
struct Witness {
    disk: FaultyDisk,
    store: Arc<dyn BlockStore>,
    options: Options,
    room: Arc<Room>,
    looks: AtomicUsize,
}

impl Witness {
    /// `None` if what is left cannot be opened.
    fn records_if_the_power_goes_now(&self) -> Option<u64> {
        let look = self.looks.fetch_add(1, Ordering::SeqCst);
        let disk = Arc::new(self.disk.reopen(look as u64));
        let parts = assemble(self.options.clone(), Arc::new(Metrics::disabled()), disk, Arc::clone(&self.store));
        let shared = parts.ok()?.shared;
        let room = shared.catalog.room("lobby").expect("a room");
        let (mut at, mut records) = (Offset::ZERO, 0);
        while let Read::Block(block) = shared.read(&room, ReadAt::After(at)).expect("readable") {
            records += u64::from(Batch::parse(&block.body).expect("a batch").header.count);
            at = block.last;
        }
        Some(records)
    }

    /// What anybody can see by now has to be there.
    fn check(&self) {
        let visible = self.room.facts().records;
        assert!(self.records_if_the_power_goes_now() >= Some(visible), "{visible} records are visible");
    }
}

impl Reply for Witness {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        for answer in answers {
            let last = answer.outcome.as_ref().expect("stored").last;
            assert!(self.records_if_the_power_goes_now() >= Some(last.0), "offset {last} is acknowledged");
        }
        self.check();
    }
}

impl Follow for Witness {
    fn advanced(&self, _targets: Targets) {
        self.check();
    }
}

#[test]
fn what_is_acknowledged_or_visible_survives_a_power_cut_at_that_moment() {
    let disk = FaultyDisk::new(7);
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    let options = Options { disk_reserve_bytes: 0, ..Options::new("") };
    let parts = assemble(options.clone(), Arc::new(Metrics::disabled()), Arc::new(disk.clone()), Arc::clone(&store));
    let Parts { shared, journal, next_room, .. } = parts.expect("a new log");
    let room = shared.catalog.room("lobby").expect("a room");
    let witness = Arc::new(Witness { disk, store, options, room: Arc::clone(&room), looks: AtomicUsize::new(0) });
    room.follow(Arc::clone(&witness) as Arc<dyn Follow>);
    let mut committer = Committer::new(Arc::clone(&shared), journal, next_room);
    let mut seq = 1_u64;
    for commit in 1..=20_u64 {
        let mut submission = Submission::new(Arc::clone(&witness) as Arc<dyn Reply>);
        for _ in 0..commit % 4 + 1 {
            let mut area = Vec::new();
            RecordArea::push(&mut area, &NewRecord::new(&seq.to_le_bytes()));
            let (record, _) = RecordArea(&area).split_first().expect("encoded").expect("one");
            let hash = record_hash(record);
            submission.push(&room, &Arc::from(""), PublisherId([1; 16]), seq, None, 0, &area, &[hash]);
            seq += 1;
        }
        assert!(shared.queue.submit(&mut submission));
        committer.step();
        assert_eq!(room.facts().records, seq - 1);
    }
    let looks = witness.looks.load(Ordering::SeqCst);
    assert!(looks >= 20, "it was looked at every acknowledgement and every wake: {looks}");
}

/// The counterpart: with a weaker durability the same look finds less, so the look can fail.
#[test]
fn without_a_sync_a_power_cut_loses_what_was_acknowledged() {
    let disk = FaultyDisk::new(7);
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    let options = Options { durability: Durability::Os, disk_reserve_bytes: 0, ..Options::new("") };
    let parts = assemble(options.clone(), Arc::new(Metrics::disabled()), Arc::new(disk.clone()), Arc::clone(&store));
    let Parts { shared, journal, next_room, .. } = parts.expect("a new log");
    let room = shared.catalog.room("lobby").expect("a room");
    #[derive(Debug)]
    struct Nobody;
    impl Reply for Nobody {
        fn answered(&self, answers: &[Answer], _targets: Targets) {
            assert!(answers.iter().all(|answer| answer.outcome.is_ok()));
        }
    }
    let mut committer = Committer::new(Arc::clone(&shared), journal, next_room);
    let witness = Witness { disk, store, options, room: Arc::clone(&room), looks: AtomicUsize::new(0) };
    for seq in 1..=30_u64 {
        let mut area = Vec::new();
        RecordArea::push(&mut area, &NewRecord::new(b"x"));
        let (record, _) = RecordArea(&area).split_first().expect("encoded").expect("one");
        let hash = record_hash(record);
        let mut submission = Submission::new(Arc::new(Nobody));
        submission.push(&room, &Arc::from(""), PublisherId([1; 16]), seq, None, 0, &area, &[hash]);
        assert!(shared.queue.submit(&mut submission));
        committer.step();
    }
    assert_eq!(room.facts().records, 30);
    assert!(witness.records_if_the_power_goes_now() < Some(30), "nothing was synced");
}
