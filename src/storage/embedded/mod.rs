//! The embedded log: a committer thread, a journal, volumes, and the house-keeping between them.

use std::sync::Arc;

use super::{Engine, OpenError, Options};
use crate::metrics::Metrics;
use crate::types::{Offset, Time};

/// What only the committer changes of a room.
#[derive(Default)]
pub(crate) struct LogState {}

/// A batch that lies in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Indexed {
    pub(crate) first: Offset,
    pub(crate) last: Offset,
    pub(crate) prev: Offset,
    pub(crate) time: Time,
}

/// Opens the log of a directory, or makes a new one.
///
/// # Errors
/// See [`OpenError`].
pub fn open(_options: Options, _metrics: Arc<Metrics>) -> Result<Arc<dyn Engine>, OpenError> {
    Err(OpenError::Options("not yet".to_owned()))
}
