//! The committer: all that queued while the last fsync ran goes out in the next one.
//!
//! One thread gives out offsets, writes the journal, and makes records visible, in this order: judge and place →
//! one write → one fdatasync → tails and index → answers → wakes. It is a state machine that a test can step; the
//! thread only drives it.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::queue::{Gathered, Rise};
use super::{Shared, said};
use crate::metrics::StorageState;
use crate::protocol::{BATCH_BYTES_MAX, BatchBuilder, BatchHeader, RecordArea, RunHeader};
use crate::storage::Source;
use crate::storage::block::Block;
use crate::storage::commit::{BodySpan, CommitBuilder, SECTOR_BYTES, UNIT_BYTES_MAX};
use crate::storage::engine::{Append, Appended, Health, Outcome};
use crate::storage::journal::{Journal, JournalFiles};
use crate::storage::publishers::Verdict;
use crate::storage::room::{Indexed, Room, RoomId, Targets};
use crate::types::{Code, Offset, Refused, Time};

/// Up to this many followers and publishers are served on this very thread: waking another one costs more.
const TARGETS_IN_PLACE_MAX: usize = 16;

/// How long the committer waits before it looks whether the journal has become shorter.
const BEHIND_PERIOD: Duration = Duration::from_millis(20);

/// What a batch in a tail takes beyond its body, about, in bytes.
const TAIL_BATCH_OVERHEAD_BYTES: usize = 192;

/// What a unit takes for a floor, or for one batch of an append beyond its records, its user and its room's name, at
/// most, in bytes.
const APPEND_OVERHEAD_BYTES: usize = 256;

/// The appends of one commit, with all that a unit takes for them, in bytes; a single one is shorter by far.
const APPENDS_BYTES_MAX: usize = 24 << 20;

/// Rooms of a commit whose buffers are kept for the next.
const ROOMS_KEPT_MAX: usize = 1024;

/// The floors of one commit.
const FLOORS_MAX: usize = 20_000;
const _: () = assert!(APPENDS_BYTES_MAX + (FLOORS_MAX + 1) * APPEND_OVERHEAD_BYTES < UNIT_BYTES_MAX);

pub(crate) struct Committer {
    shared: Arc<Shared>,
    journal: Journal,
    files: JournalFiles,
    gathered: Gathered,
    unit: CommitBuilder,
    /// Rooms of the commit being made; the first `rooms_used` count, the others keep their buffers.
    rooms: Vec<RoomCommit>,
    rooms_used: usize,
    outcomes: Vec<(u32, usize, Outcome)>,
    /// How many appends of those gathered have been answered.
    answered: usize,
    /// How many the queue was told of, and their bytes.
    released: (usize, usize),
    /// Counts gatherings, so that a room knows whether its slot is of this one.
    round: u64,
    /// All batches in tails, oldest first, each with its bytes.
    tails: VecDeque<(Arc<Room>, usize)>,
    tails_bytes: usize,
    next_room: u64,
    #[cfg(feature = "fault-injection")]
    fault: super::fault::ExitAfterSync,
}

/// What a commit adds to a room.
struct RoomCommit {
    room: Option<Arc<Room>>,
    id: RoomId,
    is_new: bool,
    builder: BatchBuilder,
    records: u64,
    time: Time,
    /// The head before the batch being built.
    prev: Offset,
    batches: Vec<Batch>,
}

