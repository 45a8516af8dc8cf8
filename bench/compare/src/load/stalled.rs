//! What subscribers that do not read cost those who do: pairs of runs of one room at one rate, in turns with them and
//! without. Then they read, and must find everything.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Times;
use super::fanout::{Fanout, Measured, Mode, Shape};
use crate::peers::{Peer, Target};
use crate::process;

const PAYLOAD_BYTES: usize = 128;
/// Of each run; longer than it takes to fill the buffers of the sockets of those who do not read.
const WARM_UP: Duration = Duration::from_secs(5);
/// How long it is looked whether the machine keeps a rate at all.
const TRIAL: Duration = Duration::from_secs(4);
/// A rate of which less is delivered in time is none, and what would be measured is the queue.
const KEPT: f64 = 0.97;

/// What is to be run, and what may come out.
pub(crate) struct Asked {
    pub(crate) port: u16,
    pub(crate) pid: u32,
    pub(crate) readers: u32,
    pub(crate) stalled: u32,
    /// Publishes per second.
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    pub(crate) pairs: usize,
    /// Of the p99 with those who do not read to that without, in the median of the pairs.
    pub(crate) ratio_max: f64,
    /// Memory of the server for each that does not read.
    pub(crate) kib_max: f64,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            port: 0,
            pid: 0,
            readers: 9000,
            stalled: 1000,
            rate: 200.0,
            seconds: 60.0,
            pairs: 3,
            ratio_max: 1.5,
            kib_max: 64.0,
        }
    }
}

/// Runs all pairs, tells what was seen, and what of it may not be.
pub(crate) fn run(asked: &Asked) -> Result<(), String> {
    let peer = Peer::named("roomlog-ws").ok_or("there is no such peer")?;
    let target = Target { address: SocketAddr::from((Ipv4Addr::LOCALHOST, asked.port)), pid: asked.pid, peer };
    let mut load = Fanout::open(target, Shape::one_room(asked.readers, PAYLOAD_BYTES))?;
    let readers = f64::from(asked.readers);
    let at = |load: &mut Fanout, rate: f64, measured: Duration| {
        load.run(Mode::Rate(rate * readers), Times { warm_up: WARM_UP, measured })
    };

    let mut rate = asked.rate;
    loop {
        let trial = at(&mut load, rate, TRIAL)?;
        tell("trial", rate, &trial);
        if trial.deliveries_per_s >= KEPT * rate * readers {
            break;
        }
        rate /= 2.0;
        println!("this machine does not keep that rate; on with {rate} publishes/s");
        if rate < 1.0 {
            return Err("not even one publish in a second".to_owned());
        }
    }

    let measured = Duration::from_secs_f64(asked.seconds);
    let (mut ratios, mut costs, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..asked.pairs {
        let mut p99 = [0.0; 2];
        // Who is first has the colder machine: in turns.
        for stalls in [pair % 2 == 1, pair % 2 == 0] {
            let before = process::rss_kib(asked.pid)?;
            for _ in 0..if stalls { asked.stalled } else { 0 } {
                load.stall()?;
            }
            let part = at(&mut load, rate, measured)?;
            tell(if stalls { "with" } else { "without" }, rate, &part);
            if part.lost + part.duplicated + part.disordered + part.foreign > 0 {
                wrong.push(format!(
                    "those who read: {} lost, {} doubled, {} out of order, {} foreign",
                    part.lost, part.duplicated, part.disordered, part.foreign
                ));
            }
            p99[usize::from(stalls)] = part.latency.quantile_us(0.99).ok_or("nothing was measured")?;
            if stalls {
                let kib = process::rss_kib(asked.pid)?.saturating_sub(before) as f64 / f64::from(asked.stalled);
                let (had, lost, odd, seconds) = load.revive()?;
                println!(
                    "  {} that did not read: {kib:.1} KiB of the server for each; then {had} deliveries in \
                     {seconds:.1} s, {lost} lost, {odd} doubled, out of order or foreign",
                    asked.stalled
                );
                if lost + odd > 0 || had == 0 {
                    wrong.push(format!("those who did not read: {had} deliveries, {lost} lost, {odd} odd"));
                }
                costs.push(kib);
                load.unstall();
            }
        }
        ratios.push(p99[1] / p99[0]);
        println!("pair {}: p99 {:.2} of that without", pair + 1, p99[1] / p99[0]);
    }
    let (ratio, kib) = (median(&mut ratios), costs.iter().fold(0.0_f64, |most, kib| most.max(*kib)));
    println!(
        "{} readers, {} that did not read, {rate} of {} publishes/s: p99 {ratio:.2} of that without in the median of \
         {} pairs [{:.2} – {:.2}]; at most {kib:.1} KiB for each",
        asked.readers,
        asked.stalled,
        asked.rate,
        asked.pairs,
        ratios[0],
        ratios[ratios.len() - 1]
    );
    if ratio > asked.ratio_max {
        wrong.push(format!("p99 {ratio:.2} of that without, more than {}", asked.ratio_max));
    }
    if kib > asked.kib_max {
        wrong.push(format!("{kib:.1} KiB for each that does not read, more than {}", asked.kib_max));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn tell(what: &str, rate: f64, part: &Measured) {
    let ms = |part_of: f64| part.latency.quantile_us(part_of).unwrap_or_default() / 1e3;
    println!(
        "{what}: {rate} publishes/s, {:.0} deliveries/s, p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms; server {:.2} cores, \
         generator {:.2}",
        part.deliveries_per_s,
        ms(0.5),
        ms(0.99),
        ms(0.999),
        part.server_cpu_s / part.seconds,
        part.client_cpu_s / part.seconds
    );
}

/// Sorts.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_pairs_is_in_their_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
