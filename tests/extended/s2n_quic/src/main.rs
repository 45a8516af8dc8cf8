//! s2n-quic against the server: join, publish, replay, resume. `foreign-s2n-quic QUIC_PORT CERTIFICATE`
//!
//! It knows of the protocol what `docs/protocol.md` says and this walk needs, and shares no code with the project.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use s2n_quic::client::{Client, Connect};
use s2n_quic::connection::Connection;
use s2n_quic::provider::tls::rustls;
use s2n_quic::stream::{ReceiveStream, SendStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PATIENCE: Duration = Duration::from_secs(30);
const ROOM: &str = "s2n";

// ---- What is written ----

fn integer(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=250 => out.push(value as u8),
        251..=0xffff => {
            out.push(0xfb);
            out.extend((value as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xfc);
            out.extend((value as u32).to_le_bytes());
        }
        _ => {
            out.push(0xfd);
            out.extend(value.to_le_bytes());
        }
    }
}

fn data(out: &mut Vec<u8>, bytes: &[u8]) {
    integer(out, bytes.len() as u64);
    out.extend(bytes);
}

fn frame(number: u8, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut body = vec![number];
    write(&mut body);
    let mut whole = Vec::new();
    data(&mut whole, &body);
    whole.into()
}

/// Records wanted, and nothing else of the room.
const WANT: [u8; 4] = [1, 0, 0, 0];

/// A hello that resumes the room under join 1 behind a position, if there is one.
fn hello(position: Option<(u64, u64)>) -> Bytes {
    let mut body = vec![0];
    data(&mut body, b"s2n-quic");
    integer(&mut body, position.iter().len() as u64);
    if let Some((epoch, offset)) = position {
        integer(&mut body, 1);
        data(&mut body, ROOM.as_bytes());
        integer(&mut body, epoch);
        integer(&mut body, offset);
        body.push(0);
        body.extend(WANT);
    }
    frame(1, |out| {
        out.extend(b"RLOG\x01\x01");
        data(out, &body);
    })
}

/// A join of the room from its beginning, under join 1.
fn join(request: u64) -> Bytes {
    frame(2, |out| {
        integer(out, request);
        integer(out, 1);
        data(out, ROOM.as_bytes());
        out.extend([1, 0]);
        out.extend(WANT);
    })
}

fn publish(request: u64, publisher: [u8; 16], seq: u64, payload: &[u8]) -> Bytes {
    let mut record = vec![0, 0, 0];
    data(&mut record, payload);
    record.push(0);
    frame(5, |out| {
        integer(out, request);
        data(out, ROOM.as_bytes());
        out.extend(publisher);
        integer(out, seq);
        out.extend([0, 1]);
        data(out, &record);
    })
}

// ---- What is read ----

/// The front of some bytes; `None` when they are cut, which on a stream means that more has to come.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn integer(&mut self) -> Option<u64> {
        let first = self.take(1)?[0];
        let wide = match first {
            0..=250 => return Some(first.into()),
            251..=253 => 1 << (first - 250),
            _ => panic!("not an integer: {first}"),
        };
        Some(self.take(wide)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn data(&mut self) -> Option<&'a [u8]> {
        let count = self.integer()?;
        self.take(count as usize)
    }
}

/// Frames of one stream.
struct Frames {
    stream: ReceiveStream,
    unread: Vec<u8>,
}

impl Frames {
    async fn more(&mut self) -> Result<(), Failure> {
        let chunk = tokio::time::timeout(PATIENCE, self.stream.receive()).await??.ok_or("the stream has ended")?;
        self.unread.extend(chunk);
        Ok(())
    }

    /// The next frame: its number and its body.
    async fn next(&mut self) -> Result<(u8, Vec<u8>), Failure> {
        loop {
            let mut reader = Reader(&self.unread);
            if let Some(body) = reader.data() {
                let (number, body) = (body[0], body[1..].to_vec());
                let left = reader.0.len();
                self.unread.drain(..self.unread.len() - left);
                return Ok((number, body));
            }
            self.more().await?;
        }
    }

