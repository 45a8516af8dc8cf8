//! A connection of the load generator: a socket, its driver, and what lies between them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::peers::Target;
use crate::poll::Poll;
use crate::quic::Quic;
use crate::wire::{Driver, Event, Sink, Start, Wire};

/// What one read takes at most. One buffer serves all connections, so that an idle one costs nothing.
const READ_BYTES: usize = 256 << 10;
/// How long a server may take for a handshake or a join.
const PATIENCE: Duration = Duration::from_secs(60);

enum Carrier {
    Tcp(TcpStream),
    Quic(Box<Quic>),
}

pub(crate) struct Line {
    carrier: Carrier,
    pub(crate) driver: Driver,
    /// The beginning of something that has not all come.
    kept: Vec<u8>,
    pub(crate) out: Vec<u8>,
    blocked: bool,
}

/// All connections of a load, and the loop's tools.
pub(crate) struct Lines {
    pub(crate) poll: Poll,
    pub(crate) lines: Vec<Line>,
    pub(crate) ready: Vec<(usize, bool, bool)>,
    buffer: Vec<u8>,
    /// When QUIC connections want time to pass.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
}

impl Lines {
    pub(crate) fn new() -> Result<Self, String> {
        let poll = Poll::new().map_err(|error| format!("epoll: {error}"))?;
        Ok(Self { poll, lines: Vec::new(), ready: Vec::new(), buffer: vec![0; READ_BYTES], timers: BinaryHeap::new() })
    }

    /// Opens a connection and waits until it may be used. Returns its number.
    pub(crate) fn open(&mut self, target: &Target) -> Result<usize, String> {
        let server = target.address;
        let world = |error: io::Error| format!("connecting to {server}: {error}");
        let number = self.lines.len();
        let carrier = if target.peer.is_quic() {
            let quic = Quic::connect(server)?;
            self.poll.add(&quic.socket, number).map_err(world)?;
            Carrier::Quic(Box::new(quic))
        } else {
            let stream = TcpStream::connect(server).map_err(world)?;
            stream.set_nodelay(true).map_err(world)?;
            stream.set_nonblocking(true).map_err(world)?;
            self.poll.add(&stream, number).map_err(world)?;
            Carrier::Tcp(stream)
        };
        let mut line =
            Line { carrier, driver: target.peer.driver(), kept: Vec::new(), out: Vec::new(), blocked: false };
        line.driver.open(&mut line.out);
        self.lines.push(line);
        self.flush(number)?;
        self.await_event(number, "the handshake", |event| matches!(event, Event::Ready))?;
        Ok(number)
    }

    /// Asks for a room, and does not wait for anything.
    pub(crate) fn ask(&mut self, number: usize, room: u32, start: Start) -> Result<(), String> {
        let line = &mut self.lines[number];
        line.driver.join(room, start, &mut line.out);
        self.flush(number).map(drop)
    }

    /// This connection is not looked at any more, but stays.
    pub(crate) fn forget(&mut self, number: usize) -> Result<(), String> {
        let world = |error: io::Error| format!("epoll: {error}");
        match &self.lines[number].carrier {
            Carrier::Tcp(stream) => self.poll.remove(stream).map_err(world),
            Carrier::Quic(quic) => self.poll.remove(&quic.socket).map_err(world),
        }
    }

    /// This connection is looked at again.
    pub(crate) fn remember(&mut self, number: usize) -> Result<(), String> {
        let world = |error: io::Error| format!("epoll: {error}");
        match &self.lines[number].carrier {
            Carrier::Tcp(stream) => self.poll.add(stream, number).map_err(world),
            Carrier::Quic(quic) => self.poll.add(&quic.socket, number).map_err(world),
        }
    }

    /// Joins a room, and waits for the answer.
    pub(crate) fn join(&mut self, number: usize, room: u32, start: Start) -> Result<(), String> {
        self.ask(number, room, start)?;
        self.await_event(number, "a join", |event| matches!(event, Event::Joined))
    }

