//! Finding blocks among many volumes, within the limits, while volumes come and go.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::Rng as _;

use super::rig::{Log, Place, Shape, assert_same, read_room, remembered, seeded};
use crate::storage::Compression;
use crate::storage::disk::FaultyDisk;
use crate::storage::volume::{VolumeErrorKind, VolumeId, VolumeLimits, build, found, reread};
use crate::types::{Offset, Time};

#[test]
fn every_place_of_every_room_is_found_as_in_a_plain_list() {
    let mut random = seeded("every_place_of_every_room_is_found_as_in_a_plain_list");
    let place = Place::memory(FaultyDisk::new(0));
    let mut log = Log::default();
    // Many rooms are in few of the volumes.
    let shape = Shape { rooms: 200, batches: 60, striding: true, payload_bytes_max: 9000 };
    let ids: Vec<u64> = (1..=12).collect();
    for id in &ids {
        place.build(*id, &log.stretch(&mut random, &shape));
    }
    let volumes = place.open(&ids);
    assert_same(&log, &volumes);
    for room in 0..3000 {
        let records = log.rooms.get(&room).map_or(&[][..], Vec::as_slice);
        let head = records.last().map_or(0, |record| record.offset.0);
        for _ in 0..20 {
            let offset = Offset(random.random_range(0..=head + 2));
            let after = volumes.read_after(room, offset).unwrap();
            let expected = records.iter().find(|record| record.offset > offset);
            let found = after.and_then(|block| {
                remembered(block.entry.prev, &block.body).into_iter().find(|record| record.offset > offset)
            });
            assert!(found.as_ref() == expected, "room {room} after {offset}");

            let before = volumes.read_before(room, offset).unwrap();
            let expected = records.iter().rfind(|record| record.offset < offset);
            let found = before.and_then(|block| {
                remembered(block.entry.prev, &block.body).into_iter().rfind(|record| record.offset < offset)
            });
            assert!(found.as_ref() == expected, "room {room} before {offset}");

            let time = match records.get(random.random_range(0..records.len().max(1))) {
                Some(record) => Time(record.time.0.saturating_sub(random.random_range(0..2))),
                None => Time(0),
            };
            let since = volumes.read_since(room, time).unwrap();
            let expected = records.iter().find(|record| record.time >= time);
            let found = since.and_then(|block| {
                remembered(block.entry.prev, &block.body).into_iter().find(|record| record.time >= time)
            });
            assert!(found.as_ref() == expected, "room {room} since {time:?}");
        }
        assert!(volumes.read_since(room, Time(u64::MAX)).unwrap().is_none());
    }
}

#[test]
fn open_stores_files_and_bytes_stay_within_their_limits() {
    let mut random = seeded("open_stores_files_and_bytes_stay_within_their_limits");
    let place = Place::sled();
    let mut log = Log::default();
    let shape = Shape { rooms: 8, batches: 60, striding: false, payload_bytes_max: 20_000 };
    let ids: Vec<u64> = (1..=9).collect();
    for id in &ids {
        place.build(*id, &log.stretch(&mut random, &shape));
    }
    let limits = VolumeLimits { cache_bytes_max: 100_000, held_bytes_max: 1 << 20, open_max: 3 };
    let volumes = place.open_within(&ids, limits.clone());
    assert_eq!((volumes.in_use().open_stores, volumes.in_use().open_files), (0, 0), "nothing opens before it is read");
    for room in log.rooms.keys() {
        let mut after = Offset::ZERO;
        while let Some(block) = volumes.read_after(*room, after).unwrap() {
            after = block.entry.last;
            let in_use = volumes.in_use();
            assert!(in_use.open_stores <= limits.open_max && in_use.open_files <= limits.open_max, "{in_use:?}");
            assert!(in_use.held_bytes <= limits.held_bytes_max, "{in_use:?}");
            assert!(in_use.cache_bytes <= limits.cache_bytes_max, "{in_use:?}");
            assert_eq!(in_use.volumes, ids.len());
            assert!(open_descriptors(&place.path(Path::new("volumes"))) <= 2 * limits.open_max);
        }
    }
    assert_same(&log, &volumes);
}

