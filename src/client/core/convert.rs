//! Questions that the application asks, and their answers as values of its own.

use crate::client::Error;
use crate::client::state::{Batch, LastRecord, Page, RoomList, RoomSummary};
use crate::protocol::{self, ClientFrame, History, HistoryAt, Ping, RequestId, Rooms, Summary};
use crate::types::{RoomName, Time};

/// A question that may be asked again.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    History { room: RoomName, at: HistoryAt, limit: u32 },
    Rooms { prefix: String, after: String, limit: u32 },
    Summary { rooms: Vec<RoomName> },
    Time,
}

/// Its answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Page(Page),
    Rooms(RoomList),
    Time(Time),
}

impl Ask {
    pub(crate) fn encode_into(&self, request: RequestId, out: &mut Vec<u8>) {
        match self {
            Self::History { room, at, limit } => {
                ClientFrame::History(History { request, room: room.as_str(), at: *at, limit: *limit }).encode_into(out);
            }
            Self::Rooms { prefix, after, limit } => {
                ClientFrame::Rooms(Rooms { request, prefix, after, limit: *limit }).encode_into(out);
            }
            Self::Summary { rooms } => {
                let rooms = rooms.iter().map(RoomName::as_str).collect();
                ClientFrame::Summary(Summary { request, rooms }).encode_into(out);
            }
            Self::Time => ClientFrame::Ping(Ping { request }).encode_into(out),
        }
    }

    /// The page that answers a question for history.
    pub(crate) fn page(&self, page: &protocol::Page<'_>) -> Result<Answer, Error> {
        let Self::History { room, .. } = self else {
            return Err(Error::protocol("a page that was not asked for"));
        };
        let mut batches: Vec<Batch> = Vec::with_capacity(page.deliveries.len());
        for part in &page.deliveries {
            let batch = Batch::take(room, page.epoch, (part.from, part.to, part.prev), part.body)?;
            if let Some(before) = batches.last()
                && batch.prev != before.to
            {
                let (position, prev) = (before.to, batch.prev);
                return Err(Error::ChainBroken { room: room.to_string(), position, prev });
            }
            batches.push(batch);
        }
        let (epoch, first, head, more) = (page.epoch, page.first, page.head, page.more);
        Ok(Answer::Page(Page { epoch, first, head, more, batches }))
    }
}

/// The answer to questions for rooms.
pub(crate) fn rooms(list: &protocol::RoomList<'_>) -> Result<Answer, Error> {
    let room = |entry: &protocol::RoomSummary<'_>| {
        let last = entry.last.map(|last| LastRecord {
            offset: last.offset,
            user: last.user.to_owned(),
            kind: last.kind.to_owned(),
            payload: last.payload.to_owned(),
            payload_bytes: last.payload_bytes,
        });
        let room = RoomName::new(entry.room).map_err(Error::protocol)?;
        Ok(RoomSummary { room, first: entry.first, head: entry.head, time: entry.time, last })
    };
    let rooms = list.rooms.iter().map(room).collect::<Result<_, Error>>()?;
    Ok(Answer::Rooms(RoomList { epoch: list.epoch, more: list.more, rooms }))
}
