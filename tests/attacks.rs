//! Bad input over the wire: what is sent, what the server says to it, and that it serves others as before.

use std::net::SocketAddr;

use roomlog::protocol::{ClientFrame, Credit, Hello, HelloBody, Join, JoinId, Leave, ServerFrame, StartAt, Want};
use roomlog::types::{Code, Epoch, Offset, Position, PublisherId, Start};

use crate::raw::{
    Incoming, Raw, Session, UPGRADE, frame, hello, hello_with, join, publish, server, shows, shows_one, ws_frame,
    ws_head,
};

fn address(server: &roomlog::server::Server) -> SocketAddr {
    server.bound().listen.expect("it listens")
}

const KEPT: [&[u8]; 3] = [b"one", b"two", b"three"];

/// A server with records in a room, and the proof that it still has and serves them.
struct Victim {
    server: roomlog::server::Server,
}

impl Victim {
    async fn new() -> Self {
        let (server, _) = server(|_, _| {}).await;
        Session::open(address(&server)).await.publish("kept", &KEPT).await;
        Self { server }
    }

    fn address(&self) -> SocketAddr {
        address(&self.server)
    }

    async fn is_unharmed(&self) {
        let mut session = Session::open(self.address()).await;
        assert_eq!(session.replay(1, "kept").await, KEPT);
    }
}

#[tokio::test]
async fn what_is_published_over_a_websocket_is_replayed_and_then_comes_live() {
    let (server, exporter) = server(|_, _| {}).await;
    let mut writer = Session::open(address(&server)).await;
    writer.publish("tea", &KEPT).await;
    let mut reader = Session::open(address(&server)).await;
    assert_eq!(reader.replay(7, "tea").await, KEPT);
    writer.publish("tea", &[b"four"]).await;
    reader
        .next(|frame| match frame {
            ServerFrame::Delivery(delivery) => {
                assert_eq!(delivery.header.join, JoinId(7));
                assert_eq!(crate::raw::payloads_of(delivery), [b"four"]);
            }
            other => panic!("{other:?}"),
        })
        .await;
    shows(&exporter, "roomlog_published_records_total{transport=\"websocket\"} 4").await;
    shows(&exporter, "roomlog_delivered_records_total{transport=\"websocket\",source=\"tail\"} 4").await;
    server.stop().await;
}

