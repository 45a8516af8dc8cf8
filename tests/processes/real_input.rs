//! Real input: many files, each into a room of its own, over both transports, the server killed meanwhile; in the end
//! every room equals its file, byte for byte.
//!
//! `ROOMLOG_TEST_LOGS` names a folder of text files to use instead of generated ones.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _};
use roomlog::types::{NewRecord, RoomName, Start};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

use super::reader::{Follower, Read, history};
use super::server::{Over, PROGRAM, Site, pause, random, within_ms};
use crate::scenarios::world::{room, soon};

const KILLS: usize = 6;

/// Files that are published at a time.
const AT_A_TIME: usize = 6;

/// What goes into a room: records that no newline ends, in order.
struct Input {
    room: RoomName,
    records: Vec<Vec<u8>>,
    /// Whether `roomlog pub` publishes it, which takes lines; otherwise a client does.
    lines: bool,
}

/// Generated files of the shape of chat logs: most short, some long, not only ASCII, lines of very different lengths.
fn generated(random: &mut StdRng, files: usize) -> Vec<Input> {
    const WORDS: [&str; 12] = [
        "hello",
        "<ann>",
        "naïve",
        "Ελλάδα",
        "привет",
        "ありがとう",
        "\u{1F600}",
        "=== join",
        "a",
        "::",
        "\ttab",
        "https://example.org/?q=ä",
    ];
    let text = |random: &mut StdRng| {
        let words = random.random_range(0..40);
        let line: Vec<_> = (0..words).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect();
        line.join(" ").into_bytes()
    };
    let mut input = Vec::new();
    for number in 0..files {
        let long = number % 10 == 0;
        let lines = if long { random.random_range(1000..4000) } else { random.random_range(1..400) };
        let records = (0..lines).map(|_| text(random)).collect();
        input.push(Input { room: room(&format!("log/{number:03}")), records, lines: true });
    }
    input
}

/// The files of a folder.
fn read(folder: &str) -> Vec<Input> {
    let mut input = Vec::new();
    for entry in std::fs::read_dir(folder).expect("ROOMLOG_TEST_LOGS is a folder") {
        let entry = entry.expect("an entry");
        let mut bytes = std::fs::read(entry.path()).expect("a file");
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        let records = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        input.push(Input { room: room(&format!("log/{}", entry.file_name().display())), records, lines: true });
    }
    input.sort_by(|a, b| a.room.cmp(&b.room));
    input
}

fn assert_equal(input: &Input, seen: &[Read]) {
    for (number, (read, record)) in seen.iter().zip(&input.records).enumerate() {
        assert!(read.payload == *record, "record {number} of {} is as it was in the file", input.room);
    }
    assert_eq!(seen.len(), input.records.len(), "{} has as many records as its file", input.room);
}

