//! Directories that have grown: the same rates beside a small one, the time of a restart, and clients that open rooms.
//!
//! A directory is filled once, and serves all parts of its size.

use std::path::Path;

use serde_json::{Value, json};

use crate::line::Lines;
use crate::load::{Times, durable, fanout, fill, opening};
use crate::measured::{acks_line, fanout_line, quantiles};
use crate::peers::{Peer, Role, Server, Stop};
use crate::process;
use crate::random::Random;
use crate::results::{Figure, figure};

/// Rooms over which a history is spread: so many that the newest records of most of them are in volumes, and not in
/// what the journal still holds.
const HISTORY_ROOMS: u32 = 10_000;
/// A history consists of conversations: so many records to one room, then as many to another.
const HISTORY_BURST: u32 = 32;
const HISTORY_PAYLOAD_BYTES: usize = 1024;
/// What a room has in a directory of many rooms.
const ROOM_PAYLOAD_BYTES: usize = 128;
/// Every directory, the small one too, has this behind it before anything is measured: journal files begin short, and
/// making longer ones is not what is compared.
const BEHIND: fill::Plan = fill::Plan { rooms: 1, records: 64 << 10, payload_bytes: 1024, burst: 0 };

/// The loads of W1 and W3 that are measured.
const SUBSCRIBERS: u32 = 100;
const WINDOW: u64 = 2000;
const RATE: f64 = 100_000.0;
const ACKS: durable::Shape = durable::Shape { connections: 16, window: 256, payload_bytes: 128 };

/// What a directory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    /// So many rooms with a record each.
    Rooms(u32),
    /// So much history, in payloads.
    HistoryMib(u64),
}

impl Size {
    pub(crate) const QUICK: &[Self] = &[Self::Rooms(1_000), Self::Rooms(100_000), Self::HistoryMib(1 << 10)];
    /// One room beside one room tells how far two equal servers are apart.
    pub(crate) const FULL: &[Self] = &[
        Self::Rooms(1),
        Self::Rooms(1_000),
        Self::Rooms(100_000),
        Self::Rooms(1_000_000),
        Self::HistoryMib(1 << 10),
        Self::HistoryMib(4 << 10),
        Self::HistoryMib(16 << 10),
    ];

    /// From `1000` for rooms, or `4GiB` for history.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix("GiB") {
            Some(gib) => {
                gib.parse().ok().filter(|gib| (1..1 << 20).contains(gib)).map(|gib: u64| Self::HistoryMib(gib << 10))
            }
            None => text.parse().ok().filter(|rooms| *rooms > 0).map(Self::Rooms),
        }
    }

    /// Workload and shape, as in raw lines.
    fn name(self, workload: &str) -> Value {
        match self {
            Self::Rooms(rooms) => json!({ "workload": workload, "rooms": rooms }),
            Self::HistoryMib(mib) => json!({ "workload": workload, "history_mib": mib }),
        }
    }

    fn plan(self) -> fill::Plan {
        match self {
            Self::Rooms(rooms) => {
                fill::Plan { rooms, records: u64::from(rooms), payload_bytes: ROOM_PAYLOAD_BYTES, burst: 0 }
            }
            Self::HistoryMib(mib) => fill::Plan {
                rooms: HISTORY_ROOMS,
                records: (mib << 20) / HISTORY_PAYLOAD_BYTES as u64,
                payload_bytes: HISTORY_PAYLOAD_BYTES,
                burst: HISTORY_BURST,
            },
        }
    }

    /// What the disk must have free: the history as if nothing of it could be compressed, a journal that waits for the
    /// builder, and what the loads write.
    fn disk_mib(self) -> u64 {
        const LOADS_MIB: u64 = 6 << 10;
        match self {
            Self::Rooms(rooms) => LOADS_MIB + u64::from(rooms) / 1024,
            Self::HistoryMib(mib) => LOADS_MIB + mib * 11 / 10,
        }
    }
}

