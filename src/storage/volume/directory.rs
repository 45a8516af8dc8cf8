//! The directory file of a volume: which blocks there are, in order of room and first offset.
//!
//! The file is a sequence of pages of 4096 bytes: one header page, entry pages, index pages, filter pages. Every
//! page begins with 64 bytes of its own:
//!
//! ```text
//! 0   u32  CRC32 of the rest of the page
//! 4        "RLDP"
//! 8   u8   kind: 0 header, 1 entries, 2 index, 3 filter
//! 9   u8   format, 1
//! 10  u16  number of items on the page
//! 12  u32  number of the page, from 0
//! 16  u64  number of the volume
//! 24       0
//! 64       items
//! ```
//!
//! The header page is written last, so a file without it was never finished; the file is exactly as long as the
//! header says, so a file that was cut is found. Index and filter are read once, when the file is opened, and stay
//! in memory: 16 bytes for 63 blocks and 1 byte for a room. Entries are read from the file by the page.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::storage::disk::{Disk, DiskFile};
use crate::types::{Offset, Time};

use super::{VOLUMES, VolumeError, VolumeId, VolumeInfo};

pub(super) const PAGE_BYTES: usize = 4096;
const PAGE_HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 64;
pub(super) const ENTRIES_PER_PAGE: u64 = ((PAGE_BYTES - PAGE_HEADER_BYTES) / ENTRY_BYTES) as u64;
const INDEX_ITEM_BYTES: usize = 16;
const FORMAT: u8 = 1;
const MAGIC: [u8; 4] = *b"RLDP";

const HEADER: u8 = 0;
const ENTRIES: u8 = 1;
const INDEX: u8 = 2;
const FILTER: u8 = 3;

type Page = [u8; PAGE_BYTES];

/// A page of entries, and its number among them.
type NumberedPage = (u64, Arc<Page>);

/// A block, as the directory describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockEntry {
    /// The room.
    pub room: u64,
    /// The offset of the first record.
    pub first: Offset,
    /// The offset of the last record.
    pub last: Offset,
    /// The offset of the record before the first one, in the room.
    pub prev: Offset,
    /// The time of the first record.
    pub first_time: Time,
    /// The time of the last record.
    pub last_time: Time,
    /// How many records.
    pub records: u32,
    /// Bytes of the body.
    pub body_bytes: u32,
    /// Bytes of the body as stored.
    pub stored_bytes: u32,
    /// CRC32 of the body.
    pub crc: u32,
}

impl BlockEntry {
    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let wide = [self.room, self.first.0, self.last.0, self.prev.0, self.first_time.0, self.last_time.0];
        for (place, value) in bytes.chunks_exact_mut(8).zip(wide) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        let narrow = [self.records, self.body_bytes, self.stored_bytes, self.crc];
        for (place, value) in bytes[48..].chunks_exact_mut(4).zip(narrow) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            room: u64_at(bytes, 0),
            first: Offset(u64_at(bytes, 8)),
            last: Offset(u64_at(bytes, 16)),
            prev: Offset(u64_at(bytes, 24)),
            first_time: Time(u64_at(bytes, 32)),
            last_time: Time(u64_at(bytes, 40)),
            records: u32_at(bytes, 48),
            body_bytes: u32_at(bytes, 52),
            stored_bytes: u32_at(bytes, 56),
            crc: u32_at(bytes, 60),
        }
    }
}

/// Where a page of entries begins: its first key.
type IndexItem = (u64, u64);

/// Writes a directory file, a page at a time.
pub(super) struct DirectoryWriter {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    id: VolumeId,
    pages: u32,
    page: Vec<u8>,
    index: Vec<IndexItem>,
    rooms: Vec<u64>,
    info: VolumeInfo,
}

impl DirectoryWriter {
    pub(super) fn create(disk: &dyn Disk, id: VolumeId, commits: (u64, u64)) -> Result<Self, VolumeError> {
        let path = id.directory_path();
        Ok(Self {
            file: disk.create(&path).map_err(VolumeError::io(&path))?,
            path,
            id,
            pages: 1,
            page: Vec::with_capacity(PAGE_BYTES),
            index: Vec::new(),
            rooms: Vec::new(),
            info: VolumeInfo {
                id,
                commit_first: commits.0,
                commit_last: commits.1,
                rooms: 0,
                blocks: 0,
                records: 0,
                body_bytes: 0,
                stored_bytes: 0,
                first_time: Time(u64::MAX),
                last_time: Time(0),
            },
        })
    }

