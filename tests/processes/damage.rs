//! Data directories that something has happened to: what `check` and `serve` say, and that nothing is lost silently.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::Rng as _;
use rand::rngs::StdRng;
use roomlog::types::NewRecord;

use super::server::{Over, PROGRAM, Server, Site, random, run};
use crate::scenarios::world::{room, soon};

const ROOMS: [&str; 2] = ["many", "few"];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// A data directory to be harmed.
struct Template {
    site: Site,
    /// What was published into each of the rooms.
    payloads: [Vec<String>; 2],
    /// The same directory as it was earlier, cleanly closed.
    earlier: tempfile::TempDir,
}

/// A directory with records in volumes, a checkpoint, and records in the journal.
async fn template(clean: bool) -> Template {
    let mut site = Site::new();
    site.set("storage.stretch_bytes", "1 MiB");
    let mut payloads = [Vec::new(), Vec::new()];
    let mut server = fill(&site, &mut payloads).await;
    server.stop().await;
    let earlier = tempfile::tempdir().expect("a directory");
    copy(&site.directory, earlier.path());
    let mut server = fill(&site, &mut payloads).await;
    if clean {
        server.stop().await;
    } else {
        server.kill().await;
    }
    Template { site, payloads, earlier }
}

/// A volume full of records, and some more.
async fn fill(site: &Site, payloads: &mut [Vec<String>; 2]) -> Server {
    let server = site.start().await;
    let client = site.client(Over::WebSocket);
    let mut publish = async |index: usize, count: usize| {
        let lobby = room(ROOMS[index]);
        let lines: Vec<_> = (0..count).map(|_| format!("{} {}", payloads[index].len(), "x".repeat(900))).collect();
        let records: Vec<_> = lines.iter().map(|line| NewRecord::new(line.as_bytes())).collect();
        soon("a publish", client.publish_all(&lobby, &records, None)).await.expect("stored");
        payloads[index].extend(lines);
    };
    for _ in 0..4 {
        publish(0, 300).await;
        publish(1, 3).await;
    }
    server.metric_until("roomlog_builds_total", &["build"], |builds| builds > 0.0).await;
    for _ in 0..4 {
        publish(0, 10).await;
        publish(1, 1).await;
    }
    client.close().await;
    server
}

/// What is done to a file. Places are millionths of what the file holds.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// One bit is turned.
    Flip(u64),
    /// The page that the place is in is full of zeros.
    Zero(u64),
    /// What is behind the place is cut off.
    Cut(u64),
    Missing,
    /// The file as it was earlier; one that is new is replaced by the one of its kind that came before.
    Older,
}

const HARMS: [Harm; 12] = [
    Harm::Flip(0),
    Harm::Flip(10_000),
    Harm::Flip(300_000),
    Harm::Flip(600_000),
    Harm::Flip(999_000),
    Harm::Zero(0),
    Harm::Zero(500_000),
    Harm::Cut(0),
    Harm::Cut(500_000),
    Harm::Cut(990_000),
    Harm::Missing,
    Harm::Older,
];

/// Bytes of a page.
const PAGE: usize = 4096;

impl Harm {
    /// Whether it could be done.
    fn apply(self, path: &Path, older: Option<&Path>) -> bool {
        let mut bytes = fs::read(path).expect("it is there");
        // Zeros at the end are space that was reserved.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let at = |millionths: u64| usize::try_from(used as u64 * millionths / 1_000_000).expect("a file in memory");
        match self {
            Self::Flip(millionths) => bytes[at(millionths)] ^= 4,
            Self::Zero(millionths) => {
                let page = at(millionths) / PAGE * PAGE;
                let end = bytes.len().min(page + PAGE);
                bytes[page..end].fill(0);
            }
            Self::Cut(millionths) => bytes.truncate(at(millionths)),
            Self::Missing => fs::remove_file(path).expect("removed"),
            Self::Older => {
                let Some(older) = older.map(|older| fs::read(older).expect("it is there")) else { return false };
                if older == bytes {
                    return false;
                }
                bytes = older;
            }
        }
        if !matches!(self, Self::Missing) {
            fs::write(path, bytes).expect("written");
        }
        true
    }

    /// Whether it leaves a file that was being written when the server was killed as it might have been left. Commits
    /// that are gone without a trace were never there: an older copy, or zeros over all of the last ones.
    fn leaves_no_trace(self) -> bool {
        matches!(self, Self::Older | Self::Zero(_))
    }
}

/// The harms of a test: the fixed ones, and as many more of each kind, anywhere, as `ROOMLOG_TEST_DAMAGE` says.
fn harms(random: &mut StdRng) -> Vec<Harm> {
    let more = std::env::var("ROOMLOG_TEST_DAMAGE").map_or(0, |more| more.parse().expect("a number"));
    let anywhere: [fn(u64) -> Harm; 3] = [Harm::Flip, Harm::Zero, Harm::Cut];
    let more = (0..more).flat_map(|_| anywhere).map(|harm| harm(random.random_range(0..1_000_000)));
    HARMS.into_iter().chain(more).collect()
}

/// What a file was replaced from: see [`Harm::Older`].
fn older(earlier: &Path, kind: &str, file: &Path) -> Option<PathBuf> {
    let same = earlier.join(file);
    if same.exists() {
        return Some(same);
    }
    let before = files(earlier).into_iter().rfind(|(other, path)| *other == kind && path.as_path() < file);
    before.map(|(_, path)| earlier.join(path))
}

