//! `make bench-growth`: how costs change with the number of services, hosts, instances and
//! connections, as small tables.
//!
//! Only smoothserve is measured, with its own programs and with folders of many services. Where a
//! table claims that a cost stays the same, its columns were measured in turn, in another order
//! each round, and the figure is the median of the rounds' ratios to the first column.

mod cost;
mod manager;
mod scene;
mod tables;

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const BEGIN: &str = "<!-- growth -->";
const END: &str = "<!-- end of growth -->";

/// Measures everything, and puts it into its section of the results.
pub fn run(programs: &Path, results: &Path) -> anyhow::Result<()> {
    raise_descriptor_limit()?;
    let mut text = format!(
        "{BEGIN}\n## Growth\n\n`make bench-growth` writes this section. Measured on {}, commit {}, {}.\n",
        said("date", &["-u", "+%Y-%m-%d"])?,
        said("git", &["describe", "--always", "--dirty"])?,
        said("uname", &["-sr"])?,
    );
    text += &cost::tables(programs)?;
    text += &manager::tables(programs)?;
    text += &tables::table(programs)?;
    text += END;
    let before = std::fs::read_to_string(results).unwrap_or_default();
    std::fs::write(results, put(&before, &text))?;
    println!("\n{text}");
    Ok(())
}

/// Measures one part and only prints it.
pub fn part(programs: &Path, name: &str) -> anyhow::Result<()> {
    raise_descriptor_limit()?;
    let text = match name {
        "costs" => cost::tables(programs)?,
        "manager" => manager::tables(programs)?,
        _ => tables::table(programs)?,
    };
    println!("{text}");
    Ok(())
}

/// Puts the section in the place of the former one, or at the end.
fn put(results: &str, section: &str) -> String {
    let before = results.split_once(BEGIN);
    let after = results.split_once(END);
    match (before, after) {
        (Some((before, _)), Some((_, after))) => format!("{before}{section}{after}"),
        _ => format!("{}\n\n{section}\n", results.trim_end()),
    }
}

/// Returns what a command prints.
fn said(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Raises the limit of descriptors to its maximum, for this program and for all that it starts.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_section_replaces_the_former_one() {
        let first = put("# Results\n", &format!("{BEGIN}\none\n{END}"));
        assert_eq!(first, format!("# Results\n\n{BEGIN}\none\n{END}\n"));
        let later = format!("{first}\nmore\n");
        let second = put(&later, &format!("{BEGIN}\ntwo\n{END}"));
        assert_eq!(second, later.replace("one", "two"));
    }
}
