//! `roomlog bench`: load for a server in another process, and what becomes of every record of it.
//!
//! The generator drives links of its own, with a few lines per connection instead of a whole client, so that it is
//! not what is measured. Every payload carries who sent it, its number and when: losses, duplicates and disorder are
//! counted, not assumed.

mod line;
mod load;
mod payload;
mod shared;
mod tally;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;

use self::payload::PAYLOAD_BYTES_MIN;
use self::shared::{Phase, Plan, Shared};
use self::tally::{Report, Tally};
use super::connection::{self, Connection};
use super::failure::Failure;
use super::output::{complain, say};
use crate::types::{Limits, RoomName};

#[derive(Args, Debug)]
#[command(after_help = "\
Run the server in a process of its own, best on other cores. Publishers have --window publishes under way each; without \
--rate they publish as fast as they are answered (saturation), with it the times at which records should be \
sent are fixed beforehand, and where the broker is why one is late, its delay counts from that time. Subscribers join before the first record, and each room is followed by \
all subscribers whose turn it is: with 4 rooms and 8 subscribers, 2 each.

What is printed counts the --duration behind --warmup; losses, duplicates and disorder count everything. The exit code \
is 1 if there were any.

Examples:
  roomlog bench --publishers 16 --window 16 --subscribers 0       # fsynced publishes
  roomlog bench --publishers 1 --subscribers 100 --rate 10000     # fan-out
  roomlog bench --url quic://127.0.0.1:7400 --insecure --rooms 8 --publishers 8 --subscribers 8
  roomlog bench --idle 10000 --duration 60s                       # then look at the server's memory")]
pub(super) struct Arguments {
    /// Connections that publish; 0 with --idle, otherwise 1 unless given
    #[arg(long, value_name = "N")]
    publishers: Option<usize>,
    /// Connections that subscribe; 0 with --idle, otherwise 1 unless given
    #[arg(long, value_name = "N")]
    subscribers: Option<usize>,
    /// Rooms, shared out among publishers and subscribers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    rooms: usize,
    /// Bytes of each payload
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = payload_bytes)]
    payload_bytes: usize,
    /// Records per second, all publishers together; without it, as fast as they are answered
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Publishes that one publisher has under way at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    window: usize,
    /// Records of one publish
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    batch: usize,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = connection::duration)]
    duration: Duration,
    /// How long to publish before measuring
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = connection::duration)]
    warmup: Duration,
    /// Connections that are welcomed and then say nothing, each with one room joined
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle: usize,
    /// What the rooms' names begin with; a random text unless given
    #[arg(long, value_name = "TEXT")]
    room_prefix: Option<String>,
    /// Threads of the generator
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    #[command(flatten)]
    connection: Connection,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it is a number from 1 on".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn payload_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (PAYLOAD_BYTES_MIN..=Limits::CEILINGS.payload_bytes).contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "it is a number from {PAYLOAD_BYTES_MIN}, for the sender, the number and the time, to {}",
            Limits::CEILINGS.payload_bytes
        )),
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let busy = usize::from(arguments.idle == 0);
    let publishers = arguments.publishers.unwrap_or(busy);
    let subscribers = arguments.subscribers.unwrap_or(busy);
    if publishers + subscribers + arguments.idle == 0 {
        return Err(Failure::Usage("without publishers, subscribers and idle connections there is no load".to_owned()));
    }
    let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let threads = threads.min(publishers + subscribers + arguments.idle);
    let prefix = match &arguments.room_prefix {
        Some(prefix) => prefix.clone(),
        None => {
            let random = getrandom::u32().map_err(|error| Failure::failed(format_args!("no randomness: {error}")))?;
            format!("bench-{random:08x}-")
        }
    };
    let name = |end: &dyn std::fmt::Display| {
        RoomName::new(&format!("{prefix}{end}")).map_err(|error| Failure::Usage(error.to_string()))
    };
    let rooms = (0..arguments.rooms).map(|index| name(&index)).collect::<Result<_, _>>()?;
    let plan = Plan {
        url: arguments.connection.url.clone(),
        options: arguments.connection.options(),
        rooms,
        idle_room: name(&"idle")?,
        publishers,
        subscribers,
        idle: arguments.idle,
        payload_bytes: arguments.payload_bytes,
        rate: arguments.rate,
        window: arguments.window,
        batch: arguments.batch,
        timeout: arguments.connection.timeout,
    };
    let shared = Arc::new(Shared::new(plan, threads));
    let workers: Vec<_> = (0..threads)
        .map(|index| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("bench-{index}"))
                .spawn(move || load::worker(&shared, index, threads))
                .map_err(|error| Failure::failed(format_args!("no thread: {error}")))
        })
        .collect::<Result<_, _>>()?;

    let report = direct(&shared, arguments.warmup, arguments.duration);
    shared.enter(Phase::Over);
    let mut total = Tally::new();
    let mut faults = Vec::new();
    for worker in workers {
        match worker.join() {
            Ok(tally) => total.add(&tally),
            Err(_) => faults.push("a thread of the generator panicked".to_owned()),
        }
    }
    faults.extend(shared.fault());
    if let Some(fault) = faults.into_iter().next() {
        return Err(Failure::Failed(fault));
    }
    let Some((window, cpu)) = report else {
        return Err(Failure::failed("the run was not finished"));
    };
    let plan = &shared.plan;
    if plan.publishers + plan.subscribers == 0 {
        return Ok(());
    }
    let report = Report { tally: &total, window, cpu, expected: shared.expected(&total) };
    say(&report.to_string());
    if report.is_clean() { Ok(()) } else { Err(Failure::failed("records were lost, doubled or out of order")) }
}

/// Leads the workers through the phases; what was measured, and the processor time that the generator took.
fn direct(shared: &Shared, warmup: Duration, duration: Duration) -> Option<(Duration, Option<Duration>)> {
    if !shared.wait_until_ready() {
        return None;
    }
    let plan = &shared.plan;
    if plan.idle > 0 {
        complain(&format!("{} idle connections are open", plan.idle));
    }
    shared.enter(Phase::Publishing);
    if !shared.sleep(warmup) {
        return None;
    }
    let (began, cpu_before) = (Instant::now(), cpu_time());
    shared.measuring.store(true, Ordering::Release);
    let whole = shared.sleep(duration);
    shared.measuring.store(false, Ordering::Release);
    let (window, cpu) = (began.elapsed(), cpu_time());
    shared.enter(Phase::Draining);
    if !whole || !shared.wait_until_drained() {
        return None;
    }
    Some((window, cpu.zip(cpu_before).map(|(after, before)| after.saturating_sub(before))))
}

/// The processor time of this process so far, where the system tells it.
fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name in brackets; user and system time are the 12th and 13th field there, in 1/100 s.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}
