//! What a reader puts out, as the frames of the protocol, and what was written, for the metrics.

use bytes::Bytes;

use crate::broker::{JoinFacts, Output, Part};
use crate::metrics::{Metrics, Sampled, Source, Transport};
use crate::protocol::{
    Batch, Cut, DeliveryHeader, Fault, Gap, JoinId, Joined, Mark, Number, ServerFrame, encode_into, frame_into,
};
use crate::session::records_meant;
use crate::types::Time;

/// Where a frame of an output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Among the answers.
    Answers,
    /// Among the pushes of a room.
    Room(JoinId),
    /// Among the pushes of a room, as its last one.
    LastOfRoom(JoinId),
}

/// The frame of an output: appends all of it but a delivery's body, which is returned to be sent behind.
pub(crate) fn frame(output: Output, out: &mut Vec<u8>) -> (Place, Option<Bytes>) {
    let mut put = |frame: ServerFrame<'_>| frame_into(out, |out| frame.encode_into(out));
    match output {
        Output::Records(join, part) => {
            delivery_head(join, &part, out);
            (Place::Room(join), Some(part.body))
        }
        Output::Joined { join, tag, facts } => {
            let JoinFacts { epoch, first, head, start } = facts;
            put(ServerFrame::Joined(Joined { request: tag, join, epoch, first, head, start }));
            (Place::Answers, None)
        }
        Output::Live(join, offset) => {
            put(ServerFrame::Live(Mark { join, offset }));
            (Place::Room(join), None)
        }
        Output::Gap { join, from, to, reason } => {
            put(ServerFrame::Gap(Gap { join, from, to, reason }));
            (Place::Room(join), None)
        }
        Output::Lagging(join, offset) => {
            put(ServerFrame::Lagging(Mark { join, offset }));
            (Place::Room(join), None)
        }
        Output::CaughtUp(join, offset) => {
            put(ServerFrame::CaughtUp(Mark { join, offset }));
            (Place::Room(join), None)
        }
        Output::Left { join, tag: Some(request), why } => {
            put(ServerFrame::Error(Fault::new(request, why.code, &why.message)));
            (Place::LastOfRoom(join), None)
        }
        Output::Left { join, tag: None, why } => {
            put(ServerFrame::Left(Cut { join, code: why.code.number(), message: &why.message }));
            (Place::LastOfRoom(join), None)
        }
    }
}

/// Appends a delivery frame as far as the batch body. Allocates nothing when `out` has room.
fn delivery_head(join: JoinId, part: &Part, out: &mut Vec<u8>) {
    let header = DeliveryHeader { join, from: part.from, to: part.to, prev: part.prev };
    // The length stands in front of what it tells the length of: written behind, then moved there.
    let start = out.len();
    out.push(Number::Delivery as u8);
    encode_into(out, &header);
    let head = out.len() - start;
    encode_into(out, &u32::try_from(head + part.body.len()).expect("a batch is below 4 GiB"));
    out[start..].rotate_left(head);
}

/// What has been written since the metrics were last moved: they are moved once per write, not per frame.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) frames: u64,
    pub(crate) calls: u64,
    pub(crate) bytes: u64,
    records: [u64; Source::ALL.len()],
    record_bytes: [u64; Source::ALL.len()],
}

impl Tally {
    /// Counts an output.
    pub(crate) fn output(&mut self, output: &Output, sampled: &mut Sampled, metrics: &Metrics) {
        self.frames += 1;
        match output {
            Output::Records(_, part) => {
                self.records[part.source as usize] += records_meant(part);
                self.record_bytes[part.source as usize] += part.body.len() as u64;
                if part.source == Source::Tail
                    && sampled.choose()
                    && let Ok(batch) = Batch::parse(&part.body)
                {
                    // A batch's time is when its commit was gathered. A reader that comes later than a second is
                    // not live but late, and not what this is about.
                    let micros = Time::now().0.saturating_sub(batch.header.time.0);
                    if micros < 1_000_000 {
                        metrics.publish_to_delivery.record(std::time::Duration::from_micros(micros));
                    }
                }
            }
            Output::Left { why, .. } => metrics.errors[why.code].increment(1),
            _ => {}
        }
    }

    /// Moves the metrics.
    pub(crate) fn flush(&mut self, metrics: &Metrics, transport: Transport) {
        let tally = std::mem::take(self);
        if tally.calls + tally.frames == 0 {
            return;
        }
        metrics.frames_sent[transport].increment(tally.frames);
        metrics.write_calls[transport].increment(tally.calls);
        metrics.sent_bytes[transport].increment(tally.bytes);
        for (at, source) in Source::ALL.iter().enumerate() {
            if tally.records[at] > 0 {
                metrics.delivered_records[(transport, *source)].increment(tally.records[at]);
                metrics.delivered_bytes[(transport, *source)].increment(tally.record_bytes[at]);
            }
        }
    }
}
