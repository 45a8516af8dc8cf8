//! Roomlog: an embedded pub/sub message broker in which every room is a persistent log.

pub mod broker;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
pub mod metrics;
pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
mod session;
pub mod storage;
#[cfg(feature = "server")]
mod transport;
pub mod types;
