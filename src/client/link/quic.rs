//! QUIC from the client's side: requests and answers on one stream, each joined room on a stream of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, TransportConfig, VarInt,
};
use tokio::task::JoinSet;

use super::{CloseCode, End, FRAME_BYTES_MAX, Inbox, RoomStream};
use crate::client::address::Address;
use crate::client::{Error, Options, tls};
use crate::protocol::{ALPN, FrameError, StreamHead, split_frame};
use crate::types::Limits;

/// What one room may have under way before we have read it; the application's pace is a matter of credit.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const SEND_WINDOW_BYTES: u64 = 1 << 20;
/// A server that was killed says nothing, and one that was started in its place may be a stranger to us: nobody but
/// the clock tells that the connection is gone. So it is asked often, three times before it is given up.
const IDLE_MAX: Duration = Duration::from_secs(12);
const KEEP_ALIVES: u32 = 3;
/// How much of a stream is taken in one step.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// The address and whom to trust there.
pub(crate) struct Connector {
    address: Address,
    config: ClientConfig,
}

impl Connector {
    pub(super) fn new(address: Address, options: &Options) -> Result<Self, Error> {
        let tls = QuicClientConfig::try_from(tls::config(options, ALPN)?)
            .map_err(|error| Error::Roots { why: error.to_string() })?;
        let mut transport = TransportConfig::default();
        let rooms = u32::try_from(Limits::CEILINGS.rooms_per_session).expect("a ceiling below 4 billion");
        let idle = (options.silence_timeout / 2).min(IDLE_MAX);
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(rooms))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
            .send_window(SEND_WINDOW_BYTES)
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(idle.try_into().expect("some seconds are a QUIC integer of milliseconds")))
            .keep_alive_interval(Some(idle / (KEEP_ALIVES + 1)));
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport));
        Ok(Self { address, config })
    }

    pub(super) async fn connect(&self) -> Result<(Reader, Writer), Error> {
        let unreachable = |why: String| Error::Unreachable { address: self.address.to_string(), why };
        let addresses = tokio::net::lookup_host((&*self.address.host, self.address.port))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let mut fault = unreachable("the name has no address".to_owned());
        for address in addresses {
            match self.connect_to(address).await {
                Ok(halves) => return Ok(halves),
                // A certificate is the same at every address of a name.
                Err(error @ Error::Certificate { .. }) => return Err(error),
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<(Reader, Writer), Error> {
        let unreachable = |why: String| Error::Unreachable { address: self.address.to_string(), why };
        let local: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let endpoint = Endpoint::client(local).map_err(|error| unreachable(error.to_string()))?;
        let connecting = endpoint
            .connect_with(self.config.clone(), address, &self.address.host)
            .map_err(|error| unreachable(error.to_string()))?;
        let connection = connecting.await.map_err(|error| match &error {
            ConnectionError::TransportError(fault) if is_certificate_alert(fault.code.into()) => {
                Error::Certificate { address: self.address.to_string(), why: fault.reason.clone() }
            }
            ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL => {
                let why = "it does not speak roomlog/1".to_owned();
                Error::Handshake { address: self.address.to_string(), why, retry: false }
            }
            ConnectionError::ApplicationClosed(_) => ended(&error).error,
            _ => unreachable(error.to_string()),
        })?;
        let (send, receive) = connection.open_bi().await.map_err(|error| ended(&error).error)?;
        let reader = Reader { connection: connection.clone(), receive };
        Ok((reader, Writer { endpoint, connection, send }))
    }
}

/// A TLS alert in a QUIC close code is 0x100 and the alert (RFC 9001 §4.8).
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Alerts 42 to 46, 48 and 51 speak of certificates.
fn is_certificate_alert(code: u64) -> bool {
    matches!(code, 0x12a..=0x12e | 0x130 | 0x133)
}

/// Why a connection is over, from what quinn says of it.
fn ended(error: &ConnectionError) -> End {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = close.error_code.into_inner();
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            let give_up = (500..=999).contains(&code);
            End { error: Error::Disconnected { code: Some(code), give_up, reason }, close: CloseCode::Normal }
        }
        error => End::lost(error),
    }
}

pub(crate) struct Reader {
    connection: Connection,
    receive: RecvStream,
}

