//! The corpus of the fuzz targets (`tests/fuzz`): replayed here with every run, without libFuzzer.
//!
//! The seeds are made of the kept bytes of each format (`tests/golden`) by `ROOMLOG_TEST_GOLDEN=write`. Beside them stand
//! inputs whose names begin with `found-`: what a fuzzer once found, with the story in `tests/fuzz/found.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use roomlog::fuzzing::TARGETS;

/// What all seeds and findings may take together, in bytes.
const CORPUS_BYTES_MAX: u64 = 200 << 10;

/// target/name → bytes.
type Seeds = BTreeMap<String, Vec<u8>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The bytes of a golden file: hexadecimal digits, `zeros N`, and meanings behind `#`.
fn golden(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(root().join("golden").join(name)).expect(name);
    text.lines().flat_map(|line| unhex(line.split('#').next().unwrap_or_default())).collect()
}

fn unhex(line: &str) -> Vec<u8> {
    if let Some(count) = line.trim().strip_prefix("zeros ") {
        return vec![0; count.parse().expect("a count")];
    }
    let digits: Vec<u32> = line.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn frames(seeds: &mut Seeds) {
    let text = fs::read_to_string(root().join("golden/v1/frames.hex")).expect("the frames");
    let mut all = Vec::new();
    for line in text.lines() {
        let (name, digits) = line.split_once(' ').expect("a name and its bytes");
        all.extend(unhex(digits));
        seeds.insert(format!("frames/{name}"), unhex(digits));
    }
    seeds.insert("frames/all".into(), all);
    for name in ["one", "runs", "step", "headers", "extension", "reference", "greatest"] {
        seeds.insert(format!("frames/batch_{name}"), golden(&format!("v1/batch_{name}.hex")));
    }
}

fn websocket(seeds: &mut Seeds) {
    let frame = |first: u8, payload: &[u8]| {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..=125 => bytes.push(0x80 | length as u8),
            length => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    };
    let close = |code: u16, reason: &[u8]| frame(0x88, &[&code.to_be_bytes()[..], reason].concat());
    let long = [7; 300];
    for (name, cut, frames) in [
        ("message", 255, vec![frame(0x82, b"hello")]),
        ("messages", 7, vec![frame(0x82, b"one"), frame(0x82, b""), frame(0x82, &long)]),
        ("fragments", 3, vec![frame(0x02, b"a"), frame(0x00, &long), frame(0x89, b"now"), frame(0x80, b"c")]),
        ("control", 1, vec![frame(0x89, b""), frame(0x8a, b"pong"), frame(0x89, &[1; 125]), close(1000, b"bye")]),
        ("close", 2, vec![frame(0x88, b"")]),
        ("close_text", 9, vec![close(4000, "ü".as_bytes()), close(1005, b"")]),
        ("close_not_utf8", 255, vec![close(1000, &[0xff])]),
        ("text", 255, vec![frame(0x82, b"x"), frame(0x81, b"text")]),
        ("nested", 5, vec![frame(0x02, b"a"), frame(0x82, b"b")]),
        ("too_large", 64, vec![frame(0x02, &[1; 900]), frame(0x80, &[2; 101])]),
        ("length_of_64_bits", 4, vec![vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 9]]),
        ("no_mask", 255, vec![vec![0x82, 1, 9]]),
    ] {
        seeds.insert(format!("websocket/{name}"), [vec![cut], frames.concat()].concat());
    }
}

fn journal(seeds: &mut Seeds) {
    const UNCLEAN: u8 = 0;
    const UNSYNCED: u8 = 2;
    const CLEAN: u8 = 4;
    const MENDED: u8 = 1;
    let header = golden("storage-v1/journal-file-header.hex");
    let unit = golden("storage-v1/commit-unit.hex");
    let free = vec![0; 512];
    // Two sectors: a body that is a batch.
    let body = golden("v1/batch_greatest.hex");
    let long = {
        let mut unit = unit[..48].to_vec();
        unit.extend([3, 1, 0]);
        unit.push(252);
        unit.extend(crc32(&body).to_le_bytes());
        unit.push(251);
        unit.extend((body.len() as u16).to_le_bytes());
        unit.extend(&body);
        let bytes = unit.len() as u32;
        unit[8..12].copy_from_slice(&bytes.to_le_bytes());
        unit.resize(unit.len().next_multiple_of(512), 0);
        unit
    };
    let damaged = {
        let mut unit = unit.clone();
        unit[0] ^= 1;
        unit
    };
    let end = |commits: u8, sectors: u8| sectors << 4 | commits;
    let sectors = (unit.len() / 512) as u8;
    for (name, flags, first, place, parts) in [
        ("as_it_is", UNCLEAN, 0, 0, vec![&header, &unit, &free]),
        ("empty", MENDED, 0, 0, vec![&header, &free]),
        ("one", MENDED, 0, 0, vec![&header, &unit, &free]),
        ("full", MENDED, 0, 0, vec![&header, &unit, &long]),
        ("clean", MENDED | CLEAN, 0, end(2, 1 + 2 * sectors), vec![&header, &unit, &unit, &free]),
        ("clean_beyond", MENDED | CLEAN, 0, end(3, 1 + 3 * sectors), vec![&header, &unit, &unit, &free]),
        ("two_files", MENDED, 1 + sectors, 0, vec![&header, &unit, &header, &long, &free]),
        ("reserved_file", MENDED, 2 + sectors, 0, vec![&header, &unit, &free, &header, &free]),
        ("hole", MENDED, 0, 0, vec![&header, &unit, &damaged, &unit]),
        ("hole_unsynced", MENDED | UNSYNCED, 0, 0, vec![&header, &unit, &damaged, &unit, &free]),
        ("torn", MENDED, 0, 0, vec![&header, &unit, &damaged]),
    ] {
        let bytes: Vec<u8> = parts.into_iter().flatten().copied().collect();
        seeds.insert(format!("journal/{name}"), [vec![flags, first, place], bytes].concat());
    }
}

