//! What a server is started with, and how a configuration becomes options of the broker and of the server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::broker;
use crate::config::{self, Config, Network};
use crate::storage;

/// What a server is started with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// TCP: WebSocket and plain HTTP; port 0 takes any free one. `None` = no such listener.
    pub listen: Option<SocketAddr>,
    /// UDP: QUIC. `None` = no such listener.
    pub quic_listen: Option<SocketAddr>,
    /// TCP: metrics and health, for operators. `None` = no such listener.
    pub admin_listen: Option<SocketAddr>,
    /// Whether it may listen beyond loopback although nobody has to prove who they are.
    pub allow_anonymous: bool,
    /// Web origins whose pages may connect, besides the server's own page.
    pub allowed_origins: Vec<String>,
    /// Names under which the server may be addressed, besides loopback literals and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Proxies whose word about a peer's address is believed.
    pub trusted_proxies: Vec<Network>,
    /// Connections open at a time.
    pub connections_max: usize,
    /// Connections open at a time from one address; loopback and trusted proxies are exempt.
    pub connections_per_address_max: usize,
    /// Connections that have not finished their transport's handshake.
    pub handshakes_max: usize,
    /// QUIC handshakes in progress above which a peer must first prove its address.
    pub quic_retry_above: usize,
    /// Bytes begun for one WebSocket peer, beyond what its socket holds; only a single batch body may exceed it.
    pub websocket_send_bytes_max: usize,
    /// Bytes on their way to one QUIC peer.
    pub quic_send_bytes_max: usize,
    /// Bytes that all peers together may leave untaken; beyond it little is begun for each.
    pub send_bytes_max: usize,
    /// Bytes that all peers together may have sent of messages that are not complete, at least 16 MiB. Beyond it, nothing more
    /// is read of one that has more than 64 KiB, and the largest that do not go on are sent away and may come back.
    pub receive_bytes_max: usize,
    /// How long a stop may take before what remains is cut.
    pub shutdown_deadline: Duration,
    /// At a stop, clients are told to come back after up to this long, each after another time.
    pub reconnect_spread: Duration,
    /// Where the certificate comes from.
    pub certificate: Certificate,
    /// What `/info` says about durability.
    pub durability: storage::Durability,
    /// Renders the metrics for `/metrics`; without it that path is not there.
    pub exporter: Option<super::Exporter>,
}

/// Where a server's certificate comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Certificate {
    /// PEM files with the chain and its private key; with them the TCP listener speaks TLS.
    Files {
        /// The chain.
        chain: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// A self-signed one for development, for QUIC only: kept in this directory as `dev-cert.pem` and
    /// `dev-key.pem`, and made if it is not there.
    Development(PathBuf),
    /// A self-signed one for development, for QUIC only, that is gone at the end.
    Passing,
}

impl Default for Options {
    /// Clients on 127.0.0.1:7400 over TCP and UDP, operators on 127.0.0.1:7401.
    fn default() -> Self {
        let loopback = |port| Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        Self {
            listen: loopback(7400),
            quic_listen: loopback(7400),
            admin_listen: loopback(7401),
            allow_anonymous: false,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            connections_max: 20_000,
            connections_per_address_max: 1_000,
            handshakes_max: 1_024,
            quic_retry_above: 64,
            websocket_send_bytes_max: 64 << 10,
            quic_send_bytes_max: 256 << 10,
            send_bytes_max: 256 << 20,
            receive_bytes_max: 128 << 20,
            shutdown_deadline: Duration::from_secs(10),
            reconnect_spread: Duration::from_secs(5),
            certificate: Certificate::Passing,
            durability: storage::Durability::default(),
            exporter: None,
        }
    }
}

impl Options {
    /// What the configuration says of the server. The exporter is not part of it.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let server = config.server.clone();
        let certificate = match (config.tls.certificate.clone(), config.tls.key.clone()) {
            (Some(chain), Some(key)) => Certificate::Files { chain, key },
            _ if config.storage.durability == config::Durability::Memory => Certificate::Passing,
            _ => Certificate::Development(config.storage.directory.clone()),
        };
        Self {
            listen: server.listen,
            quic_listen: server.quic_listen,
            admin_listen: server.admin_listen,
            allow_anonymous: server.allow_anonymous,
            allowed_origins: server.allowed_origins,
            allowed_hosts: server.allowed_hosts,
            trusted_proxies: server.trusted_proxies,
            connections_max: server.connections_max,
            connections_per_address_max: server.connections_per_address_max,
            handshakes_max: server.handshakes_max,
            quic_retry_above: server.quic_retry_above,
            websocket_send_bytes_max: server.websocket_send_bytes_max,
            quic_send_bytes_max: server.quic_send_bytes_max,
            send_bytes_max: server.send_bytes_max,
            receive_bytes_max: server.receive_bytes_max,
            shutdown_deadline: server.shutdown_deadline,
            reconnect_spread: server.reconnect_spread,
            certificate,
            durability: durability(config.storage.durability),
            exporter: None,
        }
    }
}

/// What the configuration says of the broker. The metrics are not part of it.
#[must_use]
pub fn broker_options(config: &Config) -> broker::Options {
    let from = config.storage.clone();
    let mut options = match from.durability {
        config::Durability::Memory => broker::Options::in_memory(),
        _ => broker::Options::new(from.directory),
    };
    options.limits = config.limits.clone();
    options.read_threads = from.read_threads;
    let to = &mut options.storage;
    to.durability = durability(from.durability);
    to.commit_queue_bytes_max = from.commit_queue_bytes_max;
    to.commit_bytes_max = from.commit_bytes_max;
    to.stretch_bytes = from.stretch_bytes;
    to.stretch_age_max = from.stretch_age_max;
    to.journal_bytes_max = from.journal_bytes_max;
    to.tails_bytes_max = from.tails_bytes_max;
    to.block_cache_bytes_max = from.block_cache_bytes_max;
    to.open_volumes_bytes_max = from.open_volumes_bytes_max;
    to.disk_reserve_bytes = from.disk_reserve_bytes;
    to.memory_bytes_max = from.memory_bytes_max;
    to.compression = match from.compression {
        config::Compression::Lz4 => storage::Compression::Lz4,
        config::Compression::None => storage::Compression::None,
    };
    to.rewrite_below_percent = from.rewrite_below_percent;
    to.publisher_seqs = from.publisher_seqs;
    to.publishers_per_room = from.publishers_per_room;
    to.publisher_age_max = from.publisher_age_max;
    to.retention = config.retention.iter().map(retention).collect();
    options
}

fn durability(durability: config::Durability) -> storage::Durability {
    match durability {
        config::Durability::Fsync => storage::Durability::Fsync,
        config::Durability::Os => storage::Durability::Os,
        config::Durability::Memory => storage::Durability::Memory,
    }
}

fn retention(rule: &config::RetentionRule) -> storage::Retention {
    let config::RetentionRule { rooms, max_age, max_bytes, max_records } = rule.clone();
    storage::Retention { rooms, max_age, max_bytes, max_records }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_configuration_gives_the_default_options() {
        let config = Config::default();
        let (server, broker) = (Options::from_config(&config), broker_options(&config));
        assert_eq!(broker.storage, storage::Options::new("./roomlog-data"));
        assert_eq!(broker.limits, crate::types::Limits::default());
        assert_eq!(server.certificate, Certificate::Development("./roomlog-data".into()));
        let told = |options: Options| format!("{:?}", Options { certificate: Certificate::Passing, ..options });
        assert_eq!(told(server), told(Options::default()));
    }
}