/// What is measured, and how often.
pub(crate) struct Growth<'a> {
    pub(crate) peer: &'static Peer,
    pub(crate) program: &'a Path,
    /// This port and the next one.
    pub(crate) port: u16,
    pub(crate) data: &'a Path,
    pub(crate) times: Times,
    /// Whether rates and restarts are measured (W8).
    pub(crate) rates: bool,
    pub(crate) pairs: u64,
    pub(crate) restarts: u64,
    /// Of which size rooms are opened (W9), by whom, and how often.
    pub(crate) opening: Option<(Size, opening::Shape, u64)>,
}

/// Takes raw lines: what they are of, the server's command, and what was measured.
pub(crate) type Emit<'a> = dyn FnMut(&Value, &str, Vec<Value>) -> Result<(), String> + 'a;

/// A server on a directory that was filled.
struct Filled {
    server: Server,
    /// Records of each room, from room 1 on.
    next: Vec<u32>,
}

impl Growth<'_> {
    /// Everything of one size. What goes wrong is a line, too; an error is one of writing lines.
    pub(crate) fn measure(&self, size: Size, emit: &mut Emit<'_>) -> Result<(), String> {
        let opening = self.opening.filter(|(of, ..)| *of == size);
        let opening = opening.map(|(_, shape, repeats)| {
            let mut name = size.name("W9");
            name["clients"] = json!(shape.clients);
            (name, shape, repeats)
        });
        let rates = self.rates.then(|| size.name("W8"));
        if rates.is_none() && opening.is_none() {
            return Ok(());
        }
        let (mut filled, line) = match self.fill(size) {
            Ok(filled) => filled,
            Err(error) => {
                for name in rates.iter().chain(opening.iter().map(|(name, ..)| name)) {
                    emit(name, "", failed(&error))?;
                }
                return Ok(());
            }
        };
        let command = filled.server.command.clone();
        if let Some(name) = rates {
            emit(&name, &command, vec![line])?;
            for stop in [Stop::Ask, Stop::Kill] {
                for number in 0..self.restarts {
                    let line = restart(&mut filled, stop, number);
                    emit(&name, &command, filled.or_failed(line))?;
                }
            }
            for number in 0..self.pairs {
                let lines = self.pair(&filled.server, number);
                emit(&name, &command, filled.or_failed(lines))?;
            }
        }
        if let Some((name, shape, repeats)) = opening {
            for number in 0..repeats {
                let line = open_rooms(&mut filled, shape, number);
                emit(&name, &command, filled.or_failed(line))?;
            }
        }
        Ok(())
    }

    /// A server on a directory of this size, at rest, and what it took.
    fn fill(&self, size: Size) -> Result<(Filled, Value), String> {
        let free = rustix::fs::statvfs(self.data).map_err(|error| format!("{}: {error}", self.data.display()))?;
        let free_mib = (free.f_bavail * free.f_frsize) >> 20;
        if free_mib < size.disk_mib() {
            return Err(format!("left out: {free_mib} MiB of the disk are free, it may take {}", size.disk_mib()));
        }
        let directory = self.data.join("growth-large");
        let server = Server::start(self.peer, self.program, self.port, Role::Kept, directory)?;
        let mut filled = Filled { server, next: Vec::new() };
        let (target, plan) = (filled.server.target(), size.plan());
        println!("filling: {size:?}");
        let work = |filled: &mut Filled| {
            let before = process::cpu_s(target.pid)?;
            let seconds = fill::run(&target, plan, &mut filled.next)?;
            fill::run(&target, BEHIND, &mut filled.next)?;
            process::settle(&[target.pid])?;
            Ok(vec![json!({
                "part": "filling",
                "per_s": plan.records as f64 / seconds,
                "count": plan.records + BEHIND.records,
                "seconds": seconds,
                "server_cpu_s": process::cpu_s(target.pid)? - before,
                "rss_kib": process::rss_kib(target.pid)?,
                "disk_mib": filled.server.disk_mib(),
                "round": 0,
            })])
        };
        let mut line = work(&mut filled).map_err(|error: String| filled.server.says(&error))?;
        Ok((filled, line.remove(0)))
    }

    /// Each load on the grown directory and on a small one, now this first, now that.
    fn pair(&self, large: &Server, number: u64) -> Result<Vec<Value>, String> {
        // A new one for each pair: the loads would make it a large one.
        let directory = self.data.join("growth-small");
        let small = Server::start(self.peer, self.program, self.port + 1, Role::Kept, directory)?;
        fill::run(&small.target(), BEHIND, &mut Vec::new())?;
        let targets = [large.target(), small.target()];
        let mut lines = Vec::new();
        for part in ["saturation", "fixed", "acks"] {
            let mut of = [Value::Null, Value::Null];
            for turn in [number % 2, (number + 1) % 2] {
                process::settle(&targets.map(|target| target.pid))?;
                let target = targets[turn as usize];
                of[turn as usize] = if part == "acks" {
                    // Longer, so that several volumes are built meanwhile: with one the ratio would be by whose it is.
                    let times = Times { measured: 2 * self.times.measured, ..self.times };
                    acks_line(part, &durable::run(&target, ACKS, times)?, &target)?
                } else {
                    let mut load = fanout::Fanout::open(target, fanout::Shape::one_room(SUBSCRIBERS, 128))?;
                    let rate = (part == "fixed").then_some(RATE);
                    let mode = rate.map_or(fanout::Mode::Window(WINDOW), fanout::Mode::Rate);
                    fanout_line(part, rate, &load.run(mode, self.times)?, &target)?
                };
            }
            let [large, small] = of;
            lines.push(beside(large, small, number));
        }
        Ok(lines)
    }
}

