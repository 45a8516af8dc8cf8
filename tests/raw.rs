//! A client that sends what a test wants, right or wrong, over a bare socket; and a server to send it to.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use roomlog::broker::{self, Broker};
use roomlog::protocol::{
    ClientFrame, Fault, Frames, Goodbye, Hello, HelloBody, Join, JoinId, Publish, RecordArea, RequestId, ServerFrame,
    StartAt, Want, frame_into,
};
use roomlog::server::{Exporter, Options, Server};
use roomlog::types::{Code, Limits, NewRecord, PublisherId, Start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long anything may take; far longer than it does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test in which a peer has to keep to a short time limit. A slow machine may be the one that does not, so what
/// fails is run again with a longer limit; it fails for good if it does so with all of them.
pub(crate) async fn with_time_enough<F>(test: impl Fn(Duration) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut limit = Duration::from_millis(300);
    while limit < PATIENCE / 6 {
        if tokio::spawn(test(limit)).await.is_ok() {
            return;
        }
        eprintln!("{limit:?} may have been too short for this machine");
        limit *= 3;
    }
    test(limit).await;
}

/// The request for an upgrade that is in order, but for its end.
pub(crate) const UPGRADE: &str = "GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: roomlog.v1\r\n";

/// A server in memory on ports of its own.
pub(crate) async fn server(change: impl FnOnce(&mut Limits, &mut Options)) -> (Server, Exporter) {
    let mut broker_options = broker::Options::in_memory();
    let (exporter, metrics) = Exporter::new();
    broker_options.metrics = metrics;
    let mut options = Options::default();
    let any = |address: Option<SocketAddr>| address.map(|address| SocketAddr::new(address.ip(), 0));
    options.listen = any(options.listen);
    options.quic_listen = any(options.quic_listen);
    options.admin_listen = any(options.admin_listen);
    options.exporter = Some(exporter.clone());
    options.reconnect_spread = Duration::from_millis(100);
    // Sessions of tests answer no pings unless they read.
    (broker_options.limits.handshake_timeout, broker_options.limits.idle_timeout) = (PATIENCE, 10 * PATIENCE);
    change(&mut broker_options.limits, &mut options);
    let broker = Broker::open(broker_options).await.expect("a broker in memory opens");
    (Server::start(broker, options).await.expect("the server starts"), exporter)
}

/// Waits until a line of the metrics is as it must become: what is counted is counted a moment after it is sent.
pub(crate) async fn shows(exporter: &Exporter, line: &str) {
    shows_one(exporter, line, |shown| shown == line).await;
}

/// Waits until the metrics have a line of which `is_it` holds; `what` is said if that does not come.
pub(crate) async fn shows_one(exporter: &Exporter, what: &str, is_it: impl Fn(&str) -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        exporter.upkeep();
        let rendered = exporter.render();
        if rendered.lines().any(&is_it) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} does not come:\n{rendered}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What comes from a server over a WebSocket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Incoming {
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
    /// The connection ended.
    Eof,
}

/// A WebSocket, by hand.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

impl Raw {
    /// A connection that has been upgraded.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let (raw, head) = Self::ask(address, &format!("{UPGRADE}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_ascii_lowercase().contains("sec-websocket-protocol: roomlog.v1"), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "the answer of RFC 6455's example: {head}");
        raw
    }

    /// A connection on which these bytes were sent; and the head of the answer.
    pub(crate) async fn ask(address: SocketAddr, request: &str) -> (Self, String) {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut raw = Self { stream, unread: Vec::new() };
        loop {
            if let Some(end) = raw.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = raw.unread.drain(..end + 4).collect();
                return (raw, String::from_utf8(head).expect("a head is text"));
            }
            if !raw.more().await {
                return (raw, String::new());
            }
        }
    }

    /// Whether more has come before the end.
    async fn more(&mut self) -> bool {
        let mut bytes = vec![0; 64 << 10];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut bytes)).await.expect("something comes in time");
        let count = read.unwrap_or(0);
        self.unread.extend_from_slice(&bytes[..count]);
        count > 0
    }

    /// Sends bytes as they are. A server that has closed meanwhile is no fault.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("it is read in time");
    }

    /// Sends a binary message.
    pub(crate) async fn message(&mut self, payload: &[u8]) {
        self.send(&ws_frame(0x82, payload)).await;
    }

    /// What comes next.
    pub(crate) async fn next(&mut self) -> Incoming {
        loop {
            if let Some((incoming, taken)) = parse(&self.unread) {
                self.unread.drain(..taken);
                return incoming;
            }
            if !self.more().await {
                return Incoming::Eof;
            }
        }
    }

    /// The frames of the next binary message; pings are passed over.
    pub(crate) async fn frames(&mut self) -> Vec<u8> {
        loop {
            match self.next().await {
                Incoming::Binary(frames) => return frames,
                Incoming::Ping(_) => {}
                other => panic!("a message was expected, not {other:?}"),
            }
        }
    }

    /// All up to the end: the goodbye's code and advice, if there was one, and the close code.
    pub(crate) async fn end(&mut self) -> (Option<(u16, bool)>, Option<u16>) {
        let mut goodbye = None;
        loop {
            match self.next().await {
                Incoming::Binary(frames) => {
                    for frame in Frames::new(&frames, usize::MAX) {
                        if let Ok(Some(ServerFrame::Goodbye(Goodbye { code, reconnect, .. }))) =
                            ServerFrame::parse(frame.expect("a frame"))
                        {
                            goodbye = Some((code, reconnect));
                        }
                    }
                }
                Incoming::Close(code) => return (goodbye, code),
                Incoming::Eof => return (goodbye, None),
                Incoming::Ping(_) | Incoming::Pong(_) => {}
            }
        }
    }
}

