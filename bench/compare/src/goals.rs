//! Where Roomlog must arrive: a value for each round of a cell, and a bound for their median.

use serde_json::Value;

use crate::results::{Cell, Figure, Rounds, Run, Spread, figure};

/// What a goal asks of the median.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

pub(crate) struct Goal {
    pub(crate) text: String,
    workload: &'static str,
    part: &'static str,
    shape: Vec<(&'static str, u64)>,
    pub(crate) bound: Bound,
    pub(crate) unit: &'static str,
    value: Box<RoundValue>,
}

/// The value of a round; `None` where something for it is missing.
type RoundValue = dyn Fn(&Round<'_>) -> Option<f64>;

/// One round of a cell.
struct Round<'a> {
    rounds: &'a Rounds,
    number: u64,
    environment: &'a Value,
}

impl Round<'_> {
    fn of(&self, peer: &str, what: Figure) -> Option<f64> {
        figure(self.rounds.get(peer)?.get(&self.number)?, what)
    }

    fn ratio(&self, peer: &str, base: &str, what: Figure) -> Option<f64> {
        Some(self.of(peer, what)? / self.of(base, what).filter(|base| *base > 0.0)?)
    }
}

const PER_S: Figure = Figure::Field("per_s");
const P50: Figure = Figure::Field("p50_us");
const P99: Figure = Figure::Field("p99_us");

