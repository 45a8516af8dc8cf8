//! One binary for all integration tests, so that the library is linked once.

mod architecture;
#[cfg(feature = "server")]
mod attacks;
#[cfg(feature = "server")]
mod connections;
#[cfg(feature = "server")]
mod defaults;
#[cfg(feature = "fuzzing")]
mod fuzz;
#[cfg(feature = "server")]
mod handover;
mod policy;
#[cfg(feature = "cli")]
mod processes;
#[cfg(feature = "server")]
mod quic;
#[cfg(feature = "server")]
mod raw;
#[cfg(all(feature = "server", feature = "client"))]
mod scenarios;
