//! The smoothserve binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ["proxy", options @ ..] = arguments.as_slice() else {
        eprintln!("usage: smoothserve proxy [--threads N] [--die-with-parent]");
        return ExitCode::from(64);
    };
    let threads = options
        .iter()
        .skip_while(|option| **option != "--threads")
        .nth(1)
        .and_then(|count| count.parse().ok());
    let options = smoothserve::proxy::Options {
        threads,
        die_with_parent: options.contains(&"--die-with-parent"),
    };
    match smoothserve::proxy::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "WorkerFailed");
            ExitCode::FAILURE
        }
    }
}
