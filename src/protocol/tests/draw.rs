//! Random values of the protocol, from seeds: `ROOMLOG_TEST_SEED=n` runs the case of a seed again.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;
use crate::protocol::*;
use crate::types::{Epoch, GapReason, Header, Headers, NewRecord, Position, PublisherId, SessionId, Time};

/// Runs a property with `cases` generators, each from a seed of its own.
pub(super) fn for_seeds(cases: u64, mut property: impl FnMut(&mut Draw)) {
    let given = std::env::var("ROOMLOG_TEST_SEED").ok().map(|text| text.parse().expect("a seed is a number"));
    let first = given.unwrap_or_else(|| rand::rng().next_u64() >> 16);
    for seed in first..first + if given.is_some() { 1 } else { cases } {
        let mut draw = Draw(StdRng::seed_from_u64(seed));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| property(&mut draw))) {
            eprintln!("run it again with ROOMLOG_TEST_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

/// Draws values of the wire, with a liking for those at the edges of an encoding.
pub(super) struct Draw(pub(super) StdRng);

impl Draw {
    pub(super) fn u64(&mut self) -> u64 {
        const EDGES: [u64; 8] = [0, 250, 251, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
        match self.0.random_range(0..3) {
            0 => EDGES[self.0.random_range(0..EDGES.len())],
            1 => self.0.random_range(0..300),
            _ => self.0.next_u64() >> self.0.random_range(0..64),
        }
    }

    fn u32(&mut self) -> u32 {
        u32::try_from(self.u64()).unwrap_or(u32::MAX)
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.0.random()
    }

    fn bool(&mut self) -> bool {
        self.0.random()
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    fn length(&mut self) -> usize {
        [0, 1, 5, 250, 251, 300][self.below(6)]
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.length()];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    fn text(&mut self) -> String {
        let length = self.length();
        let alphabet = ['a', 'é', '漢', '🙂', ' ', '\u{0}'];
        (0..length).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.bool().then(|| value(self))
    }

    fn offset(&mut self) -> Offset {
        Offset(self.u64())
    }

    fn position(&mut self) -> Position {
        Position { epoch: Epoch(self.u64()), offset: self.offset() }
    }

    fn publisher(&mut self) -> PublisherId {
        PublisherId(self.0.random())
    }

    fn want(&mut self) -> Want {
        let presence = [MembersWanted::None, MembersWanted::Count, MembersWanted::Members][self.below(3)];
        Want { records: self.bool(), signals: self.bool(), presence, cursors: self.bool() }
    }

    fn joined(&mut self) -> Joined {
        Joined {
            request: self.u32(),
            join: JoinId(self.u32()),
            epoch: Epoch(self.u64()),
            first: self.offset(),
            head: self.offset(),
            start: self.offset(),
        }
    }

    fn void(&mut self) -> Void {
        Void {
            request: self.u32(),
            join: JoinId(self.u32()),
            code: 108,
            epoch: Epoch(self.u64()),
            first: self.offset(),
            head: self.offset(),
        }
    }
}

/// Texts and bytes that drawn values borrow.
pub(super) struct Stuff {
    texts: [String; 3],
    bytes: [Vec<u8>; 3],
    area: Vec<u8>,
    body: Vec<u8>,
}

impl Stuff {
    pub(super) fn draw(draw: &mut Draw) -> Self {
        let texts = [draw.text(), draw.text(), draw.text()];
        let bytes = [draw.bytes(), draw.bytes(), draw.bytes()];
        let mut area = Vec::new();
        for _ in 0..draw.below(4) {
            RecordArea::push(&mut area, &record(draw, &texts, &bytes));
        }
        let body = HelloBody {
            token: draw.option(|_| texts[0].as_str()),
            client: &texts[1],
            resume: (0..draw.below(4))
                .map(|_| Resume {
                    join: JoinId(draw.u32()),
                    room: &texts[2],
                    position: draw.position(),
                    credit_bytes: draw.option(Draw::u64),
                    want: draw.want(),
                })
                .collect(),
        }
        .to_bytes();
        Self { texts, bytes, area, body }
    }
}

fn record<'a>(draw: &mut Draw, texts: &'a [String; 3], bytes: &'a [Vec<u8>; 3]) -> NewRecord<'a> {
    let headers = (0..draw.below(4)).map(|at| Header { name: &texts[at % 3], value: &bytes[at % 3] }).collect();
    NewRecord {
        kind: &texts[draw.below(3)],
        reference: draw.offset(),
        headers: Headers(headers),
        payload: &bytes[draw.below(3)],
        extension: &bytes[draw.below(3)],
    }
}

/// One value of every kind of frame, those of later operations excepted.
pub(super) fn frames<'a>(draw: &mut Draw, stuff: &'a Stuff) -> Vec<Any<'a>> {
    let [text, other, third] = &stuff.texts;
    let [bytes, value, _] = &stuff.bytes;
    let mut all: Vec<Any<'a>> = Vec::new();
    let hello = Hello { magic: MAGIC, version_min: draw.u8(), version_max: draw.u8(), body: &stuff.body };
    let starts = [
        StartAt::New,
        StartAt::Earliest,
        StartAt::Last(draw.u64()),
        StartAt::After(draw.position()),
        StartAt::Since(Time(draw.u64())),
        StartAt::Cursor(text),
    ];
    let mut clients = vec![
        ClientFrame::Hello(hello),
        ClientFrame::Credit(Credit { request: draw.u32(), join: JoinId(draw.u32()), bytes: draw.u64() }),
        ClientFrame::Leave(Leave { request: draw.u32(), join: JoinId(draw.u32()) }),
        ClientFrame::Publish(Publish {
            request: draw.u32(),
            room: text,
            publisher: draw.publisher(),
            seq: draw.u64(),
            expect: draw.option(Draw::offset),
            count: draw.u32(),
            records: RecordArea(&stuff.area),
        }),
        ClientFrame::Rooms(Rooms { request: draw.u32(), prefix: text, after: other, limit: draw.u32() }),
        ClientFrame::Summary(Summary { request: draw.u32(), rooms: vec![text, other, third] }),
        ClientFrame::Ping(Ping { request: draw.u32() }),
    ];
    for start in starts {
        clients.push(ClientFrame::Join(Join {
            request: draw.u32(),
            join: JoinId(draw.u32()),
            room: text,
            start,
            credit_bytes: draw.option(Draw::u64),
            want: draw.want(),
        }));
    }
    for at in [
        HistoryAt::Before(draw.option(Draw::position)),
        HistoryAt::After(draw.option(Draw::position)),
        HistoryAt::Around(draw.position()),
    ] {
        clients.push(ClientFrame::History(History { request: draw.u32(), room: other, at, limit: draw.u32() }));
    }
    all.extend(clients.into_iter().map(Any::Client));

    let fault =
        Fault { request: draw.u32(), code: 65_535, message: third, retry: draw.bool(), retry_after_ms: draw.u32() };
    let mark = Mark { join: JoinId(draw.u32()), offset: draw.offset() };
    let delivery = PageDelivery { from: draw.offset(), to: draw.offset(), prev: draw.offset(), body: value };
    let header = DeliveryHeader { join: mark.join, from: draw.offset(), to: draw.offset(), prev: draw.offset() };
    let summary = RoomSummary {
        room: text,
        first: draw.offset(),
        head: draw.offset(),
        time: Time(draw.u64()),
        last: draw.option(|draw| LastRecord {
            offset: draw.offset(),
            user: other,
            kind: third,
            payload: bytes,
            payload_bytes: draw.u32(),
        }),
        cursor: draw.option(Draw::offset),
        unread: draw.option(Draw::u64),
        members: draw.option(Draw::u32),
    };
    let servers = vec![
        ServerFrame::Welcome(Welcome {
            version: draw.u8(),
            session: SessionId(draw.u64()),
            user: text,
            time: Time(draw.u64()),
            limits: WelcomeLimits { frame_bytes: draw.u32(), stall_timeout_ms: draw.u32(), ..Default::default() },
            features: vec![other, third],
            ping_interval_ms: draw.u32(),
            resumed: vec![JoinResult::Joined(draw.joined()), JoinResult::Void(draw.void()), JoinResult::Refused(fault)],
        }),
        ServerFrame::Joined(draw.joined()),
        ServerFrame::Void(draw.void()),
        ServerFrame::Ok(draw.u32()),
        ServerFrame::Published(Published {
            request: draw.u32(),
            first: draw.offset(),
            last: draw.offset(),
            time: Time(draw.u64()),
            duplicate: draw.bool(),
        }),
        ServerFrame::Page(Page {
            request: draw.u32(),
            epoch: Epoch(draw.u64()),
            first: draw.offset(),
            head: draw.offset(),
            more: draw.bool(),
            deliveries: vec![delivery; draw.below(4)],
        }),
        ServerFrame::RoomList(RoomList {
            request: draw.u32(),
            epoch: Epoch(draw.u64()),
            more: draw.bool(),
            rooms: vec![summary; draw.below(4)],
        }),
        ServerFrame::Pong(Pong { request: draw.u32(), time: Time(draw.u64()) }),
        ServerFrame::Error(fault),
        ServerFrame::Fault(fault),
        ServerFrame::Delivery(Delivery { header, body: bytes }),
        ServerFrame::Live(mark),
        ServerFrame::Lagging(mark),
        ServerFrame::CaughtUp(mark),
        ServerFrame::Gap(Gap { join: mark.join, from: header.from, to: header.to, reason: GapReason::Retention }),
        ServerFrame::Left(Cut { join: mark.join, code: 303, message: text }),
        ServerFrame::Goodbye(Goodbye { code: 302, reason: text, reconnect: draw.bool(), after_ms: draw.u32() }),
    ];
    all.extend(servers.into_iter().map(Any::Server));
    all
}

/// A body of several runs with what there can be in it, and its records.
pub(super) fn body(draw: &mut Draw, stuff: &Stuff) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    let (mut first, mut time) = (1 + draw.u64() % 1000, draw.u64() >> 12);
    for _ in 0..=draw.below(4) {
        let mut area = Vec::new();
        let count = 1 + draw.below(5);
        for _ in 0..count {
            RecordArea::push(&mut area, &record(draw, &stuff.texts, &stuff.bytes));
        }
        let header = RunHeader {
            offset_delta: 0,
            step: 1 + draw.u64() % 400,
            time_delta: 0,
            user: &stuff.texts[draw.below(3)],
            publisher: draw.publisher(),
            seq: 1 + draw.u64() / 2,
            count: 0,
            bytes: 0,
        };
        builder.push(Offset(first), Time(time), u32::try_from(count).expect("few"), &area, header);
        first = builder.last().0 + 1 + draw.u64() % 300;
        time += draw.u64() % 5000;
    }
    builder.finish().1.to_vec()
}
