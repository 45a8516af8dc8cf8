//! The commit: everything that becomes durable together, as ONE checksummed unit of the journal.
//!
//! A unit is a fixed header and a list of tagged entries: rooms that came into being, floors that rose, and the
//! batches of all rooms. It is padded with zeros to a sector, so that no commit rewrites bytes of another one.
//! `docs/storage.md` has it byte by byte.

use std::fmt;

use bincode::{Decode, Encode};

use crate::protocol::{WireError, decode_head, encode_into};
use crate::types::{Offset, RoomName, Time};

/// What a medium is assumed to write whole or not at all, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// The longest unit, in bytes: a commit that would be longer is two.
pub const UNIT_BYTES_MAX: usize = 32 << 20;

/// Room for the fields of one entry beside its name or body, in bytes; no entry has more.
const ENTRY_BYTES_MAX: usize = 64;

const HEADER_BYTES: usize = 48;
const MAGIC: [u8; 4] = *b"RLcu";

const TAG_ROOM: u8 = 1;
const TAG_FLOOR: u8 = 2;
const TAG_BATCH: u8 = 3;

/// The number of a commit: from 1, rising by 1 for the life of the data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Encode, Decode)]
pub struct CommitSeq(pub u64);

impl CommitSeq {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for CommitSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The number of a journal file: from 1, rising by 1. A recycled file gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Encode, Decode)]
pub struct JournalFileId(pub u64);

impl JournalFileId {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for JournalFileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Where a body stands within its unit, and its own checksum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BodySpan {
    /// Bytes from the start of the unit.
    pub at: u32,
    /// The body's length in bytes.
    pub bytes: u32,
    /// CRC-32 of the body alone.
    pub crc: u32,
}

/// Where a unit stands in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct UnitPlace {
    /// The journal file.
    pub file: JournalFileId,
    /// Bytes from the start of the file; a multiple of [`SECTOR_BYTES`].
    pub at: u64,
    /// The unit's length in bytes, with its padding.
    pub bytes: u32,
}

impl UnitPlace {
    /// The place of a body of this unit.
    #[must_use]
    pub fn body(&self, span: BodySpan) -> BodyPlace {
        BodyPlace { file: self.file, at: self.at + u64::from(span.at), bytes: span.bytes, crc: span.crc }
    }
}

/// Where one batch's body stands in the journal: all that is needed to read it and to know that it is that one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BodyPlace {
    /// The journal file.
    pub file: JournalFileId,
    /// Bytes from the start of the file.
    pub at: u64,
    /// The body's length in bytes.
    pub bytes: u32,
    /// CRC-32 of the body.
    pub crc: u32,
}

/// A risen floor of a room: what retention removes at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Floor {
    /// The newest offset that goes.
    pub floor: Offset,
    /// The oldest that stays; [`Offset::ZERO`] if nothing stayed when the floor was chosen.
    pub first: Offset,
    /// Its time.
    pub first_time: Time,
    /// How many records go.
    pub records: u64,
    /// Their bytes, as they are encoded.
    pub bytes: u64,
}

/// Writes a unit, entry by entry. Keeps its buffer from one commit to the next.
#[derive(Debug)]
pub struct CommitBuilder {
    /// The header, still without what the journal knows, and the entries.
    unit: Vec<u8>,
}

impl Default for CommitBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl CommitBuilder {
    /// A builder without entries, at time 0.
    #[must_use]
    pub fn new() -> Self {
        Self { unit: vec![0; HEADER_BYTES] }
    }

    /// Drops the entries there are and begins a commit that is made at this time.
    pub fn begin(&mut self, time: Time) {
        self.unit.clear();
        self.unit.resize(HEADER_BYTES, 0);
        self.unit[40..48].copy_from_slice(&time.0.to_le_bytes());
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unit.len() == HEADER_BYTES
    }

    /// How many bytes the commit will take in the journal, with its padding.
    #[must_use]
    pub fn unit_bytes(&self) -> usize {
        self.unit.len().next_multiple_of(SECTOR_BYTES)
    }

