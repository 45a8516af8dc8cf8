//! What is built is what was given; what fails leaves rubbish.

use std::collections::HashMap;

use rand::Rng as _;

use super::rig::{Log, Place, Shape, assert_same, read_room, seeded};
use crate::storage::Compression;
use crate::storage::block_store::{MemoryBlockStore, VALUE_BYTES_MAX};
use crate::storage::disk::{Fault, FaultyDisk};
use crate::storage::volume::merge::BODY_BYTES_TARGET;
use crate::storage::volume::{Input, VolumeErrorKind, VolumeId, build, delete, found, reread};
use crate::types::{Limits, Offset};

#[test]
fn a_volume_holds_exactly_what_it_was_built_of() {
    let mut random = seeded("a_volume_holds_exactly_what_it_was_built_of");
    for round in 0..6 {
        let place = if round % 2 == 0 { Place::memory(FaultyDisk::new(0)) } else { Place::sled() };
        let shape =
            Shape { rooms: [1, 7, 60][round % 3], batches: 300, striding: round < 3, payload_bytes_max: 40_000 };
        let mut log = Log::default();
        let input = log.stretch(&mut random, &shape);
        let info = place.build(1, &input);
        let volumes = place.open(&[1]);
        assert_same(&log, &volumes);
        let records: usize = log.rooms.values().map(Vec::len).sum();
        assert_eq!((info.records, info.rooms), (records as u64, log.rooms.len() as u64));
        assert_eq!(volumes.infos(), [info]);
        drop(volumes);
        assert_eq!(place.check(1), []);
    }
}

#[test]
fn records_of_the_greatest_size_come_back_whole() {
    let mut random = seeded("records_of_the_greatest_size_come_back_whole");
    let place = Place::sled();
    let payload_bytes_max = Limits::CEILINGS.payload_bytes;
    let mut log = Log::default();
    let shape = Shape { rooms: 3, batches: 40, striding: true, payload_bytes_max };
    let input = log.stretch(&mut random, &shape);
    assert!(input.iter().any(|input| input.body.len() > 4 * VALUE_BYTES_MAX), "some are larger than a value");
    place.build(1, &input);
    assert_same(&log, &place.open(&[1]));
}

#[test]
fn small_batches_are_merged_and_large_ones_are_split() {
    let mut random = seeded("small_batches_are_merged_and_large_ones_are_split");
    let place = Place::memory(FaultyDisk::new(0));
    let mut log = Log::default();
    let shape = Shape { rooms: 2, batches: 2000, striding: false, payload_bytes_max: 1000 };
    let input = log.stretch(&mut random, &shape);
    let info = place.build(1, &input);
    let mean = info.body_bytes / info.blocks;
    assert!(mean > BODY_BYTES_TARGET as u64 * 3 / 4, "blocks have {mean} bytes on average");
    let volumes = place.open(&[1]);
    for room in log.rooms.keys() {
        let mut after = Offset::ZERO;
        while let Some(located) = volumes.locate_after(*room, after).unwrap() {
            assert!(located.entry.body_bytes as usize <= BODY_BYTES_TARGET || located.entry.records == 1);
            after = located.entry.last;
        }
    }
}

#[test]
fn records_at_or_below_the_floor_are_left_out_and_the_chain_stays_true() {
    let mut random = seeded("records_at_or_below_the_floor_are_left_out_and_the_chain_stays_true");
    for striding in [false, true] {
        let place = Place::memory(FaultyDisk::new(0));
        let mut log = Log::default();
        let input = log.stretch(&mut random, &Shape { rooms: 9, batches: 300, striding, payload_bytes_max: 9000 });
        let floors: HashMap<u64, Offset> = log
            .rooms
            .iter()
            .map(|(room, records)| {
                let last = records.last().unwrap().offset.0;
                // Nothing, anything, or everything; a floor need not be a record's offset.
                let floor = [0, random.random_range(0..=last), last + 5][random.random_range(0..3)];
                (*room, Offset(floor))
            })
            .collect();
        let built = place.try_build(1, input.into_iter().map(Ok), |room| floors[&room]).unwrap();
        for (room, floor) in &floors {
            log.trim(*room, *floor);
        }
        let records: usize = log.rooms.values().map(Vec::len).sum();
        assert_eq!(built.map_or(0, |info| info.records), records as u64);
        if built.is_some() {
            // The records know their `prev`, also the first one above the floor.
            assert_same(&log, &place.open(&[1]));
            assert_eq!(place.check(1), []);
        }
    }
}

