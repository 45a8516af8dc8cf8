//! Synchronous, no tokio: the journal of the recent, sled volumes of the past, and one manifest.
//!
//! `docs/storage.md` is the design, with what is durable after each step. Nothing here knows of sessions,
//! sockets or frames; blocking calls are meant to be made from the broker's own threads.

pub mod block_store;
pub mod checked_file;
pub mod commit;
pub mod disk;
mod error;
pub mod journal;
pub mod manifest;
pub mod marks;

pub use error::StorageError;
