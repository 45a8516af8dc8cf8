//! Redis: RESP 2. Publish and subscribe for fan-out, a stream for what is kept.

use std::io::Write as _;

use super::{Event, Sink, Start, Wire};

/// Entries that one XRANGE asks for.
const PAGE: u32 = 1000;

pub(crate) struct Redis {
    ready: bool,
    replay: Option<Replay>,
}

/// A stream is read page by page: Redis sends no more than what it is asked for.
struct Replay {
    room: u32,
    /// Whether another page follows this one.
    more: bool,
    entries_left: usize,
}

impl Redis {
    pub(crate) fn new() -> Self {
        Self { ready: false, replay: None }
    }
}

/// A value at the front of the input.
enum Value<'a> {
    Bulk(&'a [u8]),
    Integer,
    Status,
    Array(usize),
    Error(&'a [u8]),
}

impl Wire for Redis {
    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
    }

    fn join(&mut self, room: u32, start: Start, out: &mut Vec<u8>) {
        match start {
            Start::New => {
                out.extend_from_slice(b"*2\r\n$9\r\nSUBSCRIBE\r\n");
                name(room, out);
            }
            Start::Earliest => {
                self.replay = Some(Replay { room, more: true, entries_left: 0 });
                page(room, b"-", out);
            }
            Start::Last(count) => {
                self.replay = Some(Replay { room, more: false, entries_left: 0 });
                out.extend_from_slice(b"*6\r\n$9\r\nXREVRANGE\r\n");
                name(room, out);
                out.extend_from_slice(b"$1\r\n+\r\n$1\r\n-\r\n$5\r\nCOUNT\r\n");
                bulk(count.to_string().as_bytes(), out);
            }
        }
    }

    fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"*3\r\n$7\r\nPUBLISH\r\n");
        name(room, out);
        bulk(payload, out);
    }

    fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"*5\r\n$4\r\nXADD\r\n");
        name(room, out);
        out.extend_from_slice(b"$1\r\n*\r\n$1\r\np\r\n");
        bulk(payload, out);
    }

    fn read<S: Sink>(&mut self, input: &[u8], out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
        if let Some(replay) = &mut self.replay {
            return replay.read(input, out, sink);
        }
        let mut done = 0;
        while let Some((value, mut at)) = value(&input[done..])? {
            at += done;
            match value {
                // It listens while it still reads its file.
                Value::Error(error) if !self.ready && error.starts_with(b"LOADING") => self.open(out),
                Value::Error(error) => return Err(format!("Redis: {}", String::from_utf8_lossy(error))),
                Value::Status if !self.ready => {
                    self.ready = true;
                    sink.event(Event::Ready);
                }
                // The number of receivers, or a stream's new id.
                Value::Integer | Value::Bulk(_) | Value::Status => sink.event(Event::Answered(1)),
                Value::Array(parts) => {
                    let mut last = Value::Status;
                    for _ in 0..parts {
                        let Some((part, bytes)) = self::value(&input[at..])? else { return Ok(done) };
                        (last, at) = (part, at + bytes);
                    }
                    match last {
                        Value::Bulk(payload) => sink.event(Event::Delivered(payload)),
                        Value::Integer => sink.event(Event::Joined),
                        _ => return Err("Redis sent an array of another kind".to_owned()),
                    }
                }
            }
            done = at;
        }
        Ok(done)
    }
}

impl Replay {
    fn read<S: Sink>(&mut self, input: &[u8], out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
        let mut done = 0;
        loop {
            if self.entries_left == 0 {
                let Some((head, bytes)) = value(&input[done..])? else { return Ok(done) };
                let Value::Array(entries) = head else { return Err("Redis sent no page".to_owned()) };
                (self.entries_left, done) = (entries, done + bytes);
                if entries == 0 {
                    return Ok(done);
                }
            }
            // An entry: [id, [name, payload]].
            let (mut at, mut id, mut payload): (_, &[u8], &[u8]) = (done, b"", b"");
            for _ in 0..5 {
                let Some((part, bytes)) = value(&input[at..])? else { return Ok(done) };
                if let Value::Bulk(bulk) = part {
                    (id, payload) = (if id.is_empty() { bulk } else { id }, bulk);
                }
                at += bytes;
            }
            sink.event(Event::Delivered(payload));
            done = at;
            self.entries_left -= 1;
            if self.entries_left == 0 && self.more {
                page(self.room, &[b"(", id].concat(), out);
            }
        }
    }
}

/// Asks for the entries from a place on.
fn page(room: u32, from: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"*6\r\n$6\r\nXRANGE\r\n");
    name(room, out);
    bulk(from, out);
    out.extend_from_slice(b"$1\r\n+\r\n$5\r\nCOUNT\r\n");
    bulk(PAGE.to_string().as_bytes(), out);
}

fn name(room: u32, out: &mut Vec<u8>) {
    // Six digits at most, so that no allocation is needed.
    let mut text = [0; 16];
    let mut rest = &mut text[..];
    write!(rest, "room{room}").expect("a room's name fits");
    let left = rest.len();
    bulk(&text[..16 - left], out);
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    write!(out, "${}\r\n", bytes.len()).expect("memory takes everything");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// The value at the front and how many bytes it takes (an array: its head); `None` while it is not all there.
#[inline]
fn value(input: &[u8]) -> Result<Option<(Value<'_>, usize)>, String> {
    let Some(&kind) = input.first() else { return Ok(None) };
    match kind {
        b'$' | b'*' | b':' => {}
        b'+' | b'-' => {
            let Some(end) = input.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
            let line = &input[1..end.saturating_sub(1).max(1)];
            return Ok(Some((if kind == b'-' { Value::Error(line) } else { Value::Status }, end + 1)));
        }
        _ => return Err(format!("not RESP: {:?}", String::from_utf8_lossy(&input[..input.len().min(40)]))),
    }
    let (mut number, mut at) = (0_usize, 1);
    loop {
        match input.get(at) {
            None => return Ok(None),
            Some(b'\r') => break,
            Some(digit @ b'0'..=b'9') => number = number * 10 + usize::from(digit - b'0'),
            Some(_) => return Err("not a number of RESP".to_owned()),
        }
        at += 1;
    }
    at += 2;
    match kind {
        b'$' if input.len() >= at + number + 2 => Ok(Some((Value::Bulk(&input[at..at + number]), at + number + 2))),
        b'$' => Ok(None),
        _ if input.len() < at => Ok(None),
        b'*' => Ok(Some((Value::Array(number), at))),
        _ => Ok(Some((Value::Integer, at))),
    }
}
