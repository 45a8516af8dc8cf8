//! A scripted peer: speaks the codec over a real socket, and does exactly what a test tells it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::protocol::{
    BatchBuilder, ClientFrame, Delivery, DeliveryHeader, HelloBody, JoinId, JoinResult, Joined, RecordArea, RunHeader,
    ServerFrame, StreamHead, VERSION, Welcome, WelcomeLimits, frame_into, split_frame,
};
use crate::types::{Epoch, Limits, NewRecord, Offset, Position, PublisherId, SessionId, Time};

pub(super) const EPOCH: Epoch = Epoch(77);
/// However slow the machine: longer is a hang.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What a test waits for must come.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

pub(super) enum Peer {
    WebSocket(TcpListener),
    Quic { endpoint: quinn::Endpoint, certificate: String },
}

impl Peer {
    pub(super) async fn web_socket() -> Self {
        Self::WebSocket(TcpListener::bind("127.0.0.1:0").await.expect("a free port"))
    }

    pub(super) fn quic() -> Self {
        let key =
            rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into()),
            )
            .expect("a certificate");
        tls.alpn_protocols = vec![b"roomlog/1".to_vec()];
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("a QUIC configuration");
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).expect("a free port");
        Self::Quic { endpoint, certificate: key.cert.pem() }
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::WebSocket(listener) => format!("ws://{}", listener.local_addr().expect("bound")),
            Self::Quic { endpoint, .. } => format!("quic://{}", endpoint.local_addr().expect("bound")),
        }
    }

    pub(super) async fn accept(&self) -> Conn {
        soon("a connection", self.accept_patiently()).await
    }

    async fn accept_patiently(&self) -> Conn {
        match self {
            Self::WebSocket(listener) => {
                let (stream, _) = listener.accept().await.expect("a connection");
                Conn::upgrade(stream).await
            }
            Self::Quic { endpoint, .. } => {
                let connection = endpoint.accept().await.expect("open").await.expect("a handshake");
                let (send, receive) = connection.accept_bi().await.expect("a stream");
                Conn {
                    input: Vec::new(),
                    pongs: Vec::new(),
                    line: Line::Quic { connection, send, receive, rooms: Vec::new() },
                }
            }
        }
    }

    /// Answers the hello with a welcome that joins every room it asks for.
    pub(super) async fn welcome(&self) -> (Conn, Vec<(JoinId, String, Position, Option<u64>)>) {
        self.welcome_with(WelcomeLimits::from(&Limits::default())).await
    }

    pub(super) async fn welcome_with(
        &self,
        limits: WelcomeLimits,
    ) -> (Conn, Vec<(JoinId, String, Position, Option<u64>)>) {
        let mut conn = self.accept().await;
        let resume = conn.hello().await;
        let resumed = resume.iter().map(|(join, _, position, _)| joined(*join, position.offset)).collect();
        conn.send_welcome(limits, resumed).await;
        (conn, resume)
    }
}

fn joined(join: JoinId, offset: Offset) -> JoinResult<'static> {
    JoinResult::Joined(Joined { request: 0, join, epoch: EPOCH, first: Offset(1), head: offset, start: offset })
}

enum Line {
    WebSocket(TcpStream),
    Quic {
        connection: quinn::Connection,
        send: quinn::SendStream,
        receive: quinn::RecvStream,
        rooms: Vec<(JoinId, quinn::SendStream)>,
    },
}

/// What the other side did at last.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    Frame(Vec<u8>),
    Closed(Option<u64>),
}

pub(super) struct Conn {
    input: Vec<u8>,
    pub(super) pongs: Vec<Vec<u8>>,
    line: Line,
}

