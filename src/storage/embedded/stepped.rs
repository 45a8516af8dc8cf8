//! The log without threads: who has opened it is the committer and the keeper, whenever it suits him.
//!
//! For the simulation, in which the order of everything comes from a seed. What the threads would do is the same code;
//! only that a commit and a look of the keeper each happen at one moment, and never at the same one.

use std::sync::Arc;

use parking_lot::Mutex;

use super::committer::{Committer, Step};
use super::keeper::Keeper;
use super::recovery::{Parts, assemble};
use super::{Embedded, Shared};
use crate::metrics::Metrics;
use crate::storage::block_store::BlockStore;
use crate::storage::disk::Disk;
use crate::storage::engine::{Engine, EngineError, Health, Outline, Read, ReadAt, Submission};
use crate::storage::room::{Facts, Room};
use crate::storage::{OpenError, Options};
use crate::types::{Epoch, Offset, RoomName};

/// The embedded log, stepped by hand.
pub(crate) struct SteppedLog {
    shared: Arc<Shared>,
    committer: Mutex<Option<Committer>>,
    keeper: Mutex<Keeper>,
    /// Told when something waits for its commit.
    submitted: Box<dyn Fn() + Send + Sync>,
}

impl SteppedLog {
    /// Recovers a log, or makes a new one.
    pub(crate) fn open(
        options: Options,
        disk: Arc<dyn Disk>,
        store: Arc<dyn BlockStore>,
        submitted: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        let Parts { shared, journal, manifest, next_room } =
            assemble(options, Arc::new(Metrics::disabled()), disk, store)?;
        let mut keeper = Keeper::new(Arc::clone(&shared), manifest, journal.files());
        keeper.judge_space();
        let committer = Committer::new(Arc::clone(&shared), journal, next_room);
        let (committer, keeper) = (Mutex::new(Some(committer)), Mutex::new(keeper));
        Ok(Self { shared, committer, keeper, submitted: Box::new(submitted) })
    }

    /// Commits and answers all that waits; whether anything did.
    pub(crate) fn commit(&self) -> bool {
        self.committer.lock().as_mut().is_some_and(|committer| committer.step() == Step::Answered)
    }

    /// Whether floors wait for a commit: nobody is told of these.
    pub(crate) fn waits(&self) -> bool {
        self.shared.queue.rising() > 0
    }

    /// Whether commits have to wait for the keeper.
    pub(crate) fn must_wait(&self) -> bool {
        self.committer.lock().as_ref().is_some_and(Committer::must_wait)
    }

    /// The keeper looks around once.
    pub(crate) fn keep(&self) {
        self.keeper.lock().step();
    }
}

impl Engine for SteppedLog {
    fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    fn room(&self, name: &RoomName) -> Result<Arc<Room>, EngineError> {
        self.shared.catalog.room(name.as_str())
    }

    fn submit(&self, submission: &mut Submission) {
        if self.shared.queue.submit(submission) {
            (self.submitted)();
        } else {
            Embedded::refuse(submission);
        }
    }

    fn queue(&self) -> (usize, usize) {
        (self.shared.queue.bytes(), self.shared.options.commit_queue_bytes_max)
    }

    fn read(&self, room: &Room, at: ReadAt) -> Result<Read, EngineError> {
        self.shared.read(room, at)
    }

    fn outline(&self, room: &Room, before: Offset) -> Option<Outline> {
        self.shared.outline(room, before)
    }

    fn list(&self, prefix: &str, after: &str, limit: usize) -> Vec<(RoomName, Facts)> {
        self.shared.catalog.list(prefix, after, limit)
    }

    fn facts(&self, name: &str) -> Option<Facts> {
        self.shared.catalog.facts(name)
    }

    fn health(&self) -> Health {
        self.shared.health.lock().clone()
    }

    /// As the threads' owner does it.
    fn close(&self) {
        self.shared.queue.close();
        let Some(committer) = self.committer.lock().take() else { return };
        let journal = committer.run();
        let mut health = self.shared.health.lock();
        if !matches!(*health, Health::Failed(_)) && self.shared.mark_clean(journal).is_ok() {
            *health = Health::Closed;
        }
    }
}

impl std::fmt::Debug for SteppedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SteppedLog").finish_non_exhaustive()
    }
}
