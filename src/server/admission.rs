//! Who is let in: how many connections, in all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Options;
use super::descriptors::connections_max;
use crate::metrics::{Metrics, Refusal, Transport};

/// Counts connections, and refuses what is too many.
#[derive(Debug)]
pub(super) struct Admission {
    connections_max: usize,
    per_address_max: usize,
    handshakes_max: usize,
    /// Connections with a descriptor of their own.
    tcp_max: usize,
    trusted: Vec<crate::config::Network>,
    metrics: Arc<Metrics>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    tcp: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection that has been let in; dropped, its place is free again.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    transport: Transport,
    address: Option<IpAddr>,
    handshake: bool,
}

impl Admission {
    pub(super) fn new(options: &Options, metrics: Arc<Metrics>) -> Self {
        Self {
            connections_max: options.connections_max,
            per_address_max: options.connections_per_address_max,
            handshakes_max: options.handshakes_max,
            tcp_max: connections_max(),
            trusted: options.trusted_proxies.clone(),
            metrics,
            counts: Mutex::default(),
        }
    }

    /// Lets a connection in, unless there are too many.
    pub(super) fn enter(self: &Arc<Self>, transport: Transport, address: IpAddr) -> Option<Permit> {
        let address = address.to_canonical();
        let counted = (!address.is_loopback() && !self.is_trusted(address)).then_some(address);
        let mut counts = self.counts.lock();
        let tcp = usize::from(matches!(transport, Transport::WebSocket));
        let full = counts.connections >= self.connections_max || counts.handshakes >= self.handshakes_max;
        if full || counts.tcp + tcp > self.tcp_max || !counts.add(counted, self.per_address_max) {
            drop(counts);
            self.metrics.connections_refused[Refusal::TooMany].increment(1);
            return None;
        }
        counts.connections += 1;
        counts.handshakes += 1;
        counts.tcp += tcp;
        drop(counts);
        self.metrics.connections_accepted[transport].increment(1);
        self.metrics.connections[transport].increment(1.0);
        Some(Permit { admission: Arc::clone(self), transport, address: counted, handshake: true })
    }

    /// How many connections are in their handshake.
    pub(super) fn handshakes(&self) -> usize {
        self.counts.lock().handshakes
    }

    /// Whether an address is that of a proxy whose word is believed.
    pub(super) fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// The peer's address: what the nearest proxy that is not trusted was to the one behind it.
    pub(super) fn peer<'a>(&self, connected: IpAddr, forwarded: impl Iterator<Item = &'a str>) -> IpAddr {
        if !self.is_trusted(connected) {
            return connected;
        }
        let hops: Vec<_> = forwarded.flat_map(|list| list.split(',')).map(str::trim).collect();
        for hop in hops.into_iter().rev() {
            match hop.parse::<IpAddr>() {
                Ok(address) if self.is_trusted(address) => {}
                Ok(address) => return address.to_canonical(),
                // What stands before a word that is no address cannot be believed either.
                Err(_) => break,
            }
        }
        connected
    }
}

impl Counts {
    fn add(&mut self, address: Option<IpAddr>, max: usize) -> bool {
        let Some(address) = address else { return true };
        let count = self.by_address.entry(address).or_default();
        if *count >= max {
            return false;
        }
        *count += 1;
        true
    }

    fn remove(&mut self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

impl Permit {
    /// The transport's handshake is over.
    pub(super) fn shaken(&mut self) {
        if std::mem::take(&mut self.handshake) {
            self.admission.counts.lock().handshakes -= 1;
        }
    }

    /// A trusted proxy says who the peer is: whether that address may have one more.
    pub(super) fn is_from(&mut self, address: IpAddr) -> bool {
        if self.address.is_some() || address.is_loopback() || self.admission.is_trusted(address) {
            return true;
        }
        let added = self.admission.counts.lock().add(Some(address), self.admission.per_address_max);
        if added {
            self.address = Some(address);
        } else {
            self.admission.metrics.connections_refused[Refusal::TooMany].increment(1);
        }
        added
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shaken();
        let mut counts = self.admission.counts.lock();
        counts.connections -= 1;
        counts.tcp -= usize::from(matches!(self.transport, Transport::WebSocket));
        counts.remove(self.address);
        drop(counts);
        self.admission.metrics.connections[self.transport].decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(change: impl FnOnce(&mut Options)) -> Arc<Admission> {
        let mut options = Options { connections_max: 3, connections_per_address_max: 2, ..Options::default() };
        change(&mut options);
        Arc::new(Admission::new(&options, Arc::new(Metrics::disabled())))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_gets_no_more_connections_than_allowed_and_its_place_is_free_again() {
        let admission = admission(|_| {});
        let enter = |from| admission.enter(Transport::WebSocket, address(from));
        let (first, second) = (enter("192.0.2.1"), enter("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(enter("192.0.2.1").is_none());
        let other = enter("192.0.2.2");
        assert!(other.is_some());
        assert!(enter("192.0.2.3").is_none(), "three in all");
        drop(first);
        assert!(enter("192.0.2.1").is_some());
    }

    #[test]
    fn loopback_is_not_counted_by_address() {
        let admission = admission(|options| options.connections_per_address_max = 1);
        let enter = || admission.enter(Transport::WebSocket, address("127.0.0.1"));
        assert!(enter().and(enter()).is_some());
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_as_far_as_it_can_know() {
        let trusted = ["10.0.0.0/8"].map(|network| network.parse().expect("a network")).to_vec();
        let admission = admission(|options| options.trusted_proxies = trusted);
        let peer = |connected, forwarded: &'static str| admission.peer(address(connected), [forwarded].into_iter());
        assert_eq!(peer("192.0.2.1", "198.51.100.7"), address("192.0.2.1"));
        assert_eq!(peer("10.0.0.1", "198.51.100.7"), address("198.51.100.7"));
        assert_eq!(peer("10.0.0.1", "1.1.1.1, 198.51.100.7, 10.9.9.9"), address("198.51.100.7"));
        assert_eq!(peer("10.0.0.1", "198.51.100.7, nonsense"), address("10.0.0.1"));
        assert_eq!(peer("10.0.0.1", ""), address("10.0.0.1"));
    }
}
