//! Socket.IO 4 over WebSocket, for fan-out; it keeps nothing.

use super::{Event, Sink, Start, Wire, websocket};

pub(crate) struct SocketIo {
    upgraded: bool,
}

impl SocketIo {
    pub(crate) fn new() -> Self {
        Self { upgraded: false }
    }
}

impl Wire for SocketIo {
    fn open(&mut self, out: &mut Vec<u8>) {
        websocket::upgrade("/socket.io/?EIO=4&transport=websocket", None, out);
    }

    fn join(&mut self, room: u32, _start: Start, out: &mut Vec<u8>) {
        websocket::message(1, format!("421[\"join\",\"room{room}\"]").as_bytes(), out);
    }

    fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        let mut message = format!("42[\"publish\",\"room{room}\",\"").into_bytes();
        message.extend_from_slice(payload);
        message.extend_from_slice(b"\"]");
        websocket::message(1, &message, out);
    }

    fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        self.publish(room, payload, out);
    }

    fn read<S: Sink>(&mut self, input: &[u8], out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
        let mut done = 0;
        if !self.upgraded {
            let Some(bytes) = websocket::upgraded(input)? else { return Ok(0) };
            (done, self.upgraded) = (bytes, true);
        }
        loop {
            let Some((opcode, bytes, head)) = websocket::head(&input[done..])? else { return Ok(done) };
            let Some(body) = input.get(done + head..done + head + bytes) else { return Ok(done) };
            const BEFORE: &[u8] = b"42[\"message\",\"";
            match (opcode, body) {
                (1, [b'4', b'2', ..]) if body.starts_with(BEFORE) && body.ends_with(b"\"]") => {
                    sink.event(Event::Delivered(&body[BEFORE.len()..bytes - 2]));
                }
                (1, [b'4', b'3', ..]) => sink.event(Event::Joined),
                (1, [b'4', b'0', ..]) => sink.event(Event::Ready),
                // The engine is open: connect to the main namespace.
                (1, [b'0', ..]) => websocket::message(1, b"40", out),
                (1, [b'2']) => websocket::message(1, b"3", out),
                (9, _) => websocket::message(10, body, out),
                _ => return Err(format!("Socket.IO: {}", String::from_utf8_lossy(body))),
            }
            done += head + bytes;
        }
    }
}
