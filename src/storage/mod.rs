//! Synchronous, no tokio: the journal of the recent, sled volumes of the past, and one manifest.
//!
//! `docs/storage.md` is the design, with what is durable after each step. Nothing here knows of sessions,
//! sockets or frames; blocking calls are meant to be made from the broker's own threads.

mod ballast;
mod block;
pub mod block_store;
mod catalog;
pub mod check;
pub mod checked_file;
mod checkpoint;
pub mod commit;
pub mod disk;
pub mod embedded;
mod engine;
mod error;
#[cfg(test)]
mod golden_tests;
pub mod journal;
pub mod manifest;
pub mod marks;
mod options;
mod publishers;
mod room;
pub mod volume;

pub use crate::metrics::Source;
pub use crate::types::Refused;
pub use ballast::BALLAST_NAME;
pub use block::Block;
#[cfg(feature = "server")]
pub(crate) use disk::descriptors_max;
pub(crate) use embedded::stand_back;
pub use engine::{
    Answer, Append, Appended, Engine, EngineError, Health, Outcome, Outline, Read, ReadAt, Reply, Rouse, Submission,
    record_hash,
};
pub use error::StorageError;
pub use marks::Durability;
pub use options::{Compression, OpenError, Options, Retention};
pub use room::{Facts, Follow, FollowId, Room, RoomId, Tail, Targets};