/// What has come over a WebSocket and is not whole yet.
pub(crate) struct Unread {
    bytes: Vec<u8>,
    upgraded: bool,
}

impl Unread {
    /// Nothing, on a connection whose upgrade is still to be answered, or has been.
    pub(crate) fn new(upgraded: bool) -> Self {
        Self { bytes: Vec::new(), upgraded }
    }

    /// Adds what has come, which is not the end, and gives the frames of all messages that are whole now to `take`.
    pub(crate) fn add(&mut self, came: &[u8], mut take: impl FnMut(ServerFrame<'_>)) {
        assert!(!came.is_empty(), "the session goes on");
        self.bytes.extend_from_slice(came);
        if !self.upgraded
            && let Some(end) = self.bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n")
        {
            self.bytes.drain(..end + 4);
            self.upgraded = true;
        }
        while self.upgraded
            && let Some((incoming, taken)) = parse(&self.bytes)
        {
            self.bytes.drain(..taken);
            let Incoming::Binary(frames) = incoming else { continue };
            for frame in Frames::new(&frames, usize::MAX) {
                take(ServerFrame::parse(frame.expect("a frame")).expect("canonical").expect("a known frame"));
            }
        }
    }
}

/// A masked frame of a client.
pub(crate) fn ws_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = ws_head(first, payload.len() as u64, true);
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The head of a frame up to its mask.
pub(crate) fn ws_head(first: u8, bytes: u64, masked: bool) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut head = vec![first];
    match bytes {
        0..=125 => head.push(mask | bytes as u8),
        126..=0xffff => {
            head.push(mask | 126);
            head.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
        _ => {
            head.push(mask | 127);
            head.extend_from_slice(&bytes.to_be_bytes());
        }
    }
    head
}

/// The first message or control frame of a server in these bytes, and how many it takes.
fn parse(bytes: &[u8]) -> Option<(Incoming, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (length, head) = match second {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().expect("2 bytes"))), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().expect("8 bytes")), 10),
        length => (u64::from(length), 2),
    };
    let end = head + usize::try_from(length).expect("a length");
    let payload = bytes.get(head..end)?.to_vec();
    let incoming = match first {
        0x82 => Incoming::Binary(payload),
        0x88 => Incoming::Close(payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]))),
        0x89 => Incoming::Ping(payload),
        0x8a => Incoming::Pong(payload),
        other => panic!("a server does not send {other:#x}"),
    };
    Some((incoming, end))
}

/// The bytes of a frame.
pub(crate) fn frame(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame_into(&mut bytes, |out| frame.encode_into(out));
    bytes
}

/// The bytes of a plain hello.
pub(crate) fn hello() -> Vec<u8> {
    hello_with(&HelloBody::default())
}

