//! What a room remembers of its publishers, so that a repeat is not a second record.
//!
//! For each of the newest publishers the newest seqs are kept, each with the CRC32 of its record and its offset:
//! 8 bytes a seq. Outside of that the room refuses rather than risk storing twice.

use std::collections::VecDeque;
use std::sync::Arc;

use bincode::{BorrowDecode, Encode};
use hashbrown::{Equivalent, HashMap};

use crate::protocol::{WireError, decode_head, encode_into};
use crate::types::{Code, Offset, PublisherId, Refused, Time};

/// How much is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    /// The newest seqs of a publisher.
    pub(crate) seqs: usize,
    /// The newest publishers of a room.
    pub(crate) publishers: usize,
    /// How long a publisher is remembered, in microseconds.
    pub(crate) age_us: u64,
}

/// The publishers of one room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publishers {
    windows: HashMap<Key, Window>,
}

/// Whose window it is: a publisher of another user is another one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    user: Arc<str>,
    publisher: PublisherId,
}

/// A [`Key`] to look with; hashed as one.
#[derive(Clone, Copy, Hash)]
struct KeyRef<'a> {
    user: &'a str,
    publisher: PublisherId,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.publisher == key.publisher && *self.user == *key.user
    }
}

#[derive(Clone, Debug)]
struct Window {
    /// The newest seq.
    seq: u64,
    /// The newest record's time.
    time: Time,
    /// What the offsets of `newest` are counted from.
    base: Offset,
    /// The newest seqs, up to `seq`.
    newest: VecDeque<Seen>,
}

#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
struct Seen {
    hash: u32,
    delta: u32,
}

/// What to do with a publish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Its records are the next of its publisher.
    New,
    /// Its records have been stored before.
    Duplicate {
        /// The first record's offset.
        first: Offset,
        /// The last record's offset.
        last: Offset,
    },
    /// It can be neither.
    Refused(Refused),
}

#[derive(Encode, BorrowDecode)]
struct Stored<'a> {
    user: &'a str,
    publisher: PublisherId,
    seq: u64,
    time: Time,
    base: Offset,
    newest: u32,
}