fn block(seeds: &mut Seeds) {
    const MENDED: u8 = 1;
    const LZ4: u8 = 2;
    let raw = golden("storage-v1/block-raw.hex");
    let lz4 = golden("storage-v1/block-lz4.hex");
    let parts = [golden("storage-v1/block-part-0.hex"), golden("storage-v1/block-part-1.hex")].concat();
    let batch = [vec![0; 24], golden("v1/batch_runs.hex")].concat();
    for (name, flags, value) in [
        ("raw", MENDED, &raw),
        ("as_it_is", 0, &raw),
        ("lz4", MENDED | LZ4, &lz4),
        ("parts", MENDED, &parts),
        ("batch", MENDED, &batch),
    ] {
        // The lengths and the checksum of the body are in the value's header, too.
        let fields = &value[8..20];
        seeds.insert(format!("block/{name}"), [&[flags], fields, value].concat());
    }
}

fn config(seeds: &mut Seeds) {
    let shipped = fs::read_to_string(root().join("../broker.toml")).expect("broker.toml");
    // Without its comments: a fuzzer would write in those most of the time.
    let lines: Vec<_> = shipped.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let rules = "[[retention]]\nrooms = \"a/?*\"\n[[retention]]\nrooms = '*'\nmax_age = \"30 d\"\nmax_bytes = 1_000\n";
    for (name, text) in [
        ("shipped", lines.join("\n")),
        ("retention", rules.to_owned() + "max_records = 0x10\n"),
        ("dotted", "server.listen = \"off\"\nserver.trusted_proxies = [\"10.0.0.0/8\", \"::1\"]\n".to_owned()),
        ("inline", "storage = { durability = \"os\", disk_reserve_bytes = \"1.5 GiB\" }\nlimits = {}\n".to_owned()),
        (
            "wrong",
            "[server]\nlisten = 7400\nlsten = \"x\"\n[strage]\n[log]\nlevel = [\"a\", 1.0, 1979-05-27]\n".to_owned(),
        ),
        (
            "environment",
            "\0ROOMLOG__SERVER__WORKER_THREADS=4\0ROOMLOG__LOG__LEVEL=loud\0ROOMLOG__RETENTION=x".to_owned(),
        ),
        ("nested", "a = [[[[[[{b=[[]]}]]]]]]\n".to_owned()),
    ] {
        seeds.insert(format!("config/{name}"), text.into_bytes());
    }
}

/// The CRC-32 of zip files, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// The inputs that are kept, as target/name → bytes.
fn kept() -> Seeds {
    let mut kept = Seeds::new();
    for (target, _) in TARGETS {
        let folder = root().join("fuzz/corpus").join(target);
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            kept.insert(format!("{target}/{name}"), fs::read(path).expect("an input"));
        }
    }
    kept
}

#[test]
fn the_seeds_are_made_of_the_kept_bytes_of_each_format() {
    let mut seeds = Seeds::new();
    for make in [block, config, frames, journal, websocket] {
        make(&mut seeds);
    }
    let root = root().join("fuzz/corpus");
    if std::env::var_os("ROOMLOG_TEST_GOLDEN").is_some_and(|wish| wish == "write") {
        for (name, bytes) in &seeds {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for the seeds");
            fs::write(path, bytes).expect("a seed");
        }
    }
    let kept = kept();
    for (name, bytes) in &seeds {
        assert!(kept.get(name) == Some(bytes), "{name} has changed, or is missing: ROOMLOG_TEST_GOLDEN=write");
    }
    let stories = fs::read_to_string(root.join("../found.md")).unwrap_or_default();
    for name in kept.keys().filter(|name| !seeds.contains_key(*name)) {
        assert!(
            name.contains("/found-") && stories.contains(&format!("`{name}`")),
            "{name} is no seed and has no story"
        );
    }
    let bytes: u64 = kept.values().map(|bytes| bytes.len() as u64).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "the corpus has {bytes} bytes");
}

#[test]
fn every_kept_input_of_the_fuzz_targets_is_survived() {
    let kept = kept();
    for (target, run) in TARGETS {
        let inputs = kept.iter().filter(|(name, _)| name.starts_with(&format!("{target}/")));
        let mut count = 0;
        for (name, bytes) in inputs {
            println!("{name}");
            run(bytes);
            // And its neighbours, as a fuzzer would begin.
            for end in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
                run(&bytes[..end]);
            }
            for at in (0..bytes.len().min(512)).step_by(7) {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << (at % 8);
                run(&bytes);
            }
            count += 1;
        }
        assert!(count > 0, "{target} has no inputs");
    }
}
