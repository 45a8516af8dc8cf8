//! What the committer must survive: commits of many small things, and whatever goes wrong in those it calls.

use std::time::{Duration, Instant};

use super::*;
use crate::storage::room::Follow;

fn open(options: Options) -> Stepped {
    let store: Arc<dyn BlockStore> = Arc::new(MemoryBlockStore::default());
    Stepped::open(options, &FaultyDisk::new(1), &store).expect("a new log")
}

pub(super) fn record() -> (Vec<u8>, u32) {
    record_of(1)
}

fn record_of(bytes: usize) -> (Vec<u8>, u32) {
    let mut area = Vec::new();
    RecordArea::push(&mut area, &NewRecord::new(&vec![b'x'; bytes]));
    let hash = record_hash(RecordArea(&area).split_first().expect("encoded just now").expect("a record").0);
    (area, hash)
}

#[test]
fn a_commit_of_very_many_small_publishes_is_split_before_it_is_too_long_for_a_unit() {
    let mut log = open(options(1));
    let (area, hash) = record();
    let room = log.shared.catalog.room("one").expect("a room");
    let user: Arc<str> = Arc::from("u".repeat(1000));
    let mut submission = Submission::new(Arc::clone(&log.answers) as Arc<dyn Reply>);
    for tag in 1..=40_000_u32 {
        // Two take turns, so that no two publishes are a row.
        let (publisher, seq) = (PublisherId([u8::from(tag % 2 == 0); 16]), u64::from(tag.div_ceil(2)));
        submission.push(&room, &user, publisher, seq, None, tag, &area, &[hash]);
    }
    assert!(log.shared.queue.submit(&mut submission));
    assert_eq!(log.committer.step(), Step::Answered);
    let answers = std::mem::take(&mut *log.answers.0.lock());
    assert_eq!(answers.len(), 40_000);
    assert!(answers.iter().all(|(tag, outcome)| outcome.as_ref().is_ok_and(|it| it.first.0 == u64::from(*tag))));
    assert!(log.shared.committed.lock().seq.0 > 1, "more than one commit");
}

#[test]
fn rows_of_which_each_publish_becomes_a_run_of_its_own_are_split_before_they_are_too_long_for_a_unit() {
    let mut log = open(options(1));
    let (area, hash) = record();
    let room = log.shared.catalog.room("one").expect("a room");
    let user: Arc<str> = Arc::from("u".repeat(1000));
    // The second time the first seq of each is a repeat, so that no row is new as a whole.
    for seqs in [1..=1_u32, 1..=1000] {
        let mut submission = Submission::new(Arc::clone(&log.answers) as Arc<dyn Reply>);
        for publisher in 0..40_u8 {
            for seq in seqs.clone() {
                submission.push(&room, &user, PublisherId([publisher; 16]), seq.into(), None, seq, &area, &[hash]);
            }
        }
        assert!(log.shared.queue.submit(&mut submission));
        assert_eq!(log.committer.step(), Step::Answered);
        let answers = std::mem::take(&mut *log.answers.0.lock());
        assert_eq!(answers.len(), 40 * seqs.clone().count());
        let repeats = answers.iter().filter(|(_, it)| it.as_ref().expect("stored").duplicate).count();
        assert_eq!(repeats, if seqs.end() > &1 { 40 } else { 0 });
    }
    assert!(log.shared.committed.lock().seq.0 > 2, "more than one commit");
    assert_eq!(*log.shared.health.lock(), Health::Ok);
}

#[test]
fn very_many_floors_are_split_before_they_are_too_long_for_a_unit() {
    let mut log = open(options(1));
    let mut publisher = Source::new("one");
    log.publish(&[publisher.next(1, 10)]);
    let room = log.shared.catalog.room("one").expect("a room");
    let huge = 1 << 52;
    let floor = crate::storage::commit::Floor {
        floor: Offset(huge),
        first: Offset(huge),
        first_time: Time(u64::MAX),
        records: huge,
        bytes: huge,
    };
    let rise = super::super::queue::Rise { room, floor };
    log.shared.queue.rise(std::iter::repeat_n(rise, 800_000));
    assert_eq!(log.committer.step(), Step::Answered);
    assert_eq!(*log.shared.health.lock(), Health::Ok);
}

