//! The batch: consecutive records of one room in one encoded body, the unit of commit, storage, fan-out and replay.
//!
//! A body is a [`BatchHeader`] and a sequence of *runs*. A run is what one publish added, or several of one publisher
//! that were committed together: a [`RunHeader`] with
//! everything that its records share, and the records as the publisher encoded them. So the committer writes a
//! few bytes per publish and copies the rest, and two bodies are merged by joining their runs.

use bytes::Bytes;

use super::wire::{WireError, decode, decode_head, decode_length, encode_into, encoded_len};
use crate::types::{NewRecord, Offset, PublisherId, Record, Time};

/// The version byte that every body begins with.
pub const BATCH_VERSION: u8 = 1;

/// A body is at most this long, in bytes, unless it holds one single record that is longer.
pub const BATCH_BYTES_MAX: usize = 64 << 10;

/// What can be known of a body without reading its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::BorrowDecode)]
pub struct BatchHeader {
    /// [`BATCH_VERSION`].
    pub version: u8,
    /// How many records the body holds, at least 1.
    pub count: u32,
    /// The first record's offset.
    pub first: Offset,
    /// What to add to `first` for the last record's offset.
    pub span: u64,
    /// The first record's time.
    pub time: Time,
}

impl BatchHeader {
    /// The last record's offset.
    #[must_use]
    pub fn last(&self) -> Offset {
        Offset(self.first.0 + self.span)
    }
}

/// What the records of one publish, or of several of one publisher in a row, share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, bincode::Encode, bincode::BorrowDecode)]
pub struct RunHeader<'a> {
    /// The first record's offset, counted from the batch's first.
    pub offset_delta: u64,
    /// The distance between one record's offset and the next one's; 1 while offsets are dense, at least 1 always.
    pub step: u64,
    /// The records' time, counted from the batch's.
    pub time_delta: u64,
    /// Who published them.
    pub user: &'a str,
    /// The outgoing queue they came from.
    pub publisher: PublisherId,
    /// The first record's number in that queue; it rises by 1.
    pub seq: u64,
    /// How many records follow, at least 1.
    pub count: u32,
    /// How many bytes they take.
    pub bytes: u32,
}

/// Encoded records one behind the other, each behind its length: as in a publish, as in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordArea<'a>(pub &'a [u8]);

impl<'a> RecordArea<'a> {
    /// Appends one record to an area that is being written.
    pub fn push(area: &mut Vec<u8>, record: &NewRecord<'_>) {
        encode_into(area, &u32::try_from(encoded_len(record)).expect("a record is below 4 GiB"));
        encode_into(area, record);
    }

    /// The bytes of the first record without its length, and the area behind it; `None` at the end.
    ///
    /// # Errors
    /// When the length is not canonical or beyond the area.
    #[inline]
    pub fn split_first(self) -> Result<Option<(&'a [u8], Self)>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (length, rest) = decode_length("a record's length", self.0)?;
        let length = length as usize;
        if rest.len() < length {
            return Err(WireError::Truncated { what: "a record" });
        }
        let (record, rest) = rest.split_at(length);
        Ok(Some((record, Self(rest))))
    }

    /// Decodes one record of an area.
    ///
    /// # Errors
    /// When the bytes are not exactly one canonical record.
    #[inline]
    pub fn record(bytes: &'a [u8]) -> Result<NewRecord<'a>, WireError> {
        decode("a record", bytes)
    }
}

/// A whole body, checked as far as its header.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// What the body says of itself.
    pub header: BatchHeader,
    runs: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Reads the header of a body.
    ///
    /// # Errors
    /// When the header is not one, or of a version that is not ours.
    pub fn parse(body: &'a [u8]) -> Result<Self, WireError> {
        // The version first: what follows it may look otherwise in another one.
        match body.first() {
            None => return Err(WireError::Truncated { what: "a batch header" }),
            Some(&BATCH_VERSION) => {}
            Some(version) => {
                return Err(WireError::invalid(
                    "a batch header",
                    format_args!("version {version}, this is version {BATCH_VERSION}"),
                ));
            }
        }
        let (header, runs) = decode_head::<BatchHeader>("a batch header", body)?;
        if header.count == 0
            || header.first == Offset::ZERO
            || header.first.0.saturating_add(header.span) > Offset::MAX.0
        {
            return Err(WireError::invalid("a batch header", "an impossible count or offset"));
        }
        Ok(Self { header, runs })
    }