    /// Adds an entry; keys rise.
    pub(super) fn push(&mut self, entry: &BlockEntry) -> Result<(), VolumeError> {
        if self.page.is_empty() {
            self.index.push((entry.room, entry.first.0));
        }
        if self.rooms.last() != Some(&entry.room) {
            self.rooms.push(entry.room);
        }
        let info = &mut self.info;
        info.blocks += 1;
        info.records += u64::from(entry.records);
        info.body_bytes += u64::from(entry.body_bytes);
        info.stored_bytes += u64::from(entry.stored_bytes);
        info.first_time = info.first_time.min(entry.first_time);
        info.last_time = info.last_time.max(entry.last_time);
        self.page.extend_from_slice(&entry.encode());
        if self.page.len() == PAGE_BYTES - PAGE_HEADER_BYTES {
            self.write_page(ENTRIES, ENTRY_BYTES)?;
        }
        Ok(())
    }

    pub(super) fn blocks(&self) -> u64 {
        self.info.blocks
    }

    /// Writes what is left, then the header, and makes all of it durable.
    pub(super) fn finish(mut self, disk: &dyn Disk) -> Result<VolumeInfo, VolumeError> {
        self.write_page(ENTRIES, ENTRY_BYTES)?;
        for (room, first) in std::mem::take(&mut self.index) {
            self.page.extend_from_slice(&room.to_le_bytes());
            self.page.extend_from_slice(&first.to_le_bytes());
            if self.page.len() == PAGE_BYTES - PAGE_HEADER_BYTES {
                self.write_page(INDEX, INDEX_ITEM_BYTES)?;
            }
        }
        self.write_page(INDEX, INDEX_ITEM_BYTES)?;
        let filter = RoomFilter::of(&self.rooms);
        for bytes in filter.bits.chunks(PAGE_BYTES - PAGE_HEADER_BYTES) {
            self.page.extend_from_slice(bytes);
            self.write_page(FILTER, 1)?;
        }
        self.info.rooms = self.rooms.len() as u64;
        self.page = encode_header(&self.info, filter.bits.len() as u64);
        let pages = std::mem::take(&mut self.pages);
        self.write_page(HEADER, self.page.len())?;
        debug_assert_eq!(u64::from(pages), Layout::of(&self.info, filter.bits.len() as u64).pages());
        self.file.sync_data().map_err(VolumeError::io(&self.path))?;
        disk.sync_dir(Path::new(VOLUMES)).map_err(VolumeError::io(Path::new(VOLUMES)))?;
        Ok(self.info)
    }

    fn write_page(&mut self, kind: u8, item_bytes: usize) -> Result<(), VolumeError> {
        if self.page.is_empty() {
            return Ok(());
        }
        let mut page = [0; PAGE_BYTES];
        page[4..8].copy_from_slice(&MAGIC);
        page[8] = kind;
        page[9] = FORMAT;
        let items = u16::try_from(self.page.len() / item_bytes).expect("a page has at most 4032 items");
        page[10..12].copy_from_slice(&items.to_le_bytes());
        page[12..16].copy_from_slice(&self.pages.to_le_bytes());
        page[16..24].copy_from_slice(&self.id.0.to_le_bytes());
        page[PAGE_HEADER_BYTES..][..self.page.len()].copy_from_slice(&self.page);
        let crc = crc32fast::hash(&page[4..]);
        page[..4].copy_from_slice(&crc.to_le_bytes());
        let position = u64::from(self.pages) * PAGE_BYTES as u64;
        self.file.write_all_at(&page, position).map_err(VolumeError::io(&self.path))?;
        self.page.clear();
        self.pages += 1;
        Ok(())
    }
}

/// The items of the header page.
fn encode_header(info: &VolumeInfo, filter_bytes: u64) -> Vec<u8> {
    let fields = [
        info.commit_first,
        info.commit_last,
        info.rooms,
        info.blocks,
        info.records,
        info.body_bytes,
        info.stored_bytes,
        info.first_time.0,
        info.last_time.0,
        filter_bytes,
    ];
    fields.iter().flat_map(|field| field.to_le_bytes()).collect()
}

