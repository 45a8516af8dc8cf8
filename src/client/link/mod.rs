//! Moves whole frames to and from a server, over either transport; decides nothing about them.

mod quic;
mod websocket;

use std::fmt;
use std::time::Duration;

use super::address::{Address, Scheme};
use super::{Error, Options};
use crate::protocol::JoinId;
use crate::types::{Epoch, Limits};

/// The longest frame that is taken from a server, with its prefix.
pub(crate) const FRAME_BYTES_MAX: usize = Limits::CEILINGS.frame_bytes;

/// Which room's stream frames came on; `None` where one stream carries all.
#[derive(Clone, Debug)]
pub(crate) struct RoomStream {
    pub(crate) join: JoinId,
    pub(crate) room: String,
    pub(crate) epoch: Epoch,
}

/// Takes what comes from a server. Called by tasks of the link; must not block.
pub(crate) trait Inbox: Send + Sync + 'static {
    /// One or more whole frames with their length prefixes.
    fn frames(&self, frames: &[u8], stream: Option<&RoomStream>) -> Result<(), Error>;

    /// A WebSocket ping, to be answered with the same bytes.
    fn ping(&self, payload: &[u8]);

    /// Something came, though no whole frame yet.
    fn alive(&self);
}

/// Why a link is over, and the close code that the peer is owed.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) error: Error,
    pub(crate) close: CloseCode,
}

/// What we say when we end a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CloseCode {
    Normal,
    Protocol,
    NotBinary,
    TooLarge,
}

impl End {
    fn protocol(why: impl fmt::Display) -> Self {
        Self { error: Error::protocol(why), close: CloseCode::Protocol }
    }

    fn of(error: Error) -> Self {
        let close = match error {
            Error::Protocol { .. } | Error::ChainBroken { .. } => CloseCode::Protocol,
            _ => CloseCode::Normal,
        };
        Self { error, close }
    }

    fn lost(reason: impl fmt::Display) -> Self {
        let error = Error::Disconnected { code: None, give_up: false, reason: reason.to_string() };
        Self { error, close: CloseCode::Normal }
    }
}

/// A connection whose transport is ready and on which nothing has been said yet.
pub(crate) struct Link {
    pub(crate) writer: Writer,
    pub(crate) reader: Reader,
}

/// Opens streams of bytes to a server that is reached through no socket.
#[cfg(test)]
pub(crate) trait Dial: Send + Sync + 'static {
    /// Opens a connection, as soon as there is one to be had.
    fn dial(&self) -> Dialling;
}

/// A connection that is being opened: its two directions.
#[cfg(test)]
pub(crate) type Dialling =
    std::pin::Pin<Box<dyn Future<Output = Result<(websocket::ReadHalf, websocket::WriteHalf), Error>> + Send>>;

/// A link over streams that are there already.
#[cfg(test)]
pub(crate) fn over(read: websocket::ReadHalf, write: websocket::WriteHalf) -> (Reader, Writer) {
    let (reader, writer) = websocket::halves(bytes::Bytes::new(), read, write);
    (Reader::WebSocket(reader), Writer::WebSocket(writer))
}

/// Trust, prepared once for all attempts of a client.
pub(crate) enum Connector {
    WebSocket(websocket::Connector),
    Quic(quic::Connector),
    #[cfg(test)]
    Dial(std::sync::Arc<dyn Dial>),
}

impl Connector {
    /// Reads the certificates that `address` needs.
    pub(crate) fn new(address: Address, options: &Options) -> Result<Self, Error> {
        Ok(match address.scheme {
            Scheme::Ws | Scheme::Wss => Self::WebSocket(websocket::Connector::new(address, options)?),
            Scheme::Quic => Self::Quic(quic::Connector::new(address, options)?),
        })
    }

    /// Opens a connection. The caller sets the deadline.
    pub(crate) async fn connect(&self) -> Result<Link, Error> {
        match self {
            Self::WebSocket(connector) => {
                let (reader, writer) = connector.connect().await?;
                Ok(Link { writer: Writer::WebSocket(writer), reader: Reader::WebSocket(reader) })
            }
            Self::Quic(connector) => {
                let (reader, writer) = connector.connect().await?;
                Ok(Link { writer: Writer::Quic(writer), reader: Reader::Quic(reader) })
            }
            #[cfg(test)]
            Self::Dial(dial) => {
                let (read, write) = dial.dial().await?;
                let (reader, writer) = over(read, write);
                Ok(Link { writer, reader })
            }
        }
    }
}

/// The half that frames are taken from.
pub(crate) enum Reader {
    WebSocket(websocket::Reader),
    Quic(quic::Reader),
}

impl Reader {
    /// Hands all that comes to `inbox`, until the connection is over. Not cancel-safe: dropping it ends the
    /// connection's use, which is why it runs in a task of its own.
    pub(crate) async fn run(self, inbox: std::sync::Arc<dyn Inbox>) -> End {
        match self {
            Self::WebSocket(reader) => reader.run(&*inbox).await,
            Self::Quic(reader) => reader.run(inbox).await,
        }
    }
}

/// The half that frames are given to.
pub(crate) enum Writer {
    WebSocket(websocket::Writer),
    Quic(quic::Writer),
}

impl Writer {
    /// Sends whole frames in one go. Not cancel-safe: after a drop the connection is of no more use.
    pub(crate) async fn send(&mut self, frames: &mut [u8]) -> Result<(), End> {
        match self {
            Self::WebSocket(writer) => writer.send(frames).await,
            Self::Quic(writer) => writer.send(frames).await,
        }
    }

    /// Answers a ping. Not cancel-safe.
    pub(crate) async fn pong(&mut self, payload: &mut [u8]) -> Result<(), End> {
        match self {
            Self::WebSocket(writer) => writer.pong(payload).await,
            Self::Quic(_) => Ok(()),
        }
    }

    /// Says that we are leaving, as far as that goes within a second.
    pub(crate) async fn close(self, code: CloseCode, reason: &str) {
        const PATIENCE: Duration = Duration::from_secs(1);
        match self {
            Self::WebSocket(writer) => {
                let _ = tokio::time::timeout(PATIENCE, writer.close(code, reason)).await;
            }
            Self::Quic(writer) => writer.close(code, reason, PATIENCE).await,
        }
    }
}
