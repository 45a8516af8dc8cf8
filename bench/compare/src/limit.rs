//! What the machine allows: programs that do what a broker must do for the load, and nothing else. One thread, epoll.
//!
//! A turn of the event loop reads each ready socket once. What was published goes to those who are joined with one send
//! each; what was appended goes to the file with one write and one fdatasync for all of the turn, then is acknowledged
//! with one send for each connection.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use crate::poll::Poll;
use crate::wire::raw::{ANSWER, APPEND, HEAD_BYTES, HELLO, Head, JOIN, JOINED, LAST, PUBLISH, REPLAY};

const READ_BYTES: usize = 256 << 10;
const LISTENER: usize = usize::MAX;

struct Peer {
    stream: TcpStream,
    /// The beginning of a frame that has not all come.
    partial: Vec<u8>,
    /// What the socket did not take.
    out: Vec<u8>,
    /// Appends of this turn.
    appended: usize,
    /// What of the file is to be sent: from, to.
    replay: Option<(u64, u64)>,
}

struct Limit {
    poll: Poll,
    peers: HashMap<usize, Peer>,
    joined: HashMap<u32, Vec<usize>>,
    /// What was published in this turn, by room.
    published: HashMap<u32, Vec<u8>>,
    log: Option<(File, bool)>,
    appended: Vec<u8>,
    appenders: Vec<usize>,
    /// Of the file, and of a frame in it: all are of one size where that matters.
    log_bytes: u64,
    frame_bytes: u64,
}

/// Serves for ever. With a file, appends go there; `sync` before they are acknowledged.
pub(crate) fn serve(port: u16, log: Option<&Path>, sync: bool) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    // The backlog of the standard library, 128, would make thousands of connections wait for their repeated SYN.
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    let poll = Poll::new()?;
    poll.add(&listener, LISTENER)?;
    let log = log.map(|path| File::options().create(true).read(true).append(true).open(path)).transpose()?;
    let log_bytes = log.as_ref().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
    let mut limit = Limit {
        poll,
        peers: HashMap::new(),
        joined: HashMap::new(),
        published: HashMap::new(),
        log: log.map(|file| (file, sync)),
        appended: Vec::new(),
        appenders: Vec::new(),
        log_bytes,
        frame_bytes: 0,
    };
    let (mut ready, mut buffer, mut connections) = (Vec::new(), vec![0; READ_BYTES], 0);
    loop {
        limit.poll.wait(None, &mut ready)?;
        for (number, readable, writable) in ready.drain(..) {
            if number == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    limit.poll.add(&stream, connections)?;
                    limit.peers.insert(
                        connections,
                        Peer { stream, partial: Vec::new(), out: Vec::new(), appended: 0, replay: None },
                    );
                    connections += 1;
                }
                continue;
            }
            if writable {
                limit.send(number, &[])?;
                limit.replay(number)?;
            }
            if readable && !limit.read(number, &mut buffer)? {
                limit.gone(number)?;
            }
        }
        limit.commit()?;
        limit.deliver()?;
    }
}

