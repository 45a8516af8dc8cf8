//! A block as values of the block store: compressed, in parts of at most 32 KiB, each with a header of its own.
//!
//! ```text
//! 0   u8   format, 1
//! 1   u8   codec: 0 as it is, 1 LZ4 block
//! 2   u16  number of this part, from 0
//! 4   u16  number of parts, at least 1
//! 6   u16  0
//! 8   u32  bytes of the body
//! 12  u32  bytes of the body as stored, all parts together, without headers
//! 16  u32  CRC32 of the body
//! 20  u32  CRC32 of room, first offset and part (u64, u64, u16), bytes 0 to 20 of this header, and what follows
//! 24       this part of the stored body
//! ```
//!
//! All little-endian. The second checksum ties the bytes to their key, so that a value which the store returns for
//! another key is found too; the first one checks what decompression made of them.

use bytes::Bytes;

use crate::storage::Compression;
use crate::storage::block_store::{BlockKey, BlockReader, BlockWriter, VALUE_BYTES_MAX};
use crate::types::{Limits, Offset};

use super::directory::BlockEntry;
use super::{VolumeError, VolumeId, place};

const FORMAT: u8 = 1;
const CODEC_NONE: u8 = 0;
const CODEC_LZ4: u8 = 1;
const HEADER_BYTES: usize = 24;

/// How much of a stored body goes into one value.
pub(super) const PART_BYTES_MAX: usize = VALUE_BYTES_MAX - HEADER_BYTES;

/// No body is longer: a batch that holds one record of the greatest length.
pub(super) const BODY_BYTES_CEILING: usize = Limits::CEILINGS.frame_bytes;

/// What a stored block came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    /// Bytes of the body as stored.
    pub(super) bytes: u32,
    /// CRC32 of the body.
    pub(super) crc: u32,
}

/// Writes blocks; keeps its buffers from one to the next.
pub(super) struct BlockEncoder {
    compression: Compression,
    compressed: Vec<u8>,
    value: Vec<u8>,
}

impl BlockEncoder {
    pub(super) fn new(compression: Compression) -> Self {
        Self { compression, compressed: Vec::new(), value: Vec::new() }
    }

    /// Stores a body under its key.
    pub(super) fn put(
        &mut self,
        store: &mut dyn BlockWriter,
        room: u64,
        first: Offset,
        body: &[u8],
    ) -> Result<Stored, VolumeError> {
        let crc = crc32fast::hash(body);
        let (codec, compressed) = self.compress(body);
        let stored = if codec == CODEC_LZ4 { &self.compressed[..compressed] } else { body };
        let parts = stored.len().div_ceil(PART_BYTES_MAX);
        for (part, bytes) in stored.chunks(PART_BYTES_MAX).enumerate() {
            let key = BlockKey { room, first: first.0, part: narrow(part) };
            self.value.clear();
            self.value.extend_from_slice(&[FORMAT, codec]);
            self.value.extend_from_slice(&key.part.to_le_bytes());
            self.value.extend_from_slice(&narrow(parts).to_le_bytes());
            self.value.extend_from_slice(&[0; 2]);
            self.value.extend_from_slice(&length(body).to_le_bytes());
            self.value.extend_from_slice(&length(stored).to_le_bytes());
            self.value.extend_from_slice(&crc.to_le_bytes());
            let value_crc = value_crc(key, &self.value, bytes);
            self.value.extend_from_slice(&value_crc.to_le_bytes());
            self.value.extend_from_slice(bytes);
            store.put(key, &self.value)?;
        }
        Ok(Stored { bytes: length(stored), crc })
    }

    /// Compresses into the buffer; says how, and to how many bytes.
    fn compress(&mut self, body: &[u8]) -> (u8, usize) {
        if self.compression == Compression::None {
            return (CODEC_NONE, body.len());
        }
        let bound = lz4_flex::block::get_maximum_output_size(body.len());
        if self.compressed.len() < bound {
            self.compressed.resize(bound, 0);
        }
        // What saves less than a sixteenth is not worth decompressing at every read.
        match lz4_flex::block::compress_into(body, &mut self.compressed) {
            Ok(bytes) if bytes < body.len() - body.len() / 16 => (CODEC_LZ4, bytes),
            _ => (CODEC_NONE, body.len()),
        }
    }
}

