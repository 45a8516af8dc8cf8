//! WebSocket, QUIC and TLS: they move frames and decide nothing.

pub(crate) mod encode;
pub(crate) mod quic;
mod timer;
pub(crate) mod tls;
pub(crate) mod websocket;
