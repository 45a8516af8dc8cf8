use std::io;
use std::sync::Arc;

use super::*;
use crate::broker::{Broker, Options, Wake};
use crate::metrics::{Metrics, Transport};
use crate::protocol::{Frames, JoinId, ServerFrame};
use crate::session::Host;
use crate::storage::Targets;
use crate::types::{NewRecord, RoomName, Start};

struct Nobody;

impl Wake for Nobody {
    fn wake(&self, _targets: Targets) {}
}

fn outbox() -> Outbox {
    outbox_of(&Arc::new(Host::new(usize::MAX, usize::MAX, None)))
}

fn outbox_of(budget: &Arc<Host>) -> Outbox {
    Outbox::new(Arc::new(Metrics::disabled()), Transport::WebSocket, Arc::clone(budget))
}

/// A socket that takes what a script allows: a number of bytes, or nothing for now.
struct Script {
    taken: Vec<u8>,
    calls: usize,
    turns: Vec<usize>,
}

impl Script {
    fn new(turns: impl IntoIterator<Item = usize>) -> Self {
        let mut turns: Vec<_> = turns.into_iter().collect();
        turns.reverse();
        Self { taken: Vec::new(), calls: 0, turns }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.calls += 1;
        assert!(slices.iter().all(|slice| !slice.is_empty()));
        let mut left = match self.turns.pop() {
            Some(0) => return Err(ErrorKind::WouldBlock.into()),
            Some(bytes) => bytes,
            None => usize::MAX,
        };
        let before = self.taken.len();
        for slice in slices {
            let part = &slice[..slice.len().min(left)];
            self.taken.extend_from_slice(part);
            left -= part.len();
        }
        Ok(self.taken.len() - before)
    }

    /// The messages and control frames that came: first byte and payload.
    fn messages(&self) -> Vec<(u8, Vec<u8>)> {
        let (mut rest, mut messages) = (&self.taken[..], Vec::new());
        while let [first, length, behind @ ..] = rest {
            let (length, behind) = match *length {
                126 => (usize::from(u16::from_be_bytes([behind[0], behind[1]])), &behind[2..]),
                127 => (u64::from_be_bytes(behind[..8].try_into().expect("8 bytes")) as usize, &behind[8..]),
                length => (usize::from(length), behind),
            };
            messages.push((*first, behind[..length].to_vec()));
            rest = &behind[length..];
        }
        messages
    }
}

/// The lengths of the payloads of all deliveries, each of which has to be whole.
fn payload_lengths(messages: &[(u8, Vec<u8>)]) -> Vec<usize> {
    let mut lengths = Vec::new();
    for (_, message) in messages {
        for frame in Frames::new(message, usize::MAX) {
            let frame = ServerFrame::parse(frame.expect("whole")).expect("canonical");
            let Some(ServerFrame::Delivery(delivery)) = frame else { continue };
            let batch = crate::protocol::Batch::parse(delivery.body).expect("a batch");
            let records = batch.records(delivery.header.prev).map(|record| record.expect("a record"));
            lengths.extend(records.map(|record| {
                assert!(record.content.payload.iter().all(|byte| *byte == b'x'));
                record.content.payload.len()
            }));
        }
    }
    lengths
}

/// A room with payloads of these lengths, and the writing side of a session that has joined it.
async fn joined(lengths: &[usize]) -> (Broker, Out) {
    let broker = Broker::open(Options::in_memory()).await.expect("it opens");
    let room = RoomName::new("tea").expect("a name");
    let publisher = broker.publisher("");
    for length in lengths {
        publisher.publish(&room, &[NewRecord::new(&vec![b'x'; *length])], None).await.expect("it is stored");
    }
    let readers = broker.readers(1, Arc::new(Nobody));
    readers.join(JoinId(5), 1, &room, Start::Earliest, None).expect("it is joined");
    (broker, Out { readers: Some(readers), ..Out::new(64 << 10) })
}

