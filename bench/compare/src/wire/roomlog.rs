//! Roomlog, from docs/protocol.md alone: over WebSocket, or as the frames that QUIC carries. Bodies are read record by record as they stream in, so that a
//! large batch that has come in part costs no copy.

use super::{Event, Sink, Start, Wire, websocket};

/// What is written as one message at most.
const MESSAGE_BYTES: usize = 64 << 10;
/// Requests without an answer that the server allows by default.
const IN_FLIGHT: usize = 1024;

/// Any version from 1 to 1, no token, no rooms to go on with.
const HELLO: &[u8] = b"\x15\x01RLOG\x01\x01\x0d\x00\x0acompare1.0\x00";

pub(crate) struct Roomlog {
    stage: Stage,
    /// Bytes of the present WebSocket message that have not come yet.
    message_left: usize,
    frames: Frames,
    requests: u32,
    publisher: [u8; 16],
    /// The next number in each room that this connection publishes to.
    seqs: Vec<u64>,
    /// Frames that will be one message.
    message: Vec<u8>,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Upgrading,
    Open,
    /// The carrier needs no messages, and reads the frames itself.
    Bare,
}

/// Where in the stream of frames the reader is.
#[derive(Default)]
pub(crate) struct Frames {
    /// Bytes of the present delivery's runs that have not come yet; 0 between frames.
    runs_left: usize,
    /// Records of the present run that have not come yet.
    records_left: u64,
    offset: u64,
    step: u64,
    first: u64,
    from: u64,
    to: u64,
}

impl Roomlog {
    /// `id` tells publishers apart.
    pub(crate) fn new(id: u64) -> Self {
        let mut publisher = [0x5a; 16];
        publisher[..8].copy_from_slice(&id.to_le_bytes());
        Self {
            stage: Stage::Upgrading,
            message_left: 0,
            frames: Frames::default(),
            requests: 0,
            publisher,
            seqs: Vec::new(),
            message: Vec::new(),
        }
    }

    /// For QUIC: frames, one behind the other.
    pub(crate) fn bare(id: u64) -> Self {
        Self { stage: Stage::Bare, ..Self::new(id) }
    }

    fn request(&mut self) -> u64 {
        self.requests += 1;
        u64::from(self.requests)
    }
}

impl Wire for Roomlog {
    fn open(&mut self, out: &mut Vec<u8>) {
        match self.stage {
            Stage::Bare => out.extend_from_slice(HELLO),
            _ => websocket::upgrade("/v1/ws", Some("roomlog.v1"), out),
        }
    }

    fn join(&mut self, room: u32, start: Start, out: &mut Vec<u8>) {
        let mut body = vec![2];
        uint(self.request(), &mut body);
        uint(join_id(room), &mut body);
        text(&format!("room{room}"), &mut body);
        match start {
            Start::New => body.push(0),
            Start::Earliest => body.push(1),
            Start::Last(count) => {
                body.push(2);
                uint(u64::from(count), &mut body);
            }
        }
        // No bound of credit; records, and nothing else.
        body.extend_from_slice(&[0, 1, 0, 0, 0]);
        uint(body.len() as u64, &mut self.message);
        self.message.extend_from_slice(&body);
        self.seal(out);
    }

    fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        self.append(room, payload, out);
    }

    fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        if self.message.len() + payload.len() + 128 > MESSAGE_BYTES {
            self.seal(out);
        }
        if self.seqs.len() <= room as usize {
            self.seqs.resize(room as usize + 1, 0);
        }
        self.seqs[room as usize] += 1;
        let seq = self.seqs[room as usize];
        let request = self.request();
        let mut digits = [0; 10];
        let digits = decimal(room, &mut digits);

        let record_bytes = 3 + uint_bytes(payload.len() as u64) + payload.len() + 1;
        let bytes = 1
            + uint_bytes(request)
            + (1 + 4 + digits.len())
            + 16
            + uint_bytes(seq)
            + 2
            + uint_bytes(record_bytes as u64)
            + record_bytes;
        let out = &mut self.message;
        uint(bytes as u64, out);
        out.push(5);
        uint(request, out);
        out.push(4 + digits.len() as u8);
        out.extend_from_slice(b"room");
        out.extend_from_slice(digits);
        out.extend_from_slice(&self.publisher);
        uint(seq, out);
        // Nothing expected; one record.
        out.extend_from_slice(&[0, 1]);
        uint(record_bytes as u64, out);
        out.extend_from_slice(&[0, 0, 0]);
        uint(payload.len() as u64, out);
        out.extend_from_slice(payload);
        out.push(0);
    }

    fn seal(&mut self, out: &mut Vec<u8>) {
        if self.stage == Stage::Bare {
            out.append(&mut self.message);
        } else if !self.message.is_empty() {
            websocket::message(2, &self.message, out);
            self.message.clear();
        }
    }

    fn read<S: Sink>(&mut self, input: &[u8], out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
        let mut done = 0;
        if self.stage == Stage::Upgrading {
            let Some(bytes) = websocket::upgraded(input)? else { return Ok(0) };
            done = bytes;
            self.stage = Stage::Open;
            websocket::message(2, HELLO, out);
        }
        loop {
            if self.message_left == 0 {
                let Some((opcode, bytes, head_bytes)) = websocket::head(&input[done..])? else { return Ok(done) };
                let body = done + head_bytes;
                match opcode {
                    2 => (self.message_left, done) = (bytes, body),
                    _ if input.len() < body + bytes => return Ok(done),
                    9 => {
                        websocket::message(10, &input[body..body + bytes], out);
                        done = body + bytes;
                    }
                    8 => return Err(format!("closed: {}", String::from_utf8_lossy(&input[body..body + bytes]))),
                    _ => return Err(format!("a WebSocket frame of opcode {opcode}")),
                }
                continue;
            }
            let whole = input.len() - done >= self.message_left;
            let part = &input[done..done + self.message_left.min(input.len() - done)];
            let read = self.frames.read(part, sink)?;
            done += read;
            self.message_left -= read;
            if self.message_left > 0 {
                return if whole { Err("a frame spans messages".to_owned()) } else { Ok(done) };
            }
        }
    }

    fn unanswered_max(&self) -> usize {
        IN_FLIGHT
    }
}

impl Frames {
    /// The length of the head of a room's stream; `None` while it is not all there.
    pub(crate) fn stream_head(input: &[u8]) -> Option<usize> {
        let mut reader = Reader { input, at: 0 };
        reader.uint()?;
        let room = reader.uint()?;
        reader.skip(room as usize)?;
        reader.uint()?;
        Some(reader.at)
    }

    /// Reads frames, and says how much is done with.
    pub(crate) fn read<S: Sink>(&mut self, input: &[u8], sink: &mut S) -> Result<usize, String> {
        let mut reader = Reader { input, at: 0 };
        loop {
            let done = reader.at;
            let more = if self.runs_left == 0 { self.frame(&mut reader, sink)? } else { self.runs(&mut reader, sink)? };
            if more.is_none() {
                return Ok(if self.runs_left == 0 { done } else { reader.at });
            }
        }
    }

    /// A whole frame, or a delivery's and its body's head. `None`, with the reader anywhere, while it is not all there.
    fn frame<S: Sink>(&mut self, reader: &mut Reader<'_>, sink: &mut S) -> Result<Option<()>, String> {
        let Some(bytes) = reader.uint() else { return Ok(None) };
        let start = reader.at;
        let end = start + bytes as usize;
        let Some(number) = reader.byte() else { return Ok(None) };
        if number == 128 {
            let mut head = || {
                let (join, from, to, _prev) = (reader.uint()?, reader.uint()?, reader.uint()?, reader.uint()?);
                let (version, _count) = (reader.byte()?, reader.uint()?);
                let (first, _span, _time) = (reader.uint()?, reader.uint()?, reader.uint()?);
                Some((join, from, to, version, first))
            };
            let Some((join, from, to, version, first)) = head() else { return Ok(None) };
            if version != 1 {
                return Err(format!("a batch of version {version}"));
            }
            sink.event(Event::Room(room(join)));
            (self.from, self.to, self.first) = (from, to, first);
            (self.runs_left, self.records_left) = (end - reader.at, 0);
            return Ok(Some(()));
        }
        let Some(body) = reader.input.get(reader.at..end) else { return Ok(None) };
        match number {
            64 => sink.event(Event::Ready),
            65 => sink.event(Event::Joined),
            68 => sink.event(Event::Answered(1)),
            // Marks: live, lagging, caught up.
            129 | 131 | 132 | 192.. => {}
            _ => return Err(format!("Roomlog sent frame {number}: {}", String::from_utf8_lossy(body))),
        }
        reader.at = end;
        Ok(Some(()))
    }