/// How many pages there are of each kind.
#[derive(Clone, Copy, Debug)]
struct Layout {
    entry_pages: u64,
    index_pages: u64,
    filter_pages: u64,
}

impl Layout {
    fn of(info: &VolumeInfo, filter_bytes: u64) -> Self {
        let items_bytes = (PAGE_BYTES - PAGE_HEADER_BYTES) as u64;
        let entry_pages = info.blocks.div_ceil(ENTRIES_PER_PAGE);
        Self {
            entry_pages,
            index_pages: entry_pages.div_ceil(items_bytes / INDEX_ITEM_BYTES as u64),
            filter_pages: filter_bytes.div_ceil(items_bytes),
        }
    }

    fn pages(self) -> u64 {
        1 + self.entry_pages + self.index_pages + self.filter_pages
    }
}

/// Which rooms a volume may have records of: a Bloom filter of 8 bits per room, wrong for about one room in forty
/// of those that it has none of.
#[derive(Debug)]
struct RoomFilter {
    bits: Vec<u8>,
}

impl RoomFilter {
    const PROBES: u64 = 4;

    fn of(rooms: &[u64]) -> Self {
        let mut filter = Self { bits: vec![0; rooms.len()] };
        for room in rooms {
            for bit in filter.probes(*room) {
                filter.bits[bit / 8] |= 1 << (bit % 8);
            }
        }
        filter
    }

    fn may_hold(&self, room: u64) -> bool {
        !self.bits.is_empty() && self.probes(room).all(|bit| self.bits[bit / 8] & (1 << (bit % 8)) != 0)
    }

    fn probes(&self, room: u64) -> impl Iterator<Item = usize> + use<> {
        // The finaliser of splitmix64; its halves are two hashes, of which all probes are made.
        let mut hash = room.wrapping_add(0x9E37_79B9_7F4A_7C15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        hash ^= hash >> 31;
        let (one, other, bits) = (hash & 0xFFFF_FFFF, hash >> 32, self.bits.len() as u64 * 8);
        (0..Self::PROBES).map(move |probe| ((one + probe * other) % bits) as usize)
    }
}

/// A directory file of a finished volume.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    info: VolumeInfo,
    layout: Layout,
    index: Vec<IndexItem>,
    filter: RoomFilter,
    // Closed when there are too many open ones.
    file: Mutex<Option<Arc<Opened>>>,
}

/// How many pages of entries an open file keeps: whoever looks for a place looks several times at the same one.
const RECENT_PAGES: usize = 8;

/// An open file, and pages of entries that were read and verified lately, each in the slot of its number.
#[derive(Debug)]
struct Opened {
    file: Arc<dyn DiskFile>,
    recent: [Mutex<Option<NumberedPage>>; RECENT_PAGES],
}

