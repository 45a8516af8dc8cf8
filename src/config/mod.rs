//! broker.toml, the environment and the command line, merged into plain options for each layer.
//!
//! The shipped `broker.toml` is the documentation of every key and holds the built-in defaults. A later source
//! overrides an earlier one: defaults, then the file, then `ROOMLOG__SECTION__KEY`, then flags. A key that is not
//! known, a value of the wrong type and values that cannot be together refuse to start, all told at once.
//!
//! Nothing here opens a socket or a data directory; whoever wires the server turns these options into each layer's.

mod check;
mod form;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod source;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use form::Network;
use form::{
    Bytes, Choice, Compressions, Count, Directory, Durabilities, Flag, Form, Found, Hosts, Levels, Listen, Networks,
    Origins, Path, Span, Styles,
};
pub use source::{FlagValue, Origin, Problem};

use crate::types::Limits;

/// The shipped configuration file: every key with its default, its unit and its reason.
pub const DEFAULT_FILE: &str = include_str!("../../broker.toml");

/// All options of a server.
#[derive(Clone, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Config {
    /// Where it listens, whom it lets in, how much it holds for them.
    pub server: Server,
    /// The certificate for TLS and QUIC.
    pub tls: Tls,
    /// The limits that peers are told, and the timeouts of their sessions.
    pub limits: Limits,
    /// The data directory and what memory it may take.
    pub storage: Storage,
    /// How long records are kept: the first rule that matches a room counts; without one they are kept for ever.
    pub retention: Vec<RetentionRule>,
    /// What is logged.
    pub log: Log,
}

/// One key of the configuration.
pub(crate) struct KeyOf {
    section: &'static str,
    name: &'static str,
    needed: &'static str,
    set: fn(&mut Config, &Found) -> bool,
}

macro_rules! keys {
    ($section:ident { $($key:ident: $form:ty,)* }) => {
        &[$(KeyOf {
            section: stringify!($section),
            name: stringify!($key),
            needed: <$form as form::Needs>::NEEDED,
            set: |config, found| match <$form as Form<_>>::read(found) {
                Some(value) => { config.$section.$key = value; true }
                None => false,
            },
        },)*]
    };
}

