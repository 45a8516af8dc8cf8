//! WebSocket from the client's side: our own handshake checks and fragment assembly around fastwebsockets' reader.
//!
//! The reader is never cancelled within a frame: it keeps its place in the future. It answers nothing by itself,
//! so that only the writer writes.

use std::future::Future;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocketError, WebSocketRead, after_handshake_split};
use http_body_util::Empty;
use hyper::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{CloseCode, End, FRAME_BYTES_MAX, Inbox};
use crate::client::address::{Address, Scheme};
use crate::client::{Error, Options, tls};
use crate::protocol::SUB_PROTOCOL;

/// Of one message, fragments together: some frames of the greatest length.
const MESSAGE_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Of one message; more are a game with our patience.
const FRAGMENTS_MAX: usize = 1024;
const CONTROL_BYTES_MAX: usize = 125;

pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// The address and whom to trust there.
pub(crate) struct Connector {
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    pub(super) fn new(address: Address, options: &Options) -> Result<Self, Error> {
        let tls = if address.scheme == Scheme::Wss {
            let name = ServerName::try_from(address.host.clone())
                .map_err(|error| Error::Url { url: address.to_string(), why: error.to_string() })?;
            Some((TlsConnector::from(Arc::new(tls::config(options, b"http/1.1")?)), name))
        } else {
            None
        };
        Ok(Self { address, tls })
    }

    pub(super) async fn connect(&self) -> Result<(Reader, Writer), Error> {
        let unreachable =
            |error: std::io::Error| Error::Unreachable { address: self.address.to_string(), why: error.to_string() };
        let tcp = TcpStream::connect((&*self.address.host, self.address.port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let Some((connector, name)) = &self.tls else {
            let (tcp, left_over) = self.upgrade(tcp).await?;
            let (read, write) = tcp.into_split();
            return Ok(halves(left_over, Box::new(read), Box::new(write)));
        };
        let stream = connector.connect(name.clone(), tcp).await.map_err(|error| {
            match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(why)) => {
                    Error::Certificate { address: self.address.to_string(), why: why.to_string() }
                }
                _ => unreachable(error),
            }
        })?;
        let (stream, left_over): (TlsStream<TcpStream>, Bytes) = self.upgrade(stream).await?;
        let (read, write) = tokio::io::split(stream);
        Ok(halves(left_over, Box::new(read), Box::new(write)))
    }

    /// Asks for the upgrade; returns the stream and what came behind the answer.
    async fn upgrade<S>(&self, stream: S) -> Result<(S, Bytes), Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let fault = |why: String, retry| Error::Handshake { address: self.address.to_string(), why, retry };
        let broken = |error: hyper::Error| fault(error.to_string(), true);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = tokio::spawn(connection.with_upgrades());
        // Without this the connection's task would outlive an attempt that is given up.
        let _guard = AbortOnDrop(connection.abort_handle());

        let key = fastwebsockets::handshake::generate_key();
        let request = Request::get(&self.address.path)
            .header(HOST, self.address.authority())
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "Upgrade")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_PROTOCOL, SUB_PROTOCOL)
            .body(Empty::<Bytes>::new())
            .map_err(|error| fault(error.to_string(), false))?;
        let mut response = sender.send_request(request).await.map_err(broken)?;
        check_response(&response, &key).map_err(|(why, retry)| fault(why, retry))?;
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(broken)?;
        let parts = upgraded
            .downcast::<TokioIo<S>>()
            .map_err(|_| fault("the connection could not be taken over".to_owned(), false))?;
        Ok((parts.io.into_inner(), parts.read_buf))
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What RFC 6455 §4.1 asks of the answer, and our sub-protocol; on a fault, why and whether to try again.
fn check_response<B>(response: &Response<B>, key: &str) -> Result<(), (String, bool)> {
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let retry = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY);
        return Err((format!("HTTP status {status}"), retry));
    }
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let has = |name, token: &str| header(name).split(',').any(|value: &str| value.trim().eq_ignore_ascii_case(token));
    if !has(UPGRADE, "websocket") || !has(CONNECTION, "upgrade") {
        return Err(("the upgrade was not confirmed".to_owned(), false));
    }
    if header(SEC_WEBSOCKET_ACCEPT) != accept(key) {
        return Err(("the WebSocket key was not confirmed".to_owned(), false));
    }
    if header(SEC_WEBSOCKET_PROTOCOL) != SUB_PROTOCOL {
        return Err((format!("it does not speak the sub-protocol {SUB_PROTOCOL}"), false));
    }
    Ok(())
}

fn accept(key: &str) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(context.finish())
}

pub(super) fn halves(left_over: Bytes, read: ReadHalf, write: WriteHalf) -> (Reader, Writer) {
    let read: ReadHalf =
        if left_over.is_empty() { read } else { Box::new(std::io::Cursor::new(left_over).chain(read)) };
    let (mut read, _) = after_handshake_split(read, tokio::io::sink(), Role::Client);
    read.set_auto_pong(false);
    read.set_auto_close(false);
    // The library's limit is of one frame, and exclusive.
    read.set_max_message_size(MESSAGE_BYTES_MAX + 1);
    (Reader { read }, Writer { write, out: Vec::new() })
}

pub(crate) struct Reader {
    read: WebSocketRead<ReadHalf>,
}

