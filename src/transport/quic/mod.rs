//! A session over one QUIC connection: requests on one stream, and a stream of its own for each joined room.

mod connection;
mod rooms;
mod unproved;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, Runtime as _, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use ring::hmac;

pub(crate) use connection::serve;

use self::unproved::Unproved;
use super::tls::{Identity, TlsError};
use crate::types::Limits;

/// Handshakes that wait to be accepted, and what each and all of them may send meanwhile, in bytes.
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES_MAX: u64 = 64 << 10;
const INCOMING_BYTES_MAX_IN_ALL: u64 = 16 << 20;

/// What a peer may send before it has been read, in bytes: on its one stream, and in all.
const STREAM_RECEIVE_BYTES: u32 = 256 << 10;
const RECEIVE_BYTES: u32 = 512 << 10;

/// Room for the one datagram that ends a connection, in bytes.
const DATAGRAM_BYTES: usize = 2 << 10;
/// The time between two answers to packets of unknown connections: thousands of clients learn soon that the server was
/// restarted, and whoever sends nonsense gets no flood of answers.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

const CONNECTION_ID_BYTES: usize = 8;

/// Buffers of the socket, in bytes: all connections share it, and a burst that finds it full is lost.
const SOCKET_BYTES: usize = 4 << 20;

/// Listens for QUIC.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) fn listen(address: SocketAddr, identity: &Identity, config: ServerConfig) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    let tuned = socket2::SockRef::from(&socket);
    // The system may allow less; that costs speed under bursts and nothing else.
    let _ = tuned.set_recv_buffer_size(SOCKET_BYTES);
    let _ = tuned.set_send_buffer_size(SOCKET_BYTES);
    let endpoint = endpoint_config(identity, socket.local_addr()?);
    let socket = Arc::new(Unproved::new(TokioRuntime.wrap_udp_socket(socket)?));
    Endpoint::new_with_abstract_socket(endpoint, Some(config), socket, Arc::new(TokioRuntime))
}

/// A server that was killed and is back at its address resets the connections of before at their first packet:
/// otherwise clients would find out by silence alone, a minute later. What makes a reset believable comes of its key
/// and its address, so that no other server can be made to tell it.
fn endpoint_config(identity: &Identity, address: SocketAddr) -> EndpointConfig {
    let secret = identity.secret(&format!("roomlog QUIC resets at {address}"));
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)));
    config.cid_generator(|| Box::new(RandomIds)).min_reset_interval(RESET_INTERVAL);
    config
}

/// Connection ids in which nothing can be recognized: any of them may be one of a server that was killed.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        getrandom::fill(&mut bytes).expect("without randomness there would be no TLS either");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The configuration of the listener. `send_bytes_max` is what one peer may leave unacknowledged.
///
/// # Errors
/// When the certificate cannot be used.
pub(crate) fn config(identity: &Identity, limits: &Limits, send_bytes_max: usize) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(identity.quic()?).map_err(|_| TlsError::NoInitialSuite)?;
    let mut transport = TransportConfig::default();
    transport
        // The client opens one stream and no other; what is one too many has to be seen to be told.
        .max_concurrent_bidi_streams(VarInt::from_u32(2))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_BYTES))
        .send_window(send_bytes_max as u64)
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .max_idle_timeout(Some(idle(limits.idle_timeout)))
        .keep_alive_interval(Some(limits.ping_interval));
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX_IN_ALL);
    Ok(config)
}

fn idle(timeout: Duration) -> IdleTimeout {
    // Beyond what a number of the protocol holds is as good as never.
    IdleTimeout::try_from(timeout).unwrap_or_else(|_| VarInt::MAX.into())
}
