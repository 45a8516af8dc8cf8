//! What the threads of the load share: the plan, the phase of the run, and the counts that end it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::tally::Tally;
use crate::client::Options;
use crate::types::RoomName;

/// What the load is.
pub(super) struct Plan {
    pub(super) url: String,
    pub(super) options: Options,
    pub(super) rooms: Vec<RoomName>,
    /// The room of the idle connections.
    pub(super) idle_room: RoomName,
    pub(super) publishers: usize,
    pub(super) subscribers: usize,
    pub(super) idle: usize,
    pub(super) payload_bytes: usize,
    /// Records per second, all publishers together.
    pub(super) rate: Option<u64>,
    pub(super) window: usize,
    pub(super) batch: usize,
    pub(super) timeout: Duration,
}

impl Plan {
    /// A member's share of the rooms: one where there are as many members, otherwise every so many-th.
    pub(super) fn share(&self, member: usize, members: usize) -> impl Iterator<Item = usize> + use<> {
        let rooms = self.rooms.len();
        if members >= rooms { (member % rooms..rooms).step_by(rooms) } else { (member..rooms).step_by(members) }
    }

    /// How many subscribers follow a room.
    pub(super) fn subscribers_of(&self, room: usize) -> u64 {
        let follows = |member: &usize| self.share(*member, self.subscribers).any(|other| other == room);
        (0..self.subscribers).filter(follows).count() as u64
    }
}

/// What the run is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(super) enum Phase {
    Connecting,
    Publishing,
    /// The last answers and deliveries.
    Draining,
    Over,
}

pub(super) struct Shared {
    pub(super) plan: Plan,
    pub(super) measuring: AtomicBool,
    base: Instant,
    threads: usize,
    /// Threads whose connections are open.
    ready: AtomicUsize,
    /// Publishers that have had all their answers.
    drained: AtomicUsize,
    /// Deliveries that follow from the acknowledgements of drained publishers.
    owed: AtomicU64,
    /// Deliveries that came.
    had: AtomicU64,
    phase: watch::Sender<Phase>,
    fault: Mutex<Option<String>>,
    changed: Condvar,
}

impl Shared {
    pub(super) fn new(plan: Plan, threads: usize) -> Self {
        Self {
            plan,
            measuring: AtomicBool::new(false),
            base: Instant::now(),
            threads,
            ready: AtomicUsize::new(0),
            drained: AtomicUsize::new(0),
            owed: AtomicU64::new(0),
            had: AtomicU64::new(0),
            phase: watch::Sender::new(Phase::Connecting),
            fault: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    /// Since the run began.
    pub(super) fn nanos(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn is_measuring(&self) -> bool {
        self.measuring.load(Ordering::Acquire)
    }

    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// The first fault ends the run.
    pub(super) fn fail(&self, fault: impl ToString) {
        self.fault.lock().get_or_insert_with(|| fault.to_string());
        self.changed.notify_all();
    }

    pub(super) fn fault(&self) -> Option<String> {
        self.fault.lock().clone()
    }

    pub(super) fn ready(&self) {
        self.ready.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_all();
    }

    /// A publisher has had all its answers.
    pub(super) fn drained(&self, tally: &Tally) {
        self.owed.fetch_add(self.expected(tally), Ordering::AcqRel);
        self.drained.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn had(&self, deliveries: u64) {
        self.had.fetch_add(deliveries, Ordering::AcqRel);
    }

    /// How many deliveries follow from what was acknowledged.
    pub(super) fn expected(&self, tally: &Tally) -> u64 {
        tally.acknowledged.iter().map(|(room, count)| count * self.plan.subscribers_of(*room)).sum()
    }

    /// Waits for a condition; false on a fault, or after the deadline.
    fn wait(&self, deadline: Option<Instant>, condition: impl Fn() -> bool) -> bool {
        let mut fault = self.fault.lock();
        while fault.is_none() && !condition() {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return false;
            }
            // The counters are not behind this lock: look again now and then.
            self.changed.wait_for(&mut fault, Duration::from_millis(5));
        }
        fault.is_none()
    }

    pub(super) fn wait_until_ready(&self) -> bool {
        self.wait(None, || self.ready.load(Ordering::Acquire) == self.threads)
    }

    /// Lets time pass; false on a fault.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        self.wait(None, || Instant::now() >= until)
    }

    /// Waits for the last answers and deliveries; what has not moved for the timeout is lost. False on a fault.
    pub(super) fn wait_until_drained(&self) -> bool {
        let counts = || (self.drained.load(Ordering::Acquire), self.had.load(Ordering::Acquire));
        let done = || {
            let (drained, had) = counts();
            drained == self.plan.publishers && had >= self.owed.load(Ordering::Acquire)
        };
        loop {
            let before = counts();
            let until = Instant::now() + self.plan.timeout;
            if !self.wait(Some(until), || done() || counts() != before) {
                return self.fault().is_none();
            }
            if done() {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rooms: usize, publishers: usize, subscribers: usize) -> Plan {
        let room = |index: usize| RoomName::new(&format!("room {index}")).expect("a name");
        Plan {
            url: String::new(),
            options: Options::default(),
            rooms: (0..rooms).map(room).collect(),
            idle_room: room(0),
            publishers,
            subscribers,
            idle: 0,
            payload_bytes: 20,
            rate: None,
            window: 1,
            batch: 1,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn every_room_has_its_publishers_and_every_subscriber_its_rooms() {
        let of = |plan: &Plan, member, members| plan.share(member, members).collect::<Vec<_>>();
        let few = plan(5, 2, 7);
        assert_eq!(of(&few, 0, few.publishers), [0, 2, 4]);
        assert_eq!(of(&few, 1, few.publishers), [1, 3]);
        assert_eq!(of(&few, 6, few.subscribers), [1]);
        assert_eq!((0..5).map(|room| few.subscribers_of(room)).collect::<Vec<_>>(), [2, 2, 1, 1, 1]);
        assert_eq!(plan(3, 1, 0).subscribers_of(1), 0);
        assert_eq!(plan(4, 1, 1).subscribers_of(3), 1);
    }
}