impl Directory {
    /// Opens a file, and reads and verifies its header, index and filter.
    pub(super) fn open(disk: &dyn Disk, id: VolumeId) -> Result<Self, VolumeError> {
        let path = id.directory_path();
        let file = match disk.open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(VolumeError::damaged(&path, 0, "the file is missing"));
            }
            other => other.map_err(VolumeError::io(&path))?,
        };
        let length = file.len().map_err(VolumeError::io(&path))?;
        if length < PAGE_BYTES as u64 {
            return Err(VolumeError::damaged(&path, length, "the file ends within its first page"));
        }
        let page = read_page(&*file, &path, id, 0, HEADER)?;
        let fields: Vec<u64> = page[PAGE_HEADER_BYTES..].chunks_exact(8).map(|bytes| u64_at(bytes, 0)).collect();
        let info = VolumeInfo {
            id,
            commit_first: fields[0],
            commit_last: fields[1],
            rooms: fields[2],
            blocks: fields[3],
            records: fields[4],
            body_bytes: fields[5],
            stored_bytes: fields[6],
            first_time: Time(fields[7]),
            last_time: Time(fields[8]),
        };
        let filter_bytes = fields[9];
        let layout = Layout::of(&info, filter_bytes);
        if length != layout.pages().saturating_mul(PAGE_BYTES as u64) {
            let what = format!("the file has {length} bytes, its header says {} pages", layout.pages());
            return Err(VolumeError::damaged(&path, length, what));
        }
        let mut index = Vec::new();
        let mut filter = RoomFilter { bits: Vec::new() };
        for number in 1 + layout.entry_pages..1 + layout.entry_pages + layout.index_pages {
            let page = read_page(&*file, &path, id, number, INDEX)?;
            let items = page[PAGE_HEADER_BYTES..].chunks_exact(INDEX_ITEM_BYTES).take(items_on(&page));
            index.extend(items.map(|item| (u64_at(item, 0), u64_at(item, 8))));
        }
        for number in 1 + layout.entry_pages + layout.index_pages..layout.pages() {
            let page = read_page(&*file, &path, id, number, FILTER)?;
            filter.bits.extend(page[PAGE_HEADER_BYTES..].iter().take(items_on(&page)));
        }
        if index.len() as u64 != layout.entry_pages || filter.bits.len() as u64 != filter_bytes {
            return Err(VolumeError::damaged(&path, 0, "index and filter are not as long as the header says"));
        }
        Ok(Self { path, info, layout, index, filter, file: Mutex::new(None) })
    }

    pub(super) fn info(&self) -> &VolumeInfo {
        &self.info
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that it takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.index.len() * INDEX_ITEM_BYTES + self.filter.bits.len() + 256
    }

    /// Whether the volume may have records of a room; if not, it has none.
    pub(super) fn may_hold(&self, room: u64) -> bool {
        self.filter.may_hold(room)
    }

    /// Gives the file's descriptor back until the next use; says whether there was one.
    pub(super) fn close_file(&self) -> bool {
        self.file.lock().take().is_some()
    }

    pub(super) fn file_is_open(&self) -> bool {
        self.file.lock().is_some()
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.layout.pages() * PAGE_BYTES as u64
    }

    /// Begins a look at the entries; says whether the file had to be opened for it.
    pub(super) fn entries(&self, disk: &dyn Disk) -> Result<(Entries<'_>, bool), VolumeError> {
        let mut open = self.file.lock();
        let (file, opened) = match &*open {
            Some(file) => (Arc::clone(file), false),
            None => {
                let file = disk.open(&self.path).map_err(VolumeError::io(&self.path))?;
                (Arc::new(Opened { file, recent: Default::default() }), true)
            }
        };
        *open = Some(Arc::clone(&file));
        Ok((Entries { directory: self, file, page: None }, opened))
    }
}

/// An entry, and its number in the directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) entry: BlockEntry,
}

/// What a directory says of a place in a room.
pub(super) enum Sought {
    /// It has no records of the room.
    NoRoom,
    /// It has records of the room, but all on the other side of the place.
    NotHere,
    /// The block.
    Found(Numbered),
}

/// A look at the entries of a directory; keeps the page that was read last.
pub(super) struct Entries<'a> {
    directory: &'a Directory,
    file: Arc<Opened>,
    page: Option<NumberedPage>,
}