impl Publishers {
    /// How many publishers are remembered.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.windows.len()
    }

    /// What to do with records of these hashes, the first of which is `seq`.
    pub(crate) fn judge(&self, user: &Arc<str>, publisher: PublisherId, seq: u64, hashes: &[u32]) -> Verdict {
        let refuse = |code, message: String| Verdict::Refused(Refused::new(code, message));
        let Some(window) = self.windows.get(&KeyRef { user, publisher }) else {
            if seq == 1 {
                return Verdict::New;
            }
            return refuse(
                Code::PublisherForgotten,
                format!("seq {seq} of a publisher that this room does not know; a publisher begins with seq 1"),
            );
        };
        let next = window.seq + 1;
        if seq == next {
            return Verdict::New;
        }
        if seq > next {
            return refuse(Code::OutOfOrder, format!("seq {seq}, the next one is {next}"));
        }
        let oldest = next - window.newest.len() as u64;
        if seq < oldest {
            return refuse(Code::TooOld, format!("seq {seq}, the oldest that is remembered is {oldest}"));
        }
        let at = usize::try_from(seq - oldest).expect("within the window");
        let known = window.newest.range(at..).take(hashes.len());
        if known.len() < hashes.len() {
            return refuse(
                Code::PublisherConflict,
                format!("seqs {seq} to {}, of which those from {next} on are new", seq + hashes.len() as u64 - 1),
            );
        }
        if let Some((index, _)) = known.clone().zip(hashes).enumerate().find(|(_, (seen, hash))| seen.hash != **hash) {
            return refuse(Code::PublisherConflict, format!("seq {} was another record", seq + index as u64));
        }
        let offset = |seen: &Seen| Offset(window.base.0 + u64::from(seen.delta));
        let first = known.clone().next().map(offset).unwrap_or_default();
        let last = known.clone().next_back().map(offset).unwrap_or_default();
        Verdict::Duplicate { first, last }
    }

    /// Remembers records that have been given offsets; those that it knows already are left as they are.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn note(
        &mut self,
        memory: Memory,
        user: &Arc<str>,
        publisher: PublisherId,
        seq: u64,
        hashes: &[u32],
        first: Offset,
        step: u64,
        time: Time,
    ) {
        let window = match self.windows.get_mut(&KeyRef { user, publisher }) {
            Some(window) => window,
            None => self.windows.entry(Key { user: Arc::clone(user), publisher }).or_insert_with(|| Window {
                seq: seq - 1,
                time,
                base: first,
                newest: VecDeque::new(),
            }),
        };
        let known = usize::try_from((window.seq + 1).saturating_sub(seq)).unwrap_or(usize::MAX);
        window.time = window.time.max(time);
        for (index, hash) in hashes.iter().enumerate().skip(known) {
            let offset = first.0 + index as u64 * step;
            if u32::try_from(offset - window.base.0).is_err() {
                window.rebase(offset);
            }
            let delta = u32::try_from(offset - window.base.0).expect("the base was just moved");
            window.newest.push_back(Seen { hash: *hash, delta });
        }
        window.seq = window.seq.max(seq + hashes.len() as u64 - 1);
        // In strides, so that a long run of records is not moved one by one.
        if window.newest.len() > memory.seqs + memory.seqs / 4 {
            window.newest.drain(..window.newest.len() - memory.seqs);
        }
        if self.windows.len() > memory.publishers + memory.publishers / 8 {
            self.forget(memory);
        }
    }

    /// Forgets the publishers beyond the newest, and those that have been silent for too long.
    fn forget(&mut self, memory: Memory) {
        let mut times: Vec<_> = self.windows.values().map(|window| window.time).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = times.get(memory.publishers.saturating_sub(1)).copied().unwrap_or_default();
        self.windows.retain(|_, window| window.time >= oldest);
        // Many may share one moment; which of those go does not matter, but that there is space for more does: each
        // look costs as much as there are.
        let mut excess = self.windows.len().saturating_sub(memory.publishers);
        if excess > 0 {
            self.windows.retain(|_, window| {
                let goes = excess > 0 && window.time == oldest;
                excess -= usize::from(goes);
                !goes
            });
        }
    }

    /// Forgets the publishers that have been silent for too long.
    pub(crate) fn expire(&mut self, memory: Memory, now: Time) {
        self.windows.retain(|_, window| now.0.saturating_sub(window.time.0) <= memory.age_us);
    }

    /// Appends all that is remembered, for the checkpoint.
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        let count = u32::try_from(self.windows.len()).expect("the number of publishers is bounded");
        encode_into(out, &count);
        for (Key { user, publisher }, window) in &self.windows {
            let &Window { seq, time, base, ref newest } = window;
            let newest_len = u32::try_from(newest.len()).expect("a window is bounded");
            encode_into(out, &Stored { user, publisher: *publisher, seq, time, base, newest: newest_len });
            newest.iter().for_each(|seen| encode_into(out, seen));
        }
    }

    /// Reads what [`Publishers::encode_into`] wrote; returns what follows it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (count, mut rest) = decode_head::<u32>("a number of publishers", bytes)?;
        let mut windows = HashMap::new();
        for _ in 0..count {
            let (stored, behind) = decode_head::<Stored<'_>>("a publisher", rest)?;
            rest = behind;
            let mut newest = VecDeque::new();
            for _ in 0..stored.newest {
                let (seen, behind) = decode_head::<Seen>("a publisher's seq", rest)?;
                rest = behind;
                newest.push_back(seen);
            }
            let Stored { user, publisher, seq, time, base, .. } = stored;
            if newest.len() as u64 > seq {
                return Err(WireError::invalid("a publisher", "it remembers more seqs than there were"));
            }
            windows.insert(Key { user: Arc::from(user), publisher }, Window { seq, time, base, newest });
        }
        Ok((Self { windows }, rest))
    }
}