impl Limit {
    /// One read of one socket; false when the peer is gone.
    fn read(&mut self, number: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(peer) = self.peers.get_mut(&number) else { return Ok(true) };
        let kept = peer.partial.len();
        buffer[..kept].copy_from_slice(&peer.partial);
        peer.partial.clear();
        let bytes = match peer.stream.read(&mut buffer[kept..]) {
            Ok(0) => return Ok(false),
            Ok(bytes) => kept + bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => kept,
            Err(_) => return Ok(false),
        };
        let input = &buffer[..bytes];
        let mut at = 0;
        let mut room = None;
        // Neighbours that go the same way are copied as one.
        let (mut run_start, mut run_kind) = (0, 0);
        loop {
            let head = Head::read(&input[at..]).filter(|head| at + HEAD_BYTES + head.bytes <= bytes);
            let same = head.is_some_and(|head| head.kind == run_kind && Some(head.room) == room);
            if !same {
                match run_kind {
                    PUBLISH => self
                        .published
                        .entry(room.unwrap_or_default())
                        .or_default()
                        .extend_from_slice(&input[run_start..at]),
                    APPEND => self.appended.extend_from_slice(&input[run_start..at]),
                    _ => {}
                }
                let Some(head) = head else { break };
                (run_start, run_kind, room) = (at, head.kind, Some(head.room));
            }
            let Some(head) = head else { break };
            match head.kind {
                HELLO | JOIN => {
                    let kind = if head.kind == JOIN { JOINED } else { ANSWER };
                    if head.kind == JOIN {
                        self.joined.entry(head.room).or_default().push(number);
                    }
                    let mut answer = Vec::new();
                    Head { bytes: 0, kind, room: head.room }.write(&mut answer);
                    self.send(number, &answer)?;
                }
                APPEND => {
                    if let Some(peer) = self.peers.get_mut(&number) {
                        if peer.appended == 0 {
                            self.appenders.push(number);
                        }
                        peer.appended += 1;
                    }
                    self.frame_bytes = (HEAD_BYTES + head.bytes) as u64;
                }
                PUBLISH => {}
                REPLAY | LAST => {
                    let back = if head.kind == LAST { u64::from(head.room) * self.frame_bytes } else { self.log_bytes };
                    if let Some(peer) = self.peers.get_mut(&number) {
                        peer.replay = Some((self.log_bytes - back.min(self.log_bytes), self.log_bytes));
                    }
                    self.replay(number)?;
                }
                kind => return Err(io::Error::other(format!("a frame of kind {kind}"))),
            }
            at += HEAD_BYTES + head.bytes;
        }
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.partial.extend_from_slice(&input[at..]);
        }
        Ok(true)
    }

    /// Group commit: what came in this turn is written, synced and acknowledged together.
    fn commit(&mut self) -> io::Result<()> {
        if self.appenders.is_empty() {
            return Ok(());
        }
        if let Some((file, sync)) = &mut self.log {
            file.write_all(&self.appended)?;
            if *sync {
                file.sync_data()?;
            }
            self.log_bytes += self.appended.len() as u64;
        }
        self.appended.clear();
        let mut answers = Vec::new();
        for number in std::mem::take(&mut self.appenders) {
            let Some(peer) = self.peers.get_mut(&number) else { continue };
            answers.clear();
            for _ in 0..std::mem::take(&mut peer.appended) {
                Head { bytes: 0, kind: ANSWER, room: 0 }.write(&mut answers);
            }
            self.send(number, &answers)?;
        }
        Ok(())
    }

    fn deliver(&mut self) -> io::Result<()> {
        let mut published = std::mem::take(&mut self.published);
        for (room, bytes) in &mut published {
            if bytes.is_empty() {
                continue;
            }
            if let Some(joined) = self.joined.remove(room) {
                for number in &joined {
                    self.send(*number, bytes)?;
                }
                self.joined.insert(*room, joined);
            }
            bytes.clear();
        }
        self.published = published;
        Ok(())
    }

    /// One send; what the socket does not take waits until it does.
    fn send(&mut self, number: usize, bytes: &[u8]) -> io::Result<()> {
        let Some(peer) = self.peers.get_mut(&number) else { return Ok(()) };
        let waiting = !peer.out.is_empty();
        if waiting {
            peer.out.extend_from_slice(bytes);
            if !bytes.is_empty() {
                return Ok(());
            }
        }
        let source = if waiting { &peer.out[..] } else { bytes };
        let taken = match peer.stream.write(source) {
            Ok(taken) => taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            // The read will find out.
            Err(_) => source.len(),
        };
        if waiting {
            peer.out.drain(..taken);
        } else if taken < bytes.len() {
            peer.out.extend_from_slice(&bytes[taken..]);
        }
        if waiting == peer.out.is_empty() {
            self.poll.watch_writes(&peer.stream, number, !waiting)?;
        }
        Ok(())
    }

    /// Sends from the file without looking at it, as much as the socket takes.
    fn replay(&mut self, number: usize) -> io::Result<()> {
        let (Some(peer), Some((file, _))) = (self.peers.get_mut(&number), &self.log) else { return Ok(()) };
        let Some((mut from, to)) = peer.replay else { return Ok(()) };
        while from < to {
            let left = (to - from) as usize;
            match rustix::fs::sendfile(&peer.stream, file, Some(&mut from), left) {
                Ok(0) => break,
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    peer.replay = Some((from, to));
                    return self.poll.watch_writes(&peer.stream, number, true);
                }
                // The read will find out.
                Err(_) => break,
            }
        }
        peer.replay = None;
        self.poll.watch_writes(&peer.stream, number, false)
    }

    fn gone(&mut self, number: usize) -> io::Result<()> {
        if let Some(peer) = self.peers.remove(&number) {
            self.poll.remove(&peer.stream)?;
            for joined in self.joined.values_mut() {
                joined.retain(|other| *other != number);
            }
        }
        Ok(())
    }
}
