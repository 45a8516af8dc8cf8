//! Those who use the server: publishers, some of which repeat all they have ever said, readers, slow ones too, and one
//! that sends old publishes again in any order.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::World;
use super::history::{Chain, page};
use super::network::{Place, Who};
use super::server::SHORT;
use crate::client::link::{Dial as _, Inbox, RoomStream};
use crate::client::{Client, Error, Event, HistoryAt, JoinOptions, Options, Published, Receipt};
use crate::protocol::{ClientFrame, Hello, HelloBody, Publish, RecordArea, RequestId, ServerFrame, frame_into};
use crate::types::{Code, NewRecord, Offset, Position, PublisherId, RoomName, Start, Time};

/// One publish: its room and its records.
#[derive(Clone)]
pub(super) struct Unit {
    room: RoomName,
    payloads: Vec<Vec<u8>>,
    /// The number of its first record, where that is chosen beforehand.
    seq: u64,
}

/// Publishes that are made over and over, under one identity.
pub(super) struct Script {
    publisher: PublisherId,
    units: Vec<Unit>,
}

fn options(chance: &mut StdRng) -> Options {
    Options {
        backoff: Duration::from_millis(chance.random_range(1..200)),
        backoff_max: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(3),
        request_timeout: Duration::from_secs(15),
        silence_timeout: Duration::from_secs(8),
        queue_bytes_max: chance.random_range(2_000..40_000),
        queue_publishes_max: chance.random_range(2..60),
        join_bytes_max: chance.random_range(500..20_000),
        ..Options::default()
    }
}

fn client(world: &Arc<World>, who: Who, chance: &mut StdRng, publisher: Option<PublisherId>) -> Client {
    let options = Options { publisher, ..options(chance) };
    Client::dial(Arc::new(Place { network: Arc::clone(&world.network), who }), options)
}

fn some_room(world: &World, chance: &mut StdRng) -> RoomName {
    world.rooms[chance.random_range(0..world.rooms.len())].clone()
}

fn millis(chance: &mut StdRng, most: u64) -> Duration {
    Duration::from_millis(chance.random_range(0..=most))
}

fn payload(name: &str, chance: &mut StdRng) -> Vec<u8> {
    let mut payload = format!("{name}|").into_bytes();
    let length = match chance.random_range(0..20) {
        0 => 3000,
        1..5 => 600,
        _ => 40,
    };
    payload.resize(payload.len() + chance.random_range(0..length), b'x');
    payload
}

fn records(payloads: &[Vec<u8>]) -> Vec<NewRecord<'_>> {
    payloads.iter().map(|payload| NewRecord::new(payload)).collect()
}

/// Writes down what becomes of a publish.
fn await_receipt(world: &Arc<World>, unit: Unit, expect: Option<u64>, receipt: Receipt) -> JoinHandle<()> {
    let story = Arc::clone(world);
    world.spawn(async move {
        let answer = receipt.await;
        answered(&story, &unit, expect, &answer);
    })
}

