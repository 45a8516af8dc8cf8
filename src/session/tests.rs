use std::time::Instant;

use super::*;
use crate::protocol::{Hello, Ping, ServerFrame};
use crate::types::NewRecord;

fn fresh() -> Session {
    Session::new(Arc::default(), Life::Session, Instant::now())
}

fn opened() -> Session {
    let mut session = fresh();
    let body = HelloBody::default().to_bytes();
    let hello = bytes(&ClientFrame::Hello(Hello::new(&body)));
    assert!(matches!(session.frame(&hello, 0), Ok((Operation::Hello, Action::Welcome { .. }))));
    session
}

fn bytes(frame: &ClientFrame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode_into(&mut bytes);
    bytes
}

fn publish(payloads: &[&[u8]], count: u32) -> Vec<u8> {
    let mut area = Vec::new();
    for payload in payloads {
        RecordArea::push(&mut area, &NewRecord::new(payload));
    }
    let (publisher, records) = (PublisherId([1; 16]), RecordArea(&area));
    bytes(&ClientFrame::Publish(Publish { request: 1, room: "tea", publisher, seq: 1, expect: None, count, records }))
}

fn refusal(session: &mut Session, frame: &[u8], in_flight: usize) -> Code {
    match session.frame(frame, in_flight) {
        Ok((_, Action::Refuse { why, .. })) => why.code,
        other => panic!("a refusal was expected, not {other:?}"),
    }
}

#[test]
fn nothing_but_a_hello_opens_a_session() {
    for frame in [publish(&[b"x"], 1), bytes(&ClientFrame::Ping(Ping { request: 1 })), vec![255], Vec::new()] {
        assert_eq!(fresh().frame(&frame, 0).expect_err("no hello"), End::HelloRequired);
    }
}

#[test]
fn a_publish_is_handed_on_as_the_bytes_it_came_in_with_a_hash_for_each_record() {
    let mut session = opened();
    let frame = publish(&[b"one", b"two"], 2);
    let Ok((Operation::Publish, Action::Publish { room, area, seq: 1, .. })) = session.frame(&frame, 0) else {
        panic!("a publish was expected")
    };
    assert_eq!(room, "tea");
    assert!(frame.as_ptr_range().contains(&area.0.as_ptr()), "nothing is copied");
    let first = area.split_first().expect("canonical").expect("two records").0;
    assert_eq!(session.hashes().len(), 2);
    assert_eq!(session.hashes()[0], record_hash(first));
}

#[test]
fn a_publish_that_counts_wrong_or_holds_no_record_ends_the_session_even_when_it_is_too_large() {
    for frame in [publish(&[b"one"], 2), publish(&vec![&b""[..]; 2000], 1)] {
        assert!(matches!(opened().frame(&frame, 0), Err(End::BadFrame(_))));
    }
    let mut damaged = publish(&[&vec![0; 300 << 10]], 1);
    damaged.push(7);
    assert!(matches!(opened().frame(&damaged, 0), Err(End::BadFrame(_))));
}

#[test]
fn limits_refuse_the_request_and_not_the_session() {
    let mut session = opened();
    assert_eq!(refusal(&mut session, &publish(&[&vec![0; (256 << 10) + 1]], 1), 0), Code::TooLarge);
    assert_eq!(refusal(&mut session, &publish(&vec![&b""[..]; 1025], 1025), 0), Code::TooLarge);
    let quarter = vec![0; 250 << 10];
    assert_eq!(refusal(&mut session, &publish(&[&quarter[..]; 5], 5), 0), Code::TooLarge);
    assert_eq!(refusal(&mut session, &publish(&[b"x"], 1), 1024), Code::Busy);
    assert!(matches!(session.frame(&publish(&[b"x"], 1), 1023), Ok((_, Action::Publish { .. }))));
    let ping = bytes(&ClientFrame::Ping(Ping { request: 1 }));
    assert!(matches!(session.frame(&ping, 1024), Ok((_, Action::Pong { request: 1 }))), "it waits for nobody");
}

