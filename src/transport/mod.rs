//! WebSocket, QUIC and TLS: they move frames and decide nothing.

pub(crate) mod encode;
pub(crate) mod quic;
mod timer;
pub(crate) mod tls;
pub(crate) mod websocket;

use std::time::Duration;

/// Reads, and writes, of one poll before other connections get their turn.
const ROUNDS: usize = 4;

/// Bytes read from a connection at a time.
const READ_BYTES: usize = 64 << 10;

/// How soon to look again whether the commit queue has room.
const QUEUE_RETRY: Duration = Duration::from_millis(2);

/// How soon to look again whether long messages may go on: many may wait, and the server makes room every 2 s.
const MEMORY_RETRY: Duration = Duration::from_millis(50);

/// How long each step of the end of a session may take: to send its last frames, and to see that the peer has them.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
