//! What a run ran on.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::histogram::Histogram;

/// The machine, the toolchain and the sources, as a raw line.
pub(crate) fn environment(data: &Path) -> Result<Value, String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (sync_p50_us, sync_p99_us) = sync_us(data)?;
    Ok(json!({
        "line": "environment",
        "command": command(),
        "started": output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        "commit": output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]),
        "rustc": output("rustc", &["--version"]),
        "kernel": kernel.trim(),
        "cpu": model.map(|(_, model)| model.trim()),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_mib": memory_kib.and_then(|kib| kib.parse::<u64>().ok()).map(|kib| kib / 1024),
        "filesystem": output("stat", &["-f", "-c", "%T", &data.to_string_lossy()]),
        "load": fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next(),
        "fdatasync_p50_us": sync_p50_us,
        "fdatasync_p99_us": sync_p99_us,
    }))
}

/// How this run was started; where programs lie is this machine's business.
fn command() -> String {
    let words = std::env::args().skip(1).scan(String::new(), |flag, word| {
        let shown = match flag.as_str() {
            "--peer-bin" => word.split_once('=').map_or("", |(name, _)| name).to_owned() + "=...",
            "--data" | "--out" => "...".to_owned(),
            _ => word.clone(),
        };
        *flag = word;
        Some(shown)
    });
    format!("roomlog-compare {}", words.collect::<Vec<_>>().join(" "))
}

/// p50 and p99 of fdatasync after each 142 bytes, on a file that grows.
fn sync_us(data: &Path) -> Result<(f64, f64), String> {
    let world = |error: std::io::Error| format!("{}: {error}", data.display());
    fs::create_dir_all(data).map_err(world)?;
    let path = data.join("fdatasync");
    let mut file = File::create(&path).map_err(world)?;
    let mut times = Histogram::new();
    for _ in 0..1000 {
        file.write_all(&[b'x'; 142]).map_err(world)?;
        let start = Instant::now();
        file.sync_data().map_err(world)?;
        times.add(start.elapsed().as_nanos() as u64);
    }
    fs::remove_file(&path).map_err(world)?;
    let quantile = |part| times.quantile_us(part).expect("there are 1000 values");
    Ok((quantile(0.5), quantile(0.99)))
}

/// What a program says, or nothing.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