    /// Whether an entry with a name or a body of so many bytes still fits below [`UNIT_BYTES_MAX`].
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.unit.len().saturating_add(ENTRY_BYTES_MAX).saturating_add(bytes) <= UNIT_BYTES_MAX
    }

    /// Adds a room that comes into being; it stands before the room's first batch.
    pub fn room(&mut self, room: u64, name: &RoomName) {
        self.unit.push(TAG_ROOM);
        encode_into(&mut self.unit, &(room, name.as_str()));
    }

    /// Adds a risen floor.
    pub fn floor(&mut self, room: u64, floor: &Floor) {
        self.unit.push(TAG_FLOOR);
        encode_into(&mut self.unit, &(room, floor));
    }

    /// Adds a batch; `prev` is the offset of the room's record before it. Tells where the body stands.
    ///
    /// # Panics
    /// When it does not fit (see [`CommitBuilder::has_room`]): a bug of the caller.
    pub fn batch(&mut self, room: u64, prev: Offset, body: &[u8]) -> BodySpan {
        assert!(self.has_room(body.len()), "the caller asks has_room before it adds a batch");
        let crc = crc32fast::hash(body);
        let bytes = u32::try_from(body.len()).expect("below the unit's limit");
        self.unit.push(TAG_BATCH);
        encode_into(&mut self.unit, &(room, prev, crc, bytes));
        let at = u32::try_from(self.unit.len()).expect("below the unit's limit");
        self.unit.extend_from_slice(body);
        BodySpan { at, bytes, crc }
    }

    /// Fills in the header and the padding; gives the bytes to be written.
    pub(crate) fn seal(&mut self, seq: CommitSeq, file: JournalFileId, salt: u64) -> &[u8] {
        let length = self.unit.len();
        assert!(length <= UNIT_BYTES_MAX, "the caller asks has_room before it adds an entry");
        let header = &mut self.unit[..HEADER_BYTES];
        header[0..4].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&u32::try_from(length).expect("below the unit's limit").to_le_bytes());
        header[12..16].fill(0);
        header[16..24].copy_from_slice(&seq.0.to_le_bytes());
        header[24..32].copy_from_slice(&file.0.to_le_bytes());
        header[32..40].copy_from_slice(&salt.to_le_bytes());
        let crc = crc32fast::hash(&self.unit[8..]);
        self.unit[4..8].copy_from_slice(&crc.to_le_bytes());
        self.unit.resize(length.next_multiple_of(SECTOR_BYTES), 0);
        &self.unit
    }

    /// The time of a sealed unit.
    pub(crate) fn time_of(unit: &[u8]) -> Time {
        Time(u64_at(unit, 40))
    }

    /// Takes the padding away again, so that a refused write can be tried once more.
    pub(crate) fn unseal(&mut self) {
        let length = u32_at(&self.unit, 8) as usize;
        self.unit.truncate(length);
    }
}

/// What the first sector at a place says of a unit, before its checksum is known to be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnitHeader {
    /// The length in bytes, without padding.
    pub(crate) bytes: u32,
    /// The number it claims.
    pub(crate) seq: CommitSeq,
}

impl UnitHeader {
    /// The header in a sector, if it was written as part of this file: stale units of a recycled file, and
    /// whatever a client may have put into a payload, do not know the file's salt.
    pub(crate) fn of_file(sector: &[u8], file: JournalFileId, salt: u64) -> Option<Self> {
        (sector.len() >= HEADER_BYTES
            && sector[0..4] == MAGIC
            && u64_at(sector, 24) == file.0
            && u64_at(sector, 32) == salt)
            .then(|| Self { bytes: u32_at(sector, 8), seq: CommitSeq(u64_at(sector, 16)) })
    }

    /// The length with its padding, in bytes; `None` if no unit is so short or so long.
    pub(crate) fn padded_bytes(&self) -> Option<u32> {
        let possible = (HEADER_BYTES..=UNIT_BYTES_MAX).contains(&(self.bytes as usize));
        possible.then(|| self.bytes.next_multiple_of(SECTOR_BYTES as u32))
    }
}

/// Whether a unit, without its padding, is as it was sealed.
pub(crate) fn is_whole(unit: &[u8]) -> bool {
    unit.len() >= HEADER_BYTES && u32_at(unit, 4) == crc32fast::hash(&unit[8..]) && u32_at(unit, 12) == 0
}

/// A commit as it was found in the journal, whole and checked as far as its entries' own fields.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// Its number.
    pub seq: CommitSeq,
    /// When it was made, by the server's clock.
    pub time: Time,
    /// Where it stands.
    pub place: UnitPlace,
    unit: &'a [u8],
}

impl<'a> Commit<'a> {
    /// Reads a unit without its padding whose checksum is right.
    pub(crate) fn parse(unit: &'a [u8], place: UnitPlace) -> Result<Self, WireError> {
        let commit = Self { seq: CommitSeq(u64_at(unit, 16)), time: Time(u64_at(unit, 40)), place, unit };
        let mut at = HEADER_BYTES;
        while at < unit.len() {
            at = Entry::read(unit, at)?.1;
        }
        Ok(commit)
    }

    /// What became durable with it, in the order in which it was added.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries { unit: self.unit, at: HEADER_BYTES }
    }
}

