//! A disk for tests, in memory, that does what a real one may do: fail, tear a write, lose what was not synced.
//!
//! Each file is a row of sectors. A sector remembers everything that may be on the medium: what was synced last,
//! and every content written since. A directory remembers the operations on it since its last sync. When the
//! power goes, chance decides for each of them, by a seed. A failed sync leaves what a reader sees as it is and
//! makes no promise for the medium, nor does a later sync of the same bytes: that is how Linux behaves.

mod medium;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile};
use medium::{Chance, Change, File, Medium, Node, ROOT, SECTOR, Sector, place};

/// How an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// `EIO`, and nothing of it happened.
    Eio,
    /// `ENOSPC`, and nothing of it happened.
    Enospc,
    /// A write that stops after so many bytes with `ENOSPC`; other operations fail like [`Fault::Enospc`].
    Short {
        /// How many bytes are written.
        bytes: usize,
    },
    /// A write of which some sectors arrive and others do not, and then `EIO`; others fail like [`Fault::Eio`].
    Torn,
}

/// A disk in memory that fails as it is told. Clones are the same disk.
///
/// Operations that change something are counted from 1: create, write, `set_len`, sync, rename, remove, and
/// those on directories. The same seed and the same operations give the same disk.
#[derive(Clone, Debug)]
pub struct FaultyDisk(Arc<Mutex<Machine>>);

#[derive(Debug)]
struct Machine {
    medium: Medium,
    chance: Chance,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    /// From this operation on there is no power.
    cut_at: Option<u64>,
    moments: Option<Vec<Moment>>,
    /// From this operation on no more than so many bytes are free.
    fill_at: Option<(u64, u64)>,
}

/// The state of a disk right after one of its operations.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The operation; 0 stands before the first.
    pub operation: u64,
    /// What it was, for the messages of tests.
    pub what: String,
    medium: Medium,
}

impl Moment {
    /// The disk as after a reboot, had the power gone right after this operation.
    #[must_use]
    pub fn reopen(&self, seed: u64) -> FaultyDisk {
        let mut chance = Chance(seed);
        FaultyDisk::with(self.medium.after_power_cut(&mut chance), chance)
    }

    /// The disk as the next process finds it, had this one been killed right after this operation.
    #[must_use]
    pub fn after_kill(&self, seed: u64) -> FaultyDisk {
        FaultyDisk::with(self.medium.clone(), Chance(seed))
    }
}

impl FaultyDisk {
    /// An empty disk without limit, on which nothing fails yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let medium = Medium {
            files: HashMap::new(),
            directories: HashMap::from([(ROOT, Arc::default())]),
            next_id: ROOT + 1,
            capacity_bytes: u64::MAX,
        };
        Self::with(medium, Chance(seed))
    }

    fn with(medium: Medium, chance: Chance) -> Self {
        let faults = BTreeMap::new();
        Self(Arc::new(Mutex::new(Machine {
            medium,
            chance,
            operations: 0,
            faults,
            cut_at: None,
            moments: None,
            fill_at: None,
        })))
    }

    /// How many operations there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Lets an operation fail: the next one has the number [`FaultyDisk::operations`] + 1.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.0.lock().faults.insert(operation, fault);
    }

    /// Cuts the power: this operation and all later ones, reading too, fail. [`FaultyDisk::reopen`] goes on.
    pub fn cut_at(&self, operation: u64) {
        self.0.lock().cut_at = Some(operation);
    }

    /// Sets how many bytes the files may take together.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().medium.capacity_bytes = bytes;
    }

    /// Lets others take all space but so many bytes when an operation begins.
    pub fn fill_at(&self, operation: u64, free_bytes: u64) {
        self.0.lock().fill_at = Some((operation, free_bytes));
    }

    /// The disk as after a reboot, had the power gone now. This disk is not changed.
    #[must_use]
    pub fn reopen(&self, seed: u64) -> Self {
        let mut chance = Chance(seed);
        let medium = self.0.lock().medium.after_power_cut(&mut chance);
        Self::with(medium, chance)
    }

    /// The disk as the next process finds it, had this one been killed now: nothing is lost, and nothing is more
    /// durable than it was. This disk is not changed.
    #[must_use]
    pub fn after_kill(&self, seed: u64) -> Self {
        Self::with(self.0.lock().medium.clone(), Chance(seed))
    }

    /// Keeps a [`Moment`] after each operation from now on, and one of now.
    pub fn record(&self) {
        let mut machine = self.0.lock();
        machine.moments = Some(Vec::new());
        machine.remember("start");
    }

    /// The moments since [`FaultyDisk::record`], in order; recording ends.
    #[must_use]
    pub fn take_moments(&self) -> Vec<Moment> {
        self.0.lock().moments.take().unwrap_or_default()
    }

    /// Makes everything durable as it is, outside of all counting.
    pub fn settle(&self) {
        let medium = &mut self.0.lock().medium;
        medium.files.values_mut().for_each(|file| Arc::make_mut(file).settle());
        medium.directories.values_mut().for_each(|directory| Arc::make_mut(directory).settle());
    }

    /// Flips bits of one byte of a file, in what is read and on the medium.
    ///
    /// # Panics
    /// When there is no such byte: a bug of the test.
    pub fn flip(&self, path: &Path, position: u64, mask: u8) {
        let mut machine = self.0.lock();
        let id = machine.medium.file(path).expect("the test names a file that is there");
        let file = Arc::make_mut(machine.medium.files.get_mut(&id).expect("an entry has its file"));
        assert!(position < file.length, "the test names a byte of the file");
        let (index, within) = place(position);
        let sector = &mut file.sectors[index];
        let mut bytes = *sector.now;
        bytes[within] ^= mask;
        *sector = Sector { now: Arc::new(bytes), before: Vec::new(), forgotten: false };
    }
}

