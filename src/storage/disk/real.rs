//! The operating system's file system below a data directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, DiskFile};

/// Bytes of a block in `st_blocks`, whatever the file system's own block size.
const STAT_BLOCK_BYTES: u64 = 512;

/// Files below a directory of the operating system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
    read_only: bool,
}

/// How many descriptors this process may have open.
pub(crate) fn descriptors_max() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

impl RealDisk {
    /// The directory as a disk. Touches nothing: `create_dir("")` makes the directory itself.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), read_only: false }
    }

    /// The directory as a disk on which nothing can be changed: every attempt fails with `ReadOnlyFilesystem`.
    #[must_use]
    pub fn read_only(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), read_only: true }
    }

    /// Makes the directory itself, and its name durable: a file that was synced is of no use in a directory that nobody
    /// finds after a power cut. Those above it that had to be made, too.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create_root(&self) -> io::Result<()> {
        let made = self.root.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty() && !above.exists());
        let made = made.count();
        fs::create_dir_all(&self.root)?;
        // Its own name each time: who was killed before this left a directory that is there, and is not durable.
        for above in self.root.ancestors().skip(1).take(made + 1) {
            let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            match File::open(above).and_then(|directory| directory.sync_all()) {
                // It may be somebody else's, who lets nobody look at it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                synced => synced?,
            }
        }
        Ok(())
    }

    fn at(&self, path: &Path) -> PathBuf {
        // `join("")` would add a separator, which some calls take for another name.
        if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn to_change(&self, path: &Path) -> io::Result<PathBuf> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(self.at(path)) }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(!self.read_only).open(self.at(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.to_change(path)?)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.to_change(from)?, self.to_change(to)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.to_change(path)?)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(self.to_change(path)?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(self.to_change(path)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(self.at(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names =
            entries.map(|entry| Ok(PathBuf::from(entry?.file_name()))).collect::<io::Result<Vec<PathBuf>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(self.to_change(path)?)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::statvfs(&self.root)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn used_bytes(&self, path: &Path) -> io::Result<u64> {
        fn below(path: &Path) -> io::Result<u64> {
            let own = fs::symlink_metadata(path)?;
            let mut bytes = own.blocks() * STAT_BLOCK_BYTES;
            if own.is_dir() {
                for entry in fs::read_dir(path)? {
                    bytes += match below(&entry?.path()) {
                        // Files come and go while one counts.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                        counted => counted?,
                    };
                }
            }
            Ok(bytes)
        }
        match below(&self.at(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            counted => counted,
        }
    }

    fn root(&self) -> Option<&Path> {
        Some(&self.root)
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