#[test]
fn of_nothing_there_is_no_volume_and_no_rubbish() {
    for place in Place::both() {
        let mut log = Log::default();
        let mut random = seeded("of_nothing_there_is_no_volume_and_no_rubbish");
        let shape = Shape { rooms: 5, batches: 20, striding: false, payload_bytes_max: 100 };
        let input = log.stretch(&mut random, &shape);
        assert_eq!(place.try_build(1, input.into_iter().map(Ok), |_| Offset::MAX).unwrap(), None);
        assert_eq!(place.try_build(2, std::iter::empty(), |_| Offset::ZERO).unwrap(), None);
        assert_eq!(found(&*place.disk).unwrap(), []);
    }
}

#[test]
fn volumes_are_joined_and_rewritten_to_what_they_held_above_the_floors() {
    let mut random = seeded("volumes_are_joined_and_rewritten_to_what_they_held_above_the_floors");
    for place in Place::both() {
        let mut log = Log::default();
        let shape = Shape { rooms: 12, batches: 150, striding: true, payload_bytes_max: 20_000 };
        for id in 1..=4 {
            place.build(id, &log.stretch(&mut random, &shape));
        }
        let volumes = place.open(&[4, 2, 1, 3]);
        assert_same(&log, &volumes);
        let mut floors = HashMap::new();
        for (room, records) in &log.rooms {
            let floor = [Offset::ZERO, records[random.random_range(0..records.len())].offset];
            floors.insert(*room, floor[random.random_range(0..2)]);
        }
        let floor = |room: u64| floors[&room];
        let ids = [VolumeId(2), VolumeId(1), VolumeId(3)];
        let input = reread(&volumes, &ids, floor).unwrap();
        place.try_build(5, input, floor).unwrap().expect("something is left");
        // The joined volume has the place of its first input.
        let all = [VolumeId(4), VolumeId(5)];
        volumes.swap(&[], &ids).unwrap();
        assert_eq!(volumes.sweep().unwrap(), 3);
        assert_eq!(found(&*place.disk).unwrap(), all);
        assert_eq!(place.check(5), []);
        let rewritten = place.open(&[5]);
        for (room, floor) in &floors {
            let kept = read_room(&rewritten, *room).unwrap();
            let whole: Vec<_> = log.rooms[room].iter().filter(|record| record.offset > *floor).cloned().collect();
            let tail = read_room(&volumes, *room).unwrap();
            let both: Vec<_> =
                kept.into_iter().chain(tail.into_iter().filter(|record| record.offset > *floor)).collect();
            assert_eq!(both.len(), whole.len(), "room {room}");
            assert!(both == whole, "room {room}");
        }
    }
}

#[test]
fn what_compresses_is_stored_smaller_and_nothing_is_compressed_against_the_wish() {
    let mut random = seeded("what_compresses_is_stored_smaller_and_nothing_is_compressed_against_the_wish");
    let place = Place::memory(FaultyDisk::new(0));
    let mut log = Log::default();
    let shape = Shape { rooms: 3, batches: 100, striding: false, payload_bytes_max: 30_000 };
    let input = log.stretch(&mut random, &shape);
    let compressed = place.build(1, &input);
    assert!(compressed.stored_bytes < compressed.body_bytes * 9 / 10);
    let input = input.into_iter().map(Ok);
    let (id, none) = (VolumeId(2), Compression::None);
    let built = build(&*place.disk, &*place.store, id, (1, 1), none, input, |_| Offset::ZERO);
    let plain = built.unwrap().unwrap();
    assert_eq!((plain.stored_bytes, plain.body_bytes), (compressed.body_bytes, compressed.body_bytes));
    assert_same(&log, &place.open(&[2]));
}

#[test]
fn input_out_of_order_is_refused() {
    let mut random = seeded("input_out_of_order_is_refused");
    let place = Place::memory(FaultyDisk::new(0));
    let shape = Shape { rooms: 1, batches: 3, striding: true, payload_bytes_max: 100 };
    let input = Log::default().stretch(&mut random, &shape);
    let of_room = |room: u64| Input { room, ..input[0].clone() };
    let wrong: [&[Input]; 5] = [
        &[input[1].clone(), input[0].clone()],
        &[input[0].clone(), input[2].clone()],
        &[input[0].clone(), input[0].clone()],
        &[of_room(5), of_room(4)],
        &[Input { body: input[0].body.slice(..input[0].body.len() - 1), ..input[0].clone() }],
    ];
    for (id, wrong) in (1..).zip(wrong) {
        let error = place.try_build(id, wrong.iter().cloned().map(Ok), |_| Offset::ZERO).unwrap_err();
        assert_eq!(error.kind(), VolumeErrorKind::Input, "{error}");
    }
}

