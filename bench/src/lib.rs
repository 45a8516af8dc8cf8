//! The operations that are measured in the small, each ready to be repeated: by time in `benches/micro.rs`, by
//! instructions in `src/bin/instructions.rs`.
//!
//! They go through what the library shows of itself. What a session does with a publish is private to it, so decoding
//! is measured as the session does it with what is public: the frame, the check of each record, its hash.

mod codec;
mod log;
mod past;

/// One of them.
pub struct Operation {
    /// Group and name, as `codec/decode a publish of 64`.
    pub name: &'static str,
    /// How many elements one repetition handles: records, readers or blocks, as the name says.
    pub elements: u64,
    /// Makes all that it needs; each call of what is returned is one repetition.
    pub prepare: fn() -> Box<dyn FnMut()>,
}

/// All of them, in the order of a record's path.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "codec/decode a publish of 1 record", elements: 1, prepare: || codec::decode(1) },
    Operation { name: "codec/decode a publish of 64 records", elements: 64, prepare: || codec::decode(64) },
    Operation { name: "codec/encode a batch of 64 publishes", elements: 64, prepare: || codec::encode(64) },
    Operation { name: "codec/read a batch of 64 publishes", elements: 64, prepare: || codec::read(64) },
    Operation { name: "commit/256 publishes to one room", elements: 256, prepare: || log::commit(256, 1) },
    Operation { name: "commit/256 publishes to 64 rooms", elements: 256, prepare: || log::commit(256, 64) },
    Operation { name: "tail/64 batches", elements: 64, prepare: || log::tail(64) },
    Operation { name: "wake/1 reader", elements: 1, prepare: || log::wake(1) },
    Operation { name: "wake/100 readers", elements: 100, prepare: || log::wake(100) },
    Operation { name: "merge/1024 batches into a volume", elements: 1024, prepare: || past::merge(1024) },
    Operation { name: "block read/1 block", elements: 1, prepare: past::read },
];

/// A payload of so many bytes, half of which compression takes away.
fn payload(bytes: usize, number: u64) -> Vec<u8> {
    let mut random = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut payload = Vec::with_capacity(bytes + 32);
    while payload.len() < bytes {
        for _ in 0..2 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            payload.extend_from_slice(&random.to_le_bytes());
        }
        payload.extend_from_slice(b"the same again, ");
    }
    payload.truncate(bytes);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_can_be_repeated() {
        for operation in OPERATIONS {
            let mut repeat = (operation.prepare)();
            (0..3).for_each(|_| repeat());
        }
    }
}
