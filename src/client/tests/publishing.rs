//! Publishing: identity and order across lost connections, refusals, bounds.

use super::super::{Error, ErrorKind, Published, Receipt};
use super::peer::Conn;
use super::*;
use crate::protocol::{self, ClientFrame, Fault, ServerFrame, WelcomeLimits};
use crate::types::{Code, Limits, NewRecord, Offset, PublisherId, Time};

/// What a publish says, without its request.
#[derive(Clone, PartialEq, Debug)]
struct Seen {
    room: String,
    publisher: PublisherId,
    seq: u64,
    count: u32,
    records: Vec<u8>,
}

async fn publish(conn: &mut Conn) -> (u32, Seen) {
    let frame = conn.request().await;
    let Ok(ClientFrame::Publish(publish)) = ClientFrame::parse(&frame) else { panic!("no publish: {frame:?}") };
    let seen = Seen {
        room: publish.room.to_owned(),
        publisher: publish.publisher,
        seq: publish.seq,
        count: publish.count,
        records: publish.records.0.to_vec(),
    };
    (publish.request, seen)
}

async fn acknowledge(conn: &mut Conn, request: u32, offset: u64, duplicate: bool) {
    let (first, last) = (Offset(offset), Offset(offset));
    conn.send(&ServerFrame::Published(protocol::Published { request, first, last, time: Time(1), duplicate })).await;
}

async fn refuse(conn: &mut Conn, request: u32, code: Code) {
    let mut fault = Fault::new(request, code, "as the script says");
    fault.retry_after_ms = fault.retry_after_ms.min(1);
    conn.send(&ServerFrame::Error(fault)).await;
}

async fn enqueue(client: &Client, room: &RoomName, payload: &str) -> Receipt {
    client.enqueue(room, &[NewRecord::new(payload.as_bytes())], None).await.expect("room in the queue")
}

async fn answer(receipt: Receipt) -> Result<Published, Error> {
    soon("the answer", receipt).await
}

async fn publishes_survive_a_lost_connection(peer: Peer) {
    let client = open(&peer);
    let log = room("log");
    let mut receipts = Vec::new();
    for text in ["one", "two", "three", "four"] {
        receipts.push(enqueue(&client, &log, text).await);
    }
    assert_eq!(client.pending().publishes, 4);
    let (mut conn, _) = peer.welcome().await;
    let mut first_run = Vec::new();
    for seq in 1..=4 {
        let (request, seen) = publish(&mut conn).await;
        assert_eq!((seen.seq, seen.count), (seq, 1));
        first_run.push((request, seen));
    }
    acknowledge(&mut conn, first_run[0].0, 1, false).await;
    let mut receipts = receipts.into_iter();
    let mut receipt = || receipts.next().expect("four of them");
    assert_eq!(answer(receipt()).await.expect("stored").first, Offset(1));
    drop(conn);

    let (mut conn, _) = peer.welcome().await;
    for (offset, (_, before)) in (2..).zip(&first_run[1..]) {
        let (request, seen) = publish(&mut conn).await;
        assert_eq!(seen, *before);
        // The second had been stored before the connection was lost.
        acknowledge(&mut conn, request, offset, offset == 2).await;
    }
    let two = answer(receipt()).await.expect("stored");
    assert_eq!((two.first, two.seq, two.duplicate), (Offset(2), 2, true));
    assert!(!answer(receipt()).await.expect("stored").duplicate);
    assert_eq!(answer(receipt()).await.expect("stored").last, Offset(4));
    soon("the flush", client.flush()).await.expect("open");
    assert_eq!(client.pending(), Default::default());
}

#[tokio::test]
async fn publishes_survive_a_lost_connection_in_order_and_unchanged_over_web_socket() {
    publishes_survive_a_lost_connection(Peer::web_socket().await).await;
}

#[tokio::test]
async fn publishes_survive_a_lost_connection_in_order_and_unchanged_over_quic() {
    publishes_survive_a_lost_connection(Peer::quic()).await;
}

#[tokio::test]
async fn a_busy_broker_gets_the_same_publishes_again_in_order() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let log = room("log");
    let receipts = [enqueue(&client, &log, "a").await, enqueue(&client, &log, "b").await];
    let (mut conn, _) = peer.welcome().await;
    let (first, a) = publish(&mut conn).await;
    let (second, b) = publish(&mut conn).await;
    refuse(&mut conn, first, Code::Busy).await;
    refuse(&mut conn, second, Code::OutOfOrder).await;
    for (offset, before) in [(1, a), (2, b)] {
        let (request, seen) = publish(&mut conn).await;
        assert_eq!(seen, before);
        acknowledge(&mut conn, request, offset, false).await;
    }
    for receipt in receipts {
        assert!(answer(receipt).await.is_ok());
    }
}

