//! The checkpoint of room metadata: what lets a stretch of the journal go.
//!
//! One file that holds every room: its name, number and facts, and what it remembers of its publishers. Each room
//! is checksummed by itself, so that the publishers of a room at rest are read only when it comes into use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bincode::{BorrowDecode, Encode};

use super::disk::{Disk, DiskFile};
use super::engine::EngineError;
use super::publishers::Publishers;
use super::room::{Facts, RoomId};
use crate::protocol::{decode_head, encode_into};
use crate::types::{Offset, RoomName, Time};

const MAGIC: [u8; 8] = *b"RLmeta01";
/// Magic, the file's own number, then rooms; at the end a room of length 0 and the number of rooms.
const HEADER_BYTES: u64 = 16;
/// Length and checksum in front of each room.
const FRAME_BYTES: usize = 8;
const BUFFER_BYTES: usize = 1 << 20;

/// Where a room stands in a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(test, derive(Default))]
pub(crate) struct Place {
    at: u64,
    bytes: u32,
}

/// A finished checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

#[derive(Encode, BorrowDecode)]
struct Stored<'a> {
    id: u64,
    name: &'a str,
    head: Offset,
    floor: Offset,
    first: Offset,
    time: Time,
    first_time: Time,
    records: u64,
    bytes: u64,
}

/// The directory of checkpoints in the data directory.
pub(crate) const DIRECTORY: &str = "meta";

/// The file of a checkpoint.
pub(crate) fn path(number: u64) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{number:020}.rlm"))
}

/// Why a checkpoint cannot be read.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) file: String,
    pub(crate) position: u64,
    pub(crate) what: String,
}

impl Fault {
    fn new(path: &Path, position: u64, what: impl ToString) -> Self {
        Self { file: path.display().to_string(), position, what: what.to_string() }
    }
}

impl From<Fault> for EngineError {
    fn from(Fault { file, position, what }: Fault) -> Self {
        Self::Damaged(format!("{file}:{position}: {what}"))
    }
}

/// Writes a checkpoint; nothing of it counts before [`Writer::finish`].
pub(crate) struct Writer {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    flushed: u64,
    rooms: u64,
}

impl Writer {
    pub(crate) fn create(disk: &dyn Disk, number: u64) -> std::io::Result<Self> {
        let path = path(number);
        if disk.list(Path::new(DIRECTORY))?.iter().any(|name| path.ends_with(name)) {
            // Left over from an attempt that was cut short: no manifest names it.
            disk.remove(&path)?;
        }
        let file = disk.create(&path)?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.extend_from_slice(&MAGIC);
        buffer.extend_from_slice(&number.to_le_bytes());
        Ok(Self { path, file, buffer, flushed: 0, rooms: 0 })
    }

    /// Adds a room with what it remembers of its publishers, encoded. Who reads the checkpoint is quickest if rooms come
    /// in the order of their names.
    pub(crate) fn room(&mut self, id: RoomId, name: &str, facts: &Facts, publishers: &[u8]) -> std::io::Result<Place> {
        let &Facts { head, floor, first, time, first_time, records, bytes } = facts;
        let stored = Stored { id: id.0, name, head, floor, first, time, first_time, records, bytes };
        let start = self.buffer.len();
        self.buffer.resize(start + FRAME_BYTES, 0);
        encode_into(&mut self.buffer, &stored);
        self.buffer.extend_from_slice(publishers);
        let body = start + FRAME_BYTES;
        let length = u32::try_from(self.buffer.len() - body).expect("a room's metadata is bounded");
        let crc = crc32fast::hash(&self.buffer[body..]);
        self.buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.buffer[start + 4..body].copy_from_slice(&crc.to_le_bytes());
        let place = Place { at: self.flushed + start as u64, bytes: length };
        self.rooms += 1;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(place)
    }

