//! What a payload of the load says: who sent it, which one it is, and when it should have been sent.

/// Sender, number, time.
pub(super) const PAYLOAD_BYTES_MIN: usize = 4 + 8 + 8;

/// The front of a payload; the rest is filler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    /// The publisher's index.
    pub(super) publisher: u32,
    /// Its number in the room, from 1.
    pub(super) seq: u64,
    /// Nanoseconds since the run began.
    pub(super) nanos: u64,
}

impl Stamp {
    /// Writes it over the front of a payload.
    pub(super) fn write(&self, payload: &mut [u8]) {
        payload[0..4].copy_from_slice(&self.publisher.to_le_bytes());
        payload[4..12].copy_from_slice(&self.seq.to_le_bytes());
        payload[12..20].copy_from_slice(&self.nanos.to_le_bytes());
    }

    /// Reads it from the front of a payload; `None` if that is too short to be one of ours.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        Some(Self {
            publisher: u32::from_le_bytes(*payload.first_chunk()?),
            seq: u64::from_le_bytes(*payload.get(4..)?.first_chunk()?),
            nanos: u64::from_le_bytes(*payload.get(12..)?.first_chunk()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let stamp = Stamp { publisher: 7, seq: u64::MAX, nanos: 123_456_789 };
        let mut payload = [b'x'; PAYLOAD_BYTES_MIN];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert_eq!(Stamp::read(&payload[..PAYLOAD_BYTES_MIN - 1]), None);
    }
}