macro_rules! section {
    ($(#[$doc:meta])* $section:ident: $type:ident {
        $($(#[$key_doc:meta])* $key:ident: $value:ty as $form:ty = $default:expr;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Debug)]
        #[non_exhaustive]
        pub struct $type {
            $($(#[$key_doc])* pub $key: $value,)*
        }

        impl $type {
            const KEYS: &'static [KeyOf] = keys!($section { $($key: $form,)* });
        }

        impl Default for $type {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

const fn loopback(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
}

section! {
    /// `[server]`
    server: Server {
        /// TCP: WebSocket and plain HTTP. `None` = no such listener.
        listen: Option<SocketAddr> as Listen = loopback(7400);
        /// UDP: QUIC. `None` = no such listener.
        quic_listen: Option<SocketAddr> as Listen = loopback(7400);
        /// TCP: metrics and health, for operators. `None` = no such listener.
        admin_listen: Option<SocketAddr> as Listen = loopback(7401);
        /// Threads that serve connections; 0 = one for each core.
        worker_threads: usize as Count = 0;
        /// Whether it may listen beyond loopback although nobody has to prove who they are.
        allow_anonymous: bool as Flag = false;
        /// Web origins whose pages may connect, besides our own page.
        allowed_origins: Vec<String> as Origins = Vec::new();
        /// Names under which the server may be addressed, besides loopback literals.
        allowed_hosts: Vec<String> as Hosts = Vec::new();
        /// Proxies whose word about a peer's address is believed.
        trusted_proxies: Vec<Network> as Networks = Vec::new();
        /// Connections open at a time.
        connections_max: usize as Count = 20_000;
        /// Connections open at a time from one address; loopback and trusted proxies are exempt.
        connections_per_address_max: usize as Count = 1_000;
        /// Connections that have not said hello yet.
        handshakes_max: usize as Count = 1_024;
        /// QUIC handshakes in progress above which a peer must first prove its address.
        quic_retry_above: usize as Count = 64;
        /// Bytes on their way to one WebSocket peer.
        websocket_send_bytes_max: usize as Bytes = 64 << 10;
        /// Bytes on their way to one QUIC peer.
        quic_send_bytes_max: usize as Bytes = 256 << 10;
        /// Bytes on their way to all peers together.
        send_bytes_max: usize as Bytes = 256 << 20;
        /// Bytes of messages that are not complete, of all peers together.
        receive_bytes_max: usize as Bytes = 128 << 20;
        /// How long a shutdown may take before what remains is cut.
        shutdown_deadline: Duration as Span = Duration::from_secs(10);
        /// At a shutdown, clients are told to come back after up to this long, each after another time.
        reconnect_spread: Duration as Span = Duration::from_secs(5);
    }
}

section! {
    /// `[tls]`
    tls: Tls {
        /// PEM file with the certificate chain. With it the TCP listener speaks TLS.
        certificate: Option<PathBuf> as Path = None;
        /// PEM file with the certificate's private key.
        key: Option<PathBuf> as Path = None;
    }
}

section! {
    /// `[storage]`
    storage: Storage {
        /// The data directory.
        directory: PathBuf as Directory = PathBuf::from("./roomlog-data");
        /// What has happened when a publish is acknowledged.
        durability: Durability as Choice<Durabilities> = Durability::Fsync;
        /// Bytes of publishes that wait for their commit.
        commit_queue_bytes_max: usize as Bytes = 64 << 20;
        /// Bytes of records of one commit.
        commit_bytes_max: usize as Bytes = 8 << 20;
        /// Bytes of journal that become one volume.
        stretch_bytes: u64 as Bytes = 256 << 20;
        /// Age at which a stretch becomes a volume although it is short.
        stretch_age_max: Duration as Span = Duration::from_secs(24 * 60 * 60);
        /// Bytes of journal at which publishers wait for the builder.
        journal_bytes_max: u64 as Bytes = 2 << 30;
        /// Memory for the recent parts of all rooms, in bytes.
        tails_bytes_max: usize as Bytes = 64 << 20;
        /// Memory for blocks read of volumes, in bytes.
        block_cache_bytes_max: usize as Bytes = 32 << 20;
        /// Memory that open volumes may take, in bytes.
        open_volumes_bytes_max: usize as Bytes = 256 << 20;
        /// Bytes of the disk that are left free: with less, publishes are refused, and volumes wait.
        disk_reserve_bytes: u64 as Bytes = 256 << 20;
        /// Memory for everything with durability `memory`, in bytes.
        memory_bytes_max: u64 as Bytes = 1 << 30;
        /// How blocks of volumes are compressed.
        compression: Compression as Choice<Compressions> = Compression::Lz4;
        /// A volume of which no more than so much is still retained is rewritten, in percent.
        rewrite_below_percent: u8 as Count = 33;
        /// The newest seqs that are remembered of a publisher in a room.
        publisher_seqs: usize as Count = 1_024;
        /// The publishers that are remembered in a room.
        publishers_per_room: usize as Count = 10_000;
        /// How long a publisher is remembered in a room.
        publisher_age_max: Duration as Span = Duration::from_secs(24 * 60 * 60);
        /// Threads that read the store for subscribers and pages.
        read_threads: usize as Count = 6;
    }
}

section! {
    /// `[log]`
    log: Log {
        /// The least important lines that are still logged.
        level: Level as Choice<Levels> = Level::Info;
        /// How a line looks.
        format: LogFormat as Choice<Styles> = LogFormat::Text;
    }
}

macro_rules! limits {
    ($($key:ident: $form:ty,)*) => {
        const LIMITS: &[KeyOf] = keys!(limits { $($key: $form,)* });

        /// Does not compile when a limit has no key.
        const _: fn(&Limits) = |limits| { let Limits { $($key: _,)* } = limits; };
    };
}

limits! {
    payload_bytes_max: Bytes,
    kind_bytes_max: Bytes,
    headers_max: Count,
    header_name_bytes_max: Bytes,
    header_value_bytes_max: Bytes,
    headers_bytes_max: Bytes,
    extension_bytes_max: Bytes,
    publish_records_max: Count,
    publish_bytes_max: Bytes,
    page_bytes_max: Bytes,
    rooms_per_session_max: Count,
    requests_in_flight_max: Count,
    bytes_in_flight_max: Bytes,
    handshake_timeout: Span,
    idle_timeout: Span,
    ping_interval: Span,
    stall_timeout: Span,
}

fn keys() -> impl Iterator<Item = &'static KeyOf> {
    [Server::KEYS, Tls::KEYS, LIMITS, Storage::KEYS, Log::KEYS].into_iter().flatten()
}

/// `[[retention]]`: what is kept of the rooms whose names match. A record goes when any of the limits is passed;
/// a rule without limits keeps its rooms for ever.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct RetentionRule {
    /// A pattern for whole room names: `*` any text, `?` one character.
    pub rooms: String,
    /// The age at which a record goes.
    pub max_age: Option<Duration>,
    /// The bytes of a room above which its oldest records go.
    pub max_bytes: Option<u64>,
    /// The records of a room above which its oldest go.
    pub max_records: Option<u64>,
}

/// What has happened when a publish is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// The record is on stable storage: it survives a power cut.
    Fsync,
    /// The operating system has it: it survives kill -9, not a power cut.
    Os,
    /// The process has it: it survives nothing.
    Memory,
}

/// How blocks of volumes are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// LZ4: fast, about half for text.
    Lz4,
    /// Not at all.
    None,
}

/// The least important lines that are still logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are those of every logger")]
pub enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How a line of the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

#[cfg(test)]
mod tests;
