//! Descriptors: as many as the system gives, and a part of them that connections leave to the store.
//!
//! A journal that cannot make its next file stops for good, so peers must not be able to use the last descriptor up.

use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::storage::descriptors_max;

/// Descriptors that connections leave to the store: 512 for open volumes, and as many for the journal's files, a volume in
/// work and the rest of the process. Half of all if there are fewer than twice as many; the store is content with less
/// then.
const STORE: u64 = 1024;

/// Descriptors that no socket gets, whatever else is wrong; an eighth of all if there are few.
const LAST: u64 = 32;

/// Raises the limit of this process to what it may be without anybody's leave: the usual one, 1,024, dates from programs
/// that this one is none of. Refused, all stays as it is.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How many connections with a descriptor of their own there may be.
pub(super) fn connections_max() -> usize {
    usize::try_from(connections_of(descriptors_max())).unwrap_or(usize::MAX)
}

fn connections_of(limit: u64) -> u64 {
    limit - STORE.min(limit / 2)
}

/// Whether a socket has one of the last descriptors. The system gives the lowest number that is free: few are left.
pub(super) fn is_among_the_last(socket: &impl AsRawFd) -> bool {
    let limit = descriptors_max();
    u64::try_from(socket.as_raw_fd()).is_ok_and(|number| number >= limit - LAST.min(limit / 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_to_the_store() {
        for (limit, connections) in [(0, 0), (64, 32), (1024, 512), (2048, 1024), (1 << 20, (1 << 20) - 1024)] {
            assert_eq!(connections_of(limit), connections, "of {limit}");
        }
        assert!(connections_of(u64::MAX) > 1 << 62);
    }
}