fn answered(world: &World, Unit { room, payloads, .. }: &Unit, expect: Option<u64>, answer: &Result<Published, Error>) {
    let what = super::history::name(&payloads[0]);
    let mut history = world.history.lock();
    match answer {
        Ok(Published { first, last, duplicate, .. }) => {
            world.say(format_args!("{what} has offset {first}, duplicate: {duplicate}"));
            world.count(if *duplicate { "acknowledged repeats" } else { "acknowledged" });
            history.acknowledged(room, payloads, (first.0, last.0), expect);
        }
        Err(Error::Refused { code, .. }) if *code == Code::ExpectFailed.number() && expect.is_some() => {
            world.say(format_args!("{what} is refused"));
            world.count("unexpected heads");
            history.refused(room, payloads);
        }
        Err(Error::Closed { why: None }) => {
            world.say(format_args!("{what} is unknown"));
            world.count("unknown outcomes");
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Publishes what comes to its mind, under a new identity in each of its lives.
pub(super) async fn publisher(world: Arc<World>, who: Who) {
    let mut chance = world.chance(1000 + who as u64);
    let mut number = 0;
    for life in 0.. {
        let client = client(&world, who, &mut chance, None);
        let name = format!("p{who}.{life}");
        let mut waiting = Vec::new();
        for _ in 0..chance.random_range(10..120) {
            if world.is_calm() {
                break;
            }
            sleep(millis(&mut chance, 400)).await;
            let room = some_room(&world, &mut chance);
            let expects = chance.random_bool(0.25);
            for _ in 0..if expects { 1 } else { chance.random_range(1..6) } {
                number += 1;
                let count = if chance.random_bool(0.2) { chance.random_range(2..5) } else { 1 };
                let payloads: Vec<_> =
                    (0..count).map(|part| payload(&format!("{name} {number}.{part}"), &mut chance)).collect();
                let expect = expects.then(|| {
                    let head = world.history.lock().head(&room);
                    if chance.random_bool(0.8) { head } else { head.saturating_sub(world.stride) }
                });
                for payload in &payloads {
                    world.history.lock().invented(&room, &name, payload);
                }
                let unit = Unit { room: room.clone(), payloads, seq: 0 };
                match client.enqueue(&room, &records(&unit.payloads), expect.map(Offset)).await {
                    Ok(receipt) => waiting.push(await_receipt(&world, unit, expect, receipt)),
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            match chance.random_range(0..30) {
                0 => {
                    let _ = client.summary(&world.rooms).await;
                }
                1 => {
                    let _ = client.ping().await;
                }
                _ => {}
            }
        }
        let calm = world.is_calm();
        if calm {
            client.flush().await.expect("it is open");
        } else if chance.random_bool(0.3) {
            let _ = timeout(millis(&mut chance, 2000), client.flush()).await;
        }
        if chance.random_bool(0.5) {
            client.close().await;
        }
        drop(client);
        for waiting in waiting {
            waiting.await.expect("its panics are told otherwise");
        }
        if calm {
            return;
        }
    }
}

/// Makes the publishes of a script, over and over, until it has once come to the end in calm.
pub(super) async fn repeater(world: Arc<World>, who: Who) {
    let mut chance = world.chance(2000 + who as u64);
    let publisher = PublisherId([u8::try_from(who).expect("few") + 1; 16]);
    let mut seqs = vec![1; world.rooms.len()];
    let name = format!("r{who}");
    let mut units = Vec::new();
    for number in 0..chance.random_range(10..50) {
        let at = chance.random_range(0..world.rooms.len());
        let count = if chance.random_bool(0.3) { chance.random_range(2..4) } else { 1 };
        let payloads: Vec<_> =
            (0..count).map(|part| payload(&format!("{name} {number}.{part}"), &mut chance)).collect();
        let room = world.rooms[at].clone();
        for payload in &payloads {
            world.history.lock().invented(&room, &name, payload);
        }
        units.push(Unit { room, payloads, seq: seqs[at] });
        seqs[at] += count;
    }
    world.scripts.lock().push(Arc::new(Script { publisher, units: units.clone() }));
    loop {
        let client = client(&world, who, &mut chance, Some(publisher));
        let mut waiting = Vec::new();
        let end = chance.random_range(1..=2 * units.len());
        let calm = world.is_calm();
        for (index, unit) in units.iter().enumerate() {
            if index >= end && !calm {
                break;
            }
            if !calm {
                sleep(millis(&mut chance, 200)).await;
            }
            let receipt = client.enqueue(&unit.room, &records(&unit.payloads), None).await;
            waiting.push(await_receipt(&world, unit.clone(), None, receipt.expect("it is open")));
        }
        if calm {
            client.flush().await.expect("it is open");
        } else {
            let _ = timeout(millis(&mut chance, 3000), client.flush()).await;
        }
        drop(client);
        for waiting in waiting {
            waiting.await.expect("its panics are told otherwise");
        }
        if calm {
            return;
        }
    }
}

#[derive(Default)]
struct Ears {
    frames: Mutex<Vec<Vec<u8>>>,
    heard: Notify,
}

impl Inbox for Ears {
    fn frames(&self, frames: &[u8], _stream: Option<&RoomStream>) -> Result<(), Error> {
        let split = crate::protocol::Frames::new(frames, 4 << 20);
        self.frames.lock().extend(split.map(|frame| frame.expect("whole").to_vec()));
        self.heard.notify_one();
        Ok(())
    }

    fn ping(&self, _payload: &[u8]) {}

    fn alive(&self) {}
}

/// Sends publishes of the scripts again, in any order and any portions, on connections of its own.
pub(super) async fn ghost(world: Arc<World>, who: Who) {
    let mut chance = world.chance(3000 + who as u64);
    while !world.is_calm() {
        sleep(millis(&mut chance, 2000)).await;
        let script = {
            let scripts = world.scripts.lock();
            if scripts.is_empty() {
                continue;
            }
            Arc::clone(&scripts[chance.random_range(0..scripts.len())])
        };
        let place = Place { network: Arc::clone(&world.network), who };
        let Ok(Ok((read, write))) = timeout(Duration::from_secs(5), place.dial()).await else { continue };
        let (reader, mut writer) = crate::client::link::over(read, write);
        let ears = Arc::<Ears>::default();
        let reading = tokio::spawn(reader.run(Arc::clone(&ears) as Arc<dyn Inbox>));
        let body = HelloBody { token: None, client: "ghost", resume: Vec::new() }.to_bytes();
        let mut out = Vec::new();
        frame_into(&mut out, |out| ClientFrame::Hello(Hello::new(&body)).encode_into(out));
        let mut sent = Vec::new();
        for _ in 0..chance.random_range(1..12) {
            let unit = &script.units[chance.random_range(0..script.units.len())];
            // Records may be repeated in other portions than they came in at first.
            let skip = chance.random_range(0..unit.payloads.len());
            let payloads = unit.payloads[skip..].to_vec();
            let mut area = Vec::new();
            for payload in &payloads {
                RecordArea::push(&mut area, &NewRecord::new(payload));
            }
            let request = RequestId::try_from(sent.len() + 1).expect("few");
            let publish = Publish {
                request,
                room: unit.room.as_str(),
                publisher: script.publisher,
                seq: unit.seq + skip as u64,
                expect: None,
                count: u32::try_from(payloads.len()).expect("few"),
                records: RecordArea(&area),
            };
            frame_into(&mut out, |out| ClientFrame::Publish(publish).encode_into(out));
            sent.push(Unit { room: unit.room.clone(), payloads, seq: 0 });
        }
        let mut answers = 0;
        let talk = async {
            if writer.send(&mut out).await.is_err() {
                return;
            }
            while answers < sent.len() {
                ears.heard.notified().await;
                for frame in std::mem::take(&mut *ears.frames.lock()) {
                    match ServerFrame::parse(&frame).expect("a frame").expect("one that is known") {
                        ServerFrame::Published(published) => {
                            let unit = &sent[published.request as usize - 1];
                            let offsets = (published.first.0, published.last.0);
                            world.count("acknowledged repeats out of order");
                            world.history.lock().acknowledged(&unit.room, &unit.payloads, offsets, None);
                            answers += 1;
                        }
                        ServerFrame::Error(fault) => {
                            let code = Code::from_number(fault.code).expect("a code that is known");
                            world.say(format_args!("the ghost is refused: {code}"));
                            // Nobody else publishes under these numbers: never a conflict.
                            let fine = matches!(code, Code::OutOfOrder | Code::PublisherForgotten)
                                || code.advice() == crate::types::Advice::Retry
                                // Some of it is stored, the rest is not yet.
                                || code == Code::PublisherConflict && sent[fault.request as usize - 1].payloads.len() > 1;
                            assert!(fine, "{code}: {}", fault.message);
                            answers += 1;
                        }
                        _ => {}
                    }
                }
            }
        };
        let _ = timeout(Duration::from_secs(6), talk).await;
        reading.abort();
    }
}

/// Reads some rooms, each in its own way, through several lives.
pub(super) async fn subscriber(world: Arc<World>, who: Who) {
    let mut chance = world.chance(4000 + who as u64);
    let mut chains: Vec<_> = world
        .rooms
        .iter()
        .filter(|_| chance.random_bool(0.7))
        .map(|room| {
            let may_miss = room.as_str().starts_with(SHORT);
            Chain { room: room.clone(), who: format!("s{who}"), at: None, may_miss }
        })
        .collect();
    for life in 0.. {
        let client = client(&world, who, &mut chance, None);
        let lives = if world.is_calm() { Duration::from_secs(100_000) } else { millis(&mut chance, 30_000) };
        let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
        let count = chains.len();
        for chain in chains.drain(..) {
            let chance = world.chance(5000 + 100 * who as u64 + 10_000 * life + chance.random_range(0..100));
            let (story, client, done) = (Arc::clone(&world), client.clone(), done.clone());
            world.spawn(async move {
                let read = read(story, client, chain, chance, lives).await;
                let _ = done.send(read);
            });
        }
        let mut all = true;
        for _ in 0..count {
            let (chain, at_the_end) = finished.recv().await.expect("one for each");
            all &= at_the_end;
            chains.push(chain);
        }
        if all {
            return client.close().await;
        }
        if chance.random_bool(0.5) {
            client.close().await;
        }
    }
}

/// Reads a room until the life of its client is over, or until there will be no more.
async fn read(
    world: Arc<World>,
    client: Client,
    mut chain: Chain,
    mut chance: StdRng,
    lives: Duration,
) -> (Chain, bool) {
    let until = tokio::time::Instant::now() + lives;
    let slow = chance.random_bool(0.3);
    // The epoch is the same all the time, or the server has lost something.
    let mut epoch = None;
    loop {
        if until <= tokio::time::Instant::now() && !world.is_calm() {
            return (chain, false);
        }
        let start = match (chain.at, epoch) {
            (Some(at), Some(epoch)) => Start::After(Position { epoch, offset: Offset(at) }),
            (Some(at), None) => match client.summary(&[]).await {
                Ok(list) => Start::After(Position { epoch: list.epoch, offset: Offset(at) }),
                Err(Error::Timeout { .. }) => continue,
                Err(error) => panic!("{}: {error}", chain.who),
            },
            (None, _) => match chance.random_range(0..5) {
                0 => Start::New,
                1 => Start::Last(chance.random_range(0..60)),
                2 => Start::Since(Time(Time::now().0.saturating_sub(chance.random_range(0..20_000_000)))),
                _ => Start::Earliest,
            },
        };
        let joined = client.join_with(&chain.room, start, JoinOptions::default()).await;
        let mut subscription = match joined {
            Ok(subscription) => subscription,
            Err(Error::Timeout { .. }) => continue,
            Err(error) => panic!("{:?}, {}: a join {start:?} fails: {error}", chain.room, chain.who),
        };
        epoch = Some(subscription.joined().epoch);
        world.say(format_args!("{} reads {:?} from {}", chain.who, chain.room, subscription.joined().start));
        chain.joined(&subscription.joined());
        loop {
            let settled = world.settled.borrow().clone();
            if settled.is_some_and(|heads| heads.get(&chain.room).copied().unwrap_or_default() == chain.at.unwrap_or(0))
            {
                return (chain, true);
            }
            let event = match timeout(Duration::from_millis(500), subscription.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => panic!("{:?}, {}: nothing follows", chain.room, chain.who),
                Err(_) if until <= tokio::time::Instant::now() && !world.is_calm() => return (chain, false),
                Err(_) => continue,
            };
            match &event {
                Event::Batch(batch) => {
                    chain.batch(&mut world.history.lock(), batch);
                    world.say(format_args!("{} is at {:?} of {:?}", chain.who, chain.at, chain.room));
                    world.count("deliveries");
                }
                Event::Gap { from, to, .. } => {
                    chain.gap(from.0, to.0);
                    world.count("gaps");
                }
                Event::Lagging { .. } => world.count("readers that lag"),
                Event::Live { .. } | Event::CaughtUp { .. } => {}
                Event::Left { why } | Event::Void { why, .. } => {
                    panic!("{:?}, {}: the subscription ends: {why}", chain.room, chain.who)
                }
            }
            if world.is_calm() {
                continue;
            }
            let pause = if slow && chance.random_bool(0.2) { 3000 } else { 20 };
            if chance.random_bool(0.3) {
                sleep(millis(&mut chance, pause)).await;
            }
            match chance.random_range(0..60) {
                0 => look_back(&world, &client, &chain, &mut chance).await,
                1 => {
                    // It goes away, and comes back later; or forgets where it was.
                    drop(subscription);
                    sleep(millis(&mut chance, 4000)).await;
                    if chance.random_bool(0.3) {
                        chain.at = None;
                    }
                    break;
                }
                _ => {}
            }
        }
    }
}

async fn look_back(world: &World, client: &Client, chain: &Chain, chance: &mut StdRng) {
    let Ok(list) = client.summary(std::slice::from_ref(&chain.room)).await else { return };
    let head = list.rooms[0].head.0;
    let stride = world.stride;
    let offset = Offset(stride * chance.random_range(0..=head / stride));
    let position = Position { epoch: list.epoch, offset };
    let at = match chance.random_range(0..3) {
        0 => HistoryAt::Before(chance.random_bool(0.5).then_some(position)),
        1 => HistoryAt::After(chance.random_bool(0.5).then_some(position)),
        _ => HistoryAt::Around(position),
    };
    match client.history(&chain.room, at, chance.random_range(1..40)).await {
        Ok(found) => {
            world.count("pages");
            page(&mut world.history.lock(), &chain.room, &chain.who, &found.batches);
        }
        Err(Error::Timeout { .. }) => {}
        Err(error) => panic!("{:?}, {}: a page {at:?}: {error}", chain.room, chain.who),
    }
}