    /// The runs.
    #[must_use]
    pub fn runs(&self) -> Runs<'a> {
        Runs { header: self.header, rest: self.runs, records: 0, last: Offset::ZERO, time: self.header.time }
    }

    /// The records, in order. `prev` is the offset of the record before the first one.
    #[must_use]
    pub fn records(&self, prev: Offset) -> Records<'a> {
        Records { runs: self.runs(), run: None, prev }
    }

    /// What there is of its records behind `after` and up to `to`; `None` if there is none. `prev` is the offset of the
    /// record before the first one. Looks at the heads of runs, not at records.
    ///
    /// # Errors
    /// When a run header is not one.
    pub fn meant(&self, prev: Offset, after: Offset, to: Offset) -> Result<Option<Meant>, WireError> {
        let mut meant: Option<Meant> = None;
        let mut before = prev;
        for run in self.runs() {
            let run = run?;
            let step = run.header.step;
            let front = after.0.checked_sub(run.first.0).map_or(0, |behind| behind / step + 1);
            let back = to.0.checked_sub(run.first.0).map_or(0, |behind| behind / step + 1).min(run.header.count.into());
            if front < back {
                let offset = |index: u64| Offset(run.first.0 + index * step);
                let prev = if front == 0 { before } else { offset(front - 1) };
                let part = meant.get_or_insert(Meant { from: offset(front), to: Offset::ZERO, prev, count: 0 });
                part.to = offset(back - 1);
                part.count += u32::try_from(back - front).expect("at most a run's count");
            }
            before = run.last();
        }
        Ok(meant)
    }

    /// The offset of the record before the newest `count`, which is less than there are. Looks at the heads of runs, not
    /// at records.
    ///
    /// # Errors
    /// When a run header is not one.
    pub fn before_last(&self, count: u32) -> Result<Offset, WireError> {
        let mut left = u64::from(self.header.count.saturating_sub(count)).saturating_sub(1);
        for run in self.runs() {
            let run = run?;
            if left < u64::from(run.header.count) {
                return Ok(Offset(run.first.0 + left * run.header.step));
            }
            left -= u64::from(run.header.count);
        }
        Err(WireError::invalid("a batch", "it holds fewer records than it says"))
    }

    /// Whether everything within is canonical, in order, and as many records as the header says.
    ///
    /// # Errors
    /// The first thing that is not so.
    pub fn check(&self) -> Result<(), WireError> {
        for record in self.records(Offset::ZERO) {
            record?;
        }
        Ok(())
    }
}

/// Consecutive records of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meant {
    /// The first one's offset.
    pub from: Offset,
    /// The last one's offset.
    pub to: Offset,
    /// The offset of the record before the first one.
    pub prev: Offset,
    /// How many they are.
    pub count: u32,
}

/// One run of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The first record's offset.
    pub first: Offset,
    /// The records' time.
    pub time: Time,
    /// What the records share.
    pub header: RunHeader<'a>,
    /// The records as the publisher encoded them.
    pub area: RecordArea<'a>,
}

impl<'a> Run<'a> {
    /// The last record's offset.
    #[must_use]
    pub fn last(&self) -> Offset {
        self.offset(self.header.count.saturating_sub(1))
    }

    /// The offset of the record at `index`, which is below the count.
    fn offset(&self, index: u32) -> Offset {
        Offset(self.first.0 + u64::from(index) * self.header.step)
    }

    /// Takes the record at `index` from the front of the area; `None` behind the last, which ends the area.
    fn next_record(&self, index: u32) -> Result<Option<(&'a [u8], RecordArea<'a>)>, WireError> {
        let next = self.area.split_first()?;
        if next.is_some() != (index < self.header.count) {
            return Err(WireError::invalid("a run", "it holds another number of records than it says"));
        }
        Ok(next)
    }
}

