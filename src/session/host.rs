//! What the connections of a server share: the memory that all peers together may take, for what they have not taken yet
//! and for what they have not sent to its end, and the threads on which they are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::storage::Rouse;

/// A bound on memory that many connections share.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { used: AtomicUsize::new(0), bytes_max }
    }

    /// How many bytes are held now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many bytes may be held.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Whether no more is to be held.
    pub(crate) fn is_used_up(&self) -> bool {
        self.used() >= self.bytes_max
    }

    /// One connection holds so many bytes now, in place of those that `held` says.
    pub(crate) fn hold(&self, held: &AtomicUsize, bytes: usize) {
        let before = held.swap(bytes, Ordering::Relaxed);
        if before != bytes {
            self.used.fetch_add(bytes, Ordering::Relaxed);
            self.used.fetch_sub(before, Ordering::Relaxed);
        }
    }
}

/// What all connections of a server share.
#[derive(Debug)]
pub(crate) struct Host {
    /// What peers have not taken yet. A connection holds some only while its socket takes no more. Beyond the bound nobody
    /// is cut off, but what is begun for a connection is little, so that little is left over when it blocks.
    pub(crate) send: Budget,
    /// What peers have sent of messages that are not complete. Beyond the bound, nothing is read from who has sent more than
    /// a little of one.
    pub(crate) receive: Budget,
    /// Whether sessions may commit on their own thread, and who is told if that takes long.
    pub(crate) rouse: Option<Arc<dyn Rouse>>,
}

impl Host {
    pub(crate) fn new(send_bytes_max: usize, receive_bytes_max: usize, rouse: Option<Arc<dyn Rouse>>) -> Self {
        Self { send: Budget::new(send_bytes_max), receive: Budget::new(receive_bytes_max), rouse }
    }
}