/// One entry of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Entry<'a> {
    /// A room came into being.
    Room {
        /// Its id.
        room: u64,
        /// Its name; keeps the rules of [`RoomName`].
        name: &'a str,
    },
    /// Records up to an offset are no longer retained.
    Floor {
        /// The room.
        room: u64,
        /// What goes, and what stays.
        floor: Floor,
    },
    /// Records of one room.
    Batch {
        /// The room.
        room: u64,
        /// The offset of the room's record before the first of these.
        prev: Offset,
        /// The encoded batch, as given to [`CommitBuilder::batch`]. Its inside is not checked here.
        body: &'a [u8],
        /// Where the body stands: [`UnitPlace::body`] makes a place of it.
        span: BodySpan,
    },
}

impl<'a> Entry<'a> {
    /// The entry at a place of a unit, and the place behind it.
    fn read(unit: &'a [u8], at: usize) -> Result<(Self, usize), WireError> {
        let invalid = |what, why: &str| Err(WireError::invalid(what, why));
        let (&tag, fields) = unit[at..].split_first().expect("the caller stops at the end");
        let (entry, rest) = match tag {
            TAG_ROOM => {
                let ((room, name), rest) = decode_head::<(u64, &str)>("a new room", fields)?;
                if let Err(error) = RoomName::check(name) {
                    return Err(WireError::invalid("a new room", error));
                }
                (Self::Room { room, name }, rest)
            }
            TAG_FLOOR => {
                let ((room, floor), rest) = decode_head::<(u64, Floor)>("a floor", fields)?;
                if floor.floor > Offset::MAX || floor.first > Offset::MAX {
                    return invalid("a floor", "an impossible offset");
                }
                (Self::Floor { room, floor }, rest)
            }
            TAG_BATCH => {
                let ((room, prev, crc, bytes), rest) = decode_head::<(u64, Offset, u32, u32)>("a batch", fields)?;
                if prev > Offset::MAX || rest.len() < bytes as usize {
                    return invalid("a batch", "an impossible offset or length");
                }
                let at = u32::try_from(unit.len() - rest.len()).expect("a unit is below its limit");
                let (body, rest) = rest.split_at(bytes as usize);
                (Self::Batch { room, prev, body, span: BodySpan { at, bytes, crc } }, rest)
            }
            other => return Err(WireError::invalid("a commit", format_args!("no entry has the tag {other}"))),
        };
        Ok((entry, unit.len() - rest.len()))
    }
}

/// The entries of a commit.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    unit: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.at >= self.unit.len() {
            return None;
        }
        let (entry, at) = Entry::read(self.unit, self.at).expect("checked when the commit was parsed");
        self.at = at;
        Some(entry)
    }
}