/// Frames on an open session that end it: name, bytes, goodbye, close code.
type Fatal = (&'static str, Vec<u8>, (Code, bool), u16);

fn fatal_frames() -> Vec<Fatal> {
    let publisher = PublisherId([7; 16]);
    let good = publish(1, "kept", publisher, 1, &[b"x"]);
    let grown = |mut bytes: Vec<u8>| {
        // One byte more than the frame has, told in its length.
        bytes.push(0);
        bytes[0] += 1;
        bytes
    };
    let bad = (Code::BadFrame, false);
    vec![
        ("an unknown frame", vec![2, 63, 0], bad, 4600),
        ("an answer", vec![2, 67, 1], bad, 4600),
        ("a push that a client may skip", vec![2, 200, 1], bad, 4600),
        ("an empty frame", vec![0], bad, 4600),
        ("a truncated frame", good[..good.len() - 1].to_vec(), bad, 4600),
        ("a frame with half a field", vec![2, 3, 1], bad, 4600),
        ("trailing bytes", grown(frame(&ClientFrame::Leave(Leave { request: 1, join: JoinId(1) }))), bad, 4600),
        ("a record with trailing bytes", grown(good.clone()), bad, 4600),
        ("a length of 2^60", [&[0xfd][..], &(1_u64 << 60).to_le_bytes()].concat(), (Code::TooLarge, false), 4604),
        ("a length that is not canonical", vec![0xfb, 3, 0, 4, 1, 1], bad, 4600),
        ("an integer that is not canonical", vec![5, 4, 0xfb, 1, 0, 1], bad, 4600),
        ("a room's name of 2^60 bytes", [&[11, 2, 1, 0xfd][..], &(1_u64 << 60).to_le_bytes()].concat(), bad, 4600),
        ("a room's name that is not UTF-8", vec![6, 6, 1, 2, 0xff, 0xfe, 0], bad, 4600),
        (
            "a publish that counts wrong",
            {
                let mut bytes = good.clone();
                let count = bytes.len() - 1 - 6 - 1;
                assert_eq!(bytes[count], 1);
                bytes[count] = 2;
                bytes
            },
            bad,
            4600,
        ),
        ("a second hello", hello(), bad, 4600),
    ]
}

#[tokio::test]
async fn a_frame_that_cannot_be_read_ends_the_session_and_nothing_else() {
    let victim = Victim::new().await;
    for (name, bytes, (code, reconnect), close) in fatal_frames() {
        let mut session = Session::open(victim.address()).await;
        session.send(&bytes).await;
        let end = session.raw.end().await;
        assert_eq!(end, (Some((code.number(), reconnect)), Some(close)), "{name}");
        victim.is_unharmed().await;
    }
}

#[tokio::test]
async fn a_connection_that_does_not_begin_with_a_good_hello_is_ended() {
    let victim = Victim::new().await;
    let version = |version_min, version_max| {
        let body = HelloBody::default().to_bytes();
        frame(&ClientFrame::Hello(Hello { version_min, version_max, ..Hello::new(&body) }))
    };
    let mut magic = hello();
    magic[2] = b'X';
    let token = hello_with(&HelloBody { token: Some("secret"), ..HelloBody::default() });
    let long = "x".repeat(256);
    let client = hello_with(&HelloBody { client: &long, ..HelloBody::default() });
    let early = publish(1, "kept", PublisherId([1; 16]), 1, &[b"early"]);
    for (name, bytes, code, close) in [
        ("a publish before the hello", early, Code::HelloRequired, 4602),
        ("an unknown frame before the hello", vec![2, 63, 0], Code::HelloRequired, 4602),
        ("a later version", version(2, 9), Code::BadVersion, 4601),
        ("no version at all", version(0, 0), Code::BadVersion, 4601),
        ("another magic", magic, Code::BadFrame, 4600),
        ("a token", token, Code::NotSupported, 4605),
        ("a client's name of 256 bytes", client, Code::TooLarge, 4604),
    ] {
        let mut raw = Raw::open(victim.address()).await;
        raw.message(&bytes).await;
        assert_eq!(raw.end().await, (Some((code.number(), false)), Some(close)), "{name}");
        victim.is_unharmed().await;
    }
}

#[tokio::test]
async fn a_request_that_is_wrong_is_refused_and_the_session_goes_on() {
    let victim = Victim::new().await;
    let mut session = Session::open(victim.address()).await;
    let publisher = PublisherId([9; 16]);
    let epoch = victim.server.broker().epoch();
    session.send(&join(1, 1, "kept", Start::New)).await;
    session.next(|frame| assert!(matches!(frame, ServerFrame::Joined(_)))).await;
    session.next(|frame| assert!(matches!(frame, ServerFrame::Live(_)))).await;
    let large = vec![b'x'; (256 << 10) + 1];
    let long = "x".repeat(256);
    let wanting = |want| {
        let start = StartAt::New;
        frame(&ClientFrame::Join(Join { request: 2, join: JoinId(2), room: "kept", start, credit_bytes: None, want }))
    };
    let cursor = frame(&ClientFrame::Join(Join {
        request: 2,
        join: JoinId(2),
        room: "kept",
        start: StartAt::Cursor("read"),
        credit_bytes: None,
        want: Want::RECORDS,
    }));
    let many = vec![&b""[..]; 1025];
    for (name, bytes, code) in [
        ("an empty room name", publish(2, "", publisher, 1, &[b"x"]), Code::BadRoom),
        ("a room name of 256 bytes", publish(2, &long, publisher, 1, &[b"x"]), Code::BadRoom),
        ("a room name with a control character", join(2, 2, "a\u{7}b", Start::New), Code::BadRoom),
        ("a payload over the limit", publish(2, "kept", publisher, 1, &[&large]), Code::TooLarge),
        ("more records than allowed", publish(2, "kept", publisher, 1, &many), Code::TooLarge),
        ("no records", publish(2, "kept", publisher, 1, &[]), Code::BadFrame),
        ("a seq of 0", publish(2, "kept", publisher, 0, &[b"x"]), Code::OutOfOrder),
        ("a seq that skips", publish(2, "kept", publisher, 2, &[b"x"]), Code::PublisherForgotten),
        ("a join id in use", join(2, 1, "other", Start::New), Code::AlreadyJoined),
        ("a leave of nothing", frame(&ClientFrame::Leave(Leave { request: 2, join: JoinId(5) })), Code::UnknownJoin),
        (
            "a credit for nothing",
            { frame(&ClientFrame::Credit(Credit { request: 2, join: JoinId(5), bytes: 1 })) },
            Code::UnknownJoin,
        ),
        ("signals", wanting(Want { signals: true, ..Want::RECORDS }), Code::NotSupported),
        ("cursors", wanting(Want { cursors: true, ..Want::RECORDS }), Code::NotSupported),
        ("nothing", wanting(Want { records: false, ..Want::RECORDS }), Code::NotSupported),
        ("the start of a cursor", cursor, Code::NotSupported),
        ("a refresh", vec![4, 10, 2, 1, b'x'], Code::NotSupported),
    ] {
        session.send(&bytes).await;
        assert_eq!(session.refusal().await, (2, code), "{name}");
    }
    for (name, position, code) in [
        ("a position of another epoch", Position { epoch: Epoch(epoch.0 ^ 1), offset: Offset(1) }, Code::VoidEpoch),
        ("a position beyond the head", Position { epoch, offset: Offset(1000) }, Code::BeyondHead),
    ] {
        session.send(&join(3, 3, "kept", Start::After(position))).await;
        session
            .next(|frame| match frame {
                ServerFrame::Void(void) => {
                    assert_eq!((void.request, void.join, void.code), (3, JoinId(3), code.number()), "{name}");
                    assert_eq!(void.epoch, epoch);
                }
                other => panic!("{name}: {other:?}"),
            })
            .await;
    }
    session.publish("kept after all", &[b"x"]).await;
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_repeat_with_another_payload_is_a_conflict_and_one_with_the_same_is_the_original() {
    let victim = Victim::new().await;
    let mut session = Session::open(victim.address()).await;
    let publisher = PublisherId([3; 16]);
    let published = |frame: &ServerFrame<'_>| match frame {
        ServerFrame::Published(published) => (published.first, published.duplicate),
        other => panic!("{other:?}"),
    };
    session.send(&publish(1, "tea", publisher, 1, &[b"x"])).await;
    let (offset, duplicate) = session.next(published).await;
    assert!(!duplicate);
    session.send(&publish(2, "tea", publisher, 1, &[b"y"])).await;
    assert_eq!(session.refusal().await, (2, Code::PublisherConflict));
    session.send(&publish(3, "tea", publisher, 1, &[b"x"])).await;
    assert_eq!(session.next(published).await, (offset, true));
    session.send(&publish(4, "tea", publisher, 3, &[b"z"])).await;
    assert_eq!(session.refusal().await, (4, Code::OutOfOrder));
    assert_eq!(Session::open(victim.address()).await.replay(1, "tea").await, [b"x"]);
    victim.is_unharmed().await;
}

#[tokio::test]
async fn a_peer_that_breaks_rfc_6455_is_told_so_and_closed() {
    let victim = Victim::new().await;
    let over = 1 << 21;
    let fragments = |count, payload: &[u8]| {
        let more = ws_frame(0x00, payload);
        [ws_frame(0x02, payload), more.repeat(count)].concat()
    };
    let unmasked = [ws_head(0x82, 3, false), b"abc".to_vec()].concat();
    for (name, bytes, close) in [
        ("a text message", ws_frame(0x81, b"hello"), 1003),
        ("a text message that is not UTF-8", ws_frame(0x81, b"\xff\xfe"), 1003),
        ("an unmasked frame", unmasked, 1002),
        ("a reserved bit", ws_frame(0xc2, b"x"), 1002),
        ("an unknown opcode", ws_frame(0x83, b"x"), 1002),
        ("a ping of 126 bytes", ws_frame(0x89, &[0; 126]), 1002),
        ("a pong of 60000 bytes", ws_frame(0x8a, &[0; 60000]), 1002),
        ("a fragmented ping", ws_frame(0x09, b"x"), 1002),
        ("a continuation of nothing", ws_frame(0x80, b"x"), 1002),
        ("a message within a message", [ws_frame(0x02, b"x"), ws_frame(0x82, b"y")].concat(), 1002),
        ("a close code that must not be sent", ws_frame(0x88, &[0x03, 0xed]), 1002),
        ("half a close code", ws_frame(0x88, &[3]), 1002),
        ("a close reason that is not UTF-8", ws_frame(0x88, b"\x03\xe8\xff\xfe"), 1007),
        ("a close of 126 bytes", ws_frame(0x88, &[3_u8; 126]), 1002),
        ("the front of a text message", ws_frame(0x01, b"hel"), 1003),
        ("the second reserved bit", ws_frame(0xa2, b"x"), 1002),
        ("the third reserved bit in a ping", ws_frame(0x99, b"x"), 1002),
        ("an unknown control opcode", ws_frame(0x8b, b""), 1002),
        ("the middle of nothing", ws_frame(0x00, b"x"), 1002),
        ("a frame over the limit, announced", ws_head(0x82, over, true), 1009),
        ("a frame of 2^63 bytes", ws_head(0x82, 1 << 63, true), 1009),
        ("fragments over the limit", fragments(40, &[0; 60_000]), 1009),
        ("endless empty fragments", fragments(10_000, b""), 1009),
    ] {
        let mut session = Session::open(victim.address()).await;
        session.raw.send(&bytes).await;
        assert_eq!(session.raw.end().await, (None, Some(close)), "{name}");
        victim.is_unharmed().await;
    }
}

#[tokio::test]
async fn what_came_before_a_violation_in_the_same_packet_is_stored() {
    let victim = Victim::new().await;
    let mut session = Session::open(victim.address()).await;
    let first = ws_frame(0x82, &publish(1, "tea", PublisherId([1; 16]), 1, &[b"x"]));
    session.raw.send(&[first, ws_frame(0x81, b"text")].concat()).await;
    assert_eq!(session.raw.end().await.1, Some(1003));
    let mut other = Session::open(victim.address()).await;
    other.send(&join(1, 1, "tea", Start::Earliest)).await;
    while !other.next(|frame| matches!(frame, ServerFrame::Delivery(_))).await {}
}

#[tokio::test]
async fn a_message_may_come_byte_by_byte_and_in_fragments_with_pings_between() {
    let victim = Victim::new().await;
    let mut session = Session::open(victim.address()).await;
    let message = publish(1, "tea", PublisherId([1; 16]), 1, &[b"fragmented"]);
    let (front, rest) = message.split_at(5);
    let (middle, back) = rest.split_at(9);
    let bytes = [
        ws_frame(0x02, front),
        ws_frame(0x89, b"are you there"),
        ws_frame(0x00, middle),
        ws_frame(0x00, b""),
        ws_frame(0x80, back),
    ]
    .concat();
    for byte in bytes {
        session.raw.send(&[byte]).await;
    }
    assert_eq!(session.raw.next().await, Incoming::Pong(b"are you there".to_vec()));
    session.next(|frame| assert!(matches!(frame, ServerFrame::Published(_)), "{frame:?}")).await;
    assert_eq!(Session::open(victim.address()).await.replay(1, "tea").await, [b"fragmented"]);
}

#[tokio::test]
async fn frames_right_behind_the_request_for_the_upgrade_are_not_lost() {
    let victim = Victim::new().await;
    let message = [hello(), publish(1, "tea", PublisherId([1; 16]), 1, &[b"early"])].concat();
    let bytes = [format!("{UPGRADE}\r\n").into_bytes(), ws_frame(0x82, &message)].concat();
    let mut stream = tokio::net::TcpStream::connect(victim.address()).await.expect("it listens");
    tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.expect("the server reads");
    let mut reader = Session::open(victim.address()).await;
    reader.send(&join(1, 1, "tea", Start::Earliest)).await;
    while !reader.next(|frame| matches!(frame, ServerFrame::Delivery(_))).await {}
}

#[tokio::test]
async fn a_close_is_answered_with_a_close() {
    let victim = Victim::new().await;
    let mut session = Session::open(victim.address()).await;
    session.raw.send(&ws_frame(0x88, &[0x03, 0xe8])).await;
    assert_eq!(session.raw.end().await, (None, Some(1000)));
    assert_eq!(session.raw.next().await, Incoming::Eof);
}

#[tokio::test]
async fn messages_that_never_end_take_no_more_memory_than_they_may() {
    let (server, exporter) = server(|_, options| options.receive_bytes_max = 256 << 10).await;
    let large = ws_frame(0x82, &publish(1, "tea", PublisherId([7; 16]), 1, &[&vec![b'x'; 250_000]]));
    let (front, back) = large.split_at(200_000);
    let mut kept = Vec::new();
    for _ in 0..12 {
        let mut session = Session::open(address(&server)).await;
        session.raw.send(front).await;
        kept.push(session);
    }
    // A small one is received all the same.
    Session::open(address(&server)).await.publish("kept", &KEPT).await;
    // In a buffer that has grown by doubling, one of them counts as 128 KiB, and two are as much as may be.
    shows_one(&exporter, "the eleventh that is sent away", |line| {
        let count =
            line.strip_prefix("roomlog_errors_total{code=\"busy\"} ").and_then(|count| count.parse::<u32>().ok());
        count.is_some_and(|count| count >= 11)
    })
    .await;
    let (mut away, mut stored) = (0, 0);
    for session in &mut kept {
        session.raw.send(back).await;
        // The answer, or the goodbye.
        let frames = session.raw.frames().await;
        let frame = roomlog::protocol::Frames::new(&frames, usize::MAX).next().expect("one").expect("a frame");
        match ServerFrame::parse(frame).expect("a canonical frame").expect("a known frame") {
            ServerFrame::Published(_) => stored += 1,
            ServerFrame::Goodbye(goodbye) => {
                assert_eq!((goodbye.code, goodbye.reconnect), (Code::Busy.number(), true));
                assert_eq!(session.raw.end().await.1, Some(4200));
                away += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(stored == 1 && away == 11, "{stored} stored, {away} sent away");
    shows(&exporter, "roomlog_budget_used_bytes{budget=\"receive_buffers\"} 0").await;
    let mut session = Session::open(address(&server)).await;
    session.raw.send(&large).await;
    session.next(|frame| assert!(matches!(frame, ServerFrame::Published(_)), "{frame:?}")).await;
}
