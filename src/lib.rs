//! Roomlog: an embedded pub/sub message broker in which every room is a persistent log.
//!
//! A publish is appended to its room's log, and a join is a read of that log that never ends. There is one source
//! of messages, so there is no seam between history and live, no message is missed or doubled at a join, and a slow
//! reader is simply further back in the log. What is acknowledged has been synced to the disk.
//!
//! ```
//! use roomlog::broker::{Broker, Event, Options};
//! use roomlog::types::{RoomName, Start};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let broker = Broker::open(Options::new(directory)).await?;
//! let kitchen = RoomName::new("kitchen")?;
//!
//! // Returns when the record is on the disk.
//! let stored = broker.publish(&kitchen, b"the soup is ready").await?;
//! assert_eq!(stored.first.0, 1);
//!
//! // All there is, then all that comes.
//! let mut soup = broker.join(&kitchen, Start::Earliest).await?;
//! loop {
//!     match soup.next().await? {
//!         Event::Records(records) => {
//!             for record in records.iter() {
//!                 println!("{}", String::from_utf8_lossy(record?.content.payload));
//!             }
//!         }
//!         Event::Live(offset) => {
//!             println!("live from {offset} on");
//!             break;
//!         }
//!         _ => {}
//!     }
//! }
//! broker.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # The map
//!
//! | module | what it is |
//! |---|---|
//! | [`broker`] | the embedding API: rooms, subscriptions, pages, publishers |
//! | [`types`] | names, offsets, positions, records, codes, limits |
//! | [`storage`] | the log itself, and the seams below and above it |
//! | [`protocol`] | frames and batches, byte for byte |
//! | [`metrics`] | every metric, bound to a recorder of yours |
#![cfg_attr(feature = "client", doc = "| [`client`] | the reconnecting client, over WebSocket and QUIC |")]
#![cfg_attr(feature = "server", doc = "| [`server`], [`config`] | the server, and its configuration |")]
//!
//! # Features
//!
//! An embedder takes `default-features = false` and pays for no command line, HTTP, QUIC, TLS or client. `server` adds
//! the listeners, `client` the client, `cli` (the default) the `roomlog` program. `fault-injection` adds a disk that
//! fails on purpose, for tests of what is built on Roomlog.

pub mod broker;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod lock;
pub mod metrics;
pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
mod session;
#[cfg(all(test, feature = "server", feature = "client"))]
mod simulation;
pub mod storage;
#[cfg(feature = "server")]
mod transport;
pub mod types;

/// The examples of the README are compiled and run, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
