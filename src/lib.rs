//! Roomlog: an embedded pub/sub message broker in which every room is a persistent log.

#[cfg(feature = "client")]
pub mod client;
pub mod protocol;
pub mod storage;
pub mod types;
