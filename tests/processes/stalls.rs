//! Applications that stop reading: they lose nothing, cost little, and nobody else feels them.

use std::time::{Duration, Instant};

use roomlog::client::Client;
use roomlog::protocol::{Frames, HelloBody, ServerFrame};
use roomlog::types::{NewRecord, RoomName, Start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use super::reader::Follower;
use super::server::{Over, Server, Site};
use crate::raw::{UPGRADE, hello_with, join, ws_frame};
use crate::scenarios::world::{room, soon};

const PAYLOAD_BYTES: usize = 1024;

/// Records that pass while an application stalls, and whether times are compared, which only a machine that does nothing
/// else allows: `ROOMLOG_TEST_STALL_RECORDS` names another number and asks for that, as `tests/extended/stall.sh` does.
fn records_to_pass() -> (u64, bool) {
    let chosen = std::env::var("ROOMLOG_TEST_STALL_RECORDS").ok();
    let chosen = chosen.map(|count| count.parse().expect("ROOMLOG_TEST_STALL_RECORDS is a number"));
    (chosen.unwrap_or(2_000_000), chosen.is_some())
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    // Not quite the same again and again, so that the disk has something to do.
    payload.extend((8..PAYLOAD_BYTES as u64).map(|at| (number.wrapping_mul(0x9E37_79B9) >> (at % 24)) as u8));
    payload
}

/// A subscriber on a bare socket that reads only when it is told to. Its own buffer is small: what it does not read
/// waits at the server.
struct Stalled {
    stream: TcpStream,
    unread: Vec<u8>,
    /// Bytes of frames, behind those of WebSocket messages.
    frames: Vec<u8>,
}

impl Stalled {
    async fn join(site: &Site, room: &RoomName, start: Start) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 << 10).expect("a small buffer");
        let mut stream = soon("a connection", socket.connect(site.clients())).await.expect("the server listens");
        stream.write_all(format!("{UPGRADE}\r\n").as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("the upgrade", stream.read_u8()).await.expect("an answer"));
        }
        let mut frames = hello_with(&HelloBody::default());
        frames.extend(join(1, 1, room.as_str(), start));
        stream.write_all(&ws_frame(0x82, &frames)).await.expect("sent");
        Self { stream, unread: Vec::new(), frames: Vec::new() }
    }

    /// Waits until the server has sent all that the socket takes: from then on it stalls.
    async fn stalls(&self) {
        soon("something to read", self.stream.readable()).await.expect("it is connected");
    }

    /// Reads on, and gives each record's offset and payload to `take`, until that says that it was the last one.
    async fn read(&mut self, mut take: impl FnMut(u64, u64, &[u8]) -> bool) {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let mut taken = 0;
            while let Some((payload, length)) = message(&self.unread[taken..]) {
                if let Some(payload) = payload {
                    self.frames.extend_from_slice(&self.unread[taken..][payload]);
                }
                taken += length;
            }
            self.unread.drain(..taken);
            // A message has whole frames.
            for frame in Frames::new(&self.frames, usize::MAX) {
                let frame = frame.expect("a frame");
                if let Ok(Some(ServerFrame::Delivery(delivery))) = ServerFrame::parse(frame) {
                    let batch = roomlog::protocol::Batch::parse(delivery.body).expect("a batch");
                    let meant = delivery.header.from..=delivery.header.to;
                    for record in batch.records(delivery.header.prev).map(|record| record.expect("a record")) {
                        let (offset, prev) = (record.offset, record.prev);
                        if meant.contains(&offset) && take(prev.0, offset.0, record.content.payload) {
                            return;
                        }
                    }
                }
            }
            self.frames.clear();
            let read = soon("more", self.stream.read(&mut buffer)).await.expect("it is connected");
            assert!(read > 0, "the server has ended the connection");
            self.unread.extend_from_slice(&buffer[..read]);
        }
    }
}

/// Where the payload of a server's message lies, none for one that is not binary, and where the message ends.
fn message(bytes: &[u8]) -> Option<(Option<std::ops::Range<usize>>, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, head) = match second {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().expect("2 bytes"))), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().expect("8 bytes")), 10),
        length => (u64::from(length), 2),
    };
    let end = head + usize::try_from(length).expect("a length");
    (bytes.len() >= end).then(|| ((first == 0x82).then_some(head..end), end))
}

/// Publishes numbered records; returns how long it took until the follower had the last one.
async fn pass(client: &Client, lobby: &RoomName, follower: &mut Follower, numbers: std::ops::Range<u64>) -> Duration {
    let begun = Instant::now();
    let (receipts, mut taken) = mpsc::channel(20_000);
    let (client, lobby, mut expected, end) = (client.clone(), lobby.clone(), numbers.start, numbers.end);
    let publishing = tokio::spawn(async move {
        for number in numbers {
            let receipt = client.enqueue(&lobby, &[NewRecord::new(&payload(number))], None).await.expect("taken");
            receipts.send(receipt).await.expect("they are taken");
        }
    });
    let acknowledging = tokio::spawn(async move {
        while let Some(receipt) = taken.recv().await {
            receipt.await.expect("stored");
        }
    });
    while expected < end {
        for read in follower.next().await {
            assert_eq!(read.payload[..8], expected.to_le_bytes());
            expected += 1;
        }
    }
    publishing.await.expect("published");
    acknowledging.await.expect("acknowledged");
    begun.elapsed()
}

