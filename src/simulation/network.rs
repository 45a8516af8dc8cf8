//! Streams of bytes between clients and the server: late, cut anywhere, silent, held up; but in order, as TCP is.
//!
//! A loss is a delay here, since what is above TCP sees nothing else of it. A connection may end for one side and go on
//! for the other; what is under way then may still arrive, long after the client has come back by another connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::trace::Trace;
use crate::client::Error;
use crate::client::link::{Dial, Dialling};

/// How soon a packet is sent again that nothing was heard of; doubled each time.
const SENT_AGAIN: Duration = Duration::from_millis(200);

/// Whom a connection is from: a client's number.
pub(super) type Who = usize;

/// How the packets fare.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// The longest way, in milliseconds.
    pub(super) way_ms: u64,
    /// How often a packet is lost.
    pub(super) loss: f64,
    /// What a connection takes that has not been read, in bytes.
    pub(super) window: usize,
}

impl Weather {
    pub(super) const FAIR: Self = Self { way_ms: 5, loss: 0.0, window: 64 << 10 };
}

/// What becomes of who knocks at the server.
pub(super) enum Door {
    /// He is let in.
    Open(mpsc::UnboundedSender<Arc<Wire>>),
    /// The machine runs, the server does not: he is refused.
    Shut,
    /// The machine is off: he hears nothing.
    Dark,
}

pub(super) struct Network {
    inner: Mutex<Inner>,
    trace: Arc<Trace>,
    /// Reads of what was sent by one who had gone by then.
    late: AtomicU64,
}

struct Inner {
    chance: StdRng,
    weather: Weather,
    /// Until when nothing passes between a client and the server.
    apart: Vec<Instant>,
    door: Door,
    wires: Vec<Arc<Wire>>,
    wires_ever: u64,
}

impl Network {
    pub(super) fn new(seed: u64, clients: usize, trace: Arc<Trace>) -> Self {
        let inner = Inner {
            chance: StdRng::seed_from_u64(seed),
            weather: Weather::FAIR,
            apart: vec![Instant::now(); clients],
            door: Door::Dark,
            wires: Vec::new(),
            wires_ever: 0,
        };
        Self { inner: Mutex::new(inner), trace, late: AtomicU64::new(0) }
    }

    /// How often the server has read what was sent by one who had gone by then.
    pub(super) fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.inner.lock().weather = weather;
    }

    /// Nothing passes between a client and the server for so long.
    pub(super) fn part(&self, who: Who, time: Duration) {
        self.inner.lock().apart[who] = Instant::now() + time;
    }

    /// All partitions are over, and what was silent is told to be gone.
    pub(super) fn heal(&self) {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        inner.apart.fill(now);
        inner.weather = Weather::FAIR;
    }

    pub(super) fn open_door(&self, door: mpsc::UnboundedSender<Arc<Wire>>) {
        let mut inner = self.inner.lock();
        inner.door = Door::Open(door);
        // Who sends something on a connection of before is told then that the server knows nothing of it.
        for wire in std::mem::take(&mut inner.wires) {
            let soon = Duration::from_millis(inner.chance.random_range(0..20_000));
            let at = inner.arrival(wire.who, Instant::now() + soon);
            wire.down.flow.lock().silent = false;
            wire.down.end(at, Ending::Reset);
        }
    }

    /// Nobody is let in any more.
    pub(super) fn shut_door(&self) {
        self.inner.lock().door = Door::Shut;
    }

    /// The server is gone. If its machine is, too, nobody is told: what is sent to it is answered when it is back.
    pub(super) fn server_gone(&self, dark: bool) {
        let mut inner = self.inner.lock();
        inner.door = if dark { Door::Dark } else { Door::Shut };
        for wire in std::mem::take(&mut inner.wires) {
            inner.server_hears_nothing_more(&wire);
            if dark {
                wire.down.fall_silent();
                inner.wires.push(wire);
            } else {
                inner.end_down(&wire);
            }
        }
    }

    /// Something befalls a connection, if there is one.
    pub(super) fn cut_one(&self) {
        let mut inner = self.inner.lock();
        inner.wires.retain(|wire| !(wire.up.is_over() && wire.down.is_over()));
        if inner.wires.is_empty() {
            return;
        }
        let count = inner.wires.len();
        let index = inner.chance.random_range(0..count);
        let wire = Arc::clone(&inner.wires[index]);
        let how = inner.chance.random_range(0..5);
        self.trace.say(format_args!("connection {} of client {} is cut ({how})", wire.number, wire.who));
        match how {
            // Both sides are told.
            0 => {
                inner.server_hears_nothing_more(&wire);
                inner.end_up(&wire);
                inner.end_down(&wire);
                wire.down.break_writer();
            }
            // The client is told; what it has sent still arrives, perhaps much later.
            1 | 2 => {
                let late = Duration::from_millis(if how == 1 { 0 } else { inner.chance.random_range(0..8000) });
                wire.up.break_writer();
                wire.up.delay(late);
                let at = wire.up.last_arrival() + Duration::from_millis(inner.chance.random_range(0..3000));
                wire.up.end(at, Ending::Reset);
                inner.end_down(&wire);
            }
            // The server is told.
            3 => {
                inner.server_hears_nothing_more(&wire);
                inner.end_up(&wire);
                wire.down.fall_silent();
            }
            // Nobody is told.
            _ => {
                wire.up.fall_silent();
                wire.down.fall_silent();
            }
        }
    }

    async fn connect(self: Arc<Self>, who: Who) -> Result<Arc<Wire>, Error> {
        let unreachable = |why: &str| Error::Unreachable { address: "the server".to_owned(), why: why.to_owned() };
        loop {
            let way = {
                let mut inner = self.inner.lock();
                let now = Instant::now();
                let arrival = inner.arrival(who, now);
                (inner.apart[who] <= now && !matches!(inner.door, Door::Dark)).then(|| arrival - now)
            };
            let Some(way) = way else {
                sleep(SENT_AGAIN).await;
                continue;
            };
            sleep(way).await;
            let mut inner = self.inner.lock();
            match &inner.door {
                Door::Dark => {}
                Door::Shut => return Err(unreachable("connection refused")),
                Door::Open(door) => {
                    let door = door.clone();
                    inner.wires_ever += 1;
                    let pipe = |window| Pipe { net: Arc::clone(&self), who, flow: Mutex::new(Flow::new(window)) };
                    let window = inner.weather.window;
                    let number = inner.wires_ever;
                    let wire = Arc::new(Wire { number, who, up: pipe(window), down: pipe(window) });
                    self.trace.say(format_args!("client {who} has connection {number}"));
                    inner.wires.push(Arc::clone(&wire));
                    if door.send(Arc::clone(&wire)).is_err() {
                        return Err(unreachable("connection reset"));
                    }
                    return Ok(wire);
                }
            }
        }
    }

    /// How much of what there is one read gets.
    fn portion(&self, bytes: usize) -> usize {
        let chance = &mut self.inner.lock().chance;
        if bytes > 1 && chance.random_bool(0.2) { chance.random_range(1..bytes) } else { bytes }
    }
}