    /// Makes the checkpoint durable.
    pub(crate) fn finish(mut self, disk: &dyn Disk) -> std::io::Result<Checkpoint> {
        let rooms = self.rooms.to_le_bytes();
        self.buffer.extend_from_slice(&0_u32.to_le_bytes());
        self.buffer.extend_from_slice(&crc32fast::hash(&rooms).to_le_bytes());
        self.buffer.extend_from_slice(&rooms);
        self.flush()?;
        self.file.sync_data()?;
        disk.sync_dir(Path::new(DIRECTORY))?;
        Ok(Checkpoint { path: self.path, file: self.file })
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.write_all_at(&self.buffer, self.flushed)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Checkpoint {
    /// Reads a whole checkpoint and tells of each room, without decoding its publishers.
    pub(crate) fn open(
        disk: &dyn Disk,
        number: u64,
        mut room: impl FnMut(&str, RoomId, Facts, Place),
    ) -> Result<Self, Fault> {
        let path = path(number);
        let fault = |position: u64, what: &dyn ToString| Fault::new(&path, position, what.to_string());
        let file = disk.open(&path).map_err(|error| fault(0, &error))?;
        let end = file.len().map_err(|error| fault(0, &error))?;
        let mut reader = Reader { file: &*file, buffer: Vec::new(), start: 0, end };
        let header = reader.take(0, HEADER_BYTES).map_err(|what| fault(0, &what))?;
        if header[..8] != MAGIC || header[8..] != number.to_le_bytes() {
            return Err(fault(0, &"not the header of this checkpoint"));
        }
        let (mut at, mut rooms) = (HEADER_BYTES, 0_u64);
        loop {
            let frame = reader.take(at, FRAME_BYTES as u64).map_err(|what| fault(at, &what))?;
            let length = u32::from_le_bytes(frame[..4].try_into().expect("four bytes"));
            let crc = u32::from_le_bytes(frame[4..].try_into().expect("four bytes"));
            let body_at = at + FRAME_BYTES as u64;
            let body_bytes = if length == 0 { 8 } else { u64::from(length) };
            let body = reader.take(body_at, body_bytes).map_err(|what| fault(at, &what))?;
            if crc32fast::hash(body) != crc {
                return Err(fault(at, &"a room's checksum is wrong"));
            }
            if length == 0 {
                if body != rooms.to_le_bytes() || body_at + 8 != end {
                    return Err(fault(at, &"the end is not where it should be"));
                }
                return Ok(Self { path, file });
            }
            let (stored, _) =
                decode_head::<Stored<'_>>("a room's metadata", body).map_err(|error| fault(at, &error))?;
            let Stored { id, name, head, floor, first, time, first_time, records, bytes } = stored;
            RoomName::check(name).map_err(|error| fault(at, &error))?;
            let facts = Facts { head, floor, first, time, first_time, records, bytes };
            room(name, RoomId(id), facts, Place { at, bytes: length });
            rooms += 1;
            at = body_at + body_bytes;
        }
    }

    /// What a room remembers of its publishers, encoded.
    pub(crate) fn publishers_bytes(&self, place: Place) -> Result<Vec<u8>, EngineError> {
        let mut frame = vec![0; FRAME_BYTES + place.bytes as usize];
        let fault = |what: &dyn ToString| Fault::new(&self.path, place.at, what.to_string());
        self.file.read_exact_at(&mut frame, place.at).map_err(|error| fault(&error))?;
        let crc = u32::from_le_bytes(frame[4..8].try_into().expect("four bytes"));
        if frame[..4] != place.bytes.to_le_bytes() || crc32fast::hash(&frame[FRAME_BYTES..]) != crc {
            return Err(fault(&"a room's checksum is wrong").into());
        }
        let (_, rest) =
            decode_head::<Stored<'_>>("a room's metadata", &frame[FRAME_BYTES..]).map_err(|error| fault(&error))?;
        Ok(rest.to_vec())
    }

    /// What a room remembers of its publishers.
    pub(crate) fn publishers(&self, place: Place) -> Result<Publishers, EngineError> {
        let bytes = self.publishers_bytes(place)?;
        let fault = |what: &dyn ToString| Fault::new(&self.path, place.at, what.to_string());
        match Publishers::decode(&bytes) {
            Ok((publishers, [])) => Ok(publishers),
            Ok(_) => Err(fault(&"bytes follow a room's publishers").into()),
            Err(error) => Err(fault(&error).into()),
        }
    }
}

/// Reads a file from front to back in large pieces.
struct Reader<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
    start: u64,
    end: u64,
}

impl Reader<'_> {
    fn take(&mut self, at: u64, bytes: u64) -> Result<&[u8], String> {
        if at + bytes > self.end {
            return Err("the file ends within a room".to_owned());
        }
        if at < self.start || at + bytes > self.start + self.buffer.len() as u64 {
            let length = bytes.max(BUFFER_BYTES as u64).min(self.end - at);
            self.buffer.resize(usize::try_from(length).expect("a buffer's length"), 0);
            self.start = at;
            self.file.read_exact_at(&mut self.buffer, at).map_err(|error| error.to_string())?;
        }
        let from = usize::try_from(at - self.start).expect("within the buffer");
        Ok(&self.buffer[from..from + usize::try_from(bytes).expect("within the buffer")])
    }
}
