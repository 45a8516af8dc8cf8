//! docs/performance.md and its plots, made of the raw lines and of nothing else.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::goals::{Bound, goals};
use crate::peers::PEERS;
use crate::results::{Cell, Figure, Rounds, Run, Spread, ratio, spread};
use crate::svg::{self, Group, short};

/// The page and its plots: path below docs/, contents.
pub(crate) fn pages(results: &Path) -> Result<Vec<(String, String)>, String> {
    let runs = Run::read_all(results)?;
    let mut page = include_str!("../performance.head.md").to_owned();
    let mut plots = Vec::new();
    page += "\n## Goals\n\n";
    page += "The values are medians over the rounds, with the least and the greatest in brackets. A ratio is taken within a \
             round. Each stands for the newest run on such a processor that has it: the columns are of different \
             commits, too.\n\n";
    let processors = processors(&runs);
    page += "| goal | asked |";
    page += &processors.iter().map(|processor| format!(" on {processor} |")).collect::<String>();
    page += "\n|---|---|";
    page += &"---|".repeat(processors.len());
    page += "\n";
    for goal in goals() {
        let (sign, bound) = match goal.bound {
            Bound::AtLeast(bound) => ("≥", bound),
            Bound::AtMost(bound) => ("≤", bound),
        };
        page += &format!("| {} | {sign} {bound}{} |", goal.text, goal.unit);
        for processor in &processors {
            let mut newest = runs.iter().enumerate().rev().filter(|(_, run)| run.processor() == *processor);
            let found = newest.find_map(|(index, run)| Some((index, goal.measured(run)?)));
            page += &match found {
                Some((index, spread)) => {
                    let verdict = if goal.reached(spread) { "reached" } else { "**not reached**" };
                    format!(" {}, {verdict}, [{1}](#run-{1}) |", range(spread, goal.unit), index + 1)
                }
                None => " not measured |".to_owned(),
            };
        }
        page += "\n";
    }
    for (index, run) in runs.iter().enumerate().rev() {
        page += &run_section(index + 1, run, &mut plots);
    }
    plots.insert(0, ("performance.md".to_owned(), page));
    Ok(plots)
}

/// The processors that runs were made on, that of the newest run first.
fn processors(runs: &[Run]) -> Vec<&str> {
    let mut processors = Vec::new();
    for run in runs.iter().rev() {
        if !processors.contains(&run.processor()) {
            processors.push(run.processor());
        }
    }
    processors
}