/// The runs of a batch; it ends with the first error.
///
/// They are in order, and together as many records as the header says: what is not so is an error.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    header: BatchHeader,
    rest: &'a [u8],
    /// The records of the runs so far.
    records: u64,
    last: Offset,
    time: Time,
}

impl<'a> Runs<'a> {
    fn read(&mut self) -> Result<Run<'a>, WireError> {
        let invalid = |why: &str| Err(WireError::invalid("a run header", why));
        let (header, rest) = decode_head::<RunHeader<'a>>("a run header", std::mem::take(&mut self.rest))?;
        let Some((area, rest)) = rest.split_at_checked(header.bytes as usize) else {
            return Err(WireError::Truncated { what: "a run" });
        };
        let first = self.header.first.0.checked_add(header.offset_delta);
        let more = u64::from(header.count).checked_sub(1);
        let last = more.and_then(|more| more.checked_mul(header.step)).and_then(|span| first?.checked_add(span));
        let seq_last = more.and_then(|more| header.seq.checked_add(more));
        let time = self.header.time.0.checked_add(header.time_delta);
        let (Some(first), Some(last), Some(_), Some(time)) = (first, last, seq_last, time) else {
            return invalid("an impossible count, offset, seq or time");
        };
        if header.step == 0 || header.step > Offset::MAX.0 || header.seq == 0 {
            return invalid("an impossible step or seq");
        }
        let opens = self.records == 0;
        if opens && (header.offset_delta, header.time_delta) != (0, 0) {
            return invalid("the first run does not begin where its batch begins");
        }
        if Offset(first) <= self.last || Offset(last) > self.header.last() || Time(time) < self.time {
            return invalid("records are not in order");
        }
        self.records += u64::from(header.count);
        (self.last, self.time) = (Offset(last), Time(time));
        if self.records > u64::from(self.header.count) {
            return invalid("more records than the batch header says");
        }
        self.rest = rest;
        Ok(Run { first: Offset(first), time: Time(time), header, area: RecordArea(area) })
    }

    /// Nothing more is read after an error.
    fn stop(&mut self) {
        (self.rest, self.records, self.last) = (&[], u64::from(self.header.count), self.header.last());
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = Result<Run<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.rest.is_empty() {
            return Some(self.read().inspect_err(|_| self.stop()));
        }
        if self.records == u64::from(self.header.count) && self.last == self.header.last() {
            return None;
        }
        self.stop();
        Some(Err(WireError::invalid("a batch", "the records do not agree with the header")))
    }
}

/// The records of a batch, in order; it ends with the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    runs: Runs<'a>,
    run: Option<(Run<'a>, u32)>,
    prev: Offset,
}