#[tokio::test]
async fn what_is_behind_a_refused_publish_goes_on_under_a_fresh_publisher() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let log = room("log");
    let receipts =
        [enqueue(&client, &log, "a").await, enqueue(&client, &log, "b").await, enqueue(&client, &log, "c").await];
    let (mut conn, _) = peer.welcome().await;
    let (a, seen) = publish(&mut conn).await;
    let (b, _) = publish(&mut conn).await;
    let (c, last) = publish(&mut conn).await;
    acknowledge(&mut conn, a, 1, false).await;
    refuse(&mut conn, b, Code::ExpectFailed).await;
    let (again, fresh) = publish(&mut conn).await;
    assert_ne!(fresh.publisher, seen.publisher);
    assert_eq!((fresh.seq, &fresh.records), (1, &last.records));
    // The answer to the old number is of no interest any more.
    refuse(&mut conn, c, Code::OutOfOrder).await;
    acknowledge(&mut conn, again, 2, false).await;
    let [a, b, c] = receipts;
    assert_eq!(answer(a).await.expect("stored").publisher, seen.publisher);
    let refused = answer(b).await.expect_err("refused");
    assert_eq!((refused.code(), refused.kind()), (Some(Code::ExpectFailed), ErrorKind::Change));
    assert_eq!(answer(c).await.expect("stored").publisher, fresh.publisher);
}

#[tokio::test]
async fn a_chosen_publisher_is_never_exchanged_and_numbers_on_where_it_was_refused() {
    let peer = Peer::web_socket().await;
    let publisher = PublisherId([3; 16]);
    let client = Client::open(&peer.url(), Options { publisher: Some(publisher), first_seq: 10, ..options() })
        .expect("a client");
    let log = room("log");
    let receipts = [enqueue(&client, &log, "a").await, enqueue(&client, &log, "b").await];
    let (mut conn, _) = peer.welcome().await;
    let (a, seen) = publish(&mut conn).await;
    assert_eq!((seen.publisher, seen.seq), (publisher, 10));
    let (b, _) = publish(&mut conn).await;
    let third = enqueue(&client, &log, "c").await;
    refuse(&mut conn, a, Code::TooLarge).await;
    let (c, seen) = publish(&mut conn).await;
    // It was sent before the refusal came, behind the others.
    assert_eq!((seen.publisher, seen.seq), (publisher, 12));
    refuse(&mut conn, b, Code::OutOfOrder).await;
    refuse(&mut conn, c, Code::OutOfOrder).await;
    for receipt in receipts.into_iter().chain([third]) {
        assert!(answer(receipt).await.is_err());
    }
    let fourth = enqueue(&client, &log, "d").await;
    let (d, seen) = publish(&mut conn).await;
    assert_eq!((seen.publisher, seen.seq), (publisher, 10));
    acknowledge(&mut conn, d, 1, false).await;
    assert_eq!(answer(fourth).await.expect("stored").seq, 10);
}

#[tokio::test]
async fn a_chosen_publisher_numbers_on_behind_what_an_earlier_run_has_stored() {
    let peer = Peer::web_socket().await;
    let chosen = Options { publisher: Some(PublisherId([3; 16])), ..options() };
    let client = Client::open(&peer.url(), chosen).expect("a client");
    let log = room("log");
    let (mut conn, _) = peer.welcome().await;
    for (seq, code) in [(1, Code::TooOld), (2, Code::PublisherConflict)] {
        let receipt = enqueue(&client, &log, "repeated").await;
        let (request, seen) = publish(&mut conn).await;
        assert_eq!(seen.seq, seq);
        refuse(&mut conn, request, code).await;
        assert_eq!(answer(receipt).await.expect_err("refused").code(), Some(code));
    }
    let receipt = enqueue(&client, &log, "new").await;
    let (request, seen) = publish(&mut conn).await;
    assert_eq!(seen.seq, 3);
    acknowledge(&mut conn, request, 1, false).await;
    assert!(answer(receipt).await.is_ok());
}

