//! Roomlog: an embedded pub/sub message broker in which every room is a persistent log.

pub mod broker;
#[cfg(feature = "server")]
pub mod config;
pub mod metrics;
pub mod protocol;
pub mod storage;
pub mod types;
