//! What a client can be told: limits, times, trust.

use std::path::PathBuf;
use std::time::Duration;

use crate::types::PublisherId;

/// How a [`Client`](super::Client) behaves; every field has a default that suits most programs.
///
/// ```
/// let mut options = roomlog::client::Options::default();
/// options.insecure = true;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The name of the program, for the broker's logs; at most 255 bytes. Default: `roomlog-client/` and its version.
    pub name: String,
    /// A token, once brokers have authentication. Default: none; today's broker refuses one.
    pub token: Option<String>,
    /// Trust the certificates of this PEM file, and no others. Default: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Trust any certificate: encrypted, but anyone may be at the other end. Default: false.
    pub insecure: bool,
    /// Who publishes: the identity of the outgoing queue. Default: random, one for each client.
    ///
    /// With an identity of its own a program can repeat a run without publishing twice: the same records must
    /// then be published in the same order, with the same `first_seq`.
    pub publisher: Option<PublisherId>,
    /// The number of the first record in each room; meant for a given `publisher`. Default: 1.
    pub first_seq: u64,
    /// Records that wait for their acknowledgement, encoded, in bytes; beyond it publishing waits. Default: 4 MiB.
    pub queue_bytes_max: usize,
    /// Publishes that wait for their acknowledgement; beyond it publishing waits. Default: 65,536.
    pub queue_publishes_max: usize,
    /// Bytes of one room that wait for the application; beyond it the broker holds this room back. Default: 256 KiB.
    pub join_bytes_max: u64,
    /// From the first packet to the welcome. Default: 10 s.
    pub connect_timeout: Duration,
    /// How long joins, history, rooms, summaries and pings wait for their answer, reconnects included. Default: 30 s.
    pub request_timeout: Duration,
    /// The longest wait before the first repeated attempt; it doubles from one to the next. Default: 200 ms.
    pub backoff: Duration,
    /// The longest wait of all. Default: 20 s.
    pub backoff_max: Duration,
    /// A connection from which nothing comes for so long is given up. Default: 60 s. QUIC, which hears nothing of a
    /// server that was killed, asks every few seconds and gives up after half of it, 12 s at most.
    pub silence_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: concat!("roomlog-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            token: None,
            ca_file: None,
            insecure: false,
            publisher: None,
            first_seq: 1,
            queue_bytes_max: 4 << 20,
            queue_publishes_max: 65_536,
            join_bytes_max: 256 << 10,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            backoff: Duration::from_millis(200),
            backoff_max: Duration::from_secs(20),
            silence_timeout: Duration::from_secs(60),
        }
    }
}

/// What a join does when the broker says that its position means nothing any more: the data directory was restored
/// or lost, and the records that were read may not be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnVoid {
    /// Tell it and end the subscription.
    #[default]
    Stop,
    /// Tell it and begin again at the earliest retained record.
    Restart,
}

/// How a subscription behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct JoinOptions {
    /// What to do when a position has become void. Default: stop.
    pub on_void: OnVoid,
    /// Bytes that may wait for the application. Default: [`Options::join_bytes_max`].
    pub bytes_max: Option<u64>,
}

impl JoinOptions {
    /// Sets [`JoinOptions::on_void`].
    #[must_use]
    pub fn on_void(mut self, on_void: OnVoid) -> Self {
        self.on_void = on_void;
        self
    }

    /// Sets [`JoinOptions::bytes_max`].
    #[must_use]
    pub fn bytes_max(mut self, bytes_max: u64) -> Self {
        self.bytes_max = Some(bytes_max);
        self
    }
}
