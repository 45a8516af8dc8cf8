//! `roomlog history` and `roomlog rooms`: questions with an answer.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::connection::{self, Connection};
use super::failure::Failure;
use super::from::Place;
use super::output::Output;
use super::record::{self, Format, rfc3339};
use super::subscribe::leave;
use crate::client::{Batch, Client, HistoryAt, RoomSummary};
use crate::types::{Position, RoomName};

/// What is asked for at once; the broker bounds a page in bytes as well.
const PAGE: u32 = 1000;

#[derive(Args, Debug)]
#[command(after_help = "\
OFFSET means the room's present epoch; EPOCH:OFFSET names one, and fails if it has passed. Records are printed \
oldest first, whichever way they are asked for.

Examples:
  roomlog history kitchen                          # the newest 50
  roomlog history kitchen --before 1200 --limit 20
  roomlog history kitchen --around 1200 --format json")]
pub(super) struct Arguments {
    /// The room
    #[arg(value_parser = connection::room)]
    room: RoomName,
    /// The newest records before this offset
    #[arg(long, value_name = "OFFSET", conflicts_with_all = ["after", "around"])]
    before: Option<Place>,
    /// The oldest records after this offset
    #[arg(long, value_name = "OFFSET", conflicts_with = "around")]
    after: Option<Place>,
    /// The records on both sides of this offset
    #[arg(long, value_name = "OFFSET")]
    around: Option<Place>,
    /// How many records at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// How to print records
    #[arg(long, value_enum, default_value_t = Format::Payload)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { room, before, after, around, limit, format, connection } = arguments;
    let client = connection.connect().await?;
    let position = match before.or(after).or(around) {
        Some(place) => Some(place.position(&client, &room).await?),
        None => None,
    };
    let batches = match (position, after, around) {
        (Some(position), _, Some(_)) => client.history(&room, HistoryAt::Around(position), limit).await?.batches,
        (position, Some(_), _) => forwards(&client, &room, position, limit).await?,
        (position, ..) => backwards(&client, &room, position, limit).await?,
    };
    let mut output = Output::new();
    output.blocking(|out| {
        for batch in &batches {
            batch.records().try_for_each(|record| record::write(out, format, &room, &record))?;
        }
        out.flush()
    })?;
    leave(client).await;
    Ok(())
}

fn count(batches: &[Batch]) -> u32 {
    u32::try_from(batches.iter().map(|batch| batch.records().count()).sum::<usize>()).unwrap_or(u32::MAX)
}

async fn forwards(
    client: &Client,
    room: &RoomName,
    mut after: Option<Position>,
    mut limit: u32,
) -> Result<Vec<Batch>, Failure> {
    let mut found = Vec::new();
    while limit > 0 {
        let page = client.history(room, HistoryAt::After(after), limit.min(PAGE)).await?;
        limit = limit.saturating_sub(count(&page.batches));
        let Some(last) = page.batches.last() else { break };
        after = Some(last.position());
        found.extend(page.batches);
        if !page.more {
            break;
        }
    }
    Ok(found)
}

async fn backwards(
    client: &Client,
    room: &RoomName,
    mut before: Option<Position>,
    mut limit: u32,
) -> Result<Vec<Batch>, Failure> {
    let mut pages = Vec::new();
    while limit > 0 {
        let page = client.history(room, HistoryAt::Before(before), limit.min(PAGE)).await?;
        limit = limit.saturating_sub(count(&page.batches));
        let Some(first) = page.batches.first() else { break };
        before = Some(Position { epoch: page.epoch, offset: first.from() });
        pages.push(page.batches);
        if !page.more {
            break;
        }
    }
    Ok(pages.into_iter().rev().flatten().collect())
}

/// How rooms are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum RoomsFormat {
    /// Newest offset, time of the newest record, name
    Text,
    /// One JSON object a line: room, first, head, time
    Json,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Rooms are listed in the order of their names' bytes: newest offset, time of the newest record, name.

Examples:
  roomlog rooms
  roomlog rooms --prefix team/ --format json")]
pub(super) struct RoomsArguments {
    /// Only rooms whose names begin so
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// How many at most; all without it
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// How to print rooms
    #[arg(long, value_enum, default_value_t = RoomsFormat::Text)]
    format: RoomsFormat,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct RoomLine<'a> {
    room: &'a str,
    first: u64,
    head: u64,
    time: String,
}

pub(super) async fn rooms(arguments: RoomsArguments) -> Result<(), Failure> {
    let RoomsArguments { prefix, limit, format, connection } = arguments;
    let client = connection.connect().await?;
    let mut output = Output::new();
    let mut left = limit.unwrap_or(u32::MAX);
    let mut after = String::new();
    while left > 0 {
        let list = client.rooms(&prefix, &after, left.min(PAGE)).await?;
        left -= u32::try_from(list.rooms.len()).unwrap_or(u32::MAX).min(left);
        output.blocking(|out| list.rooms.iter().try_for_each(|room| writeln!(out, "{}", line(room, format))))?;
        let Some(last) = list.rooms.last() else { break };
        after = last.room.to_string();
        if !list.more {
            break;
        }
    }
    output.flush()?;
    leave(client).await;
    Ok(())
}

fn line(room: &RoomSummary, format: RoomsFormat) -> String {
    let time = rfc3339(room.time);
    match format {
        RoomsFormat::Text => format!("{:>12}  {time}  {}", room.head, room.room),
        RoomsFormat::Json => {
            let line = RoomLine { room: room.room.as_str(), first: room.first.0, head: room.head.0, time };
            serde_json::to_string(&line).expect("text and numbers have a form in JSON")
        }
    }
}
