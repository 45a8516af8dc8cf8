//! `roomlog sub`: a room's records on standard output.

use clap::Args;

use super::connection::{self, Connection};
use super::failure::Failure;
use super::from::From;
use super::output::{Output, Progress, complain};
use super::record::{self, Format};
use crate::client::{Client, Event, Subscription};
use crate::types::{Offset, RoomName};

#[derive(Args, Debug)]
#[command(after_help = "\
--from is one of
  new            what is published from now on (the default)
  earliest       everything that is retained
  last:N         the newest N records
  after:OFFSET   what follows a record, in the room's present epoch;
                 after:EPOCH:OFFSET fails if that epoch has passed
  since:TIME     from a time on, as 2026-01-31T12:00:00Z

Examples:
  roomlog sub kitchen
  roomlog sub kitchen --from last:10
  roomlog sub logs --from earliest --until-live > copy.txt
  roomlog sub logs --from since:2026-01-31T00:00:00Z --format json | jq .payload")]
pub(super) struct Arguments {
    /// The room
    #[arg(value_parser = connection::room)]
    room: RoomName,
    /// Where to begin
    #[arg(long, value_name = "START", default_value = "new", value_parser = |text: &str| text.parse::<From>())]
    from: From,
    /// End after so many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End once everything that is there has been printed
    #[arg(long)]
    until_live: bool,
    /// How to print records
    #[arg(long, value_enum, default_value_t = Format::Payload)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { room, from, count, until_live, format, connection } = arguments;
    let client = connection.connect().await?;
    let start = from.start(&client, &room).await?;
    let subscription = client.join(&room, start).await?;
    let until = Until { count, live: until_live, offset: None };
    tokio::select! {
        result = print(subscription, until, format) => result?,
        failure = connection::absent(&client, connection.timeout) => return Err(failure),
    }
    leave(client).await;
    Ok(())
}

/// Says goodbye before the program ends.
pub(super) async fn leave(client: Client) {
    client.close().await;
}

/// When printing ends, whatever comes first.
pub(super) struct Until {
    /// So many records.
    pub(super) count: Option<u64>,
    /// Everything that is there.
    pub(super) live: bool,
    /// The record at this offset or behind it.
    pub(super) offset: Option<Offset>,
}

/// Prints a subscription.
pub(super) async fn print(mut subscription: Subscription, until: Until, format: Format) -> Result<(), Failure> {
    if until.count == Some(0) {
        return Ok(());
    }
    let mut output = Output::new();
    let room = subscription.room().clone();
    let mut progress = Progress::new(subscription.joined().head.0);
    let mut printed = 0;
    loop {
        let event = match subscription.try_next() {
            Some(event) => event,
            None => {
                // Nothing is under way just now: show what is there.
                output.flush()?;
                match subscription.next().await {
                    Some(event) => event,
                    None => return Ok(()),
                }
            }
        };
        match event {
            Event::Batch(batch) => {
                let left = until.count.map_or(u64::MAX, |count| count - printed);
                let mut reached = false;
                printed += output.blocking(|out| {
                    let mut written = 0;
                    for record in batch.records().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                        if until.offset.is_some_and(|offset| record.offset > offset) {
                            break;
                        }
                        record::write(out, format, &room, &record)?;
                        written += 1;
                    }
                    Ok(written)
                })?;
                reached |= until.count == Some(printed);
                reached |= until.offset.is_some_and(|offset| batch.to() >= offset);
                progress.at(batch.to().0);
                if reached {
                    break;
                }
            }
            Event::Live { .. } => {
                progress.finish();
                if until.live {
                    break;
                }
            }
            Event::Gap { from, to, reason } => {
                output.flush()?;
                complain(&format!("nothing between offset {from} and {to} is there any more ({})", reason.name()));
            }
            Event::Lagging { .. } | Event::CaughtUp { .. } => {}
            Event::Void { .. } => {}
            Event::Left { why } => {
                output.flush()?;
                return Err(why.into());
            }
        }
    }
    output.flush()
}
