//! The flags that every command with a broker has.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::failure::Failure;
use crate::client::{Client, Error, Options, State};
use crate::types::RoomName;

#[derive(Args, Clone, Debug)]
pub(super) struct Connection {
    /// The broker: ws://HOST:PORT, wss://HOST:PORT or quic://HOST:PORT
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:7400")]
    pub(super) url: String,
    /// Trust the certificates in this PEM file instead of those of the system
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// Trust any certificate: encrypted, but anyone may be at the other end
    #[arg(long, conflicts_with = "ca")]
    pub(super) insecure: bool,
    /// How long to go without a broker, an answer or progress; as 30, 30s, 500ms or 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(super) timeout: Duration,
}

impl Connection {
    /// The client's options for these flags.
    pub(super) fn options(&self) -> Options {
        let defaults = Options::default();
        Options {
            name: concat!("roomlog/", env!("CARGO_PKG_VERSION")).to_owned(),
            ca_file: self.ca.clone(),
            insecure: self.insecure,
            request_timeout: self.timeout,
            connect_timeout: self.timeout.min(defaults.connect_timeout),
            // A person waits: come back soon after the broker does.
            backoff_max: Duration::from_secs(2),
            ..defaults
        }
    }

    /// A client that is connected.
    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.url, self.options()).await?)
    }
}

/// Returns once there has been no connection for so long.
pub(super) async fn absent(client: &Client, timeout: Duration) -> Failure {
    let mut watch = client.watch();
    let mut since = None;
    let mut last = None;
    loop {
        match &*watch.borrow_and_update() {
            State::Connected { .. } => (since, last) = (None, None),
            State::Closed { why } => {
                return why.clone().unwrap_or(Error::Closed { why: None }).into();
            }
            State::Waiting { why, .. } => {
                last = Some(why.clone());
                since.get_or_insert_with(Instant::now);
            }
            State::Connecting { .. } => {
                since.get_or_insert_with(Instant::now);
            }
        }
        let Some(since) = since else {
            // An error means that the client is gone, and with it whoever waits here.
            let _ = watch.changed().await;
            continue;
        };
        if tokio::time::timeout_at(since + timeout, watch.changed()).await.is_err() {
            let why = last.map(|why| format!(": {why}")).unwrap_or_default();
            return Failure::Failed(format!("no connection for {}{why}", shown(timeout)));
        }
    }
}

/// A room's name as an argument.
pub(super) fn room(text: &str) -> Result<RoomName, String> {
    RoomName::new(text).map_err(|error| error.to_string())
}

/// A time as an argument: a number and ms, s, m or h; seconds without.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit:?} is no unit; there are ms, s, m and h")),
    };
    let number: f64 = number.parse().map_err(|_| "it begins with a number, as 30s does".to_owned())?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() && duration <= Duration::from_secs(366 * 24 * 3600) => Ok(duration),
        _ => Err("it must be more than 0 and at most a year".to_owned()),
    }
}

/// A time for a sentence.
pub(super) fn shown(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_sense() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "s", "0", "-1", "1d", "1.2.3", "99999999h", "30 s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
