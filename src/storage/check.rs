//! Looking at a data directory offline: every checksum, every order, every chain, of every file kind.
//!
//! Nothing is repaired. sled changes its own files a little whenever a volume is opened, for reading too; all
//! other files are only read.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block_store::SledBlockStore;
use super::checkpoint::{self, Checkpoint};
use super::commit::{Commit, Entry};
use super::disk::{DirectoryLock, Disk, RealDisk};
use super::error::StorageError;
use super::journal;
use super::manifest::{MANIFEST_NAME, Manifest};
use super::marks::{CleanMark, Durability, RunMark, judge_last_stop};
use super::volume::{Finding, VolumeError, VolumeId, VolumeLimits, Volumes, check_volume};
use crate::protocol::Batch;
use crate::types::Offset;

/// What a data directory holds, and what is wrong with it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// What is not as it was written; empty if the directory is intact.
    pub findings: Vec<Finding>,
    /// Rooms that have or had records.
    pub rooms: u64,
    /// Commits in the journal.
    pub commits: u64,
    /// Volumes.
    pub volumes: u64,
    /// Records in the journal and in the volumes.
    pub records: u64,
    /// Where a commit that was never acknowledged ends the journal, if one does: that is no damage.
    pub torn: Option<String>,
}

/// Why a directory could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// There is none, or nothing in it.
    #[error("{}: there is no Roomlog data here", .0.display())]
    Nothing(PathBuf),
    /// It is in use, of an unknown version, or cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A volume cannot be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// Looks at everything in a data directory that no broker has open.
///
/// # Errors
/// [`CheckError`], if it could not be looked at; damage is in the report.
pub fn check(directory: &Path) -> Result<Report, CheckError> {
    let disk = Arc::new(RealDisk::read_only(directory));
    let names = match disk.list(Path::new("")) {
        Ok(names) => names,
        Err(source) => {
            return Err(StorageError::Io { path: directory.to_path_buf(), doing: "read", source }.into());
        }
    };
    if !names
        .iter()
        .any(|name| ["journal", "volumes", "meta", MANIFEST_NAME].iter().any(|ours| name == Path::new(ours)))
    {
        return Err(CheckError::Nothing(directory.to_path_buf()));
    }
    let _lock = DirectoryLock::acquire(directory)?;
    let mut look = Look { report: Report::default(), rooms: BTreeMap::new() };
    let manifest = match Manifest::read(&*disk) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => {
            look.note(Path::new(MANIFEST_NAME), 0, "it is missing: without it nothing else can be told apart");
            return Ok(look.report);
        }
        Err(error) => {
            look.storage(error)?;
            return Ok(look.report);
        }
    };
    let clean = CleanMark::read(&*disk).or_else(|error| look.storage(error).map(|()| None))?;
    let run = RunMark::read(&*disk).or_else(|error| look.storage(error).map(|()| None))?;
    let finding = judge_last_stop(run.as_ref(), clean.as_ref(), &RunMark::now(Durability::Fsync));
    if let Some(number) = manifest.checkpoint {
        look.checkpoint(&*disk, number);
    }
    // What retention took after the checkpoint stands in the journal, and volumes may lack it already. Damage of the
    // journal is told when it is read for good.
    let _ = journal::check(&*disk, &manifest.journal, &finding.last_stop, &mut |commit| {
        commit.entries().for_each(|entry| look.floor(&entry));
        Ok(())
    });
    let volumes = look.volumes(&disk, directory, &manifest)?;
    look.chains(&volumes);
    let scanned = journal::check(&*disk, &manifest.journal, &finding.last_stop, &mut |commit| look.commit(commit));
    match scanned {
        Ok(recovery) => {
            look.report.commits = recovery.commits;
            look.report.torn =
                recovery.torn.map(|torn| format!("{}:{}: {}", torn.path.display(), torn.position, torn.what));
            look.heads();
        }
        Err(error) => look.storage(error)?,
    }
    look.report.rooms = look.rooms.len() as u64;
    Ok(look.report)
}

struct Look {
    report: Report,
    rooms: BTreeMap<u64, Room>,
}

/// What is known of a room so far.
#[derive(Debug, Default)]
struct Room {
    name: String,
    floor: Offset,
    /// The head that the checkpoint tells, or the last batch seen in the journal.
    head: Offset,
    /// The newest offset to which an unbroken chain leads from the floor.
    reached: Offset,
    /// Whether the chain is known to be broken: then that has been told.
    broken: bool,
}

impl Look {
    fn note(&mut self, file: &Path, position: impl ToString, what: impl ToString) {
        let (position, what) = (position.to_string(), what.to_string());
        self.report.findings.push(Finding { file: file.to_path_buf(), position, what });
    }

