//! The readers of foreign bytes, each with all that must hold of what it makes of them: what the targets of `tests/fuzz`
//! call, and what the tests replay its corpus with. Not for users, and in no version's promise.

/// What one target does with an input; it panics when something does not hold.
pub type Target = fn(&[u8]);

/// All targets, by the names of their binaries and of their folders in the corpus.
pub const TARGETS: [(&str, Target); 5] =
    [("block", block), ("config", config), ("frames", frames), ("journal", journal), ("websocket", websocket)];

/// A block of a volume. Byte 0: bit 0 = make the header and checksums right, bit 1 = LZ4. Then the bytes of the body, of
/// the stored body, and the checksum (u32 each), as a directory entry has them; then the stored values.
pub fn block(bytes: &[u8]) {
    crate::storage::volume::fuzz::read(bytes);
}

/// `broker.toml`; behind each byte 0 one more variable of the environment, as `NAME=VALUE`.
pub fn config(bytes: &[u8]) {
    crate::config::fuzz::read(bytes);
}

/// Frames, one frame, the head of a stream, a batch.
pub fn frames(bytes: &[u8]) {
    crate::protocol::examine::fuzz(bytes);
}

/// Journal files. Byte 0: bit 0 = make checksums and what ties units to their file right, bits 1 and 2 = how the broker
/// stopped (unclean, unsynced, clean as told by byte 2). Byte 1: sectors of the first file, 0 = all. Byte 2: where a clean
/// stop was, the commits in its low and the sectors in its high four bits.
pub fn journal(bytes: &[u8]) {
    crate::storage::journal::fuzz::read(bytes);
}

/// What a peer sends over WebSocket. Byte 0: how many bytes come at a time.
pub fn websocket(bytes: &[u8]) {
    crate::transport::websocket::fuzz::read(bytes);
}
