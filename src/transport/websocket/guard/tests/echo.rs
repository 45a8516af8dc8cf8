//! An echo behind the guard, for other people's suites: `tests/campaign/autobahn.sh` starts it, on the address in
//! ROOMLOG_TEST_ECHO. Without it the echo is tried once.
//!
//! Roomlog refuses text, and a suite speaks little else. So text goes through the guard as if it were binary, and
//! whether it is UTF-8 is judged here, when the message is whole.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::{End, Event, Guard, Violation, frame_end};

/// The largest message of the suite.
const BYTES_MAX: usize = 16 << 20;

#[tokio::test]
async fn text_and_binary_messages_come_back_as_what_they_were_and_text_must_be_utf_8() {
    let address = std::env::var("ROOMLOG_TEST_ECHO");
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0")).await.expect("it is free");
    let own = listener.local_addr().expect("it is bound");
    let serving = async {
        loop {
            let (stream, _) = listener.accept().await.expect("there are descriptors");
            tokio::spawn(serve(stream));
        }
    };
    if address.is_ok() {
        // Until it is killed.
        return serving.await;
    }
    tokio::select! {
        () = serving => {}
        () = talk(own) => {}
    }
}

/// A fragmented text, a binary message, and a text that is none.
async fn talk(address: std::net::SocketAddr) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let mut out = b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".to_vec();
    for (first, payload) in [(0x01, &b"he"[..]), (0x80, b"llo"), (0x82, b"\xff"), (0x81, b"\xff")] {
        out.extend(super::masked(first, payload));
    }
    stream.write_all(&out).await.expect("sent");
    let mut back = Vec::new();
    let whole = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut back));
    whole.await.expect("in time").expect("read to its end");
    let head = back.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("an answer") + 4;
    assert!(String::from_utf8_lossy(&back[..head]).contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "the key of RFC 6455");
    let mut expected = Vec::new();
    frame(&mut expected, 0x81, b"hello");
    frame(&mut expected, 0x82, b"\xff");
    frame(&mut expected, 0x88, b"\x03\xefnot UTF-8");
    assert_eq!(back[head..], expected);
}

async fn serve(mut stream: TcpStream) {
    let mut head = Vec::new();
    let end = loop {
        if let Some(at) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let mut bytes = head.split_off(end);
    let mut out = upgrade(&String::from_utf8_lossy(&head)).into_bytes();
    let (mut guard, mut disguise) = (Guard::new(BYTES_MAX), Disguise::default());
    loop {
        disguise.put_on(&mut bytes);
        let read = guard.read(&bytes, |event| {
            match event {
                Event::Message(message) if disguise.texts.pop_front() == Some(true) => {
                    std::str::from_utf8(message).map_err(|_| Violation { code: 1007, reason: "not UTF-8" })?;
                    frame(&mut out, 0x81, message);
                }
                Event::Message(message) => frame(&mut out, 0x82, message),
                Event::Ping(payload) => frame(&mut out, 0x8a, payload),
                Event::Pong => {}
                Event::Close => return Err(Violation { code: 1000, reason: "" }),
            }
            Ok(())
        });
        if let Err(Violation { code, reason }) = read {
            frame(&mut out, 0x88, &[&code.to_be_bytes(), reason.as_bytes()].concat());
        }
        if stream.write_all(&out).await.is_err() {
            return;
        }
        if read.is_err() {
            // Unread bytes at the end would make the system take back what was written.
            let _ = stream.shutdown().await;
            let rest = async { while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {} };
            let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
            return;
        }
        bytes.clear();
        out.clear();
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// The answer to a request for an upgrade.
fn upgrade(head: &str) -> String {
    let values = head.lines().filter_map(|line| line.split_once(':'));
    let mut key =
        values.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, value)| value.trim());
    let key = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.next_back().unwrap_or_default());
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(digest)
    )
}

/// Adds a frame of a server.
fn frame(out: &mut Vec<u8>, first: u8, payload: &[u8]) {
    out.push(first);
    match payload.len() {
        length @ ..=125 => out.push(length as u8),
        length @ ..=0xffff => {
            out.push(126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Makes text frames binary ones, wherever the bytes are cut, and remembers which they were.
#[derive(Default)]
struct Disguise {
    /// The front of the head of the frame that has begun.
    head: Vec<u8>,
    /// What is still to come of the frame whose head was last.
    left: usize,
    /// Of the messages begun and not taken yet: whether they are text.
    texts: VecDeque<bool>,
    /// The guard is about to end it.
    broken: bool,
}

impl Disguise {
    fn put_on(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() && !self.broken {
            if self.left > 0 {
                let count = self.left.min(bytes.len() - at);
                (self.left, at) = (self.left - count, at + count);
                continue;
            }
            if self.head.is_empty() && matches!(bytes[at] & 0x0f, 1 | 2) {
                self.texts.push_back(bytes[at] & 0x0f == 1);
                bytes[at] = bytes[at] & 0xf0 | 2;
            }
            self.head.push(bytes[at]);
            at += 1;
            match frame_end(&self.head, BYTES_MAX) {
                Ok(End::Within(_)) => {}
                Ok(End::At(end)) => {
                    self.left = end - self.head.len();
                    self.head.clear();
                }
                Err(_) => self.broken = true,
            }
        }
    }
}
