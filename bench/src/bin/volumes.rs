//! Builds volumes of generated records and reads them: the figures of `docs/storage.md`.
//!
//! `volumes DIR [MIB] [ROOMS] [random|text]`. Cold figures need the right to empty the page cache (root on Linux).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use roomlog::protocol::{BatchBuilder, RecordArea, RunHeader};
use roomlog::storage::Compression;
use roomlog::storage::block_store::SledBlockStore;
use roomlog::storage::disk::{Disk, RealDisk};
use roomlog::storage::volume::{Input, VolumeId, VolumeLimits, Volumes, build, check_volume, reread};
use roomlog::types::{NewRecord, Offset, PublisherId, Time};

const RECORD_BYTES: usize = 128;

/// A small generator: the figures need no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const WORDS: [&str; 24] = [
    "the",
    "room",
    "is",
    "a",
    "log",
    "and",
    "you",
    "have",
    "to",
    "ask",
    "why",
    "it",
    "works",
    "on",
    "my",
    "machine",
    "but",
    "not",
    "there",
    "thanks",
    "someone",
    "installed",
    "package",
    "kernel",
];

/// The batches of a stretch: single records in random rooms, gathered by commits of 256 records.
fn stretch(random: &mut Random, bytes: usize, rooms: u64, text: bool, heads: &mut BTreeMap<u64, u64>) -> Vec<Input> {
    let (mut inputs, mut builder) = (Vec::new(), BatchBuilder::new());
    let mut time = 1_700_000_000_000_000 + heads.values().sum::<u64>() * 2;
    let (mut payload, mut area) = (Vec::new(), Vec::new());
    for _ in 0..bytes / RECORD_BYTES / 256 {
        time += 300;
        let mut commit: Vec<u64> = (0..256).map(|_| random.next() % rooms).collect();
        commit.sort_unstable();
        for of_room in commit.chunk_by(|one, other| one == other) {
            let head = heads.entry(of_room[0]).or_default();
            let prev = *head;
            for _ in of_room {
                payload.clear();
                while payload.len() < RECORD_BYTES {
                    if text {
                        payload.extend_from_slice(WORDS[(random.next() % 24) as usize].as_bytes());
                        payload.push(b' ');
                    } else {
                        payload.extend_from_slice(&random.next().to_le_bytes());
                    }
                }
                payload.truncate(RECORD_BYTES);
                area.clear();
                RecordArea::push(&mut area, &NewRecord::new(&payload));
                *head += 1;
                let publisher = PublisherId([(random.next() % 200) as u8; 16]);
                let header = RunHeader {
                    offset_delta: 0,
                    step: 1,
                    time_delta: 0,
                    user: "user-1234",
                    publisher,
                    seq: *head,
                    count: 1,
                    bytes: 0,
                };
                builder.push(Offset(*head), Time(time), 1, &area, header);
            }
            inputs.push(Input { room: of_room[0], prev: Offset(prev), body: builder.finish().1 });
        }
    }
    inputs.sort_by_key(|input| input.room);
    inputs
}

