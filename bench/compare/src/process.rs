//! CPU and memory of processes, from /proc.

use std::fs;
use std::time::{Duration, Instant};

/// Ticks of utime and stime in a second; the kernel tells user programs 100 everywhere.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time that a process has had, all threads.
pub(crate) fn cpu_s(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // The name may hold blanks and parentheses; what follows it does not.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).ok_or_else(|| format!("{path} has another form"))?;
    Ok((user + system) / TICKS_PER_SECOND)
}

/// Resident memory.
pub(crate) fn rss_kib(pid: u32) -> Result<u64, String> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory that it has had since it was started.
pub(crate) fn rss_peak_kib(pid: u32) -> Result<u64, String> {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: u32, name: &str) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).ok_or_else(|| format!("{path} has no {name}"))
}

/// Waits until servers are at rest: they take no time of the cores, and no thread of theirs waits for the disk. What
/// one of them tidies up must not be the time of what is measured next.
pub(crate) fn settle(pids: &[u32]) -> Result<(), String> {
    const LOOK: Duration = Duration::from_millis(150);
    const QUIET_LOOKS: usize = 3;
    const PATIENCE: Duration = Duration::from_secs(300);
    let cpu = || pids.iter().map(|pid| cpu_s(*pid)).sum::<Result<f64, _>>();
    let (begun, mut before, mut quiet) = (Instant::now(), cpu()?, 0);
    while quiet < QUIET_LOOKS {
        if begun.elapsed() > PATIENCE {
            return Err(format!("the servers were not at rest after {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(LOOK);
        let now = cpu()?;
        // One tick may be a timer's.
        let idle = now - before < 1.5 / TICKS_PER_SECOND && !pids.iter().any(|pid| waits_for_the_disk(*pid));
        quiet = if idle { quiet + 1 } else { 0 };
        before = now;
    }
    Ok(())
}

fn waits_for_the_disk(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|fields| fields.trim_start().starts_with('D'))
    })
}

/// CPU of this process, the load generator.
pub(crate) fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
