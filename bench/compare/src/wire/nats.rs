//! NATS: core for fan-out; JetStream for what is kept, one stream on files.

use std::io::Write as _;

use super::{Event, Sink, Start, Wire};

pub(crate) struct Nats {
    /// A stream is made, and appends are answered by it, to this inbox.
    inbox: Option<String>,
    ready: bool,
}

impl Nats {
    pub(crate) fn core() -> Self {
        Self { inbox: None, ready: false }
    }

    /// `id` tells inboxes apart.
    pub(crate) fn jetstream(id: u64) -> Self {
        Self { inbox: Some(format!("_INBOX.c{id}")), ready: false }
    }
}

impl Wire for Nats {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"compare\",\"version\":\"1\",\"protocol\":1}\r\n",
        );
        match &self.inbox {
            None => out.extend_from_slice(b"PING\r\n"),
            Some(inbox) => {
                // The same stream each time: whoever is not the first is told that it is there.
                let stream = "{\"name\":\"KEPT\",\"subjects\":[\"room.>\"],\"retention\":\"limits\",\"storage\":\"file\",\
                              \"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,\"max_age\":0,\"num_replicas\":1}";
                write!(out, "SUB {inbox} 1\r\nPUB $JS.API.STREAM.CREATE.KEPT {inbox} {}\r\n{stream}\r\n", stream.len())
                    .expect("memory takes everything");
            }
        }
    }

    fn join(&mut self, room: u32, _start: Start, out: &mut Vec<u8>) {
        write!(out, "SUB room.{room} 1\r\nPING\r\n").expect("memory takes everything");
    }

    fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        write!(out, "PUB room.{room} {}\r\n", payload.len()).expect("memory takes everything");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        let inbox = self.inbox.as_deref().expect("only JetStream keeps something");
        write!(out, "PUB room.{room} {inbox} {}\r\n", payload.len()).expect("memory takes everything");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn read<S: Sink>(&mut self, input: &[u8], out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
        let mut done = 0;
        loop {
            let rest = &input[done..];
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(done) };
            let line = &rest[..end.saturating_sub(1)];
            let mut at = end + 1;
            match line {
                [b'M', b'S', b'G', b' ', ..] => {
                    let digits = line.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
                    let bytes = line[line.len() - digits..].iter().fold(0, |n, d| n * 10 + usize::from(d - b'0'));
                    let Some(body) = rest.get(at..at + bytes + 2) else { return Ok(done) };
                    let body = &body[..bytes];
                    at += bytes + 2;
                    if self.inbox.is_none() {
                        sink.event(Event::Delivered(body));
                    } else if body.windows(7).any(|part| part == b"\"error\"") {
                        return Err(format!("JetStream: {}", String::from_utf8_lossy(body)));
                    } else if self.ready {
                        sink.event(Event::Answered(1));
                    } else {
                        self.ready = true;
                        sink.event(Event::Ready);
                    }
                }
                b"PING" => out.extend_from_slice(b"PONG\r\n"),
                b"PONG" if !self.ready => {
                    self.ready = true;
                    sink.event(Event::Ready);
                }
                b"PONG" => sink.event(Event::Joined),
                [b'I', b'N', b'F', b'O', ..] => {}
                _ => return Err(format!("NATS: {}", String::from_utf8_lossy(line))),
            }
            done += at;
        }
    }
}