impl Machine {
    fn powered(&self) -> io::Result<()> {
        match self.cut_at {
            Some(cut_at) if self.operations + 1 >= cut_at => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    /// Counts an operation and does it, unless it is to fail.
    fn operate<T>(
        &mut self,
        what: impl FnOnce() -> String,
        work: impl FnOnce(&mut Medium, Option<Fault>, &mut Chance) -> io::Result<T>,
    ) -> io::Result<T> {
        self.powered()?;
        self.operations += 1;
        if let Some((_, free_bytes)) = self.fill_at.take_if(|(at, _)| *at <= self.operations) {
            self.medium.capacity_bytes = self.medium.used_bytes() + free_bytes;
        }
        let fault = self.faults.remove(&self.operations);
        let result = work(&mut self.medium, fault, &mut self.chance);
        if self.moments.is_some() {
            self.remember(&what());
        }
        result
    }

    fn remember(&mut self, what: &str) {
        let moment = Moment { operation: self.operations, what: what.to_string(), medium: self.medium.clone() };
        self.moments.get_or_insert_default().push(moment);
    }
}

/// An operation without parts either fails or happens.
fn fail_whole(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        None => Ok(()),
        Some(Fault::Eio | Fault::Torn) => Err(eio()),
        Some(Fault::Enospc | Fault::Short { .. }) => Err(io::ErrorKind::StorageFull.into()),
    }
}

fn eio() -> io::Error {
    io::Error::other("input/output error (injected)")
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let machine = self.0.lock();
        machine.powered()?;
        let id = machine.medium.file(path)?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), id, path: path.to_path_buf() }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.0.lock().operate(
            || format!("create {}", path.display()),
            |medium, fault, _| {
                let (directory, name) = medium.parent(path)?;
                if medium.directories[&directory].now.contains_key(&name) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fail_whole(fault)?;
                let id = medium.next_id;
                medium.next_id += 1;
                medium.files.insert(id, Arc::new(File { linked: true, ..File::default() }));
                medium.directory_mut(directory).change(Change::Add(name, Node::File(id)));
                Ok(id)
            },
        )?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), id, path: path.to_path_buf() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.lock().operate(
            || format!("rename {} to {}", from.display(), to.display()),
            |medium, fault, _| {
                let ((directory, from), (other, to), node) =
                    (medium.parent(from)?, medium.parent(to)?, medium.node(from)?);
                if directory != other {
                    return Err(io::ErrorKind::CrossesDevices.into());
                }
                fail_whole(fault)?;
                let replaced = medium.directories[&directory].now.get(&to).copied();
                medium.unlink(replaced);
                medium.directory_mut(directory).change(Change::Rename { from, to, node });
                Ok(())
            },
        )
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.lock().operate(
            || format!("remove {}", path.display()),
            |medium, fault, _| {
                let node = Node::File(medium.file(path)?);
                fail_whole(fault)?;
                let (directory, name) = medium.parent(path)?;
                medium.unlink(Some(node));
                medium.directory_mut(directory).change(Change::Remove(name, node));
                Ok(())
            },
        )
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.lock().operate(
            || format!("create directory {}", path.display()),
            |medium, fault, _| {
                fail_whole(fault)?;
                let mut at = PathBuf::new();
                for component in path.components() {
                    at.push(component);
                    match medium.directory(&at) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            let (directory, name) = medium.parent(&at)?;
                            let id = medium.next_id;
                            medium.next_id += 1;
                            medium.directories.insert(id, Arc::default());
                            medium.directory_mut(directory).change(Change::Add(name, Node::Directory(id)));
                        }
                        other => drop(other?),
                    }
                }
                Ok(())
            },
        )
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.lock().operate(
            || format!("remove directory {}", path.display()),
            |medium, fault, _| {
                let id = match medium.directory(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    id => id?,
                };
                fail_whole(fault)?;
                let (directory, name) = medium.parent(path)?;
                medium.directory_mut(directory).change(Change::Remove(name, Node::Directory(id)));
                let mut open = vec![id];
                while let Some(id) = open.pop() {
                    for node in medium.directories[&id].now.clone().into_values() {
                        match node {
                            Node::File(_) => medium.unlink(Some(node)),
                            Node::Directory(id) => open.push(id),
                        }
                    }
                }
                Ok(())
            },
        )
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let machine = self.0.lock();
        machine.powered()?;
        match machine.medium.directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            id => Ok(machine.medium.directories[&id?].now.keys().map(PathBuf::from).collect()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.lock().operate(
            || format!("sync directory {}", path.display()),
            |medium, fault, _| {
                fail_whole(fault)?;
                let id = medium.directory(path)?;
                medium.directory_mut(id).settle();
                Ok(())
            },
        )
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let machine = self.0.lock();
        machine.powered()?;
        Ok(machine.medium.capacity_bytes.saturating_sub(machine.medium.used_bytes()))
    }

    fn used_bytes(&self, path: &Path) -> io::Result<u64> {
        let machine = self.0.lock();
        machine.powered()?;
        let medium = &machine.medium;
        let length = |id: &u64| medium.files[id].length.next_multiple_of(SECTOR as u64);
        if let Ok(id) = medium.file(path) {
            return Ok(length(&id));
        }
        let (mut open, mut bytes) = (vec![], 0);
        match medium.directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            id => open.push(id?),
        }
        while let Some(id) = open.pop() {
            for node in medium.directories[&id].now.values() {
                match node {
                    Node::File(id) => bytes += length(id),
                    Node::Directory(id) => open.push(*id),
                }
            }
        }
        Ok(bytes)
    }

    fn root(&self) -> Option<&Path> {
        None
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    id: u64,
    /// The name it was opened by, for messages.
    path: PathBuf,
}

