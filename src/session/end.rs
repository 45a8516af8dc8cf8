//! Every way in which the server ends a session, with its one goodbye: the table of section 13 of `docs/protocol.md`.

use std::time::Duration;

use crate::protocol::{Close, FrameError, Goodbye, ServerFrame, WireError, frame_into};
use crate::types::Code;

/// Why the server ends a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// A frame that cannot be read, or that is out of place.
    BadFrame(String),
    /// A frame over the limit.
    TooLarge(String),
    /// No version in common.
    BadVersion {
        /// The lowest that the client speaks.
        min: u8,
        /// The highest.
        max: u8,
    },
    /// The first frame was not a hello.
    HelloRequired,
    /// No hello within the time for it.
    HelloTimeout(Duration),
    /// The hello has a token.
    Token,
    /// Nothing came for so long.
    Idle(Duration),
    /// The output was left unread for so long.
    Stalled(Duration),
    /// One message was under way for so long.
    SlowMessage(Duration),
    /// Messages under way hold as much memory as they may, of which this one has more than a little.
    Crowded {
        /// How much that is.
        bytes_max: usize,
    },
    /// The server shuts down.
    ShuttingDown {
        /// When to come back.
        after: Duration,
    },
}

impl End {
    /// The code, and whether to connect again.
    pub(crate) fn close(&self) -> Close {
        match self {
            Self::BadFrame(_) => Close::give_up(Code::BadFrame),
            Self::TooLarge(_) => Close::give_up(Code::TooLarge),
            Self::BadVersion { .. } => Close::give_up(Code::BadVersion),
            Self::HelloRequired => Close::give_up(Code::HelloRequired),
            Self::Token => Close::give_up(Code::NotSupported),
            Self::HelloTimeout(_) => Close::reconnect(Code::HelloRequired),
            Self::Idle(_) | Self::SlowMessage(_) => Close::reconnect(Code::Unavailable),
            Self::Stalled(_) | Self::Crowded { .. } => Close::reconnect(Code::Busy),
            Self::ShuttingDown { .. } => Close::reconnect(Code::ShuttingDown),
        }
    }

    /// What happened, for a person.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::BadFrame(what) | Self::TooLarge(what) => what.clone(),
            Self::BadVersion { min, max } => {
                format!("the client speaks versions {min} to {max}, the server version {}", crate::protocol::VERSION)
            }
            Self::HelloRequired => "the first frame was not a hello".to_owned(),
            Self::HelloTimeout(time) => format!("no hello within {time:?}"),
            Self::Token => "this server has no authentication and takes no token".to_owned(),
            Self::Idle(time) => format!("nothing came for {time:?}"),
            Self::Stalled(time) => format!("the output was left unread for {time:?}"),
            Self::SlowMessage(time) => format!("a message was not complete after {time:?}"),
            Self::Crowded { bytes_max } => {
                format!(
                    "messages that are not complete take {bytes_max} bytes, as much as they may; repeat this one later"
                )
            }
            Self::ShuttingDown { .. } => Code::ShuttingDown.sentence().to_owned(),
        }
    }

    /// Appends the goodbye frame.
    pub(crate) fn goodbye(&self, out: &mut Vec<u8>) {
        let Close { code, reconnect } = self.close();
        let after_ms = match self {
            Self::ShuttingDown { after } => u32::try_from(after.as_millis()).unwrap_or(u32::MAX),
            _ if reconnect => 1000,
            _ => 0,
        };
        let reason = &self.reason();
        let goodbye = Goodbye { code: code.number(), reason, reconnect, after_ms };
        frame_into(out, |out| ServerFrame::Goodbye(goodbye).encode_into(out));
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::BadFrame(error.to_string())
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLarge { .. } => Self::TooLarge(error.to_string()),
            _ => Self::BadFrame(error.to_string()),
        }
    }
}
