//! The command line: arguments in, output and an exit code out. Everything it does is a call of the library.

mod bench;
mod connection;
mod export;
mod failure;
mod from;
mod history;
mod output;
mod publish;
mod record;
mod serve;
mod subscribe;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// Rooms are persistent logs: publish to them, read them, serve them.
#[derive(Parser, Debug)]
#[command(
    name = "roomlog",
    version,
    about = "A pub/sub broker in which every room is a persistent log.",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage. `roomlog COMMAND --help` has examples."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a server.
    Serve(serve::Arguments),
    /// Publish each line of standard input as a record.
    Pub(publish::Arguments),
    /// Print a room's records, and go on with new ones.
    Sub(subscribe::Arguments),
    /// List rooms.
    Rooms(history::RoomsArguments),
    /// Print a page of a room's records.
    History(history::Arguments),
    /// Write all of a room's records as lines of JSON.
    Export(export::Arguments),
    /// Verify a data directory that no server has open.
    Check(serve::CheckArguments),
    /// Check a configuration file.
    CheckConfig(serve::CheckConfigArguments),
    /// Print the configuration file with every default.
    DefaultConfig(serve::DefaultConfigArguments),
    /// Load a running server and measure it.
    Bench(bench::Arguments),
}

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    // Usage errors end here, with exit code 2.
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            output::complain(&message);
            ExitCode::from(2)
        }
        Err(Failure::Failed(message)) => {
            output::complain(&message);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        // Its exit codes are its own.
        Command::Check(arguments) => return Ok(serve::check(&arguments)),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::CheckConfig(arguments) => serve::check_config(&arguments),
        Command::DefaultConfig(_) => serve::default_config(),
        Command::Pub(arguments) => connected(publish::run(arguments)),
        Command::Sub(arguments) => connected(subscribe::run(arguments)),
        Command::Rooms(arguments) => connected(history::rooms(arguments)),
        Command::History(arguments) => connected(history::run(arguments)),
        Command::Export(arguments) => connected(export::run(arguments)),
        Command::Bench(arguments) => bench::run(&arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a command that talks to a broker.
fn connected(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    // Two threads at least: one may wait for the terminal or a pipe while the other keeps the connection.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("no runtime: {error}")))?;
    let result = runtime.block_on(command);
    // A thread that reads standard input may never come back.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_sound_and_every_command_has_help_with_an_example() {
        let mut command = Arguments::command();
        command.build();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = subcommand.get_name();
            let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("roomlog {name}")), "{name} has no example");
        }
    }

    #[test]
    fn wrong_usage_is_told_apart_from_failure() {
        for arguments in [
            &["roomlog"][..],
            &["roomlog", "pub"],
            &["roomlog", "pub", ""],
            &["roomlog", "sub", "room", "--from", "yesterday"],
            &["roomlog", "sub", "room", "--format", "xml"],
            &["roomlog", "history", "room", "--before", "1", "--after", "2"],
            &["roomlog", "pub", "room", "--first-seq", "0"],
            &["roomlog", "bench", "--payload-bytes", "3"],
        ] {
            let error = Arguments::try_parse_from(arguments).expect_err("wrong usage");
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }
}
