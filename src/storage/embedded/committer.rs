//! The committer: all that queued while the last fsync ran goes out in the next one.
//!
//! One thread at a time gives out offsets, writes the journal, and makes records visible, in this order: judge and place →
//! one write → one fdatasync → tails and index → answers → wakes. It is a state machine that a test can step; whoever
//! has the seat (`seat.rs`) only drives it.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::queue::{Gathered, Place, Rise};
use super::{Shared, said};
use crate::metrics::StorageState;
use crate::protocol::{BATCH_BYTES_MAX, BatchBuilder, BatchHeader, RecordArea, RunHeader};
use crate::storage::Source;
use crate::storage::block::Block;
use crate::storage::commit::{BodySpan, CommitBuilder, SECTOR_BYTES, UNIT_BYTES_MAX};
use crate::storage::engine::{Answer, Append, Appended, Health, Outcome, Reply};
use crate::storage::journal::{Journal, JournalFiles};
use crate::storage::publishers::Verdict;
use crate::storage::room::{Indexed, Room, RoomId, Targets};
use crate::types::{Code, Offset, Refused, Time};

/// Up to this many followers and publishers are served on this very thread: waking another one costs more.
const TARGETS_IN_PLACE_MAX: usize = 16;

/// … if what they are to be sent is at most so many bytes: copying more takes longer than waking another thread, which
/// does it while the next commit is being made.
const BYTES_IN_PLACE_MAX: usize = 64 << 10;

/// Up to this many followers, with so many bytes, are served on this very thread where nobody else would serve them
/// faster, as long as nothing waits to be committed.
const TARGETS_AT_REST_MAX: usize = 128;
const BYTES_AT_REST_MAX: usize = 512 << 10;

/// On more cores than these a fan-out has several tasks, which together are faster than this thread.
const CORES_AT_REST_MAX: usize = 2;

/// Up to so many publishers are answered on this very thread, however many are to be woken: they wait for that with
/// their next records.
const REPLIES_IN_PLACE_MAX: usize = 4;

/// What a batch in a tail takes beyond its body, about, in bytes.
const TAIL_BATCH_OVERHEAD_BYTES: usize = 192;

/// What a room takes in memory because it has a tail, in bytes: its state, its publishers and its place in the journal.
const TAIL_ROOM_OVERHEAD_BYTES: usize = 1024;

/// What a unit takes for a floor, or for one batch of an append beyond its records, its user and its room's name, at
/// most, in bytes.
const APPEND_OVERHEAD_BYTES: usize = 256;

/// What the head of a run takes beside the user, at most, in bytes.
const RUN_OVERHEAD_BYTES: usize = 72;

/// What the head of a body takes, at most, in bytes.
const BODY_OVERHEAD_BYTES: usize = 32;

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
    /// What became of the publishes of the commit being made.
    answers: Vec<Answer>,
    /// How many publishes of those gathered have been answered, and their bytes.
    answered: (usize, usize),
    /// Counts gatherings, so that a room knows whether its slot is of this one.
    round: u64,
    /// All batches in tails, oldest first, each with its bytes.
    tails: VecDeque<(Arc<Room>, usize)>,
    tails_bytes: usize,
    next_room: u64,
    /// Whether many followers are served on this thread too, while nothing waits.
    serves_at_rest: bool,
    /// Whom the last step has answered, if it was a single one: his address.
    pub(super) answered_alone: Option<usize>,
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
    /// The bytes of all its batches.
    bytes: usize,
}

struct Batch {
    header: BatchHeader,
    prev: Offset,
    last_time: Time,
    body: Bytes,
    span: Option<BodySpan>,
}