impl Filled {
    /// Lines, or one that tells what went wrong and what the server said of it.
    fn or_failed(&self, lines: Result<Vec<Value>, String>) -> Vec<Value> {
        lines.unwrap_or_else(|error| failed(&self.server.says(&error)))
    }
}

fn failed(error: &str) -> Vec<Value> {
    vec![json!({ "failed": error, "round": 0 })]
}

/// The line of the grown directory, with that of the small one in it, and the ratios of the two.
fn beside(mut large: Value, small: Value, number: u64) -> Value {
    // At a fixed rate the rate is no figure, and at saturation nothing is timed.
    let rate = (large["part"] != "fixed").then_some(("rate_ratio", Figure::Field("per_s")));
    let figures = [
        ("p50_ratio", Figure::Field("p50_us")),
        ("p99_ratio", Figure::Field("p99_us")),
        ("cpu_ratio", Figure::CpuPerMillion),
    ];
    for (key, what) in rate.into_iter().chain(figures) {
        let base = figure(&small, what).filter(|base| *base > 0.0);
        if let Some((value, base)) = figure(&large, what).zip(base) {
            large[key] = json!(value / base);
        }
    }
    large["small"] = small;
    large["round"] = json!(number);
    large
}

/// From the start of the process until it has answered a hello, with a warm page cache.
fn restart(filled: &mut Filled, stop: Stop, number: u64) -> Result<Vec<Value>, String> {
    if stop == Stop::Kill {
        // It ends in the middle of something: with a journal that no volume has, and no mark of a clean end.
        fill::run(&filled.server.target(), BEHIND, &mut filled.next)?;
    }
    let begun = filled.server.restart(stop)?;
    let target = filled.server.target();
    Lines::new()?.open(&target)?;
    let restart_ms = begun.elapsed().as_secs_f64() * 1e3;
    process::settle(&[target.pid])?;
    Ok(vec![json!({
        "part": if stop == Stop::Ask { "restart" } else { "restart after kill -9" },
        "restart_ms": restart_ms,
        "rss_kib": process::rss_kib(target.pid)?,
        "round": number,
    })])
}

