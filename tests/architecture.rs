//! The architecture in executable form: which layer may name which, and who alone may name a library.
//!
//! Only the source text is read. Tests are exempt, in files called `tests.rs` and below `#[cfg(test)] mod …`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer and those it may name, lower layers first. `lib.rs` and `main.rs` may name all.
const LAYERS: &[(&str, &[&str])] = &[
    ("lock", &[]),
    ("types", &[]),
    ("metrics", &["types"]),
    ("protocol", &["types", "metrics"]),
    ("storage", &["lock", "types", "metrics", "protocol"]),
    ("broker", &["lock", "types", "metrics", "protocol", "storage"]),
    ("session", &["lock", "types", "metrics", "protocol", "storage", "broker"]),
    ("transport", &["lock", "types", "metrics", "protocol", "storage", "broker", "session"]),
    ("config", &["types"]),
    ("server", &["types", "metrics", "protocol", "storage", "broker", "session", "transport", "config"]),
    ("client", &["types", "protocol"]),
    (
        "cli",
        &["types", "metrics", "protocol", "storage", "broker", "session", "transport", "config", "server", "client"],
    ),
    ("fuzzing", &["protocol", "storage", "transport", "config"]),
];

/// What only some files may name: the word, where it may stand, and why nowhere else.
const CONFINED: &[(&str, &[&str], &str)] = &[
    ("sled", &["storage/block_store/sled.rs"], "one file knows sled, so that it can be replaced"),
    ("lz4_flex", &["storage"], "on the wire nothing is compressed"),
    (
        "rustix",
        &["storage/disk", "storage/embedded/keeper.rs", "transport", "server/descriptors.rs"],
        "the disk is behind a seam; sockets, the weight of a thread and the number of descriptors have none",
    ),
    ("fastwebsockets", &["transport", "client"], "it is sound only behind the guard"),
    ("quinn", &["transport", "client", "server"], "protocol and sessions know no transport"),
    ("hyper", &["transport", "client", "server"], "protocol and sessions know no transport"),
    ("rustls", &["transport", "client", "server"], "protocol and sessions know no transport"),
    ("tokio", &["broker", "transport", "server", "client", "cli"], "types, protocol, storage and session do not wait"),
    ("toml", &["config"], "one layer reads the configuration"),
    ("metrics_exporter_prometheus", &["server"], "a library must not choose an exporter"),
    ("clap", &["cli"], "a library has no command line"),
];

/// Who may call the file system by himself; the rest goes through the disk's seam or has no business with files.
const FILE_SYSTEM: &[&str] = &["storage/disk", "storage/block_store", "config", "transport", "server", "client", "cli"];

struct Line {
    /// Relative to `src`.
    file: String,
    number: usize,
    text: String,
}

impl Line {
    fn layer(&self) -> &str {
        self.file.split(['/', '.']).next().unwrap_or_default()
    }

    /// How many modules deep the file is: 1 for `src/x.rs` and `src/x/mod.rs`.
    fn depth(&self) -> usize {
        self.file.trim_end_matches("/mod.rs").split('/').count()
    }

    fn is_in(&self, place: &str) -> bool {
        self.file == place || self.file.starts_with(&format!("{place}/")) || self.file == format!("{place}.rs")
    }