#[test]
fn a_page_has_at_least_one_record_and_a_list_at_most_a_thousand_rooms() {
    let mut session = opened();
    let history = History { request: 1, room: "tea", at: HistoryAt::Before(None), limit: 0 };
    assert_eq!(refusal(&mut session, &bytes(&ClientFrame::History(history)), 0), Code::BadFrame);
    let rooms = Rooms { request: 1, prefix: "", after: "", limit: u32::MAX };
    let frame = bytes(&ClientFrame::Rooms(rooms));
    assert!(matches!(session.frame(&frame, 0), Ok((_, Action::Rooms { limit: ROOMS_MAX, .. }))));
}

#[test]
fn every_end_has_one_goodbye_with_the_code_and_the_advice_of_its_close() {
    use std::time::Duration;
    let time = Duration::from_secs(5);
    for end in [
        End::BadFrame("x".to_owned()),
        End::TooLarge("x".to_owned()),
        End::BadVersion { min: 2, max: 3 },
        End::HelloRequired,
        End::HelloTimeout(time),
        End::Token,
        End::Idle(time),
        End::Stalled(time),
        End::SlowMessage(time),
        End::Crowded { bytes_max: 1 << 20 },
        End::ShuttingDown { after: time },
    ] {
        let mut frame = Vec::new();
        end.goodbye(&mut frame);
        let (frame, _) = crate::protocol::split_frame(&frame, usize::MAX).expect("a frame").expect("whole");
        let Ok(Some(ServerFrame::Goodbye(goodbye))) = ServerFrame::parse(frame) else { panic!("a goodbye") };
        let close = end.close();
        assert_eq!((goodbye.code, goodbye.reconnect), (close.code.number(), close.reconnect), "{end:?}");
        assert_eq!(goodbye.after_ms > 0, close.reconnect, "{end:?}");
        assert!(!goodbye.reason.is_empty());
    }
}

#[test]
fn no_bytes_make_a_session_panic() {
    let seed = crate::session::tests::seed();
    let mut random = <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(seed);
    use rand::Rng as _;
    let patterns = [publish(&[b"one", b"two"], 2), bytes(&ClientFrame::Leave(Leave { request: 1, join: JoinId(1) }))];
    for _ in 0..20_000 {
        let mut frame = patterns[random.random_range(0..patterns.len())].clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..frame.len());
            frame[at] = random.random();
        }
        frame.truncate(random.random_range(0..=frame.len()));
        let _ = opened().frame(&frame, 0);
        let _ = fresh().frame(&frame, 0);
    }
}

/// A new seed, printed, or the one of `ROOMLOG_TEST_SEED`.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("ROOMLOG_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("ROOMLOG_TEST_SEED={seed}");
    seed
}

#[test]
fn an_answer_that_may_be_taken_no_longer_counts_as_in_flight() {
    const ANSWERS: u64 = 200_000;
    let budget = std::sync::Arc::new(Host::new(1 << 20, 1 << 20, None));
    let metrics = std::sync::Arc::new(crate::metrics::Metrics::disabled());
    let outbox = Outbox::new(metrics, crate::metrics::Transport::WebSocket, budget);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for request in 0..ANSWERS {
                if request % 2 == 0 {
                    let refused = crate::storage::Refused::new(Code::ExpectFailed, "not the head");
                    let answer = crate::storage::Answer { tag: 1, count: 1, bytes: 1, outcome: Err(refused) };
                    outbox.answered(&[answer]);
                } else {
                    outbox.answer(1, &Ok(ServerFrame::Ok(1)), 1);
                }
            }
        });
        let mut taken = 0;
        while taken < ANSWERS {
            taken += outbox.take(Vec::clear);
            assert!(outbox.answered_so_far().0 >= taken, "taken, and still in flight");
        }
    });
}