impl Window {
    /// Makes `offset` countable from the base, by forgetting what is too far from it.
    fn rebase(&mut self, offset: u64) {
        let base = offset - u64::from(u32::MAX / 2);
        let old = self.base.0;
        self.newest.retain(|seen| old + u64::from(seen.delta) >= base);
        for seen in &mut self.newest {
            seen.delta = u32::try_from(old + u64::from(seen.delta) - base).expect("within half of the range");
        }
        self.base = Offset(base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Memory = Memory { seqs: 8, publishers: 16, age_us: 1000 };

    fn publisher(number: u8) -> PublisherId {
        PublisherId([number; 16])
    }

    fn nobody() -> Arc<str> {
        Arc::from("")
    }

    fn note(publishers: &mut Publishers, number: u8, seq: u64, hashes: &[u32], first: u64, time: u64) {
        publishers.note(MEMORY, &nobody(), publisher(number), seq, hashes, Offset(first), 1, Time(time));
    }

    fn code(verdict: Verdict) -> Option<Code> {
        match verdict {
            Verdict::Refused(refused) => Some(refused.code),
            _ => None,
        }
    }

    #[test]
    fn a_repeat_gets_the_original_offsets_and_a_hole_is_refused() {
        let mut publishers = Publishers::default();
        assert_eq!(publishers.judge(&nobody(), publisher(1), 1, &[7]), Verdict::New);
        note(&mut publishers, 1, 1, &[7, 8, 9], 100, 1);
        let repeat = publishers.judge(&nobody(), publisher(1), 1, &[7, 8, 9]);
        assert_eq!(repeat, Verdict::Duplicate { first: Offset(100), last: Offset(102) });
        let one = publishers.judge(&nobody(), publisher(1), 2, &[8]);
        assert_eq!(one, Verdict::Duplicate { first: Offset(101), last: Offset(101) });
        assert_eq!(publishers.judge(&nobody(), publisher(1), 4, &[1]), Verdict::New);
        assert_eq!(code(publishers.judge(&nobody(), publisher(1), 5, &[1])), Some(Code::OutOfOrder));
        assert_eq!(code(publishers.judge(&nobody(), publisher(2), 2, &[1])), Some(Code::PublisherForgotten));
    }

    #[test]
    fn another_payload_or_a_partial_repeat_is_a_conflict() {
        let mut publishers = Publishers::default();
        note(&mut publishers, 1, 1, &[7, 8], 100, 1);
        assert_eq!(code(publishers.judge(&nobody(), publisher(1), 2, &[9])), Some(Code::PublisherConflict));
        assert_eq!(code(publishers.judge(&nobody(), publisher(1), 2, &[8, 9])), Some(Code::PublisherConflict));
    }

    #[test]
    fn the_same_publisher_of_another_user_is_another_publisher() {
        let mut publishers = Publishers::default();
        note(&mut publishers, 1, 1, &[7], 100, 1);
        assert_eq!(publishers.judge(&Arc::from("ada"), publisher(1), 1, &[9]), Verdict::New);
    }

    #[test]
    fn the_newest_seqs_are_remembered_and_older_ones_refused() {
        let mut publishers = Publishers::default();
        for seq in 1..=100 {
            note(&mut publishers, 1, seq, &[u32::try_from(seq).expect("small")], seq * 10, seq);
        }
        for seq in 93..=100 {
            let verdict = publishers.judge(&nobody(), publisher(1), seq, &[u32::try_from(seq).expect("small")]);
            assert_eq!(verdict, Verdict::Duplicate { first: Offset(seq * 10), last: Offset(seq * 10) });
        }
        assert_eq!(code(publishers.judge(&nobody(), publisher(1), 80, &[80])), Some(Code::TooOld));
    }

    #[test]
    fn the_newest_publishers_are_remembered_and_their_number_is_bounded() {
        let mut publishers = Publishers::default();
        for number in 0..=200 {
            note(&mut publishers, number, 1, &[1], 1 + u64::from(number), u64::from(number));
            assert!(publishers.len() <= MEMORY.publishers + MEMORY.publishers / 8);
        }
        for number in 201 - 16..=200 {
            let verdict = publishers.judge(&nobody(), publisher(number), 1, &[1]);
            assert!(matches!(verdict, Verdict::Duplicate { .. }), "publisher {number}: {verdict:?}");
        }
        publishers.expire(MEMORY, Time(1150));
        assert_eq!(code(publishers.judge(&nobody(), publisher(200), 2, &[1])), None);
        assert_eq!(code(publishers.judge(&nobody(), publisher(140), 2, &[1])), Some(Code::PublisherForgotten));
    }

    #[test]
    fn many_publishers_of_one_moment_are_bounded_too() {
        let mut publishers = Publishers::default();
        for number in 0..=200 {
            note(&mut publishers, number, 1, &[1], 1 + u64::from(number), 5);
            assert!(publishers.len() <= MEMORY.publishers + MEMORY.publishers / 8 + 1);
        }
    }

    #[test]
    fn offsets_far_apart_are_told_exactly() {
        let mut publishers = Publishers::default();
        note(&mut publishers, 1, 1, &[1], 10, 1);
        note(&mut publishers, 1, 2, &[2], 1 << 40, 1);
        let far = publishers.judge(&nobody(), publisher(1), 2, &[2]);
        assert_eq!(far, Verdict::Duplicate { first: Offset(1 << 40), last: Offset(1 << 40) });
        assert_eq!(code(publishers.judge(&nobody(), publisher(1), 1, &[1])), Some(Code::TooOld));
    }

    #[test]
    fn what_is_remembered_survives_the_checkpoint() {
        let mut publishers = Publishers::default();
        note(&mut publishers, 1, 1, &[7, 8, 9], 100, 1);
        note(&mut publishers, 2, 1, &[3], 103, 2);
        let mut bytes = Vec::new();
        publishers.encode_into(&mut bytes);
        let (again, rest) = Publishers::decode(&bytes).expect("it was written just now");
        assert!(rest.is_empty());
        let repeat = again.judge(&nobody(), publisher(1), 2, &[8, 9]);
        assert_eq!(repeat, Verdict::Duplicate { first: Offset(101), last: Offset(102) });
        assert_eq!(again.judge(&nobody(), publisher(2), 2, &[8]), Verdict::New);
    }

    #[test]
    fn replaying_what_the_checkpoint_has_seen_changes_nothing() {
        let mut publishers = Publishers::default();
        note(&mut publishers, 1, 1, &[7, 8, 9], 100, 1);
        note(&mut publishers, 1, 2, &[8, 9, 10], 101, 1);
        let all = publishers.judge(&nobody(), publisher(1), 1, &[7, 8, 9, 10]);
        assert_eq!(all, Verdict::Duplicate { first: Offset(100), last: Offset(103) });
    }
}
