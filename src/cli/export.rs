//! `roomlog export`: all of a room as lines of JSON.

use clap::Args;

use super::connection::{self, Connection};
use super::failure::Failure;
use super::record::Format;
use super::subscribe::{Until, leave, print};
use crate::types::{Offset, RoomName, Start};

#[derive(Args, Debug)]
#[command(after_help = "\
Writes every record that is retained when it starts, oldest first, one JSON object a line: room, offset, prev, time, \
user, publisher, seq, kind, ref and headers where there are any, and payload, or payload_base64 where it is not text.

Examples:
  roomlog export kitchen > kitchen.jsonl
  roomlog export kitchen --url quic://127.0.0.1:7400 --insecure | gzip > kitchen.jsonl.gz")]
pub(super) struct Arguments {
    /// The room
    #[arg(value_parser = connection::room)]
    room: RoomName,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { room, connection } = arguments;
    let client = connection.connect().await?;
    let subscription = client.join(&room, Start::Earliest).await?;
    let head = subscription.joined().head;
    // Live comes first where the newest records are not retained.
    let until = Until { count: (head == Offset::ZERO).then_some(0), live: true, offset: Some(head) };
    tokio::select! {
        result = print(subscription, until, Format::Json) => result?,
        failure = connection::absent(&client, connection.timeout) => return Err(failure),
    }
    leave(client).await;
    Ok(())
}
