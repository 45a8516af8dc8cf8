//! A run: rounds of turns. In each round every peer has its turn, in another order each time.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::environment;
use crate::histogram::Histogram;
use crate::load::{Target, Times, durable, fanout};
use crate::options::Options;
use crate::peers::{Peer, Role, Server};
use crate::process;

pub(crate) const WORKLOADS: &[&str] = &["W1", "W3"];

/// Deliveries per second at which everybody's latency is compared.
const FIXED_RATE: f64 = 100_000.0;

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
            Some(program) => {
                let version = if peer.program.is_empty() { String::new() } else { version(&program) };
                run.write(&json!({ "line": "peer", "peer": name, "version": version }))?;
                run.peers.push((peer, program));
            }
            None => {
                println!("missing: {name} ({} is not installed)", peer.program);
                run.write(&json!({ "line": "missing", "peer": name, "program": peer.program }))?;
            }
        }
    }
    for round in 0..options.rounds {
        run.round = round;
        for workload in &options.workloads {
            match workload.as_str() {
                "W1" => run.w1()?,
                _ => run.w3()?,
            }
        }
    }
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
        measure: impl FnOnce(&Target<'_>) -> Result<Vec<Value>, String>,
    ) -> Result<(), String> {
        let Some(durability) = peer.durability(role) else { return Ok(()) };
        let server = Server::start(peer, program, self.options.port, role, &self.options.data);
        let (lines, command) = match &server {
            Ok(server) => {
                let target = Target { address: server.address, pid: server.pid(), driver: &|| peer.driver() };
                let lines = measure(&target).map_err(|error| format!("{error} [{}]", server.output()));
                (lines, server.command.clone())
            }
            Err(error) => (Err(error.clone()), String::new()),
        };
        drop(server);
        let lines = lines.unwrap_or_else(|error| {
            println!("{name} {}: {error}", peer.name);
            vec![json!({ "failed": error })]
        });
        for mut line in lines {
            let fields = line.as_object_mut().expect("lines are objects");
            fields.insert("line".to_owned(), json!("measured"));
            fields.insert("round".to_owned(), json!(self.round));
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
                self.turn(peer, &program, Role::Fanout, &name, |target| {
                    let shape = fanout::Shape {
                        rooms: 1,
                        subscribers_per_room: subscribers,
                        publishers: 1,
                        payload_bytes: 128,
                    };
                    let mut load = fanout::Fanout::open(target, shape)?;
                    let mut lines = Vec::new();
                    let saturation = load.run(fanout::Mode::Window(window), times)?;
                    let half = saturation.deliveries_per_s / 2.0;
                    lines.push(fanout_line("saturation", None, &saturation, target)?);
                    for (part, rate) in [("fixed", FIXED_RATE), ("half", half)] {
                        let measured = load.run(fanout::Mode::Rate(rate), times)?;
                        lines.push(fanout_line(part, Some(rate), &measured, target)?);
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
        for payload_bytes in [128, 1024] {
            for (connections, window) in [(1, 1), (16, 1), (256, 1), (1, 256), (16, 256), (256, 256)] {
                for (peer, program) in self.turns() {
                    let name = json!({
                        "workload": "W3", "payload_bytes": payload_bytes, "connections": connections, "window": window,
                    });
                    self.turn(peer, &program, Role::Kept, &name, |target| {
                        let shape = durable::Shape { connections, window, payload_bytes };
                        let measured = durable::run(target, shape, times)?;
                        let mut line = json!({
                            "part": "acks",
                            "per_s": measured.acks_per_s,
                            "count": measured.acks,
                            "seconds": measured.seconds,
                            "server_cpu_s": measured.server_cpu_s,
                            "client_cpu_s": measured.client_cpu_s,
                            "lost": measured.lost,
                            "rss_kib": process::rss_kib(target.pid)?,
                        });
                        quantiles(&measured.latency, &mut line);
                        Ok(vec![line])
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn fanout_line(
    part: &str,
    rate: Option<f64>,
    measured: &fanout::Measured,
    target: &Target<'_>,
) -> Result<Value, String> {
    let mut line = json!({
        "part": part,
        "per_s": measured.deliveries_per_s,
        "count": measured.deliveries,
        "seconds": measured.seconds,
        "server_cpu_s": measured.server_cpu_s,
        "client_cpu_s": measured.client_cpu_s,
        "lost": measured.lost,
        "duplicated": measured.duplicated,
        "disordered": measured.disordered,
        "foreign": measured.foreign,
        "rss_kib": process::rss_kib(target.pid)?,
    });
    if let Some(rate) = rate {
        line["rate"] = json!(rate);
        quantiles(&measured.latency, &mut line);
    }
    Ok(line)
}

fn quantiles(latency: &Histogram, line: &mut Value) {
    for (name, part) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        line[name] = json!(latency.quantile_us(part));
    }
}

/// A measured line for people.
fn brief(line: &Value) -> String {
    let mut text = format!("round {} {}", line["round"], line["workload"].as_str().unwrap_or_default());
    for key in ["payload_bytes", "subscribers", "connections", "window"] {
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
    let (count, cpu) = (number("count").max(1.0), number("server_cpu_s"));
    text += &format!(": {:.0}/s, server CPU {:.3} s/M", number("per_s"), cpu / count * 1e6);
    text += &format!(", client {:.2} cores", number("client_cpu_s") / number("seconds").max(1e-9));
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