/// The files of a directory, each with the name of its kind. sled writes its snapshot again when it is not there.
fn files(directory: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut found = Vec::new();
    let mut look = |folder: &str| {
        for entry in fs::read_dir(directory.join(folder)).expect("a directory").map(|entry| entry.expect("an entry")) {
            let path = Path::new(folder).join(entry.file_name());
            let name = entry.file_name().into_string().expect("a name of ours");
            let kind = match (folder, name.as_str()) {
                ("", "manifest") => "manifest",
                ("", "clean") => "clean mark",
                ("", "run") => "run mark",
                ("journal", _) => "journal file",
                ("meta", _) => "checkpoint",
                ("volumes", name) if name.ends_with(".rld") => "volume directory",
                (_, "db") => "volume: sled's log",
                (_, "conf") => "volume: sled's conf",
                (_, name) if name.starts_with("snap.") => "volume: sled's snapshot",
                _ => continue,
            };
            found.push((kind, path));
        }
    };
    look("");
    look("journal");
    look("meta");
    look("volumes");
    let volumes = fs::read_dir(directory.join("volumes")).expect("a directory").map(|entry| entry.expect("an entry"));
    for volume in volumes.filter(|entry| entry.path().is_dir()) {
        look(&format!("volumes/{}", volume.file_name().display()));
    }
    found.sort();
    found
}

/// What came of a harmed directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// Every record is there.
    Intact,
    /// `serve` refused, naming the file.
    Refused,
    /// `serve` runs; who reads what is damaged is told so.
    Told,
    /// The last commit is taken for one that was being written, and that is logged.
    Torn,
    /// Records are missing, and nobody was told.
    Lost,
}

/// Every line of a room as far as it can be read, and whether that was all.
fn read(site: &Site, name: &str) -> (Vec<String>, bool) {
    let mut command = Command::new(PROGRAM);
    command.args(["sub", name, "--from", "earliest", "--until-live", "--timeout", "60s"]);
    let output = run(command.args(["--url", &site.url(Over::WebSocket)]), b"");
    let lines = String::from_utf8(output.stdout).expect("what was published").lines().map(str::to_owned).collect();
    (lines, output.status.success())
}

async fn outcome(site: &Site, kind: &str, file: &Path, harm: Harm, payloads: &[Vec<String>; 2]) -> (Outcome, String) {
    let mut server = site.spawn();
    if !soon("the server to listen or to end", server.listens()).await {
        assert_eq!(server.exited().await.code(), Some(1), "{}", site.log());
        let log = site.log();
        let said = log.lines().last().unwrap_or_default().to_owned();
        // A volume may be named by its number.
        let named = file.to_str().expect("a name of ours");
        let number = file.iter().nth(1).and_then(|name| name.to_str()).unwrap_or(named).trim_end_matches(".rld");
        // An old manifest is whole, and names what is no more: that is what is missed.
        let missed =
            matches!(harm, Harm::Older) && ["journal/", "meta/", "volume"].iter().any(|name| said.contains(name));
        assert!(said.contains(named) || kind.starts_with("volume") && said.contains(number) || missed, "{said}");
        return (Outcome::Refused, said);
    }
    let (mut all, mut complete) = (true, true);
    for (name, expected) in ROOMS.iter().zip(payloads) {
        let (seen, ended_well) = read(site, name);
        assert!(seen.len() <= expected.len() && seen[..] == expected[..seen.len()], "what is read is right");
        all &= seen.len() == expected.len();
        complete &= ended_well;
    }
    server.kill().await;
    let log = site.log();
    let said = log.lines().rfind(|line| line.contains("WARN") || line.contains("ERROR")).unwrap_or_default().to_owned();
    if all && complete {
        return (Outcome::Intact, said);
    }
    if complete {
        let torn = log.lines().find(|line| line.contains("WARN") && line.contains("is dropped"));
        return torn.map_or((Outcome::Lost, said), |torn| (Outcome::Torn, torn.to_owned()));
    }
    (Outcome::Told, said)
}

async fn every_harm(clean: bool) {
    let mut random = random(if clean { "damage after a clean stop" } else { "damage after kill -9" });
    let Template { site: template, payloads, earlier } = template(clean).await;
    let mut table = String::new();
    let mut bad = String::new();
    for (kind, file) in files(&template.directory) {
        let older = older(earlier.path(), kind, &file);
        for harm in harms(&mut random) {
            let mut site = Site::new();
            site.set("storage.stretch_bytes", "1 GiB").set("storage.journal_bytes_max", "2 GiB");
            copy(&template.directory, &site.directory);
            if !harm.apply(&site.directory.join(&file), older.as_deref()) {
                continue;
            }
            let (code, checked) = site.check();
            let checked = checked.lines().next().unwrap_or_default();
            let (outcome, said) = outcome(&site, kind, &file, harm, &payloads).await;
            let line = format!(
                "{kind} | {} | {harm:?} | check {code:?}: {checked} | serve {outcome:?}: {said}\n",
                file.display()
            );
            table.push_str(&line);
            let good = match outcome {
                // `check` is stricter: it looks at what nobody needs, too.
                Outcome::Intact => matches!(code, Some(0 | 1)),
                Outcome::Refused => matches!(code, Some(1 | 2)),
                Outcome::Told => code == Some(1),
                Outcome::Torn => code == Some(0) && !clean && kind == "journal file",
                Outcome::Lost => !clean && kind == "journal file" && harm.leaves_no_trace(),
            };
            if !good {
                write!(bad, "{line}").expect("a string takes all");
            }
        }
    }
    println!("after a {} stop:\n{table}", if clean { "clean" } else { "kill -9" });
    assert!(bad.is_empty(), "`check` and `serve` disagree:\n{bad}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_damage_of_a_cleanly_closed_directory_loses_anything_silently() {
    every_harm(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_damage_of_a_directory_whose_server_was_killed_loses_anything_silently() {
    every_harm(false).await;
}
