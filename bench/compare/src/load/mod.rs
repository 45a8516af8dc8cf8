//! The load: knows nothing of protocols, and is the same for every peer.

pub(crate) mod durable;
pub(crate) mod fanout;
pub(crate) mod fill;
pub(crate) mod idle;
pub(crate) mod opening;
pub(crate) mod replay;
pub(crate) mod stalled;

use std::time::{Duration, Instant};

use crate::process;

/// How long a part of a load takes.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// CPU over an interval.
pub(crate) struct Span {
    start: Instant,
    server_s: f64,
    client: Duration,
    pid: u32,
}

pub(crate) struct Spent {
    pub(crate) seconds: f64,
    pub(crate) server_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
}

impl Span {
    pub(crate) fn begin(pid: u32) -> Result<Self, String> {
        Ok(Self { start: Instant::now(), server_s: process::cpu_s(pid)?, client: process::own_cpu(), pid })
    }

    pub(crate) fn end(&self) -> Result<Spent, String> {
        Ok(Spent {
            seconds: self.start.elapsed().as_secs_f64(),
            server_cpu_s: process::cpu_s(self.pid)? - self.server_s,
            client_cpu_s: (process::own_cpu() - self.client).as_secs_f64(),
        })
    }
}
