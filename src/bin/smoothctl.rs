//! The smoothctl binary, also installed as smoothtool.

use std::process::ExitCode;

use smoothserve::ctl::complete;

fn main() -> ExitCode {
    if complete::answer() {
        return ExitCode::SUCCESS;
    }
    smoothserve::ctl::main(std::env::args().collect())
}
