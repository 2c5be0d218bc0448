//! `make bench`: smoothserve beside nginx and HAProxy, in one run, as ratios.
//!
//! All three proxies run all the time, before the same instances. A row of the table is measured in
//! rounds, in each of which every proxy has its turn, in changing order. The figure is the median
//! of the rounds' ratios, because other work of the machine concerns all three proxies of a round.
//! CPU time comes first: it is the cost of a request, no matter what else the machine does.

mod clients;
mod configs;
mod growth;
mod handshakes;
mod idle;
mod load;
mod peers;
mod process;
mod report;
mod rows;
mod trace;

use std::path::Path;

use anyhow::{Context, bail};

use report::Report;

const USAGE: &str = "usage: bench quick | bench latency | bench rotations | bench protocols | bench all RESULTS.md | \
                     bench growth RESULTS.md | bench costs | bench manager | bench tables";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let own = std::env::current_exe()?;
    let programs = own.parent().context("the program has no folder")?;
    let mut report = Report::default();
    match arguments.as_slice() {
        ["quick"] => rows::quick(programs, &mut report)?,
        ["protocols"] => rows::other_protocols(programs, &mut report)?,
        ["rotations"] => rows::rotations_alone(programs, &mut report)?,
        ["latency"] => rows::latency(programs, &mut report)?,
        ["all", results] => {
            report.title()?;
            rows::all(programs, &mut report)?;
            report.save(Path::new(results))?;
        }
        ["growth", results] => return growth::run(programs, Path::new(results)),
        [part @ ("costs" | "manager" | "tables")] => return growth::part(programs, part),
        _ => bail!(USAGE),
    }
    Ok(())
}
