//! The `roomlog` program; all of it is in the library's `cli` module.

fn main() -> std::process::ExitCode {
    roomlog::cli::main()
}
