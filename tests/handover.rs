//! A connection is written to by the committer and by its own task in turns. Whatever its socket takes and whenever,
//! nothing is lost, doubled or left lying.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use roomlog::protocol::ServerFrame;
use roomlog::types::{PublisherId, Start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::raw::{PATIENCE, Session, UPGRADE, Unread, hello, join, payloads_of, publish, server, ws_frame};

const TOTAL: u32 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_socket_blocks_at_random_moments_misses_nothing() {
    let given = std::env::var("ROOMLOG_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = given.unwrap_or_else(rand::random);
    eprintln!("ROOMLOG_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);

    let (server, _) = server(|_, _| {}).await;
    let address = server.bound().listen.expect("it listens");
    // So small that a few records fill it.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 << 10).expect("it can be small");
    let mut reader = socket.connect(address).await.expect("the server listens");
    let message = [hello(), join(1, 1, "tea", Start::New)].concat();
    let bytes = [format!("{UPGRADE}\r\n").into_bytes(), ws_frame(0x82, &message)].concat();
    reader.write_all(&bytes).await.expect("the server reads");

    let mut reads = SmallRng::seed_from_u64(seed ^ 1);
    let (joined, begin) = tokio::sync::oneshot::channel();
    let reading = tokio::spawn(async move {
        let (mut unread, mut joined) = (Unread::new(false), Some(joined));
        let mut expected = 1_u32;
        while expected <= TOTAL {
            let mut bytes = vec![0; reads.random_range(1..8_000)];
            let read = tokio::time::timeout(PATIENCE, reader.read(&mut bytes)).await;
            let count = read.unwrap_or_else(|_| panic!("record {expected} is left lying")).expect("it reads");
            unread.add(&bytes[..count], |frame| match frame {
                ServerFrame::Delivery(delivery) => {
                    for payload in payloads_of(&delivery) {
                        assert_eq!(payload[..4], expected.to_le_bytes(), "in order, once");
                        expected += 1;
                    }
                }
                ServerFrame::Live(_) => _ = joined.take().map(|joined| joined.send(())),
                _ => {}
            });
            if reads.random_range(0..4) == 0 {
                tokio::task::yield_now().await;
            }
        }
    });

    begin.await.expect("the reader is there");
    let mut writer = Session::open(address).await;
    let publisher = PublisherId::random().expect("randomness");
    let mut seq = 0;
    while seq < TOTAL {
        // Few at a time, so that the committer serves the reader itself whenever it may.
        let several = random.random_range(1..4).min(TOTAL - seq);
        for _ in 0..several {
            seq += 1;
            let mut payload = seq.to_le_bytes().to_vec();
            payload.resize(4 + [0, 100, 600, 5_000, 30_000][random.random_range(0..5)], 0);
            writer.send(&publish(seq, "tea", publisher, seq.into(), &[&payload])).await;
        }
        for _ in 0..several {
            writer.next(|frame| assert!(matches!(frame, ServerFrame::Published(_)), "{frame:?}")).await;
        }
    }
    reading.await.expect("all is read");
}
