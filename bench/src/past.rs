//! The past: batches into a volume, and a block out of it. In memory: sled and the disk are measured by `--bin volumes`.

use std::sync::Arc;

use roomlog::protocol::BatchBuilder;
use roomlog::storage::Compression;
use roomlog::storage::block_store::{BlockStore, MemoryBlockStore};
use roomlog::storage::disk::{Disk, MemoryDisk};
use roomlog::storage::volume::{Input, VolumeId, VolumeLimits, Volumes, build};
use roomlog::types::Offset;

use crate::codec;

const PAYLOAD_BYTES: usize = 128;
const ROOMS: u64 = 16;
const DISK_BYTES: u64 = 1 << 30;

/// Batches of one record each over some rooms, in the order that a volume wants.
fn inputs(batches: u64) -> Vec<Input> {
    let mut builder = BatchBuilder::new();
    let mut inputs = Vec::new();
    for room in 1..=ROOMS {
        for seq in 1..=batches / ROOMS {
            let mut area = Vec::new();
            let payload = crate::payload(PAYLOAD_BYTES, room << 32 | seq);
            roomlog::protocol::RecordArea::push(&mut area, &roomlog::types::NewRecord::new(&payload));
            codec::push(&mut builder, &area, seq);
            inputs.push(Input { room, prev: Offset(seq - 1), body: builder.finish().1 });
        }
    }
    inputs
}

fn volume(inputs: &[Input]) -> (Arc<dyn Disk>, Arc<dyn BlockStore>) {
    let (disk, store) = (Arc::new(MemoryDisk::new(DISK_BYTES)), Arc::new(MemoryBlockStore::new()));
    let input = inputs.iter().cloned().map(Ok);
    let info = build(&*disk, &*store, VolumeId(1), (1, 1), Compression::Lz4, input, |_| Offset::ZERO);
    assert!(matches!(info, Ok(Some(_))));
    (disk, store)
}

/// Merged, compressed, written, and verified by reading again.
pub(crate) fn merge(batches: u64) -> Box<dyn FnMut()> {
    let inputs = inputs(batches);
    Box::new(move || drop(volume(&inputs)))
}

/// Found, read, its checksum verified, decompressed: nothing of it is in the cache.
pub(crate) fn read() -> Box<dyn FnMut()> {
    // Some blocks for each room.
    let (disk, store) = volume(&inputs(ROOMS * 1024));
    let mut limits = VolumeLimits::default();
    limits.cache_bytes_max = 0;
    let volumes = Volumes::new(disk, store, limits);
    volumes.swap(&[VolumeId(1)], &[]).expect("the volume opens");
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        let block = volumes.read_after(turn % ROOMS + 1, Offset(300)).expect("it can be read");
        assert!(block.is_some_and(|block| block.body.len() > 16 << 10));
    })
}