#[test]
fn publishes_that_came_in_a_row_are_stored_together_and_answered_one_by_one() {
    let mut log = open(options(3));
    let room = log.shared.catalog.room("one").expect("a room");
    let user: Arc<str> = Arc::from("");
    // Publish n has n records, so the one with tag n begins behind (n - 1) n / 2 others.
    let publish = |log: &mut Stepped, tags: std::ops::RangeInclusive<u32>| {
        let mut submission = Submission::new(Arc::clone(&log.answers) as Arc<dyn Reply>);
        for tag in tags {
            let (record, hash) = record();
            let (area, hashes) = (record.repeat(tag as usize), vec![hash; tag as usize]);
            let seq = u64::from((tag - 1) * tag / 2 + 1);
            submission.push(&room, &user, PublisherId([1; 16]), seq, None, tag, &area, &hashes);
        }
        assert_eq!(submission.appends.len(), 1, "one row");
        assert!(log.shared.queue.submit(&mut submission));
        assert_eq!(log.committer.step(), Step::Answered);
        std::mem::take(&mut *log.answers.0.lock())
    };
    let check = |answers: &[(u32, Outcome)], duplicate: &dyn Fn(u32) -> bool| {
        for (tag, outcome) in answers {
            let appended = outcome.as_ref().expect("stored");
            let before = u64::from((tag - 1) * tag / 2);
            let (first, last) = (Offset(3 * (before + 1)), Offset(3 * (before + u64::from(*tag))));
            assert_eq!((appended.first, appended.last, appended.duplicate), (first, last, duplicate(*tag)), "{tag}");
        }
    };
    let answers = publish(&mut log, 1..=5);
    assert_eq!(answers.len(), 5);
    check(&answers, &|_| false);
    let block = room.tail(Offset::ZERO, |block| {
        assert_eq!(Batch::parse(&block.body).expect("a batch").runs().count(), 1, "one run for all of them");
        true
    });
    assert_eq!(block, crate::storage::Tail::Batches { last: Offset(45), head: true });
    // Repeats and new ones in a row: each for itself.
    let answers = publish(&mut log, 4..=8);
    assert_eq!(answers.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [4, 5, 6, 7, 8]);
    check(&answers, &|tag| tag <= 5);
    assert_eq!(room.facts().records, 36);
    // A row that leaves one out is refused, publish by publish.
    let answers = publish(&mut log, 10..=12);
    assert!(answers.iter().all(|(_, it)| it.as_ref().is_err_and(|why| why.code == Code::OutOfOrder)), "{answers:?}");
    assert_eq!((answers.len(), log.shared.queue.bytes()), (3, 0));
}

/// A follower that notes how it was told, and submits a publish when so many have been.
struct Noting {
    told: Arc<Mutex<Vec<Targets>>>,
    at: usize,
    submission: Mutex<Option<Submission>>,
    shared: std::sync::Weak<Shared>,
}

impl Follow for Noting {
    fn advanced(&self, targets: Targets) {
        let mut told = self.told.lock();
        told.push(targets);
        if told.len() == self.at
            && let Some(mut submission) = self.submission.lock().take()
            && let Some(shared) = self.shared.upgrade()
        {
            assert!(shared.queue.submit(&mut submission));
        }
    }
}

/// How followers of one room were told of a record of so many bytes, if a publish is submitted while the one of this
/// number is told.
fn told(cores: usize, followers: usize, bytes: usize, submit_at: usize) -> (usize, usize) {
    let Stepped { shared, committer, keeper, answers } = open(options(1));
    let mut log = Stepped { committer: committer.on_cores(cores), shared, keeper, answers };
    let (area, hash) = record_of(bytes);
    let room = log.shared.catalog.room("one").expect("a room");
    let publish = |seq| {
        let mut submission = Submission::new(Arc::clone(&log.answers) as Arc<dyn Reply>);
        submission.push(&room, &Arc::from(""), PublisherId([1; 16]), seq, None, 0, &area, &[hash]);
        submission
    };
    let told = Arc::<Mutex<Vec<Targets>>>::default();
    for _ in 0..followers {
        let submission = Mutex::new(Some(publish(2)));
        let shared = Arc::downgrade(&log.shared);
        room.follow(Arc::new(Noting { told: Arc::clone(&told), at: submit_at, submission, shared }));
    }
    assert!(log.shared.queue.submit(&mut publish(1)));
    assert_eq!(log.committer.step(), Step::Answered);
    let told = told.lock();
    assert_eq!(told.len(), followers);
    let few = told.iter().take_while(|it| **it == Targets::Few).count();
    (few, told.iter().skip(few).filter(|it| **it == Targets::Many).count())
}