/// Writes them.
pub(crate) fn write(results: &Path, docs: &Path) -> Result<(), String> {
    for (name, text) in pages(results)? {
        let path = docs.join(name);
        let world = |error| format!("{}: {error}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(docs)).map_err(world)?;
        fs::write(&path, text).map_err(world)?;
        println!("{}", path.display());
    }
    Ok(())
}

fn run_section(number: usize, run: &Run, plots: &mut Vec<(String, String)>) -> String {
    let field = |key: &str| match &run.environment[key] {
        Value::String(text) => text.clone(),
        Value::Number(number) => short(number.as_f64().unwrap_or_default()),
        _ => "?".to_owned(),
    };
    let mut text = format!("\n## Run {number}\n\n");
    text += &format!(
        "Raw lines: [`{0}`](../bench/compare/results/{0}). Begun {1}, commit `{2}`, {3}, Linux {4}, {5} cores of {6}, {7} MiB, \
         {8}; load at the beginning {9}; fdatasync of a growing file p50 {10} µs, p99 {11} µs.\n\nCommand: `{12}`\n\n",
        run.file,
        field("started"),
        field("commit"),
        field("rustc"),
        field("kernel"),
        field("cores"),
        field("cpu"),
        run.environment["memory_mib"],
        field("filesystem"),
        field("load"),
        field("fdatasync_p50_us"),
        field("fdatasync_p99_us"),
        field("command"),
    );
    let load = run.environment["load"].as_str().and_then(|load| load.parse::<f64>().ok()).unwrap_or_default();
    if load > 1.0 {
        text += "**The machine was busy with other work when this began: what is absolute here is worth little, and ratios \
                 are rough.**\n\n";
    }
    text += "| peer | version |\n|---|---|\n";
    for peer in &run.peers {
        let version = peer["version"].as_str().unwrap_or_default();
        text += &format!("| {} | {} |\n", peer["peer"].as_str().unwrap_or_default(), version);
    }
    for missing in &run.missing {
        let name = missing["peer"].as_str().unwrap_or_default();
        text += &format!("| {name} | **missing**: {} |\n", missing["why"].as_str().unwrap_or("not installed"));
    }
    let mut workloads: Vec<_> = run.cells.keys().map(|cell| cell.workload.as_str()).collect();
    workloads.dedup();
    for workload in workloads {
        text += &workload_section(number, run, workload, plots);
    }
    text
}

fn workload_section(number: usize, run: &Run, workload: &str, plots: &mut Vec<(String, String)>) -> String {
    let mut text = format!("\n### {workload}, run {number}: {}\n\n", title(workload));
    let cells: Vec<_> = run.cells.iter().filter(|(cell, _)| cell.workload == workload).collect();
    let parts: Vec<_> = cells.iter().map(|(cell, _)| cell.part.as_str()).collect();
    // QUIC is always encrypted, and nobody else is here: it has a table of its own.
    let (quic, names): (Vec<_>, Vec<_>) = PEERS.iter().partition(|peer| peer.is_quic());
    let (quic, names) = [quic, names].map(|peers| peers.iter().map(|peer| peer.name).collect::<Vec<_>>()).into();
    for (part, figure, what, unit) in [
        ("saturation", Figure::Field("per_s"), "deliveries per second at saturation", "deliveries/s"),
        ("fixed", Figure::Field("p50_us"), "median latency at a fixed rate", "µs"),
        ("acks", Figure::Field("per_s"), "acknowledged publishes per second", "acks/s"),
        ("idle", Figure::Field("kib_per_connection"), "memory per idle connection", "KiB"),
        ("warm", Figure::Field("per_s"), "replay, page cache warm", "messages/s"),
        ("cold", Figure::Field("per_s"), "replay after a restart with a cold cache", "messages/s"),
        ("restart", Figure::Field("restart_ms"), "time of a restart", "ms"),
        ("restart after kill -9", Figure::Field("restart_ms"), "time of a restart after kill -9", "ms"),
        ("opening", Figure::Field("p99_us"), "99 of 100 clients have opened their rooms", "µs"),
    ] {
        if !parts.contains(&part) {
            continue;
        }
        let groups = cells.iter().filter(|(cell, _)| cell.part == part).map(|(cell, rounds)| Group {
            label: cell.shape(),
            bars: names.iter().filter_map(|name| Some(((*name).to_owned(), spread(rounds, name, figure)?))).collect(),
        });
        let groups: Vec<_> = groups.filter(|group| !group.bars.is_empty()).collect();
        if !groups.is_empty() {
            let name = format!("performance/run-{number}-{workload}-{}.svg", part.replace(' ', "-"));
            text += &format!("![{what}]({name})\n\n");
            plots.push((name, svg::bars(&format!("{workload}: {what}"), unit, &names, &groups)));
        }
    }
    text += &table(&cells, &names);
    let over_quic = table(&cells, &quic);
    if !over_quic.is_empty() {
        text += &format!("\nOver QUIC, which is encrypted:\n\n{over_quic}");
    }
    text += "\nCommands:\n\n";
    for name in names.iter().chain(&quic) {
        let commands = cells.iter().filter_map(|(_, rounds)| rounds.get(*name)).flat_map(|lines| lines.values());
        let mut commands: Vec<_> = commands.filter_map(|line| line["command"].as_str()).collect();
        commands.sort_unstable();
        commands.dedup();
        for command in commands.iter().filter(|command| !command.is_empty()) {
            text += &format!("- {name}: `{command}`\n");
        }
    }
    text
}

/// Empty when none of these peers took part.
fn table(cells: &[(&Cell, &Rounds)], names: &[&str]) -> String {
    let mut rows = String::new();
    for (cell, rounds) in cells {
        for name in names {
            if let Some(lines) = rounds.get(*name) {
                rows += &row(cell, rounds, name, &lines.values().collect::<Vec<_>>());
            }
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "| | peer | durability | per second | to the limit | p50 µs | p99 µs | p999 µs | server CPU s/M | client cores \
         | RSS MiB | more | lost / twice / disordered |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n{rows}"
    )
}

fn row(cell: &Cell, rounds: &Rounds, name: &str, lines: &[&Value]) -> String {
    let place =
        [cell.shape(), cell.part.clone()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    if let Some(error) = lines.iter().find_map(|line| line["failed"].as_str()) {
        let error: String = error.chars().map(|c| if c == '|' { '/' } else { c }).take(200).collect();
        let failed = lines.iter().filter(|line| line["failed"].is_string()).count();
        if failed == lines.len() {
            return format!(
                "| {place} | {name} | | failed in {failed} of {failed} rounds: {error} | | | | | | | | | |\n"
            );
        }
    }
    let cell_of = |what: Figure| spread(rounds, name, what).map(|value| range(value, "")).unwrap_or_default();
    let median = |what: Figure| spread(rounds, name, what).map(|value| short(value.median)).unwrap_or_default();
    let field = |key: &'static str| median(Figure::Field(key));
    let limit = ratio(rounds, name, "limit", Figure::Field("per_s")).map(|value| range(value, "")).unwrap_or_default();
    let sum = |key: &str| lines.iter().filter_map(|line| line[key].as_u64()).sum::<u64>();
    let rss = Spread::of(lines.iter().filter_map(|line| Some(line["rss_kib"].as_f64()? / 1024.0)));
    let more: Vec<_> = [
        ("kib_per_connection", " KiB per connection"),
        ("all_ms", " ms until all are done"),
        ("restart_ms", " ms until a hello is answered"),
        ("disk_mib", " MiB on the disk"),
        ("rss_peak_mib", " MiB RSS at most"),
        ("rate_ratio", " × rate"),
        ("p50_ratio", " × p50"),
        ("p99_ratio", " × p99"),
        ("cpu_ratio", " × CPU"),
    ]
    .into_iter()
    .filter_map(|(key, unit)| Some(range(spread(rounds, name, Figure::Field(key))?, unit)))
    .collect();
    format!(
        "| {place} | {name} | {} | {} | {limit} | {} | {} | {} | {} | {} | {} | {} | {} / {} / {} |\n",
        lines[0]["durability"].as_str().unwrap_or_default(),
        cell_of(Figure::Field("per_s")),
        field("p50_us"),
        field("p99_us"),
        field("p999_us"),
        median(Figure::CpuPerMillion),
        median(Figure::ClientCores),
        rss.map(|rss| short(rss.median)).unwrap_or_default(),
        more.join(", "),
        sum("lost"),
        sum("duplicated"),
        sum("disordered"),
    )
}

fn range(spread: Spread, unit: &str) -> String {
    format!("{}{unit} [{} – {}]", short(spread.median), short(spread.min), short(spread.max))
}

fn title(workload: &str) -> &'static str {
    match workload {
        "W1" => "fan-out of one room",
        "W2" => "1000 rooms with 2 subscribers each, 100 publishers",
        "W3" => "acknowledged publishes into one room",
        "W4" => "replay of 1 M × 128 B",
        "W5" => "idle joined connections",
        "W7" => "a slow reader among fast ones",
        "W8" => "growth: the same rates beside a small directory, and restarts",
        "W9" => "clients that each open 20 rooms at their last 50 records",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_page_of_performance_is_what_the_raw_lines_make() {
        let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let docs = package.join("../../docs");
        let pages = pages(&package.join("results")).expect("the raw lines can be read");
        for (name, text) in &pages {
            let there = fs::read_to_string(docs.join(name)).unwrap_or_default();
            assert!(there == *text, "docs/{name} is not what the raw lines make: run `roomlog-compare report`");
        }
        // A plot that no raw line makes any more.
        for entry in fs::read_dir(docs.join("performance")).into_iter().flatten() {
            let name = format!("performance/{}", entry.expect("a file").file_name().to_string_lossy());
            assert!(pages.iter().any(|(made, _)| *made == name), "docs/{name} has no raw lines");
        }
    }
}
