//! The log without a network: publishes until so many bytes are stored, then restart time, disk use, and replay.
//!
//! `cargo run --release -p roomlog-bench --bin log -- DIR [MIB] [ROOMS] [WINDOW] [PAYLOAD_BYTES]`
//! (defaults 1024 MiB of payloads, 1000 rooms, 4096 in flight, 128 bytes). Prints one JSON line per step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use roomlog::broker::{Broker, Event, Options};
use roomlog::protocol::RecordArea;
use roomlog::storage::{Answer, Reply, Submission, Targets, record_hash};
use roomlog::types::{NewRecord, PublisherId, RoomName, Start};

#[derive(Debug, Default)]
struct Counter {
    in_flight: AtomicUsize,
    failed: AtomicUsize,
}

impl Reply for Counter {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        let failed = answers.iter().filter(|answer| answer.outcome.is_err()).count();
        self.failed.fetch_add(failed, Ordering::Relaxed);
        self.in_flight.fetch_sub(answers.len(), Ordering::SeqCst);
    }
}

fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().expect("the first argument is a directory for the log"));
    let mut number = |default: usize| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (mebibytes, rooms, window, payload) = (number(1024), number(1000), number(4096), number(128));
    let records = (mebibytes << 20) / payload;
    let names: Vec<_> = (0..rooms).map(|n| RoomName::new(&format!("room-{n}")).expect("a good name")).collect();

    let broker = Broker::open(Options::new(&directory)).await.expect("the log opens");
    let handles: Vec<_> = names.iter().map(|name| broker.room(name).expect("a room")).collect();
    let publisher = PublisherId::random().expect("randomness");
    let counter = Arc::new(Counter::default());
    let mut submission = Submission::new(Arc::clone(&counter) as Arc<dyn Reply>);
    let (begun, user) = (Instant::now(), Arc::<str>::from(""));
    let (mut area, mut content) = (Vec::new(), vec![b'x'; payload]);
    let mut done = 0;
    while done < records {
        let free = window.saturating_sub(counter.in_flight.load(Ordering::SeqCst));
        if free < window.div_ceil(16) {
            std::thread::yield_now();
            continue;
        }
        let before = done;
        for _ in 0..free.min(records - done) {
            content[..8].copy_from_slice(&(done as u64).to_le_bytes());
            area.clear();
            RecordArea::push(&mut area, &NewRecord::new(&content));
            let (record, _) = RecordArea(&area).split_first().expect("encoded just now").expect("one record");
            let (room, seq) = (done % rooms, (done / rooms) as u64 + 1);
            let hash = record_hash(record);
            submission.push(&handles[room], &user, publisher, seq, None, 0, &area, &[hash]);
            done += 1;
        }
        counter.in_flight.fetch_add(done - before, Ordering::SeqCst);
        broker.submit(&mut submission);
    }
    while counter.in_flight.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        r#"{{"step":"publish","records":{records},"failed":{},"seconds":{seconds:.3},"records_per_second":{:.0},"rss_kib":{}}}"#,
        counter.failed.load(Ordering::SeqCst),
        records as f64 / seconds,
        resident_kib()
    );
    drop(handles);
    let begun = Instant::now();
    broker.close().await;
    drop(broker);
    println!(
        r#"{{"step":"close","seconds":{:.3},"disk_bytes":{}}}"#,
        begun.elapsed().as_secs_f64(),
        disk_bytes(&directory)
    );

    let begun = Instant::now();
    let broker = Broker::open(Options::new(&directory)).await.expect("the log opens again");
    println!(r#"{{"step":"open","seconds":{:.3},"rss_kib":{}}}"#, begun.elapsed().as_secs_f64(), resident_kib());

    let begun = Instant::now();
    let (mut seen, mut sources) = (0_usize, std::collections::BTreeMap::<&str, usize>::new());
    for name in &names {
        let mut subscription = broker.join(name, Start::Earliest).await.expect("joined");
        loop {
            match subscription.next().await.expect("readable") {
                Event::Records(records) => {
                    let count = records.iter().inspect(|record| assert!(record.is_ok())).count();
                    *sources.entry(records.0.source.name()).or_default() += count;
                    seen += count;
                }
                Event::Live(_) => break,
                _ => {}
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        r#"{{"step":"replay","records":{seen},"seconds":{seconds:.3},"records_per_second":{:.0},"sources":{sources:?},"rss_kib":{}}}"#,
        seen as f64 / seconds,
        resident_kib()
    );
    assert_eq!(seen % records, 0, "every record is there");
    broker.close().await;
}
