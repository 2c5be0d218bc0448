//! Writes the manual pages of smoothserve and the completions of its command lines.
//!
//! The pages of the programs come from the definitions that parse their command lines and from
//! `text/`. The pages of the configuration and the D-Bus interface come from the references in
//! `docs/`. Tests compare all of these with the code.

mod completion;
mod markdown;
mod page;
mod program;

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use page::Page;
use program::Program;
use smoothserve::cli::{Smoothserve, exit};
use smoothserve::ctl::Smoothctl;

const SMOOTHSERVE: Program = Program {
    section: 8,
    text: include_str!("../text/smoothserve.md"),
    exit: &[
        (
            0,
            "smoothserve has ended as it was told to, or the configuration has no faults.",
        ),
        (
            1,
            "smoothserve could not start, or could not continue; its last message says why.",
        ),
        (exit::USAGE, "The command line is wrong."),
        (exit::CONFIG, "`check` has found faults."),
    ],
};

const SMOOTHCTL: Program = Program {
    section: 1,
    text: include_str!("../text/smoothctl.md"),
    exit: &[
        (0, "The wanted state was reached."),
        (
            1,
            "The wanted state was not reached, another command took its place, or no service has that name.",
        ),
        (exit::USAGE, "The command line is wrong."),
        (
            exit::UNAVAILABLE,
            "smoothserve does not run, went away, or does not write to the journal.",
        ),
        (exit::SOFTWARE, "An unexpected internal error occurred."),
        (exit::NO_PERMISSION, "The caller is not allowed to do that."),
        (
            exit::CONFIG,
            "The configuration has faults; nothing was changed.",
        ),
        (
            exit::INTERRUPTED,
            "Ctrl-C ended the waiting. The work that has begun continues.",
        ),
    ],
};

/// Writes all pages and completions into a folder, under the names by which they are installed.
pub fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let files = [
        (
            "smoothserve.8",
            program::page(Smoothserve::command(), &SMOOTHSERVE),
        ),
        (
            "smoothctl.1",
            program::page(Smoothctl::command(), &SMOOTHCTL),
        ),
        ("smoothtool.1", ".so man1/smoothctl.1\n".to_owned()),
        (
            "smoothserve.yaml.5",
            reference(
                "smoothserve.yaml",
                "the configuration of smoothserve and of its services",
                include_str!("../../docs/configuration.md"),
                "**smoothserve**(8), **smoothctl**(1), **org.smoothserve1**(5)",
            ),
        ),
        (
            "org.smoothserve1.5",
            reference(
                "org.smoothserve1",
                "the D-Bus interface of smoothserve",
                include_str!("../../docs/dbus.md"),
                "**smoothserve**(8), **smoothctl**(1), **busctl**(1), **dbus-send**(1), **polkit**(8)",
            ),
        ),
    ];
    for (name, content) in files.into_iter().chain(completion::files()?) {
        fs::write(folder.join(name), content)?;
    }
    Ok(())
}

/// Makes a page of a reference. The title of the reference becomes that of the page, and if no
/// other heading has the title's level, all others move up one level.
fn reference(name: &str, about: &str, markdown: &str, see_also: &str) -> String {
    let mut page = Page::new(name, 5, about);
    let (_title, body) = markdown.split_once('\n').unwrap_or_default();
    page.section("Description");
    match body.contains("\n# ") {
        true => markdown::add(&mut page, body),
        false => markdown::add(&mut page, &body.replace("\n##", "\n#")),
    }
    page.section("See also");
    markdown::add(&mut page, see_also);
    page.finish()
}