    async fn expect(&mut self, number: u8) -> Result<Vec<u8>, Failure> {
        match self.next().await? {
            (got, body) if got == number => Ok(body),
            (got, body) => Err(format!("frame {got} instead of {number}: {body:?}").into()),
        }
    }
}

/// A record, as far as the walk looks at it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Record {
    offset: u64,
    seq: u64,
    payload: Vec<u8>,
}

/// The records of a batch body.
fn records(body: &[u8]) -> Option<Vec<Record>> {
    let mut reader = Reader(body);
    assert_eq!(reader.take(1)?, [1], "the version of the body");
    let (count, first, _span, _time) = (reader.integer()?, reader.integer()?, reader.integer()?, reader.integer()?);
    let mut found = Vec::new();
    while !reader.0.is_empty() {
        let (delta, step, _time) = (reader.integer()?, reader.integer()?, reader.integer()?);
        reader.data()?;
        reader.take(16)?;
        let (seq, number, _bytes) = (reader.integer()?, reader.integer()?, reader.integer()?);
        for index in 0..number {
            let mut inner = Reader(reader.data()?);
            let (kind, reference, headers) = (inner.data()?, inner.integer()?, inner.integer()?);
            assert_eq!((kind, reference, headers), (&b""[..], 0, 0));
            let payload = inner.data()?.to_vec();
            found.push(Record { offset: first + delta + index * step, seq: seq + index, payload });
        }
    }
    assert_eq!(found.len() as u64, count, "the counts add up");
    Some(found)
}

// ---- The walk ----

struct Session {
    connection: Connection,
    send: SendStream,
    answers: Frames,
}

impl Session {
    async fn open(client: &Client, port: u16, hello: Bytes) -> Result<(Self, Vec<u8>), Failure> {
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        let connect = Connect::new(address).with_server_name("localhost");
        let mut connection = tokio::time::timeout(PATIENCE, client.connect(connect)).await??;
        connection.keep_alive(true)?;
        let (stream, mut send) = connection.open_bidirectional_stream().await?.split();
        send.send(hello).await?;
        let mut answers = Frames { stream, unread: Vec::new() };
        let welcome = answers.expect(64).await?;
        Ok((Self { connection, send, answers }, welcome))
    }

    /// The stream of the room, behind its head, and the head's epoch.
    async fn room(&mut self) -> Result<(u64, Frames), Failure> {
        let accepted = tokio::time::timeout(PATIENCE, self.connection.accept_receive_stream()).await??;
        let mut stream = Frames { stream: accepted.ok_or("no stream")?, unread: Vec::new() };
        loop {
            let mut reader = Reader(&stream.unread);
            if let (Some(join), Some(room), Some(epoch)) = (reader.integer(), reader.data(), reader.integer()) {
                assert_eq!((join, room), (1, ROOM.as_bytes()));
                let left = reader.0.len();
                stream.unread.drain(..stream.unread.len() - left);
                return Ok((epoch, stream));
            }
            stream.more().await?;
        }
    }
}

/// Takes `count` records behind a position, proving that none is missing, and `live` if it is to come.
async fn take(stream: &mut Frames, mut position: u64, count: usize, live: bool) -> Result<Vec<Record>, Failure> {
    let (mut taken, mut is_live) = (Vec::new(), !live);
    while taken.len() < count || !is_live {
        let (number, body) = stream.next().await?;
        match number {
            128 => {
                let mut reader = Reader(&body);
                let mut field = || reader.integer().ok_or("a cut delivery");
                let (join, from, to, prev) = (field()?, field()?, field()?, field()?);
                assert_eq!(join, 1);
                assert!(prev <= position && position < from && (taken.is_empty() || prev == position), "{prev} {position} {from}");
                let records = records(reader.0).ok_or("a cut body")?;
                taken.extend(records.into_iter().filter(|record| (from..=to).contains(&record.offset)));
                position = to;
            }
            129 => is_live = true,
            131 | 132 => {}
            other => return Err(format!("frame {other} on the stream of a room").into()),
        }
    }
    Ok(taken)
}

