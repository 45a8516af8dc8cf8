//! Whole processes: the real program on ports of its own, stopped by signals, looked at from outside.

mod reader;
mod server;

mod kills;
#[cfg(feature = "fault-injection")]
mod repeats;
