//! Standard output without surprises, and what is said beside it on standard error.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::failure::Failure;

/// Buffered standard output.
pub(super) struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    pub(super) fn new() -> Self {
        Self(BufWriter::with_capacity(64 << 10, io::stdout().lock()))
    }

    /// The buffer, to write to; it may block, so write through [`Output::blocking`].
    pub(super) fn blocking<T>(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> Result<T, Failure> {
        // The reader of a pipe may be slow: the other tasks go on.
        tokio::task::block_in_place(|| write(&mut self.0)).map_err(|error| Failure::output(&error))
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.blocking(|out| out.flush())
    }
}

/// A line for a person on standard output; if nobody reads it, nobody misses it.
pub(super) fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// One clear sentence on standard error.
pub(super) fn complain(message: &str) {
    // If nobody reads it there is nobody to tell.
    let _ = writeln!(io::stderr(), "roomlog: {message}");
}

/// How far a long replay is; shown on a terminal, and only if the records go elsewhere.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(super) fn new(head: u64) -> Self {
        if !io::stderr().is_terminal() || io::stdout().is_terminal() || head == 0 {
            return Self(None);
        }
        let bar = ProgressBar::new(head);
        let style = ProgressStyle::with_template("{bar:32} offset {pos} of {len}, {per_sec}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(Some(bar))
    }

    /// The offset that has been written.
    pub(super) fn at(&self, offset: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(offset);
        }
    }

    /// All there was is written.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
