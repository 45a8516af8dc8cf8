//! The journal, the manifest and the marks together, on a disk that fails, against a plain list of commits.
//!
//! A workload of commits, rotations, retirements, restarts and clean closes runs once, and the disk keeps a picture
//! of itself after every operation. From every picture, what a power cut or a kill may leave is opened: all that was
//! acknowledged must be there, in order, once, and nothing else but possibly the one commit that was under way.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::storage::commit::{Entry, Floor};
use crate::storage::disk::{Disk, Fault, FaultyDisk};
use crate::storage::manifest::Manifest;
use crate::storage::marks::{CleanMark, Durability, RunMark, judge_last_stop};
use crate::types::{Epoch, Offset, RoomName, Time};

/// A commit as the list knows it: its number, and a random tag that its whole content is made of.
type Written = (u64, u64);

fn options() -> JournalOptions {
    JournalOptions { file_bytes_min: 3 << 10, file_bytes_max: 6 << 10, spare_files_max: 2, free_bytes_min: 0 }
}

/// Seeds for a random test: the one from the environment; else so many that are always the same, and a new one.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("ROOMLOG_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("ROOMLOG_TEST_SEED is a number")],
        Err(_) => (1..=count).chain([rand::rng().random()]).collect(),
    }
}

/// An open data directory without volumes: the order of steps is that of `docs/storage.md`.
struct House {
    disk: FaultyDisk,
    manifest: Manifest,
    journal: Journal,
    /// What the start found.
    found: Vec<Written>,
    recovery: Option<Recovery>,
}

fn body(tag: u64) -> Vec<u8> {
    let length = (tag % 1500) as usize + 1;
    (0..length).map(|index| (tag >> (8 * (index % 8))) as u8).collect()
}

fn read_commit(commit: &crate::storage::commit::Commit<'_>) -> Written {
    let tag = commit.time.0;
    let entries: Vec<_> = commit.entries().collect();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[0], Entry::Room { room: tag, name: &format!("room {tag}") });
    assert_eq!(entries[1], Entry::Floor { room: tag, floor: floor(tag) });
    let Entry::Batch { room, prev, body: found, span } = entries[2] else { panic!("a batch") };
    assert_eq!((room, prev, found), (tag, Offset(tag % 77), body(tag).as_slice()));
    assert_eq!(span.crc, crc32fast::hash(found));
    (commit.seq.0, tag)
}

impl House {
    fn start(disk: &FaultyDisk, durability: Durability, boot_id: &str) -> Result<Self, StorageError> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let now = RunMark { durability, boot_id: boot_id.into() };
        let mut found = Vec::new();
        let (manifest, journal, recovery) = match Manifest::open(disk)? {
            None => {
                let (journal, start) = Journal::create(shared, options())?;
                let manifest = Manifest::new(Epoch(1), start);
                manifest.swap(disk)?;
                (manifest, journal, None)
            }
            Some(mut manifest) => {
                let (last, clean) = (RunMark::read(disk)?, CleanMark::read(disk)?);
                let finding = judge_last_stop(last.as_ref(), clean.as_ref(), &now);
                let mut visit = |commit: &crate::storage::commit::Commit<'_>| {
                    found.push(read_commit(commit));
                    Ok(())
                };
                let (journal, recovery) =
                    Journal::recover(shared, options(), &manifest.journal, &finding.last_stop, &mut visit)?;
                if finding.new_epoch {
                    manifest.epoch = Epoch(manifest.epoch.0 + 1);
                    manifest.swap(disk)?;
                }
                (manifest, journal, Some(recovery))
            }
        };
        CleanMark::remove(disk)?;
        now.write(disk)?;
        Ok(Self { disk: disk.clone(), manifest, journal, found, recovery })
    }

    fn commit(&mut self, tag: u64, sync: bool) -> Result<Written, StorageError> {
        let mut commit = CommitBuilder::new();
        commit.begin(Time(tag));
        commit.room(tag, &RoomName::new(&format!("room {tag}")).expect("a good name"));
        commit.floor(tag, &floor(tag));
        let span = commit.batch(tag, Offset(tag % 77), &body(tag));
        let seq = self.journal.next_seq();
        let place = self.journal.write(&mut commit)?;
        if sync {
            self.journal.sync()?;
        }
        let mut read = Vec::new();
        self.journal.reader().read(&place.body(span), &mut read)?;
        assert_eq!(read, body(tag));
        Ok((seq.0, tag))
    }

    /// Lets the journal begin at a later commit, as after a volume was built of what is before.
    fn retire(&mut self, start: JournalStart) -> Result<(), StorageError> {
        let mut manifest = self.manifest.clone();
        manifest.journal = start;
        manifest.swap(&self.disk)?;
        self.manifest = manifest;
        self.journal.files().retire(&start)
    }

    fn close(mut self) -> Result<(), StorageError> {
        self.journal.sync()?;
        CleanMark { end: self.journal.end() }.write(&self.disk)
    }
}

