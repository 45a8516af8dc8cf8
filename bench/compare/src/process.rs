//! CPU and memory of processes, from /proc.

use std::fs;
use std::time::Duration;

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
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).ok_or_else(|| format!("{path} has no VmRSS"))
}

/// CPU of this process, the load generator.
pub(crate) fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
