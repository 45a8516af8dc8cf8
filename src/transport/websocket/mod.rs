//! A session over one WebSocket: a task that reads and decides, and a way to write that any thread may take.

mod connection;
mod fanout;
mod guard;
mod out;
mod peer;

pub(crate) use connection::{Connection, Socket};
pub(crate) use fanout::Fanout;
#[cfg(feature = "fuzzing")]
pub(crate) use guard::fuzz;
#[cfg(all(test, feature = "client"))]
pub(crate) use guard::{Event, Guard, Violation};
#[cfg(all(test, feature = "client"))]
pub(crate) use out::{Out, Pumped};

/// The HTTP half of the handshake; what comes out of it goes through our own guard.
pub(crate) use fastwebsockets::upgrade::{UpgradeFut as Upgrade, upgrade};