    /// The records that are there. `None`, with the reader behind the last whole one, when more has to come.
    #[inline]
    fn runs<S: Sink>(&mut self, reader: &mut Reader<'_>, sink: &mut S) -> Result<Option<()>, String> {
        while self.runs_left > 0 {
            let start = reader.at;
            if self.records_left == 0 {
                let mut head = || {
                    let (delta, step, _time) = (reader.uint()?, reader.uint()?, reader.uint()?);
                    let user = reader.uint()?;
                    reader.skip(user as usize + 16)?;
                    let (_seq, count, _bytes) = (reader.uint()?, reader.uint()?, reader.uint()?);
                    Some((delta, step, count))
                };
                let Some((delta, step, count)) = head() else {
                    reader.at = start;
                    return Ok(None);
                };
                (self.offset, self.step, self.records_left) = (self.first + delta, step, count);
            } else {
                let Some(payload) = record(reader) else {
                    reader.at = start;
                    return Ok(None);
                };
                if (self.from..=self.to).contains(&self.offset) {
                    sink.event(Event::Delivered(payload));
                }
                self.offset += self.step;
                self.records_left -= 1;
            }
            let read = reader.at - start;
            self.runs_left = self.runs_left.checked_sub(read).ok_or("a run goes beyond its batch")?;
        }
        Ok(Some(()))
    }
}

/// The name of a room's join on its connection.
fn join_id(room: u32) -> u64 {
    u64::from(room) + 1
}

fn room(join: u64) -> u32 {
    join.wrapping_sub(1) as u32
}

/// The payload of the record at the front, which must be all there.
#[inline]
fn record<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let bytes = reader.uint()? as usize;
    let end = reader.at + bytes;
    if end > reader.input.len() {
        return None;
    }
    if reader.input.get(reader.at..reader.at + 3)? == [0, 0, 0] {
        reader.at += 3;
    } else {
        let kind = reader.uint()?;
        reader.skip(kind as usize)?;
        reader.uint()?;
        for _ in 0..2 * reader.uint()? {
            let part = reader.uint()?;
            reader.skip(part as usize)?;
        }
    }
    let payload_bytes = reader.uint()? as usize;
    let payload = reader.input.get(reader.at..reader.at + payload_bytes)?;
    reader.at = end;
    Some(payload)
}

struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.input.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn uint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let wide = match first {
            0..=250 => return Some(u64::from(first)),
            251 => 2,
            252 => 4,
            253 => 8,
            // No server sends these; nothing of this length will come, so the connection is given up as stuck.
            _ => return None,
        };
        let bytes = self.input.get(self.at..self.at + wide)?;
        self.at += wide;
        let mut value = [0; 8];
        value[..wide].copy_from_slice(bytes);
        Some(u64::from_le_bytes(value))
    }

    #[inline]
    fn skip(&mut self, bytes: usize) -> Option<()> {
        let end = self.at + bytes;
        (end <= self.input.len()).then(|| self.at = end)
    }
}

pub(super) fn uint(value: u64, out: &mut Vec<u8>) {
    match value {
        0..=250 => out.push(value as u8),
        251..=0xffff => {
            out.push(251);
            out.extend_from_slice(&(value as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(252);
            out.extend_from_slice(&(value as u32).to_le_bytes());
        }
        _ => {
            out.push(253);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

fn uint_bytes(value: u64) -> usize {
    match value {
        0..=250 => 1,
        251..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    uint(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

fn decimal(mut value: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &digits[at..];
        }
    }
}
