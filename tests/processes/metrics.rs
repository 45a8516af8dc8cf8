//! No metric is for show: each of them moves when what it tells of happens.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use roomlog::client::{Event, JoinOptions};
use roomlog::metrics::Metrics;
use roomlog::types::{NewRecord, Offset, Position, PublisherId, Start};

use super::reader::{Follower, history};
use super::server::{Over, Server, Site, pause};
use crate::raw::Raw;
use crate::scenarios::world::{room, soon};

/// What no test of a process can move, and why.
const ELSEWHERE: &[(&str, &str)] =
    &[("roomlog_clock_alarm", "only a step of the system's clock does, which takes root")];

/// The metrics that have been seen with a value other than zero.
#[derive(Default)]
struct Moved(BTreeSet<&'static str>);

impl Moved {
    async fn look(&mut self, server: &Server) {
        let page = server.page("/metrics").await;
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or_default();
            let moved = value.parse::<f64>().is_ok_and(|value| value != 0.0);
            let of = |metric: &str| name.strip_prefix(metric).is_some_and(|rest| ["", "_count"].contains(&rest));
            if moved && let Some(metric) = Metrics::ALL.iter().find(|metric| of(metric.name)) {
                self.0.insert(metric.name);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_moves_when_what_it_tells_of_happens() {
    let begun = Instant::now();
    let mut site = Site::new();
    site.set("storage.stretch_bytes", "1 MiB").set("storage.tails_bytes_max", "1 MiB");
    site.configuration("[[retention]]\nrooms = \"short/*\"\nmax_records = 10\n");
    let mut server = site.start().await;
    let mut moved = Moved::default();
    let (web_socket, quic) = (site.client(Over::WebSocket), site.client(Over::Quic));
    let (lobby, short) = (room("lobby"), room("short/one"));

    // A refused connection, a refused request, a repeat.
    Raw::ask(site.clients(), "GET /v1/ws HTTP/1.1\r\nHost: elsewhere.example.org\r\n\r\n").await;
    let large = vec![0; 300 << 10];
    soon("a refusal", quic.publish(&lobby, NewRecord::new(&large))).await.expect_err("it is too large");
    for _ in 0..2 {
        let client = site.client_with(Over::Quic, |options| options.publisher = Some(PublisherId([1; 16])));
        soon("a publish", client.publish(&room("repeats"), NewRecord::new(b"again"))).await.expect("stored");
    }

    // One who listens slowly, one who is always there, and records enough for volumes and for retention.
    let bounded = JoinOptions::default().bytes_max(64 << 10);
    let mut slow = soon("a join", quic.join_with(&lobby, Start::Earliest, bounded)).await.expect("joined");
    soon("it is live", slow.next()).await.expect("live");
    let _follower = Follower::join(web_socket.clone(), &lobby, Start::New).await;
    let filler: Vec<_> = (0..1000_u32).map(|number| number.to_le_bytes().repeat(250)).collect();
    let records: Vec<_> = filler.iter().map(|bytes| NewRecord::new(bytes)).collect();
    for (number, target) in [&lobby, &short, &lobby, &short, &lobby].into_iter().enumerate() {
        soon("a publish", quic.publish_all(target, &records, None)).await.expect("stored");
        if number == 2 {
            // A volume that cannot be made is tried again: what stands in its way is no file that could be removed.
            let volumes = site.directory.join("volumes");
            let mut obstacles = Vec::new();
            let failed = async {
                while server.metric("roomlog_builds_failed_total", &[]).await == 0.0 {
                    let numbers = fs::read_dir(&volumes)
                        .expect("the directory is there")
                        .filter_map(|entry| entry.ok()?.file_name().to_str()?.get(..8)?.parse::<u64>().ok());
                    // One more each time: the server may have been quicker.
                    let next = numbers.max().unwrap_or(0) + 1;
                    let obstacle = volumes.join(format!("{next:08}.rld"));
                    if fs::create_dir(&obstacle).is_ok() {
                        obstacles.push(obstacle);
                    }
                    web_socket.publish_all(&lobby, &records[..200], None).await.expect("stored");
                    pause().await;
                }
            };
            soon("a build that fails", failed).await;
            server.metric_until("roomlog_builder_backlog_bytes", &[], |bytes| bytes > 0.0).await;
            moved.look(&server).await;
            for obstacle in &obstacles {
                let _ = fs::remove_dir(obstacle);
            }
        }
    }
    moved.look(&server).await;
    server.metric_until("roomlog_builds_total", &["build"], |builds| builds > 0.0).await;
    // The slow one takes nothing, and what it has not taken has left memory.
    server.metric_until("roomlog_subscriptions_lagging", &[], |lagging| lagging > 0.0).await;
    server.metric_until("roomlog_subscription_lag_records", &[], |lag| lag > 0.0).await;
    let mut missed = 0;
    while missed < 3 * records.len() {
        let event = soon("what the slow one missed", slow.next()).await;
        match event {
            Some(Event::Batch(batch)) => missed += batch.records().count(),
            Some(Event::Left { .. }) | None => panic!("it goes on: {event:?}"),
            Some(_) => {}
        }
    }
    moved.look(&server).await;
    assert!(!history(&web_socket, &lobby).await.is_empty());

    server.metric_until("roomlog_retention_records_total", &[], |records| records >= 1990.0).await;
    let epoch = soon("a list", quic.summary(std::slice::from_ref(&short))).await.expect("a summary").epoch;
    let behind = Start::After(Position { epoch, offset: Offset(1) });
    let mut overtaken = soon("a join", quic.join(&short, behind)).await.expect("joined");
    soon("a gap", overtaken.next()).await.expect("told");
    let space = async {
        // A volume gives back what was still retained when it was built.
        while server.metric("roomlog_retention_bytes_total", &[]).await == 0.0 {
            let builds = server.metric("roomlog_builds_total", &["\"build\""]).await;
            web_socket.publish_all(&short, &records, None).await.expect("stored");
            web_socket.publish_all(&short, &records[..500], None).await.expect("stored");
            server.metric_until("roomlog_builds_total", &["\"build\""], |now| now > builds).await;
        }
    };
    soon("space that is given back", space).await;
    moved.look(&server).await;
    server.stop().await;

    // A server on a disk that is as good as full, unless the machine has more than a tebibyte free.
    site.set("storage.disk_reserve_bytes", "1 TiB");
    let server = site.start().await;
    server.metric_until("roomlog_storage_state", &[], |state| state == 1.0).await;
    moved.look(&server).await;

    let still: Vec<_> = Metrics::ALL.iter().map(|metric| metric.name).filter(|name| !moved.0.contains(name)).collect();
    let known: Vec<_> = ELSEWHERE.iter().map(|(name, _)| *name).collect();
    println!("{} metrics move: {:.1} s", moved.0.len(), begun.elapsed().as_secs_f64());
    assert_eq!(still, known, "these metrics never moved; those are known not to");
}
