//! The operations by instructions, which are steady where times are not.
//!
//! `cargo run --release -p roomlog-bench --bin instructions [-- [--update] [PART_OF_NAME]...]`
//!
//! Each operation runs N and then 2 N times under callgrind; the difference is without what comes before and behind it.
//! The table `bench/instructions.tsv` has what it took with a compiler and a C library. Compared is only what has both in
//! common with this machine; `--update` writes what was counted. Exit codes: 0 all within the tolerance or nothing to
//! compare with, 1 something beyond it, 2 wrong arguments, 3 no valgrind, 4 it could not be counted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use roomlog_bench::{OPERATIONS, Operation};

/// What two runs of one program may differ by: hashes are seeded at random, and threads meet at other moments.
const TOLERANCE: f64 = 0.02;
/// Instructions of the difference: enough that a turn more or less of something is little.
const INSTRUCTIONS_MIN: u64 = 60_000_000;
const FIRST_GUESS: u64 = 16;
const REPETITIONS_MAX: u64 = 65_536;

/// Compiler, C library, operation: instructions of one repetition.
type Table = BTreeMap<(String, String, String), f64>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [command, name, count] = &arguments[..]
        && command == "repeat"
    {
        return repeat(name, count);
    }
    let update = arguments.iter().any(|argument| argument == "--update");
    let wanted: Vec<_> = arguments.iter().filter(|argument| *argument != "--update").collect();
    if let Some(flag) = wanted.iter().find(|argument| argument.starts_with('-')) {
        eprintln!("unknown option {flag}; there is --update, and parts of names");
        return ExitCode::from(2);
    }
    let operations: Vec<_> = OPERATIONS
        .iter()
        .filter(|operation| wanted.is_empty() || wanted.iter().any(|part| operation.name.contains(*part)))
        .collect();
    if operations.is_empty() {
        eprintln!("no operation is called so; there are:");
        OPERATIONS.iter().for_each(|operation| eprintln!("  {}", operation.name));
        return ExitCode::from(2);
    }
    if said_by("valgrind", &["--version"]).is_none() {
        eprintln!("VALGRIND IS MISSING: nothing was counted. Install the package valgrind of your system.");
        return ExitCode::from(3);
    }
    count(&operations, update).unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(4)
    })
}

/// What runs under callgrind.
fn repeat(name: &str, count: &str) -> ExitCode {
    let found = OPERATIONS.iter().find(|operation| operation.name == name);
    let (Some(operation), Ok(count)) = (found, count.parse::<u64>()) else { return ExitCode::from(2) };
    let mut repeat = (operation.prepare)();
    (0..count).for_each(|_| repeat());
    ExitCode::SUCCESS
}

fn count(operations: &[&Operation], update: bool) -> Result<ExitCode, String> {
    let compiler = said_by("rustc", &["--version"]).ok_or("rustc does not say its version")?;
    let library = said_by("getconf", &["GNU_LIBC_VERSION"]).ok_or("the C library does not say its version")?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.tsv");
    let mut table = read(&path)?;
    println!("{compiler}; {library}; tolerance {} %", TOLERANCE * 100.0);
    let known = table.keys().any(|(of_compiler, of_library, _)| *of_compiler == compiler && *of_library == library);
    if !known {
        println!("NOTHING TO COMPARE WITH: instructions.tsv has no row of this compiler and this C library");
    }
    let mut code = ExitCode::SUCCESS;
    for operation in operations {
        let counted = instructions(operation)?;
        let key = (compiler.clone(), library.clone(), operation.name.to_owned());
        let verdict = match table.get(&key) {
            Some(before) if (counted / before - 1.0).abs() > TOLERANCE => {
                if !update {
                    code = ExitCode::from(1);
                }
                format!("{:+.1} % of {before:.0}: BEYOND THE TOLERANCE", (counted / before - 1.0) * 100.0)
            }
            Some(before) => format!("{:+.1} % of {before:.0}", (counted / before - 1.0) * 100.0),
            None => "not in the table".to_owned(),
        };
        let each = counted / operation.elements as f64;
        println!("{:<38} {counted:>12.0}, {each:>8.0} each: {verdict}", operation.name);
        table.insert(key, counted.round());
    }
    if update {
        write(&path, &table)?;
    }
    Ok(code)
}

/// Of one repetition.
fn instructions(operation: &Operation) -> Result<f64, String> {
    let mut repetitions = FIRST_GUESS;
    loop {
        let more = collected(operation, 2 * repetitions)?.saturating_sub(collected(operation, repetitions)?);
        if more >= INSTRUCTIONS_MIN || repetitions == REPETITIONS_MAX {
            return Ok(more as f64 / repetitions as f64);
        }
        // A little more than what the first look says is enough.
        let wanted = INSTRUCTIONS_MIN * 3 / 2 / more.max(1);
        repetitions = (repetitions * (wanted + 1)).clamp(repetitions + 1, REPETITIONS_MAX);
    }
}

/// All instructions of a process that repeats an operation.
fn collected(operation: &Operation, repetitions: u64) -> Result<u64, String> {
    let own = std::env::current_exe().map_err(|error| format!("this program's place: {error}"))?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(own);
    let output = command.args(["repeat", operation.name, &repetitions.to_string()]).output();
    let output = output.map_err(|error| format!("valgrind: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let number = line.and_then(|(_, number)| number.trim().parse().ok());
    number.filter(|_| output.status.success()).ok_or_else(|| format!("{}: {}: {text}", operation.name, output.status))
}

/// The first line that a program says, if there is such a program.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

fn read(path: &PathBuf) -> Result<Table, String> {
    let world = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Table::new()),
        text => text.map_err(|error| world(&error))?,
    };
    let rows = text.lines().skip(1).map(|line| {
        let fields: Vec<_> = line.split('\t').collect();
        let [compiler, library, operation, count] = fields[..] else { return Err(world(&"a row has four fields")) };
        let count = count.parse().map_err(|error| world(&error))?;
        Ok(((compiler.to_owned(), library.to_owned(), operation.to_owned()), count))
    });
    rows.collect()
}

fn write(path: &Path, table: &Table) -> Result<(), String> {
    let mut text = "rustc\tlibc\toperation\tinstructions\n".to_owned();
    for ((compiler, library, operation), count) in table {
        text += &format!("{compiler}\t{library}\t{operation}\t{count}\n");
    }
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
