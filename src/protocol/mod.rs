//! Sans-IO: bytes to frames and back. The bytes of a batch are the same on disk, in memory and on every socket.
//!
//! `docs/protocol.md` specifies all of it byte by byte. Nothing here opens a socket or a file, and nothing here
//! decides whether a request is allowed.

mod batch;
mod frame;
mod wire;

pub use batch::{
    BATCH_BYTES_MAX, BATCH_VERSION, Batch, BatchBuilder, BatchHeader, RecordArea, Records, Run, RunHeader, Runs,
};
pub use frame::{
    ClientFrame, Credit, Cut, Delivery, DeliveryHeader, Fault, Gap, Goodbye, Hello, HelloBody, History, HistoryAt,
    Join, JoinId, JoinResult, Joined, LastRecord, Leave, MAGIC, Mark, MembersWanted, Number, Page, PageDelivery, Ping,
    Pong, Publish, Published, RequestId, Resume, RoomList, RoomSummary, Rooms, ServerFrame, StartAt, Summary,
    Unsupported, VERSION, Void, Want, Welcome, WelcomeLimits,
};
pub use wire::{FrameError, Frames, WireError, frame_into, split_frame};
pub(crate) use wire::{decode, decode_head, encode_into};