impl DiskFile for FaultyFile {
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let machine = self.disk.0.lock();
        machine.powered()?;
        let file = &machine.medium.files[&self.id];
        if position.saturating_add(buffer.len() as u64) > file.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (position, buffer);
        while !rest.is_empty() {
            let (index, within) = place(at);
            let count = rest.len().min(SECTOR - within);
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&file.sectors[index].now[within..within + count]);
            (at, rest) = (at + count as u64, tail);
        }
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.disk.0.lock().operate(
            || format!("write {} bytes to {} at {position}", bytes.len(), self.path.display()),
            |medium, fault, chance| {
                let bytes = match fault {
                    Some(Fault::Eio | Fault::Enospc) => return fail_whole(fault),
                    Some(Fault::Short { bytes: count }) => &bytes[..count.min(bytes.len())],
                    Some(Fault::Torn) | None => bytes,
                };
                let end = position + bytes.len() as u64;
                if end > medium.files[&self.id].length {
                    if !medium.has_space(self.id, end) {
                        return Err(io::ErrorKind::StorageFull.into());
                    }
                    medium.file_mut(self.id).resize(end);
                }
                let torn = fault == Some(Fault::Torn);
                medium.file_mut(self.id).write(bytes, position, || !torn || chance.below(2) == 0);
                fail_whole(fault)
            },
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.0.lock().operate(
            || format!("sync {}", self.path.display()),
            |medium, fault, _| {
                let file = medium.file_mut(self.id);
                if fault.is_some() {
                    file.sync_failed()
                } else {
                    file.sync()
                }
                fail_whole(fault)
            },
        )
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.disk.0.lock().operate(
            || format!("set the length of {} to {bytes}", self.path.display()),
            |medium, fault, _| {
                fail_whole(fault)?;
                if !medium.has_space(self.id, bytes) {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                medium.file_mut(self.id).resize(bytes);
                Ok(())
            },
        )
    }

    fn len(&self) -> io::Result<u64> {
        let machine = self.disk.0.lock();
        machine.powered()?;
        Ok(machine.medium.files[&self.id].length)
    }
}