/// Records that are stored or refused together.
struct Records<'a> {
    /// The first one's number.
    seq: u64,
    count: u32,
    area: &'a [u8],
    hashes: &'a [u32],
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
            answers: Vec::new(),
            answered: (0, 0),
            round: 0,
            tails: VecDeque::new(),
            tails_bytes: 0,
            next_room,
            serves_at_rest: false,
            answered_alone: None,
            #[cfg(feature = "fault-injection")]
            fault: super::fault::ExitAfterSync::from_environment(),
        }
    }

    /// Has it know on how many cores it runs, on which it depends who sends.
    pub(super) fn on_cores(self, cores: usize) -> Self {
        Self { serves_at_rest: cores <= CORES_AT_REST_MAX, ..self }
    }

    /// Steps until the queue is closed and empty; gives back the journal.
    #[cfg(test)]
    pub(crate) fn run(mut self) -> Journal {
        while self.step() != Step::Closed {}
        self.journal
    }

    /// The journal, when nothing more is to be committed.
    pub(super) fn into_journal(self) -> Journal {
        self.journal
    }

    /// Whether commits have to wait until the keeper has made room in the journal. What cannot be stored anyway
    /// is refused at once.
    pub(super) fn must_wait(&self) -> bool {
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
            self.answered = (0, 0);
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
        self.answered_alone = match &gathered.replies[..] {
            [(_, reply)] => Some(address(reply)),
            _ => None,
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

    /// What the rooms remember is not to be trusted any more. Nobody may wait for an answer all the same, but who has
    /// panicked at one.
    fn panicked(&mut self, gathered: &Gathered, panic: &(dyn Any + Send)) {
        let refused = self.shared.fail(format!("the committer has panicked: {}", said(panic)));
        let (mut at, mut start) = self.answered;
        for (end, reply) in &gathered.replies {
            let parts = gathered.parts.get(at..*end).unwrap_or_default();
            if parts.is_empty() {
                continue;
            }
            let answers: Vec<_> = parts
                .iter()
                .map(|part| {
                    let bytes = part.bytes_end - std::mem::replace(&mut start, part.bytes_end);
                    Answer { tag: part.tag, count: part.count, bytes, outcome: Err(refused.clone()) }
                })
                .collect();
            at = *end;
            if catch_unwind(AssertUnwindSafe(|| reply.answered(&answers, Targets::Many))).is_err() {
                tracing::error!("a publisher cannot be answered");
            }
        }
        let bytes = gathered.parts.last().map_or(0, |last| last.bytes_end);
        self.shared.queue.answered(gathered.parts.len() - self.answered.0, bytes - self.answered.1);
    }

    /// Where a commit ends that begins with this append, and what a unit takes for its appends at most. It has no
    /// more than so many bytes of records, and is no longer than a unit may be, but has one append at least.
    fn end_of_commit(&self, gathered: &Gathered, first: usize) -> (usize, usize) {
        let records_max = self.shared.options.commit_bytes_max;
        let Place { part: mut parts, bytes: mut start, .. } = gathered.start_of(first);
        let (mut records, mut unit) = (0, 0);
        for (index, append) in gathered.appends.iter().enumerate().skip(first) {
            let end = gathered.parts[append.parts_end - 1].bytes_end;
            let bytes = end - start;
            let unit_with_it = unit + unit_bytes_max(append, append.parts_end - parts, bytes);
            records += bytes;
            if index > first && (records > records_max || unit_with_it > APPENDS_BYTES_MAX) {
                return (index, unit);
            }
            (start, parts, unit) = (end, append.parts_end, unit_with_it);
        }
        (gathered.appends.len(), unit)
    }

    fn commit(&mut self, gathered: &Gathered, appends: std::ops::Range<usize>, appends_bytes: usize, floors: &[Rise]) {
        let begun = Instant::now();
        let now = self.shared.now();
        self.round += 1;
        self.rooms_used = 0;
        self.answers.clear();
        // Told before a room's state is changed: a checkpoint that sees the change waits for this commit.
        self.shared.making.store(self.journal.next_seq().0, Ordering::SeqCst);
        let unit_bytes = appends_bytes + (floors.len() + 1) * APPEND_OVERHEAD_BYTES;
        let obstacle = self.obstacle(unit_bytes);
        let mut start = gathered.start_of(appends.start);
        for append in &gathered.appends[appends.clone()] {
            start = self.judge(gathered, append, start, now, obstacle.as_ref());
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
                    for answer in &mut self.answers {
                        answer.outcome = Err(refused.clone());
                    }
                    self.rooms_used = 0;
                }
            }
        }
        self.shared.making.store(self.shared.committed.lock().seq.0, Ordering::SeqCst);
        self.answer(gathered);
    }

    /// Judges and places the publishes of an append, and notes what became of each. Returns where the next one begins.
    fn judge(
        &mut self,
        gathered: &Gathered,
        append: &Append,
        start: Place,
        now: Time,
        obstacle: Option<&Refused>,
    ) -> Place {
        let parts = &gathered.parts[start.part..append.parts_end];
        let end = Place::behind(append.parts_end, &parts[parts.len() - 1]);
        let records = |from: Place, to: Place, seq, count| Records {
            seq,
            count,
            area: &gathered.bytes[from.bytes..to.bytes],
            hashes: &gathered.hashes[from.hashes..to.hashes],
        };
        let whole = self.place(append, &records(start, end, append.seq, append.count), now, obstacle);
        let (stride, mut at) = (self.shared.options.offset_stride, start);
        match whole {
            Ok(Appended { first, time, duplicate: false, .. }) => {
                let mut first = first.0;
                self.answers.extend(parts.iter().map(|part| {
                    let bytes = part.bytes_end - std::mem::replace(&mut at.bytes, part.bytes_end);
                    let behind = first + stride * u64::from(part.count);
                    let placed = (Offset(std::mem::replace(&mut first, behind)), Offset(behind - stride));
                    let outcome = Ok(Appended { first: placed.0, last: placed.1, time, duplicate: false });
                    Answer { tag: part.tag, count: part.count, bytes, outcome }
                }));
            }
            outcome if parts.len() == 1 => {
                let part = &parts[0];
                let bytes = part.bytes_end - start.bytes;
                self.answers.push(Answer { tag: part.tag, count: part.count, bytes, outcome });
            }
            // One of them is no new one, or cannot be stored: each for itself.
            _ => {
                let mut seq = append.seq;
                for (index, part) in parts.iter().enumerate() {
                    let to = Place::behind(start.part + index + 1, part);
                    let outcome = self.place(append, &records(at, to, seq, part.count), now, obstacle);
                    self.answers.push(Answer { tag: part.tag, count: part.count, bytes: to.bytes - at.bytes, outcome });
                    (at, seq) = (to, seq + u64::from(part.count));
                }
            }
        }
        end
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

    /// Judges records of an append from this seq on, and gives them their place in the commit being made; what is not
    /// new leaves nothing behind.
    fn place(&mut self, append: &Append, records: &Records<'_>, now: Time, obstacle: Option<&Refused>) -> Outcome {
        let &Records { seq, count, area, hashes } = records;
        if let Some(refused) = obstacle
            && refused.code != Code::StorageFull
        {
            // What a room remembers may include a commit that failed: it answers nothing any more.
            return Err(refused.clone());
        }
        let shared = &*self.shared;
        let mut log = append.room.log.lock();
        match log.publishers.judge(&append.user, append.publisher, seq, hashes) {
            Verdict::New => {}
            Verdict::Duplicate { first, last } => {
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
        let last = Offset(head.0 + stride * u64::from(count));
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
            seq,
            count,
            bytes: 0,
        };
        self.rooms[log.slot.1].push(first, time, area, header);
        log.publishers.note(shared.memory, &append.user, append.publisher, seq, hashes, first, stride, time);
        let facts = &mut log.facts;
        if facts.is_empty() {
            (facts.first, facts.first_time) = (first, time);
        }
        (facts.head, facts.time) = (last, time);
        facts.records += u64::from(count);
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
                    // The first batch of a tail keeps the room in memory, too.
                    let room_bytes = if state.tail.is_empty() { TAIL_ROOM_OVERHEAD_BYTES } else { 0 };
                    let bytes = body.len() + TAIL_BATCH_OVERHEAD_BYTES + room_bytes;
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
    fn answer(&mut self, gathered: &Gathered) {
        let begin = self.answered.0;
        let end = begin + self.answers.len();
        let first = gathered.replies.partition_point(|(end, _)| *end <= begin);
        let replies = gathered.replies[first..].partition_point(|(until, _)| *until < end) + 1;
        let (mut called, mut bytes) = (replies, 0);
        let called_max = if self.serves_at_rest { TARGETS_AT_REST_MAX } else { TARGETS_IN_PLACE_MAX };
        for commit in &self.rooms[..self.rooms_used] {
            let of_room = commit.room().followers();
            (called, bytes) = (called + of_room, bytes + of_room * commit.bytes);
            if called > called_max {
                break;
            }
        }
        let is_little = called <= TARGETS_IN_PLACE_MAX && bytes <= BYTES_IN_PLACE_MAX;
        let at_rest = self.serves_at_rest && called <= called_max && bytes <= BYTES_AT_REST_MAX;
        let targets = if is_little { Targets::Few } else { Targets::Many };
        let to_publishers = if replies <= REPLIES_IN_PLACE_MAX { Targets::Few } else { targets };
        let (mut answers, mut duplicates) = (&self.answers[..], 0);
        for (until, reply) in &gathered.replies[first..] {
            if answers.is_empty() {
                break;
            }
            let own;
            (own, answers) = answers.split_at(until.min(&end) - self.answered.0);
            let mut bytes = 0;
            for answer in own {
                bytes += answer.bytes;
                if let Ok(Appended { duplicate: true, .. }) = answer.outcome {
                    duplicates += u64::from(answer.count);
                }
            }
            // Before it is told: if that panics, it is not told again.
            self.answered = (self.answered.0 + own.len(), self.answered.1 + bytes);
            self.shared.queue.answered(own.len(), bytes);
            reply.answered(own, to_publishers);
        }
        self.shared.metrics.duplicates.increment(duplicates);
        let queue = &self.shared.queue;
        // Looked at for each: the next commit does not wait for more than one that is served.
        let to_followers = || if at_rest && queue.bytes() == 0 { Targets::Few } else { targets };
        for commit in &mut self.rooms[..self.rooms_used] {
            commit.room().notify(to_followers);
            commit.room = None;
        }
        // Each has a buffer that may be as long as a batch.
        self.rooms.truncate(ROOMS_KEPT_MAX);
    }
}

/// Tells one who is answered from another.
pub(super) fn address(reply: &Arc<dyn Reply>) -> usize {
    Arc::as_ptr(reply).addr()
}

/// The records that a body may have, in bytes, if all of them are of one run.
fn run_bytes_max(user: &str) -> usize {
    BATCH_BYTES_MAX - BODY_OVERHEAD_BYTES - RUN_OVERHEAD_BYTES - user.len()
}

/// What a unit takes for an append of so many publishes with so many bytes of records, at most.
fn unit_bytes_max(append: &Append, parts: usize, bytes: usize) -> usize {
    // Two batches that follow each other are together longer than one may be.
    let batches = 2 + 2 * bytes / run_bytes_max(&append.user);
    // Each publish may become a run of its own, if one of them is no new one.
    let runs = parts * (RUN_OVERHEAD_BYTES + append.user.len());
    bytes + append.room.name().as_str().len() + batches * (APPEND_OVERHEAD_BYTES + append.user.len()) + runs
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
            bytes: 0,
        }
    }

    fn room(&self) -> &Arc<Room> {
        self.room.as_ref().expect("a slot in use has a room")
    }

    fn begin(&mut self, room: &Arc<Room>, id: RoomId, is_new: bool, head: Offset) {
        self.room = Some(Arc::clone(room));
        (self.id, self.is_new, self.prev, self.records, self.bytes) = (id, is_new, head, 0, 0);
        self.builder.clear();
        self.batches.clear();
    }

    /// Adds a publish, in as many batches as its size asks for.
    fn push(&mut self, first: Offset, time: Time, area: &[u8], header: RunHeader<'_>) {
        let most = run_bytes_max(header.user);
        if !self.builder.is_empty() && self.builder.len() + area.len() > most {
            self.finish_batch();
        }
        self.time = time;
        if area.len() <= most {
            self.builder.push(first, time, header.count, area, header);
            return;
        }
        let (mut rest, mut start, mut run_first, mut seq) = (RecordArea(area), area, first, header.seq);
        let mut count = 0_u32;
        while let Some((_, behind)) = rest.split_first().expect("it was checked when it came in") {
            let taken = start.len() - behind.0.len();
            if count > 0 && taken > most {
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
        self.bytes += body.len();
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