impl Inner {
    /// When a packet arrives that is sent now.
    fn arrival(&mut self, who: Who, now: Instant) -> Instant {
        let Weather { way_ms, loss, .. } = self.weather;
        let mut way = Duration::from_millis(self.chance.random_range(1..=way_ms.max(1)));
        let mut again = SENT_AGAIN;
        while loss > 0.0 && again < 16 * SENT_AGAIN && self.chance.random_bool(loss) {
            way += again;
            again *= 2;
        }
        let apart = self.apart[who];
        if apart <= now {
            return now + way;
        }
        apart + way + Duration::from_millis(self.chance.random_range(0..1000))
    }

    /// The rest of what the client sends is for nobody.
    fn server_hears_nothing_more(&mut self, wire: &Wire) {
        let keep = self.chance.random_range(0..=wire.up.under_way());
        wire.up.truncate(keep);
        wire.up.break_writer();
    }

    fn end_up(&mut self, wire: &Wire) {
        let at = self.arrival(wire.who, Instant::now()).max(wire.up.last_arrival());
        wire.up.end(at, Ending::Reset);
    }

    /// Some of what the server has sent still arrives, and then the connection ends for the client.
    fn end_down(&mut self, wire: &Wire) {
        let keep = self.chance.random_range(0..=wire.down.under_way());
        wire.down.truncate(keep);
        let at = self.arrival(wire.who, Instant::now()).max(wire.down.last_arrival());
        wire.down.end(at, Ending::Reset);
    }
}

/// A client's place in the network.
pub(super) struct Place {
    pub(super) network: Arc<Network>,
    pub(super) who: Who,
}

impl Dial for Place {
    fn dial(&self) -> Dialling {
        let (network, who) = (Arc::clone(&self.network), self.who);
        Box::pin(async move {
            let wire = network.connect(who).await?;
            let (read, write) = (ClientRead(Arc::clone(&wire)), ClientWrite(wire));
            Ok((Box::new(read) as Box<dyn AsyncRead + Send + Unpin>, Box::new(write) as _))
        })
    }
}

/// One connection.
pub(super) struct Wire {
    pub(super) number: u64,
    pub(super) who: Who,
    /// From the client to the server.
    pub(super) up: Pipe,
    /// And back.
    pub(super) down: Pipe,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Finished,
    Reset,
}

/// One direction of a connection.
pub(super) struct Pipe {
    net: Arc<Network>,
    who: Who,
    flow: Mutex<Flow>,
}

