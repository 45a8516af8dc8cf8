//! Everything that can go wrong for a client, and what its caller does about it.

use std::time::Duration;

use crate::types::{Code, Epoch, Offset};

/// What the caller of a failed call does about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call, the address or the certificate is wrong: repeating it unchanged gives the same answer.
    Change,
    /// The broker is away, or a limit is reached: the same call may succeed later.
    Retry,
    /// Nobody can tell whether the records were stored. Read the room before publishing them again.
    InDoubt,
    /// The client is closed for good; make a new one.
    Closed,
}

/// Why a call failed, or why there is no connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not one of a broker.
    #[error("{url:?} is not an address of a broker: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The certificates to trust could not be taken over.
    #[error("the certificates to trust could not be read: {why}")]
    Roots {
        /// What is wrong with them.
        why: String,
    },
    /// No connection to the address.
    #[error("no connection to {address}: {why}")]
    Unreachable {
        /// Where to.
        address: String,
        /// What the system says.
        why: String,
    },
    /// The server's certificate is not one to trust.
    #[error("the certificate of {address} is not trusted: {why}")]
    Certificate {
        /// Whose.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something answers, but not as a broker does.
    #[error("{address} did not answer as a broker: {why}")]
    Handshake {
        /// Where.
        address: String,
        /// What it answered.
        why: String,
        /// Whether it may be otherwise later, as when a proxy has no broker behind it just now.
        retry: bool,
    },
    /// The broker refused.
    #[error("refused ({}): {message}", code_name(*.code))]
    Refused {
        /// [`Code::number`].
        code: u16,
        /// What exactly was wrong.
        message: String,
        /// Whether the same request may succeed later.
        retry: bool,
        /// How long to wait before.
        retry_after: Duration,
    },
    /// The broker ended the session and said so first.
    #[error("the broker said goodbye ({}): {reason}", code_name(*.code))]
    Goodbye {
        /// [`Code::number`].
        code: u16,
        /// Why.
        reason: String,
        /// Whether to connect again.
        reconnect: bool,
        /// How long to wait before.
        after: Duration,
    },
    /// The connection ended.
    #[error("the connection ended{}: {reason}", close_code(*.code))]
    Disconnected {
        /// The WebSocket or QUIC close code, if there was one.
        code: Option<u64>,
        /// Whether the code says not to come again.
        give_up: bool,
        /// What is known of it.
        reason: String,
    },
    /// The server sent what it may not send.
    #[error("the server broke the protocol: {why}")]
    Protocol {
        /// What it sent.
        why: String,
    },
    /// A delivery does not follow the one before: records are missing between them.
    #[error("records are missing in {room}: the record before the delivery is {prev}, but {position} was the last one")]
    ChainBroken {
        /// The room.
        room: String,
        /// The last offset that was received in good order.
        position: Offset,
        /// What the delivery says of the record before it.
        prev: Offset,
    },
    /// Nothing has come from the server for too long.
    #[error("nothing came from the server for {} ms", .quiet.as_millis())]
    Silent {
        /// How long.
        quiet: Duration,
    },
    /// No answer in time.
    #[error("no answer to {what} within {} ms", .after.as_millis())]
    Timeout {
        /// What was asked.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The records were sent before a connection was lost, and the broker no longer knows whether it stored them.
    #[error("whether the records were stored cannot be told any more ({}): {message}", code_name(*.code))]
    InDoubt {
        /// [`Code::number`].
        code: u16,
        /// What the broker said.
        message: String,
    },
    /// The outgoing queue is full.
    #[error("the outgoing queue is full")]
    QueueFull,
    /// Larger than what the broker takes.
    #[error("{found} {what}, at most {allowed} are allowed")]
    TooLarge {
        /// What there is too much of, with its unit.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        allowed: usize,
    },
    /// A join cannot go on from its position.
    #[error("the position is void ({}): the room is now at epoch {epoch}, offsets {first} to {head}", code_name(*.code))]
    Void {
        /// [`Code::VoidEpoch`] or [`Code::BeyondHead`], as a number.
        code: u16,
        /// The room's epoch.
        epoch: Epoch,
        /// The oldest retained offset.
        first: Offset,
        /// The newest offset.
        head: Offset,
    },
    /// The client is closed.
    #[error("the client is closed{}", because(.why))]
    Closed {
        /// What closed it; nothing if the application did.
        why: Option<Box<Error>>,
    },
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. } | Self::Roots { .. } | Self::Certificate { .. } => ErrorKind::Change,
            Self::TooLarge { .. } | Self::Void { .. } => ErrorKind::Change,
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Timeout { .. } => ErrorKind::Retry,
            Self::Protocol { .. } | Self::ChainBroken { .. } | Self::QueueFull => ErrorKind::Retry,
            Self::InDoubt { .. } => ErrorKind::InDoubt,
            Self::Closed { .. } => ErrorKind::Closed,
            Self::Handshake { retry, .. } | Self::Refused { retry, .. } | Self::Goodbye { reconnect: retry, .. } => {
                if *retry {
                    ErrorKind::Retry
                } else {
                    ErrorKind::Change
                }
            }
            Self::Disconnected { give_up, .. } => {
                if *give_up {
                    ErrorKind::Change
                } else {
                    ErrorKind::Retry
                }
            }
        }
    }

    /// The broker's code, if a broker said this and this version knows it.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. }
            | Self::Goodbye { code, .. }
            | Self::InDoubt { code, .. }
            | Self::Void { code, .. } => Code::from_number(*code),
            Self::Closed { why: Some(why) } => why.code(),
            _ => None,
        }
    }

    pub(crate) fn protocol(why: impl ToString) -> Self {
        Self::Protocol { why: why.to_string() }
    }

    pub(crate) fn refused(fault: &crate::protocol::Fault<'_>) -> Self {
        Self::Refused {
            code: fault.code,
            message: fault.message.to_owned(),
            retry: fault.retry,
            retry_after: Duration::from_millis(fault.retry_after_ms.into()),
        }
    }
}

fn code_name(code: u16) -> String {
    Code::from_number(code).map_or_else(|| format!("code {code}"), |code| code.name().to_owned())
}

fn close_code(code: Option<u64>) -> String {
    code.map(|code| format!(" with code {code}")).unwrap_or_default()
}

fn because(why: &Option<Box<Error>>) -> String {
    why.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
}
