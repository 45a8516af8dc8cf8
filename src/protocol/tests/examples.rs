//! The values of the page's examples, by name.

use super::*;
use crate::protocol::*;
use crate::types::{
    Code, Epoch, GapReason, Header, Headers, Limits, NewRecord, Position, PublisherId, Record, SessionId, Time,
};

/// What an example of the page is.
pub(super) enum Example {
    /// A frame or a stream head.
    Any(Any<'static>),
    /// A batch body and its records.
    Body { written: Vec<u8>, records: Vec<Record<'static>> },
    /// Bytes that are no value of their own.
    Bytes(Vec<u8>),
}

const EPOCH: Epoch = Epoch(6_000_000_000_000);
const TIME: Time = Time(1_760_000_000_000_000);
const PUBLISHER: PublisherId =
    PublisherId([0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
const OTHER: PublisherId =
    PublisherId([0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff]);
const JOIN: JoinId = JoinId(3);
const AT_7: Position = Position { epoch: EPOCH, offset: Offset(7) };

/// Examples live as long as the test program: they borrow what they are made of.
fn keep(bytes: Vec<u8>) -> &'static [u8] {
    Vec::leak(bytes)
}

fn edit(payload: &'static [u8], reference: u64, headers: &[(&'static str, &'static [u8])]) -> NewRecord<'static> {
    let headers = Headers(headers.iter().map(|&(name, value)| Header { name, value }).collect());
    NewRecord { kind: "edit", reference: Offset(reference), headers, payload, extension: b"" }
}

fn area(records: &[NewRecord<'_>]) -> Vec<u8> {
    let mut area = Vec::new();
    records.iter().for_each(|record| RecordArea::push(&mut area, record));
    area
}

/// A run: first offset, step, time, user, publisher, seq, records.
type RunOf = (u64, u64, u64, &'static str, PublisherId, u64, Vec<NewRecord<'static>>);

fn body(runs: &[RunOf]) -> (Vec<u8>, Vec<Record<'static>>) {
    let mut builder = BatchBuilder::new();
    let mut records = Vec::new();
    let mut prev = Offset(5);
    for (first, step, time, user, publisher, seq, contents) in runs {
        let (user, publisher, seq) = (*user, *publisher, *seq);
        let header =
            RunHeader { offset_delta: 0, step: *step, time_delta: 0, user, publisher, seq, count: 0, bytes: 0 };
        let count = u32::try_from(contents.len()).expect("few");
        builder.push(Offset(*first), Time(*time), count, &area(contents), header);
        for (index, content) in (0..).zip(contents) {
            let (offset, time) = (Offset(first + index * step), Time(*time));
            records.push(Record { offset, prev, time, user, publisher, seq: seq + index, content: content.clone() });
            prev = offset;
        }
    }
    (builder.finish().1.to_vec(), records)
}

fn one_record() -> Vec<RunOf> {
    vec![(7, 1, TIME.0, "", PUBLISHER, 1, vec![NewRecord::new(b"hi")])]
}

fn several_runs() -> Vec<RunOf> {
    let smile = NewRecord { kind: "react", reference: Offset(301), ..NewRecord::new(&[0xf0, 0x9f, 0x99, 0x82]) };
    let last = NewRecord { extension: &[0xca, 0xfe], ..NewRecord::new(&[0x00, 0xff, 0x80]) };
    vec![
        (300, 1, TIME.0, "ann", PUBLISHER, 41, vec![NewRecord::new(b"one"), NewRecord::new(b"two")]),
        (
            305,
            2,
            TIME.0 + 1500,
            "ann",
            PUBLISHER,
            43,
            vec![edit(b"uno", 300, &[("lang", b"en"), ("trace", b"7f")]), smile, NewRecord::default()],
        ),
        (376, 9, TIME.0 + 70_000, "bob", OTHER, 1, vec![last]),
    ]
}

/// All examples of the page.
pub(super) fn examples() -> Vec<(&'static str, Example)> {
    let mut examples = vec![("integers", Example::Bytes(integers()))];
    for (name, runs) in [("batch_one", one_record()), ("batch_runs", several_runs())] {
        let (written, records) = body(&runs);
        examples.push((name, Example::Body { written, records }));
    }
    let head = StreamHead { join: JOIN, room: "tea", epoch: EPOCH };
    examples.push(("stream_head", Example::Any(Any::Head(head))));
    let frames = requests().into_iter().map(|(name, frame)| (name, Any::Client(frame)));
    let frames = frames.chain(answers().into_iter().chain(pushes()).map(|(name, frame)| (name, Any::Server(frame))));
    let frames = frames.chain(later().into_iter().map(|(name, frame)| (name, Any::Later(frame))));
    examples.extend(frames.map(|(name, frame)| (name, Example::Any(frame))));
    for &code in Code::ALL {
        let name: &'static str = String::leak(format!("error_{}", code.name()));
        let frame = ServerFrame::Error(Fault::new(1, code, code.sentence()));
        examples.push((name, Example::Any(Any::Server(frame))));
    }
    examples
}

fn integers() -> Vec<u8> {
    let mut out = Vec::new();
    for value in [0_u64, 250, 251, 65_535, 65_536, 4_294_967_295, 4_294_967_296, (1 << 53) - 1] {
        crate::protocol::encode_into(&mut out, &value);
    }
    out
}

fn requests() -> Vec<(&'static str, ClientFrame<'static>)> {
    let hello =
        |token, client, resume| ClientFrame::Hello(Hello::new(keep(HelloBody { token, client, resume }.to_bytes())));
    let resume = |join, room, offset, credit_bytes| Resume {
        join: JoinId(join),
        room,
        position: Position { epoch: EPOCH, offset: Offset(offset) },
        credit_bytes,
        want: Want::RECORDS,
    };
    let join = |request, start, credit_bytes| {
        ClientFrame::Join(Join { request, join: JOIN, room: "tea", start, credit_bytes, want: Want::RECORDS })
    };
    let publish = |request, seq, expect, records: &[NewRecord<'_>]| {
        ClientFrame::Publish(Publish {
            request,
            room: "tea",
            publisher: PUBLISHER,
            seq,
            expect,
            count: u32::try_from(records.len()).expect("few"),
            records: RecordArea(keep(area(records))),
        })
    };
    let history = |request, at, limit| ClientFrame::History(History { request, room: "tea", at, limit });
    let everything = Want { records: true, signals: true, presence: MembersWanted::Members, cursors: true };
    vec![
        ("hello", hello(None, "demo 1.0", vec![])),
        ("hello_resume", {
            hello(None, "demo 1.0", vec![resume(3, "tea", 7, Some(65_536)), resume(4, "Küche", 0, None)])
        }),
        ("hello_token", hello(Some("secret"), "", vec![])),
        ("join_new", join(1, StartAt::New, None)),
        ("join_earliest", join(2, StartAt::Earliest, Some(262_144))),
        ("join_last", join(3, StartAt::Last(50), None)),
        ("join_after", join(4, StartAt::After(AT_7), None)),
        ("join_since", join(5, StartAt::Since(TIME), None)),
        (
            "join_cursor",
            ClientFrame::Join(Join {
                request: 300,
                join: JoinId(70_000),
                room: "tea",
                start: StartAt::Cursor("read"),
                credit_bytes: Some(0),
                want: everything,
            }),
        ),
        ("credit", ClientFrame::Credit(Credit { request: 6, join: JOIN, bytes: 131_072 })),
        ("leave", ClientFrame::Leave(Leave { request: 7, join: JOIN })),
        ("publish", publish(8, 1, None, &[NewRecord::new(b"hi")])),
        ("publish_many", {
            publish(9, 2, Some(Offset(7)), &[edit(b"hi!", 7, &[("lang", b"en")]), NewRecord::new(&[0x00, 0xff, 0x80])])
        }),
        ("history_before", history(10, HistoryAt::Before(None), 100)),
        ("history_after", history(11, HistoryAt::After(Some(AT_7)), 100)),
        ("history_around", history(12, HistoryAt::Around(AT_7), 20)),
        ("rooms", ClientFrame::Rooms(Rooms { request: 13, prefix: "te", after: "tea", limit: 100 })),
        ("summary", ClientFrame::Summary(Summary { request: 14, rooms: vec!["tea", "Küche"] })),
        ("ping", ClientFrame::Ping(Ping { request: 15 })),
    ]
}

fn answers() -> Vec<(&'static str, ServerFrame<'static>)> {
    let welcome = |resumed| {
        ServerFrame::Welcome(Welcome {
            version: VERSION,
            session: SessionId(9),
            user: "",
            time: TIME,
            limits: WelcomeLimits::from(&Limits::default()),
            features: vec![],
            ping_interval_ms: 25_000,
            resumed,
        })
    };
    let joined = |request, first, head, start| Joined {
        request,
        join: JOIN,
        epoch: EPOCH,
        first: Offset(first),
        head: Offset(head),
        start: Offset(start),
    };
    let void = |request, join, code: Code| Void {
        request,
        join: JoinId(join),
        code: code.number(),
        epoch: EPOCH,
        first: Offset(2),
        head: Offset(9),
    };
    let refused = Fault::new(0, Code::BadRoom, "a room name needs at least 1 byte");
    let published = |duplicate| {
        let time = if duplicate { Time::default() } else { TIME };
        ServerFrame::Published(Published { request: 8, first: Offset(7), last: Offset(7), time, duplicate })
    };
    let (from, to, prev) = (Offset(7), Offset(7), Offset(5));
    let last = LastRecord { offset: Offset(7), user: "", kind: "", payload: b"hi", payload_bytes: 2 };
    vec![
        ("welcome", welcome(vec![])),
        ("welcome_resumed", {
            welcome(vec![
                JoinResult::Joined(joined(0, 1, 9, 7)),
                JoinResult::Void(void(0, 4, Code::VoidEpoch)),
                JoinResult::Refused(refused),
            ])
        }),
        ("joined", ServerFrame::Joined(joined(1, 2, 9, 9))),
        ("void", ServerFrame::Void(void(4, 3, Code::BeyondHead))),
        ("ok", ServerFrame::Ok(7)),
        ("published", published(false)),
        ("published_duplicate", published(true)),
        (
            "page",
            ServerFrame::Page(Page {
                request: 10,
                epoch: EPOCH,
                first: Offset(2),
                head: Offset(9),
                more: true,
                deliveries: vec![PageDelivery { from, to, prev, body: keep(body(&one_record()).0) }],
            }),
        ),
        (
            "room_list",
            ServerFrame::RoomList(RoomList {
                request: 13,
                epoch: EPOCH,
                more: false,
                rooms: vec![
                    RoomSummary {
                        room: "tea",
                        first: Offset(2),
                        head: Offset(7),
                        time: TIME,
                        last: Some(last),
                        cursor: None,
                        unread: None,
                        members: None,
                    },
                    RoomSummary {
                        room: "tee",
                        first: Offset::ZERO,
                        head: Offset(9),
                        time: TIME,
                        last: None,
                        cursor: Some(Offset(5)),
                        unread: Some(4),
                        members: Some(2),
                    },
                ],
            }),
        ),
        ("pong", ServerFrame::Pong(Pong { request: 15, time: TIME })),
    ]
}

fn pushes() -> Vec<(&'static str, ServerFrame<'static>)> {
    let (join, from, to, prev) = (JOIN, Offset(7), Offset(7), Offset(5));
    let mark = |offset| Mark { join, offset: Offset(offset) };
    let goodbye = |code: Code, reason, reconnect, after_ms| {
        ServerFrame::Goodbye(Goodbye { code: code.number(), reason, reconnect, after_ms })
    };
    vec![
        (
            "delivery",
            ServerFrame::Delivery(Delivery {
                header: DeliveryHeader { join, from, to, prev },
                body: keep(body(&one_record()).0),
            }),
        ),
        ("live", ServerFrame::Live(mark(7))),
        ("lagging", ServerFrame::Lagging(mark(7))),
        ("caught_up", ServerFrame::CaughtUp(mark(900))),
        ("gap", ServerFrame::Gap(Gap { join, from: Offset(7), to: Offset(300), reason: GapReason::Retention })),
        (
            "left",
            ServerFrame::Left(Cut { join, code: Code::Unavailable.number(), message: "the room could not be read" }),
        ),
        ("goodbye", goodbye(Code::ShuttingDown, "restarting", true, 1500)),
        ("goodbye_give_up", goodbye(Code::BadVersion, "this is version 1", false, 0)),
        ("fault", ServerFrame::Fault(Fault::new(0, Code::StorageFailed, "the journal could not be written"))),
    ]
}

fn later() -> Vec<(&'static str, Later<'static>)> {
    let room = "tea";
    let join = JOIN;
    let settings =
        |retain_age_ms, retain_bytes, retain_records| RoomSettings { retain_age_ms, retain_bytes, retain_records };
    let (ann, bob) =
        (Member { user: "ann", since: TIME, data: b"" }, Member { user: "bob", since: TIME, data: b"away" });
    let eve = Member { user: "eve", ..ann };
    let cursor = Cursor { cursor: "read", offset: Offset(7), time: TIME };
    vec![
        ("refresh", Later::Refresh(Refresh { request: 16, token: "secret" })),
        ("signal", Later::Signal(Signal { request: 17, room, kind: "typing", payload: b"", ttl_ms: 3000 })),
        ("cursor_set", Later::CursorSet(CursorSet { request: 18, room, cursor: "read", position: AT_7 })),
        ("cursor_get", Later::CursorGet(CursorGet { request: 19, room, cursor: "" })),
        ("presence_set", Later::PresenceSet(PresenceSet { request: 20, room, data: Some(b"away") })),
        ("presence_set_leave", Later::PresenceSet(PresenceSet { request: 21, room, data: None })),
        ("presence_get", Later::PresenceGet(PresenceGet { request: 22, room, after: "ann", limit: 100 })),
        (
            "room_create",
            Later::RoomCreate(RoomSet { request: 23, room, settings: settings(Some(86_400_000), None, Some(1000)) }),
        ),
        (
            "room_update",
            Later::RoomUpdate(RoomSet { request: 24, room, settings: settings(None, Some(1 << 30), None) }),
        ),
        ("room_delete", Later::RoomDelete(RoomDelete { request: 25, room, expect: Some(Offset(7)) })),
        ("cursors", Later::Cursors(Cursors { request: 18, epoch: EPOCH, cursors: vec![cursor] })),
        ("members", Later::Members(Members { request: 22, count: 2, more: false, members: vec![bob] })),
        ("refresh_required", Later::RefreshRequired(RefreshRequired { within_ms: 30_000 })),
        (
            "signal_push",
            Later::SignalPush(SignalPush {
                join,
                user: "ann",
                kind: "typing",
                payload: b"",
                head: Offset(7),
                ttl_ms: 3000,
            }),
        ),
        ("signal_stopped", Later::SignalStopped(SignalStopped { join, user: "ann", kind: "typing" })),
        ("cursor_moved", Later::CursorMoved(CursorMoved { join, user: "ann", cursor: "read", offset: Offset(7) })),
        ("presence_snapshot", Later::PresenceSnapshot(PresenceSnapshot { join, count: 2, members: vec![ann, bob] })),
        ("presence_diff", Later::PresenceDiff(PresenceDiff { join, count: 2, came: vec![eve], gone: vec!["ann"] })),
    ]
}
