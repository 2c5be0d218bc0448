//! The smoothctl binary, also installed as smoothtool.

use std::process::ExitCode;

fn main() -> ExitCode {
    smoothserve::ctl::main(std::env::args().collect())
}
