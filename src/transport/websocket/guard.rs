//! The reading side of a WebSocket: fastwebsockets behind our own checks.
//!
//! Version 0.10.0 of that crate loses its place when a read is cancelled, bounds frames but not messages, accepts
//! frames without a mask and long control frames, and holds 8 KiB per connection. So it is given *whole* frames
//! only, from a buffer of the thread: it never waits, and an idle connection holds nothing. What is checked here
//! before that are the heads of frames; what is checked behind it is the order of frames.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use fastwebsockets::{Frame, OpCode, Role, WebSocketError, WebSocketRead, after_handshake_split};

/// Fragments of one message; more are an attack on whoever counts only bytes.
const FRAGMENTS_MAX: u32 = 8192;

/// What RFC 6455 allows in a control frame, in bytes.
const CONTROL_BYTES_MAX: u64 = 125;

/// An idle connection keeps no larger buffer than this.
const KEPT_BYTES_MAX: usize = 512;

/// What a peer has sent.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Event<'a> {
    /// A whole binary message.
    Message(&'a [u8]),
    /// A ping, with what its pong repeats.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// The peer closes; nothing follows.
    Close,
}

/// How a peer breaks RFC 6455 or what is agreed on top of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Violation {
    /// The close code of the RFC.
    pub(crate) code: u16,
    /// Why, for a person; at most 123 bytes.
    pub(crate) reason: &'static str,
}

const fn protocol(reason: &'static str) -> Violation {
    Violation { code: 1002, reason }
}

const TOO_LARGE: Violation = Violation { code: 1009, reason: "the message is larger than a frame may be" };
const FRAGMENTED: Violation = Violation { code: 1009, reason: "the message has too many fragments" };
const TEXT: Violation = Violation { code: 1003, reason: "a text message; this protocol is binary" };

/// The state of the reading side.
#[derive(Debug)]
pub(crate) struct Guard {
    bytes_max: usize,
    /// The front of a frame that is not complete.
    partial: Vec<u8>,
    /// The fragments of a message that is not complete.
    message: Vec<u8>,
    /// How many those are; 0 while no fragmented message is under way.
    fragments: u32,
}

impl Guard {
    /// For messages of at most `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, partial: Vec::new(), message: Vec::new(), fragments: 0 }
    }

    /// Whether a frame or a message is under way.
    pub(crate) fn within_message(&self) -> bool {
        !self.partial.is_empty() || self.fragments > 0
    }

    /// What a message takes that is under way, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        if self.within_message() { self.partial.capacity() + self.message.capacity() } else { 0 }
    }

    /// Drops what is under way; nothing more is to be read.
    pub(crate) fn let_go(&mut self) {
        (self.partial, self.message) = (Vec::new(), Vec::new());
    }

    /// Takes what has been read, and tells what it completes. Nothing is told after an error.
    ///
    /// # Errors
    /// A [`Violation`], or what `event` returned.
    pub(crate) fn read<E: From<Violation>>(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            // As much as completes the head, then as much as completes the frame: a length alone reserves nothing.
            let wanted = match frame_end(&self.partial, self.bytes_max)? {
                End::Within(least) => least,
                End::At(end) => end,
            };
            let (more, rest) = bytes.split_at(bytes.len().min(wanted - self.partial.len()));
            self.partial.extend_from_slice(more);
            bytes = rest;
            if let End::At(end) = frame_end(&self.partial, self.bytes_max)?
                && self.partial.len() == end
            {
                let mut frame = std::mem::take(&mut self.partial);
                self.frames(&frame, 1, &mut event)?;
                if frame.capacity() <= KEPT_BYTES_MAX {
                    frame.clear();
                    self.partial = frame;
                }
            }
        }
        let (mut whole, mut count) = (0, 0);
        while let End::At(end) = frame_end(&bytes[whole..], self.bytes_max).or_else(|violation| {
            // The frames before it count.
            self.frames(&bytes[..whole], count, &mut event)?;
            Err(E::from(violation))
        })? {
            if bytes.len() - whole < end {
                break;
            }
            whole += end;
            count += 1;
        }
        self.frames(&bytes[..whole], count, &mut event)?;
        self.partial.extend_from_slice(&bytes[whole..]);
        Ok(())
    }

    /// Reads whole frames whose heads have been checked.
    fn frames<E: From<Violation>>(
        &mut self,
        bytes: &[u8],
        count: usize,
        event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if count == 0 {
            return Ok(());
        }
        let (mut reader, _) = after_handshake_split(bytes, tokio::io::sink(), Role::Server);
        reader.set_auto_close(false);
        reader.set_auto_pong(false);
        // The crate's bound is exclusive.
        reader.set_max_message_size(self.bytes_max + 1);
        for _ in 0..count {
            let frame = read_frame(&mut reader)?;
            self.frame(&frame, event)?;
        }
        Ok(())
    }

    fn frame<E: From<Violation>>(
        &mut self,
        frame: &Frame<'_>,
        event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let payload: &[u8] = &frame.payload;
        match frame.opcode {
            OpCode::Ping => event(Event::Ping(payload)),
            OpCode::Pong => event(Event::Pong),
            OpCode::Close => {
                check_close(payload)?;
                event(Event::Close)
            }
            OpCode::Text => Err(TEXT.into()),
            OpCode::Binary if self.fragments > 0 => Err(protocol("a message within a message").into()),
            OpCode::Binary if frame.fin => event(Event::Message(payload)),
            OpCode::Continuation if self.fragments == 0 => Err(protocol("a continuation of nothing").into()),
            OpCode::Binary | OpCode::Continuation => {
                self.fragments += 1;
                if self.fragments > FRAGMENTS_MAX {
                    return Err(FRAGMENTED.into());
                }
                if self.message.len() + payload.len() > self.bytes_max {
                    return Err(TOO_LARGE.into());
                }
                self.message.extend_from_slice(payload);
                if !frame.fin {
                    return Ok(());
                }
                self.fragments = 0;
                let message = std::mem::take(&mut self.message);
                event(Event::Message(&message))
            }
        }
    }
}

