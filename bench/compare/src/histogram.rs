//! A log-linear histogram of durations: 64 steps to each doubling, so that a value is off by at most 1.6 %.

const STEP_BITS: u32 = 6;
const STEPS: usize = 1 << STEP_BITS;

/// Counts of nanoseconds.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; STEPS * 60], total: 0 }
    }

    #[inline]
    pub(crate) fn add(&mut self, ns: u64) {
        self.counts[place(ns)] += 1;
        self.total += 1;
    }

    /// The value below which this part of all lies, in microseconds; `None` when nothing was added.
    pub(crate) fn quantile_us(&self, part: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = ((self.total as f64 * part).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        let place = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        place.map(|place| middle(place) / 1000.0)
    }
}

fn place(ns: u64) -> usize {
    let bits = 64 - ns.leading_zeros();
    if bits <= STEP_BITS {
        return ns as usize;
    }
    let shift = bits - STEP_BITS - 1;
    (shift as usize + 1) * STEPS + (ns >> shift) as usize - STEPS
}

fn middle(place: usize) -> f64 {
    if place < STEPS {
        return place as f64;
    }
    let (doubling, step) = (place / STEPS - 1, place % STEPS);
    (STEPS as f64 + step as f64 + 0.5) * (1_u64 << doubling) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_off_by_less_than_two_percent() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile_us(0.5), None);
        for us in 1..=1000 {
            histogram.add(us * 1000);
        }
        for (part, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = histogram.quantile_us(part).expect("there are values");
            assert!((found / expected - 1.0).abs() < 0.02, "{part}: {found} instead of {expected}");
        }
        histogram.add(u64::MAX);
    }
}
