//! Whole processes: the real program on ports of its own, stopped by signals, looked at from outside.

mod reader;
mod server;

mod damage;
mod kills;
mod metrics;
mod real_input;
#[cfg(feature = "fault-injection")]
mod repeats;
mod retention;
mod stalls;
mod stops;
