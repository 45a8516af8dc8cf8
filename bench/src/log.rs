//! The log in memory: commits, what is read behind them, and whom they wake. No disk, so that only the work is measured.

use std::hint::black_box;
use std::sync::{Arc, Condvar, Mutex};

use roomlog::broker::{Broker, Options, Output, Readers, Wake};
use roomlog::protocol::JoinId;
use roomlog::storage::{Answer, Reply, Room, Submission, Tail, Targets, record_hash};
use roomlog::types::{Offset, PublisherId, RoomName, Start};

use crate::codec;

const PAYLOAD_BYTES: usize = 128;
/// A log that has grown to this is replaced by a new one: volumes are not what is measured here.
const LOG_BYTES_MAX: usize = 64 << 20;
const PULL_BYTES: usize = 64 << 10;

/// Lets a thread wait until others have done so much.
#[derive(Debug, Default)]
struct Gate {
    done: Mutex<usize>,
    more: Condvar,
}

impl Gate {
    fn add(&self, count: usize) {
        *self.done.lock().expect("nobody panics") += count;
        self.more.notify_one();
    }

    /// Waits for so many, and begins anew.
    fn wait(&self, count: usize) {
        let mut done = self.done.lock().expect("nobody panics");
        while *done < count {
            done = self.more.wait(done).expect("nobody panics");
        }
        *done = 0;
    }
}

impl Reply for Gate {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        assert!(answers.iter().all(|answer| answer.outcome.is_ok()), "a publish was refused");
        self.add(answers.len());
    }
}

impl Wake for Gate {
    fn wake(&self, _targets: Targets) {
        self.add(1);
    }
}

/// A log with rooms, and who publishes into them.
struct Log {
    broker: Broker,
    rooms: Vec<Arc<Room>>,
    seqs: Vec<u64>,
    record: Vec<u8>,
    hash: u32,
    user: Arc<str>,
    answered: Arc<Gate>,
    submission: Submission,
    bytes: usize,
}

impl Log {
    fn new(rooms: usize) -> Self {
        let broker = Broker::open_blocking(Options::in_memory()).expect("memory opens");
        let name = |number: usize| RoomName::new(&format!("room-{number}")).expect("a good name");
        let handles = (0..rooms).map(|number| broker.room(&name(number)).expect("a room")).collect();
        let record = codec::area(1, PAYLOAD_BYTES);
        let (first, _) = roomlog::protocol::RecordArea(&record).split_first().expect("encoded here").expect("one");
        let answered = Arc::new(Gate::default());
        let submission = Submission::new(Arc::clone(&answered) as Arc<dyn Reply>);
        let (seqs, hash, user) = (vec![0; rooms], record_hash(first), Arc::from(""));
        Self { broker, rooms: handles, seqs, record, hash, user, answered, submission, bytes: 0 }
    }

    /// Hands over so many publishes, one record each and over the rooms in turn, and waits until all are answered.
    fn publish(&mut self, count: usize) {
        for number in 0..count {
            let room = number % self.rooms.len();
            self.seqs[room] += 1;
            let (publisher, seq) = (PublisherId([7; 16]), self.seqs[room]);
            let hashes = [self.hash];
            self.submission.push(&self.rooms[room], &self.user, publisher, seq, None, 0, &self.record, &hashes);
        }
        self.broker.submit(&mut self.submission);
        self.answered.wait(count);
        self.bytes += count * self.record.len();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(self.broker.close());
    }
}

/// From handing publishes over until all are answered, on two threads: the submitter's and the committer's.
pub(crate) fn commit(publishes: usize, rooms: usize) -> Box<dyn FnMut()> {
    let mut log = Log::new(rooms);
    Box::new(move || {
        if log.bytes > LOG_BYTES_MAX {
            log = Log::new(rooms);
        }
        log.publish(publishes);
    })
}

/// So many batches behind an offset, as a reader looks at them.
pub(crate) fn tail(batches: u64) -> Box<dyn FnMut()> {
    let mut log = Log::new(1);
    (0..10 * batches).for_each(|_| log.publish(1));
    let after = Offset(5 * batches);
    Box::new(move || {
        let mut left = batches;
        let tail = log.rooms[0].tail(after, |block| {
            black_box(&block.body);
            left = left.saturating_sub(1);
            left > 0
        });
        assert!(matches!(tail, Tail::Batches { .. }) && left == 0);
    })
}

/// A publish to a room with so many readers, each of a session of its own, until each has pulled it.
pub(crate) fn wake(readers: usize) -> Box<dyn FnMut()> {
    let prepare = move || {
        let log = Log::new(1);
        let woken = Arc::new(Gate::default());
        let name = RoomName::new("room-0").expect("a good name");
        let readers: Vec<Readers> = (0..readers)
            .map(|_| {
                let wake = Arc::clone(&woken) as Arc<dyn Wake>;
                let readers = log.broker.readers(log.broker.new_session(), wake);
                readers.join(JoinId(1), 0, &name, Start::New, None).expect("joined");
                // A reader is live from its first pull on.
                readers.pull(PULL_BYTES, PULL_BYTES, |_| {});
                readers
            })
            .collect();
        *woken.done.lock().expect("nobody panics") = 0;
        (log, woken, readers)
    };
    let (mut log, mut woken, mut all) = prepare();
    Box::new(move || {
        if log.bytes > LOG_BYTES_MAX {
            (log, woken, all) = prepare();
        }
        log.publish(1);
        woken.wait(readers);
        let mut pulled = 0;
        for one in &all {
            one.pull(PULL_BYTES, PULL_BYTES, |output| pulled += usize::from(matches!(output, Output::Records(..))));
        }
        assert_eq!(pulled, readers);
    })
}
