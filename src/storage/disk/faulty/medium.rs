//! What is seen of a disk, what may be on its medium, and what chance makes of that when the power goes.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

pub(super) const SECTOR: usize = 512;

pub(super) fn place(position: u64) -> (usize, usize) {
    let position = usize::try_from(position).expect("files in memory are short");
    (position / SECTOR, position % SECTOR)
}

/// A small generator of chances, the same for the same seed everywhere: SplitMix64.
#[derive(Clone, Debug)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

pub(super) const ROOT: u64 = 1;

/// What is seen and what is on the medium. Cloning copies pointers only.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    pub(super) files: HashMap<u64, Arc<File>>,
    pub(super) directories: HashMap<u64, Arc<Directory>>,
    pub(super) next_id: u64,
    pub(super) capacity_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) length: u64,
    /// Lengths that the medium may have instead.
    pub(super) lengths_before: Vec<u64>,
    pub(super) sectors: Vec<Sector>,
    /// Whether a directory still names it.
    pub(super) linked: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Sector {
    pub(super) now: Arc<[u8; SECTOR]>,
    /// Contents that the medium may have instead: the last synced one, and those written since.
    pub(super) before: Vec<Arc<[u8; SECTOR]>>,
    /// A sync failed: the system takes the sector for clean, and later syncs pass it over.
    pub(super) forgotten: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    pub(super) now: BTreeMap<OsString, Node>,
    pub(super) durable: BTreeMap<OsString, Node>,
    pub(super) pending: Vec<Change>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Node {
    File(u64),
    Directory(u64),
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Add(OsString, Node),
    Remove(OsString, Node),
    Rename { from: OsString, to: OsString, node: Node },
}

impl Change {
    pub(super) fn apply(&self, entries: &mut BTreeMap<OsString, Node>) {
        match self {
            Self::Add(name, node) => {
                entries.insert(name.clone(), *node);
            }
            Self::Remove(name, node) => {
                if entries.get(name) == Some(node) {
                    entries.remove(name);
                }
            }
            Self::Rename { from, to, node } => {
                if entries.get(from) == Some(node) {
                    entries.remove(from);
                }
                entries.insert(to.clone(), *node);
            }
        }
    }
}

impl Directory {
    pub(super) fn settle(&mut self) {
        self.durable = self.now.clone();
        self.pending.clear();
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    /// What the medium has: either the first few changes, or any of them, later ones without earlier ones too.
    pub(super) fn after_power_cut(&self, chance: &mut Chance) -> BTreeMap<OsString, Node> {
        let mut entries = self.durable.clone();
        let in_order = chance.below(2) == 0;
        let first = chance.below(self.pending.len() + 1);
        for (index, change) in self.pending.iter().enumerate() {
            if if in_order { index < first } else { chance.below(2) == 0 } {
                change.apply(&mut entries);
            }
        }
        entries
    }
}

impl File {
    pub(super) fn settle(&mut self) {
        self.lengths_before.clear();
        for sector in &mut self.sectors {
            sector.before.clear();
            sector.forgotten = false;
        }
    }

    pub(super) fn sync(&mut self) {
        self.lengths_before.clear();
        self.sectors.iter_mut().filter(|sector| !sector.forgotten).for_each(|sector| sector.before.clear());
    }

    pub(super) fn sync_failed(&mut self) {
        self.sectors.iter_mut().filter(|sector| !sector.before.is_empty()).for_each(|sector| sector.forgotten = true);
    }

    pub(super) fn resize(&mut self, length: u64) {
        if length == self.length {
            return;
        }
        self.lengths_before.push(self.length);
        self.length = length;
        let zeros = Arc::new([0; SECTOR]);
        let sectors = usize::try_from(length).expect("files in memory are short").div_ceil(SECTOR);
        self.sectors.resize_with(sectors, || Sector { now: zeros.clone(), before: Vec::new(), forgotten: false });
        let within = place(length).1;
        if within != 0
            && let Some(last) = self.sectors.last_mut()
            && last.now[within..].iter().any(|&byte| byte != 0)
        {
            let mut bytes = *last.now;
            bytes[within..].fill(0);
            last.write(bytes);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], position: u64, mut arrives: impl FnMut() -> bool) {
        let mut rest = bytes;
        let mut at = position;
        while !rest.is_empty() {
            let (index, within) = place(at);
            let count = rest.len().min(SECTOR - within);
            if arrives() {
                let mut sector = *self.sectors[index].now;
                sector[within..within + count].copy_from_slice(&rest[..count]);
                self.sectors[index].write(sector);
            }
            rest = &rest[count..];
            at += count as u64;
        }
    }

    pub(super) fn after_power_cut(&self, chance: &mut Chance) -> Self {
        let pick = chance.below(self.lengths_before.len() + 1);
        let length = self.lengths_before.get(pick).copied().unwrap_or(self.length);
        let mut file = Self { length: self.length, linked: true, ..Self::default() };
        file.sectors.extend(self.sectors.iter().map(|sector| {
            let now = if sector.before.is_empty() {
                &sector.now
            } else {
                sector.before.get(chance.below(sector.before.len() + 1)).unwrap_or(&sector.now)
            };
            Sector { now: now.clone(), before: Vec::new(), forgotten: false }
        }));
        file.resize(length);
        file.settle();
        file
    }
}

impl Sector {
    pub(super) fn write(&mut self, bytes: [u8; SECTOR]) {
        self.before.push(std::mem::replace(&mut self.now, Arc::new(bytes)));
        self.forgotten = false;
    }
}

impl Medium {
    /// The directory that a path names.
    pub(super) fn directory(&self, path: &Path) -> io::Result<u64> {
        path.components().try_fold(ROOT, |id, component| {
            let Component::Normal(name) = component else { return Err(io::ErrorKind::InvalidInput.into()) };
            match self.directories[&id].now.get(name) {
                Some(Node::Directory(id)) => Ok(*id),
                Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
                None => Err(io::ErrorKind::NotFound.into()),
            }
        })
    }

    /// The directory that holds what a path names, and the name in it.
    pub(super) fn parent(&self, path: &Path) -> io::Result<(u64, OsString)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok((self.directory(parent)?, name.to_owned()))
    }

    pub(super) fn node(&self, path: &Path) -> io::Result<Node> {
        let (directory, name) = self.parent(path)?;
        self.directories[&directory].now.get(&name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.node(path)? {
            Node::File(id) => Ok(id),
            Node::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn directory_mut(&mut self, id: u64) -> &mut Directory {
        Arc::make_mut(self.directories.get_mut(&id).expect("an entry has its directory"))
    }

    pub(super) fn file_mut(&mut self, id: u64) -> &mut File {
        Arc::make_mut(self.files.get_mut(&id).expect("an entry has its file"))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.files.values().filter(|file| file.linked).map(|file| file.length.next_multiple_of(SECTOR as u64)).sum()
    }

    /// Whether a file may become so long.
    pub(super) fn has_space(&self, id: u64, length: u64) -> bool {
        let more = length.next_multiple_of(SECTOR as u64).saturating_sub(self.files[&id].length);
        more == 0 || self.used_bytes().saturating_add(more) <= self.capacity_bytes
    }

    pub(super) fn unlink(&mut self, node: Option<Node>) {
        if let Some(Node::File(id)) = node {
            self.file_mut(id).linked = false;
        }
    }

    pub(super) fn after_power_cut(&self, chance: &mut Chance) -> Self {
        let mut after = Self { files: HashMap::new(), directories: HashMap::new(), ..*self };
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            let entries = self.directories[&id].after_power_cut(chance);
            for node in entries.values() {
                match node {
                    Node::File(id) => {
                        after.files.insert(*id, Arc::new(self.files[id].after_power_cut(chance)));
                    }
                    Node::Directory(id) => open.push(*id),
                }
            }
            let directory = Directory { now: entries.clone(), durable: entries, pending: Vec::new() };
            after.directories.insert(id, Arc::new(directory));
        }
        after
    }
}
