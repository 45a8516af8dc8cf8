//! A run: rounds of turns. In each round every peer has its turn, in another order each time.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::environment;
use crate::growth::{Growth, Size};
use crate::load::{Times, durable, fanout, idle, opening, replay};
use crate::measured::{acks_line, fanout_line};
use crate::options::{Options, WORKLOADS};
use crate::peers::{Durability, Peer, Role, Server};
use crate::process;
use crate::wire::Start;

/// Deliveries per second at which everybody's latency is compared.
const FIXED_RATE: f64 = 100_000.0;
const W2_RATE: f64 = 20_000.0;
/// How fast those arrive who open rooms.
const CLIENTS_PER_S: f64 = 100.0;

struct Run<'a> {
    options: &'a Options,
    peers: Vec<(&'static Peer, PathBuf)>,
    out: File,
    round: usize,
}

pub(crate) fn run(options: &Options) -> Result<(), String> {
    raise_descriptors();
    // Sleeping until a message is due must not take 50 µs more, as it does by default.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    for workload in &options.workloads {
        if !WORKLOADS.contains(&workload.as_str()) {
            return Err(format!("there is no workload {workload}"));
        }
    }
    let environment = environment::environment(&options.data)?;
    let path = match &options.out {
        Some(path) => path.clone(),
        None => {
            let started = environment["started"].as_str().unwrap_or_default().replace(':', "");
            Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(format!("{started}.jsonl"))
        }
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    }
    let out = File::options().create(true).append(true).open(&path);
    let out = out.map_err(|error| format!("{}: {error}", path.display()))?;
    let mut run = Run { options, peers: Vec::new(), out, round: 0 };
    run.write(&environment)?;
    for name in &options.peers {
        let peer = Peer::named(name).ok_or_else(|| format!("there is no peer {name}"))?;
        match peer.find(&options.programs) {
            Ok(program) => {
                let version = if peer.program.is_empty() { String::new() } else { version(&program) };
                run.write(&json!({ "line": "peer", "peer": name, "version": version }))?;
                run.peers.push((peer, program));
            }
            Err(why) => {
                println!("missing: {name}: {why}");
                run.write(&json!({ "line": "missing", "peer": name, "why": why }))?;
            }
        }
    }
    for round in 0..options.rounds {
        run.round = round;
        for workload in &options.workloads {
            match workload.as_str() {
                "W1" => run.w1()?,
                "W2" => run.w2()?,
                "W3" => run.w3()?,
                "W4" => run.w4()?,
                "W5" => run.w5()?,
                "W7" => run.w7()?,
                // Once in a run, behind the rounds: it has pairs of its own.
                _ => {}
            }
        }
    }
    run.growth()?;
    println!("raw lines: {}", path.display());
    Ok(())
}