#[tokio::test]
async fn however_little_a_socket_takes_the_same_bytes_come_out_once() {
    let lengths = [10, 600, 100, 511, 512, 40_000, 3];
    let (_broker, mut out) = joined(&lengths).await;
    let outbox = outbox();
    outbox.push(&ServerFrame::Ok(7));
    let mut whole = Script::new([]);
    assert_eq!(out.pump(&outbox, 8, |slices| whole.write(slices)), Pumped::All);
    let messages = whole.messages();
    assert_eq!(messages[0].1, [2, 67, 7], "answers go first");
    assert_eq!(payload_lengths(&messages), lengths);

    let seed = crate::session::tests::seed();
    let mut random = <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(seed);
    use rand::Rng as _;
    for _ in 0..50 {
        let (_broker, mut out) = joined(&lengths).await;
        outbox.push(&ServerFrame::Ok(7));
        let mut script = Script::new((0..10_000).map(|_| match random.random_range(0..4) {
            0 => 0,
            1 => random.random_range(1..30),
            _ => random.random_range(1..3000),
        }));
        loop {
            match out.pump(&outbox, 1, |slices| script.write(slices)) {
                Pumped::All => break,
                Pumped::Blocked => {
                    assert!(out.blocked);
                    if random.random() {
                        out.settle();
                    }
                }
                Pumped::More => {}
                Pumped::Broken => panic!("the socket is whole"),
            }
        }
        assert_eq!(payload_lengths(&script.messages()), lengths);
        assert_eq!(script.messages().len(), messages.len());
        assert_eq!(out.taken, script.taken.len() as u64);
    }
}

#[tokio::test]
async fn many_deliveries_go_out_in_one_call() {
    let (_broker, mut out) = joined(&[100; 100]).await;
    let mut script = Script::new([]);
    assert_eq!(out.pump(&outbox(), 8, |slices| script.write(slices)), Pumped::All);
    assert_eq!(script.messages().len(), 101, "each record was committed alone, and then it was live");
    assert_eq!(script.calls, 1);
}

#[tokio::test]
async fn an_answer_overtakes_what_has_not_been_begun() {
    let (_broker, mut out) = joined(&[30_000; 20]).await;
    let outbox = outbox();
    let mut script = Script::new([100, 0]);
    assert_eq!(out.pump(&outbox, 8, |slices| script.write(slices)), Pumped::Blocked);
    outbox.push(&ServerFrame::Ok(7));
    out.pong(b"pong");
    assert_eq!(out.pump(&outbox, 100, |slices| script.write(slices)), Pumped::All);
    let messages = script.messages();
    let at = messages.iter().position(|(_, message)| *message == [2, 67, 7]).expect("it came");
    assert!(at <= 4, "behind what was begun, before the rest: {at} of {}", messages.len());
    assert_eq!(messages[at - 1], (0x8a, b"pong".to_vec()));
}

#[tokio::test]
async fn a_stalled_peer_holds_no_more_than_was_begun() {
    let (_broker, mut out) = joined(&[1000; 1000]).await;
    let mut script = Script::new([1, 0, 0, 0]);
    for _ in 0..3 {
        assert_eq!(out.pump(&outbox(), 8, |slices| script.write(slices)), Pumped::Blocked);
    }
    let rest = out.rest.as_ref().expect("it was begun");
    assert!(rest.bytes <= 64 << 10, "{}", rest.bytes);
    assert!(rest.buffer.capacity() <= rest.bytes);
}

