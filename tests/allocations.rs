//! A delivery allocates nothing: counted, over real sockets, by an allocator that counts.
//!
//! A binary of its own, because the allocator is the whole process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roomlog::broker::{self, Broker};
use roomlog::protocol::{ClientFrame, Hello, HelloBody, Join, JoinId, StartAt, Want, frame_into};
use roomlog::server::{Options, Server};
use roomlog::types::RoomName;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: everything is handed on to the system's allocator unchanged.
#[allow(unsafe_code, reason = "an allocator cannot be written without; it only counts, in a test")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PAYLOAD: [u8; 128] = [b'x'; 128];

/// A subscriber on a bare socket, which counts the bytes that come without allocating anything.
fn subscribe(
    address: std::net::SocketAddr,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let mut socket = TcpStream::connect(address).expect("the server listens");
    let upgrade = "GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: roomlog.v1\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let hello = HelloBody { client: "test", ..HelloBody::default() }.to_bytes();
    let join = Join {
        request: 1,
        join: JoinId(1),
        room: "lobby",
        start: StartAt::New,
        credit_bytes: None,
        want: Want::RECORDS,
    };
    let mut frames = Vec::new();
    frame_into(&mut frames, |out| ClientFrame::Hello(Hello::new(&hello)).encode_into(out));
    frame_into(&mut frames, |out| ClientFrame::Join(join).encode_into(out));
    let mut message = vec![0x82, 0x80 | u8::try_from(frames.len()).expect("short"), 0, 0, 0, 0];
    message.extend_from_slice(&frames);
    socket.write_all(&message).expect("sent");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout can be set");
    std::thread::spawn(move || {
        let mut buffer = [0; 64 << 10];
        while !stop.load(Ordering::Relaxed) {
            match socket.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    bytes.fetch_add(read as u64, Ordering::SeqCst);
                }
                Err(_) => {}
            }
        }
    })
}

/// Publishes to so many subscribers, and tells how many allocations the whole process made for it.
async fn allocations(subscribers: usize, publishes: usize) -> u64 {
    let broker = Broker::open(broker::Options::in_memory()).await.expect("memory is enough");
    let mut options = Options::default();
    options.listen = Some("127.0.0.1:0".parse().expect("an address"));
    (options.quic_listen, options.admin_listen) = (None, None);
    let server = Server::start(broker.clone(), options).await.expect("the server starts");
    let address = server.bound().listen.expect("it listens");
    let lobby = RoomName::new("lobby").expect("a good name");
    let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let threads: Vec<_> = (0..subscribers).map(|_| subscribe(address, Arc::clone(&bytes), Arc::clone(&stop))).collect();
    let expect = |count: usize| (count * subscribers * PAYLOAD.len()) as u64;
    let arrived = async |count: usize| {
        let begun = Instant::now();
        while bytes.load(Ordering::SeqCst) < expect(count) {
            assert!(begun.elapsed() < Duration::from_secs(60), "deliveries do not arrive");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    // Everybody has joined, and buffers have their size.
    while broker.room(&lobby).expect("a room").followers() < subscribers {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..200 {
        broker.publish(&lobby, &PAYLOAD).await.expect("stored");
    }
    arrived(200).await;
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..publishes {
        broker.publish(&lobby, &PAYLOAD).await.expect("stored");
    }
    arrived(200 + publishes).await;
    let counted = ALLOCATIONS.load(Ordering::SeqCst) - before;
    stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("no panic");
    }
    server.stop().await;
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_allocates_nothing() {
    const PUBLISHES: usize = 2000;
    let few = allocations(1, PUBLISHES).await;
    let deliveries = (40 * PUBLISHES) as u64;
    // What remains is not of deliveries: timers, and the runtime's own queues when they grow. On a busy machine that may
    // be a lot at times; an allocation of a delivery would be there every time.
    let mut least = u64::MAX;
    for _ in 0..5 {
        let many = allocations(41, PUBLISHES).await;
        let more = many.saturating_sub(few);
        println!("{few} allocations for 1 subscriber, {many} for 41: {more} more for {deliveries} more deliveries");
        least = least.min(more);
        if least * 100 < deliveries {
            return;
        }
    }
    panic!("{least} allocations for {deliveries} deliveries");
}