/// Makes what begins like a unit one of this file, with this number and a right checksum; its length without padding.
/// `None` if it does not begin so, or its length cannot be.
#[cfg(feature = "fuzzing")]
pub(crate) fn mend(unit: &mut [u8], file: JournalFileId, salt: u64, seq: CommitSeq) -> Option<usize> {
    let bytes = u32_at(unit, 8) as usize;
    if unit[0..4] != MAGIC || !(HEADER_BYTES..=unit.len()).contains(&bytes) {
        return None;
    }
    unit[12..16].fill(0);
    unit[16..24].copy_from_slice(&seq.0.to_le_bytes());
    unit[24..32].copy_from_slice(&file.0.to_le_bytes());
    unit[32..40].copy_from_slice(&salt.to_le_bytes());
    let crc = crc32fast::hash(&unit[8..bytes]);
    unit[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn sample() -> CommitBuilder {
        let mut commit = CommitBuilder::new();
        commit.begin(Time(9));
        commit.room(1, &RoomName::new("a").expect("a good name"));
        commit.batch(1, Offset::ZERO, b"first body");
        commit.floor(2, &Floor { floor: Offset(77), first: Offset(78), first_time: Time(8), records: 70, bytes: 900 });
        commit.batch(2, Offset(76), b"second body");
        commit
    }

    const PLACE: UnitPlace = UnitPlace { file: JournalFileId(1), at: 512, bytes: 512 };

    #[test]
    fn a_body_can_be_read_alone_where_its_span_says() {
        let mut commit = sample();
        let unit = commit.seal(CommitSeq(5), JournalFileId(1), 3).to_vec();
        assert_eq!(unit.len() % SECTOR_BYTES, 0);
        commit.unseal();
        let length = commit.unit.len();
        let bodies = Commit::parse(&unit[..length], PLACE).expect("whole").entries().filter_map(|entry| match entry {
            Entry::Batch { body, span, .. } => Some((body, span)),
            _ => None,
        });
        let mut count = 0;
        for (body, span) in bodies {
            let place = PLACE.body(span);
            let at = usize::try_from(place.at - PLACE.at).expect("within the unit");
            assert_eq!(&unit[at..at + place.bytes as usize], body);
            assert_eq!(crc32fast::hash(body), place.crc);
            count += 1;
        }
        assert_eq!(count, 2);
    }

    #[test]
    fn a_builder_keeps_its_buffer_and_a_refused_write_can_be_repeated() {
        let mut commit = sample();
        let first = commit.seal(CommitSeq(5), JournalFileId(1), 3).to_vec();
        commit.unseal();
        let buffer = commit.unit.as_ptr();
        assert_eq!(commit.seal(CommitSeq(5), JournalFileId(1), 3), first);
        commit.begin(Time(10));
        assert!(commit.is_empty());
        commit.batch(1, Offset(1), &[1; 100]);
        assert_eq!(commit.unit_bytes(), 512);
        let unit = commit.seal(CommitSeq(6), JournalFileId(1), 3);
        assert_eq!((unit.len(), unit.as_ptr()), (512, buffer), "nothing was allocated");
    }

    #[test]
    fn a_builder_is_full_before_a_unit_is_too_long() {
        let mut commit = CommitBuilder::new();
        assert!(!commit.has_room(UNIT_BYTES_MAX));
        let body = vec![0; 1 << 20];
        while commit.has_room(body.len()) {
            commit.batch(u64::MAX, Offset::MAX, &body);
        }
        let rest = UNIT_BYTES_MAX - commit.unit.len() - ENTRY_BYTES_MAX;
        assert!(commit.has_room(rest) && !commit.has_room(rest + 1));
        commit.batch(u64::MAX, Offset::MAX, &body[..rest]);
        assert_eq!(commit.seal(CommitSeq(1), JournalFileId(1), 1).len(), UNIT_BYTES_MAX);
    }

    #[test]
    fn hostile_entries_are_refused_even_when_the_checksum_is_right() {
        let parse = |entries: &[u8]| {
            let mut unit = vec![0; HEADER_BYTES];
            unit.extend_from_slice(entries);
            Commit::parse(&unit, PLACE).map(|commit| commit.entries().count()).map_err(|error| error.to_string())
        };
        assert_eq!(parse(&[]), Ok(0));
        assert_eq!(parse(&[TAG_FLOOR, 1, 2, 3, 4, 5, 6]), Ok(1));
        for (entries, why) in [
            (&[9, 1, 2][..], "no entry has the tag 9"),
            (&[TAG_FLOOR, 1], "end within a floor"),
            (&[TAG_FLOOR, 251, 1, 0, 2, 3, 4, 5, 6], "not in its shortest form"),
            (&[TAG_FLOOR, 1, 253, 0, 0, 0, 0, 0, 0, 32, 0, 3, 4, 5, 6], "impossible offset"),
            (&[TAG_ROOM, 1, 0], "a room name needs at least 1 byte"),
            (&[TAG_ROOM, 1, 1, 10], "no control characters"),
            (&[TAG_ROOM, 1, 1, 0xff], "not UTF-8"),
            (&[TAG_ROOM, 1, 253, 0, 0, 0, 0, 0, 0, 0, 16], "end within a new room"),
            (&[TAG_BATCH, 1, 0, 0, 3, 1, 2], "impossible offset or length"),
            (&[TAG_BATCH, 1, 0, 0, 252, 255, 255, 255, 255], "impossible offset or length"),
        ] {
            let told = parse(entries).expect_err(why);
            assert!(told.contains(why), "{entries:?}: {told}");
        }
    }

    #[test]
    fn random_changes_of_a_unit_never_panic_and_what_is_accepted_is_canonical() {
        let seed = match std::env::var("ROOMLOG_TEST_SEED") {
            Ok(seed) => seed.parse().expect("ROOMLOG_TEST_SEED is a number"),
            Err(_) => rand::rng().random(),
        };
        println!("ROOMLOG_TEST_SEED={seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut accepted = 0;
        for _ in 0..50_000 {
            let mut unit = sample().unit;
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(HEADER_BYTES..unit.len());
                unit[at] = random.random();
            }
            let Ok(commit) = Commit::parse(&unit, PLACE) else { continue };
            let mut again = unit[..HEADER_BYTES].to_vec();
            for entry in commit.entries() {
                match entry {
                    Entry::Room { room, name } => {
                        again.push(TAG_ROOM);
                        encode_into(&mut again, &(room, name));
                    }
                    Entry::Floor { room, floor } => {
                        again.push(TAG_FLOOR);
                        encode_into(&mut again, &(room, floor));
                    }
                    Entry::Batch { room, prev, body, span } => {
                        again.push(TAG_BATCH);
                        encode_into(&mut again, &(room, prev, span.crc, span.bytes));
                        again.extend_from_slice(body);
                    }
                }
            }
            assert_eq!(again, unit);
            accepted += 1;
        }
        assert!(accepted > 1000, "{accepted} accepted");
    }
}