/// Reads the block of an entry, and verifies all that can be verified without decoding its records.
pub(super) fn read_block(id: VolumeId, store: &dyn BlockReader, entry: &BlockEntry) -> Result<Bytes, VolumeError> {
    let damaged = |what: &str| VolumeError::damaged(&id.blocks_path(), place(entry.room, entry.first), what);
    let (body_bytes, stored_bytes) = (entry.body_bytes as usize, entry.stored_bytes as usize);
    if body_bytes == 0 || body_bytes > BODY_BYTES_CEILING || stored_bytes == 0 || stored_bytes > body_bytes {
        return Err(damaged("its entry in the directory has impossible lengths"));
    }
    let parts = stored_bytes.div_ceil(PART_BYTES_MAX);
    let mut joined = Vec::new();
    let mut codec = CODEC_NONE;
    for part in 0..parts {
        let key = BlockKey { room: entry.room, first: entry.first.0, part: narrow(part) };
        let value = store.get(key)?.ok_or_else(|| damaged("the block is missing"))?;
        let Some((header, bytes)) = value.split_at_checked(HEADER_BYTES) else {
            return Err(damaged("the block is shorter than its header"));
        };
        let (fields, crc) = header.split_at(HEADER_BYTES - 4);
        if crc != value_crc(key, fields, bytes).to_le_bytes() {
            return Err(damaged("the checksum of the stored block is wrong"));
        }
        let mut expected = [0; HEADER_BYTES - 4];
        expected[0] = FORMAT;
        expected[1] = fields[1];
        expected[2..4].copy_from_slice(&narrow(part).to_le_bytes());
        expected[4..6].copy_from_slice(&narrow(parts).to_le_bytes());
        expected[8..12].copy_from_slice(&entry.body_bytes.to_le_bytes());
        expected[12..16].copy_from_slice(&entry.stored_bytes.to_le_bytes());
        expected[16..20].copy_from_slice(&entry.crc.to_le_bytes());
        if fields != expected || fields[1] > CODEC_LZ4 || (part > 0 && fields[1] != codec) {
            return Err(damaged("the block is not the one that the directory describes"));
        }
        codec = fields[1];
        if parts == 1 {
            return decode(codec, bytes, body_bytes, entry.crc).map_err(damaged);
        }
        joined.extend_from_slice(bytes);
    }
    decode(codec, &joined, body_bytes, entry.crc).map_err(damaged)
}

fn decode(codec: u8, stored: &[u8], body_bytes: usize, crc: u32) -> Result<Bytes, &'static str> {
    let body = if codec == CODEC_LZ4 {
        let mut body = vec![0; body_bytes];
        if !lz4_flex::block::decompress_into(stored, &mut body).is_ok_and(|bytes| bytes == body_bytes) {
            return Err("the block does not decompress");
        }
        body
    } else {
        stored.to_vec()
    };
    if body.len() != body_bytes || crc32fast::hash(&body) != crc {
        return Err("the checksum of the body is wrong");
    }
    Ok(Bytes::from(body))
}

fn value_crc(key: BlockKey, fields: &[u8], bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&key.room.to_le_bytes());
    crc.update(&key.first.to_le_bytes());
    crc.update(&key.part.to_le_bytes());
    crc.update(fields);
    crc.update(bytes);
    crc.finalize()
}

/// Makes an entry, headers and checksums fit stored values, so that what lies behind those checks is reached.
#[cfg(feature = "fuzzing")]
pub(super) fn mend(entry: &mut BlockEntry, values: &mut [Vec<u8>], compressed: bool) {
    if values.iter().any(|value| value.len() < HEADER_BYTES) {
        return;
    }
    let joined: Vec<u8> = values.iter().flat_map(|value| &value[HEADER_BYTES..]).copied().collect();
    entry.stored_bytes = length(&joined);
    let mut body = vec![0; (entry.body_bytes as usize).min(BODY_BYTES_CEILING)];
    if !compressed {
        body.clone_from(&joined);
    } else if let Ok(bytes) = lz4_flex::block::decompress_into(&joined, &mut body) {
        body.truncate(bytes);
    }
    (entry.body_bytes, entry.crc) = (length(&body), crc32fast::hash(&body));
    let parts = narrow(values.len());
    for (part, value) in (0..).zip(values) {
        value[..2].copy_from_slice(&[FORMAT, if compressed { CODEC_LZ4 } else { CODEC_NONE }]);
        value[2..4].copy_from_slice(&u16::to_le_bytes(part));
        value[4..6].copy_from_slice(&parts.to_le_bytes());
        value[6..8].fill(0);
        value[8..12].copy_from_slice(&entry.body_bytes.to_le_bytes());
        value[12..16].copy_from_slice(&entry.stored_bytes.to_le_bytes());
        value[16..20].copy_from_slice(&entry.crc.to_le_bytes());
        let key = BlockKey { room: entry.room, first: entry.first.0, part };
        let crc = value_crc(key, &value[..20], &value[HEADER_BYTES..]);
        value[20..24].copy_from_slice(&crc.to_le_bytes());
    }
}

fn narrow(part: usize) -> u16 {
    u16::try_from(part).expect("the ceiling of a body is far below 65,536 parts")
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("the ceiling of a body is far below 4 GiB")
}
