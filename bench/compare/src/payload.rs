//! What a payload says: which one it is and when it was due. Text, so that every peer can carry it.

use crate::random::Random;

/// `@`, 16 hexadecimal digits of time, 8 of number.
const HEAD_BYTES: usize = 25;

/// Writes payloads of one size; only the head differs between them.
pub(crate) struct Payload {
    bytes: Vec<u8>,
}

impl Payload {
    pub(crate) fn new(bytes: usize) -> Self {
        assert!(bytes >= HEAD_BYTES, "a payload has at least {HEAD_BYTES} bytes");
        let mut payload = vec![b'x'; bytes];
        payload[0] = b'@';
        Self { bytes: payload }
    }

    /// Puts another text behind the head.
    pub(crate) fn fill(&mut self, text: &mut Text) {
        let body = &mut self.bytes[HEAD_BYTES..];
        let at = text.random.below((text.pool.len() - body.len()) as u32) as usize;
        body.copy_from_slice(&text.pool[at..at + body.len()]);
    }

    /// The payload with this number, due at this time.
    pub(crate) fn write(&mut self, seq: u32, due_ns: u64) -> &[u8] {
        self.bytes[1..9].copy_from_slice(&hex((due_ns >> 32) as u32));
        self.bytes[9..17].copy_from_slice(&hex(due_ns as u32));
        self.bytes[17..25].copy_from_slice(&hex(seq));
        &self.bytes
    }
}

/// Text about half of which compression takes away, as with what people write.
pub(crate) struct Text {
    pool: Vec<u8>,
    random: Random,
}

impl Text {
    pub(crate) fn new() -> Self {
        // Long enough that a block seldom has the same place of it twice.
        const POOL_BYTES: usize = 4 << 20;
        const WORDS: u32 = 1024;
        let mut random = Random::new(1);
        let words: Vec<Vec<u8>> = (0..WORDS)
            .map(|_| (0..2 + random.below(8)).map(|_| b'a' + random.below(26) as u8).chain([b' ']).collect())
            .collect();
        let mut pool = Vec::with_capacity(POOL_BYTES + 16);
        while pool.len() < POOL_BYTES {
            // Few words are most of any text.
            let word = (0..3).fold(WORDS, |often, _| random.below(often) + 1) - 1;
            pool.extend_from_slice(&words[word as usize]);
        }
        Self { pool, random }
    }
}

/// The number of a payload; `None` if it is none of ours.
#[inline]
pub(crate) fn seq(payload: &[u8]) -> Option<u32> {
    (payload.len() >= HEAD_BYTES && payload[0] == b'@').then(|| value(payload[17..25].try_into().expect("8 bytes")))
}

/// When a payload that has a number was due.
#[inline]
pub(crate) fn due_ns(payload: &[u8]) -> u64 {
    let part = |at: usize| u64::from(value(payload[at..at + 8].try_into().expect("8 bytes")));
    part(1) << 32 | part(9)
}

fn hex(value: u32) -> [u8; 8] {
    // One nibble to a byte, the highest first; then to digits, all eight at once.
    let mut spread = u64::from(value);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // 6 more carries a nibble above 9 into the bit that tells letters.
    let letters = ((spread + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (spread + 0x3030_3030_3030_3030 + letters * 39).to_be_bytes()
}

#[inline]
fn value(digits: [u8; 8]) -> u32 {
    let digits = u64::from_be_bytes(digits);
    // A letter has the bit 0x40, and its low nibble is 9 short.
    let letters = (digits >> 6) & 0x0101_0101_0101_0101;
    let mut nibbles = (digits & 0x0f0f_0f0f_0f0f_0f0f) + letters * 9;
    nibbles = (nibbles | nibbles >> 4) & 0x00ff_00ff_00ff_00ff;
    nibbles = (nibbles | nibbles >> 8) & 0x0000_ffff_0000_ffff;
    (nibbles | nibbles >> 16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_time_are_read_as_they_were_written() {
        let mut payload = Payload::new(HEAD_BYTES);
        for (number, time) in
            [(0, 0), (1, 9), (0x0123_4567, u64::MAX), (0x89ab_cdef, 0x1234_5678_9abc_def0), (u32::MAX, 1)]
        {
            let bytes = payload.write(number, time);
            assert_eq!((seq(bytes), due_ns(bytes)), (Some(number), time));
            assert_eq!(bytes, format!("@{time:016x}{number:08x}").as_bytes());
        }
        assert_eq!(seq(b"@0000"), None);
        assert_eq!(seq(&[b'x'; 128]), None);
    }
}
