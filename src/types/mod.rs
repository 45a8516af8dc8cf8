//! The words of Roomlog as validated types: names, positions, records, codes and limits.
//!
//! Nothing here does input or output, and nothing here knows a layer above it.

mod code;
mod ids;
mod limits;
mod record;
pub(crate) mod system;

pub use code::{Advice, Code, Refused};
pub use ids::{Epoch, Offset, Position, PublisherId, RoomName, RoomNameError, SessionId, Start, Time};
pub use limits::{Ceilings, Limits};
pub use record::{GapReason, Header, Headers, NewRecord, Record, RecordFault};
