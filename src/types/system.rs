//! What the operating system is asked for: the time, and randomness. In one place, so that a simulation can answer
//! in its stead.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The clock that can be set: since 1970-01-01 UTC.
pub(crate) fn wall() -> Duration {
    #[cfg(test)]
    if let Some(wall) = simulated::ask(|system| system.wall()) {
        return wall;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// The clock that only goes on.
pub(crate) fn steady() -> Instant {
    #[cfg(test)]
    if let Some(steady) = simulated::ask(|system| system.steady()) {
        return steady;
    }
    Instant::now()
}

/// Fills `bytes` with randomness.
pub(crate) fn fill_random(bytes: &mut [u8]) -> std::io::Result<()> {
    #[cfg(test)]
    if simulated::ask(|system| system.fill_random(bytes)).is_some() {
        return Ok(());
    }
    // Its error is an `Error` only with a feature that an embedder's build may not turn on.
    getrandom::fill(bytes).map_err(|error| std::io::Error::other(error.to_string()))
}

/// Another system, for one thread.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::{Duration, Instant};

    /// Answers in the system's stead.
    pub(crate) trait System {
        fn wall(&self) -> Duration;
        fn steady(&self) -> Instant;
        fn fill_random(&self, bytes: &mut [u8]);
    }

    thread_local! {
        static SYSTEM: RefCell<Option<Rc<dyn System>>> = const { RefCell::new(None) };
    }

    /// Puts a system in the place of the real one, for this thread; `None` takes it away.
    pub(crate) fn set(system: Option<Rc<dyn System>>) {
        SYSTEM.set(system);
    }

    pub(super) fn ask<T>(question: impl FnOnce(&dyn System) -> T) -> Option<T> {
        let system = SYSTEM.with_borrow(Clone::clone);
        system.map(|system| question(&*system))
    }
}
