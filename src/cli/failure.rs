//! How a command ends if not well.

use std::io;

use crate::client::Error;

/// What ended a command.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was asked for something that makes no sense: exit code 2.
    Usage(String),
    /// It could not be done: exit code 1.
    Failed(String),
    /// Nobody reads the output any more, as behind `head`: no failure.
    OutputClosed,
}

impl Failure {
    pub(super) fn failed(message: impl ToString) -> Self {
        Self::Failed(message.to_string())
    }

    /// Of writing to standard output.
    pub(super) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failed(format!("standard output cannot be written: {error}"))
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::Url { .. } => Self::Usage(error.to_string()),
            // What closed the client is the news, not that it is closed.
            Error::Closed { why: Some(why) } => Self::Failed(why.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