/// The bytes of a hello.
pub(crate) fn hello_with(body: &HelloBody<'_>) -> Vec<u8> {
    frame(&ClientFrame::Hello(Hello::new(&body.to_bytes())))
}

/// The bytes of a publish of these payloads.
pub(crate) fn publish(request: RequestId, room: &str, publisher: PublisherId, seq: u64, payloads: &[&[u8]]) -> Vec<u8> {
    let mut area = Vec::new();
    for payload in payloads {
        RecordArea::push(&mut area, &NewRecord::new(payload));
    }
    let (count, records) = (payloads.len() as u32, RecordArea(&area));
    frame(&ClientFrame::Publish(Publish { request, room, publisher, seq, expect: None, count, records }))
}

/// The bytes of a join.
pub(crate) fn join(request: RequestId, join: u32, room: &str, start: Start) -> Vec<u8> {
    let (join, start) = (JoinId(join), StartAt::from(start));
    frame(&ClientFrame::Join(Join { request, join, room, start, credit_bytes: None, want: Want::RECORDS }))
}

/// A session over a [`Raw`] socket.
pub(crate) struct Session {
    pub(crate) raw: Raw,
    frames: VecDeque<Vec<u8>>,
}

impl Session {
    /// A session whose welcome has come.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let mut session = Self { raw: Raw::open(address).await, frames: VecDeque::new() };
        session.send(&hello()).await;
        session.next(|frame| assert!(matches!(frame, ServerFrame::Welcome(_)), "{frame:?}")).await;
        session
    }

    pub(crate) async fn send(&mut self, frames: &[u8]) {
        self.raw.message(frames).await;
    }

    /// The next frame.
    pub(crate) async fn next<T>(&mut self, look: impl FnOnce(&ServerFrame<'_>) -> T) -> T {
        while self.frames.is_empty() {
            let message = self.raw.frames().await;
            self.frames.extend(Frames::new(&message, usize::MAX).map(|frame| frame.expect("a frame").to_vec()));
        }
        let frame = self.frames.pop_front().expect("there is one");
        look(&ServerFrame::parse(&frame).expect("a canonical frame").expect("a known frame"))
    }

    /// The code of the next frame, which is an error.
    pub(crate) async fn refusal(&mut self) -> (RequestId, Code) {
        self.next(|frame| match frame {
            ServerFrame::Error(Fault { request, code, .. }) => {
                (*request, Code::from_number(*code).expect("a known code"))
            }
            other => panic!("a refusal was expected, not {other:?}"),
        })
        .await
    }

    /// Publishes payloads one by one, and waits until they are stored.
    pub(crate) async fn publish(&mut self, room: &str, payloads: &[&[u8]]) {
        let publisher = PublisherId::random().expect("randomness");
        for (at, payload) in payloads.iter().enumerate() {
            let request = at as u32 + 1;
            self.send(&publish(request, room, publisher, u64::from(request), &[payload])).await;
        }
        for _ in payloads {
            self.next(|frame| assert!(matches!(frame, ServerFrame::Published(_)), "{frame:?}")).await;
        }
    }

    /// Joins a room from its beginning, and reads until it is live.
    pub(crate) async fn replay(&mut self, join_id: u32, room: &str) -> Vec<Vec<u8>> {
        self.send(&join(900, join_id, room, Start::Earliest)).await;
        self.next(|frame| assert!(matches!(frame, ServerFrame::Joined(_)), "{frame:?}")).await;
        let mut payloads = Vec::new();
        loop {
            let live = self
                .next(|frame| match frame {
                    ServerFrame::Delivery(delivery) => {
                        payloads.extend(payloads_of(delivery));
                        false
                    }
                    ServerFrame::Live(_) => true,
                    other => panic!("a delivery was expected, not {other:?}"),
                })
                .await;
            if live {
                return payloads;
            }
        }
    }
}

/// The payloads that a delivery means.
pub(crate) fn payloads_of(delivery: &roomlog::protocol::Delivery<'_>) -> Vec<Vec<u8>> {
    let batch = roomlog::protocol::Batch::parse(delivery.body).expect("a batch");
    let meant = delivery.header.from..=delivery.header.to;
    let records = batch.records(delivery.header.prev).map(|record| record.expect("a record"));
    records.filter(|record| meant.contains(&record.offset)).map(|record| record.content.payload.to_vec()).collect()
}