impl Goal {
    fn new(
        workload: &'static str,
        part: &'static str,
        shape: &[(&'static str, u64)],
        text: String,
        bound: Bound,
        value: impl Fn(&Round<'_>) -> Option<f64> + 'static,
    ) -> Self {
        Self { text, workload, part, shape: shape.to_vec(), bound, unit: "", value: Box::new(value) }
    }

    fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    /// What a run gave for it, if it has the cell.
    pub(crate) fn measured(&self, run: &Run) -> Option<Spread> {
        let fits = |cell: &&Cell| {
            cell.workload == self.workload
                && cell.part == self.part
                && self.shape.iter().all(|(key, value)| cell.number(key) == Some(*value))
        };
        let (_, rounds) = run.cells.iter().find(|(cell, _)| fits(cell))?;
        let numbers = rounds.values().flat_map(|lines| lines.keys().copied());
        let numbers: std::collections::BTreeSet<_> = numbers.collect();
        Spread::of(
            numbers
                .into_iter()
                .filter_map(|number| (self.value)(&Round { rounds, number, environment: &run.environment })),
        )
    }

    pub(crate) fn reached(&self, measured: Spread) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => measured.median >= bound,
            Bound::AtMost(bound) => measured.median <= bound,
        }
    }
}

/// All goals that this harness can measure.
pub(crate) fn goals() -> Vec<Goal> {
    let mut goals = Vec::new();
    for (subscribers, least) in [(10, 0.35), (100, 0.5), (1000, 0.8)] {
        let text = format!("W1 deliveries/s at saturation, {subscribers} subscribers, to the limit");
        let shape = [("subscribers", subscribers)];
        goals.push(Goal::new("W1", "saturation", &shape, text, Bound::AtLeast(least), |round| {
            round.ratio("roomlog-ws", "limit", PER_S)
        }));
    }
    for subscribers in [10, 100] {
        let shape = [("subscribers", subscribers)];
        let text =
            format!("W1 p50 at 100 k deliveries/s, {subscribers} subscribers, beyond the limit's + one fdatasync");
        goals.push(
            Goal::new("W1", "fixed", &shape, text, Bound::AtMost(100.0), |round| {
                let sync = round.environment["fdatasync_p50_us"].as_f64()?;
                Some(round.of("roomlog-ws", P50)? - round.of("limit", P50)? - sync)
            })
            .unit(" µs"),
        );
        let text = format!("W1 p50 at 100 k deliveries/s, {subscribers} subscribers, durability os, to the limit's");
        goals.push(Goal::new("W1", "fixed", &shape, text, Bound::AtMost(1.3), |round| {
            round.ratio("roomlog-os", "limit", P50)
        }));
    }
    let text = "W1 p99 at 100 k deliveries/s, 1000 subscribers, to the limit's".to_owned();
    goals.push(Goal::new("W1", "fixed", &[("subscribers", 1000)], text, Bound::AtMost(1.2), |round| {
        round.ratio("roomlog-ws", "limit", P99)
    }));
    let text = "W2 deliveries/s at saturation, to the limit".to_owned();
    goals.push(Goal::new("W2", "saturation", &[], text, Bound::AtLeast(0.75), |round| {
        round.ratio("roomlog-ws", "limit", PER_S)
    }));
    let text = "W2 p99 at 20 k deliveries/s".to_owned();
    goals.push(
        Goal::new("W2", "fixed", &[], text, Bound::AtMost(500.0), |round| round.of("roomlog-ws", P99)).unit(" µs"),
    );
    let durable = [(1, 1, 1.0), (16, 1, 1.1), (256, 1, 0.75), (1, 256, 0.55), (16, 256, 0.3), (256, 256, 0.5)];
    for (connections, window, least) in durable {
        let shape = [("payload_bytes", 128), ("connections", connections), ("window", window)];
        let text = format!("W3 acks/s, 128 B, {connections} × {window}, to the limit");
        goals.push(Goal::new("W3", "acks", &shape, text, Bound::AtLeast(least), |round| {
            round.ratio("roomlog-ws", "limit", PER_S)
        }));
        let text = format!("W3 acks/s, 128 B, {connections} × {window}, to Redis with AOF always");
        goals.push(Goal::new("W3", "acks", &shape, text, Bound::AtLeast(1.0), |round| {
            round.ratio("roomlog-ws", "redis", PER_S)
        }));
    }
    for (part, least) in [("warm", 0.5), ("cold", 0.15)] {
        let text = format!("W4 replay of 1 M records, {part}, messages/s to the limit");
        goals.push(Goal::new("W4", part, &[], text, Bound::AtLeast(least), |round| {
            round.ratio("roomlog-ws", "limit", PER_S)
        }));
    }
    let text = "W4 100 joiners of the last 100, until all are done, to the limit's time".to_owned();
    goals.push(Goal::new("W4", "joiners", &[], text, Bound::AtMost(1.5), |round| {
        round.ratio("roomlog-ws", "limit", Figure::Field("all_ms"))
    }));
    for (peer, most) in [("roomlog-ws", 3.0), ("roomlog-quic", 48.0)] {
        let text = format!("W5 memory per idle joined connection, 10 k connections, {peer}");
        let shape = [("connections", 10_000)];
        let value = move |round: &Round<'_>| round.of(peer, Figure::Field("kib_per_connection"));
        goals.push(Goal::new("W5", "idle", &shape, text, Bound::AtMost(most), value).unit(" KiB"));
    }
    let text = "W6 server CPU per million deliveries at saturation, 100 subscribers".to_owned();
    goals.push(
        Goal::new("W1", "saturation", &[("subscribers", 100)], text, Bound::AtMost(0.03), |round| {
            round.of("roomlog-ws", Figure::CpuPerMillion)
        })
        .unit(" s"),
    );
    let text = "W6 server CPU per million deliveries at 100 k/s, 100 subscribers, to the limit's".to_owned();
    goals.push(Goal::new("W1", "fixed", &[("subscribers", 100)], text, Bound::AtMost(1.3), |round| {
        round.ratio("roomlog-ws", "limit", Figure::CpuPerMillion)
    }));
    for (key, what) in [("p99_us", "p99 of the fast readers"), ("cpu", "server CPU per delivery")] {
        let text = format!("W7 {what}, with one slow reader among 100 to without");
        goals.push(Goal::new("W7", "pair", &[], text, Bound::AtMost(1.05), move |round| {
            round.of("roomlog-ws", Figure::Field(if key == "cpu" { "cpu_ratio" } else { "p99_ratio" }))
        }));
    }
    goals.extend(growth_goals());
    goals
}

/// Of directories that have grown.
fn growth_goals() -> Vec<Goal> {
    let field = |key: &'static str| move |round: &Round<'_>| round.of("roomlog-ws", Figure::Field(key));
    let mut goals = Vec::new();
    let sizes = [
        ("1 k rooms", ("rooms", 1_000)),
        ("100 k rooms", ("rooms", 100_000)),
        ("1 M rooms", ("rooms", 1_000_000)),
        ("1 GiB of history", ("history_mib", 1 << 10)),
        ("4 GiB of history", ("history_mib", 4 << 10)),
        ("16 GiB of history", ("history_mib", 16 << 10)),
    ];
    for (size, shape) in sizes {
        for (part, key, what, bound) in [
            ("saturation", "rate_ratio", "deliveries/s at saturation", Bound::AtLeast(0.9)),
            ("acks", "rate_ratio", "acks/s, 16 × 256", Bound::AtLeast(0.9)),
            ("fixed", "p99_ratio", "p99 at 100 k deliveries/s", Bound::AtMost(1.1)),
            ("fixed", "cpu_ratio", "server CPU per delivery at 100 k/s", Bound::AtMost(1.1)),
        ] {
            let text = format!("W8 {what}, {size}, to a small directory");
            goals.push(Goal::new("W8", part, &[shape], text, bound, field(key)));
        }
        for part in ["restart", "restart after kill -9"] {
            let text = format!("W8 {part}, {size}");
            let goal = Goal::new("W8", part, &[shape], text, Bound::AtMost(2000.0), field("restart_ms"));
            goals.push(goal.unit(" ms"));
        }
    }
    let shape = [("history_mib", 16 << 10), ("clients", 1000)];
    for (text, key, most, scale, unit) in [
        ("p50", "p50_us", 20.0, 1e-3, " ms"),
        ("p99", "p99_us", 200.0, 1e-3, " ms"),
        ("most memory of the server", "rss_peak_mib", 700.0, 1.0, " MiB"),
    ] {
        let text = format!("W9 opening 20 rooms, 16 GiB of history, 1000 clients, {text}");
        let value = move |round: &Round<'_>| Some(scale * round.of("roomlog-ws", Figure::Field(key))?);
        goals.push(Goal::new("W9", "opening", &shape, text, Bound::AtMost(most), value).unit(unit));
    }
    goals
}

/// The goals as text, for a terminal.
pub(crate) fn text(run: &Run) -> String {
    let mut text = String::new();
    for goal in goals() {
        let (sign, bound) = match goal.bound {
            Bound::AtLeast(bound) => (">=", bound),
            Bound::AtMost(bound) => ("<=", bound),
        };
        let measured = goal.measured(run);
        let verdict = match measured {
            None => "not measured".to_owned(),
            Some(spread) => format!(
                "{:.2}{} [{:.2} - {:.2}, n={}] {}",
                spread.median,
                goal.unit,
                spread.min,
                spread.max,
                spread.count,
                if goal.reached(spread) { "reached" } else { "NOT reached" }
            ),
        };
        text += &format!("{}: goal {sign} {bound}{}, {verdict}\n", goal.text, goal.unit);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_goal_of_growth_is_of_its_own_size_and_takes_the_median_of_its_pairs() {
        let mut run = Run {
            file: String::new(),
            environment: Value::Null,
            peers: Vec::new(),
            missing: Vec::new(),
            cells: std::collections::BTreeMap::new(),
        };
        for (rooms, ratios) in [(1_000, [0.5, 0.95, 0.99]), (100_000, [0.7, 0.8, 1.2])] {
            for (round, ratio) in (0..).zip(ratios) {
                let line = json!({ "workload": "W8", "rooms": rooms, "part": "acks", "rate_ratio": ratio });
                let rounds = run.cells.entry(Cell::of(&line)).or_default();
                rounds.entry("roomlog-ws".to_owned()).or_default().insert(round, line);
            }
        }
        let goals = goals();
        let measured = |text: &str| {
            let goal = goals.iter().find(|goal| goal.text.starts_with(text)).expect("there is such a goal");
            goal.measured(&run).map(|spread| (spread.median, goal.reached(spread)))
        };
        assert_eq!(measured("W8 acks/s, 16 × 256, 1 k rooms"), Some((0.95, true)));
        assert_eq!(measured("W8 acks/s, 16 × 256, 100 k rooms"), Some((0.8, false)));
        assert_eq!(measured("W8 acks/s, 16 × 256, 1 M rooms"), None);
        assert_eq!(measured("W8 deliveries/s at saturation, 1 k rooms"), None);
    }
}
