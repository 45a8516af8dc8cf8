//! A reader gets the bytes of a commit, or learns that they are elsewhere now.

use super::*;

#[test]
fn a_reader_never_gets_the_bytes_of_a_recycled_file() {
    let medium = MemoryDisk::new(1 << 20);
    let (mut journal, _) = Journal::create(Arc::new(medium), small()).expect("a new journal");
    let (reader, files, stop) = (journal.reader(), journal.files(), AtomicBool::new(false));
    let latest = parking_lot::Mutex::new(Vec::<(BodyPlace, u8)>::new());
    let (read, gone) = (AtomicU64::new(0), AtomicU64::new(0));
    let enough = |count: &AtomicU64| count.load(Ordering::Relaxed) >= 500;
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u64;
            while !(enough(&read) && enough(&gone) && number > 1000) && Instant::now() < deadline {
                let mut commit = CommitBuilder::new();
                let span = commit.batch(1, Offset(1), &[number as u8; 400]);
                let place = journal.write(&mut commit).expect("memory does not fail").body(span);
                let mut latest = latest.lock();
                latest.push((place, number as u8));
                let surplus = latest.len().saturating_sub(20);
                latest.drain(..surplus);
                drop(latest);
                if number % 5 == 4 {
                    let start = journal.files().start_at(journal.next_seq()).expect("the next one");
                    journal.files().retire(&start).expect("memory does not fail");
                }
                number += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut body = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let places = latest.lock().clone();
            for (place, fill) in places.into_iter().rev() {
                match reader.read(&place, &mut body) {
                    Ok(()) => {
                        assert_eq!(body, [fill; 400]);
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(StorageError::Gone { file }) => {
                        assert_eq!(file, place.file);
                        gone.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    });
    assert!(files.live()[0].id > JournalFileId(100), "files were recycled");
    assert!(enough(&read) && enough(&gone), "{read:?} read, {gone:?} gone");
}

#[test]
fn a_damaged_batch_is_not_given_to_a_reader() {
    let medium = FaultyDisk::new(1);
    let (mut journal, _) = Journal::create(disk(&medium), small()).expect("a new journal");
    let mut commit = CommitBuilder::new();
    let span = commit.batch(1, Offset(1), b"a body");
    let place = journal.write(&mut commit).expect("the disk is fine").body(span);
    medium.flip(&path_of(place.file), place.at + 2, 1);
    let error = journal.reader().read(&place, &mut Vec::new()).expect_err("it was changed");
    assert!(matches!(error, StorageError::Damaged { position, .. } if position == place.at), "{error}");
}

#[test]
fn a_file_that_is_retired_while_it_is_read_is_gone() {
    let medium = HookedDisk { inner: MemoryDisk::new(1 << 20), before_read: Arc::default() };
    let before_read = medium.before_read.clone();
    let (mut journal, _) = Journal::create(Arc::new(medium), small()).expect("a new journal");
    let mut commit = CommitBuilder::new();
    let span = commit.batch(1, Offset(1), b"old");
    let place = journal.write(&mut commit).expect("there is space").body(span);
    assert!(journal.rotate().expect("there is space"));
    let (reader, files, start) =
        (journal.reader(), journal.files(), journal.files().start_at(journal.next_seq()).expect("the next one"));
    // Just before the bytes are read, the file is retired, recycled and written, at the same place, with the same
    // bytes: no checksum could tell.
    *before_read.lock() = Some(Box::new(move || {
        files.retire(&start).expect("memory does not fail");
        assert!(journal.files().bytes().spare > 0);
        commit.begin(Time(1));
        commit.batch(1, Offset(1), b"old");
        journal.write(&mut commit).expect("there is space");
        assert!(journal.rotate().expect("there is space"));
        let again = journal.write(&mut commit).expect("there is space");
        assert_eq!((again.at, journal.files().bytes().spare), (SECTOR, 0), "it was recycled");
    }));
    let error = reader.read(&place, &mut Vec::new()).expect_err("it is another file now");
    assert!(matches!(error, StorageError::Gone { file } if file == place.file), "{error}");
    assert!(before_read.lock().is_none());
}

/// A disk whose next read waits for something to happen.
#[derive(Clone)]
struct HookedDisk {
    inner: MemoryDisk,
    before_read: BeforeRead,
}

type BeforeRead = Arc<parking_lot::Mutex<Option<Box<dyn FnOnce() + Send>>>>;

impl std::fmt::Debug for HookedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HookedDisk")
    }
}

#[derive(Debug)]
struct HookedFile(HookedDisk, Arc<dyn DiskFile>);

impl HookedDisk {
    fn hooked(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HookedFile(self.clone(), file))
    }
}

impl DiskFile for HookedFile {
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let hook = self.0.before_read.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        self.1.read_exact_at(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.1.write_all_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.1.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.1.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }
}

impl Disk for HookedDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.open(path).map(|file| self.hooked(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.create(path).map(|file| self.hooked(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }

    fn used_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.used_bytes(path)
    }

    fn root(&self) -> Option<&Path> {
        None
    }
}