/// Where a frame ends, counted from its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Behind what is there: so many bytes are needed to know.
    Within(usize),
    At(usize),
}

/// Checks the head of a frame as far as it is there.
fn frame_end(bytes: &[u8], bytes_max: usize) -> Result<End, Violation> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(End::Within(2)) };
    if first & 0x70 != 0 {
        return Err(protocol("a reserved bit is set"));
    }
    let (opcode, last) = (first & 0x0f, first & 0x80 != 0);
    let length = u64::from(second & 0x7f);
    match opcode {
        0 | 2 => {}
        1 => return Err(TEXT),
        8..=10 if !last => return Err(protocol("a fragmented control frame")),
        8..=10 if length > CONTROL_BYTES_MAX => return Err(protocol("a control frame of more than 125 bytes")),
        8..=10 => {}
        _ => return Err(protocol("an unknown opcode")),
    }
    if second & 0x80 == 0 {
        return Err(protocol("a frame without a mask"));
    }
    let wide = match length {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some(extended) = rest.get(..wide) else { return Ok(End::Within(2 + wide)) };
    let length = match wide {
        0 => length,
        _ => extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    if length > bytes_max as u64 {
        return Err(TOO_LARGE);
    }
    Ok(End::At(2 + wide + 4 + usize::try_from(length).expect("at most a usize")))
}

/// Reads one frame, all of whose bytes are there.
fn read_frame<'a>(reader: &'a mut WebSocketRead<&[u8]>) -> Result<Frame<'a>, Violation> {
    let mut no_answers = |_: Frame<'_>| std::future::ready(Ok::<(), std::io::Error>(()));
    let read = pin!(reader.read_frame(&mut no_answers));
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(frame)) => Ok(frame),
        Poll::Ready(Err(WebSocketError::FrameTooLarge)) => Err(TOO_LARGE),
        Poll::Ready(Err(_)) => Err(protocol("a frame that cannot be read")),
        Poll::Pending => unreachable!("all bytes of the frame are there"),
    }
}

fn check_close(payload: &[u8]) -> Result<(), Violation> {
    let (code, reason) = match payload {
        [] => return Ok(()),
        [_] => return Err(protocol("half a close code")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("a close code that must not be sent"));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(()),
        Err(_) => Err(Violation { code: 1007, reason: "a close reason that is not UTF-8" }),
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
