//! Raw lines, read back: which run, which cell, which round.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

/// What tells cells of one workload apart, in the order in which it is named.
pub(crate) const SHAPE: &[(&str, &str)] = &[
    ("payload_bytes", "B"),
    ("rooms", "rooms"),
    ("subscribers", "subscribers"),
    ("connections", "connections"),
    ("window", "in flight each"),
    ("joiners", "joiners"),
    ("history_mib", "MiB of history"),
    ("clients", "clients"),
];

/// One run of the harness: a file of raw lines.
pub(crate) struct Run {
    pub(crate) file: String,
    pub(crate) environment: Value,
    pub(crate) peers: Vec<Value>,
    pub(crate) missing: Vec<Value>,
    pub(crate) cells: BTreeMap<Cell, Rounds>,
}

/// A place in the tables: workload, shape and part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Cell {
    pub(crate) workload: String,
    shape: Vec<Option<u64>>,
    pub(crate) part: String,
}

/// Of each peer, what each round gave.
pub(crate) type Rounds = BTreeMap<String, BTreeMap<u64, Value>>;

impl Cell {
    pub(crate) fn of(line: &Value) -> Self {
        Self {
            workload: line["workload"].as_str().unwrap_or_default().to_owned(),
            shape: SHAPE.iter().map(|(key, _)| line[*key].as_u64()).collect(),
            part: line["part"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// The shape in words.
    pub(crate) fn shape(&self) -> String {
        let words = SHAPE.iter().zip(&self.shape);
        let words = words.filter_map(|((_, unit), value)| value.map(|value| format!("{value} {unit}")));
        words.collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        SHAPE.iter().position(|(name, _)| *name == key).and_then(|index| self.shape[index])
    }
}

impl Run {
    /// What it ran on.
    pub(crate) fn processor(&self) -> &str {
        self.environment["cpu"].as_str().unwrap_or("?")
    }

    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let world = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| world(&error))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut run =
            Self { file, environment: Value::Null, peers: Vec::new(), missing: Vec::new(), cells: BTreeMap::new() };
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).map_err(|error| world(&error))?;
            match line["line"].as_str() {
                Some("environment") => run.environment = line,
                Some("peer") => run.peers.push(line),
                Some("missing") => run.missing.push(line),
                Some("measured") => {
                    let rounds = run.cells.entry(Cell::of(&line)).or_default();
                    let peer = line["peer"].as_str().unwrap_or_default().to_owned();
                    rounds.entry(peer).or_default().insert(line["round"].as_u64().unwrap_or_default(), line);
                }
                other => return Err(world(&format!("a line of kind {other:?}"))),
            }
        }
        Ok(run)
    }

    /// All runs of a directory, oldest first; none if there is no such directory.
    pub(crate) fn read_all(directory: &Path) -> Result<Vec<Self>, String> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| format!("{}: {error}", directory.display()))?,
        };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) count: usize,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 0 { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] };
        Some(Self { median, min, max, count: values.len() })
    }
}

/// A figure of a measured line; none when the part failed or deliveries were lost, which makes it no figure.
pub(crate) fn figure(line: &Value, what: Figure) -> Option<f64> {
    let faults = ["lost", "duplicated", "disordered", "foreign"];
    if faults.iter().any(|fault| line[*fault].as_u64().is_some_and(|count| count > 0)) {
        return None;
    }
    // A peer that does not keep up with the rate has a queue, and no latency that could be compared.
    let behind =
        line["rate"].as_f64().is_some_and(|rate| line["per_s"].as_f64().is_some_and(|per_s| per_s < 0.9 * rate));
    match what {
        Figure::Field(key) if behind && key != "per_s" => None,
        Figure::Field(key) => line[key].as_f64(),
        Figure::CpuPerMillion => {
            let count = line["count"].as_f64().filter(|count| *count > 0.0)?;
            Some(line["server_cpu_s"].as_f64()? / count * 1e6)
        }
        Figure::ClientCores => Some(line["client_cpu_s"].as_f64()? / line["seconds"].as_f64()?),
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Figure {
    Field(&'static str),
    CpuPerMillion,
    ClientCores,
}

/// A figure over the rounds.
pub(crate) fn spread(rounds: &Rounds, peer: &str, what: Figure) -> Option<Spread> {
    Spread::of(rounds.get(peer)?.values().filter_map(|line| figure(line, what)))
}

/// A figure of one peer divided by that of another in the same round.
pub(crate) fn ratio(rounds: &Rounds, peer: &str, base: &str, what: Figure) -> Option<Spread> {
    let base = rounds.get(base)?;
    let pairs = rounds.get(peer)?.iter().filter_map(|(round, line)| {
        let divisor = figure(base.get(round)?, what).filter(|divisor| *divisor > 0.0)?;
        Some(figure(line, what)? / divisor)
    });
    Spread::of(pairs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round_and_without_what_was_lost() {
        let line = |per_s: f64, lost: u64| json!({ "per_s": per_s, "lost": lost });
        let mut rounds = Rounds::new();
        rounds.insert("limit".to_owned(), BTreeMap::from([(0, line(10.0, 0)), (1, line(20.0, 0)), (2, line(30.0, 0))]));
        rounds.insert("other".to_owned(), BTreeMap::from([(0, line(5.0, 0)), (1, line(5.0, 0)), (2, line(99.0, 1))]));
        let ratio = ratio(&rounds, "other", "limit", Figure::Field("per_s")).expect("two rounds count");
        assert_eq!(ratio, Spread { median: 0.375, min: 0.25, max: 0.5, count: 2 });
    }
}
