//! Whatever a store gives for a block: it is refused, or is exactly what the directory describes.

use super::block::{BODY_BYTES_CEILING, BlockEncoder, PART_BYTES_MAX, mend, read_block};
use super::{BlockEntry, VolumeId};
use crate::protocol::examine::walk;
use crate::storage::Compression;
use crate::storage::block_store::{BlockKey, BlockReader, BlockStore as _, MemoryBlockStore, VALUE_BYTES_MAX};
use crate::types::{Offset, Time};

const ID: VolumeId = VolumeId(1);
const ROOM: u64 = 5;
const FIRST: Offset = Offset(9);

fn entry(body_bytes: u32, stored_bytes: u32, crc: u32) -> BlockEntry {
    BlockEntry {
        room: ROOM,
        first: FIRST,
        last: FIRST,
        prev: Offset::ZERO,
        first_time: Time(1),
        last_time: Time(1),
        records: 1,
        body_bytes,
        stored_bytes,
        crc,
    }
}

/// See [`crate::fuzzing::block`].
pub(crate) fn read(bytes: &[u8]) {
    let Some((&[flags, ref fields @ ..], values)) = bytes.split_first_chunk::<13>() else { return };
    let field = |at: usize| u32::from_le_bytes(fields[at..at + 4].try_into().expect("four bytes"));
    let mut entry = entry(field(0), field(4), field(8));
    let mut values: Vec<Vec<u8>> = values.chunks(VALUE_BYTES_MAX).map(<[u8]>::to_vec).collect();
    if flags & 1 == 1 {
        mend(&mut entry, &mut values, flags & 2 == 2);
    }
    let Ok(body) = read_block(ID, &*store(&values), &entry) else { return };
    assert_eq!((body.len(), crc32fast::hash(&body)), (entry.body_bytes as usize, entry.crc), "another body");
    assert!(body.len() <= BODY_BYTES_CEILING, "a body of {} bytes", body.len());
    walk(&body);
    // What can be read can be written, and is read again.
    for compression in [Compression::Lz4, Compression::None] {
        let memory = MemoryBlockStore::new();
        let mut writer = memory.create(&ID.blocks_path()).expect("it is new");
        let stored = BlockEncoder::new(compression).put(&mut *writer, ROOM, FIRST, &body).expect("memory is patient");
        writer.finish().expect("memory is patient");
        assert!(stored.bytes.div_ceil(PART_BYTES_MAX as u32) <= entry.body_bytes.div_ceil(PART_BYTES_MAX as u32));
        let again = self::entry(entry.body_bytes, stored.bytes, stored.crc);
        let reader = memory.open(&ID.blocks_path()).expect("it is finished");
        assert_eq!(read_block(ID, &*reader, &again).expect("it was just written"), body);
    }
}

fn store(values: &[Vec<u8>]) -> std::sync::Arc<dyn BlockReader> {
    let memory = MemoryBlockStore::new();
    let mut writer = memory.create(&ID.blocks_path()).expect("it is new");
    for (part, value) in (0..).zip(values) {
        writer.put(BlockKey { room: ROOM, first: FIRST.0, part }, value).expect("memory is patient");
    }
    writer.finish().expect("memory is patient");
    memory.open(&ID.blocks_path()).expect("it is finished")
}
