//! Bytes to frames and back.

use std::hint::black_box;

use roomlog::protocol::{Batch, BatchBuilder, ClientFrame, Publish, RecordArea, RunHeader, frame_into, split_frame};
use roomlog::storage::record_hash;
use roomlog::types::{NewRecord, Offset, PublisherId, Time};

const PAYLOAD_BYTES: usize = 128;
const FRAME_BYTES_MAX: usize = 2 << 20;

/// So many records, encoded one behind the other.
pub(crate) fn area(records: u64, payload_bytes: usize) -> Vec<u8> {
    let mut area = Vec::new();
    for number in 0..records {
        RecordArea::push(&mut area, &NewRecord::new(&crate::payload(payload_bytes, number)));
    }
    area
}

/// A frame, all of its records checked, and the hash of each.
pub(crate) fn decode(records: u32) -> Box<dyn FnMut()> {
    let area = area(u64::from(records), PAYLOAD_BYTES);
    let mut bytes = Vec::new();
    let publish = Publish {
        request: 7,
        room: "kitchen",
        publisher: PublisherId([7; 16]),
        seq: 1,
        expect: None,
        count: records,
        records: RecordArea(&area),
    };
    frame_into(&mut bytes, |out| ClientFrame::Publish(publish).encode_into(out));
    Box::new(move || {
        let (frame, _) = split_frame(&bytes, FRAME_BYTES_MAX).expect("a frame").expect("all of it");
        let Ok(ClientFrame::Publish(publish)) = ClientFrame::parse(frame) else { panic!("no publish") };
        let (mut rest, mut count) = (publish.records, 0);
        while let Some((record, behind)) = rest.split_first().expect("records") {
            black_box(RecordArea::record(record).expect("a record"));
            black_box(record_hash(record));
            (rest, count) = (behind, count + 1);
        }
        assert_eq!(count, publish.count);
    })
}

/// A batch of so many publishes of one record each.
pub(crate) fn encode(publishes: u64) -> Box<dyn FnMut()> {
    let (area, mut builder) = (area(1, PAYLOAD_BYTES), BatchBuilder::new());
    Box::new(move || {
        for seq in 1..=publishes {
            push(&mut builder, &area, seq);
        }
        black_box(builder.finish());
    })
}

/// All records of such a batch, as a client reads them.
pub(crate) fn read(publishes: u64) -> Box<dyn FnMut()> {
    let (area, mut builder) = (area(1, PAYLOAD_BYTES), BatchBuilder::new());
    (1..=publishes).for_each(|seq| push(&mut builder, &area, seq));
    let (_, body) = builder.finish();
    Box::new(move || {
        let batch = Batch::parse(&body).expect("a batch");
        let mut count = 0;
        for record in batch.records(Offset::ZERO) {
            black_box(record.expect("a record"));
            count += 1;
        }
        assert_eq!(count, publishes);
    })
}

/// The publish with this number, one record, behind those that the batch has.
pub(crate) fn push(builder: &mut BatchBuilder, area: &[u8], seq: u64) {
    let header = RunHeader {
        offset_delta: 0,
        step: 1,
        time_delta: 0,
        user: "",
        publisher: PublisherId([7; 16]),
        seq,
        count: 1,
        bytes: 0,
    };
    builder.push(Offset(seq), Time(1_760_000_000_000_000 + seq), 1, area, header);
}