    /// Reads until this connection has had an event of a kind. The others are read, too: some servers ask theirs for
    /// signs of life.
    fn await_event(&mut self, number: usize, what: &str, wanted: impl Fn(&Event<'_>) -> bool) -> Result<(), String> {
        let (start, mut come) = (Instant::now(), false);
        while !come {
            if start.elapsed() > PATIENCE {
                return Err(format!("{what} took more than {} s", PATIENCE.as_secs()));
            }
            self.wait(Duration::from_millis(100))?;
            let ready = std::mem::take(&mut self.ready);
            for &(other, _, _) in &ready {
                self.read(other, &mut |event: Event<'_>| come |= other == number && wanted(&event))?;
                self.flush(other)?;
            }
            self.ready = ready;
        }
        Ok(())
    }

    /// One read, and all events in it. What a driver answers at once is left in `out`.
    #[inline]
    pub(crate) fn read<S: Sink>(&mut self, number: usize, sink: &mut S) -> Result<(), String> {
        let line = &mut self.lines[number];
        let stream = match &mut line.carrier {
            Carrier::Tcp(stream) => stream,
            Carrier::Quic(quic) => {
                quic.read(&mut self.buffer, sink)?;
                schedule(&mut self.timers, number, quic);
                return Ok(());
            }
        };
        let kept = line.kept.len();
        if kept + (kept.max(READ_BYTES) >> 1) > self.buffer.len() {
            self.buffer.resize(2 * kept + READ_BYTES, 0);
        }
        let bytes = match stream.read(&mut self.buffer[kept..]) {
            Ok(0) => return Err("the server closed a connection".to_owned()),
            Ok(bytes) => kept + bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(format!("reading from the server: {error}")),
        };
        self.buffer[..kept].copy_from_slice(&line.kept);
        let done = line.driver.read(&self.buffer[..bytes], &mut line.out, sink)?;
        line.kept.clear();
        line.kept.extend_from_slice(&self.buffer[done..bytes]);
        Ok(())
    }

    /// Writes what is there; true when all of it is gone. Otherwise the poll tells when there is room again.
    #[inline]
    pub(crate) fn flush(&mut self, number: usize) -> Result<bool, String> {
        let line = &mut self.lines[number];
        if line.out.is_empty() {
            return Ok(true);
        }
        let stream = match &mut line.carrier {
            Carrier::Tcp(stream) => stream,
            Carrier::Quic(quic) => {
                // There is room again when something was acknowledged, and then it is read and flushed.
                let taken = quic.write(&line.out)?;
                line.out.drain(..taken);
                schedule(&mut self.timers, number, quic);
                return Ok(line.out.is_empty());
            }
        };
        match stream.write(&line.out) {
            Ok(taken) if taken == line.out.len() => line.out.clear(),
            Ok(taken) => drop(line.out.drain(..taken)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("writing to the server: {error}")),
        }
        let blocked = !line.out.is_empty();
        if blocked != line.blocked {
            line.blocked = blocked;
            self.poll.watch_writes(&*stream, number, blocked).map_err(|error| format!("epoll: {error}"))?;
        }
        Ok(!blocked)
    }

    /// Waits for at most so long; the connections that may be read or written are in `ready` then.
    #[inline]
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<(), String> {
        self.ready.clear();
        let mut timeout = timeout;
        if let Some(Reverse((due, _))) = self.timers.peek() {
            timeout = timeout.min(due.saturating_duration_since(Instant::now()));
        }
        self.poll.wait(Some(timeout), &mut self.ready).map_err(|error| format!("epoll: {error}"))?;
        if !self.timers.is_empty() {
            self.pass_time()?;
        }
        Ok(())
    }

    fn pass_time(&mut self) -> Result<(), String> {
        let now = Instant::now();
        while let Some(Reverse((due, number))) = self.timers.peek().copied() {
            if due > now {
                break;
            }
            self.timers.pop();
            let Some(Line { carrier: Carrier::Quic(quic), .. }) = self.lines.get_mut(number) else { continue };
            if quic.deadline != Some(due) {
                continue;
            }
            quic.deadline = None;
            // A timer sends; what has come in is read when the socket says so.
            quic.timeout(now, &mut |_: Event<'_>| {})?;
            schedule(&mut self.timers, number, quic);
        }
        Ok(())
    }
}

/// Remembers when a connection wants time to pass, unless something earlier is remembered.
fn schedule(timers: &mut BinaryHeap<Reverse<(Instant, usize)>>, number: usize, quic: &mut Quic) {
    if let Some(due) = quic.poll_timeout()
        && quic.deadline.is_none_or(|deadline| due < deadline)
    {
        quic.deadline = Some(due);
        timers.push(Reverse((due, number)));
    }
}
