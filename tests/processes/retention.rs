//! Retention gives space back: what the directory takes before and after, as `du` counts it.

use std::time::Instant;

use rand::RngCore as _;
use roomlog::types::{NewRecord, Start};

use super::reader::{Follower, history};
use super::server::{Over, Site, pause, random};
use crate::scenarios::world::{PATIENCE, room, soon};

/// Payloads that no compression makes smaller, so that bytes can be counted.
const PAYLOAD_BYTES: usize = 4 << 10;
const RECORDS: usize = 12_000;

/// What the directory may take beyond the records that are kept: up to eight small volumes that wait to be joined, two
/// mebibytes each, the one that they are joined to, metadata.
const FIXED_BYTES: u64 = 24 << 20;
/// What the directory may take for a byte that is kept.
const FACTOR: u64 = 3;
/// The journal keeps its files to use them again; it may take so much beside all that.
const JOURNAL_BYTES: u64 = 192 << 20;

async fn shrinks(rule: &str, kept: std::ops::RangeInclusive<usize>) {
    let begun = Instant::now();
    let mut random = random("retention");
    let mut site = Site::new();
    site.set("storage.stretch_bytes", "2 MiB").set("storage.stretch_age_max", "1 s");
    let mut server = site.start().await;
    let client = site.client(Over::WebSocket);
    let (long, other) = (room("long/story"), room("other"));
    let mut bytes = vec![0; PAYLOAD_BYTES * 100];
    for _ in 0..RECORDS / 100 {
        random.fill_bytes(&mut bytes);
        let records: Vec<_> = bytes.chunks(PAYLOAD_BYTES).map(NewRecord::new).collect();
        soon("a publish", client.publish_all(&long, &records, None)).await.expect("stored");
        soon("a publish", client.publish(&other, NewRecord::new(b"kept for ever"))).await.expect("stored");
        // No faster than volumes are built: what is measured is retention, not how far a journal grows under load.
        server.metric_until("roomlog_builder_backlog_bytes", &[], |bytes| bytes <= f64::from(4 << 20)).await;
    }
    server.stop().await;
    let published = (RECORDS * PAYLOAD_BYTES) as u64;
    let before = site.disk_bytes();
    assert!(before >= published, "{before} bytes on the disk hold {published}");

    site.configuration(&format!("[[retention]]\nrooms = \"long/*\"\n{rule}\n"));
    let mut server = site.start().await;
    server.metric_until("roomlog_retention_records_total", &[], |gone| gone as usize >= RECORDS - kept.end()).await;
    let bound = FIXED_BYTES + FACTOR * (kept.end() * PAYLOAD_BYTES) as u64;
    let given_back = async {
        // A trickle, as every server has: it is what makes the last stretch a volume.
        while site.disk_bytes_without_journal() > bound {
            client.publish(&other, NewRecord::new(b"kept for ever")).await.expect("stored");
            pause().await;
        }
    };
    if tokio::time::timeout(PATIENCE, given_back).await.is_err() {
        let journal = server.metric("roomlog_journal_bytes", &[]).await;
        let volumes = server.metric("roomlog_volume_bytes", &[]).await;
        panic!(
            "{} bytes are still taken, {journal} by the journal, {volumes} by volumes; {bound} were expected at most:\n{}",
            site.disk_bytes(),
            site.log()
        );
    }
    let after = site.disk_bytes();
    let journal = after.saturating_sub(site.disk_bytes_without_journal());
    assert!(journal <= JOURNAL_BYTES, "the journal takes {journal} bytes");
    let seen = history(&client, &other).await;
    assert!(seen.len() >= RECORDS / 100 && seen.iter().all(|read| read.payload == b"kept for ever"));
    let page = soon("rooms", client.summary(std::slice::from_ref(&long))).await.expect("a summary");
    let (first, head) = (page.rooms[0].first.0, page.rooms[0].head.0);
    assert_eq!(head, RECORDS as u64, "offsets never start again");
    let left = if first == 0 { 0 } else { (head - first + 1) as usize };
    assert!(kept.contains(&left), "{left} records are left");
    if left > 0 {
        let start = Start::Last(left as u64);
        let seen = Follower::join(client.clone(), &long, start).await.up_to(head).await;
        assert_eq!(seen.len(), left);
    }
    server.metric_until("roomlog_retention_bytes_total", &[], |bytes| bytes > 0.0).await;
    server.stop().await;
    site.assert_intact();
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{rule}: {before} bytes before, {after} after, {journal} of them journal; {left} of {RECORDS} records of {PAYLOAD_BYTES} bytes left: {took:.1} s"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_by_count_gives_space_back() {
    shrinks("max_records = 500", 500..=500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_by_bytes_gives_space_back() {
    shrinks("max_bytes = \"4 MiB\"", 900..=1024).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_by_age_gives_space_back() {
    shrinks("max_age = \"1 s\"", 0..=0).await;
}