#[test]
fn volumes_are_opened_ahead_as_far_as_their_limit_goes_and_read_the_same() {
    let mut random = seeded("volumes_are_opened_ahead_as_far_as_their_limit_goes_and_read_the_same");
    let place = Place::sled();
    let mut log = Log::default();
    let shape = Shape { rooms: 4, batches: 30, striding: false, payload_bytes_max: 5000 };
    for id in 1..=3 {
        place.build(id, &log.stretch(&mut random, &shape));
    }
    let volumes = place.open_within(&[1, 2, 3], VolumeLimits { open_max: 2, ..VolumeLimits::default() });
    for (id, open) in [(3, 1), (3, 1), (2, 2), (1, 2)] {
        volumes.open_ahead(VolumeId(id)).unwrap();
        assert_eq!(volumes.in_use().open_stores, open, "after {id}");
    }
    assert_same(&log, &volumes);
    volumes.close();
    assert!(volumes.open_ahead(VolumeId(3)).is_err(), "it is not here any more");
    assert_eq!(volumes.in_use().open_stores, 0);
    let volumes = place.open_within(&[1, 2, 3], VolumeLimits { held_bytes_max: 1, ..VolumeLimits::default() });
    (1..=3).for_each(|id| volumes.open_ahead(VolumeId(id)).unwrap());
    volumes.read_after(0, Offset::ZERO).unwrap().unwrap();
    assert_eq!(volumes.in_use().open_stores, 2, "only the one that holds something is closed for what it holds");
}

/// How many descriptors of this process are files below a directory.
fn open_descriptors(below: &Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter(|entry| std::fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|to| to.starts_with(below)))
        .count()
}

#[test]
fn a_block_read_twice_comes_from_the_cache_and_shares_its_bytes() {
    let mut random = seeded("a_block_read_twice_comes_from_the_cache_and_shares_its_bytes");
    let place = Place::sled();
    let mut log = Log::default();
    let shape = Shape { rooms: 1, batches: 20, striding: false, payload_bytes_max: 100 };
    place.build(1, &log.stretch(&mut random, &shape));
    let volumes = place.open(&[1]);
    let one = volumes.read_after(0, Offset::ZERO).unwrap().unwrap();
    let other = volumes.read_after(0, Offset::ZERO).unwrap().unwrap();
    assert_eq!(one.body.as_ptr(), other.body.as_ptr());
    let input: Vec<_> = reread(&volumes, &[VolumeId(1)], |_| Offset::ZERO).unwrap().map(Result::unwrap).collect();
    assert!(input[0].body == one.body && input[0].body.as_ptr() != one.body.as_ptr(), "a rewrite reads past the cache");
}

#[test]
fn what_is_live_is_counted_exactly_but_for_the_blocks_that_a_floor_cuts() {
    let mut random = seeded("what_is_live_is_counted_exactly_but_for_the_blocks_that_a_floor_cuts");
    let place = Place::memory(FaultyDisk::new(0));
    let mut log = Log::default();
    let shape = Shape { rooms: 20, batches: 400, striding: false, payload_bytes_max: 3000 };
    let info = place.build(1, &log.stretch(&mut random, &shape));
    let volumes = place.open(&[1]);
    let id = VolumeId(1);
    let all = volumes.live_of(id, |_| Offset::ZERO).unwrap();
    assert_eq!((all.records, all.live_records), (info.records, info.records));
    assert_eq!(
        (all.stored_bytes, all.live_stored_bytes, all.live_blocks),
        (info.stored_bytes, info.stored_bytes, info.blocks)
    );
    let none = volumes.live_of(id, |_| Offset::MAX).unwrap();
    assert_eq!((none.records, none.live_records, none.live_stored_bytes, none.live_blocks), (info.records, 0, 0, 0));
    let mut asked = Vec::new();
    let half = volumes.live_of(id, |room| {
        asked.push(room);
        let records = &log.rooms[&room];
        records[records.len() / 2].offset
    });
    // Offsets are dense here, so even the estimate within a block is exact.
    let expected: usize = log.rooms.values().map(|records| records.len() - records.len() / 2 - 1).sum();
    assert_eq!(half.unwrap().live_records, expected as u64);
    assert!(asked.iter().eq(log.rooms.keys()), "each room's floor is asked for once");
    let rooms: u64 = log.rooms.keys().map(|room| volumes.of_room(id, *room).unwrap().stored_bytes).sum();
    assert_eq!(rooms, info.stored_bytes);
    for (room, records) in &log.rooms {
        assert_eq!(volumes.of_room(id, *room).unwrap().records, records.len() as u64);
    }
}