#[test]
fn on_two_cores_many_are_served_at_once_as_long_as_nothing_waits() {
    // (cores, followers, bytes, one publishes when so many are told) and how many are served at once and later.
    for (load, served) in [
        ((2, 100, 100, 0), (100, 0)),
        ((2, 100, 100, 30), (30, 70)),
        ((2, 127, 4000, 0), (127, 0)),
        // The publisher counts too.
        ((2, 128, 100, 0), (0, 128)),
        ((2, 127, 5000, 0), (0, 127)),
        ((4, 100, 100, 0), (0, 100)),
        ((4, 15, 4000, 0), (15, 0)),
        ((4, 16, 100, 0), (0, 16)),
        // To so few it is quicker whatever waits.
        ((2, 15, 4000, 3), (15, 0)),
        ((2, 15, 5000, 3), (3, 12)),
    ] {
        let (cores, followers, bytes, submit_at) = load;
        assert_eq!(told(cores, followers, bytes, submit_at), served, "{load:?}");
    }
}

/// Answers, and panics when it is to answer the third.
#[derive(Debug, Default)]
struct Fragile(Mutex<Vec<(u32, Outcome)>>);

impl Reply for Fragile {
    fn answered(&self, answers: &[Answer], _targets: Targets) {
        for answer in answers {
            assert_ne!(answer.tag, 2, "as it is meant to be");
            self.0.lock().push((answer.tag, answer.outcome.clone()));
        }
    }
}

#[test]
fn a_panic_while_committing_stops_the_log_and_leaves_no_publisher_waiting() {
    let mut log = open(options(1));
    let (area, hash) = record();
    let (fragile, sound) = (Arc::<Fragile>::default(), Arc::clone(&log.answers));
    for (reply, base) in [(Arc::clone(&fragile) as Arc<dyn Reply>, 0), (sound as Arc<dyn Reply>, 10)] {
        let mut submission = Submission::new(reply);
        for tag in 0..5_u32 {
            let room = log.shared.catalog.room("one").expect("a room");
            let publisher = PublisherId([u8::try_from(base).expect("small"); 16]);
            submission.push(&room, &Arc::from(""), publisher, u64::from(tag) + 1, None, base + tag, &area, &[hash]);
        }
        assert!(log.shared.queue.submit(&mut submission));
    }
    assert_eq!(log.committer.step(), Step::Answered);
    let tags = |answers: &[(u32, Outcome)]| answers.iter().map(|(tag, _)| *tag).collect::<Vec<_>>();
    assert_eq!(tags(&fragile.0.lock()), [0, 1], "whoever panics at its answers has had them");
    let answers = std::mem::take(&mut *log.answers.0.lock());
    assert_eq!(tags(&answers), [10, 11, 12, 13, 14]);
    for (_, outcome) in &answers {
        assert!(outcome.as_ref().is_err_and(|refused| refused.code == Code::StorageFailed), "{outcome:?}");
    }
    assert!(matches!(*log.shared.health.lock(), Health::Failed(_)));
    assert_eq!(log.shared.queue.bytes(), 0);
    let later = log.publish(&[Source::new("two").next(1, 10)]).pop().expect("one answer").expect_err("it has failed");
    assert_eq!(later.code, Code::StorageFailed);
}

/// A store whose volumes cannot even be tried.
#[derive(Debug)]
struct Trap(MemoryBlockStore);

impl BlockStore for Trap {
    fn create(
        &self,
        _directory: &std::path::Path,
    ) -> Result<Box<dyn crate::storage::block_store::BlockWriter>, crate::storage::block_store::BlockStoreError> {
        panic!("as it is meant to be")
    }

    fn open(
        &self,
        directory: &std::path::Path,
    ) -> Result<Arc<dyn crate::storage::block_store::BlockReader>, crate::storage::block_store::BlockStoreError> {
        self.0.open(directory)
    }

    fn remove(&self, directory: &std::path::Path) -> Result<(), crate::storage::block_store::BlockStoreError> {
        self.0.remove(directory)
    }