/// Small budgets, so that what grows is not one of them.
fn site() -> Site {
    let mut site = Site::new();
    site.set("storage.tails_bytes_max", "8 MiB").set("storage.block_cache_bytes_max", "4 MiB");
    site.set("storage.open_volumes_bytes_max", "16 MiB").set("storage.stretch_bytes", "16 MiB");
    site
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_stalls_while_records_pass_receives_all_of_them_and_disturbs_nobody() {
    let begun = Instant::now();
    let (count, timed) = records_to_pass();
    let part = count / 20;
    let site = site();
    let mut server = site.start().await;
    let lobby = room("lobby");
    let client = site.client(Over::WebSocket);
    let mut follower = Follower::join(site.client(Over::WebSocket), &lobby, Start::Earliest).await;
    // Once to warm up, once to know how long it takes when nobody stalls.
    pass(&client, &lobby, &mut follower, 0..part).await;
    let alone = pass(&client, &lobby, &mut follower, part..2 * part).await;

    let before = server.memory("VmRSS");
    let mut stalled = Stalled::join(&site, &lobby, Start::Earliest).await;
    stalled.stalls().await;
    let beside = pass(&client, &lobby, &mut follower, 2 * part..3 * part).await;
    pass(&client, &lobby, &mut follower, 3 * part..count).await;
    let passed = begun.elapsed();
    server.metric_until("roomlog_subscription_lag_records", &[], |lag| lag > count as f64 / 2.0).await;
    let undisturbed = !timed || beside < alone * 3 + Duration::from_millis(500);
    assert!(undisturbed, "{alone:?} alone, {beside:?} beside one that stalls");

    let (mut next, mut at) = (0, 0);
    stalled
        .read(|prev, offset, bytes| {
            assert_eq!((prev, &bytes[..8]), (at, &u64::to_le_bytes(next)[..]), "all, once, in order");
            assert_eq!(bytes, payload(next));
            (next, at) = (next + 1, offset);
            next == count
        })
        .await;
    let growth = server.memory("VmHWM").saturating_sub(before);
    let from_volumes = server.metric("roomlog_delivered_records_total", &["source=\"volume\""]).await;
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{count} records of {PAYLOAD_BYTES} bytes passed in {:.1} s, read after it until {took:.1} s; {from_volumes} out of \
         volumes; memory grew by {:.1} MiB from {:.1}; {part} records took {alone:?} alone, {beside:?} beside the stalled one",
        passed.as_secs_f64(),
        mib(growth),
        mib(before),
    );
    assert!(from_volumes > 0.0);
    assert!(growth <= 64 << 20, "memory grew by {:.1} MiB", mib(growth));
    server.stop().await;
}

/// The memory of the server once so many subscriptions have been sent so much, and no more is sent.
async fn settled_memory(server: &Server, subscriptions: usize, sent_bytes_min: f64) -> u64 {
    server.metric_until("roomlog_subscriptions", &[], |count| count == subscriptions as f64).await;
    server.metric_until("roomlog_sent_bytes_total", &[], |bytes| bytes >= sent_bytes_min).await;
    // What is sent comes to rest when every socket is full.
    let mut sent = (server.metric("roomlog_sent_bytes_total", &[]).await, 0);
    while sent.1 < 10 {
        super::server::pause().await;
        let now = server.metric("roomlog_sent_bytes_total", &[]).await;
        sent = if now == sent.0 { (now, sent.1 + 1) } else { (now, 0) };
    }
    server.memory("VmRSS")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_stalled_subscribers_cost_at_most_64_kib_each() {
    const SUBSCRIBERS: usize = 1000;
    let begun = Instant::now();
    let site = site();
    let mut server = site.start().await;
    let client = site.client(Over::WebSocket);
    let rooms: Vec<_> = (0..4).map(|number| room(&format!("room {number}"))).collect();
    for lobby in &rooms {
        let mut follower = Follower::join(client.clone(), lobby, Start::Earliest).await;
        pass(&client, lobby, &mut follower, 0..20_000).await;
    }
    // One of each room first, so that what all of them need is there.
    let mut stalled = Vec::new();
    for lobby in &rooms {
        stalled.push(Stalled::join(&site, lobby, Start::Earliest).await);
    }
    let before = settled_memory(&server, rooms.len(), 0.0).await;
    let sent = server.metric("roomlog_sent_bytes_total", &[]).await;
    for number in 0..SUBSCRIBERS {
        // At different places, so that they cannot share what they wait with.
        let start = Start::Last((SUBSCRIBERS - number) as u64 * 15 + 4000);
        stalled.push(Stalled::join(&site, &rooms[number % rooms.len()], start).await);
    }
    // What each socket takes at least.
    let sent = sent + (SUBSCRIBERS * (8 << 10)) as f64;
    let mut after = settled_memory(&server, stalled.len(), sent).await;
    let each = |after: u64| after.saturating_sub(before) / SUBSCRIBERS as u64;
    // What only they keep is let go of after a second, and given back to the system after that.
    let at_first = after;
    let begun_to_wait = Instant::now();
    while each(after) > 48 << 10 && begun_to_wait.elapsed() < Duration::from_secs(30) {
        super::server::pause().await;
        after = server.memory("VmRSS");
    }
    println!(
        "{SUBSCRIBERS} stalled subscribers: {:.1} MiB, then {:.1} MiB, {} bytes each, after {:.1} s {:.1} MiB, {} bytes \
         each: {:.1} s",
        mib(before),
        mib(at_first),
        each(at_first),
        begun_to_wait.elapsed().as_secs_f64(),
        mib(after),
        each(after),
        begun.elapsed().as_secs_f64()
    );
    // A body of 64 KiB, another that was read ahead, and the connection.
    assert!(each(at_first) <= 136 << 10, "{} bytes each", each(at_first));
    assert!(each(after) <= 64 << 10, "{} bytes each", each(after));
    drop(stalled);
    server.metric_until("roomlog_subscriptions", &[], |count| count == 0.0).await;
    server.stop().await;
}
