//! Whatever happens to a volume's files: found, and never silently wrong.

use std::fs;
use std::path::{Path, PathBuf};

use rand::Rng as _;

use super::rig::{Log, Place, Shape, read_room, seeded};
use crate::storage::volume::{VolumeErrorKind, VolumeId, VolumeLimits, Volumes};

const ID: VolumeId = VolumeId(1);

fn volume(random: &mut rand::rngs::StdRng) -> (Place, Log) {
    let place = Place::sled();
    let mut log = Log::default();
    let shape = Shape { rooms: 80, batches: 200, striding: true, payload_bytes_max: 50_000 };
    place.build(ID.0, &log.stretch(random, &shape));
    (place, log)
}

/// Opens the volume and reads every room: each is right or is told to be damaged. Says whether all were right.
fn intact(place: &Place, log: &Log) -> bool {
    let volumes = Volumes::new(place.disk.clone(), place.store.clone(), VolumeLimits::default());
    if let Err(error) = volumes.swap(&[ID], &[]) {
        assert_eq!(error.kind(), VolumeErrorKind::Damaged, "{error}");
        return false;
    }
    let mut intact = true;
    for (room, records) in &log.rooms {
        match read_room(&volumes, *room) {
            Ok(found) => assert!(found == *records, "room {room} is silently wrong"),
            Err(error) => {
                assert_eq!(error.kind(), VolumeErrorKind::Damaged, "{error}");
                intact = false;
            }
        }
    }
    intact
}

#[test]
fn every_flipped_bit_and_every_cut_of_the_directory_file_is_found() {
    let mut random = seeded("every_flipped_bit_and_every_cut_of_the_directory_file_is_found");
    let (place, log) = volume(&mut random);
    let path = place.path(&ID.directory_path());
    let good = fs::read(&path).unwrap();
    for round in 0..120 {
        let mut bad = good.clone();
        if round < 100 {
            // Every page in turn, the header's fields among them.
            let page = round % (good.len() / 4096);
            let at = page * 4096 + random.random_range(0..4096);
            bad[at] ^= 1 << random.random_range(0..8);
        } else {
            bad.truncate(random.random_range(0..good.len()));
        }
        fs::write(&path, &bad).unwrap();
        let findings = place.check(ID.0);
        assert!(findings.iter().any(|finding| finding.file == ID.directory_path()), "{findings:?}");
        // Reading is right as far as it does not touch the damage.
        intact(&place, &log);
    }
    for bad in [good.iter().copied().chain([0; 4096]).collect(), vec![0; good.len()], Vec::new()] {
        fs::write(&path, &bad).unwrap();
        assert!(!intact(&place, &log));
        assert_ne!(place.check(ID.0), []);
    }
    fs::remove_file(&path).unwrap();
    assert!(!intact(&place, &log));
    assert_ne!(place.check(ID.0), []);
    fs::write(&path, &good).unwrap();
    assert!(intact(&place, &log));
    assert_eq!(place.check(ID.0), []);
}

#[test]
fn a_page_of_another_place_or_another_volume_is_found() {
    let mut random = seeded("a_page_of_another_place_or_another_volume_is_found");
    let (place, log) = volume(&mut random);
    let path = place.path(&ID.directory_path());
    let good = fs::read(&path).unwrap();
    let mut swapped = good.clone();
    swapped.copy_within(4096..8192, 8192);
    fs::write(&path, &swapped).unwrap();
    assert!(!intact(&place, &log));
    assert_ne!(place.check(ID.0), []);
    // A directory under another volume's name.
    fs::write(place.path(&VolumeId(2).directory_path()), &good).unwrap();
    assert_ne!(place.check(2), []);
}

/// The files of a database, without its directories.
fn files(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

#[test]
fn whatever_happens_to_the_files_of_sled_no_record_is_silently_wrong() {
    let mut random = seeded("whatever_happens_to_the_files_of_sled_no_record_is_silently_wrong");
    let (place, log) = volume(&mut random);
    let path = place.path(&ID.blocks_path());
    let good: Vec<_> = files(&path).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    assert!(good.len() >= 3, "configuration, log and snapshot");
    let (mut told, mut unharmed) = (0, 0);
    for (bytes, file) in &good {
        let large = bytes.len() > 100_000;
        for round in 0..if large { 20 } else { 6 } {
            // Everything as it was, but for one file.
            fs::remove_dir_all(&path).unwrap();
            fs::create_dir_all(path.join("blobs")).unwrap();
            for (bytes, path) in &good {
                fs::write(path, bytes).unwrap();
            }
            let mut bad = bytes.clone();
            let at = random.random_range(0..bad.len());
            match round % 4 {
                0 => bad[at] ^= 1 << random.random_range(0..8),
                1 => bad.truncate(at),
                2 => {
                    let end = (at + 4096).min(bad.len());
                    bad[at..end].fill(0);
                }
                _ => bad[at..].fill(0),
            }
            if round == 5 {
                fs::remove_file(file).unwrap()
            } else {
                fs::write(file, &bad).unwrap()
            }
            if intact(&place, &log) { unharmed += 1 } else { told += 1 }
        }
    }
    println!("{told} damages told, {unharmed} did no harm");
    assert!(told > 5 && unharmed > 0);
}

#[test]
fn checking_tells_each_damaged_block_and_goes_on() {
    let mut random = seeded("checking_tells_each_damaged_block_and_goes_on");
    let (place, _) = volume(&mut random);
    assert_eq!(place.check(ID.0), []);
    let db = place.path(&ID.blocks_path()).join("db");
    let mut bytes = fs::read(&db).unwrap();
    // Places in the first quarter, far from the end, which sled would take for a torn tail.
    for at in (100_000..bytes.len() / 4).step_by(50_000) {
        bytes[at..at + 64].fill(0xA5);
    }
    fs::write(&db, &bytes).unwrap();
    let findings = place.check(ID.0);
    findings.iter().for_each(|finding| println!("{finding}"));
    assert!(findings.iter().all(|finding| finding.file == ID.blocks_path()));
    let blocks = place.open(&[ID.0]).infos()[0].blocks;
    assert!(findings.len() > 1 && (findings.len() as u64) < blocks / 2, "{} of {blocks}", findings.len());
}