/// Clients on a server that has just been started, and has nothing in the page cache.
fn open_rooms(filled: &mut Filled, shape: opening::Shape, number: u64) -> Result<Vec<Value>, String> {
    filled.server.restart_cold()?;
    let target = filled.server.target();
    process::settle(&[target.pid])?;
    let measured = opening::run(&target, shape, &filled.next, &mut Random::new(number + 1))?;
    let mut line = json!({
        "part": "opening",
        // Not as the rate of a part: who comes does not care how long the queue is, and its time is what is asked for.
        "clients_per_s": shape.clients_per_s,
        "per_s": shape.clients as f64 / measured.spent.seconds,
        // What CPU is counted for.
        "count": measured.records,
        "seconds": measured.spent.seconds,
        "server_cpu_s": measured.spent.server_cpu_s,
        "client_cpu_s": measured.spent.client_cpu_s,
        "lost": measured.lost,
        "duplicated": measured.duplicated,
        "disordered": measured.disordered,
        "foreign": measured.foreign,
        "rooms_each": shape.rooms_each,
        "last": shape.last,
        "rss_kib": process::rss_kib(target.pid)?,
        "rss_peak_mib": process::rss_peak_kib(target.pid)? as f64 / 1024.0,
        "round": number,
    });
    quantiles(&measured.latency, &mut line);
    Ok(vec![line])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        assert_eq!(Size::parse("1000"), Some(Size::Rooms(1000)));
        assert_eq!(Size::parse("16GiB"), Some(Size::HistoryMib(16 << 10)));
        for text in ["", "0", "0GiB", "GiB", "-1", "1MiB"] {
            assert_eq!(Size::parse(text), None, "{text}");
        }
    }

    #[test]
    fn ratios_are_of_the_grown_directory_to_the_small_one_and_only_of_figures() {
        let line = |part: &str, per_s: f64, cpu: f64, lost: u64| json!({ "part": part, "per_s": per_s, "count": 1e6, "server_cpu_s": cpu, "p99_us": 1e6 / per_s, "lost": lost });
        let pair = beside(line("acks", 8.0, 3.0, 0), line("acks", 10.0, 2.0, 0), 7);
        assert_eq!((&pair["rate_ratio"], &pair["cpu_ratio"]), (&json!(0.8), &json!(1.5)));
        assert_eq!((&pair["p99_ratio"], &pair["round"]), (&json!(1.25), &json!(7)));
        assert_eq!(pair["small"]["per_s"], json!(10.0));
        let fixed = beside(line("fixed", 8.0, 3.0, 0), line("fixed", 10.0, 2.0, 0), 0);
        assert!(fixed["rate_ratio"].is_null(), "a rate that is given is no figure");
        let lost = beside(line("acks", 8.0, 3.0, 0), line("acks", 10.0, 2.0, 1), 0);
        assert!(lost["rate_ratio"].is_null(), "where something was lost there is no figure");
    }

    #[test]
    fn a_size_that_the_disk_has_no_room_for_is_a_line_that_says_so() {
        let growth = Growth {
            peer: Peer::named("limit").expect("there is a limit"),
            program: Path::new("nothing"),
            port: 0,
            data: &std::env::temp_dir(),
            times: Times { warm_up: std::time::Duration::ZERO, measured: std::time::Duration::ZERO },
            rates: true,
            pairs: 1,
            restarts: 1,
            opening: None,
        };
        let mut lines = Vec::new();
        let size = Size::HistoryMib(1 << 40);
        let emitted = growth.measure(size, &mut |name, _, mut more| {
            lines.extend(more.drain(..).map(|line| (name.clone(), line)));
            Ok(())
        });
        assert_eq!(emitted, Ok(()));
        let [(name, line)] = &lines[..] else { panic!("one line, not {lines:?}") };
        assert_eq!(name["history_mib"], json!(1_u64 << 40));
        assert!(line["failed"].as_str().is_some_and(|why| why.starts_with("left out: ")), "{line}");
    }
}
