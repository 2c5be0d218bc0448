//! Completions of the command lines, for bash, zsh and fish.
//!
//! The completions of smoothctl depend on what runs, so its files ask smoothctl itself at each Tab.
//! The command line of smoothserve is fixed, so its files contain all completions.

use std::io;

use clap::{Command, CommandFactory};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use clap_complete::{Shell, generate};
use smoothserve::cli::Smoothserve;
use smoothserve::ctl::complete::COMPLETE_VARIABLE;

/// Returns the completion files, by the names under which the shells look for them.
pub fn files() -> io::Result<[(&'static str, String); 6]> {
    const NAME: &str = "smoothctl";
    let asking = |shell: &dyn EnvCompleter| {
        let mut script = Vec::new();
        shell.write_registration(COMPLETE_VARIABLE, NAME, NAME, NAME, &mut script)?;
        String::from_utf8(script).map_err(io::Error::other)
    };
    let knowing = |shell: Shell| {
        let mut script = Vec::new();
        generate(shell, &mut without_hidden(), "smoothserve", &mut script);
        String::from_utf8(script).map_err(io::Error::other)
    };
    // At the first Tab, zsh runs the file itself, which by itself would only define the completion
    // for the next Tab.
    let zsh = asking(&Zsh)?
        + "if [ \"$funcstack[1]\" = _smoothctl ]; then\n    _clap_dynamic_completer_smoothctl \"$@\"\nfi\n";
    Ok([
        (NAME, asking(&Bash)?),
        ("_smoothctl", zsh),
        ("smoothctl.fish", asking(&Fish)?),
        ("smoothserve", knowing(Shell::Bash)?),
        ("_smoothserve", knowing(Shell::Zsh)?),
        ("smoothserve.fish", knowing(Shell::Fish)?),
    ])
}

/// Returns the command line of smoothserve without its hidden roles, which the generated files
/// would show.
fn without_hidden() -> Command {
    let command = Smoothserve::command();
    let visible = command.get_subcommands().filter(|role| !role.is_hide_set());
    let visible: Vec<Command> = visible.cloned().collect();
    Command::new("smoothserve")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommands(visible)
}