    fn used_bytes(&self, directory: &std::path::Path) -> Result<u64, crate::storage::block_store::BlockStoreError> {
        self.0.used_bytes(directory)
    }
}

pub(super) fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}

pub(super) fn started(options: Options, store: Arc<dyn BlockStore>) -> Embedded {
    let disk = Arc::new(FaultyDisk::new(1));
    let parts = assemble(options, Arc::new(Metrics::disabled()), disk, store).expect("a new log");
    Embedded::start(parts, None).expect("threads")
}

pub(super) fn submit_one(engine: &dyn Engine, reply: Arc<dyn Reply>) {
    let (area, hash) = record();
    let room = engine.room(&RoomName::new("one").expect("a name")).expect("a room");
    let mut submission = Submission::new(reply);
    submission.push(&room, &Arc::from(""), PublisherId([1; 16]), 1, None, 0, &area, &[hash]);
    engine.submit(&mut submission);
}

#[test]
fn a_panic_of_the_keeper_stops_the_log() {
    let due = Options { stretch_age_max: Duration::ZERO, ..options(1) };
    let log = started(due, Arc::new(Trap(MemoryBlockStore::default())));
    submit_one(&log, Arc::<Answers>::default());
    wait_for("the log fails", || matches!(log.health(), Health::Failed(_)));
    log.close();
}

/// A publisher that is the last to hold the log.
#[derive(Debug)]
struct LastOwner(Mutex<Option<Arc<Embedded>>>, std::sync::mpsc::Sender<()>);

impl Reply for LastOwner {
    fn answered(&self, _answers: &[Answer], _targets: Targets) {
        drop(self.0.lock().take());
        let _ = self.1.send(());
    }
}

#[test]
fn a_log_whose_last_owner_is_dropped_on_the_committers_thread_is_closed() {
    let log = Arc::new(started(options(1), Arc::new(MemoryBlockStore::default())));
    let shared = Arc::clone(&log.shared);
    let room = log.room(&RoomName::new("one").expect("a name")).expect("a room");
    let (dropped, last) = std::sync::mpsc::channel();
    // From here on the publisher alone holds the log.
    let owner = Arc::new(LastOwner(Mutex::new(Some(log)), dropped));
    let (area, hash) = record();
    let mut submission = Submission::new(owner as Arc<dyn Reply>);
    submission.push(&room, &Arc::from(""), PublisherId([1; 16]), 1, None, 0, &area, &[hash]);
    assert!(shared.queue.submit(&mut submission));
    shared.queue.wake();
    last.recv_timeout(Duration::from_secs(60)).expect("the committer answers");
    wait_for("the log is closed", || *shared.health.lock() == Health::Closed);
}

#[test]
fn with_durability_memory_the_volumes_are_bounded_too() {
    let few = Options {
        memory_bytes_max: 8 << 20,
        stretch_bytes: 1 << 20,
        durability: crate::storage::Durability::Memory,
        ..options(1)
    };
    let log = Embedded::open(few, Arc::new(Metrics::disabled())).expect("memory is enough");
    let answers = Arc::<Answers>::default();
    // Bytes that do not compress.
    let mut random = StdRng::seed_from_u64(1);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut seq = 0;
    loop {
        assert!(Instant::now() < deadline, "8 MiB are full at some time");
        let mut payload = vec![0; 60_000];
        random.fill(&mut payload[..]);
        let mut area = Vec::new();
        RecordArea::push(&mut area, &NewRecord::new(&payload));
        let room = log.room(&RoomName::new("one").expect("a name")).expect("a room");
        let mut submission = Submission::new(Arc::clone(&answers) as Arc<dyn Reply>);
        seq += 1;
        let hash = record_hash(RecordArea(&area).split_first().expect("encoded").expect("a record").0);
        submission.push(&room, &Arc::from(""), PublisherId([1; 16]), seq, None, 0, &area, &[hash]);
        log.submit(&mut submission);
        wait_for("the answer", || !answers.0.lock().is_empty());
        if let Err(refused) = answers.0.lock().pop().expect("one answer").1 {
            assert_eq!(refused.code, Code::StorageFull);
            break;
        }
        assert!(seq * 60_000 < 9 << 20, "more than there is");
    }
    log.close();
}
