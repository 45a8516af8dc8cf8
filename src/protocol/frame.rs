//! Every frame of protocol version 1: its number, who sends it, and how it is told from the others.
//!
//! Numbers are append-only: 1–63 requests, 64–127 answers, 128–191 pushes that a client must know, 192–255 pushes
//! that a client may skip. A field is never added to a frame of this version; that takes another version.

use bincode::Encode;

use super::answer::{Cut, Delivery, Fault, Gap, Goodbye, Joined, Mark, Page, Pong, Published, RoomList, Void, Welcome};
use super::batch::RecordArea;
use super::later::Later;
use super::number::{MAGIC, Number, RequestId};
use super::request::{Credit, Hello, History, Join, Leave, Ping, Publish, PublishHead, Rooms, Summary, Unsupported};
use super::wire::{WireError, decode, decode_head, encode_into};

/// A frame from a client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum ClientFrame<'a> {
    /// See [`Hello`].
    Hello(Hello<'a>),
    /// See [`Join`].
    Join(Join<'a>),
    /// See [`Credit`].
    Credit(Credit),
    /// See [`Leave`].
    Leave(Leave),
    /// See [`Publish`].
    Publish(Publish<'a>),
    /// See [`History`].
    History(History<'a>),
    /// See [`Rooms`].
    Rooms(Rooms<'a>),
    /// See [`Summary`].
    Summary(Summary<'a>),
    /// See [`Ping`].
    Ping(Ping),
    /// See [`Unsupported`]; the whole request has been read, and is a [`Later`].
    Unsupported(Unsupported),
}

/// A frame from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum ServerFrame<'a> {
    /// See [`Welcome`].
    Welcome(Welcome<'a>),
    /// See [`Joined`].
    Joined(Joined),
    /// See [`Void`].
    Void(Void),
    /// The request has been carried out.
    Ok(RequestId),
    /// See [`Published`].
    Published(Published),
    /// See [`Page`].
    Page(Page<'a>),
    /// See [`RoomList`].
    RoomList(RoomList<'a>),
    /// See [`Pong`].
    Pong(Pong),
    /// See [`Fault`]: the answer to a request.
    Error(Fault<'a>),
    /// See [`Delivery`].
    Delivery(Delivery<'a>),
    /// The reader has reached the head for the first time.
    Live(Mark),
    /// See [`Gap`].
    Gap(Gap),
    /// The reader is being served from the store.
    Lagging(Mark),
    /// The reader is back at the recent part.
    CaughtUp(Mark),
    /// See [`Cut`].
    Left(Cut<'a>),
    /// See [`Goodbye`].
    Goodbye(Goodbye<'a>),
    /// See [`Fault`]: something that no request asked for.
    Fault(Fault<'a>),
}

impl<'a> ClientFrame<'a> {
    /// Reads a frame without its length prefix.
    ///
    /// # Errors
    /// When it is not exactly one canonical frame of a client.
    pub fn parse(frame: &'a [u8]) -> Result<Self, WireError> {
        let (&byte, body) = frame.split_first().ok_or(WireError::Truncated { what: "a frame" })?;
        let number = Number::from_byte(byte)
            .filter(|number| (*number as u8) < 64)
            .ok_or_else(|| WireError::invalid("a frame", format_args!("{byte} is no request")))?;
        Ok(match number {
            Number::Hello => {
                let hello: Hello<'a> = decode("a hello", body)?;
                if hello.magic != MAGIC {
                    return Err(WireError::invalid("a hello", "it does not begin with RLOG"));
                }
                Self::Hello(hello)
            }
            Number::Join => Self::Join(decode("a join", body)?),
            Number::Credit => Self::Credit(decode("a credit", body)?),
            Number::Leave => Self::Leave(decode("a leave", body)?),
            Number::Publish => {
                let (head, records) = decode_head::<PublishHead<'a>>("a publish", body)?;
                let PublishHead { request, room, publisher, seq, expect, count } = head;
                Self::Publish(Publish { request, room, publisher, seq, expect, count, records: RecordArea(records) })
            }
            Number::History => Self::History(decode("a history request", body)?),
            Number::Rooms => Self::Rooms(decode("a rooms request", body)?),
            Number::Summary => Self::Summary(decode("a summary request", body)?),
            Number::Ping => Self::Ping(decode("a ping", body)?),
            _ => Self::Unsupported(Unsupported {
                number,
                request: Later::parse(frame)?.and_then(|later| later.request()).unwrap_or_default(),
            }),
        })
    }

    /// Appends the frame without its length prefix.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(body) => put(out, Number::Hello, body),
            Self::Join(body) => put(out, Number::Join, body),
            Self::Credit(body) => put(out, Number::Credit, body),
            Self::Leave(body) => put(out, Number::Leave, body),
            Self::Publish(Publish { request, room, publisher, seq, expect, count, records }) => {
                out.push(Number::Publish as u8);
                let (request, room, publisher, seq) = (*request, *room, *publisher, *seq);
                encode_into(out, &PublishHead { request, room, publisher, seq, expect: *expect, count: *count });
                out.extend_from_slice(records.0);
            }
            Self::History(body) => put(out, Number::History, body),
            Self::Rooms(body) => put(out, Number::Rooms, body),
            Self::Summary(body) => put(out, Number::Summary, body),
            Self::Ping(body) => put(out, Number::Ping, body),
            // Of a request that is only refused, nothing but its number and id is kept.
            Self::Unsupported(body) => put(out, body.number, &body.request),
        }
    }
}

impl<'a> ServerFrame<'a> {
    /// Reads a frame without its length prefix; `None` for an unknown push that may be skipped.
    ///
    /// # Errors
    /// When it is not exactly one canonical frame of a server.
    pub fn parse(frame: &'a [u8]) -> Result<Option<Self>, WireError> {
        let (&byte, body) = frame.split_first().ok_or(WireError::Truncated { what: "a frame" })?;
        Ok(Some(match Number::from_byte(byte) {
            Some(Number::Welcome) => Self::Welcome(decode("a welcome", body)?),
            Some(Number::Joined) => Self::Joined(decode("a joined", body)?),
            Some(Number::Void) => Self::Void(decode("a void", body)?),
            Some(Number::Ok) => Self::Ok(decode("an ok", body)?),
            Some(Number::Published) => Self::Published(decode("a published", body)?),
            Some(Number::Page) => Self::Page(decode("a page", body)?),
            Some(Number::RoomList) => Self::RoomList(decode("a room list", body)?),
            Some(Number::Pong) => Self::Pong(decode("a pong", body)?),
            Some(Number::Error) => Self::Error(decode("an error", body)?),
            Some(Number::Delivery) => {
                let (header, body) = decode_head("a delivery", body)?;
                Self::Delivery(Delivery { header, body })
            }
            Some(Number::Live) => Self::Live(decode("a live mark", body)?),
            Some(Number::Gap) => Self::Gap(decode("a gap", body)?),
            Some(Number::Lagging) => Self::Lagging(decode("a lagging mark", body)?),
            Some(Number::CaughtUp) => Self::CaughtUp(decode("a caught-up mark", body)?),
            Some(Number::Left) => Self::Left(decode("a left", body)?),
            Some(Number::Goodbye) => Self::Goodbye(decode("a goodbye", body)?),
            Some(Number::Fault) => Self::Fault(decode("a fault", body)?),
            _ if Number::ignorable(byte) => return Ok(None),
            _ => return Err(WireError::invalid("a frame", format_args!("{byte} is no frame of a server"))),
        }))
    }

    /// Appends the frame without its length prefix.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(body) => put(out, Number::Welcome, body),
            Self::Joined(body) => put(out, Number::Joined, body),
            Self::Void(body) => put(out, Number::Void, body),
            Self::Ok(body) => put(out, Number::Ok, body),
            Self::Published(body) => put(out, Number::Published, body),
            Self::Page(body) => put(out, Number::Page, body),
            Self::RoomList(body) => put(out, Number::RoomList, body),
            Self::Pong(body) => put(out, Number::Pong, body),
            Self::Error(body) => put(out, Number::Error, body),
            Self::Delivery(Delivery { header, body }) => {
                out.push(Number::Delivery as u8);
                encode_into(out, header);
                out.extend_from_slice(body);
            }
            Self::Live(body) => put(out, Number::Live, body),
            Self::Gap(body) => put(out, Number::Gap, body),
            Self::Lagging(body) => put(out, Number::Lagging, body),
            Self::CaughtUp(body) => put(out, Number::CaughtUp, body),
            Self::Left(body) => put(out, Number::Left, body),
            Self::Goodbye(body) => put(out, Number::Goodbye, body),
            Self::Fault(body) => put(out, Number::Fault, body),
        }
    }
}

fn put(out: &mut Vec<u8>, number: Number, body: &impl Encode) {
    out.push(number as u8);
    encode_into(out, body);
}
