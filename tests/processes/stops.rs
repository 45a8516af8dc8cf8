//! Stops and starts: what a graceful stop does, and what a start refuses.

use std::fs;
use std::path::Path;

use roomlog::client::State;
use roomlog::protocol::{Goodbye, Published, ServerFrame};
use roomlog::types::{Code, NewRecord, PublisherId, Start};

use super::reader::history;
use super::server::{Over, Site};
use crate::raw::{Session, join, publish};
use crate::scenarios::world::{room, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_answers_what_it_has_accepted_says_when_to_come_back_and_ends_with_0() {
    for signal in ["TERM", "INT"] {
        let site = Site::new();
        let mut server = site.start().await;
        let over_quic = site.client(Over::Quic);
        soon("a connection", over_quic.connected()).await.expect("connected");
        let mut idle = Session::open(site.clients()).await;
        idle.send(&join(1, 1, "lobby", Start::New)).await;
        let mut busy = Session::open(site.clients()).await;
        let publisher = PublisherId::random().expect("randomness");
        for number in 1..=200 {
            busy.send(&publish(number, "lobby", publisher, number.into(), &[b"a record"])).await;
        }
        busy.next(|frame| assert!(matches!(frame, ServerFrame::Published(_)), "{frame:?}")).await;
        server.signal(signal);
        let mut watch = over_quic.watch();

        let mut answered = 1;
        let goodbye = loop {
            let goodbye = busy.next(|frame| match frame {
                ServerFrame::Published(Published { .. }) => None,
                ServerFrame::Goodbye(Goodbye { code, reconnect, after_ms, .. }) => Some((*code, *reconnect, *after_ms)),
                other => panic!("an answer or a goodbye was expected, not {other:?}"),
            });
            match goodbye.await {
                None => answered += 1,
                Some(goodbye) => break goodbye,
            }
        };
        let (code, reconnect, after_ms) = goodbye;
        assert_eq!((code, reconnect), (Code::ShuttingDown.number(), true));
        assert!(after_ms <= 100, "{after_ms} ms is within the spread that was set");
        let (goodbye, close) = idle.raw.end().await;
        assert_eq!(goodbye, Some((Code::ShuttingDown.number(), true)), "who only listens is told, too");
        assert!(close.is_some_and(|code| (4000..4500).contains(&code)), "{close:?} says: come again");
        let waits = watch.wait_for(|state| matches!(state, State::Waiting { .. } | State::Connecting { attempt: 1.. }));
        drop(soon("the QUIC client to be sent away", waits).await.expect("it is not closed"));
        assert_eq!(server.exited().await.code(), Some(0));

        let mut server = site.start().await;
        soon("the QUIC client to come back", over_quic.connected()).await.expect("it comes back by itself");
        let seen = history(&over_quic, &room("lobby")).await;
        assert_eq!(seen.len(), answered, "what was accepted was answered, and what was answered is there");
        server.stop().await;
        site.assert_intact();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_a_directory_refuses_and_leaves_the_first_alone() {
    let mut site = Site::new();
    let mut server = site.start().await;
    let mut other = Site::new();
    other.directory = site.directory.clone();
    let (code, said) = other.refusal().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is in use by another process"), "{said}");
    assert!(said.contains(&format!("(process {})", server.id())), "{said}");
    let (code, said) = site.check();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is in use by another process"), "{said}");
    // Two servers want the same port.
    let taken = site.directory.clone();
    site.directory = other.directory.with_file_name("elsewhere");
    let (code, said) = site.refusal().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&site.clients().to_string()), "{said}");
    site.directory = taken;
    let client = site.client(Over::WebSocket);
    soon("a publish", client.publish(&room("lobby"), NewRecord::new(b"x"))).await.expect("the first one serves on");
    server.stop().await;
    site.assert_intact();
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named() {
    let mut site = Site::new();
    let file = site.directory.with_file_name("file");
    fs::write(&file, "something else").expect("written");
    let no_folder_can_be_made = Path::new("/proc/roomlog-data");
    for directory in [&file, no_folder_can_be_made] {
        site.directory = directory.to_path_buf();
        let (code, said) = site.refusal().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(directory.to_str().expect("a name of ours")), "{said}");
        let (code, said) = site.check();
        assert_eq!(code, Some(2), "{said}");
    }
    assert_eq!(fs::read(&file).expect("it is there"), b"something else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_an_unknown_format_is_refused_and_left_as_it_is() {
    let site = Site::new();
    site.start().await.stop().await;
    for (file, title) in [("manifest", "manifest"), ("clean", "clean"), ("run", "run")] {
        let path = site.directory.join(file);
        let original = fs::read(&path).expect("it is there");
        let mut newer = original.clone();
        newer[8..12].copy_from_slice(&99_u32.to_le_bytes());
        let checksum = crc32fast::hash(&newer[8..]);
        newer[4..8].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&path, &newer).expect("written");
        let (code, said) = site.refusal().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(title) && said.contains("format 99"), "{said}");
        let (code, said) = site.check();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("format 99"), "{said}");
        assert_eq!(fs::read(&path).expect("it is there"), newer, "nothing was changed");
        fs::write(&path, original).expect("written");
    }
    site.assert_intact();
}
