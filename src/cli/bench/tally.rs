//! What was counted, and how it is told.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// From a microsecond to ten minutes, three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("these bounds are sound")
}

/// Counts of one thread, or of all.
pub(super) struct Tally {
    /// Records that were sent, and acknowledged, in all; by room.
    pub(super) acknowledged: BTreeMap<usize, u64>,
    pub(super) sent: u64,
    /// Of the measured time only.
    pub(super) acknowledged_measured: u64,
    pub(super) delivered_measured: u64,
    pub(super) delivered: u64,
    pub(super) missing: u64,
    pub(super) duplicates: u64,
    pub(super) disorder: u64,
    /// Payloads that are not of this run.
    pub(super) foreign: u64,
    /// Deliveries whose `prev` is not the record before.
    pub(super) broken: u64,
    /// Microseconds.
    pub(super) to_ack: Histogram<u64>,
    pub(super) to_delivery: Histogram<u64>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            acknowledged: BTreeMap::new(),
            sent: 0,
            acknowledged_measured: 0,
            delivered_measured: 0,
            delivered: 0,
            missing: 0,
            duplicates: 0,
            disorder: 0,
            foreign: 0,
            broken: 0,
            to_ack: histogram(),
            to_delivery: histogram(),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (room, count) in &other.acknowledged {
            *self.acknowledged.entry(*room).or_default() += count;
        }
        self.sent += other.sent;
        self.acknowledged_measured += other.acknowledged_measured;
        self.delivered_measured += other.delivered_measured;
        self.delivered += other.delivered;
        self.missing += other.missing;
        self.duplicates += other.duplicates;
        self.disorder += other.disorder;
        self.foreign += other.foreign;
        self.broken += other.broken;
        self.to_ack.add(&other.to_ack).expect("equal bounds");
        self.to_delivery.add(&other.to_delivery).expect("equal bounds");
    }

    /// Counts a delivered record against the one before it from the same publisher in the same room.
    pub(super) fn follow(&mut self, last: &mut u64, seq: u64) {
        self.delivered += 1;
        if seq == *last {
            self.duplicates += 1;
        } else if seq < *last {
            self.disorder += 1;
        } else {
            self.missing += seq - *last - 1;
            *last = seq;
        }
    }
}

/// The result of a run.
pub(super) struct Report<'a> {
    pub(super) tally: &'a Tally,
    pub(super) window: Duration,
    /// What the generator itself took of the processors.
    pub(super) cpu: Option<Duration>,
    /// How many deliveries there should have been in all.
    pub(super) expected: u64,
}

impl Report<'_> {
    fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.tally.delivered - self.tally.duplicates - self.tally.disorder)
    }

    /// Whether every acknowledged record came to every subscriber, once and in order.
    pub(super) fn is_clean(&self) -> bool {
        let tally = self.tally;
        self.lost() + tally.missing + tally.duplicates + tally.disorder + tally.foreign + tally.broken == 0
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = self.tally;
        let seconds = self.window.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds;
        let acknowledged: u64 = tally.acknowledged.values().sum();
        writeln!(f, "measured            {seconds:.2} s")?;
        writeln!(f, "published           {:.0} records/s acknowledged", rate(tally.acknowledged_measured))?;
        writeln!(f, "delivered           {:.0} records/s", rate(tally.delivered_measured))?;
        for (name, histogram) in [("publish to ack", &tally.to_ack), ("publish to delivery", &tally.to_delivery)] {
            if histogram.is_empty() {
                continue;
            }
            let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
            let (p50, p99, p999, max) = (at(0.5), at(0.99), at(0.999), milliseconds(histogram.max()));
            writeln!(f, "{name:<19} p50 {p50}  p99 {p99}  p99.9 {p999}  max {max}")?;
        }
        writeln!(
            f,
            "in all              {} sent, {acknowledged} acknowledged, {} of {} deliveries",
            tally.sent, tally.delivered, self.expected
        )?;
        writeln!(
            f,
            "lost                {}  (missing between others {}, duplicates {}, out of order {}, broken chains {}, not ours {})",
            self.lost(),
            tally.missing,
            tally.duplicates,
            tally.disorder,
            tally.broken,
            tally.foreign
        )?;
        if let Some(cpu) = self.cpu {
            writeln!(f, "generator           {:.2} cores busy", cpu.as_secs_f64() / seconds)?;
        }
        Ok(())
    }
}

fn milliseconds(micros: u64) -> String {
    format!("{:.3} ms", micros as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_duplicates_and_disorder_are_told_apart_by_their_numbers() {
        let mut tally = Tally::new();
        let mut last = 0;
        for seq in [1, 2, 2, 5, 4, 6] {
            tally.follow(&mut last, seq);
        }
        assert_eq!((tally.delivered, tally.missing, tally.duplicates, tally.disorder), (6, 2, 1, 1));
        let report = Report { tally: &tally, window: Duration::from_secs(1), cpu: None, expected: 6 };
        assert_eq!((report.lost(), report.is_clean()), (2, false));
    }

    #[test]
    fn a_clean_run_is_clean_and_a_missing_tail_is_not() {
        let mut tally = Tally::new();
        let mut last = 0;
        (1..=10).for_each(|seq| tally.follow(&mut last, seq));
        let report = |expected| Report { tally: &tally, window: Duration::from_secs(1), cpu: None, expected };
        assert!(report(10).is_clean());
        assert!(!report(11).is_clean());
    }
}
