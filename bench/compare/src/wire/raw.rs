//! The limit programs' protocol: length, kind and room in 9 bytes, then the payload. It costs as little as can be.

use super::{Event, Sink, Start, Wire};

/// Length of the payload as `u32`, kind, room as `u32`; little-endian.
pub(crate) const HEAD_BYTES: usize = 9;

/// To everybody who is joined; the server passes the frame on as it is.
pub(crate) const PUBLISH: u8 = 1;
/// To the file, and acknowledged when it is there.
pub(crate) const APPEND: u8 = 2;
pub(crate) const JOIN: u8 = 3;
pub(crate) const ANSWER: u8 = 4;
pub(crate) const JOINED: u8 = 5;
/// The file, from its beginning.
pub(crate) const REPLAY: u8 = 6;
/// The last frames of the file, as many as the room's number says.
pub(crate) const LAST: u8 = 7;
/// Answered at once.
pub(crate) const HELLO: u8 = 8;

/// A frame's head.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) bytes: usize,
    pub(crate) kind: u8,
    pub(crate) room: u32,
}

impl Head {
    /// The head at the front; `None` while it is not all there.
    #[inline]
    pub(crate) fn read(input: &[u8]) -> Option<Self> {
        let head: &[u8; HEAD_BYTES] = input.first_chunk()?;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        Some(Self { bytes: number(0) as usize, kind: head[4], room: number(5) })
    }

    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&u32::try_from(self.bytes).expect("payloads are small").to_le_bytes());
        out.push(self.kind);
        out.extend_from_slice(&self.room.to_le_bytes());
    }
}

pub(crate) struct Raw {
    ready: bool,
}

impl Raw {
    pub(crate) fn new() -> Self {
        Self { ready: false }
    }
}

impl Wire for Raw {
    /// There is nothing to agree on: the answer shows that the server is there.
    fn open(&mut self, out: &mut Vec<u8>) {
        Head { bytes: 0, kind: HELLO, room: 0 }.write(out);
    }

    fn join(&mut self, room: u32, start: Start, out: &mut Vec<u8>) {
        let (kind, room) = match start {
            Start::New => (JOIN, room),
            Start::Earliest => (REPLAY, room),
            Start::Last(count) => (LAST, count),
        };
        Head { bytes: 0, kind, room }.write(out);
    }

    fn publish(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        Head { bytes: payload.len(), kind: PUBLISH, room }.write(out);
        out.extend_from_slice(payload);
    }

    fn append(&mut self, room: u32, payload: &[u8], out: &mut Vec<u8>) {
        Head { bytes: payload.len(), kind: APPEND, room }.write(out);
        out.extend_from_slice(payload);
    }

    fn read<S: Sink>(&mut self, input: &[u8], _out: &mut Vec<u8>, sink: &mut S) -> Result<usize, String> {
        let mut at = 0;
        while let Some(head) = Head::read(&input[at..]) {
            let (start, end) = (at + HEAD_BYTES, at + HEAD_BYTES + head.bytes);
            if end > input.len() {
                break;
            }
            match head.kind {
                PUBLISH | APPEND => sink.event(Event::Delivered(&input[start..end])),
                ANSWER if !self.ready => {
                    self.ready = true;
                    sink.event(Event::Ready);
                }
                ANSWER => sink.event(Event::Answered(1)),
                JOINED => sink.event(Event::Joined),
                kind => return Err(format!("the limit program sent a frame of kind {kind}")),
            }
            at = end;
        }
        Ok(at)
    }
}
