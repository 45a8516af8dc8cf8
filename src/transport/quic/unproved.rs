//! A socket that sends to an address that has proved nothing at most three times what came from it.
//!
//! A first datagram may tell of a false sender, who is then flooded with the answers (RFC 9000 §8.1). quinn counts
//! this, but sends a whole datagram whenever any of three times as much is left, and so up to four times.
//!
//! An address is counted from its first datagram until it is believed: when a packet of the second half of the handshake,
//! or of what follows, comes from it. Whoever forges one has the bound of quinn. While no address is counted, packets
//! cost nothing.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::lock::Mutex;

/// What may be sent for each byte that came.
const FACTOR: usize = 3;

/// Shorter datagrams begin no handshake.
const INITIAL_BYTES_MIN: usize = 1200;

/// Addresses that are counted at a time: with so many handshakes under way addresses have to prove themselves first.
const ADDRESSES_MAX: usize = 1024;

/// How long an address is counted: longer than a handshake may take.
const COUNTED_FOR: Duration = Duration::from_secs(10);

/// A socket below an endpoint.
#[derive(Debug)]
pub(super) struct Unproved {
    socket: Arc<dyn AsyncUdpSocket>,
    counts: Mutex<Counts>,
    /// How many addresses are counted.
    counted: AtomicUsize,
}

#[derive(Default)]
struct Counts {
    addresses: HashMap<SocketAddr, Count>,
    /// When those that were silent for long were last let go.
    swept: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Count {
    since: Instant,
    received: usize,
    sent: usize,
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counts").field(&self.addresses.len()).finish()
    }
}

/// Whether a datagram may begin a handshake: its first packet has a long header, and not that of the second half.
fn may_begin(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0 && first & 0x30 != 0x20)
}

impl Counts {
    fn received(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        let recent = |at: Instant| now.duration_since(at) < COUNTED_FOR;
        // Whatever comes, so that none is counted any more soon after the last one has begun.
        if !self.swept.is_some_and(recent) {
            self.addresses.retain(|_, count| recent(count.since));
            self.swept = Some(now);
        }
        if !may_begin(datagram) {
            self.addresses.remove(&from);
        } else if let Some(count) = self.addresses.get_mut(&from) {
            count.received += datagram.len();
        } else if datagram.len() >= INITIAL_BYTES_MIN && self.addresses.len() < ADDRESSES_MAX {
            self.addresses.insert(from, Count { since: now, received: datagram.len(), sent: 0 });
        }
    }

    /// How many of the bytes may be sent, in whole datagrams.
    fn admits(&self, to: SocketAddr, bytes: usize, datagram_bytes: usize) -> usize {
        let Some(count) = self.addresses.get(&to) else { return bytes };
        let left = (FACTOR * count.received).saturating_sub(count.sent);
        if bytes <= left { bytes } else { left / datagram_bytes * datagram_bytes }
    }

    fn sent(&mut self, to: SocketAddr, bytes: usize) {
        if let Some(count) = self.addresses.get_mut(&to) {
            count.sent += bytes;
        }
    }
}

impl Unproved {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { socket, counts: Mutex::default(), counted: AtomicUsize::new(0) }
    }
}

impl AsyncUdpSocket for Unproved {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.counted.load(Ordering::Relaxed) == 0 {
            return self.socket.try_send(transmit);
        }
        let to = transmit.destination;
        let whole = transmit.contents.len();
        let mut counts = self.counts.lock();
        let admitted = counts.admits(to, whole, transmit.segment_size.unwrap_or(whole).max(1));
        if admitted == 0 {
            // As if it were lost on the way: it is sent again when the peer has shown that it is there.
            return Ok(());
        }
        let contents = &transmit.contents[..admitted];
        let segment_size = transmit.segment_size.filter(|size| *size < admitted);
        self.socket.try_send(&Transmit { contents, segment_size, ..*transmit })?;
        counts.sent(to, admitted);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.socket.poll_recv(cx, bufs, meta))?;
        for (buffer, meta) in bufs.iter().zip(&*meta).take(received) {
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                if self.counted.load(Ordering::Relaxed) > 0 || may_begin(datagram) {
                    let mut counts = self.counts.lock();
                    counts.received(meta.addr, datagram, Instant::now());
                    self.counted.store(counts.addresses.len(), Ordering::Relaxed);
                }
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: u8 = 0xc0;
    const HANDSHAKE: u8 = 0xe0;
    const SHORT: u8 = 0x40;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn datagram(first: u8, bytes: usize) -> Vec<u8> {
        let mut datagram = vec![0; bytes];
        datagram[0] = first;
        datagram
    }

    #[test]
    fn an_address_that_proves_nothing_gets_three_times_what_came_and_not_a_byte_more() {
        let (mut counts, start) = (Counts::default(), Instant::now());
        counts.received(peer(1), &datagram(INITIAL, 1200), start);
        for (bytes, admitted) in [(1200, 1200), (711, 711), (1200, 1200), (711, 0), (489, 489), (1, 0)] {
            assert_eq!(counts.admits(peer(1), bytes, bytes), admitted, "{bytes}");
            counts.sent(peer(1), admitted);
        }
        counts.received(peer(1), &datagram(INITIAL, 60), start);
        assert_eq!(counts.admits(peer(1), 181, 181), 0);
        assert_eq!(counts.admits(peer(1), 180, 180), 180, "what comes later counts, too");
        assert_eq!(counts.admits(peer(2), 9000, 1200), 9000, "nothing came from there");
    }

    #[test]
    fn of_several_datagrams_as_many_are_sent_as_may_be() {
        let (mut counts, start) = (Counts::default(), Instant::now());
        counts.received(peer(1), &datagram(INITIAL, 1250), start);
        assert_eq!(counts.admits(peer(1), 4 * 1200, 1200), 3 * 1200);
        counts.sent(peer(1), 3 * 1200);
        assert_eq!(counts.admits(peer(1), 2 * 1200, 1200), 0);
    }

    #[test]
    fn an_address_that_goes_on_with_the_handshake_is_counted_no_more() {
        let (mut counts, start) = (Counts::default(), Instant::now());
        counts.received(peer(1), &datagram(INITIAL, 1200), start);
        assert_eq!(counts.admits(peer(1), 9000, 9000), 0);
        for proof in [HANDSHAKE, SHORT] {
            counts.received(peer(1), &datagram(proof, 40), start);
            assert_eq!(counts.admits(peer(1), 9000, 9000), 9000);
            counts.received(peer(1), &datagram(INITIAL, 1200), start);
        }
    }

    #[test]
    fn so_many_addresses_are_counted_and_old_ones_make_room() {
        let (mut counts, start) = (Counts::default(), Instant::now());
        counts.received(peer(1), &datagram(INITIAL, 1199), start);
        assert!(counts.addresses.is_empty(), "it begins no handshake");
        for port in 0..2000 {
            counts.received(peer(port), &datagram(INITIAL, 1200), start);
        }
        assert_eq!(counts.addresses.len(), ADDRESSES_MAX);
        counts.received(peer(3000), &datagram(INITIAL, 1200), start + COUNTED_FOR);
        assert_eq!(counts.addresses.len(), 1);
        counts.received(peer(4000), &datagram(SHORT, 40), start + 2 * COUNTED_FOR);
        assert!(counts.addresses.is_empty(), "whatever comes lets go of the old ones");
    }
}
