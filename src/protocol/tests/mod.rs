//! The protocol's tests: the page against the codec, bytes of every version, and hostile input.

mod draw;
mod examples;
mod golden;
mod page;
mod properties;

use super::{Batch, BatchBuilder, ClientFrame, Later, RecordArea, RunHeader, ServerFrame, StreamHead, WireError};
use crate::types::Offset;

/// Anything that has bytes of its own on a connection.
#[derive(Clone, PartialEq, Debug)]
enum Any<'a> {
    Client(ClientFrame<'a>),
    Server(ServerFrame<'a>),
    Later(Later<'a>),
    Head(StreamHead<'a>),
}

impl<'a> Any<'a> {
    /// The bytes; of a frame, without its length.
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Client(frame) => frame.encode_into(&mut out),
            Self::Server(frame) => frame.encode_into(&mut out),
            Self::Later(frame) => frame.encode_into(&mut out),
            Self::Head(head) => head.encode_into(&mut out),
        }
        out
    }

    /// Reads a frame by whoever may read it; `None` for a push that may be skipped.
    fn parse(frame: &'a [u8]) -> Result<Option<Self>, WireError> {
        let client = ClientFrame::parse(frame);
        let server = ServerFrame::parse(frame);
        if let Some(later) = Later::parse(frame).inspect_err(|_| assert!(client.is_err()))? {
            // A server refuses the requests among these by number and id; a client is not sent the others.
            if let Ok(ClientFrame::Unsupported(unsupported)) = client {
                assert_eq!((unsupported.number, Some(unsupported.request)), (later.number(), later.request()));
            }
            return Ok(Some(Self::Later(later)));
        }
        match (client, server) {
            (Ok(ClientFrame::Unsupported(body)), _) => panic!("{body:?} is well-formed for one reader only"),
            (Ok(frame), Err(_)) => Ok(Some(Self::Client(frame))),
            (Err(_), Ok(frame)) => Ok(frame.map(Self::Server)),
            (Err(client), Err(server)) => Err(if frame.first() < Some(&64) { client } else { server }),
            (Ok(client), Ok(server)) => panic!("both {client:?} and {server:?}"),
        }
    }
}

/// The bytes of hexadecimal digits.
fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|character| !character.is_whitespace())
        .map(|digit| u8::try_from(digit.to_digit(16).unwrap_or_else(|| panic!("{digit:?} in {text:?}"))).expect("< 16"))
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text:?}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes a body apart to its records, and puts it together again run by run.
fn rebuild(body: &[u8]) -> Result<Vec<u8>, WireError> {
    let batch = Batch::parse(body)?;
    batch.check()?;
    let mut records = batch.records(Offset::ZERO);
    let mut builder = BatchBuilder::new();
    for run in batch.runs() {
        let run = run?;
        let mut area = Vec::new();
        for _ in 0..run.header.count {
            RecordArea::push(&mut area, &records.next().expect("the check counted them")?.content);
        }
        builder.push(run.first, run.time, run.header.count, &area, RunHeader { ..run.header });
    }
    Ok(builder.finish().1.to_vec())
}