/// Runs `roomlog pub` to its end; whether it was killed before, to be run again.
async fn publish_lines(site: &Site, over: Over, input: &Input, from: usize, part: usize) {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["pub", input.room.as_str(), "--url", &site.url(over), "--insecure", "--timeout", "60s"]);
    command.args(["--publisher", input.room.as_str(), "--first-seq", &(from + 1).to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut text = input.records[from..part].join(&b'\n');
    text.push(b'\n');
    let writing = async {
        // One that ends early says why by its exit code.
        let _ = stdin.write_all(&text).await;
        drop(stdin);
    };
    let (output, ()) = soon("the end of pub", async { tokio::join!(child.wait_with_output(), writing) }).await;
    let output = output.expect("it runs");
    assert!(output.status.success(), "{}: {}", input.room, String::from_utf8_lossy(&output.stderr));
}

async fn publish(site: &Site, over: Over, input: &Input, twice: bool) {
    if input.lines {
        // The first run ends somewhere; the second repeats some of it and goes on.
        let part = if twice { input.records.len().div_ceil(2) } else { input.records.len() };
        publish_lines(site, over, input, 0, part).await;
        if twice {
            publish_lines(site, over, input, part.saturating_sub(500), input.records.len()).await;
        }
        return;
    }
    let client = site.client(over);
    let mut receipts = Vec::new();
    for record in &input.records {
        receipts.push(soon("room in the queue", client.enqueue(&input.room, &[NewRecord::new(record)], None)).await);
    }
    for receipt in receipts {
        soon("an acknowledgement", receipt.expect("taken")).await.expect("stored");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_room_equals_its_file_over_both_transports_although_the_server_was_killed() {
    let begun = Instant::now();
    let mut random = random("real input");
    let mut input = match std::env::var("ROOMLOG_TEST_LOGS") {
        Ok(folder) => read(&folder),
        Err(_) => generated(&mut random, 60),
    };
    let mut bytes = |count: usize| {
        let mut bytes = vec![0; count];
        random.fill_bytes(&mut bytes);
        bytes
    };
    let arbitrary = (0..500).map(|number| bytes(number * 7 % 1000)).collect();
    input.push(Input { room: room("arbitrary bytes"), records: arbitrary, lines: false });
    let large = (0..100).map(|_| bytes(64 << 10)).collect();
    input.push(Input { room: room("large payloads"), records: large, lines: false });
    let (files, records): (usize, usize) = (input.len(), input.iter().map(|input| input.records.len()).sum());
    let volume: usize = input.iter().flat_map(|input| &input.records).map(Vec::len).sum();

    let mut site = Site::new();
    site.set("storage.stretch_bytes", "2 MiB").set("storage.tails_bytes_max", "1 MiB");
    let mut server = site.start().await;
    let site = Arc::new(site);
    let before = [site.client(Over::WebSocket), site.client(Over::Quic)];
    let mut followers = Vec::new();
    for (number, one) in input.iter().enumerate().filter(|(number, _)| number % 7 == 0 || *number + 2 >= files) {
        followers.push((number, Follower::join(before[number % 2].clone(), &one.room, Start::Earliest).await));
    }
    let (input, done) = (Arc::new(input), Arc::new(AtomicUsize::new(0)));
    let permits = Arc::new(Semaphore::new(AT_A_TIME));
    let mut publishing = Vec::new();
    for number in 0..files {
        let (site, input, done, permits) =
            (Arc::clone(&site), Arc::clone(&input), Arc::clone(&done), Arc::clone(&permits));
        publishing.push(tokio::spawn(async move {
            let _permit = permits.acquire().await.expect("never closed");
            let over = if number % 2 == 0 { Over::WebSocket } else { Over::Quic };
            publish(&site, over, &input[number], number % 5 == 0).await;
            done.fetch_add(1, Ordering::Relaxed);
        }));
    }
    for kill in 1..=KILLS {
        let goal = files * kill / (KILLS + 2);
        while done.load(Ordering::Relaxed) < goal && publishing.iter().any(|task| !task.is_finished()) {
            pause().await;
        }
        tokio::time::sleep_until(within_ms(&mut random, 50)).await;
        server.kill().await;
        server = site.start().await;
        let number = random.random_range(0..files);
        let client = before[kill % 2].clone();
        followers.push((number, Follower::join(client, &input[number].room, Start::Earliest).await));
    }
    for task in publishing {
        soon("the last publisher", task).await.expect("all is acknowledged");
    }
    let published = begun.elapsed();
    for (number, mut follower) in followers {
        let mut seen = Vec::new();
        while seen.len() < input[number].records.len() {
            seen.extend(follower.next().await);
        }
        assert_equal(&input[number], &seen);
    }
    for over in [Over::WebSocket, Over::Quic] {
        let client = site.client(over);
        for one in input.iter() {
            let seen = history(&client, &one.room).await;
            assert_equal(one, &seen);
            let last = seen.last().expect("a file has lines").offset;
            let joined = Follower::join(client.clone(), &one.room, Start::Earliest).await.up_to(last).await;
            assert_eq!(joined, seen, "joined and paged are the same");
        }
    }
    server.stop().await;
    site.assert_intact();
    println!(
        "{files} files, {records} records, {volume} bytes, {KILLS} kills: published in {:.1} s, all compared after {:.1} s",
        published.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
}