    fn says(&self, why: &str) -> String {
        format!("src/{}:{}: {why}: {}", self.file, self.number, self.text.trim())
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of the source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every line of code that is part of the program: no comments, no tests, not the two roots.
fn lines() -> Vec<Line> {
    let root = source();
    let mut paths = Vec::new();
    files(&root, &mut paths);
    paths.sort();
    let mut lines = Vec::new();
    for path in paths {
        let file = path.strip_prefix(&root).expect("below the source").to_string_lossy().replace('\\', "/");
        let tested = file.ends_with("tests.rs") || file.contains("/tests/") || file.starts_with("simulation/");
        if ["lib.rs", "main.rs"].contains(&file.as_str()) || tested {
            continue;
        }
        let text = fs::read_to_string(&path).expect("the source is UTF-8");
        let (mut tested, mut grouped) = (false, None::<String>);
        for (number, line) in (1..).zip(text.lines()) {
            let trimmed = line.trim_start();
            if tested && line.starts_with("mod ") && line.trim_end().ends_with('{') {
                break;
            }
            tested = line == "#[cfg(test)]" || tested && line.starts_with("#[");
            if trimmed.starts_with("//") {
                continue;
            }
            // A `use` over several lines is one line to us.
            let text = grouped.take().unwrap_or_default() + trimmed;
            if is_use(&text) && !text.contains(';') {
                grouped = Some(text);
                continue;
            }
            lines.push(Line { file: file.clone(), number, text });
        }
    }
    lines
}

fn is_use(text: &str) -> bool {
    let text = text.trim_start();
    let text = text.strip_prefix("pub").map_or(text, |rest| rest.split_once(' ').map_or(rest, |(_, rest)| rest));
    text.starts_with("use ")
}

fn word_at(text: &str) -> &str {
    let end = text.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(text.len());
    &text[..end]
}

/// The modules at the crate's root that a line names by `crate::`, or by enough `super::`.
fn roots(line: &Line) -> Vec<&str> {
    let mut found = Vec::new();
    let supers = "super::".repeat(line.depth());
    for prefix in ["crate::", supers.as_str()] {
        for (place, _) in line.text.match_indices(prefix) {
            if line.text[..place].ends_with("super::") {
                continue;
            }
            let rest = &line.text[place + prefix.len()..];
            match rest.strip_prefix('{') {
                None => found.push(word_at(rest)),
                Some(group) => {
                    let mut depth = 0;
                    let mut start = true;
                    for (at, character) in group.char_indices() {
                        match character {
                            '{' => depth += 1,
                            '}' if depth == 0 => break,
                            '}' => depth -= 1,
                            ',' if depth == 0 => start = true,
                            ' ' => {}
                            _ if start => {
                                found.push(word_at(&group[at..]));
                                start = false;
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
    }
    found
}

/// Whether a line names a library: as the head of a path, or imported whole.
fn names(line: &str, library: &str) -> bool {
    line.match_indices(library).any(|(place, _)| {
        let before = line[..place].chars().next_back();
        let after = &line[place + library.len()..];
        let inner = line[..place].ends_with("::") && !line[..place].ends_with(" ::");
        let head = !inner && before.is_none_or(|before| !before.is_alphanumeric() && before != '_');
        head && (after.starts_with("::") || is_use(line) && line[..place].trim_end().ends_with("use"))
    })
}

fn expect_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn layers_name_only_the_layers_below_them() {
    let violations: Vec<_> = lines()
        .iter()
        .flat_map(|line| roots(line).into_iter().map(move |root| (line, root)))
        .filter(|(line, root)| *root != line.layer() && LAYERS.iter().any(|(layer, _)| layer == root))
        .filter(|(line, root)| {
            let allowed = LAYERS.iter().find(|(layer, _)| *layer == line.layer()).map(|(_, allowed)| *allowed);
            !allowed.unwrap_or_default().contains(root)
        })
        .map(|(line, root)| line.says(&format!("{} may not name {root}", line.layer())))
        .collect();
    expect_none(&violations);
}

#[test]
fn layers_name_nothing_that_stands_in_the_root() {
    let violations: Vec<_> = lines()
        .iter()
        .flat_map(|line| roots(line).into_iter().map(move |root| (line, root)))
        .filter(|(_, root)| !LAYERS.iter().any(|(layer, _)| layer == root))
        .map(|(line, root)| line.says(&format!("crate::{root} is no layer; name the layer where it is from")))
        .collect();
    expect_none(&violations);
}

#[test]
fn the_table_has_no_cycle_and_misses_no_layer() {
    for (place, (layer, allowed)) in LAYERS.iter().enumerate() {
        for lower in *allowed {
            assert!(
                LAYERS[..place].iter().any(|(name, _)| name == lower),
                "{layer} may name {lower}, which is not below"
            );
        }
    }
    let of_table: BTreeSet<_> = LAYERS.iter().map(|(layer, _)| (*layer).to_owned()).collect();
    for entry in fs::read_dir(source()).expect("the source") {
        let name = entry.expect("an entry").file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
        // The simulation is a test of all layers together.
        assert!(
            ["lib", "main", "simulation"].contains(&name.as_str()) || of_table.contains(&name),
            "src/{name} is in no layer"
        );
    }
}

#[test]
fn libraries_are_named_only_where_they_belong() {
    let violations: Vec<_> = lines()
        .iter()
        .flat_map(|line| CONFINED.iter().map(move |confined| (line, confined)))
        .filter(|(line, (library, ..))| names(&line.text, library))
        .filter(|(line, (_, places, _))| !places.iter().any(|place| line.is_in(place)))
        .map(|(line, (library, _, why))| line.says(&format!("{library} does not belong here ({why})")))
        .collect();
    expect_none(&violations);
}

/// The codec's functions and configuration are in one file. Elsewhere stand only derives, and the traits that a
/// hand-written derive needs.
#[test]
fn bincode_is_called_in_one_place() {
    const TRAITS: [&str; 11] = [
        "BorrowDecode",
        "BorrowDecoder",
        "Decode",
        "DecodeError",
        "Decoder",
        "Encode",
        "EncodeError",
        "Encoder",
        "de",
        "enc",
        "error",
    ];
    let violations: Vec<_> = lines()
        .iter()
        .filter(|line| names(&line.text, "bincode") && !line.is_in("protocol/wire.rs"))
        .filter(|line| {
            line.text.split("bincode::").skip(1).any(|rest| {
                let path = rest.split([';', ')', '<', '>', '(']).next().unwrap_or_default();
                let words = path.split(|character: char| !character.is_alphanumeric() && character != '_');
                let mut words = words.filter(|word| !["", "_", "as", "bincode"].contains(word));
                if is_use(&line.text) {
                    words.any(|word| !TRAITS.contains(&word))
                } else {
                    !TRAITS.contains(&word_at(rest))
                }
            })
        })
        .map(|line| line.says("only src/protocol/wire.rs calls bincode"))
        .collect();
    expect_none(&violations);
}

#[test]
fn files_are_touched_only_below_the_seams() {
    let violations: Vec<_> = lines()
        .iter()
        .filter(|line| ["std::fs", "tokio::fs", "std::os"].iter().any(|module| line.text.contains(module)))
        // What the kernel tells about itself is in files, but in no file system.
        .filter(|line| !line.text.contains("\"/proc/"))
        .filter(|line| !FILE_SYSTEM.iter().any(|place| line.is_in(place)))
        .map(|line| line.says("no file system here"))
        .collect();
    expect_none(&violations);
}

#[test]
fn the_reader_of_paths_finds_them_in_every_form() {
    let line = |file: &str, text: &str| Line { file: file.into(), number: 1, text: text.into() };
    for (file, text, expected) in [
        ("a/b.rs", "use crate::types::Code;", &["types"][..]),
        (
            "a/b.rs",
            "use crate::{types::{Code, Offset}, storage, broker::Broker as B};",
            &["types", "storage", "broker"],
        ),
        ("a/b.rs", "let x = crate::storage::open(crate::broker::y());", &["storage", "broker"]),
        ("a/b.rs", "use super::super::server::X;", &["server"]),
        ("a/b.rs", "use super::server::X;", &[]),
        ("a/mod.rs", "use super::server::X;", &["server"]),
        ("a.rs", "use super::{server, types::Code};", &["server", "types"]),
    ] {
        assert_eq!(roots(&line(file, text)), expected, "{file}: {text}");
    }
    for (text, expected) in [
        ("use sled::Db;", true),
        ("let db = ::sled::open();", true),
        ("use sled;", true),
        ("mod sled;", false),
        ("use self::sled::Volume;", false),
        ("let x = assled::y();", false),
        ("let x = (sled::Db, 1);", true),
    ] {
        assert_eq!(names(text, "sled"), expected, "{text}");
    }
}