impl Reader {
    pub(super) async fn run(mut self, inbox: &dyn Inbox) -> End {
        let mut message = Vec::new();
        let mut fragments = 0;
        loop {
            let mut frame = match self.read.read_frame(&mut refuse_to_send).await {
                Ok(frame) => frame,
                Err(error) => return explain(&error),
            };
            inbox.alive();
            let mut head = [0; 16];
            frame.fmt_head(&mut head);
            if head[1] & 0x80 != 0 {
                return End::protocol("a masked WebSocket frame");
            }
            let whole: &[u8] = match frame.opcode {
                OpCode::Ping | OpCode::Pong | OpCode::Close if frame.payload.len() > CONTROL_BYTES_MAX => {
                    return End::protocol("a WebSocket control frame of more than 125 bytes");
                }
                OpCode::Ping => {
                    inbox.ping(&frame.payload);
                    continue;
                }
                OpCode::Pong => continue,
                OpCode::Close => return closed(&frame.payload),
                OpCode::Text => {
                    return End { error: Error::protocol("a text message"), close: CloseCode::NotBinary };
                }
                OpCode::Binary if fragments > 0 => return End::protocol("a message within a message"),
                OpCode::Continuation if fragments == 0 => return End::protocol("a continuation of nothing"),
                OpCode::Binary if frame.fin => &frame.payload,
                OpCode::Binary | OpCode::Continuation => {
                    fragments += 1;
                    if fragments > FRAGMENTS_MAX || message.len() + frame.payload.len() > MESSAGE_BYTES_MAX {
                        return too_large();
                    }
                    message.extend_from_slice(&frame.payload);
                    if !frame.fin {
                        continue;
                    }
                    &message
                }
            };
            if let Err(error) = inbox.frames(whole, None) {
                return End::of(error);
            }
            if fragments > 0 {
                fragments = 0;
                // What a rare large message took is not kept.
                message = Vec::new();
            }
        }
    }
}

/// Nothing is ever sent by the reader: its automatic answers are off.
fn refuse_to_send(_frame: Frame<'_>) -> impl Future<Output = Result<(), WebSocketError>> + use<> {
    std::future::ready(Ok(()))
}

fn too_large() -> End {
    End { error: Error::protocol("a WebSocket message that is too large"), close: CloseCode::TooLarge }
}

fn explain(error: &WebSocketError) -> End {
    match error {
        WebSocketError::UnexpectedEOF => End::lost("the server hung up"),
        WebSocketError::IoError(error) => End::lost(error),
        WebSocketError::FrameTooLarge => too_large(),
        WebSocketError::InvalidUTF8 => End { error: Error::protocol("a text message"), close: CloseCode::NotBinary },
        error => End::protocol(error),
    }
}

fn closed(payload: &[u8]) -> End {
    let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
    let reason = if reason.is_empty() { "closed by the server".to_owned() } else { reason.into_owned() };
    let give_up = matches!(code, Some(4500..=4999));
    let error = Error::Disconnected { code: code.map(u64::from), give_up, reason };
    End { error, close: CloseCode::Normal }
}

pub(crate) struct Writer {
    write: WriteHalf,
    out: Vec<u8>,
}

impl Writer {
    pub(super) async fn send(&mut self, frames: &mut [u8]) -> Result<(), End> {
        self.write(OpCode::Binary, frames).await
    }

    pub(super) async fn pong(&mut self, payload: &mut [u8]) -> Result<(), End> {
        self.write(OpCode::Pong, payload).await
    }

    pub(super) async fn close(mut self, code: CloseCode, reason: &str) -> Result<(), End> {
        let code: u16 = match code {
            CloseCode::Normal => 1000,
            CloseCode::Protocol => 1002,
            CloseCode::NotBinary => 1003,
            CloseCode::TooLarge => 1009,
        };
        let mut payload = code.to_be_bytes().to_vec();
        let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        payload.extend_from_slice(&reason.as_bytes()[..end]);
        self.write(OpCode::Close, &mut payload).await?;
        self.write.shutdown().await.map_err(End::lost)
    }

    /// One WebSocket frame, masked as a client must, in one write.
    async fn write(&mut self, opcode: OpCode, payload: &mut [u8]) -> Result<(), End> {
        let mut frame = Frame::new(true, opcode, None, Payload::BorrowedMut(payload));
        frame.mask();
        let mut head = [0; 16];
        let size = frame.fmt_head(&mut head);
        self.out.clear();
        self.out.extend_from_slice(&head[..size]);
        self.out.extend_from_slice(&frame.payload);
        self.write.write_all(&self.out).await.map_err(End::lost)?;
        // TLS keeps what did not fit into the socket until it is flushed.
        self.write.flush().await.map_err(End::lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_rfc_6455_is_confirmed_as_it_says() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn response(status: u16, headers: &[(&str, &str)]) -> Response<()> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).expect("a response")
    }

    #[test]
    fn an_upgrade_without_our_sub_protocol_or_with_a_wrong_key_is_refused() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let good = [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ("sec-websocket-protocol", "roomlog.v1"),
        ];
        assert_eq!(check_response(&response(101, &good), key), Ok(()));
        for missing in 0..good.len() {
            let mut headers = good.to_vec();
            headers.remove(missing);
            let fault = check_response(&response(101, &headers), key).expect_err("refused");
            assert!(!fault.1, "{fault:?} is not to be repeated");
        }
        assert!(!check_response(&response(404, &[]), key).expect_err("refused").1);
        assert!(check_response(&response(503, &[]), key).expect_err("refused").1);
    }
}
