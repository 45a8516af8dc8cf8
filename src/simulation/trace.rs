//! What happened, in order: two runs of one seed have the same trace, to the letter.

use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Trace {
    lines: Mutex<Vec<String>>,
    begun: Mutex<Option<Instant>>,
}

impl Trace {
    /// Time counts from here.
    pub(super) fn begin(&self) {
        *self.begun.lock() = Some(Instant::now());
    }

    pub(super) fn say(&self, what: fmt::Arguments<'_>) {
        let since = self.begun.lock().map_or(0, |begun| begun.elapsed().as_millis());
        self.lines.lock().push(format!("{since:>7} ms  {what}"));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// One number for all of it. The hasher's keys are fixed.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for line in &*self.lines.lock() {
            hasher.write(line.as_bytes());
            hasher.write_u8(b'\n');
        }
        hasher.finish()
    }
}