struct Flow {
    /// What is under way or has not been read, each with when it arrives.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    held: usize,
    window: usize,
    last: Instant,
    end: Option<(Instant, Ending)>,
    /// Nothing arrives any more.
    silent: bool,
    /// Who writes is told that nobody reads.
    broken: bool,
    sleep: Option<Pin<Box<Sleep>>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Flow {
    fn new(window: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            held: 0,
            window,
            last: Instant::now(),
            end: None,
            silent: false,
            broken: false,
            sleep: None,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Pipe {
    /// Takes as much as fits without waiting.
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let arrival = self.net.inner.lock().arrival(self.who, Instant::now());
        let mut flow = self.flow.lock();
        if flow.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if flow.end.is_some() {
            // He who writes does not know yet.
            return Ok(slices.iter().map(|slice| slice.len()).sum());
        }
        let mut space = flow.window.saturating_sub(flow.held);
        if space == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut chunk = Vec::new();
        for slice in slices {
            let part = &slice[..slice.len().min(space)];
            chunk.extend_from_slice(part);
            space -= part.len();
        }
        let bytes = chunk.len();
        flow.held += bytes;
        if !flow.silent {
            flow.last = flow.last.max(arrival);
            let last = flow.last;
            flow.chunks.push_back((last, chunk));
            if let Some(reader) = flow.reader.take() {
                reader.wake();
            }
        }
        Ok(bytes)
    }

    /// Whether something can be written; if not, `cx` is woken when it can.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut flow = self.flow.lock();
        if flow.broken || flow.end.is_some() || flow.held < flow.window {
            return Poll::Ready(());
        }
        flow.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Reads what has arrived; 0 bytes at the end.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut flow = self.flow.lock();
            let now = Instant::now();
            let next = match (flow.chunks.front().map(|(at, _)| *at), flow.end) {
                (Some(at), _) | (None, Some((at, _))) => at,
                (None, None) => {
                    flow.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            if next > now {
                flow.reader = Some(cx.waker().clone());
                let mut sleep = Box::pin(sleep_until(next));
                if sleep.as_mut().poll(cx).is_pending() {
                    flow.sleep = Some(sleep);
                    return Poll::Pending;
                }
                continue;
            }
            let Some((at, mut chunk)) = flow.chunks.pop_front() else {
                return Poll::Ready(match flow.end {
                    Some((_, Ending::Reset)) => Err(io::ErrorKind::ConnectionReset.into()),
                    _ => Ok(0),
                });
            };
            let bytes = self.net.portion(chunk.len().min(buffer.len()));
            buffer[..bytes].copy_from_slice(&chunk[..bytes]);
            chunk.drain(..bytes);
            if !chunk.is_empty() {
                flow.chunks.push_front((at, chunk));
            }
            flow.held -= bytes;
            if flow.broken {
                self.net.late.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(writer) = flow.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(bytes));
        }
    }

    /// Nothing follows.
    pub(super) fn finish(&self) {
        let at = self.net.inner.lock().arrival(self.who, Instant::now());
        let at = self.flow.lock().last.max(at);
        self.end(at, Ending::Finished);
    }

    /// Nobody reads any more.
    pub(super) fn break_writer(&self) {
        let mut flow = self.flow.lock();
        flow.broken = true;
        flow.wake();
    }

    fn end(&self, at: Instant, ending: Ending) {
        let mut flow = self.flow.lock();
        if !flow.silent && flow.end.is_none() {
            flow.end = Some((at, ending));
            flow.wake();
        }
    }

    fn fall_silent(&self) {
        let mut flow = self.flow.lock();
        let now = Instant::now();
        flow.silent = true;
        // What has arrived has arrived.
        flow.chunks.retain(|(at, _)| *at <= now);
    }

    fn delay(&self, by: Duration) {
        let mut flow = self.flow.lock();
        let now = Instant::now();
        flow.chunks.iter_mut().filter(|(at, _)| *at > now).for_each(|(at, _)| *at += by);
        if flow.chunks.back().is_some_and(|(at, _)| *at > now) {
            flow.last += by;
        }
    }

    fn last_arrival(&self) -> Instant {
        self.flow.lock().last.max(Instant::now())
    }

    fn under_way(&self) -> usize {
        self.flow.lock().chunks.iter().map(|(_, chunk)| chunk.len()).sum()
    }

    /// Only so many bytes of what is under way arrive.
    fn truncate(&self, mut keep: usize) {
        let mut flow = self.flow.lock();
        for (_, chunk) in &mut flow.chunks {
            chunk.truncate(keep);
            keep -= chunk.len();
        }
        flow.chunks.retain(|(_, chunk)| !chunk.is_empty());
        flow.held = flow.chunks.iter().map(|(_, chunk)| chunk.len()).sum();
    }

    fn is_over(&self) -> bool {
        let flow = self.flow.lock();
        flow.broken || flow.end.is_some()
    }
}

struct ClientRead(Arc<Wire>);

impl AsyncRead for ClientRead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; 4096];
        let length = space.len().min(buffer.remaining());
        let bytes = ready!(self.0.down.poll_read(cx, &mut space[..length]))?;
        buffer.put_slice(&space[..bytes]);
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientRead {
    fn drop(&mut self) {
        self.0.down.break_writer();
    }
}

struct ClientWrite(Arc<Wire>);

impl AsyncWrite for ClientWrite {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.0.up.try_write(&[IoSlice::new(bytes)]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.0.up.poll_writable(cx)),
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.up.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientWrite {
    fn drop(&mut self) {
        self.0.up.finish();
    }
}