impl Entries<'_> {
    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.directory.info.blocks
    }

    /// The entry with a number, from 0.
    pub(super) fn entry(&mut self, number: u64) -> Result<BlockEntry, VolumeError> {
        let slot = (number % ENTRIES_PER_PAGE) as usize;
        let page = self.page(number / ENTRIES_PER_PAGE)?;
        Ok(BlockEntry::decode(&page[PAGE_HEADER_BYTES + slot * ENTRY_BYTES..][..ENTRY_BYTES]))
    }

    /// The number of the first entry whose key is at least this one.
    fn lower_bound(&mut self, room: u64, first: u64) -> Result<u64, VolumeError> {
        let pages_before = self.directory.index.partition_point(|item| *item < (room, first)) as u64;
        let Some(page) = pages_before.checked_sub(1) else { return Ok(0) };
        let (mut low, mut high) = (page * ENTRIES_PER_PAGE, (pages_before * ENTRIES_PER_PAGE).min(self.len()));
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle)?;
            if (entry.room, entry.first.0) < (room, first) { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The entry with a number, if there is one and it is of the room.
    fn entry_of(&mut self, room: u64, number: Option<u64>) -> Result<Option<Numbered>, VolumeError> {
        let Some(number) = number.filter(|number| *number < self.len()) else { return Ok(None) };
        let entry = self.entry(number)?;
        Ok((entry.room == room).then_some(Numbered { number, entry }))
    }

    /// The first block of a room that ends behind an offset.
    pub(super) fn after(&mut self, room: u64, offset: Offset) -> Result<Sought, VolumeError> {
        let behind = self.lower_bound(room, offset.0.saturating_add(1))?;
        let around = self.entry_of(room, behind.checked_sub(1))?;
        match around {
            Some(around) if around.entry.last > offset => Ok(Sought::Found(around)),
            around => Ok(match (self.entry_of(room, Some(behind))?, around) {
                (Some(entry), _) => Sought::Found(entry),
                (None, Some(_)) => Sought::NotHere,
                (None, None) => Sought::NoRoom,
            }),
        }
    }

    /// The last block of a room that begins before an offset.
    pub(super) fn before(&mut self, room: u64, offset: Offset) -> Result<Sought, VolumeError> {
        let behind = self.lower_bound(room, offset.0)?;
        if let Some(entry) = self.entry_of(room, behind.checked_sub(1))? {
            return Ok(Sought::Found(entry));
        }
        Ok(if self.entry_of(room, Some(behind))?.is_some() { Sought::NotHere } else { Sought::NoRoom })
    }

    /// The first block of a room with a record of this time or later.
    pub(super) fn since(&mut self, room: u64, time: Time) -> Result<Sought, VolumeError> {
        let numbers = self.of_room(room)?;
        if numbers.is_empty() {
            return Ok(Sought::NoRoom);
        }
        let (mut low, mut high) = (numbers.start, numbers.end);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.last_time < time { low = middle + 1 } else { high = middle }
        }
        Ok(self.entry_of(room, Some(low))?.map_or(Sought::NotHere, Sought::Found))
    }

    /// The numbers of a room's entries.
    pub(super) fn of_room(&mut self, room: u64) -> Result<Range<u64>, VolumeError> {
        let first = self.lower_bound(room, 0)?;
        let end = match room.checked_add(1) {
            Some(next) => self.lower_bound(next, 0)?,
            None => self.len(),
        };
        Ok(first..end)
    }

    fn page(&mut self, number: u64) -> Result<&Page, VolumeError> {
        if self.page.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            let (directory, opened) = (self.directory, &*self.file);
            let recent = &opened.recent[number as usize % RECENT_PAGES];
            if let Some((of, page)) = &*recent.lock()
                && *of == number
            {
                self.page = Some((number, Arc::clone(page)));
                return Ok(&self.page.as_ref().expect("just found").1);
            }
            let page = read_page(&*opened.file, &directory.path, directory.info.id, 1 + number, ENTRIES)?;
            let expected = ENTRIES_PER_PAGE.min(directory.info.blocks - number * ENTRIES_PER_PAGE);
            let first = BlockEntry::decode(&page[PAGE_HEADER_BYTES..]);
            if items_on(&page) as u64 != expected || (first.room, first.first.0) != directory.index[number as usize] {
                let position = (1 + number) * PAGE_BYTES as u64;
                return Err(VolumeError::damaged(&directory.path, position, "the page is not the one of the index"));
            }
            *recent.lock() = Some((number, Arc::clone(&page)));
            self.page = Some((number, page));
        }
        Ok(&self.page.as_ref().expect("just read").1)
    }
}

fn read_page(file: &dyn DiskFile, path: &Path, id: VolumeId, number: u64, kind: u8) -> Result<Arc<Page>, VolumeError> {
    let mut page = [0; PAGE_BYTES];
    let position = number * PAGE_BYTES as u64;
    file.read_exact_at(&mut page, position).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => VolumeError::damaged(path, position, "the file ends too early"),
        _ => VolumeError::io(path)(error),
    })?;
    let damaged = |what: &str| Err(VolumeError::damaged(path, position, what));
    if crc32fast::hash(&page[4..]) != u32_at(&page, 0) || page[4..8] != MAGIC {
        return damaged(if kind == HEADER {
            "the header is damaged, or was never written"
        } else {
            "the checksum is wrong"
        });
    }
    if page[9] != FORMAT {
        return damaged(&format!("the format is {}, this program knows {FORMAT}", page[9]));
    }
    if page[8] != kind || u64::from(u32_at(&page, 12)) != number || u64_at(&page, 16) != id.0 {
        return damaged("the page belongs elsewhere");
    }
    Ok(Arc::new(page))
}

fn items_on(page: &Page) -> usize {
    usize::from(u16::from_le_bytes([page[10], page[11]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