#[test]
fn what_waits_for_long_keeps_no_body_that_nobody_else_keeps() {
    let (alone, shared) = (Bytes::from(vec![b'a'; 40_000]), Bytes::from(vec![b's'; 40_000]));
    let elsewhere = shared.clone();
    let mut work = Work::default();
    for (head, body) in [(b"first ", alone), (b"second", shared)] {
        work.buffer.extend_from_slice(head);
        work.share(body);
    }
    work.bytes += work.buffer.len();
    let all = [&b"first "[..], &[b'a'; 40_000], b"second", &elsewhere].concat();
    let flat = |work: &Work, written| {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = work.slices(written, &mut slices);
        slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>()
    };
    let mut rest = work.rest(1000);
    drop(work);
    let settled = rest.settled(34_000);
    assert_eq!(flat(&settled, 0), all[35_000..]);
    assert_eq!((settled.bytes, settled.buffer.capacity()), (all.len() - 35_000, 5006 + 6));
    assert!(!elsewhere.is_unique(), "it is shared");
    rest = settled.settled(20_000);
    drop((settled, elsewhere));
    assert_eq!(flat(&rest, 0), all[55_000..]);
    let rest = rest.settled(0);
    assert!(rest.shared.is_empty());
    assert_eq!((flat(&rest, 0), rest.buffer.capacity()), (all[55_000..].to_vec(), rest.bytes));
}

#[test]
fn a_close_goes_behind_the_answers_and_nothing_behind_it() {
    let (mut out, outbox) = (Out::new(64 << 10), outbox());
    outbox.push(&ServerFrame::Ok(7));
    out.close(Some(4302), "the server shuts down");
    let mut script = Script::new([]);
    assert_eq!(out.pump(&outbox, 8, |slices| script.write(slices)), Pumped::All);
    outbox.push(&ServerFrame::Ok(8));
    assert_eq!(out.pump(&outbox, 8, |slices| script.write(slices)), Pumped::All);
    let close = [&4302_u16.to_be_bytes()[..], b"the server shuts down"].concat();
    assert_eq!(script.messages(), [(0x82, vec![2, 67, 7]), (0x88, close)]);
}

#[test]
fn a_broken_socket_is_told() {
    let (mut out, outbox) = (Out::new(64 << 10), outbox());
    outbox.push(&ServerFrame::Ok(7));
    assert_eq!(out.pump(&outbox, 8, |_| Err(ErrorKind::BrokenPipe.into())), Pumped::Broken);
    let (mut out, outbox) = (Out::new(64 << 10), self::outbox());
    outbox.push(&ServerFrame::Ok(7));
    assert_eq!(out.pump(&outbox, 8, |_| Ok(0)), Pumped::Broken);
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let (mut out, outbox) = (Out::new(64 << 10), outbox());
    out.close(Some(4600), &"ü".repeat(100));
    let mut script = Script::new([]);
    assert_eq!(out.pump(&outbox, 1, |slices| script.write(slices)), Pumped::All);
    let (_, payload) = &script.messages()[0];
    assert!(payload.len() <= 125);
    assert_eq!(std::str::from_utf8(&payload[2..]), Ok("ü".repeat(61).as_str()));
}

#[tokio::test]
async fn what_stalled_peers_hold_is_counted_and_little_is_begun_when_it_is_too_much() {
    let budget = Arc::new(Host::new(20_000, usize::MAX, None));
    let stall = |outbox: &Outbox, out: &mut Out| {
        let mut script = Script::new([1, 0]);
        assert_eq!(out.pump(outbox, 8, |slices| script.write(slices)), Pumped::Blocked);
        out.rest.as_ref().expect("it was begun").bytes
    };
    let (_first, mut generous) = joined(&[1000; 100]).await;
    let (_second, mut modest) = joined(&[1000; 100]).await;
    let (one, other) = (outbox_of(&budget), outbox_of(&budget));
    let much = stall(&one, &mut generous);
    assert!(much > 30_000, "{much}");
    let little = stall(&other, &mut modest);
    assert!(little < 3_000, "{little}");
    assert_eq!(budget.send.used(), much + little);
    let mut script = Script::new([]);
    assert_eq!(generous.pump(&one, 100, |slices| script.write(slices)), Pumped::All);
    assert_eq!(budget.send.used(), little);
    drop(other);
    assert_eq!(budget.send.used(), 0);
}
