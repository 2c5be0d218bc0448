//! `smoothserve-manual FOLDER` writes the manual into a folder, see `make manual`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: smoothserve-manual FOLDER");
        return ExitCode::from(smoothserve::cli::exit::USAGE);
    };
    match smoothserve_manual::write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
