//! The lock of what several busy threads share: `std`'s, without poisoning.
//!
//! It sleeps when it has spun in vain. `parking_lot`'s gives its time slice away between spins instead, which costs a
//! thread nothing where nobody else is ready to run, and 3 to 4 ms where somebody is: it was the 99th percentile of
//! every latency on a server with more busy threads than cores. `docs/rationale.md` has the measurement. What is
//! rarely contended, or needs more than a lock, uses `parking_lot`.

use std::fmt;
pub(crate) use std::sync::MutexGuard;
use std::sync::PoisonError;

/// A mutual exclusion lock. A thread that panics while it holds it leaves it as it is.
#[derive(Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if nobody holds it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