struct Batch {
    header: BatchHeader,
    prev: Offset,
    last_time: Time,
    body: Bytes,
    span: Option<BodySpan>,
}

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Nothing waited.
    Idle,
    /// What waited has been answered.
    Answered,
    /// Nothing waited, and nothing more will.
    Closed,
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>, journal: Journal, next_room: u64) -> Self {
        Self {
            shared,
            files: journal.files(),
            journal,
            gathered: Gathered::default(),
            unit: CommitBuilder::new(),
            rooms: Vec::new(),
            rooms_used: 0,
            outcomes: Vec::new(),
            answered: 0,
            released: (0, 0),
            round: 0,
            tails: VecDeque::new(),
            tails_bytes: 0,
            next_room,
            #[cfg(feature = "fault-injection")]
            fault: super::fault::ExitAfterSync::from_environment(),
        }
    }

    /// Runs until the queue is closed and empty; gives back the journal.
    pub(crate) fn run(mut self) -> Journal {
        self.shared.queue.set_committer(std::thread::current());
        loop {
            if self.must_wait() {
                std::thread::park_timeout(BEHIND_PERIOD);
                continue;
            }
            match self.step() {
                Step::Answered => {}
                Step::Idle => self.shared.queue.wait(),
                Step::Closed => return self.journal,
            }
        }
    }

    /// Whether commits have to wait until the keeper has made room in the journal. What cannot be stored anyway
    /// is refused at once.
    fn must_wait(&self) -> bool {
        self.shared.behind.load(Ordering::Relaxed)
            && !self.shared.queue.is_closed()
            && *self.shared.health.lock() == Health::Ok
    }

    /// Commits and answers all that waits.
    pub(crate) fn step(&mut self) -> Step {
        let closed = self.shared.queue.is_closed();
        let mut gathered = std::mem::take(&mut self.gathered);
        self.shared.queue.take(&mut gathered);
        let step = if !gathered.is_empty() {
            (self.answered, self.released) = (0, (0, 0));
            let done = catch_unwind(AssertUnwindSafe(|| self.commit_all(&gathered)));
            if let Err(panic) = done {
                self.panicked(&gathered, &*panic);
            }
            Step::Answered
        } else if closed {
            Step::Closed
        } else {
            Step::Idle
        };
        gathered.clear();
        self.gathered = gathered;
        step
    }

    /// Commits what was gathered, in as many commits as its size asks for.
    fn commit_all(&mut self, gathered: &Gathered) {
        let mut appends = 0..0;
        let mut floors = &gathered.floors[..];
        while appends.end < gathered.appends.len() || !floors.is_empty() {
            let rising;
            (rising, floors) = floors.split_at(floors.len().min(FLOORS_MAX));
            let (end, unit_bytes) = self.end_of_commit(gathered, appends.end);
            appends = appends.end..end;
            self.commit(gathered, appends.clone(), unit_bytes, rising);
            self.shared.queue.risen(rising.len());
        }
    }

    /// What the rooms remember is not to be trusted any more. Nobody may wait for an answer all the same.
    fn panicked(&mut self, gathered: &Gathered, panic: &(dyn Any + Send)) {
        let refused = self.shared.fail(format!("the committer has panicked: {}", said(panic)));
        let bytes_before = self.answered.checked_sub(1).map_or(0, |last| gathered.appends[last].bytes_end);
        let (mut start, mut at) = (bytes_before, self.answered);
        for (end, reply) in &gathered.replies {
            let told = catch_unwind(AssertUnwindSafe(|| {
                for append in gathered.appends.get(at..*end).unwrap_or_default() {
                    reply.answered(append.tag, append.bytes_end - start, Err(refused.clone()));
                    start = append.bytes_end;
                }
                reply.flush(Targets::Many);
            }));
            if told.is_err() {
                tracing::error!("a publisher cannot be answered");
            }
            at = at.max(*end);
            start = at.checked_sub(1).map_or(0, |last| gathered.appends[last].bytes_end);
        }
        let bytes = gathered.appends.last().map_or(0, |last| last.bytes_end);
        self.shared.queue.answered(gathered.appends.len() - self.released.0, bytes - self.released.1);
    }

    /// Where a commit ends that begins with this append, and what a unit takes for its appends at most. It has no
    /// more than so many bytes of records, and is no longer than a unit may be, but has one append at least.
    fn end_of_commit(&self, gathered: &Gathered, first: usize) -> (usize, usize) {
        let records_max = self.shared.options.commit_bytes_max;
        let mut start = first.checked_sub(1).map_or(0, |last| gathered.appends[last].bytes_end);
        let (mut records, mut unit) = (0, 0);
        for (index, append) in gathered.appends.iter().enumerate().skip(first) {
            let bytes = append.bytes_end - start;
            let unit_with_it = unit + unit_bytes_max(append, bytes);
            records += bytes;
            if index > first && (records > records_max || unit_with_it > APPENDS_BYTES_MAX) {
                return (index, unit);
            }
            (start, unit) = (append.bytes_end, unit_with_it);
        }
        (gathered.appends.len(), unit)
    }

    fn commit(&mut self, gathered: &Gathered, appends: std::ops::Range<usize>, appends_bytes: usize, floors: &[Rise]) {
        let begun = Instant::now();
        let now = self.shared.now();
        self.round += 1;
        self.rooms_used = 0;
        self.outcomes.clear();
        // Told before a room's state is changed: a checkpoint that sees the change waits for this commit.
        self.shared.making.store(self.journal.next_seq().0, Ordering::SeqCst);
        let start =
            |ends: fn(&Append) -> usize| appends.start.checked_sub(1).map_or(0, |at| ends(&gathered.appends[at]));
        let (mut bytes_at, mut hashes_at) = (start(|append| append.bytes_end), start(|append| append.hashes_end));
        let unit_bytes = appends_bytes + (floors.len() + 1) * APPEND_OVERHEAD_BYTES;
        let obstacle = self.obstacle(unit_bytes);
        for append in &gathered.appends[appends.clone()] {
            let area = &gathered.bytes[bytes_at..append.bytes_end];
            let hashes = &gathered.hashes[hashes_at..append.hashes_end];
            (bytes_at, hashes_at) = (append.bytes_end, append.hashes_end);
            let outcome = self.place(append, area, hashes, now, obstacle.as_ref());
            self.outcomes.push((append.tag, area.len(), outcome));
        }
        let floors = match &obstacle {
            None => floors,
            // Retention goes on: on a disk that the log itself has filled it is what makes space.
            Some(refused) if refused.code == Code::StorageFull && self.room_for_floors(floors) => floors,
            Some(_) => &[],
        };
        if self.rooms_used > 0 || !floors.is_empty() {
            match self.make_durable(floors, now, begun) {
                Ok(()) => {}
                Err(message) => {
                    let refused = self.shared.fail(message);
                    for (_, _, outcome) in &mut self.outcomes {
                        *outcome = Err(refused.clone());
                    }
                    self.rooms_used = 0;
                }
            }
        }
        self.shared.making.store(self.shared.committed.lock().seq.0, Ordering::SeqCst);
        self.answer(gathered, appends);
    }

    /// Why nothing can be stored just now.
    fn obstacle(&mut self, bytes: usize) -> Option<Refused> {
        match &*self.shared.health.lock() {
            Health::Ok => {}
            Health::Full(why) => return Some(Refused::new(Code::StorageFull, why.clone())),
            Health::Failed(why) => return Some(Refused::new(Code::StorageFailed, why.clone())),
            Health::Closed => return Some(Refused::new(Code::ShuttingDown, "the log has been closed")),
        }
        match self.journal.room_for(bytes.next_multiple_of(SECTOR_BYTES)) {
            Ok(true) => None,
            Ok(false) => Some(self.shared.full("the disk has no room for more of the journal".to_owned())),
            Err(error) => Some(self.shared.fail(error.to_string())),
        }
    }

    /// Whether the journal can take floors although it takes no appends.
    fn room_for_floors(&mut self, floors: &[Rise]) -> bool {
        let bytes = ((floors.len() + 1) * APPEND_OVERHEAD_BYTES).next_multiple_of(SECTOR_BYTES);
        let file_bytes = self.files.keeping_file_bytes(bytes as u64);
        let mut has_room = || self.journal.room_for_keeping(bytes).unwrap_or(false);
        !floors.is_empty() && (has_room() || self.shared.ballast.make_room_for_all(file_bytes) && has_room())
    }

    /// Judges an append, and gives its records their place in the commit being made.
    fn place(
        &mut self,
        append: &Append,
        area: &[u8],
        hashes: &[u32],
        now: Time,
        obstacle: Option<&Refused>,
    ) -> Outcome {
        if let Some(refused) = obstacle
            && refused.code != Code::StorageFull
        {
            // What a room remembers may include a commit that failed: it answers nothing any more.
            return Err(refused.clone());
        }
        let shared = Arc::clone(&self.shared);
        let mut log = append.room.log.lock();
        match log.publishers.judge(&append.user, append.publisher, append.seq, hashes) {
            Verdict::New => {}
            Verdict::Duplicate { first, last } => {
                shared.metrics.duplicates.increment(u64::from(append.count));
                return Ok(Appended { first, last, time: Time::default(), duplicate: true });
            }
            Verdict::Refused(refused) => return Err(refused),
        }
        let head = log.facts.head;
        if let Some(expect) = append.expect
            && expect != head
        {
            return Err(Refused::new(Code::ExpectFailed, format!("expected head {expect}, the head is {head}")));
        }
        if let Some(refused) = obstacle {
            return Err(refused.clone());
        }
        let stride = shared.options.offset_stride;
        let first = Offset(head.0 + stride);
        let last = Offset(head.0 + stride * u64::from(append.count));
        if last > Offset::MAX {
            return Err(Refused::new(Code::NotAllowed, "the room has used up all offsets"));
        }
        let time = now.max(log.facts.time);
        if log.slot.0 != self.round {
            let is_new = log.id.is_none();
            let id = *log.id.get_or_insert_with(|| {
                self.next_room += 1;
                RoomId(self.next_room - 1)
            });
            log.slot = (self.round, self.rooms_used);
            if self.rooms_used == self.rooms.len() {
                self.rooms.push(RoomCommit::new());
            }
            self.rooms[self.rooms_used].begin(&append.room, id, is_new, head);
            self.rooms_used += 1;
        }
        let header = RunHeader {
            offset_delta: 0,
            step: stride,
            time_delta: 0,
            user: &append.user,
            publisher: append.publisher,
            seq: append.seq,
            count: append.count,
            bytes: 0,
        };
        self.rooms[log.slot.1].push(first, time, area, header);
        log.publishers.note(shared.memory, &append.user, append.publisher, append.seq, hashes, first, stride, time);
        let facts = &mut log.facts;
        if facts.is_empty() {
            (facts.first, facts.first_time) = (first, time);
        }
        (facts.head, facts.time) = (last, time);
        facts.records += u64::from(append.count);
        facts.bytes += area.len() as u64;
        log.changed = true;
        Ok(Appended { first, last, time, duplicate: false })
    }

    /// Writes the commit, waits for the disk, and makes it visible.
    fn make_durable(&mut self, floors: &[Rise], now: Time, begun: Instant) -> Result<(), String> {
        let rooms = &mut self.rooms[..self.rooms_used];
        self.unit.begin(now);
        let (mut records, mut batches) = (0, 0);
        for commit in &mut *rooms {
            commit.finish_batch();
            if commit.is_new {
                self.unit.room(commit.id.0, commit.room().name());
            }
            for batch in &mut commit.batches {
                batch.span = Some(self.unit.batch(commit.id.0, batch.prev, &batch.body));
                records += u64::from(batch.header.count);
                batches += 1;
            }
        }
        for rise in floors {
            if let Some(id) = rise.room.id() {
                self.unit.floor(id.0, &rise.floor);
            }
        }
        let unit_bytes = self.unit.unit_bytes();
        let seq = self.journal.next_seq();
        let place = self.journal.write(&mut self.unit).map_err(|error| error.to_string())?;
        let synced = Instant::now();
        if self.shared.options.durability == crate::storage::Durability::Fsync {
            self.journal.sync().map_err(|error| error.to_string())?;
            #[cfg(feature = "fault-injection")]
            self.fault.synced();
        }
        let metrics = &self.shared.metrics;
        metrics.fsync_duration.record(synced.elapsed());
        metrics.commit_duration.record(begun.elapsed());
        metrics.commits.increment(1);
        metrics.commit_records.record(records as f64);
        metrics.commit_bytes.record(unit_bytes as f64);
        for commit in rooms {
            let room = Arc::clone(commit.room());
            if commit.is_new {
                room.with_state(|state| state.id = Some(commit.id));
                self.shared.catalog.born(&room, commit.id);
            }
            let facts = room.log.lock().facts;
            room.with_state(|state| {
                for batch in commit.batches.drain(..) {
                    let Batch { header, prev, last_time, body, span } = batch;
                    let (first, first_time, last) = (header.first, header.time, header.last());
                    let place = place.body(span.expect("it was written just now"));
                    state.journal.push_back(Indexed { first, last, prev, first_time, last_time, place });
                    let bytes = body.len() + TAIL_BATCH_OVERHEAD_BYTES;
                    self.tails.push_back((Arc::clone(&room), bytes));
                    self.tails_bytes += bytes;
                    state.tail.push_back(Block { first, last, prev, last_time, body, source: Source::Tail });
                }
                state.facts = facts;
            });
        }
        self.shared.indexed.fetch_add(batches, Ordering::Relaxed);
        for rise in floors {
            rise.room.rise(&rise.floor);
            metrics.retention_records.increment(rise.floor.records);
        }
        while self.tails_bytes > self.shared.options.tails_bytes_max {
            let Some((room, bytes)) = self.tails.pop_front() else { break };
            room.with_state(|state| state.pop_tail());
            self.tails_bytes -= bytes;
        }
        self.shared.committed(seq, place, self.tails_bytes);
        if self.files.wants_reserve() {
            // At full load a file is full before the keeper looks by itself, and zeroing the next one would be on us.
            self.shared.nudge_keeper();
        }
        Ok(())
    }

    /// Answers publishers, then wakes readers: answers go ahead of batches.
    fn answer(&mut self, gathered: &Gathered, appends: std::ops::Range<usize>) {
        let first = gathered.replies.partition_point(|(end, _)| *end <= appends.start);
        let replies = gathered.replies[first..].partition_point(|(end, _)| *end < appends.end) + 1;
        let rooms = &self.rooms[..self.rooms_used];
        let followers: usize = rooms.iter().map(|commit| commit.room().followers()).sum();
        let targets = if followers + replies <= TARGETS_IN_PLACE_MAX { Targets::Few } else { Targets::Many };
        let (mut bytes, mut start) = (0, appends.start);
        let mut outcomes = self.outcomes.drain(..);
        for (end, reply) in &gathered.replies[first..] {
            if start >= appends.end {
                break;
            }
            let stop = (*end).min(appends.end);
            for (tag, append_bytes, outcome) in outcomes.by_ref().take(stop - start) {
                bytes += append_bytes;
                self.answered += 1;
                reply.answered(tag, append_bytes, outcome);
            }
            reply.flush(targets);
            start = stop;
        }
        drop(outcomes);
        self.shared.queue.answered(appends.len(), bytes);
        (self.released.0, self.released.1) = (self.released.0 + appends.len(), self.released.1 + bytes);
        for commit in &mut self.rooms[..self.rooms_used] {
            commit.room().notify(targets);
            commit.room = None;
        }
        // Each has a buffer that may be as long as a batch.
        self.rooms.truncate(ROOMS_KEPT_MAX);
    }
}