#[test]
fn a_removed_volume_is_deleted_when_its_last_reader_is_gone() {
    let mut random = seeded("a_removed_volume_is_deleted_when_its_last_reader_is_gone");
    for place in Place::both() {
        let mut log = Log::default();
        let shape = Shape { rooms: 2, batches: 60, striding: false, payload_bytes_max: 1000 };
        place.build(1, &log.stretch(&mut random, &shape));
        place.build(2, &log.stretch(&mut random, &shape));
        let volumes = place.open(&[1, 2]);
        let located = volumes.locate_after(0, Offset::ZERO).unwrap().unwrap();
        volumes.swap(&[], &[VolumeId(1)]).unwrap();
        assert_eq!((volumes.sweep().unwrap(), volumes.in_use().doomed), (0, 1));
        assert!(volumes.locate_after(0, Offset::ZERO).unwrap().unwrap().entry.first > located.entry.last);
        // Whoever had found a block before may still read it.
        let block = volumes.read(&located).unwrap();
        assert_eq!(remembered(block.entry.prev, &block.body)[0], log.rooms[&0][0]);
        drop(located);
        assert_eq!((volumes.sweep().unwrap(), volumes.in_use().doomed), (1, 0));
        assert_eq!(found(&*place.disk).unwrap(), [VolumeId(2)]);
    }
}

#[test]
fn nothing_is_opened_behind_a_close() {
    let mut random = seeded("nothing_is_opened_behind_a_close");
    for place in Place::both() {
        let mut log = Log::default();
        let shape = Shape { rooms: 2, batches: 60, striding: false, payload_bytes_max: 1000 };
        place.build(1, &log.stretch(&mut random, &shape));
        let volumes = place.open(&[1]);
        let located = volumes.locate_after(0, Offset::ZERO).unwrap().unwrap();
        volumes.close();
        // Whoever had found a block before it gets nothing, and the volume stays free for another process.
        assert_eq!(volumes.read(&located).map(|_| ()).map_err(|error| error.kind()), Err(VolumeErrorKind::Stopped));
        assert_eq!(volumes.in_use().open_stores, 0);
        let others = place.open(&[1]);
        others.read_after(0, Offset::ZERO).unwrap().unwrap();
    }
}

#[test]
fn readers_read_the_same_while_volumes_are_replaced_under_them() {
    let mut random = seeded("readers_read_the_same_while_volumes_are_replaced_under_them");
    let place = Place::sled();
    let mut log = Log::default();
    let shape = Shape { rooms: 4, batches: 80, striding: true, payload_bytes_max: 9000 };
    for id in 1..=3 {
        place.build(id, &log.stretch(&mut random, &shape));
    }
    let limits = VolumeLimits { cache_bytes_max: 100_000, held_bytes_max: 400_000, open_max: 2 };
    let volumes = place.open_within(&[1, 2, 3], limits);
    let replaced = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut rounds = 0;
                    while !replaced.load(Ordering::SeqCst) || rounds < 2 {
                        assert_same(&log, &volumes);
                        rounds += 1;
                    }
                })
            })
            .collect();
        let mut live = vec![VolumeId(1), VolumeId(2), VolumeId(3)];
        for id in 4..8 {
            let gone: Vec<_> = live.drain(..live.len().min(2)).collect();
            let commits = (volumes.infos()[0].commit_first, volumes.infos()[gone.len() - 1].commit_last);
            let input = reread(&volumes, &gone, |_| Offset::ZERO).unwrap();
            let lz4 = Compression::Lz4;
            build(&*place.disk, &*place.store, VolumeId(id), commits, lz4, input, |_| Offset::ZERO).unwrap();
            live.insert(0, VolumeId(id));
            volumes.swap(&[VolumeId(id)], &gone).unwrap();
            volumes.sweep().unwrap();
        }
        replaced.store(true, Ordering::SeqCst);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    volumes.sweep().unwrap();
    assert_eq!(found(&*place.disk).unwrap(), [VolumeId(7)], "what was replaced is deleted");
    assert!(log.rooms.keys().all(|room| !read_room(&volumes, *room).unwrap().is_empty()));
}
