//! Joins: order, resume, credit, broken chains, void positions.

use super::super::{Error, HistoryAt, JoinOptions, OnVoid};
use super::peer::{EPOCH, body, delivery};
use super::*;
use crate::protocol::{
    ClientFrame, Fault, Gap, JoinId, JoinResult, Joined, Mark, Page, PageDelivery, ServerFrame, StartAt, Void,
    WelcomeLimits,
};
use crate::types::{Code, Epoch, GapReason, Limits, Offset, Position, Start};

async fn records_arrive_in_order_and_go_on_after_a_lost_connection(peer: Peer) {
    let client = open(&peer);
    let kitchen = room("kitchen");
    let (joined, (mut conn, join)) = tokio::join!(client.join(&kitchen, Start::Earliest), async {
        let (mut conn, resume) = peer.welcome().await;
        assert!(resume.is_empty());
        let (join, _, credit) = conn.grant_join(0).await;
        assert_eq!(credit, Some(256 << 10));
        (conn, join)
    });
    let mut kitchen = joined.expect("joined");
    let first = body(1, 3, b"one");
    conn.push(join, "kitchen", &delivery(join, 1, 3, 0, &first)).await;
    conn.push(join, "kitchen", &ServerFrame::Live(Mark { join, offset: Offset(3) })).await;
    let second = body(4, 1, b"two");
    conn.push(join, "kitchen", &delivery(join, 4, 1, 3, &second)).await;
    assert_eq!(offsets(&mut kitchen).await, [1, 2, 3]);
    assert_eq!(next(&mut kitchen).await, Event::Live { offset: Offset(3) });
    let Event::Batch(batch) = next(&mut kitchen).await else { panic!("no batch") };
    let record = batch.records().next().expect("a record");
    assert_eq!((record.offset, record.prev, record.content.payload), (Offset(4), Offset(3), &b"two"[..]));
    drop(conn);

    let (mut conn, resume) = peer.welcome().await;
    let position = Position { epoch: EPOCH, offset: Offset(4) };
    assert_eq!(resume, [(join, "kitchen".to_owned(), position, Some(256 << 10))]);
    // A part of a batch, as the history has them merged: only what is meant comes.
    let third = body(3, 4, b"three");
    let mut frame = delivery(join, 5, 2, 4, &third);
    if let ServerFrame::Delivery(delivery) = &mut frame {
        assert_eq!((delivery.header.from, delivery.header.to), (Offset(5), Offset(6)));
    }
    conn.push(join, "kitchen", &frame).await;
    let Event::Batch(batch) = next(&mut kitchen).await else { panic!("no batch") };
    let pairs: Vec<_> = batch.records().map(|record| (record.prev.0, record.offset.0)).collect();
    assert_eq!(pairs, [(4, 5), (5, 6)]);
    drop(kitchen);
    let frame = conn.request().await;
    assert!(matches!(ClientFrame::parse(&frame), Ok(ClientFrame::Leave(leave)) if leave.join == join));
}

#[tokio::test]
async fn records_arrive_in_order_and_go_on_after_a_lost_connection_over_web_socket() {
    records_arrive_in_order_and_go_on_after_a_lost_connection(Peer::web_socket().await).await;
}

#[tokio::test]
async fn records_arrive_in_order_and_go_on_after_a_lost_connection_over_quic() {
    records_arrive_in_order_and_go_on_after_a_lost_connection(Peer::quic()).await;
}

#[tokio::test]
async fn over_quic_records_that_overtake_the_answer_to_the_join_are_kept() {
    let peer = Peer::quic();
    let client = open(&peer);
    let name = room("early");
    let (joined, _conn) = tokio::join!(client.join(&name, Start::Earliest), async {
        let (mut conn, _) = peer.welcome().await;
        let frame = conn.request().await;
        let Ok(ClientFrame::Join(join)) = ClientFrame::parse(&frame) else { panic!("no join") };
        let early = body(1, 2, b"early");
        conn.push(join.join, "early", &delivery(join.join, 1, 2, 0, &early)).await;
        // A round trip on the stream of answers gives the room's own stream time to get ahead.
        let page = client.history(&name, HistoryAt::After(None), 1);
        let (page, ()) = tokio::join!(page, async {
            let frame = conn.request().await;
            let Ok(ClientFrame::History(history)) = ClientFrame::parse(&frame) else { panic!("no history") };
            let fault = Fault::new(history.request, Code::BadRoom, "no");
            conn.send(&ServerFrame::Error(fault)).await;
        });
        assert!(page.is_err());
        let start = Offset::ZERO;
        let answer =
            Joined { request: join.request, join: join.join, epoch: EPOCH, first: Offset(1), head: Offset(2), start };
        conn.send(&ServerFrame::Joined(answer)).await;
        conn
    });
    assert_eq!(offsets(&mut joined.expect("joined")).await, [1, 2]);
}