/// What happened, and after how many operations of the disk.
#[derive(Clone, Copy, Debug)]
enum Event {
    Began(Written),
    Acknowledged(Written),
    BeganSwap(u64),
    Swapped(u64),
}

/// What the list says may be found at some operation.
#[derive(Default, Debug)]
struct Expected {
    acknowledged: Vec<Written>,
    under_way: Option<Written>,
    first: u64,
    first_under_way: Option<u64>,
}

impl Expected {
    fn at(events: &[(u64, Event)], operation: u64) -> Self {
        let mut expected = Self { first: 1, ..Self::default() };
        for (_, event) in events.iter().take_while(|(at, _)| *at <= operation) {
            match *event {
                Event::Began(written) => expected.under_way = Some(written),
                Event::Acknowledged(written) => {
                    expected.acknowledged.push(written);
                    expected.under_way = None;
                }
                Event::BeganSwap(first) => expected.first_under_way = Some(first),
                Event::Swapped(first) => (expected.first, expected.first_under_way) = (first, None),
            }
        }
        expected
    }

    fn check(&self, found: &[Written], first: u64) {
        assert!(first == self.first || Some(first) == self.first_under_way, "the manifest begins at {first}");
        let mut least = self.acknowledged.clone();
        least.retain(|(seq, _)| *seq >= first);
        let mut most = least.clone();
        most.extend(self.under_way);
        assert!(found == least || found == most, "found {found:?}, acknowledged {least:?}, then {:?}", self.under_way);
    }
}

/// Runs random steps on a disk, and tells what happened. Errors end it.
fn work(
    disk: &FaultyDisk,
    random: &mut SmallRng,
    steps: u32,
    events: &mut Vec<(u64, Event)>,
) -> Result<(), StorageError> {
    let mut house = House::start(disk, Durability::Fsync, "boot")?;
    for _ in 0..steps {
        let now = |event| (disk.operations(), event);
        match random.random_range(0..20) {
            0..13 => {
                let tag = random.random_range(1..1 << 40);
                events.push(now(Event::Began((house.journal.next_seq().0, tag))));
                let written = match house.commit(tag, true) {
                    Err(StorageError::Io { .. }) => {
                        let again = house.commit(tag, true);
                        assert!(matches!(again, Err(StorageError::Stopped { .. })), "it writes on: {again:?}");
                        return Ok(());
                    }
                    written => written?,
                };
                events.push((disk.operations(), Event::Acknowledged(written)));
            }
            // A failure here is no one's concern: the committer makes a file if it must.
            13 | 14 => drop(house.journal.files().reserve()),
            15 => drop(house.journal.rotate()?),
            16 | 17 => {
                let from = house.manifest.journal.seq.0;
                let seq = CommitSeq(random.random_range(from..=house.journal.next_seq().0));
                let start = house.journal.files().start_at(seq).expect("it was not retired");
                events.push(now(Event::BeganSwap(seq.0)));
                house.retire(start)?;
                events.push((disk.operations(), Event::Swapped(seq.0)));
            }
            18 => {
                house.close()?;
                house = House::start(disk, Durability::Fsync, "boot")?;
                Expected::at(events, u64::MAX).check(&house.found, house.manifest.journal.seq.0);
            }
            _ => {
                // Killed: what the process had in memory is gone, what it wrote is not.
                drop(house);
                house = House::start(disk, Durability::Fsync, "boot")?;
                Expected::at(events, u64::MAX).check(&house.found, house.manifest.journal.seq.0);
            }
        }
    }
    Ok(())
}

/// Starts on a disk, checks what is there, goes on, cuts the power again, and checks again.
fn check_and_go_on(disk: &FaultyDisk, expected: &Expected, random: &mut SmallRng) {
    // The start may also be cut short, and is repeated then.
    if random.random_bool(0.3) {
        disk.cut_at(random.random_range(1..16));
        let result = House::start(disk, Durability::Fsync, "boot");
        let again = disk.reopen(random.random());
        if result.is_err() {
            return check_and_go_on(&again, expected, random);
        }
        return check_and_go_on(&disk.reopen(random.random()), expected, random);
    }
    let mut house = House::start(disk, Durability::Fsync, "boot").expect("nothing is damaged");
    expected.check(&house.found, house.manifest.journal.seq.0);
    // What was found has been served from now on, whatever happens next.
    let mut served = house.found.clone();
    for _ in 0..random.random_range(0..3) {
        served.push(house.commit(random.random_range(1..1 << 40), true).expect("the disk is fine"));
    }
    drop(house);
    let house = House::start(&disk.reopen(random.random()), Durability::Fsync, "boot").expect("nothing is damaged");
    assert_eq!(house.found, served, "after a second power cut");
    assert_eq!(house.recovery.and_then(|recovery| recovery.torn), None, "nothing was being written");
}

