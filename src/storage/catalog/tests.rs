use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::storage::checkpoint::{self, Writer};
use crate::storage::disk::{Disk, MemoryDisk};
use crate::storage::publishers::{Memory, Verdict};
use crate::types::{PublisherId, Time};

/// Rooms as plain lists tell of them.
#[derive(Default)]
struct Model {
    rooms: BTreeMap<String, (RoomId, u64)>,
    checkpoints: u64,
    /// What the number of each room of the newest checkpoint is below.
    below: u64,
}

impl Model {
    /// Writes a checkpoint as the keeper does, of rooms below a number.
    fn checkpoint(&mut self, disk: &MemoryDisk, catalog: &Catalog, next_room: u64) {
        let next_room = next_room.max(self.below);
        (self.checkpoints, self.below) = (self.checkpoints + 1, next_room);
        let mut writer = Writer::create(disk, self.checkpoints).expect("a file");
        let (mut at_rest, before) = (AtRest::default(), catalog.checkpoint());
        let mut names = Vec::new();
        catalog
            .each(|name, id, known| {
                names.push(name.to_owned());
                if id.0 >= next_room {
                    return Ok(());
                }
                let mut bytes = Vec::new();
                match known {
                    Known::Loaded(room) => {
                        let mut log = room.log.lock();
                        log.publishers.encode_into(&mut bytes);
                        log.changed = false;
                    }
                    Known::AtRest(_, place) => {
                        bytes = before.as_ref().expect("a checkpoint").publishers_bytes(place).expect("readable");
                    }
                }
                let facts = known.facts();
                at_rest.push(name, id, facts, writer.room(id, name, &facts, &bytes)?);
                Ok::<_, std::io::Error>(())
            })
            .expect("written");
        assert_eq!(names, self.rooms.keys().cloned().collect::<Vec<_>>(), "each room once, in order");
        at_rest.sort();
        catalog.checkpointed(Arc::new(writer.finish(disk).expect("durable")), at_rest);
    }

    fn check(&self, catalog: &Catalog, random: &mut StdRng) {
        assert_eq!(catalog.counts().0, self.rooms.len());
        let named = |number: u32| format!("room {number}");
        let (prefix, after) =
            (["", "room 1", "room", "s"][random.random_range(0..4)], named(random.random_range(0..60)));
        let limit = random.random_range(1..80);
        let listed = catalog.list(prefix, &after, limit);
        let listed: Vec<_> = listed.iter().map(|(name, facts)| (name.as_str(), facts.head.0)).collect();
        let matching = self.rooms.iter().filter(|(name, _)| name.starts_with(prefix) && **name > after);
        assert_eq!(listed, matching.take(limit).map(|(name, (_, head))| (&name[..], *head)).collect::<Vec<_>>());
        let name = named(random.random_range(0..60));
        assert_eq!(catalog.facts(&name).map(|facts| facts.head.0), self.rooms.get(&name).map(|(_, head)| *head));
        let odd = |head: u64| head % 2 == 1;
        let found = catalog.filter(usize::MAX, |_, facts| odd(facts.head.0));
        let expected = self.rooms.iter().filter(|(_, (_, head))| odd(*head)).map(|(name, _)| name.as_str());
        assert_eq!(found.iter().map(RoomName::as_str).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("ROOMLOG_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("ROOMLOG_TEST_SEED is a number")],
        Err(_) => (0..8).map(|_| rand::random::<u32>().into()).collect(),
    }
}

const MEMORY: Memory = Memory { seqs: 100, publishers: 16, age_us: 1000 };

#[test]
fn whatever_becomes_of_rooms_the_catalog_tells_of_them_as_plain_lists_do() {
    for seed in seeds() {
        println!("ROOMLOG_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let disk = MemoryDisk::new(1 << 30);
        disk.create_dir(Path::new(checkpoint::DIRECTORY)).expect("a directory");
        let mut catalog = Catalog::new(AtRest::default(), None);
        let (mut model, mut next_room) = (Model::default(), 1);
        let (mut held, nobody) = (Vec::new(), Arc::from(""));
        for _ in 0..400 {
            match random.random_range(0..12) {
                0 => {
                    // Rooms that come into being behind the stretch are in no checkpoint.
                    let below = next_room - random.random_range(0..3).min(next_room - 1);
                    model.checkpoint(&disk, &catalog, below);
                }
                1 => _ = catalog.unload(),
                2 => held.clear(),
                3 if model.checkpoints > 0 && next_room > 1 => {
                    // A restart behind a checkpoint of all.
                    model.checkpoint(&disk, &catalog, next_room);
                    held.clear();
                    let mut at_rest = AtRest::default();
                    let read = Checkpoint::open(&disk, model.checkpoints, |name, id, facts, place| {
                        at_rest.push(name, id, facts, place);
                    });
                    at_rest.sort();
                    catalog = Catalog::new(at_rest, Some(Arc::new(read.expect("readable"))));
                    assert_eq!(catalog.counts(), (model.rooms.len(), 0));
                }
                _ => {
                    let name = format!("room {}", random.random_range(0..60));
                    let room = catalog.room(&name).expect("a room");
                    assert_eq!(room.name().as_str(), name);
                    let publisher = PublisherId([7; 16]);
                    let known = model.rooms.get(&name).copied();
                    assert_eq!(room.facts().head.0, known.map_or(0, |(_, head)| head));
                    let next = known.map_or(0, |(_, head)| head) + 1;
                    let verdict = room.log.lock().publishers.judge(&nobody, publisher, next, &[0]);
                    assert_eq!(verdict, Verdict::New, "{name}: its publishers came back");
                    if random.random_bool(0.3) {
                        held.push(Arc::clone(&room));
                    }
                    if random.random_bool(0.5) {
                        continue;
                    }
                    let (id, head) = known.unwrap_or_else(|| {
                        next_room += 1;
                        (RoomId(next_room - 1), 0)
                    });
                    let facts = Facts { head: Offset(head + 1), ..Facts::default() };
                    {
                        let mut log = room.log.lock();
                        (log.id, log.facts, log.changed) = (Some(id), facts, true);
                        log.publishers.note(MEMORY, &nobody, publisher, next, &[0], Offset(next), 1, Time(0));
                    }
                    room.with_state(|state| (state.id, state.facts) = (Some(id), facts));
                    if known.is_none() {
                        catalog.born(&room, id);
                    }
                    model.rooms.insert(name, (id, head + 1));
                }
            }
            model.check(&catalog, &mut random);
        }
    }
}
