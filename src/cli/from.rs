//! `--from`: where a subscription begins, and offsets as arguments.

use std::fmt;
use std::str::FromStr;

use super::failure::Failure;
use crate::client::Client;
use crate::types::{Epoch, Offset, Position, RoomName, Start, Time};

/// `OFFSET` or `EPOCH:OFFSET`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Without one, the room's present epoch is meant.
    pub(super) epoch: Option<Epoch>,
    pub(super) offset: Offset,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u64>() {
            Ok(number) if number <= Offset::MAX.0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
            _ => Err(format!("{text:?} is no number below 2^53")),
        };
        Ok(match text.split_once(':') {
            Some((epoch, offset)) => Self { epoch: Some(Epoch(number(epoch)?)), offset: Offset(number(offset)?) },
            None => Self { epoch: None, offset: Offset(number(text)?) },
        })
    }
}

impl Place {
    /// The position; asks the broker for the epoch if there is none.
    pub(super) async fn position(self, client: &Client, room: &RoomName) -> Result<Position, Failure> {
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => client.summary(std::slice::from_ref(room)).await?.epoch,
        };
        Ok(Position { epoch, offset: self.offset })
    }
}

/// `new`, `earliest`, `last:N`, `after:OFFSET`, `since:RFC3339`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum From {
    New,
    Earliest,
    Last(u64),
    After(Place),
    Since(Time),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "new" => Ok(Self::New),
            None if text == "earliest" => Ok(Self::Earliest),
            Some(("last", count)) => match count.parse() {
                Ok(count) => Ok(Self::Last(count)),
                Err(_) => Err(format!("last:N needs a number, {count:?} is none")),
            },
            Some(("after", place)) => Ok(Self::After(place.parse()?)),
            Some(("since", time)) => {
                let time: jiff::Timestamp =
                    time.parse().map_err(|_| format!("{time:?} is no RFC 3339 time, as 2026-01-31T12:00:00Z is"))?;
                Ok(Self::Since(Time(u64::try_from(time.as_microsecond()).unwrap_or(0))))
            }
            _ => Err("it is new, earliest, last:N, after:OFFSET or since:RFC3339".to_owned()),
        }
    }
}

impl From {
    /// The start of a join.
    pub(super) async fn start(self, client: &Client, room: &RoomName) -> Result<Start, Failure> {
        Ok(match self {
            Self::New => Start::New,
            Self::Earliest => Start::Earliest,
            Self::Last(count) => Start::Last(count),
            Self::After(place) => Start::After(place.position(client, room).await?),
            Self::Since(time) => Start::Since(time),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            Some(epoch) => write!(f, "{epoch}:{}", self.offset),
            None => write!(f, "{}", self.offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_from_is_read() {
        for (text, from) in [
            ("new", From::New),
            ("earliest", From::Earliest),
            ("last:0", From::Last(0)),
            ("last:25", From::Last(25)),
            ("after:7", From::After(Place { epoch: None, offset: Offset(7) })),
            ("after:9:7", From::After(Place { epoch: Some(Epoch(9)), offset: Offset(7) })),
            ("since:1970-01-01T00:00:01.5Z", From::Since(Time(1_500_000))),
            ("since:1970-01-01T01:00:00+01:00", From::Since(Time(0))),
            ("since:1960-01-01T00:00:00Z", From::Since(Time(0))),
        ] {
            assert_eq!(text.parse(), Ok(from), "{text}");
        }
    }

    #[test]
    fn what_is_no_start_is_refused() {
        for text in [
            "",
            "newest",
            "New",
            "last",
            "last:",
            "last:-1",
            "last:x",
            "after:",
            "after:x",
            "after:1:2:3",
            "after:+1",
            "after:9007199254740992",
            "since:",
            "since:yesterday",
            "since:2026-01-31",
        ] {
            assert!(text.parse::<From>().is_err(), "{text:?}");
        }
    }
}