#[test]
fn a_power_cut_or_a_kill_at_any_operation_loses_nothing_acknowledged_and_adds_nothing() {
    for seed in seeds(7) {
        println!("ROOMLOG_TEST_SEED={seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = FaultyDisk::new(seed);
        disk.record();
        let mut events = Vec::new();
        work(&disk, &mut random, 60, &mut events).expect("nothing fails on this disk");
        let moments = disk.take_moments();
        assert_eq!(moments.len() as u64, disk.operations() + 1, "a picture after every operation");
        for moment in moments {
            let expected = Expected::at(&events, moment.operation);
            println!("operation {}: {}", moment.operation, moment.what);
            for _ in 0..3 {
                check_and_go_on(&moment.reopen(random.random()), &expected, &mut random);
            }
            check_and_go_on(&moment.after_kill(random.random()), &expected, &mut random);
        }
    }
}

#[test]
fn a_failure_of_any_operation_stops_the_journal_and_loses_nothing_acknowledged() {
    for seed in seeds(2) {
        println!("ROOMLOG_TEST_SEED={seed}");
        let operations = {
            let disk = FaultyDisk::new(seed);
            work(&disk, &mut SmallRng::seed_from_u64(seed), 40, &mut Vec::new()).expect("nothing fails yet");
            disk.operations()
        };
        for operation in 1..=operations {
            for fault in [Fault::Eio, Fault::Enospc, Fault::Torn, Fault::Short { bytes: 700 }] {
                println!("operation {operation}: {fault:?}");
                let disk = FaultyDisk::new(seed);
                disk.fail_at(operation, fault);
                let mut events = Vec::new();
                // The failure may end the work, and need not.
                let _ = work(&disk, &mut SmallRng::seed_from_u64(seed), 40, &mut events);
                let expected = Expected::at(&events, u64::MAX);
                let mut random = SmallRng::seed_from_u64(seed ^ operation);
                // Once without a power cut in between: the next process sees bytes that a failed sync left behind.
                check_and_go_on(&disk.reopen(random.random()), &expected, &mut random);
                check_and_go_on(&disk.after_kill(random.random()), &expected, &mut random);
            }
        }
    }
}

#[test]
fn commits_that_were_not_synced_are_a_prefix_after_a_reboot_and_the_epoch_is_new() {
    for seed in seeds(40) {
        println!("ROOMLOG_TEST_SEED={seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let disk = FaultyDisk::new(seed);
        let mut house = House::start(&disk, Durability::Os, "first boot").expect("a new directory");
        let mut written = Vec::new();
        for _ in 0..random.random_range(1..25) {
            written.push(house.commit(random.random_range(1..1 << 40), false).expect("the disk is fine"));
            if random.random_bool(0.1) {
                house.journal.files().sync().expect("the disk is fine");
            }
        }
        let epoch = house.manifest.epoch;
        drop(house);
        // A kill without a reboot: all is there, and the epoch stands.
        let killed = House::start(&disk.after_kill(seed), Durability::Os, "first boot").expect("nothing is damaged");
        assert_eq!((killed.found, killed.manifest.epoch), (written.clone(), epoch));
        // A reboot, and a second one at any moment of the start that follows.
        let disk = disk.reopen(random.random());
        disk.record();
        drop(House::start(&disk, Durability::Os, "second boot").expect("nothing is damaged"));
        for moment in disk.take_moments() {
            let again = House::start(&moment.reopen(random.random()), Durability::Os, "third boot");
            let found = again.expect("nothing is damaged").found;
            assert!(written.starts_with(&found), "found {found:?} of {written:?} after {}", moment.what);
        }
        let disk = disk.reopen(random.random());
        let mut house = House::start(&disk, Durability::Os, "third boot").expect("nothing is damaged");
        assert!(written.starts_with(&house.found), "found {:?} of {written:?}", house.found);
        assert_ne!(house.manifest.epoch, epoch);
        let mut served = house.found.clone();
        for _ in 0..5 {
            served.push(house.commit(random.random_range(1..1 << 40), true).expect("the disk is fine"));
        }
        drop(house);
        // What was dropped never comes back, and what was synced since is there.
        let house = House::start(&disk.reopen(random.random()), Durability::Fsync, "third boot");
        assert_eq!(house.expect("nothing is damaged").found, served);
    }
}

fn floor(tag: u64) -> Floor {
    Floor { floor: Offset(tag % 1000), first: Offset(tag % 1000 + 1), first_time: Time(tag), records: tag, bytes: tag }
}
