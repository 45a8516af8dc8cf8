//! A process that ends between the sync and the answer, on purpose: only in builds with the feature `fault-injection`.

/// Names the commit after whose sync the process ends: 1 is the first one of this run.
const VARIABLE: &str = "ROOMLOG_FAULT_EXIT_AFTER_SYNC";

/// The exit code of such an end, by which a test knows it from others.
const EXIT_CODE: i32 = 86;

/// Ends the process right after the sync of a commit that the environment names: its records are durable, and nobody
/// has been told.
#[derive(Debug)]
pub(super) struct ExitAfterSync {
    left: Option<u64>,
}

impl ExitAfterSync {
    pub(super) fn from_environment() -> Self {
        let left = std::env::var(VARIABLE).ok();
        Self { left: left.map(|left| left.parse().unwrap_or_else(|error| panic!("{VARIABLE}: {error}"))) }
    }

    /// To be called once for each commit, when it is durable.
    pub(super) fn synced(&mut self) {
        let Some(left) = &mut self.left else { return };
        *left = left.saturating_sub(1);
        if *left == 0 {
            std::process::exit(EXIT_CODE);
        }
    }
}
