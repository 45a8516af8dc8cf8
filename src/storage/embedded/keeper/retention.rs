//! Retention: which records go, and how far a room's floor rises for that.

use std::time::{Duration, Instant};

use super::Keeper;
use crate::protocol::Batch;
use crate::storage::commit::Floor;
use crate::storage::embedded::queue::Rise;
use crate::storage::engine::{EngineError, Read, ReadAt};
use crate::storage::options::Retention;
use crate::storage::room::Facts;
use crate::types::system::steady;
use crate::types::{Offset, RoomName, Time};

/// Rooms whose floors rise in one pass; the others follow in the next.
const RISES_MAX: usize = 10_000;

/// A step of the system's clock beyond this suspends retention by age.
const CLOCK_STEP_MAX: Duration = Duration::from_secs(600);

/// Watches the system's clock against the one that cannot be set.
pub(super) struct Clock {
    wall: Time,
    steady: Instant,
    alarm: bool,
}

impl Keeper {
    /// Raises the floors that retention asks for.
    pub(in crate::storage::embedded) fn retain(&mut self) {
        // Floors that are not committed yet would be counted twice.
        if self.rules.is_empty() || self.shared.queue.rising() > 0 {
            return;
        }
        let by_age = self.clock.is_steady(Time::now());
        self.shared.metrics.clock_alarm.set(if by_age { 0.0 } else { 1.0 });
        let now = self.shared.now();
        let rules = &self.rules;
        let rule = |name: &str| rules.iter().find(|(pattern, _)| pattern.matches(name)).map(|(_, rule)| rule);
        let due = self
            .shared
            .catalog
            .filter(RISES_MAX, |name, facts| rule(name).is_some_and(|rule| Excess::of(rule, facts, now, by_age).any()));
        let mut rises = Vec::new();
        for name in due {
            let Some(rule) = rule(name.as_str()) else { continue };
            match self.rise(&name, rule, now, by_age) {
                Ok(rise) => rises.extend(rise),
                Err(error) => tracing::error!(room = %name, "retention cannot read the room: {error}"),
            }
        }
        if !rises.is_empty() {
            self.shared.queue.rise(rises);
        }
    }

    /// Walks a room from its oldest record until no more has to go.
    fn rise(&self, name: &RoomName, rule: &Retention, now: Time, by_age: bool) -> Result<Option<Rise>, EngineError> {
        let room = self.shared.catalog.room(name.as_str())?;
        let facts = room.facts();
        let mut excess = Excess::of(rule, &facts, now, by_age);
        let mut rise =
            Floor { floor: facts.floor, first: Offset::ZERO, first_time: Time::default(), records: 0, bytes: 0 };
        'blocks: while excess.any() {
            let Read::Block(block) = self.shared.read(&room, ReadAt::After(rise.floor))? else { break };
            let damaged = |error| EngineError::Damaged(format!("room {name:?}: {error}"));
            let batch = Batch::parse(&block.body).map_err(damaged)?;
            for run in batch.runs() {
                let run = run.map_err(damaged)?;
                if run.last() <= rise.floor {
                    continue;
                }
                let (mut area, mut offset) = (run.area, run.first);
                while let Some((_, rest)) = area.split_first().map_err(damaged)? {
                    let bytes = (area.0.len() - rest.0.len()) as u64;
                    if offset > rise.floor {
                        if !excess.takes(run.time) {
                            (rise.first, rise.first_time) = (offset, run.time);
                            break 'blocks;
                        }
                        excess.took(bytes);
                        rise.floor = offset;
                        rise.records += 1;
                        rise.bytes += bytes;
                    }
                    area = rest;
                    offset = Offset(offset.0 + run.header.step);
                }
            }
        }
        if rise.floor == facts.floor {
            return Ok(None);
        }
        if rise.first == Offset::ZERO
            && rise.floor < facts.head
            && let Read::Block(block) = self.shared.read(&room, ReadAt::After(rise.floor))?
        {
            // The walk ended with a block: what stays begins with the next one.
            let batch = Batch::parse(&block.body);
            let batch = batch.map_err(|error| EngineError::Damaged(format!("room {name:?}: {error}")))?;
            (rise.first, rise.first_time) = (block.first, batch.header.time);
        }
        Ok(Some(Rise { room, floor: rise }))
    }
}

/// What has to go of a room.
struct Excess {
    records: u64,
    bytes: u64,
    /// Records of an earlier time.
    before: Time,
    oldest: Time,
}

impl Excess {
    fn of(rule: &Retention, facts: &Facts, now: Time, by_age: bool) -> Self {
        let age = rule.max_age.filter(|_| by_age).map(|age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        Self {
            records: rule.max_records.map_or(0, |max| facts.records.saturating_sub(max)),
            bytes: rule.max_bytes.map_or(0, |max| facts.bytes.saturating_sub(max)),
            before: Time(age.map_or(0, |age| now.0.saturating_sub(age))),
            oldest: if facts.is_empty() { Time(u64::MAX) } else { facts.first_time },
        }
    }

    fn any(&self) -> bool {
        self.takes(self.oldest)
    }

    /// Whether the oldest record, of this time, goes.
    fn takes(&self, time: Time) -> bool {
        self.records > 0 || self.bytes > 0 || time < self.before
    }

    fn took(&mut self, bytes: u64) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { wall: Time::now(), steady: steady(), alarm: false }
    }

    /// Whether the clock goes on as time does. A step is remembered until the process ends: whoever set the clock
    /// has to say that it is right now, by a restart.
    fn is_steady(&mut self, now: Time) -> bool {
        let passed = u64::try_from(steady().duration_since(self.steady).as_micros()).unwrap_or(u64::MAX);
        let expected = self.wall.0.saturating_add(passed);
        if now.0.abs_diff(expected) > CLOCK_STEP_MAX.as_micros() as u64 && !self.alarm {
            tracing::error!(
                "the clock was set by more than ten minutes: retention by age is suspended until a restart"
            );
            self.alarm = true;
        }
        !self.alarm
    }
}
