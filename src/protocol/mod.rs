//! Sans-IO: bytes to frames and back. The bytes of a batch are the same on disk, in memory and on every socket.
//!
//! `docs/protocol.md` specifies all of it byte by byte. Nothing here opens a socket or a file, and nothing here
//! decides whether a request is allowed.

mod answer;
mod batch;
mod close;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod examine;
mod frame;
mod later;
mod number;
mod request;
#[cfg(test)]
mod tests;
mod wire;

pub use answer::{
    Cut, Delivery, DeliveryHeader, Fault, Gap, Goodbye, JoinResult, Joined, LastRecord, Mark, Page, PageDelivery, Pong,
    Published, RoomList, RoomSummary, StreamHead, Void, Welcome, WelcomeLimits,
};
pub use batch::{
    BATCH_BYTES_MAX, BATCH_VERSION, Batch, BatchBuilder, BatchHeader, Meant, RecordArea, Records, Run, RunHeader, Runs,
};
pub use close::Close;
pub use frame::{ClientFrame, ServerFrame};
pub use later::{
    Cursor, CursorGet, CursorMoved, CursorSet, Cursors, Later, Member, Members, PresenceDiff, PresenceGet, PresenceSet,
    PresenceSnapshot, Refresh, RefreshRequired, RoomDelete, RoomSet, RoomSettings, Signal, SignalPush, SignalStopped,
};
pub use number::{ALPN, JoinId, MAGIC, Number, RequestId, SUB_PROTOCOL, VERSION, WEBSOCKET_PATH};
pub use request::{
    Credit, Hello, HelloBody, History, HistoryAt, Join, Leave, MembersWanted, Ping, Publish, Resume, Rooms, StartAt,
    Summary, Unsupported, Want,
};
pub use wire::{FrameError, Frames, WireError, frame_into, split_frame};
pub(crate) use wire::{decode, decode_head, encode_into};
