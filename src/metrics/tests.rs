//! The table keeps its own rules, the page tells the table, and two brokers stay apart.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{CounterFn, GaugeFn};
use parking_lot::Mutex;

use super::*;

/// A recorder that keeps the value of every series under `name{label="value"}`.
#[derive(Default)]
struct Kept {
    series: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    described: Mutex<HashSet<String>>,
}

struct Cell(Arc<AtomicU64>);

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, _: f64) {
        unreachable!("not used here");
    }

    fn decrement(&self, _: f64) {
        unreachable!("not used here");
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

impl Kept {
    fn series(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={:?}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::new(Cell(Arc::clone(self.series.lock().entry(name).or_default())))
    }

    fn value(&self, series: &str) -> u64 {
        self.series.lock()[series].load(Ordering::Relaxed)
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.described.lock().insert(key.as_str().to_owned());
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.described.lock().insert(key.as_str().to_owned());
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.described.lock().insert(key.as_str().to_owned());
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.series(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.series(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.series(key);
        Histogram::noop()
    }
}

#[test]
fn two_brokers_in_one_process_stay_apart() {
    let (left, right) = (Kept::default(), Kept::default());
    let (of_left, of_right) = (Metrics::new(&left), Metrics::new(&right));
    of_left.commits.increment(3);
    of_right.commits.increment(5);
    Metrics::disabled().commits.increment(7);
    assert_eq!((left.value("roomlog_commits_total{}"), right.value("roomlog_commits_total{}")), (3, 5));
}

#[test]
fn each_label_value_has_a_series_of_its_own() {
    let kept = Kept::default();
    let metrics = Metrics::new(&kept);
    for (number, code) in (1..).zip(Code::ALL) {
        metrics.errors[*code].increment(number);
    }
    for (number, code) in (1..).zip(Code::ALL) {
        assert_eq!(kept.value(&format!("roomlog_errors_total{{code={:?}}}", code.name())), number);
    }
    metrics.delivered_records[(Transport::Quic, Source::Journal)].increment(4);
    let series = "roomlog_delivered_records_total{transport=\"quic\",source=\"journal\"}";
    assert_eq!(kept.value(series), 4);
    let moved = |(name, cell): (&String, &Arc<AtomicU64>)| {
        name.starts_with("roomlog_delivered_records_total") && cell.load(Ordering::Relaxed) > 0
    };
    assert_eq!(kept.series.lock().iter().filter(|entry| moved(*entry)).count(), 1);
}

#[test]
fn label_values_stand_where_their_index_says() {
    fn check<L: Labels>() {
        for (place, value) in L::all().into_iter().enumerate() {
            assert_eq!(value.index(), place, "{:?}", value.texts());
            assert_eq!(value.texts().len(), L::NAMES.len());
        }
    }
    check::<Transport>();
    check::<Source>();
    check::<Budget>();
    check::<Work>();
    check::<Refusal>();
    check::<Operation>();
    check::<Code>();
    check::<GapReason>();
    check::<(Transport, Source)>();
    check::<Build>();
}

#[test]
fn every_metric_is_described_and_registered_under_its_name() {
    let kept = Kept::default();
    drop(Metrics::new(&kept));
    let registered: HashSet<_> =
        kept.series.lock().keys().map(|name| name.split('{').next().unwrap_or_default().to_owned()).collect();
    let table: HashSet<_> = Metrics::ALL.iter().map(|metric| metric.name.to_owned()).collect();
    assert_eq!(registered, table);
    assert_eq!(*kept.described.lock(), table);
    assert_eq!(table.len(), Metrics::ALL.len(), "a name stands twice in the table");
}

#[test]
fn names_keep_the_rules_of_the_exposition_format() {
    for metric in Metrics::ALL {
        let name = metric.name;
        assert!(name.starts_with("roomlog_"), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        let base = name.trim_end_matches("_total");
        assert_eq!(base.ends_with("_bytes"), metric.unit == Unit::Bytes, "{name}");
        assert_eq!(base.ends_with("_seconds"), metric.unit == Unit::Seconds, "{name}");
        for reserved in ["_count", "_sum", "_bucket", "_info_total"] {
            assert!(!base.ends_with(reserved), "{name}");
        }
        assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{name}: {}", metric.help);
        for label in metric.labels {
            assert!(!["room", "user", "publisher", "le", "quantile"].contains(label), "{name}: {label}");
        }
    }
}

#[test]
fn every_histogram_has_rising_buckets() {
    for metric in Metrics::ALL {
        let buckets = metric.buckets();
        assert_eq!(buckets.is_some(), metric.kind == Kind::Histogram, "{}", metric.name);
        assert!(buckets.unwrap_or_default().is_sorted_by(|a, b| a < b), "{}", metric.name);
    }
}

#[test]
fn one_event_in_sixty_four_is_sampled() {
    let mut sampled = Sampled::new();
    let chosen: Vec<_> = (0..200).filter(|_| sampled.choose()).collect();
    assert_eq!(chosen, [0, 64, 128, 192]);
}

#[test]
fn the_operations_page_lists_the_table() {
    let mut table = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for metric in Metrics::ALL {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, help) = (metric.name, metric.kind.name(), metric.help);
        writeln!(table, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).expect("writing to memory");
    }
    let page = include_str!("../../docs/operations.md");
    let (begin, end) = ("<!-- metrics: begin -->\n", "<!-- metrics: end -->");
    let shown = page.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(shown, _)| shown.trim());
    assert!(shown == Some(table.trim()), "the table for docs/operations.md is:\n{table}");
}
