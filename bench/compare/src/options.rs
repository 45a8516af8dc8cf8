//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::growth::Size;
use crate::load::stalled::Asked;
use crate::peers::PEERS;

pub(crate) const USAGE: &str = "\
roomlog-compare run [--quick | --full] [OPTIONS]   measures and appends raw lines
roomlog-compare report          makes docs/performance.md of all raw lines
roomlog-compare goals FILE     what a file of raw lines says of the goals
roomlog-compare flame TITLE FILE   a flame graph (SVG) of what `perf script` has printed
roomlog-compare limit --port P [--log FILE] [--no-sync]   the limit program, started by `run`
roomlog-compare stalled --port P --pid N [OPTIONS]   what subscribers that do not read cost those who do, on a server of
                          Roomlog that runs: --readers, --stalled, --rate (publishes/s), --seconds, --pairs, --ratio
                          (of p99, at most), --kib (for each that does not read, at most)

Options of run:
  --workloads W1,W3     which workloads
  --peers limit,redis   which peers
  --rounds N            rounds, each with another order of the peers
  --seconds S           how long each part is measured
  --peer-bin NAME=PATH  the program of a peer; may be given again
  --sizes 1000,4GiB     of W8 and W9: so many rooms, so much history
  --pairs N             of W8: pairs of each size
  --data DIR            where the servers keep their data: a real disk
  --out FILE            where the raw lines go
  --port P              the first port to use";

/// What can be measured, in the order in which it is.
pub(crate) const WORKLOADS: &[&str] = &["W1", "W3", "W5", "W2", "W4", "W7", "W8", "W9"];

pub(crate) struct Options {
    /// All cells; otherwise some are left out.
    pub(crate) full: bool,
    pub(crate) workloads: Vec<String>,
    pub(crate) peers: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    pub(crate) programs: Vec<(String, PathBuf)>,
    pub(crate) sizes: Vec<Size>,
    pub(crate) pairs: u64,
    pub(crate) data: PathBuf,
    pub(crate) out: Option<PathBuf>,
    pub(crate) port: u16,
}

/// Options of `run`.
pub(crate) fn run(arguments: &[String]) -> Result<Options, String> {
    let full = arguments.iter().any(|argument| argument == "--full");
    let own = std::env::current_exe().map_err(|error| format!("this program's place: {error}"))?;
    let mut options = Options {
        full,
        workloads: WORKLOADS.iter().map(|name| (*name).to_owned()).collect(),
        peers: PEERS.iter().map(|peer| peer.name.to_owned()).collect(),
        rounds: if full { 5 } else { 2 },
        warm_up: Duration::from_millis(if full { 500 } else { 200 }),
        measured: Duration::from_millis(if full { 2000 } else { 500 }),
        programs: Vec::new(),
        sizes: if full { Size::FULL } else { Size::QUICK }.to_vec(),
        pairs: if full { 10 } else { 3 },
        data: own.with_file_name("compare-data"),
        out: None,
        port: 17400,
    };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        if matches!(flag.as_str(), "--quick" | "--full") {
            continue;
        }
        let value = rest.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let list = || value.split(',').map(str::to_owned).collect();
        match flag.as_str() {
            "--workloads" => options.workloads = list(),
            "--peers" => options.peers = list(),
            "--rounds" => options.rounds = number(flag, value)?,
            "--seconds" => options.measured = Duration::from_secs_f64(number(flag, value)?),
            "--peer-bin" => {
                let (name, path) = value.split_once('=').ok_or("--peer-bin NAME=PATH")?;
                options.programs.push((name.to_owned(), path.into()));
            }
            "--sizes" => {
                let sizes = value.split(',').map(Size::parse).collect::<Option<_>>();
                options.sizes = sizes.ok_or_else(|| format!("--sizes: {value} is no list of rooms and GiB"))?;
            }
            "--pairs" => options.pairs = number(flag, value)?,
            "--data" => options.data = value.into(),
            "--out" => options.out = Some(value.into()),
            "--port" => options.port = number(flag, value)?,
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    if options.rounds == 0 || options.measured.is_zero() {
        return Err("at least one round, and some time".to_owned());
    }
    Ok(options)
}

/// Options of `limit`: port, file, sync.
pub(crate) fn limit(arguments: &[String]) -> Result<(u16, Option<PathBuf>, bool), String> {
    let (mut port, mut log, mut sync) = (None, None, true);
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        match flag.as_str() {
            "--no-sync" => sync = false,
            "--port" => port = Some(number(flag, rest.next().ok_or("--port needs a value")?)?),
            "--log" => log = Some(rest.next().ok_or("--log needs a value")?.into()),
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    Ok((port.ok_or("--port is needed")?, log, sync))
}

/// Options of `stalled`.
pub(crate) fn stalled(arguments: &[String]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--port" => asked.port = number(flag, value)?,
            "--pid" => asked.pid = number(flag, value)?,
            "--readers" => asked.readers = number(flag, value)?,
            "--stalled" => asked.stalled = number(flag, value)?,
            "--rate" => asked.rate = number(flag, value)?,
            "--seconds" => asked.seconds = number(flag, value)?,
            "--pairs" => asked.pairs = number(flag, value)?,
            "--ratio" => asked.ratio_max = number(flag, value)?,
            "--kib" => asked.kib_max = number(flag, value)?,
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    if asked.port == 0 || asked.pid == 0 || asked.pairs == 0 || asked.stalled == 0 {
        return Err("--port and --pid of a server, at least one pair and one that stalls".to_owned());
    }
    Ok(asked)
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{flag}: {value} is no number for it"))
}