#[tokio::test]
async fn credit_is_granted_only_as_events_are_taken_and_a_slow_room_holds_up_no_other() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let (slow_name, quick_name) = (room("slow"), room("quick"));
    let bounded = JoinOptions::default().bytes_max(1000);
    let (slow, quick, (mut conn, slow_id, quick_id)) = tokio::join!(
        client.join_with(&slow_name, Start::New, bounded),
        client.join_with(&quick_name, Start::New, bounded),
        async {
            let (mut conn, _) = peer.welcome().await;
            let (slow, name, credit) = conn.grant_join(0).await;
            assert_eq!((&*name, credit), ("slow", Some(1000)));
            let (quick, ..) = conn.grant_join(0).await;
            (conn, slow, quick)
        }
    );
    let (mut slow, mut quick) = (slow.expect("joined"), quick.expect("joined"));
    // The slow room gets all that its credit allows, and one delivery beyond.
    let filler = body(1, 1, &[b'x'; 900]);
    conn.push(slow_id, "slow", &delivery(slow_id, 1, 1, 0, &filler)).await;
    let filler = body(2, 1, &[b'x'; 900]);
    conn.push(slow_id, "slow", &delivery(slow_id, 2, 1, 1, &filler)).await;
    // The other one goes on, and is granted what it takes, for longer than there may be requests without an answer:
    // credit has none.
    let mut granted = 0;
    for offset in 1..=1100 {
        let part = body(offset, 1, &[b'y'; 300]);
        conn.push(quick_id, "quick", &delivery(quick_id, offset, 1, offset - 1, &part)).await;
        assert_eq!(offsets(&mut quick).await, [offset]);
        let frame = conn.next().await;
        let Ok(ClientFrame::Credit(credit)) = ClientFrame::parse(&frame) else { panic!("no credit: {frame:?}") };
        assert_eq!((credit.join, credit.bytes), (quick_id, part.len() as u64));
        granted += credit.bytes;
    }
    assert!(granted > 330_000);
    // Only now the slow one takes something. Nothing was granted to it before: what follows is its first credit. It makes
    // up for what was overdrawn, as the broker counts it, and leaves no more than the bound on the way and in the queue.
    let mut made_up = 0;
    for offset in [1, 2] {
        assert_eq!(offsets(&mut slow).await, [offset]);
        let frame = conn.next().await;
        let Ok(ClientFrame::Credit(credit)) = ClientFrame::parse(&frame) else { panic!("no credit: {frame:?}") };
        assert_eq!(credit.join, slow_id);
        made_up += credit.bytes;
    }
    assert_eq!(made_up, 2 * filler.len() as u64);
}

#[tokio::test]
async fn a_resumed_room_is_not_granted_what_still_waits_for_the_application() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let name = room("full");
    let (joined, (mut conn, join)) =
        tokio::join!(client.join_with(&name, Start::New, JoinOptions::default().bytes_max(1000)), async {
            let (mut conn, _) = peer.welcome().await;
            let (join, ..) = conn.grant_join(0).await;
            (conn, join)
        });
    let mut joined = joined.expect("joined");
    let part = body(1, 1, &[b'x'; 600]);
    conn.push(join, "full", &delivery(join, 1, 1, 0, &part)).await;
    conn.push(join, "full", &ServerFrame::Live(Mark { join, offset: Offset(1) })).await;
    soon("the record", async {
        while joined.received() != Some(Position { epoch: EPOCH, offset: Offset(1) }) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(conn);
    let (_conn, resume) = peer.welcome().await;
    assert_eq!(resume[0].3, Some(1000 - part.len() as u64));
    assert_eq!(offsets(&mut joined).await, [1]);
}

#[tokio::test]
async fn a_broken_chain_is_resumed_from_the_last_good_record_and_told_if_it_breaks_there_again() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let name = room("chain");
    let (joined, (mut conn, join)) = tokio::join!(client.join(&name, Start::Earliest), async {
        let (mut conn, _) = peer.welcome().await;
        let (join, ..) = conn.grant_join(0).await;
        (conn, join)
    });
    let mut joined = joined.expect("joined");
    let (good, behind) = (body(1, 2, b"good"), body(4, 1, b"behind a hole"));
    conn.push(join, "chain", &delivery(join, 1, 2, 0, &good)).await;
    conn.push(join, "chain", &delivery(join, 4, 1, 3, &behind)).await;
    assert_eq!(conn.closed().await, Some(1002));
    assert_eq!(offsets(&mut joined).await, [1, 2]);

    // What was missing comes now, and a gap that is told is none that breaks the chain.
    let (mut conn, resume) = peer.welcome().await;
    assert_eq!(resume[0].2, Position { epoch: EPOCH, offset: Offset(2) });
    let missing = body(3, 1, b"missing");
    conn.push(join, "chain", &delivery(join, 3, 1, 2, &missing)).await;
    let gap = Gap { join, from: Offset(3), to: Offset(9), reason: GapReason::Retention };
    conn.push(join, "chain", &ServerFrame::Gap(gap)).await;
    let after_gap = body(10, 1, b"after the gap");
    conn.push(join, "chain", &delivery(join, 10, 1, 8, &after_gap)).await;
    assert_eq!(offsets(&mut joined).await, [3]);
    assert!(matches!(next(&mut joined).await, Event::Gap { to: Offset(9), .. }));
    assert_eq!(offsets(&mut joined).await, [10]);
    let hole = body(12, 1, b"hole");
    conn.push(join, "chain", &delivery(join, 12, 1, 11, &hole)).await;
    assert_eq!(conn.closed().await, Some(1002));

    let (mut conn, _) = peer.welcome().await;
    conn.push(join, "chain", &delivery(join, 12, 1, 11, &hole)).await;
    let Event::Left { why: Error::ChainBroken { position, prev, .. } } = next(&mut joined).await else {
        panic!("not told")
    };
    assert_eq!((position, prev), (Offset(10), Offset(11)));
    assert_eq!(soon("the end", joined.next()).await, None);
    let frame = conn.request().await;
    assert!(matches!(ClientFrame::parse(&frame), Ok(ClientFrame::Leave(_))));
}