/// What a unit takes for an append with so many bytes of records, at most.
fn unit_bytes_max(append: &Append, bytes: usize) -> usize {
    // Two batches that follow each other are together longer than one may be.
    let batches = 2 + 2 * bytes / BATCH_BYTES_MAX;
    bytes + append.room.name().as_str().len() + batches * (APPEND_OVERHEAD_BYTES + append.user.len())
}

impl RoomCommit {
    fn new() -> Self {
        Self {
            room: None,
            id: RoomId(0),
            is_new: false,
            builder: BatchBuilder::new(),
            records: 0,
            time: Time::default(),
            prev: Offset::ZERO,
            batches: Vec::new(),
        }
    }

    fn room(&self) -> &Arc<Room> {
        self.room.as_ref().expect("a slot in use has a room")
    }

    fn begin(&mut self, room: &Arc<Room>, id: RoomId, is_new: bool, head: Offset) {
        self.room = Some(Arc::clone(room));
        (self.id, self.is_new, self.prev, self.records) = (id, is_new, head, 0);
        self.builder.clear();
        self.batches.clear();
    }

    /// Adds a publish, in as many batches as its size asks for.
    fn push(&mut self, first: Offset, time: Time, area: &[u8], header: RunHeader<'_>) {
        if !self.builder.is_empty() && self.builder.len() + area.len() > BATCH_BYTES_MAX {
            self.finish_batch();
        }
        self.time = time;
        if area.len() <= BATCH_BYTES_MAX {
            self.builder.push(first, time, header.count, area, header);
            return;
        }
        let (mut rest, mut start, mut run_first, mut seq) = (RecordArea(area), area, first, header.seq);
        let mut count = 0_u32;
        while let Some((_, behind)) = rest.split_first().expect("it was checked when it came in") {
            let taken = start.len() - behind.0.len();
            if count > 0 && taken > BATCH_BYTES_MAX {
                let run = &start[..start.len() - rest.0.len()];
                self.builder.push(run_first, time, count, run, RunHeader { seq, ..header });
                self.finish_batch();
                run_first = Offset(run_first.0 + u64::from(count) * header.step);
                (start, seq, count) = (rest.0, seq + u64::from(count), 0);
            }
            count += 1;
            rest = behind;
        }
        self.builder.push(run_first, time, count, start, RunHeader { seq, ..header });
    }

    fn finish_batch(&mut self) {
        if self.builder.is_empty() {
            return;
        }
        let (header, body) = self.builder.finish();
        let prev = std::mem::replace(&mut self.prev, header.last());
        self.batches.push(Batch { header, prev, last_time: self.time, body, span: None });
    }
}

impl Shared {
    /// Nothing more is accepted until a restart.
    pub(super) fn fail(&self, message: String) -> Refused {
        tracing::error!("storage failed, nothing more is accepted until a restart: {message}");
        self.metrics.storage_state.set(StorageState::Failed.number());
        *self.health.lock() = Health::Failed(message.clone());
        Refused::new(Code::StorageFailed, message)
    }

    /// There is no space for a commit; the keeper looks for some.
    pub(super) fn full(&self, why: String) -> Refused {
        let mut health = self.health.lock();
        if *health == Health::Ok {
            tracing::warn!("storage is full, publishes are refused: {why}");
            self.metrics.storage_state.set(StorageState::Full.number());
            *health = Health::Full(why.clone());
        }
        drop(health);
        self.nudge_keeper();
        Refused::new(Code::StorageFull, why)
    }
}
