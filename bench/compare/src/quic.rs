//! Roomlog's other transport: QUIC without a runtime, driven by the same loop as the sockets of everybody else.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, StreamEvent,
    StreamId, TransportConfig, WriteError,
};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use crate::wire::{Frames, Sink};

/// Datagrams that one send or one receive may hold.
const SEGMENTS: usize = 10;
/// Receives in one turn of a connection, so that none keeps the others waiting.
const RECEIVES: usize = 8;

/// One connection, with a socket of its own as every subscriber has.
pub(crate) struct Quic {
    pub(crate) socket: UdpSocket,
    state: UdpSocketState,
    server: SocketAddr,
    endpoint: Endpoint,
    connection: Connection,
    handle: ConnectionHandle,
    control: Option<StreamId>,
    streams: HashMap<StreamId, Incoming>,
    readable: VecDeque<StreamId>,
    /// When the earliest entry of the loop's timers for this connection is due.
    pub(crate) deadline: Option<Instant>,
    outgoing: Vec<u8>,
}

/// What has come on a stream and is not done with.
struct Incoming {
    kept: Vec<u8>,
    frames: Frames,
    /// A room's stream begins with a head.
    headless: bool,
}

impl Quic {
    pub(crate) fn connect(server: SocketAddr) -> Result<Self, String> {
        let world = |error: std::io::Error| format!("UDP: {error}");
        let socket = UdpSocket::bind(("127.0.0.1", 0)).map_err(world)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).map_err(world)?;
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let config = client_config()?;
        let (handle, connection) = endpoint
            .connect(Instant::now(), config, server, "localhost")
            .map_err(|error| format!("QUIC to {server}: {error}"))?;
        let mut quic = Self {
            socket,
            state,
            server,
            endpoint,
            connection,
            handle,
            control: None,
            streams: HashMap::new(),
            readable: VecDeque::new(),
            deadline: None,
            outgoing: Vec::new(),
        };
        quic.transmit()?;
        Ok(quic)
    }

    /// Takes what has come, and reads all streams that have something.
    pub(crate) fn read<S: Sink>(&mut self, buffer: &mut [u8], sink: &mut S) -> Result<(), String> {
        for _ in 0..RECEIVES {
            let mut meta = [RecvMeta::default()];
            match self.state.recv(UdpSockRef::from(&self.socket), &mut [IoSliceMut::new(buffer)], &mut meta) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("UDP: {error}")),
            }
            let [meta] = meta;
            let now = Instant::now();
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                self.outgoing.clear();
                let event =
                    self.endpoint.handle(now, self.server, None, None, BytesMut::from(datagram), &mut self.outgoing);
                if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                    self.connection.handle_event(event);
                }
            }
        }
        self.events(sink)
    }

    /// Lets time pass.
    pub(crate) fn timeout<S: Sink>(&mut self, now: Instant, sink: &mut S) -> Result<(), String> {
        self.connection.handle_timeout(now);
        self.events(sink)
    }

    /// When time must pass next.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    fn events<S: Sink>(&mut self, sink: &mut S) -> Result<(), String> {
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => {
                    let control = self.connection.streams().open(Dir::Bi).ok_or("the server allows no stream")?;
                    self.control = Some(control);
                    self.streams.insert(control, Incoming::new(false));
                }
                Event::ConnectionLost { reason } => return Err(format!("QUIC: {reason}")),
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    while let Some(id) = self.connection.streams().accept(Dir::Uni) {
                        self.streams.insert(id, Incoming::new(true));
                        self.readable.push_back(id);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.readable.push_back(id),
                _ => {}
            }
        }
        while let Some(id) = self.readable.pop_front() {
            self.read_stream(id, sink)?;
        }
        self.transmit()
    }

    fn read_stream<S: Sink>(&mut self, id: StreamId, sink: &mut S) -> Result<(), String> {
        let Some(incoming) = self.streams.get_mut(&id) else { return Ok(()) };
        let mut stream = self.connection.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return Ok(()) };
        // Nothing more for now, the end, or a reset: what was lost is counted by the load.
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            incoming.take(&chunk.bytes, sink)?;
        }
        let _ = chunks.finalize();
        Ok(())
    }

    /// Gives bytes to the control stream; how many it took.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let Some(control) = self.control else { return Ok(0) };
        let taken = match self.connection.send_stream(control).write(bytes) {
            Ok(taken) => taken,
            Err(WriteError::Blocked) => 0,
            Err(error) => return Err(format!("QUIC: {error}")),
        };
        self.transmit()?;
        Ok(taken)
    }

    /// Sends what QUIC has to send. A datagram that the socket does not take is as good as lost, and comes again.
    fn transmit(&mut self) -> Result<(), String> {
        loop {
            self.outgoing.clear();
            let segments = SEGMENTS.min(self.state.max_gso_segments());
            let Some(sent) = self.connection.poll_transmit(Instant::now(), segments, &mut self.outgoing) else {
                return Ok(());
            };
            let transmit = Transmit {
                destination: sent.destination,
                ecn: None,
                contents: &self.outgoing[..sent.size],
                segment_size: sent.segment_size,
                src_ip: None,
            };
            match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("UDP: {error}")),
            }
        }
    }
}

impl Incoming {
    fn new(headless: bool) -> Self {
        Self { kept: Vec::new(), frames: Frames::default(), headless }
    }

    fn take<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), String> {
        let whole;
        let mut input = bytes;
        if !self.kept.is_empty() {
            self.kept.extend_from_slice(bytes);
            whole = std::mem::take(&mut self.kept);
            input = &whole;
        }
        if self.headless {
            let Some(head) = Frames::stream_head(input) else {
                self.kept = input.to_vec();
                return Ok(());
            };
            (self.headless, input) = (false, &input[head..]);
        }
        let done = self.frames.read(input, sink)?;
        self.kept.extend_from_slice(&input[done..]);
        Ok(())
    }
}

/// The same for all connections; made once.
fn client_config() -> Result<ClientConfig, String> {
    static CONFIG: std::sync::OnceLock<Result<ClientConfig, String>> = std::sync::OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(TrustAnyone(provider.signature_verification_algorithms));
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"roomlog/1".to_vec()];
        let mut config =
            ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?));
        let mut transport = TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(5)));
        config.transport_config(Arc::new(transport));
        Ok(config)
    };
    CONFIG.get_or_init(make).clone()
}

/// The server was started by this program on loopback, with a certificate of its own making.
#[derive(Debug)]
struct TrustAnyone(rustls::crypto::WebPkiSupportedAlgorithms);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }
}
