//! Roomlog, its peers and the limit of the machine, measured in one run by one load generator.

mod environment;
mod flame;
mod goals;
mod growth;
mod histogram;
mod limit;
mod line;
mod load;
mod measured;
mod options;
mod order;
mod payload;
mod peers;
mod poll;
mod process;
mod quic;
mod random;
mod report;
mod results;
mod run;
mod svg;
mod wire;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| matches!(argument.as_str(), "--help" | "-h")) {
        println!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    let done = match arguments.split_first() {
        Some((command, rest)) if command == "run" => options::run(rest).and_then(|options| run::run(&options)),
        Some((command, rest)) if command == "limit" => options::limit(rest).and_then(|(port, log, sync)| {
            limit::serve(port, log.as_deref(), sync).map_err(|error| format!("the limit program: {error}"))
        }),
        Some((command, rest)) if command == "stalled" => {
            options::stalled(rest).and_then(|asked| load::stalled::run(&asked))
        }
        Some((command, [file])) if command == "goals" => {
            results::Run::read(file.as_ref()).map(|run| print!("{}", goals::text(&run)))
        }
        Some((command, [title, file])) if command == "flame" => std::fs::read_to_string(file)
            .map_err(|error| format!("{file}: {error}"))
            .and_then(|script| flame::graph(title, &script))
            .map(|svg| print!("{svg}")),
        Some((command, [])) if command == "report" => {
            let package = Path::new(env!("CARGO_MANIFEST_DIR"));
            report::write(&package.join("results"), &package.join("../../docs"))
        }
        _ => Err(options::USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