#[tokio::test]
async fn a_forgotten_publisher_leaves_what_was_sent_before_in_doubt_and_the_rest_goes_on() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let log = room("log");
    let (mut conn, _) = peer.welcome().await;
    let first = enqueue(&client, &log, "a").await;
    let (request, seen) = publish(&mut conn).await;
    acknowledge(&mut conn, request, 1, false).await;
    assert!(answer(first).await.is_ok());
    let doubtful = enqueue(&client, &log, "b").await;
    publish(&mut conn).await;
    drop(conn);
    let (mut conn, _) = peer.welcome().await;
    let (request, again) = publish(&mut conn).await;
    assert_eq!((again.publisher, again.seq), (seen.publisher, 2));
    refuse(&mut conn, request, Code::PublisherForgotten).await;
    assert_eq!(answer(doubtful).await.expect_err("in doubt").kind(), ErrorKind::InDoubt);
    let third = enqueue(&client, &log, "c").await;
    let (request, seen) = publish(&mut conn).await;
    assert_eq!(seen.seq, 3);
    refuse(&mut conn, request, Code::PublisherForgotten).await;
    let (request, fresh) = publish(&mut conn).await;
    assert_ne!(fresh.publisher, again.publisher);
    assert_eq!((fresh.seq, fresh.records), (1, seen.records));
    acknowledge(&mut conn, request, 2, false).await;
    assert!(answer(third).await.is_ok());
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_the_broker_allows() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let rooms = [room("a"), room("b"), room("c")];
    let mut receipts = Vec::new();
    for index in 0..9 {
        receipts.push(enqueue(&client, &rooms[index % 3], "x").await);
    }
    let limits = WelcomeLimits { requests_in_flight: 2, ..WelcomeLimits::from(&Limits::default()) };
    let (mut conn, _) = peer.welcome_with(limits).await;
    let mut waiting = std::collections::VecDeque::new();
    waiting.push_back(publish(&mut conn).await.0);
    waiting.push_back(publish(&mut conn).await.0);
    for offset in 1..=9 {
        conn.has_nothing_more_to_say().await;
        acknowledge(&mut conn, waiting.pop_front().expect("one waits"), offset, false).await;
        if offset <= 7 {
            waiting.push_back(publish(&mut conn).await.0);
        }
    }
    for receipt in receipts {
        assert!(answer(receipt).await.is_ok());
    }
}

#[tokio::test]
async fn a_full_queue_makes_publishers_wait_until_something_is_acknowledged() {
    let peer = Peer::web_socket().await;
    let client = Client::open(&peer.url(), Options { queue_publishes_max: 2, ..options() }).expect("a client");
    let log = room("log");
    let (mut conn, _) = peer.welcome().await;
    let first = enqueue(&client, &log, "a").await;
    let _second = enqueue(&client, &log, "b").await;
    let record = [NewRecord::new(b"c")];
    assert_eq!(client.try_enqueue(&log, &record, None).expect_err("full"), Error::QueueFull);
    let mut third = Box::pin(client.enqueue(&log, &record, None));
    assert!(poll_once(&mut third).is_none(), "the queue is full");
    let (request, _) = publish(&mut conn).await;
    acknowledge(&mut conn, request, 1, false).await;
    assert!(answer(first).await.is_ok());
    let _third = soon("room in the queue", third).await.expect("room in the queue");
}

/// Polls a future once.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn what_the_broker_would_not_take_is_refused_here_and_does_not_cost_the_session() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let log = room("log");
    let limits = WelcomeLimits { publish_bytes: 1000, payload_bytes: 1000, ..WelcomeLimits::from(&Limits::default()) };
    let (mut conn, _) = peer.welcome_with(limits).await;
    let large = enqueue(&client, &log, &"x".repeat(2000)).await;
    let small = enqueue(&client, &log, "small").await;
    assert!(matches!(answer(large).await, Err(Error::TooLarge { found: 2004.., allowed: 1000, .. })));
    let (request, seen) = publish(&mut conn).await;
    assert_eq!(seen.seq, 1);
    acknowledge(&mut conn, request, 1, false).await;
    assert!(answer(small).await.is_ok());
}

#[tokio::test]
async fn closing_tells_everyone_who_waits() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let log = room("log");
    let (mut conn, _) = peer.welcome().await;
    let receipt = enqueue(&client, &log, "never acknowledged").await;
    publish(&mut conn).await;
    let ((), code) = tokio::join!(client.close(), conn.closed());
    assert_eq!(code, Some(1000));
    assert_eq!(answer(receipt).await.expect_err("closed").kind(), ErrorKind::Closed);
    assert!(client.flush().await.is_err());
    assert_eq!(client.publish(&log, NewRecord::new(b"x")).await.expect_err("closed").kind(), ErrorKind::Closed);
    assert_eq!(client.state(), State::Closed { why: None });
}