impl Conn {
    async fn upgrade(mut stream: TcpStream) -> Self {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.expect("a request"));
        }
        let request = String::from_utf8(request).expect("a request");
        assert!(request.starts_with("GET /v1/ws HTTP/1.1\r\n"), "{request}");
        let header = |name: &str| {
            let of = |line: &str| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            };
            request.lines().find_map(of).unwrap_or_default()
        };
        assert_eq!(header("sec-websocket-protocol"), "roomlog.v1");
        let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
        context.update(header("sec-websocket-key").as_bytes());
        context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let accept = base64::engine::general_purpose::STANDARD.encode(context.finish());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: roomlog.v1\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await.expect("an answer");
        Self { input: Vec::new(), pongs: Vec::new(), line: Line::WebSocket(stream) }
    }

    /// The next frame of the client, without its length.
    pub(super) async fn next(&mut self) -> Vec<u8> {
        match self.said().await {
            Said::Frame(frame) => frame,
            Said::Closed(code) => panic!("the client closed with {code:?} instead of sending a frame"),
        }
    }

    /// The next frame that is no credit.
    pub(super) async fn request(&mut self) -> Vec<u8> {
        loop {
            let frame = self.next().await;
            if !matches!(ClientFrame::parse(&frame), Ok(ClientFrame::Credit(_))) {
                return frame;
            }
        }
    }

    /// How the client closed the connection, whatever it sends before.
    pub(super) async fn closed(&mut self) -> Option<u64> {
        loop {
            if let Said::Closed(code) = self.said().await {
                return code;
            }
        }
    }

    pub(super) async fn said(&mut self) -> Said {
        soon("a frame of the client", self.said_patiently()).await
    }

    async fn said_patiently(&mut self) -> Said {
        loop {
            if let Some((frame, taken)) = split_frame(&self.input, Limits::CEILINGS.frame_bytes).expect("a frame") {
                let frame = frame.to_vec();
                self.input.drain(..taken);
                return Said::Frame(frame);
            }
            match &mut self.line {
                Line::WebSocket(stream) => match read_message(stream).await {
                    Some((2, payload)) => self.input.extend_from_slice(&payload),
                    Some((10, payload)) => self.pongs.push(payload),
                    Some((8, payload)) => {
                        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code).into());
                        return Said::Closed(code);
                    }
                    Some((opcode, _)) => panic!("opcode {opcode} from the client"),
                    None => return Said::Closed(None),
                },
                Line::Quic { receive, connection, .. } => match receive.read_chunk(65_536, true).await {
                    Ok(Some(chunk)) => self.input.extend_from_slice(&chunk.bytes),
                    _ => {
                        return match connection.closed().await {
                            quinn::ConnectionError::ApplicationClosed(close) => {
                                Said::Closed(Some(close.error_code.into_inner()))
                            }
                            _ => Said::Closed(None),
                        };
                    }
                },
            }
        }
    }

    /// Proves that the client sends nothing more just now: its pong comes behind all that was sent before.
    pub(super) async fn has_nothing_more_to_say(&mut self) {
        self.message(true, 9, b"anything more?").await;
        let Line::WebSocket(stream) = &mut self.line else { panic!("only WebSocket has pings") };
        let (opcode, payload) = soon("the pong", read_message(stream)).await.expect("open");
        assert_eq!((opcode, &*payload, &*self.input), (10, &b"anything more?"[..], &[][..]));
    }

    pub(super) async fn hello(&mut self) -> Vec<(JoinId, String, Position, Option<u64>)> {
        let frame = self.next().await;
        let Ok(ClientFrame::Hello(hello)) = ClientFrame::parse(&frame) else { panic!("no hello: {frame:?}") };
        let body = HelloBody::parse(hello.body).expect("a body");
        body.resume
            .iter()
            .map(|entry| (entry.join, entry.room.to_owned(), entry.position, entry.credit_bytes))
            .collect()
    }

    pub(super) async fn send_welcome(&mut self, limits: WelcomeLimits, resumed: Vec<JoinResult<'_>>) {
        let welcome = Welcome {
            version: VERSION,
            session: SessionId(5),
            user: "",
            time: Time(1),
            limits,
            features: Vec::new(),
            ping_interval_ms: 25_000,
            resumed,
        };
        self.send(&ServerFrame::Welcome(welcome)).await;
    }

    /// Expects a join and grants it; returns its id, room and credit.
    pub(super) async fn grant_join(&mut self, start: u64) -> (JoinId, String, Option<u64>) {
        let frame = self.request().await;
        let Ok(ClientFrame::Join(join)) = ClientFrame::parse(&frame) else { panic!("no join: {frame:?}") };
        let start = Offset(start);
        let answer =
            Joined { request: join.request, join: join.join, epoch: EPOCH, first: Offset(1), head: start, start };
        self.send(&ServerFrame::Joined(answer)).await;
        (join.join, join.room.to_owned(), join.credit_bytes)
    }

    /// On the stream of answers, or the only one.
    pub(super) async fn send(&mut self, frame: &ServerFrame<'_>) {
        let bytes = framed(frame);
        match &mut self.line {
            Line::WebSocket(_) => self.message(true, 2, &bytes).await,
            Line::Quic { send, .. } => send.write_all(&bytes).await.expect("sent"),
        }
    }

    /// On the stream of a joined room.
    pub(super) async fn push(&mut self, join: JoinId, room: &str, frame: &ServerFrame<'_>) {
        let bytes = framed(frame);
        match &mut self.line {
            Line::WebSocket(_) => self.message(true, 2, &bytes).await,
            Line::Quic { connection, rooms, .. } => {
                if !rooms.iter().any(|(other, _)| *other == join) {
                    let mut stream = connection.open_uni().await.expect("a stream");
                    let mut head = Vec::new();
                    StreamHead { join, room, epoch: EPOCH }.encode_into(&mut head);
                    stream.write_all(&head).await.expect("sent");
                    rooms.push((join, stream));
                }
                let (_, stream) = rooms.iter_mut().find(|(other, _)| *other == join).expect("just opened");
                stream.write_all(&bytes).await.expect("sent");
            }
        }
    }

    /// A WebSocket frame as it is told, right or wrong.
    pub(super) async fn message(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        let mut bytes = vec![u8::from(fin) << 7 | opcode];
        match payload.len() {
            length @ 0..126 => bytes.push(length as u8),
            length @ 126..65_536 => {
                bytes.push(126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                bytes.push(127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(payload);
        self.raw(&bytes).await;
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        let Line::WebSocket(stream) = &mut self.line else { panic!("raw bytes are for WebSocket") };
        stream.write_all(bytes).await.expect("sent");
    }

    /// Closes with a code of the transport.
    pub(super) async fn close(mut self, code: u16) {
        match &mut self.line {
            Line::WebSocket(_) => {
                self.message(true, 8, &code.to_be_bytes()).await;
                let _ = self.closed().await;
            }
            Line::Quic { connection, .. } => connection.close(u32::from(code).into(), b"closed by the script"),
        }
    }
}

async fn read_message(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let first = stream.read_u8().await.ok()?;
    assert_eq!(first & 0xf0, 0x80, "one whole frame per message");
    let second = stream.read_u8().await.ok()?;
    assert_eq!(second & 0x80, 0x80, "a client masks");
    let length = match second & 0x7f {
        126 => stream.read_u16().await.ok()?.into(),
        127 => stream.read_u64().await.ok()?,
        length => length.into(),
    };
    let mut mask = [0; 4];
    stream.read_exact(&mut mask).await.ok()?;
    let mut payload = vec![0; usize::try_from(length).expect("a length")];
    stream.read_exact(&mut payload).await.ok()?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some((first & 0x0f, payload))
}

pub(super) fn framed(frame: &ServerFrame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame_into(&mut bytes, |out| frame.encode_into(out));
    bytes
}

/// A batch of records `first..first + count`, each with this payload.
pub(super) fn body(first: u64, count: u32, payload: &[u8]) -> Vec<u8> {
    let mut area = Vec::new();
    for _ in 0..count {
        RecordArea::push(&mut area, &NewRecord::new(payload));
    }
    let mut builder = BatchBuilder::new();
    let header = RunHeader {
        offset_delta: 0,
        step: 1,
        time_delta: 0,
        user: "",
        publisher: PublisherId([7; 16]),
        seq: first,
        count,
        bytes: 0,
    };
    builder.push(Offset(first), Time(1_000), count, &area, header);
    builder.finish().1.to_vec()
}

/// A delivery of all of a [`body`].
pub(super) fn delivery(join: JoinId, first: u64, count: u32, prev: u64, body: &[u8]) -> ServerFrame<'_> {
    let to = Offset(first + u64::from(count) - 1);
    let header = DeliveryHeader { join, from: Offset(first), to, prev: Offset(prev) };
    ServerFrame::Delivery(Delivery { header, body })
}

pub(super) fn unreachable_address() -> SocketAddr {
    ([127, 0, 0, 1], 1).into()
}