#[test]
fn a_build_that_fails_at_any_operation_leaves_rubbish_that_is_deleted() {
    let mut random = seeded("a_build_that_fails_at_any_operation_leaves_rubbish_that_is_deleted");
    let disk = FaultyDisk::new(random.random());
    let place = Place::memory(disk.clone());
    let mut log = Log::default();
    let shape = Shape { rooms: 99, batches: 300, striding: false, payload_bytes_max: 9000 };
    let input = log.stretch(&mut random, &shape);
    for fault in [Fault::Enospc, Fault::Short { bytes: 1000 }, Fault::Torn] {
        let kind = if fault == Fault::Torn { VolumeErrorKind::Io } else { VolumeErrorKind::Full };
        let (mut failures, mut whole) = (0, 0);
        for operation in 1.. {
            disk.fail_at(disk.operations() + operation, fault);
            let failed = place.try_build(1, input.iter().cloned().map(Ok), |_| Offset::ZERO);
            let Err(error) = failed else { break };
            assert_eq!(error.kind(), kind, "{error}");
            failures += 1;
            // When only the last syncs failed, all of it is there, though nobody may rely on it.
            if place.check(1).is_empty() {
                assert_same(&log, &place.open(&[1]));
                whole += 1;
            }
            delete(&disk, &*place.store, VolumeId(1)).unwrap();
            assert_eq!(found(&disk).unwrap(), []);
        }
        assert!(failures > whole + 5, "it failed at {failures} operations, {whole} times with all written");
        assert_same(&log, &place.open(&[1]));
        // The fault that was meant for one operation more meets the deletion, which is then tried again.
        assert!(delete(&disk, &*place.store, VolumeId(1)).is_err());
        delete(&disk, &*place.store, VolumeId(1)).unwrap();
        assert_eq!(found(&disk).unwrap(), []);
    }
}

#[test]
fn after_a_power_cut_at_any_operation_a_volume_is_whole_or_is_found_not_to_be() {
    let mut random = seeded("after_a_power_cut_at_any_operation_a_volume_is_whole_or_is_found_not_to_be");
    let disk = FaultyDisk::new(random.random());
    let place = Place::memory(disk.clone());
    let mut log = Log::default();
    let shape = Shape { rooms: 99, batches: 300, striding: false, payload_bytes_max: 9000 };
    let input = log.stretch(&mut random, &shape);
    disk.record();
    place.build(1, &input);
    let moments = disk.take_moments();
    let last = moments.last().unwrap().operation;
    for moment in &moments {
        let cut = place.with_disk(moment.reopen(random.random()));
        if cut.check(1).is_empty() {
            assert_same(&log, &cut.open(&[1]));
        } else {
            assert_ne!(moment.operation, last, "a build that has returned is durable");
        }
        delete(&*cut.disk, &MemoryBlockStore::new(), VolumeId(1)).unwrap();
        assert_eq!(found(&*cut.disk).unwrap(), []);
    }
}

#[test]
fn an_interrupted_sled_build_is_deleted_and_built_again() {
    let mut random = seeded("an_interrupted_sled_build_is_deleted_and_built_again");
    let place = Place::sled();
    let mut log = Log::default();
    let shape = Shape { rooms: 9, batches: 300, striding: false, payload_bytes_max: 9000 };
    let input = log.stretch(&mut random, &shape);
    for left in [0, 1, 100, 299] {
        let until = input.len() * left / 300;
        let broken = input[..until].iter().cloned().map(Ok);
        let broken =
            broken.chain(std::iter::once(Err(crate::storage::volume::VolumeError::input("the journal broke"))));
        let error = place.try_build(1, broken, |_| Offset::ZERO).unwrap_err();
        assert_eq!(error.kind(), VolumeErrorKind::Input);
        assert_eq!(found(&*place.disk).unwrap(), [VolumeId(1)]);
        // Not finished, so not a volume.
        assert_ne!(place.check(1), []);
        delete(&*place.disk, &*place.store, VolumeId(1)).unwrap();
        assert_eq!(found(&*place.disk).unwrap(), []);
    }
    place.build(1, &input);
    assert_same(&log, &place.open(&[1]));
}