fn resident_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn empty_page_cache() -> &'static str {
    match fs::write("/proc/sys/vm/drop_caches", "3") {
        Ok(()) => "cold",
        Err(_) => "not cold",
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let root = PathBuf::from(arguments.next().expect("volumes DIR [MIB] [ROOMS] [random|text]"));
    let mib: usize = arguments.next().map_or(256, |text| text.parse().expect("MIB is a number"));
    let rooms: u64 = arguments.next().map_or(1000, |text| text.parse().expect("ROOMS is a number"));
    let text = arguments.next().is_some_and(|kind| kind == "text");
    fs::create_dir_all(&root).expect("the directory can be made");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&root));
    let store = Arc::new(SledBlockStore::new(&root));
    let (mut random, mut heads) = (Random(0x9E37_79B9_7F4A_7C15), BTreeMap::new());
    let mut ids = Vec::new();
    for id in 1..=2 {
        let inputs = stretch(&mut random, mib << 20, rooms, text, &mut heads);
        let count = inputs.len();
        let before = resident_mib();
        let start = Instant::now();
        let input = inputs.iter().cloned().map(Ok);
        let info =
            build(&*disk, &*store, VolumeId(id), (id, id), Compression::Lz4, input, |_| Offset::ZERO).unwrap().unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let volumes = Volumes::new(disk.clone(), store.clone(), VolumeLimits::default());
        volumes.swap(&[VolumeId(id)], &[]).unwrap();
        let disk_bytes = volumes.disk_bytes(VolumeId(id)).unwrap();
        let user = (info.records * RECORD_BYTES as u64) as f64;
        println!(
            "build {id}: {count} batches, {} records, {} blocks: {seconds:.2} s, {:.0} MB/s; bytes per user byte: bodies {:.2}, stored {:.2}, disk {:.2} (per stored {:.2}); directory and index {} KiB in memory; resident {:+.0} MiB",
            info.records,
            info.blocks,
            user / 1e6 / seconds,
            info.body_bytes as f64 / user,
            info.stored_bytes as f64 / user,
            disk_bytes as f64 / user,
            disk_bytes as f64 / info.stored_bytes as f64,
            volumes.in_use().index_bytes / 1024,
            resident_mib() - before,
        );
        ids.push(VolumeId(id));
    }
    for round in ["cold", "warm"] {
        let state = if round == "cold" { empty_page_cache() } else { "warm" };
        let volumes = Volumes::new(disk.clone(), store.clone(), VolumeLimits::default());
        let start = Instant::now();
        volumes.swap(&ids, &[]).unwrap();
        println!("{state}: 2 directories opened in {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
        for id in &ids {
            let start = Instant::now();
            let blocks = roomlog::storage::block_store::BlockStore::open(&*store, &id.blocks_path()).unwrap();
            println!("{state}: block store opened in {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
            drop(blocks);
        }
        // The last block of rooms, in random order.
        let before = resident_mib();
        let mut micros = Vec::new();
        let mut bytes = 0;
        for _ in 0..2000 {
            let room = random.next() % rooms;
            let start = Instant::now();
            bytes += volumes.read_before(room, Offset::MAX).unwrap().map_or(0, |block| block.body.len());
            micros.push(start.elapsed().as_secs_f64() * 1e6);
        }
        micros.sort_by(f64::total_cmp);
        println!(
            "{state}: last blocks: p50 {:.0} us, p99 {:.0} us; {:.1} MB returned, resident {:+.0} MiB, {:?}",
            micros[1000],
            micros[1980],
            bytes as f64 / 1e6,
            resident_mib() - before,
            volumes.in_use()
        );
    }
    for round in ["cold", "warm"] {
        let state = if round == "cold" { empty_page_cache() } else { "warm" };
        for limit in [256_u64, 64] {
            let mut limits = VolumeLimits::default();
            limits.held_bytes_max = limit << 20;
            let volumes = Volumes::new(disk.clone(), store.clone(), limits);
            volumes.swap(&ids, &[]).unwrap();
            let (before, mut peak) = (resident_mib(), 0.0_f64);
            let (start, mut records, mut bytes) = (Instant::now(), 0_u64, 0);
            for room in 0..rooms {
                let mut after = Offset::ZERO;
                while let Some(block) = volumes.read_after(room, after).unwrap() {
                    after = block.entry.last;
                    records += u64::from(block.entry.records);
                    bytes += block.body.len();
                }
                if room % 16 == 0 {
                    peak = peak.max(resident_mib() - before);
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{state}, held at most {limit} MiB: all of every room: {seconds:.2} s, {:.0} MB/s of bodies, {:.1} M records/s, resident at most {peak:+.0} MiB, {:?}",
                bytes as f64 / 1e6 / seconds,
                records as f64 / 1e6 / seconds,
                volumes.in_use()
            );
        }
    }
    let volumes = Volumes::new(disk.clone(), store.clone(), VolumeLimits::default());
    volumes.swap(&ids, &[]).unwrap();
    let start = Instant::now();
    let live = volumes.live_of(ids[0], |room| Offset(heads[&room] / 4)).unwrap();
    println!("live of one volume in {:.2} ms: {live:?}", start.elapsed().as_secs_f64() * 1e3);
    let start = Instant::now();
    let floor = |room: u64| Offset(heads[&room] / 4);
    let input = reread(&volumes, &ids, floor).unwrap();
    let info = build(&*disk, &*store, VolumeId(3), (1, 2), Compression::Lz4, input, floor).unwrap().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "joined, without the oldest quarter of each room: {seconds:.2} s, {:.0} MB/s",
        info.body_bytes as f64 / 1e6 / seconds
    );
    let start = Instant::now();
    assert_eq!(check_volume(&*disk, &*store, VolumeId(3)).unwrap(), []);
    println!("checked: {:.0} MB/s", info.body_bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    volumes.swap(&[VolumeId(3)], &ids).unwrap();
    println!("{} deleted in {:.0} ms", volumes.sweep().unwrap(), start.elapsed().as_secs_f64() * 1e3);
}
