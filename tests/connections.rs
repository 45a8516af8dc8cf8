//! Connections before and around sessions: HTTP, who is let in, silence, floods, TLS, operators, and the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use roomlog::protocol::{
    ClientFrame, Credit, Frames, HelloBody, Join, JoinId, JoinResult, Ping, Resume, ServerFrame, StartAt, Want,
};
use roomlog::server::{Certificate, Options, Server, StartError};
use roomlog::types::{Code, Epoch, Limits, Offset, Position, PublisherId, Start};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::{
    Incoming, PATIENCE, Raw, Session, UPGRADE, Unread, frame, hello, hello_with, join, payloads_of, publish, server,
    shows, with_time_enough, ws_frame,
};

fn address(server: &Server) -> SocketAddr {
    server.bound().listen.expect("it listens")
}

/// What is answered to a request, as text, up to the end of the connection.
async fn answer(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends in time");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn status(address: SocketAddr, request: &str) -> u16 {
    let answer = answer(address, request).await;
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
}

#[tokio::test]
async fn requests_that_may_not_become_a_session_get_the_status_that_says_why() {
    let (server, _) = server(|_, options| options.allowed_origins = vec!["https://chat.example.org".to_owned()]).await;
    let address = address(&server);
    let with = |more: &str| format!("{UPGRADE}Connection: close\r\n{more}\r\n");
    for (name, request, expected) in [
        ("a foreign origin", with("Origin: https://evil.example.org\r\n"), 403),
        ("no origin at all of a page", with("Origin: null\r\n"), 403),
        ("a foreign host", with("").replace("Host: 127.0.0.1", "Host: broker.evil.org"), 403),
        ("two hosts", with("Host: 127.0.0.1\r\n"), 403),
        ("no host", with("").replace("Host: 127.0.0.1\r\n", ""), 403),
        ("another sub-protocol", with("").replace("roomlog.v1", "roomlog.v2"), 400),
        ("a version of the past", with("").replace("Version: 13", "Version: 8"), 426),
        ("no key", with("").replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400),
        ("a short key", with("").replace("dGhlIHNhbXBsZSBub25jZQ==", "AAAA"), 400),
        ("HTTP/1.0", with("").replace("HTTP/1.1", "HTTP/1.0"), 400),
        ("a POST", with("").replace("GET", "POST"), 405),
        ("no upgrade", "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(), 426),
        ("another path", with("").replace("/v1/ws", "/v2/ws"), 404),
        ("many headers", with(&"X: y\r\n".repeat(100)), 431),
        ("a head of 64 KiB", with(&format!("X: {}\r\n", "y".repeat(64 << 10))), 431),
        ("no HTTP", "ROOMLOG\r\n\r\n".to_owned(), 400),
    ] {
        assert_eq!(status(address, &request).await, expected, "{name}");
    }
    let allowed = format!("{UPGRADE}Origin: https://chat.example.org\r\n\r\n");
    assert!(Raw::ask(address, &allowed).await.1.starts_with("HTTP/1.1 101"));
    let own = format!("{UPGRADE}Origin: http://127.0.0.1\r\n\r\n");
    assert!(Raw::ask(address, &own).await.1.starts_with("HTTP/1.1 101"));
}

#[tokio::test]
async fn the_page_may_run_its_own_script_and_talk_to_this_server_only() {
    let (server, _) = server(|_, _| {}).await;
    let page = answer(address(&server), "GET / HTTP/1.1\r\nHost: localhost:7400\r\nConnection: close\r\n\r\n").await;
    let head = page.split("\r\n\r\n").next().expect("a head").to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert!(head.contains("default-src 'none'") && head.contains("ws://localhost:7400"), "{head}");
    assert!(!head.contains("unsafe"), "{head}");
    let nonce = head.split("script-src 'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
    assert!(page.contains(&format!("<script nonce=\"{nonce}\">")));
    assert_eq!(page.matches("<script").count(), 1);
}

#[tokio::test]
async fn silence_and_slowness_before_the_hello_are_cut() {
    with_time_enough(cut_before_the_hello).await;
}

async fn cut_before_the_hello(limit: Duration) {
    let (server, exporter) = server(move |limits, _| limits.handshake_timeout = limit).await;
    let address = address(&server);
    // Nothing at all; and half a head.
    for request in ["", "GET /v1/ws HT"] {
        let answer = answer(address, request).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    // A WebSocket without a hello, and one with half a hello.
    for bytes in [Vec::new(), ws_frame(0x82, &hello())[..6].to_vec()] {
        let mut raw = Raw::open(address).await;
        raw.send(&bytes).await;
        assert_eq!(raw.end().await, (Some((Code::HelloRequired.number(), true)), Some(4102)));
    }
    shows(&exporter, "roomlog_connections_refused_total{reason=\"timeout\"} 2").await;
    Session::open(address).await.publish("tea", &[b"served on"]).await;
}

#[tokio::test]
async fn a_quiet_peer_is_pinged_and_one_that_does_not_answer_is_given_up() {
    with_time_enough(answer_pings_within).await;
}

async fn answer_pings_within(limit: Duration) {
    let (server, _) = server(move |limits, _| {
        limits.ping_interval = limit / 3;
        limits.idle_timeout = limit;
    })
    .await;
    let mut answering = Session::open(address(&server)).await;
    let mut silent = Session::open(address(&server)).await;
    for _ in 0..8 {
        let Incoming::Ping(payload) = answering.raw.next().await else { panic!("a ping was expected") };
        answering.raw.send(&ws_frame(0x8a, &payload)).await;
    }
    assert_eq!(silent.raw.end().await, (Some((Code::Unavailable.number(), true)), Some(4303)));
    answering.publish("tea", &[b"alive"]).await;
}

#[tokio::test]
async fn no_more_connections_are_let_in_than_allowed_and_a_place_is_free_again() {
    let (server, _) = server(|_, options| options.connections_max = 2).await;
    let address = address(&server);
    let first = Session::open(address).await;
    let mut second = Session::open(address).await;
    assert_eq!(status(address, "").await, 503);
    drop(first);
    // The place is free when the server has seen the end: soon, and not at once.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (_, head) = Raw::ask(address, &format!("{UPGRADE}\r\n")).await;
        if head.starts_with("HTTP/1.1 101") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{head}");
    }
    second.publish("tea", &[b"served on"]).await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_connections_are_counted_by_the_peer_it_names() {
    let (server, _) = server(|_, options| {
        options.trusted_proxies = vec!["127.0.0.1".parse().expect("an address")];
        options.connections_per_address_max = 1;
    })
    .await;
    let from = |peer: &str| format!("{UPGRADE}X-Forwarded-For: {peer}\r\n\r\n");
    let (_first, head) = Raw::ask(address(&server), &from("192.0.2.1")).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(Raw::ask(address(&server), &from("192.0.2.1")).await.1.starts_with("HTTP/1.1 503"));
    assert!(Raw::ask(address(&server), &from("192.0.2.2")).await.1.starts_with("HTTP/1.1 101"));
}

#[tokio::test]
async fn a_million_publishes_before_one_byte_is_read_are_each_answered_and_nobody_else_waits() {
    const TOTAL: u32 = 1_000_000;
    const EACH: u32 = 1_000;
    let (server, _) = server(|_, _| {}).await;
    let mut flood = Session::open(address(&server)).await;
    let publisher = PublisherId([5; 16]);
    let mut messages = (0..TOTAL / EACH).map(|message| {
        let publishes =
            (message * EACH + 1..=(message + 1) * EACH).map(|seq| publish(seq, "flood", publisher, seq.into(), &[b""]));
        ws_frame(0x82, &publishes.flatten().collect::<Vec<_>>())
    });
    // Until the server reads no more: it holds back what is not acknowledged or not read.
    let mut unsent = Vec::new();
    for message in messages.by_ref() {
        let mut left = &message[..];
        while !left.is_empty() {
            match tokio::time::timeout(Duration::from_secs(1), flood.raw.stream.write(left)).await {
                Ok(written) => left = &left[written.expect("the server is there")..],
                Err(_) => break,
            }
        }
        if !left.is_empty() {
            unsent.push(left.to_vec());
            break;
        }
    }
    assert!(!unsent.is_empty(), "the server has read a million publishes without being read from");
    let mut other = Session::open(address(&server)).await;
    other.publish("other", &[b"not delayed"]).await;

    unsent.extend(messages);
    let (mut read, mut write) = flood.raw.stream.into_split();
    let writing = async {
        for message in unsent {
            write.write_all(&message).await.expect("the server reads again");
        }
    };
    let counting = async {
        let (mut bytes, mut unread) = (vec![0; 1 << 16], Unread::new(true));
        let (mut acknowledged, mut refused) = (0_u32, 0_u32);
        while acknowledged + refused < TOTAL {
            let count =
                tokio::time::timeout(PATIENCE, read.read(&mut bytes)).await.expect("answers come").expect("it reads");
            unread.add(&bytes[..count], |frame| match frame {
                ServerFrame::Published(_) => acknowledged += 1,
                ServerFrame::Error(_) => refused += 1,
                other => panic!("{other:?}"),
            });
        }
        acknowledged
    };
    let ((), acknowledged) = tokio::join!(writing, counting);
    assert!(acknowledged > 0);
    assert_eq!(other.replay(1, "flood").await.len(), acknowledged as usize, "what is acknowledged is stored, once");
}

#[tokio::test]
async fn a_flood_of_pings_costs_one_pong_at_a_time() {
    let (server, _) = server(|_, _| {}).await;
    let mut session = Session::open(address(&server)).await;
    let pings = ws_frame(0x89, &[b'p'; 125]).repeat(1000);
    for _ in 0..20 {
        session.raw.send(&pings).await;
    }
    session.send(&frame(&ClientFrame::Ping(Ping { request: 77 }))).await;
    let mut pongs = 0;
    loop {
        match session.raw.next().await {
            Incoming::Pong(_) => pongs += 1,
            Incoming::Binary(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!((1..20_000).contains(&pongs), "{pongs}");
}

#[tokio::test]
async fn one_hello_resumes_many_rooms_and_says_what_became_of_each() {
    let (server, _) = server(|_, _| {}).await;
    let mut writer = Session::open(address(&server)).await;
    for room in ["a", "b"] {
        writer.publish(room, &[b"1", b"2", b"3"]).await;
    }
    let epoch = server.broker().epoch();
    let at = |join, room, offset, epoch, want| {
        let position = Position { epoch, offset: Offset(offset) };
        Resume { join: JoinId(join), room, position, credit_bytes: None, want }
    };
    let body = HelloBody {
        token: None,
        client: "test",
        resume: vec![
            at(1, "a", 1, epoch, Want::RECORDS),
            at(2, "b", 9, epoch, Want::RECORDS),
            at(3, "b", 1, Epoch(epoch.0 ^ 1), Want::RECORDS),
            at(1, "b", 0, epoch, Want::RECORDS),
            at(4, "", 0, epoch, Want::RECORDS),
            at(5, "b", 0, epoch, Want { signals: true, ..Want::RECORDS }),
            at(6, "b", 3, epoch, Want::RECORDS),
        ],
    };
    let mut raw = Raw::open(address(&server)).await;
    raw.message(&hello_with(&body)).await;
    let welcome = raw.frames().await;
    let frame = Frames::new(&welcome, usize::MAX).next().expect("a frame").expect("whole");
    let Ok(Some(ServerFrame::Welcome(welcome))) = ServerFrame::parse(frame) else { panic!("a welcome was expected") };
    let became: Vec<_> = welcome
        .resumed
        .iter()
        .map(|result| match result {
            JoinResult::Joined(joined) => (0, joined.join.0, joined.start.0),
            JoinResult::Void(void) => (void.code, void.join.0, void.head.0),
            JoinResult::Refused(fault) => (fault.code, 0, 0),
        })
        .collect();
    let code = Code::number;
    assert_eq!(
        became,
        [
            (0, 1, 1),
            (code(Code::BeyondHead), 2, 3),
            (code(Code::VoidEpoch), 3, 3),
            (code(Code::AlreadyJoined), 0, 0),
            (code(Code::BadRoom), 0, 0),
            (code(Code::NotSupported), 0, 0),
            (0, 6, 3),
        ]
    );
    let mut delivered = Vec::new();
    while delivered.len() < 2 {
        let message = raw.frames().await;
        for frame in Frames::new(&message, usize::MAX) {
            if let Ok(Some(ServerFrame::Delivery(delivery))) = ServerFrame::parse(frame.expect("whole")) {
                assert_eq!(delivery.header.join, JoinId(1));
                delivered.extend(payloads_of(&delivery));
            }
        }
    }
    assert_eq!(delivered, [b"2", b"3"]);
}

#[tokio::test]
async fn credit_paces_one_room_and_no_other() {
    let (server, _) = server(|_, _| {}).await;
    let mut session = Session::open(address(&server)).await;
    let (room, start, want) = ("paced", StartAt::New, Want::RECORDS);
    let paced = Join { request: 1, join: JoinId(1), room, start, credit_bytes: Some(1), want };
    session.send(&frame(&ClientFrame::Join(paced))).await;
    session.send(&join(2, 2, "free", Start::New)).await;
    for _ in 0..4 {
        session.next(|frame| assert!(matches!(frame, ServerFrame::Joined(_) | ServerFrame::Live(_)))).await;
    }
    let mut writer = Session::open(address(&server)).await;
    let delivered = |frame: &ServerFrame<'_>| match frame {
        ServerFrame::Delivery(delivery) => (delivery.header.join.0, payloads_of(delivery)),
        other => panic!("{other:?}"),
    };
    writer.publish("paced", &[b"overdraws"]).await;
    assert_eq!(session.next(delivered).await, (1, vec![b"overdraws".to_vec()]));
    writer.publish("paced", &[b"waits"]).await;
    writer.publish("free", &[b"passes"]).await;
    assert_eq!(session.next(delivered).await, (2, vec![b"passes".to_vec()]));
    session.send(&frame(&ClientFrame::Credit(Credit { request: 3, join: JoinId(1), bytes: 10_000 }))).await;
    assert_eq!(session.next(delivered).await, (1, vec![b"waits".to_vec()]));
}

#[tokio::test]
async fn a_server_beyond_loopback_has_to_be_wanted() {
    let (server, _) = server(|_, _| {}).await;
    let anywhere: SocketAddr = "0.0.0.0:0".parse().expect("an address");
    let mut options = Options::default();
    (options.listen, options.quic_listen, options.admin_listen) = (Some(anywhere), None, None);
    let refused = Server::start(server.broker().clone(), options.clone()).await.expect_err("it is not wanted");
    assert!(matches!(refused, StartError::Anonymous { .. }), "{refused}");
    assert!(refused.to_string().contains("allow_anonymous = true"), "{refused}");
    options.allow_anonymous = true;
    let wanted = Server::start(server.broker().clone(), options).await.expect("it is wanted");
    assert_ne!(wanted.bound().listen.expect("it listens").port(), 0);
}

#[tokio::test]
async fn operators_see_metrics_health_and_what_it_is() {
    let (server, _) = server(|_, _| {}).await;
    Session::open(address(&server)).await.publish("tea", &[b"one"]).await;
    let admin = server.bound().admin.expect("it listens");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let metrics = answer(admin, &get("/metrics")).await;
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("# HELP roomlog_sessions_opened_total"), "{metrics}");
    assert!(metrics.contains("roomlog_sessions_opened_total{transport=\"websocket\"} 1"), "{metrics}");
    assert_eq!(status(admin, &get("/health/live")).await, 200);
    assert_eq!(status(admin, &get("/health/ready")).await, 200);
    let info = answer(admin, &get("/info")).await;
    let info: serde_json::Value = serde_json::from_str(info.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    assert_eq!(info["epoch"], server.broker().epoch().0);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status(admin, &get("/nothing")).await, 404);
    assert_eq!(status(admin, &get("/info").replace("localhost", "evil.example.org")).await, 403);
    assert_eq!(status(admin, &get("/info").replace("GET", "DELETE")).await, 405);
    server.broker().close().await;
    assert_eq!(status(admin, &get("/health/ready")).await, 503);
    assert_eq!(status(admin, &get("/health/live")).await, 200);
}

#[tokio::test]
async fn a_stopping_server_says_goodbye_with_a_time_to_come_back_at() {
    // No other test listens at this address: once the server does not, nobody does.
    let alone = "127.0.0.2:0".parse().expect("an address");
    let (server, _) = server(|_, options| options.listen = Some(alone)).await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(Session::open(address(&server)).await);
    }
    let listening = address(&server);
    // What is on its way when the server is told to stop is answered before the goodbye.
    for session in &mut sessions {
        let publisher = PublisherId::random().expect("randomness");
        session.send(&publish(1, "tea", publisher, 1, &[b"last"])).await;
    }
    for session in &mut sessions {
        session.next(|frame| assert!(matches!(frame, ServerFrame::Published(_)), "{frame:?}")).await;
    }
    let stopping = tokio::spawn(server.stop());
    for session in &mut sessions {
        assert_eq!(session.raw.end().await, (Some((Code::ShuttingDown.number(), true)), Some(4302)));
    }
    drop(sessions);
    tokio::time::timeout(PATIENCE, stopping).await.expect("it stops in time").expect("it stops");
    assert!(TcpStream::connect(listening).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn under_tls_a_session_is_as_without() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (chain, key) = (directory.path().join("chain.pem"), directory.path().join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).expect("it can be written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("it can be written");
    let certificate = Certificate::Files { chain: chain.clone(), key };
    let (server, _) = server(|_, options| options.certificate = certificate).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&chain).expect("it was written")).expect("it is one");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address(&server)).await.expect("it listens");
    let name = "localhost".try_into().expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.expect("the handshake is in order");

    let payload = vec![b'x'; 200 << 10];
    let request = format!("{UPGRADE}\r\n");
    let bytes = [
        request.into_bytes(),
        ws_frame(0x82, &hello()),
        ws_frame(0x82, &publish(1, "tea", PublisherId([1; 16]), 1, &[&payload])),
        ws_frame(0x82, &publish(2, "tea", PublisherId([1; 16]), 2, &[b"small"])),
        ws_frame(0x82, &join(3, 1, "tea", Start::Earliest)),
    ];
    stream.write_all(&bytes.concat()).await.expect("the server reads");
    let (mut unread, mut received) = (Unread::new(false), Vec::new());
    while received.len() < 2 {
        let mut buffer = vec![0; 1 << 16];
        let count = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").expect("it reads");
        unread.add(&buffer[..count], |frame| {
            if let ServerFrame::Delivery(delivery) = frame {
                received.extend(payloads_of(&delivery));
            }
        });
    }
    assert_eq!(received, [payload, b"small".to_vec()]);
}

#[tokio::test]
async fn more_in_flight_than_allowed_is_busy_and_the_session_goes_on() {
    let allow = |limits: &mut Limits, _: &mut Options| limits.requests_in_flight_max = 4;
    let (server, _) = server(allow).await;
    let mut session = Session::open(address(&server)).await;
    let publisher = PublisherId([5; 16]);
    let many: Vec<_> = (1..=100).flat_map(|seq| publish(seq, "tea", publisher, seq.into(), &[b"x"])).collect();
    session.send(&many).await;
    let (mut stored, mut busy) = (0, 0);
    for _ in 0..100 {
        session
            .next(|frame| match frame {
                ServerFrame::Published(_) => stored += 1,
                ServerFrame::Error(fault) if fault.code == Code::Busy.number() => busy += 1,
                ServerFrame::Error(fault) => assert_eq!(fault.code, Code::OutOfOrder.number()),
                other => panic!("{other:?}"),
            })
            .await;
    }
    assert!(stored >= 4 && busy >= 1, "{stored} stored, {busy} busy");
    session.publish("tea", &[b"on it goes"]).await;
}

#[tokio::test]
async fn more_bytes_in_flight_than_allowed_pause_the_reading_and_all_is_stored() {
    let (server, _) = server(|_, _| {}).await;
    let session = Session::open(address(&server)).await;
    let (mut read, mut write) = session.raw.stream.into_split();
    const TOTAL: u32 = 200;
    let payload = vec![b'x'; 60 << 10];
    let writing = async {
        for seq in 1..=TOTAL {
            let bytes = publish(seq, "tea", PublisherId([5; 16]), seq.into(), &[&payload]);
            write.write_all(&ws_frame(0x82, &bytes)).await.expect("the server reads");
        }
    };
    let reading = async {
        let (mut bytes, mut unread, mut stored) = (vec![0; 1 << 16], Unread::new(true), 0);
        while stored < TOTAL {
            let read = tokio::time::timeout(PATIENCE, read.read(&mut bytes)).await.expect("answers come");
            unread.add(&bytes[..read.expect("it reads")], |frame| {
                assert!(matches!(frame, ServerFrame::Published(_)), "{frame:?}");
                stored += 1;
            });
        }
    };
    tokio::join!(writing, reading);
    let mut other = Session::open(address(&server)).await;
    assert_eq!(other.replay(1, "tea").await.len(), TOTAL as usize);
}

#[tokio::test]
async fn a_peer_that_leaves_its_output_unread_for_too_long_is_ended_and_delays_nobody_meanwhile() {
    with_time_enough(leave_output_unread_for).await;
}

async fn leave_output_unread_for(limit: Duration) {
    let (server, exporter) = server(move |limits, _| limits.stall_timeout = limit).await;
    let mut stalled = Session::open(address(&server)).await;
    stalled.send(&join(1, 1, "tea", Start::New)).await;
    stalled.next(|frame| assert!(matches!(frame, ServerFrame::Joined(_)))).await;
    let mut reader = Session::open(address(&server)).await;
    reader.replay(1, "tea").await;
    let mut writer = Session::open(address(&server)).await;
    let payload = vec![b'x'; 200 << 10];
    // Far more than the socket's buffers take.
    for _ in 0..100 {
        writer.publish("tea", &[&payload]).await;
        reader
            .next(|frame| match frame {
                ServerFrame::Delivery(delivery) => assert_eq!(payloads_of(delivery).len(), 1),
                other => panic!("{other:?}"),
            })
            .await;
    }
    shows(&exporter, "roomlog_errors_total{code=\"busy\"} 1").await;
    // It reads again before the time for the last frames is over, so it sees why.
    assert_eq!(stalled.raw.end().await, (Some((Code::Busy.number(), true)), Some(4200)));
}

#[tokio::test]
async fn a_stopping_server_does_not_wait_for_those_who_have_not_said_hello() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (chain, key) = (directory.path().join("chain.pem"), directory.path().join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).expect("it can be written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("it can be written");
    for (name, tls, request) in [
        ("nothing at all", false, String::new()),
        ("half a head", false, UPGRADE.to_owned()),
        ("nothing on an open session", false, format!("{UPGRADE}\r\n")),
        ("nothing of TLS", true, String::new()),
    ] {
        let certificate = Certificate::Files { chain: chain.clone(), key: key.clone() };
        let (server, exporter) = server(|limits, options| {
            // So long that the stop ends in time only if it does not wait for it.
            limits.handshake_timeout = 10 * PATIENCE;
            options.shutdown_deadline = 10 * PATIENCE;
            if tls {
                options.certificate = certificate;
            }
        })
        .await;
        let mut stream = TcpStream::connect(address(&server)).await.expect("it listens");
        stream.write_all(request.as_bytes()).await.expect("it is sent");
        shows(&exporter, "roomlog_connections{transport=\"websocket\"} 1").await;
        tokio::time::timeout(PATIENCE, server.stop()).await.unwrap_or_else(|_| panic!("{name}: it does not stop"));
    }
}
