//! All that must hold of whatever bytes a reader of the wire is given: no panic, one encoding for each value, and an end
//! to every walk. The property tests and the fuzz targets call it.

use super::{
    Batch, BatchBuilder, ClientFrame, HelloBody, Later, RecordArea, RunHeader, ServerFrame, StreamHead, WireError,
};
use crate::types::Offset;

/// Anything that has bytes of its own on a connection.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Any<'a> {
    Client(ClientFrame<'a>),
    Server(ServerFrame<'a>),
    Later(Later<'a>),
    Head(StreamHead<'a>),
}

impl<'a> Any<'a> {
    /// The bytes; of a frame, without its length.
    pub(super) fn bytes(&self) -> Vec<u8> {
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
    pub(super) fn parse(frame: &'a [u8]) -> Result<Option<Self>, WireError> {
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

/// What is read from any bytes is written the same, and everything within can be walked.
pub(super) fn survives(frame: &[u8]) -> Option<Any<'_>> {
    let value = Any::parse(frame).ok()??;
    assert_eq!(value.bytes(), frame, "another encoding of {value:?} was accepted");
    match &value {
        Any::Client(ClientFrame::Hello(hello)) => {
            if let Ok(body) = HelloBody::parse(hello.body) {
                assert_eq!(body.to_bytes(), hello.body);
            }
        }
        Any::Client(ClientFrame::Publish(publish)) => {
            let mut area = publish.records;
            while let Ok(Some((bytes, rest))) = area.split_first() {
                let _ = RecordArea::record(bytes);
                area = rest;
            }
        }
        Any::Server(ServerFrame::Delivery(delivery)) => walk(delivery.body),
        Any::Server(ServerFrame::Page(page)) => page.deliveries.iter().for_each(|delivery| walk(delivery.body)),
        _ => {}
    }
    Some(value)
}

/// A body that the check lets pass is written again the same; no other one panics or never ends.
pub(crate) fn walk(body: &[u8]) {
    let Ok(batch) = Batch::parse(body) else { return };
    let count = batch.records(Offset::ZERO).take_while(Result::is_ok).count();
    assert!(count as u64 <= u64::from(batch.header.count));
    let _ = BatchBuilder::new().push_part(&batch, Offset(batch.header.first.0 + 1), Offset::MAX);
    let middle = Offset(batch.header.first.0 + batch.header.span / 2);
    let _ = BatchBuilder::new().push_part(&batch, middle, middle);
    if batch.check().is_ok() {
        assert_eq!(count as u64, u64::from(batch.header.count));
        assert_eq!(rebuild(body).expect("it was checked"), body);
    } else {
        assert!(batch.records(Offset::ZERO).any(|record| record.is_err()), "an error ends the records");
    }
}

/// Takes a body apart to its records, and puts it together again run by run.
pub(super) fn rebuild(body: &[u8]) -> Result<Vec<u8>, WireError> {
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

/// Bytes as a stream of frames, as one frame, as the head of a stream and as a batch.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((frame, taken))) = super::split_frame(rest, crate::types::Limits::CEILINGS.frame_bytes) {
        assert!(taken > frame.len() && !frame.is_empty(), "a frame is not empty, and has a length");
        survives(frame);
        rest = &rest[taken..];
    }
    survives(bytes);
    walk(bytes);
    if let Ok(Some((head, taken))) = StreamHead::parse(bytes) {
        assert_eq!(Any::Head(head).bytes(), &bytes[..taken], "another encoding of a head was accepted");
    }
}