impl Run<'_> {
    fn write(&mut self, line: &Value) -> Result<(), String> {
        let mut text = line.to_string();
        text.push('\n');
        self.out.write_all(text.as_bytes()).map_err(|error| format!("raw lines: {error}"))
    }

    fn times(&self) -> Times {
        Times { warm_up: self.options.warm_up, measured: self.options.measured }
    }

    /// The peers in the order of this round.
    fn turns(&self) -> Vec<(&'static Peer, PathBuf)> {
        let mut turns = self.peers.clone();
        let shift = self.round % turns.len().max(1);
        turns.rotate_left(shift);
        // Neighbours change as well, not only who begins.
        if self.round % 2 == 1 {
            turns.reverse();
        }
        turns
    }

    /// A turn of one peer: started, measured, stopped. What goes wrong is a line, too.
    fn turn(
        &mut self,
        peer: &'static Peer,
        program: &Path,
        role: Role,
        name: &Value,
        measure: impl FnOnce(&mut Server) -> Result<Vec<Value>, String>,
    ) -> Result<(), String> {
        let Some(durability) = peer.durability(role) else { return Ok(()) };
        let directory = self.options.data.join(peer.name);
        let server = Server::start(peer, program, self.options.port, role, directory);
        let (lines, command) = match server {
            Ok(mut server) => {
                let lines = measure(&mut server).map_err(|error| server.says(&error));
                (lines, server.command.clone())
            }
            Err(error) => (Err(error), String::new()),
        };
        let lines = lines.unwrap_or_else(|error| vec![json!({ "failed": error })]);
        self.record(peer, durability, &command, name, lines)
    }

    /// Writes the lines of a turn: with what they are of, and as they are for people.
    fn record(
        &mut self,
        peer: &'static Peer,
        durability: Durability,
        command: &str,
        name: &Value,
        lines: Vec<Value>,
    ) -> Result<(), String> {
        for mut line in lines {
            let fields = line.as_object_mut().expect("lines are objects");
            fields.insert("line".to_owned(), json!("measured"));
            // Pairs within a turn have numbers of their own.
            fields.entry("round").or_insert(json!(self.round));
            fields.insert("peer".to_owned(), json!(peer.name));
            fields.insert("durability".to_owned(), json!(durability.name()));
            fields.insert("command".to_owned(), json!(command));
            for (key, value) in name.as_object().expect("a name is an object") {
                fields.insert(key.clone(), value.clone());
            }
            println!("{}", brief(&line));
            self.write(&line)?;
        }
        Ok(())
    }

    /// Fan-out of one room.
    fn w1(&mut self) -> Result<(), String> {
        let times = self.times();
        for (subscribers, window) in [(10, 8192), (100, 2000), (1000, 200)] {
            for (peer, program) in self.turns() {
                let name = json!({ "workload": "W1", "subscribers": subscribers });
                self.turn(peer, &program, Role::Fanout, &name, |server| {
                    let target = server.target();
                    let mut load = fanout::Fanout::open(target, fanout::Shape::one_room(subscribers, 128))?;
                    let mut lines = Vec::new();
                    let saturation = load.run(fanout::Mode::Window(window), times)?;
                    let half = saturation.deliveries_per_s / 2.0;
                    lines.push(fanout_line("saturation", None, &saturation, &target)?);
                    for (part, rate) in [("fixed", FIXED_RATE), ("half", half)] {
                        let measured = load.run(fanout::Mode::Rate(rate), times)?;
                        lines.push(fanout_line(part, Some(rate), &measured, &target)?);
                    }
                    Ok(lines)
                })?;
            }
        }
        Ok(())
    }

    /// Publishes that are on the disk when they are acknowledged.
    fn w3(&mut self) -> Result<(), String> {
        let times = self.times();
        let sizes: &[usize] = if self.options.full { &[128, 1024] } else { &[128] };
        for &payload_bytes in sizes {
            for (connections, window) in [(1, 1), (16, 1), (256, 1), (1, 256), (16, 256), (256, 256)] {
                for (peer, program) in self.turns() {
                    let name = json!({
                        "workload": "W3", "payload_bytes": payload_bytes, "connections": connections, "window": window,
                    });
                    self.turn(peer, &program, Role::Kept, &name, |server| {
                        let target = server.target();
                        let shape = durable::Shape { connections, window, payload_bytes };
                        let measured = durable::run(&target, shape, times)?;
                        Ok(vec![acks_line("acks", &measured, &target)?])
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Many rooms with few subscribers each.
    fn w2(&mut self) -> Result<(), String> {
        let times = self.times();
        for (peer, program) in self.turns() {
            let name = json!({ "workload": "W2", "rooms": 1000 });
            self.turn(peer, &program, Role::Fanout, &name, |server| {
                let target = server.target();
                let shape = fanout::Shape { rooms: 1000, subscribers_per_room: 2, publishers: 100, payload_bytes: 128 };
                let mut load = fanout::Fanout::open(target, shape)?;
                let saturation = load.run(fanout::Mode::Window(8192), times)?;
                let fixed = load.run(fanout::Mode::Rate(W2_RATE), times)?;
                Ok(vec![
                    fanout_line("saturation", None, &saturation, &target)?,
                    fanout_line("fixed", Some(W2_RATE), &fixed, &target)?,
                ])
            })?;
        }
        Ok(())
    }

    /// What is kept, read back.
    fn w4(&mut self) -> Result<(), String> {
        const RECORDS: u32 = 1_000_000;
        for (peer, program) in self.turns() {
            if !peer.replays {
                continue;
            }
            let name = json!({ "workload": "W4", "payload_bytes": 128 });
            self.turn(peer, &program, Role::Kept, &name, |server| {
                replay::fill(&server.target(), RECORDS, 128)?;
                let mut lines = Vec::new();
                // The first reader finds what was just written; the second what the first has read.
                for (part, readers, start, each) in [
                    ("warm", 1, Start::Earliest, u64::from(RECORDS)),
                    ("joiners", 100, Start::Last(100), 100),
                    ("cold", 1, Start::Earliest, u64::from(RECORDS)),
                ] {
                    if part == "cold" {
                        server.restart_cold()?;
                    }
                    let target = server.target();
                    let measured = replay::run(&target, readers, start, each)?;
                    let wanted = each * readers as u64;
                    let mut line = json!({
                        "part": part,
                        "per_s": measured.come as f64 / measured.spent.seconds,
                        "count": measured.come,
                        "seconds": measured.spent.seconds,
                        "server_cpu_s": measured.spent.server_cpu_s,
                        "client_cpu_s": measured.spent.client_cpu_s,
                        "lost": wanted.saturating_sub(measured.come),
                        "duplicated": measured.order.duplicated + measured.come.saturating_sub(wanted),
                        "disordered": measured.order.disordered,
                        "foreign": measured.order.foreign,
                        "rss_kib": process::rss_kib(target.pid)?,
                    });
                    if readers > 1 {
                        line["joiners"] = json!(readers);
                        line["all_ms"] = json!(measured.spent.seconds * 1e3);
                    }
                    lines.push(line);
                }
                Ok(lines)
            })?;
        }
        Ok(())
    }

    /// What a connection costs that does nothing.
    fn w5(&mut self) -> Result<(), String> {
        for connections in [1_000, 10_000] {
            for (peer, program) in self.turns() {
                let name = json!({ "workload": "W5", "connections": connections });
                self.turn(peer, &program, Role::Fanout, &name, |server| {
                    let target = server.target();
                    let measured = idle::run(&target, connections)?;
                    Ok(vec![json!({
                        "part": "idle",
                        "kib_per_connection": measured.kib_per_connection,
                        "connect_s": measured.connect_s,
                        "idle_cores": measured.idle_cores,
                        "rss_kib": process::rss_kib(target.pid)?,
                    })])
                })?;
            }
        }
        Ok(())
    }

    /// A subscriber that does not read, among those that do: pairs without and with it.
    fn w7(&mut self) -> Result<(), String> {
        let times = self.times();
        let pairs = if self.options.rounds >= 5 { 2 } else { 5 };
        for (peer, program) in self.turns() {
            // What the others do with a slow reader is told in the full form.
            if !self.options.full && peer.program != "roomlog" {
                continue;
            }
            let name = json!({ "workload": "W7", "subscribers": 100, "payload_bytes": 1024 });
            let first = self.round * pairs;
            self.turn(peer, &program, Role::Fanout, &name, |server| {
                let target = server.target();
                let mut load = fanout::Fanout::open(target, fanout::Shape::one_room(100, 1024))?;
                let mut lines = Vec::new();
                // Before each part so much is sent that what lies between server and reader is full.
                let mut part = |stalled: bool| {
                    if stalled {
                        load.stall()?;
                    }
                    load.run(fanout::Mode::Window(500), Times { warm_up: times.warm_up, measured: times.warm_up })?;
                    let measured = load.run(fanout::Mode::Rate(FIXED_RATE), times)?;
                    if stalled {
                        load.unstall();
                    }
                    Ok::<_, String>(measured)
                };
                for pair in 0..pairs {
                    // Who is first changes, so that what grows with time is nobody's.
                    let (without, with) = if pair % 2 == 0 {
                        let without = part(false)?;
                        (without, part(true)?)
                    } else {
                        let with = part(true)?;
                        (part(false)?, with)
                    };
                    let mut line = fanout_line("pair", Some(FIXED_RATE), &with, &target)?;
                    let p99 = |measured: &fanout::Measured| measured.latency.quantile_us(0.99).unwrap_or(f64::NAN);
                    let cpu = |measured: &fanout::Measured| measured.server_cpu_s / measured.deliveries as f64;
                    line["p99_ratio"] = json!(p99(&with) / p99(&without));
                    line["cpu_ratio"] = json!(cpu(&with) / cpu(&without));
                    line["without_p99_us"] = json!(p99(&without));
                    line["round"] = json!(first + pair);
                    lines.push(line);
                }
                Ok(lines)
            })?;
        }
        Ok(())
    }

    /// Directories that have grown (W8), and clients that open rooms of the largest history (W9).
    fn growth(&mut self) -> Result<(), String> {
        let options = self.options;
        let wanted = |name: &str| options.workloads.iter().any(|workload| workload == name);
        let found = self.peers.iter().find(|(peer, _)| peer.name == "roomlog-ws");
        let Some((peer, program)) = found.cloned() else { return Ok(()) };
        let histories = options.sizes.iter().filter_map(|size| match size {
            Size::HistoryMib(mib) => Some(*mib),
            Size::Rooms(_) => None,
        });
        let clients = if options.full { 1000 } else { 200 };
        let shape = opening::Shape { clients, rooms_each: 20, last: 50, clients_per_s: CLIENTS_PER_S };
        let repeats = if options.full { 5 } else { 3 };
        let growth = Growth {
            peer,
            program: &program,
            port: options.port,
            data: &options.data,
            times: self.times(),
            rates: wanted("W8"),
            pairs: options.pairs,
            restarts: repeats,
            opening: histories.max().filter(|_| wanted("W9")).map(|mib| (Size::HistoryMib(mib), shape, repeats)),
        };
        for size in &options.sizes {
            growth.measure(*size, &mut |name, command, lines| {
                self.record(peer, Durability::Disk, command, name, lines)
            })?;
        }
        Ok(())
    }
}

/// A measured line for people.
fn brief(line: &Value) -> String {
    let mut text = format!("round {} {}", line["round"], line["workload"].as_str().unwrap_or_default());
    for key in ["payload_bytes", "rooms", "history_mib", "subscribers", "connections", "clients", "window"] {
        if let Some(value) = line.get(key) {
            text += &format!(" {key} {value}");
        }
    }
    text += &format!(" {}", line["peer"].as_str().unwrap_or_default());
    if let Some(error) = line.get("failed") {
        return format!("{text} FAILED {error}");
    }
    text += &format!(" {}", line["part"].as_str().unwrap_or_default());
    let number = |key: &str| line[key].as_f64().unwrap_or_default();
    for (key, unit) in [
        ("kib_per_connection", "KiB"),
        ("all_ms", "ms"),
        ("restart_ms", "ms"),
        ("disk_mib", "MiB on the disk"),
        ("rss_peak_mib", "MiB RSS at most"),
        ("rate_ratio", "x rate"),
        ("p50_ratio", "x p50"),
        ("p99_ratio", "x p99"),
        ("cpu_ratio", "x CPU"),
    ] {
        if line[key].is_number() {
            text += &format!(" {:.3} {unit}", number(key));
        }
    }
    if line["per_s"].is_number() {
        let (count, cpu) = (number("count").max(1.0), number("server_cpu_s"));
        text += &format!(": {:.0}/s, server CPU {:.3} s/M", number("per_s"), cpu / count * 1e6);
        text += &format!(", client {:.2} cores", number("client_cpu_s") / number("seconds").max(1e-9));
    }
    if line["p50_us"].is_number() {
        text += &format!(", p50 {:.0} p99 {:.0} us", number("p50_us"), number("p99_us"));
    }
    for key in ["lost", "duplicated", "disordered", "foreign"] {
        if number(key) > 0.0 {
            text += &format!(", {} {key}", number(key));
        }
    }
    text
}

/// What a program says of itself, in one line.
fn version(program: &Path) -> String {
    let program = program.to_string_lossy();
    let text = environment::output(&program, &["--version"]);
    text.lines().next().unwrap_or_default().to_owned()
}

/// As many descriptors as this process may have; servers inherit it.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