#[tokio::test]
async fn a_repeated_delivery_or_a_damaged_batch_ends_the_connection() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let name = room("twice");
    let (joined, (mut conn, join)) = tokio::join!(client.join(&name, Start::Earliest), async {
        let (mut conn, _) = peer.welcome().await;
        let (join, ..) = conn.grant_join(0).await;
        (conn, join)
    });
    let mut joined = joined.expect("joined");
    let part = body(1, 2, b"part");
    conn.push(join, "twice", &delivery(join, 1, 2, 0, &part)).await;
    conn.push(join, "twice", &delivery(join, 2, 1, 1, &part)).await;
    assert_eq!(conn.closed().await, Some(1002));
    let (mut conn, _) = peer.welcome().await;
    let mut damaged = body(3, 1, b"damaged");
    damaged.truncate(damaged.len() - 1);
    conn.push(join, "twice", &delivery(join, 3, 1, 2, &damaged)).await;
    assert_eq!(conn.closed().await, Some(1002));
    let (mut conn, resume) = peer.welcome().await;
    assert_eq!(resume[0].2.offset, Offset(2));
    let good = body(3, 1, b"good");
    conn.push(join, "twice", &delivery(join, 3, 1, 2, &good)).await;
    assert_eq!(offsets(&mut joined).await, [1, 2]);
    assert_eq!(offsets(&mut joined).await, [3]);
}

async fn void_on_resume(on_void: OnVoid) -> (Peer, super::peer::Conn, Subscription, JoinId) {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let name = room("void");
    let (joined, (conn, join)) =
        tokio::join!(client.join_with(&name, Start::Earliest, JoinOptions::default().on_void(on_void)), async {
            let (mut conn, _) = peer.welcome().await;
            let (join, ..) = conn.grant_join(0).await;
            (conn, join)
        });
    drop(conn);
    let mut conn = peer.accept().await;
    conn.hello().await;
    let void =
        Void { request: 0, join, code: Code::VoidEpoch.number(), epoch: Epoch(78), first: Offset(1), head: Offset(5) };
    conn.send_welcome(WelcomeLimits::from(&Limits::default()), vec![JoinResult::Void(void)]).await;
    (peer, conn, joined.expect("joined"), join)
}

#[tokio::test]
async fn a_void_position_is_told_and_ends_the_subscription() {
    let (_peer, _conn, mut joined, _) = void_on_resume(OnVoid::Stop).await;
    let Event::Void { why, restarts: false } = next(&mut joined).await else { panic!("not told") };
    assert_eq!(why.code(), Some(Code::VoidEpoch));
    assert_eq!(next(&mut joined).await, Event::Left { why });
    assert_eq!(soon("the end", joined.next()).await, None);
}