async fn walk(client: &Client, port: u16) -> Result<usize, Failure> {
    let payloads: Vec<Vec<u8>> = [0, 1, 1200, 65_536, 250_000].into_iter().chain((0..500).map(|at| at * 3)).enumerate()
        .map(|(at, size)| (0..size).map(|byte| (at * 31 + byte * 7) as u8).collect()).collect();
    // Unlike any of before, if the server kept them.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let publisher = now.to_le_bytes();

    // Join and publish.
    let (mut one, _) = Session::open(client, port, hello(None)).await?;
    one.send.send(join(1)).await?;
    one.answers.expect(65).await?;
    let (epoch, mut room) = one.room().await?;
    let sending = async {
        for (payload, seq) in payloads.iter().zip(1..) {
            one.send.send(publish(seq + 1, publisher, seq, payload)).await?;
        }
        Ok::<(), Failure>(())
    };
    let answering = async {
        for _ in &payloads {
            one.answers.expect(68).await?;
        }
        Ok::<(), Failure>(())
    };
    let (sent, answered, live) = tokio::join!(sending, answering, take(&mut room, 0, payloads.len(), true));
    (sent?, answered?);
    let live = live?;
    assert!(live.iter().map(|record| &record.payload).eq(&payloads), "what was published comes live");
    assert!(live.iter().map(|record| record.seq).eq(1..=payloads.len() as u64), "in order");
    drop(room);
    one.connection.close(0_u32.into());

    // Replay.
    let (mut two, _) = Session::open(client, port, hello(None)).await?;
    two.send.send(join(1)).await?;
    two.answers.expect(65).await?;
    let (_, mut room) = two.room().await?;
    assert_eq!(take(&mut room, 0, payloads.len(), true).await?, live, "replayed as it was live");
    two.connection.close(0_u32.into());

    // Resume in the middle; and a repeat is not a second message.
    let middle = live[payloads.len() / 2].offset;
    let (mut three, _) = Session::open(client, port, hello(Some((epoch, middle)))).await?;
    let (_, mut room) = three.room().await?;
    let rest = take(&mut room, middle, payloads.len() - payloads.len() / 2 - 1, true).await?;
    assert_eq!(rest, live[payloads.len() / 2 + 1..], "the rest, and nothing twice");
    three.send.send(publish(1, publisher, 1, &payloads[0])).await?;
    let body = three.answers.expect(68).await?;
    let mut answer = Reader(&body);
    let (request, first, last) = (answer.integer(), answer.integer(), answer.integer());
    answer.integer();
    assert_eq!((request, first, last, answer.0), (Some(1), Some(live[0].offset), Some(live[0].offset), &[1][..]));
    three.connection.close(0_u32.into());
    Ok(payloads.len())
}

fn client(certificate: &Path, alpn: &str) -> Result<Client, Failure> {
    #[allow(deprecated, reason = "the other provider has to be built from C")]
    let tls = rustls::Client::builder().with_certificate(certificate)?.with_application_protocols([alpn].iter())?.build()?;
    Ok(Client::builder().with_tls(tls)?.with_io("0.0.0.0:0")?.start()?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().ok_or("a port")?.parse()?;
    let certificate = arguments.next().ok_or("a certificate")?;
    let records = walk(&client(Path::new(&certificate), "roomlog/1")?, port).await?;
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    for alpn in ["h3", "roomlog/2"] {
        let connect = Connect::new(address).with_server_name("localhost");
        assert!(client(Path::new(&certificate), alpn)?.connect(connect).await.is_err(), "{alpn} was accepted");
    }
    println!("s2n-quic: {records} records joined, published, replayed, resumed; h3 and roomlog/2 refused");
    Ok(())
}
