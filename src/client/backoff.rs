//! How long to wait before the next attempt.

use std::time::Duration;

use crate::types::system::fill_random;

/// Exponential backoff with full jitter: a random part of a bound that doubles, so that many clients which lost
/// the same broker do not come back together.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    bound: Duration,
    bound_max: Duration,
    /// Attempts since the last connection that held.
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(bound: Duration, bound_max: Duration) -> Self {
        Self { bound, bound_max: bound_max.max(bound), attempts: 0 }
    }

    /// The attempts that failed since [`Backoff::reset`].
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts a failed attempt; returns how long to wait. `random` is any number; `least` is what the broker asked for.
    pub(crate) fn next(&mut self, least: Duration, random: u64) -> Duration {
        let bound = self.bound.saturating_mul(1 << self.attempts.min(20)).min(self.bound_max);
        self.attempts = self.attempts.saturating_add(1);
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(random % micros.saturating_add(1).max(1));
        // The broker spreads its clients itself; a little jitter on top does no harm, the whole bound would.
        if least.is_zero() { jitter } else { least + jitter.min(self.bound) }
    }

    /// A connection has held.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A random number for jitter; 0 if the system has none, which only costs the jitter.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes).map_or(0, |()| u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_its_maximum_and_starts_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let worst = |backoff: &mut Backoff, millis: u64| backoff.next(Duration::ZERO, millis * 1000);
        assert_eq!(worst(&mut backoff, 100), Duration::from_millis(100));
        assert_eq!(worst(&mut backoff, 200), Duration::from_millis(200));
        assert_eq!(worst(&mut backoff, 400), Duration::from_millis(400));
        assert_eq!(worst(&mut backoff, 500), Duration::from_millis(500));
        assert_eq!(worst(&mut backoff, 500), Duration::from_millis(500));
        assert_eq!(backoff.attempts(), 5);
        backoff.reset();
        assert_eq!(worst(&mut backoff, 100), Duration::from_millis(100));
    }

    #[test]
    fn no_wait_is_longer_than_its_bound_or_shorter_than_what_was_asked_for() {
        for random in [0, 1, 99_999, 12_345_678_901, u64::MAX] {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
            for _ in 0..40 {
                assert!(backoff.next(Duration::ZERO, random) <= Duration::from_secs(1));
            }
            let asked = Duration::from_secs(3);
            let wait = backoff.next(asked, random);
            assert!(wait >= asked && wait <= asked + Duration::from_millis(100));
        }
    }
}