    /// Damage is noted, anything else ends the look.
    fn storage(&mut self, error: StorageError) -> Result<(), StorageError> {
        match error {
            StorageError::Damaged { path, position, what } => self.note(&path, position, what),
            StorageError::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                self.note(&path, 0, "it is missing");
            }
            other => return Err(other),
        }
        Ok(())
    }

    fn checkpoint(&mut self, disk: &dyn Disk, number: u64) {
        let (mut places, mut names) = (Vec::new(), HashMap::new());
        let opened = Checkpoint::open(disk, number, |name, id, facts, place| {
            places.push(place);
            if let Some(other) = names.insert(name.to_owned(), id) {
                self.note(&checkpoint::path(number), 0, format_args!("{name:?} is room {} and room {}", other.0, id.0));
            }
            let name = name.to_owned();
            let room = Room { name, floor: facts.floor, head: facts.head, reached: facts.floor, broken: false };
            if self.rooms.insert(id.0, room).is_some() {
                self.note(&checkpoint::path(number), 0, format_args!("room {} stands there twice", id.0));
            }
        });
        match opened {
            Ok(checkpoint) => {
                for place in places {
                    if let Err(error) = checkpoint.publishers(place) {
                        self.note(&checkpoint::path(number), 0, error);
                    }
                }
            }
            Err(checkpoint::Fault { file, position, what }) => self.note(Path::new(&file), position, what),
        }
    }

    fn volumes(&mut self, disk: &Arc<RealDisk>, directory: &Path, manifest: &Manifest) -> Result<Volumes, CheckError> {
        let store = Arc::new(SledBlockStore::new(directory));
        let disk: Arc<dyn Disk> = Arc::clone(disk) as Arc<dyn Disk>;
        let volumes = Volumes::new(Arc::clone(&disk), Arc::clone(&store) as _, VolumeLimits::default());
        for volume in &manifest.volumes {
            self.report.volumes += 1;
            self.report.records += volume.records;
            let id = VolumeId(volume.id);
            let findings = check_volume(&*disk, &*store, id)?;
            if findings.is_empty() {
                volumes.swap(&[id], &[])?;
            }
            self.report.findings.extend(findings);
        }
        Ok(volumes)
    }

    /// Follows each room through the volumes. A volume with damage is left out: what it holds is told already.
    fn chains(&mut self, volumes: &Volumes) {
        let whole = volumes.infos().len() as u64 == self.report.volumes;
        let mut findings = Vec::new();
        for (id, room) in &mut self.rooms {
            room.broken = !whole;
            while let Ok(Some(located)) = volumes.locate_after(*id, room.reached) {
                let entry = located.entry;
                if entry.prev > room.reached && !room.broken {
                    room.broken = true;
                    findings.push(Finding {
                        file: PathBuf::from(super::volume::VOLUMES),
                        position: format!("room {id} offset {}", entry.first),
                        what: format!(
                            "records between {} and {} of {:?} are missing",
                            room.reached, entry.prev, room.name
                        ),
                    });
                }
                room.reached = entry.last;
            }
        }
        self.report.findings.extend(findings);
    }

    fn floor(&mut self, entry: &Entry<'_>) {
        if let Entry::Floor { room, floor } = entry {
            let known = self.rooms.entry(*room).or_default();
            known.floor = known.floor.max(floor.floor);
            known.reached = known.reached.max(floor.floor);
        }
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), StorageError> {
        let path = journal::path_of(commit.place.file);
        let at = commit.place.at;
        for entry in commit.entries() {
            match entry {
                Entry::Room { room, name } => {
                    let known = self.rooms.entry(room).or_default();
                    if !known.name.is_empty() && known.name != name {
                        let what = format!("room {room} comes into being a second time");
                        self.note(&path, at, what);
                    } else {
                        name.clone_into(&mut known.name);
                    }
                }
                Entry::Floor { .. } => self.floor(&entry),
                Entry::Batch { room, prev, body, .. } => {
                    let checked = Batch::parse(body).and_then(|batch| batch.check().map(|()| batch.header));
                    let header = match checked {
                        Ok(header) => header,
                        Err(error) => {
                            self.note(&path, at, error);
                            continue;
                        }
                    };
                    self.report.records += u64::from(header.count);
                    let known = self.rooms.entry(room).or_default();
                    let (reached, broken) = (known.reached, known.broken);
                    known.reached = reached.max(header.last());
                    known.head = known.head.max(header.last());
                    if prev > reached {
                        let name = known.name.clone();
                        known.broken = true;
                        if !broken {
                            self.note(
                                &path,
                                at,
                                format_args!("records between {reached} and {prev} of {name:?} are missing"),
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Each room's chain has to lead to its head.
    fn heads(&mut self) {
        let mut findings = Vec::new();
        for (id, room) in &self.rooms {
            if room.reached < room.head && !room.broken {
                findings.push(Finding {
                    file: PathBuf::from(super::volume::VOLUMES),
                    position: format!("room {id} offset {}", room.head),
                    what: format!(
                        "records behind {} of {:?} are missing, its head is {}",
                        room.reached, room.name, room.head
                    ),
                });
            }
            if room.name.is_empty() {
                findings.push(Finding {
                    file: PathBuf::from(journal::JOURNAL_DIRECTORY),
                    position: format!("room {id}"),
                    what: "records of a room that never came into being".to_owned(),
                });
            }
        }
        self.report.findings.extend(findings);
    }
}