impl Reader {
    pub(super) async fn run(self, inbox: Arc<dyn Inbox>) -> End {
        let Self { connection, receive } = self;
        // Dropping the set, at whatever end, ends the tasks.
        let mut streams = JoinSet::new();
        let requests = tokio::spawn(drain(receive, None, Arc::clone(&inbox)));
        let mut requests = EndOnDrop(requests);
        loop {
            tokio::select! {
                end = &mut requests.0 => {
                    let end = end.unwrap_or_else(|_| End::lost("the reading task ended"));
                    return match connection.close_reason() {
                        Some(error) => ended(&error),
                        None => end,
                    };
                }
                stream = connection.accept_uni() => match stream {
                    Ok(stream) => {
                        streams.spawn(drain_room(stream, Arc::clone(&inbox)));
                    }
                    Err(error) => return ended(&error),
                },
                Some(end) = streams.join_next() => match end {
                    Ok(Some(end)) => return match connection.close_reason() {
                        Some(error) => ended(&error),
                        None => end,
                    },
                    Ok(None) => {}
                    Err(_) => return End::lost("the reading task of a room ended"),
                },
            }
        }
    }
}

struct EndOnDrop(tokio::task::JoinHandle<End>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads a room's stream from its head on. `None` when it ends as it should, with the join.
async fn drain_room(mut stream: RecvStream, inbox: Arc<dyn Inbox>) -> Option<End> {
    let mut buffer = BytesMut::new();
    let (head, taken) = loop {
        match StreamHead::parse(&buffer) {
            Ok(Some((head, taken))) => {
                let head = RoomStream { join: head.join, room: head.room.to_owned(), epoch: head.epoch };
                break (head, taken);
            }
            Ok(None) => {}
            Err(error) => return Some(End::protocol(error)),
        }
        match stream.read_chunk(CHUNK_BYTES_MAX, true).await {
            Ok(Some(chunk)) => buffer.extend_from_slice(&chunk.bytes),
            Ok(None) | Err(ReadError::Reset(_)) => return None,
            Err(error) => return Some(End::lost(error)),
        }
    };
    let _ = buffer.split_to(taken);
    drain_from(&mut stream, buffer, Some(&head), &*inbox).await
}

async fn drain(mut stream: RecvStream, head: Option<RoomStream>, inbox: Arc<dyn Inbox>) -> End {
    drain_from(&mut stream, BytesMut::new(), head.as_ref(), &*inbox)
        .await
        .unwrap_or_else(|| End::lost("the server ended the stream of answers"))
}

/// Hands whole frames to the inbox; `None` when the stream ends between two frames or is reset.
async fn drain_from(
    stream: &mut RecvStream,
    mut buffer: BytesMut,
    head: Option<&RoomStream>,
    inbox: &dyn Inbox,
) -> Option<End> {
    loop {
        match whole_frames(&buffer) {
            Ok(0) => {}
            Ok(whole) => {
                if let Err(error) = inbox.frames(&buffer[..whole], head) {
                    return Some(End::of(error));
                }
                let _ = buffer.split_to(whole);
                if buffer.is_empty() && buffer.capacity() > 2 * CHUNK_BYTES_MAX {
                    buffer = BytesMut::new();
                }
            }
            Err(error) => {
                let close = if matches!(error, FrameError::TooLarge { .. }) {
                    CloseCode::TooLarge
                } else {
                    CloseCode::Protocol
                };
                return Some(End { error: Error::protocol(error), close });
            }
        }
        match stream.read_chunk(CHUNK_BYTES_MAX, true).await {
            Ok(Some(chunk)) => {
                inbox.alive();
                buffer.extend_from_slice(&chunk.bytes);
            }
            Ok(None) if buffer.is_empty() => return None,
            Ok(None) => return Some(End::protocol("a stream that ends within a frame")),
            Err(ReadError::Reset(_)) => return None,
            Err(ReadError::ConnectionLost(error)) => return Some(ended(&error)),
            Err(error) => return Some(End::lost(error)),
        }
    }
}

/// How many bytes at the front are whole frames.
fn whole_frames(bytes: &[u8]) -> Result<usize, FrameError> {
    let mut whole = 0;
    while let Some((_, taken)) = split_frame(&bytes[whole..], FRAME_BYTES_MAX)? {
        whole += taken;
    }
    Ok(whole)
}

pub(crate) struct Writer {
    endpoint: Endpoint,
    connection: Connection,
    send: SendStream,
}

impl Writer {
    pub(super) async fn send(&mut self, frames: &mut [u8]) -> Result<(), End> {
        self.send.write_all(frames).await.map_err(|error| match error {
            quinn::WriteError::ConnectionLost(error) => ended(&error),
            error => End::lost(error),
        })
    }

    pub(super) async fn close(self, code: CloseCode, reason: &str, patience: Duration) {
        let code: u32 = match code {
            CloseCode::Normal => 0,
            CloseCode::Protocol | CloseCode::NotBinary => 1,
            CloseCode::TooLarge => 2,
        };
        self.connection.close(VarInt::from_u32(code), reason.as_bytes());
        let _ = tokio::time::timeout(patience, self.endpoint.wait_idle()).await;
    }
}