#[tokio::test]
async fn a_void_position_is_told_and_restarted_from_the_earliest_record_if_asked_for() {
    let (_peer, mut conn, mut joined, join) = void_on_resume(OnVoid::Restart).await;
    assert!(matches!(next(&mut joined).await, Event::Void { restarts: true, .. }));
    let frame = conn.request().await;
    let Ok(ClientFrame::Join(again)) = ClientFrame::parse(&frame) else { panic!("no join") };
    assert_eq!((again.join, again.start), (join, StartAt::Earliest));
    let start = Offset::ZERO;
    let answer = Joined { request: again.request, join, epoch: Epoch(78), first: Offset(1), head: Offset(1), start };
    conn.send(&ServerFrame::Joined(answer)).await;
    let part = body(1, 1, b"new world");
    conn.push(join, "void", &delivery(join, 1, 1, 0, &part)).await;
    let Event::Batch(batch) = next(&mut joined).await else { panic!("no batch") };
    assert_eq!(batch.position(), Position { epoch: Epoch(78), offset: Offset(1) });
}

#[tokio::test]
async fn a_join_that_the_broker_refuses_fails_with_its_code_and_a_busy_one_is_repeated() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let name = room("door");
    let (refused, mut conn) = tokio::join!(client.join(&name, Start::New), async {
        let (mut conn, _) = peer.welcome().await;
        let frame = conn.request().await;
        let Ok(ClientFrame::Join(join)) = ClientFrame::parse(&frame) else { panic!("no join") };
        conn.send(&ServerFrame::Error(Fault::new(join.request, Code::NotAllowed, "not you"))).await;
        conn
    });
    assert_eq!(refused.expect_err("refused").code(), Some(Code::NotAllowed));
    let (joined, ()) = tokio::join!(client.join(&name, Start::New), async {
        let frame = conn.request().await;
        let Ok(ClientFrame::Join(join)) = ClientFrame::parse(&frame) else { panic!("no join") };
        let mut fault = Fault::new(join.request, Code::TooManyStreams, "later");
        fault.retry_after_ms = 1;
        conn.send(&ServerFrame::Error(fault)).await;
        conn.grant_join(0).await;
    });
    assert!(joined.is_ok());
}

#[tokio::test]
async fn rooms_beyond_what_a_session_may_resume_are_joined_afterwards_from_their_positions() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let names: Vec<_> = (0..3).map(|index| room(&format!("room {index}"))).collect();
    let limits = WelcomeLimits { rooms_per_session: 2, ..WelcomeLimits::from(&Limits::default()) };
    let (a, b, c, conn) = tokio::join!(
        client.join(&names[0], Start::New),
        client.join(&names[1], Start::New),
        client.join(&names[2], Start::New),
        async {
            let (mut conn, _) = peer.welcome_with(limits).await;
            for start in [10, 11, 12] {
                conn.grant_join(start).await;
            }
            conn
        }
    );
    let _subscriptions = (a.expect("joined"), b.expect("joined"), c.expect("joined"));
    drop(conn);
    let (mut conn, resume) = peer.welcome_with(limits).await;
    assert_eq!(resume.len(), 2);
    let frame = conn.request().await;
    let Ok(ClientFrame::Join(join)) = ClientFrame::parse(&frame) else { panic!("no join") };
    assert_eq!(join.room, "room 2");
    assert_eq!(join.start, StartAt::After(Position { epoch: EPOCH, offset: Offset(12) }));
}

#[tokio::test]
async fn a_question_is_asked_again_after_a_lost_connection() {
    let peer = Peer::web_socket().await;
    let client = open(&peer);
    let name = room("past");
    let (page, _conn) = tokio::join!(client.history(&name, HistoryAt::Before(None), 10), async {
        let (mut conn, _) = peer.welcome().await;
        let first = conn.request().await;
        assert!(matches!(ClientFrame::parse(&first), Ok(ClientFrame::History(_))));
        drop(conn);
        let (mut conn, _) = peer.welcome().await;
        let frame = conn.request().await;
        let Ok(ClientFrame::History(history)) = ClientFrame::parse(&frame) else { panic!("no history") };
        let (one, two) = (body(1, 2, b"one"), body(3, 1, b"two"));
        let part = |from, to, prev, body| PageDelivery { from: Offset(from), to: Offset(to), prev: Offset(prev), body };
        let page = Page {
            request: history.request,
            epoch: EPOCH,
            first: Offset(1),
            head: Offset(3),
            more: false,
            deliveries: vec![part(1, 2, 0, &one), part(3, 3, 2, &two)],
        };
        conn.send(&ServerFrame::Page(page)).await;
        conn
    });
    let page = page.expect("a page");
    let found: Vec<_> = page
        .batches
        .iter()
        .flat_map(|batch| batch.records().map(|record| record.offset.0).collect::<Vec<_>>())
        .collect();
    assert_eq!((found, page.head), (vec![1, 2, 3], Offset(3)));
}
