//! Connections that have joined a room and do nothing.

use std::time::Duration;

use super::Span;
use crate::line::Lines;
use crate::peers::Target;
use crate::process;
use crate::wire::Start;

/// Rooms over which the connections are spread.
const ROOMS: usize = 1000;

pub(crate) struct Measured {
    pub(crate) kib_per_connection: f64,
    pub(crate) connect_s: f64,
    /// Of the second in which nothing happened.
    pub(crate) idle_cores: f64,
}

pub(crate) fn run(target: &Target, connections: usize) -> Result<Measured, String> {
    let mut lines = Lines::new()?;
    // The first connection makes the server load what it needs once.
    lines.open(target)?;
    settle();
    let before = process::rss_kib(target.pid)?;
    let span = Span::begin(target.pid)?;
    for index in 0..connections {
        let number = lines.open(target)?;
        lines.join(number, (index % ROOMS) as u32, Start::New)?;
    }
    let connect_s = span.end()?.seconds;
    settle();
    let span = Span::begin(target.pid)?;
    std::thread::sleep(Duration::from_secs(1));
    let idle = span.end()?;
    let after = process::rss_kib(target.pid)?;
    Ok(Measured {
        kib_per_connection: after.saturating_sub(before) as f64 / connections as f64,
        connect_s,
        idle_cores: idle.server_cpu_s / idle.seconds,
    })
}

/// What is counted is a server at rest, not one that is still tidying up.
fn settle() {
    std::thread::sleep(Duration::from_secs(1));
}