impl<'a> Records<'a> {
    /// The next record of the current run; `None` at its end.
    fn read(&mut self) -> Result<Option<Record<'a>>, WireError> {
        let Some((run, index)) = &mut self.run else { return Ok(None) };
        let Some((bytes, rest)) = run.next_record(*index)? else { return Ok(None) };
        let record = Record {
            offset: run.offset(*index),
            prev: self.prev,
            time: run.time,
            user: run.header.user,
            publisher: run.header.publisher,
            seq: run.header.seq + u64::from(*index),
            content: RecordArea::record(bytes)?,
        };
        run.area = rest;
        *index += 1;
        self.prev = record.offset;
        Ok(Some(record))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Ok(Some(record)) => return Some(Ok(record)),
                Ok(None) => {}
                Err(error) => {
                    self.run = None;
                    self.runs.stop();
                    return Some(Err(error));
                }
            }
            match self.runs.next()? {
                Ok(run) => self.run = Some((run, 0)),
                Err(error) => {
                    self.run = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Writes bodies: at commit from publishes, later from the runs of other bodies.
///
/// Keeps its buffer from one body to the next.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    runs: Vec<u8>,
    count: u32,
    first: Offset,
    last: Offset,
    first_time: Time,
}

impl BatchBuilder {
    /// A builder without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The length of the runs so far, in bytes; the header adds at most 32.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// The offset of the last record; [`Offset::ZERO`] without records.
    #[must_use]
    pub fn last(&self) -> Offset {
        self.last
    }

    /// The offset of the first record; [`Offset::ZERO`] without records.
    #[must_use]
    pub fn first(&self) -> Offset {
        self.first
    }

    /// How many records it holds.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Adds a run behind the others. The deltas, count and bytes of `header` are set here; `first` and `time`
    /// must not be less than those of the run before.
    ///
    /// # Panics
    /// When `count` is 0 or the offsets do not rise: a bug of the caller.
    pub fn push(&mut self, first: Offset, time: Time, count: u32, area: &[u8], header: RunHeader<'_>) {
        assert!(count > 0 && first > self.last, "a run holds records, and offsets rise");
        if self.count == 0 {
            self.first = first;
            self.first_time = time;
        }
        self.last = Offset(first.0 + u64::from(count - 1) * header.step);
        self.count += count;
        let header = RunHeader {
            offset_delta: first.0 - self.first.0,
            time_delta: time.0.saturating_sub(self.first_time.0),
            count,
            bytes: u32::try_from(area.len()).expect("a run is below 4 GiB"),
            ..header
        };
        encode_into(&mut self.runs, &header);
        self.runs.extend_from_slice(area);
    }

    /// Adds a run of another body.
    pub fn push_run(&mut self, run: &Run<'_>) {
        self.push(run.first, run.time, run.header.count, run.area.0, run.header);
    }

    /// Adds those records of a body whose offsets are in `from..=to`: whole runs as they are, others in part.
    /// The records of a whole run are not looked at; [`Batch::check`] does that.
    ///
    /// # Errors
    /// When the body is damaged, or its records are not behind those that are here already. What was added
    /// before the error stays.
    pub fn push_part(&mut self, batch: &Batch<'_>, from: Offset, to: Offset) -> Result<(), WireError> {
        for run in batch.runs() {
            let run = run?;
            if run.last() < from || run.first > to {
                continue;
            }
            if run.first <= self.last {
                return Err(WireError::invalid("a batch", "it does not follow the one before"));
            }
            if run.first >= from && run.last() <= to {
                self.push_run(&run);
            } else {
                self.push_part_of_run(run, from, to)?;
            }
        }
        Ok(())
    }

    fn push_part_of_run(&mut self, mut run: Run<'_>, from: Offset, to: Offset) -> Result<(), WireError> {
        // The index of the first record meant, and the area from there on.
        let mut part: Option<(u32, &[u8])> = None;
        let (mut count, mut bytes, mut index) = (0, 0, 0);
        while let Some((_, rest)) = run.next_record(index)? {
            if (from..=to).contains(&run.offset(index)) {
                part.get_or_insert((index, run.area.0));
                count += 1;
                bytes += run.area.0.len() - rest.0.len();
            }
            run.area = rest;
            index += 1;
        }
        // Between two records of a run whose step is more than 1 there may be nothing.
        if let Some((index, area)) = part {
            let header = RunHeader { seq: run.header.seq + u64::from(index), ..run.header };
            self.push(run.offset(index), run.time, count, &area[..bytes], header);
        }
        Ok(())
    }

    /// Finishes the body and empties the builder.
    ///
    /// # Panics
    /// When it holds no records: a bug of the caller.
    pub fn finish(&mut self) -> (BatchHeader, Bytes) {
        assert!(self.count > 0, "a batch holds records");
        let header = BatchHeader {
            version: BATCH_VERSION,
            count: self.count,
            first: self.first,
            span: self.last.0 - self.first.0,
            time: self.first_time,
        };
        let mut body = Vec::with_capacity(self.runs.len() + encoded_len(&header));
        encode_into(&mut body, &header);
        body.extend_from_slice(&self.runs);
        self.clear();
        (header, Bytes::from(body))
    }

    /// Drops what it holds.
    pub fn clear(&mut self) {
        self.runs.clear();
        (self.count, self.first, self.last) = (0, Offset::ZERO, Offset::ZERO);
    }
}
