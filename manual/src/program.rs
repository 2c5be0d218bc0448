//! The manual page of a program, from the definition of its command line.

use clap::{Arg, ArgAction, Command};

use crate::markdown;
use crate::page::{Page, Text};

/// What the definition of a command line does not contain.
pub struct Program {
    /// The section of the manual.
    pub section: u8,
    /// More text in Markdown. The part before its first heading belongs to the description.
    pub text: &'static str,
    /// Exit statuses and their meanings.
    pub exit: &'static [(u8, &'static str)],
}

/// Returns the manual page of a program.
pub fn page(mut command: Command, program: &Program) -> String {
    command.build();
    let verbs = || command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let mut page = Page::new(command.get_name(), program.section, &about(&command));

    page.section("Synopsis");
    for verb in verbs() {
        page.synopsis(command.get_name(), &synopsis(&command, verb));
    }
    page.section("Description");
    if let Some(description) = command.get_long_about() {
        let description = description.to_string();
        // The first paragraph of the description is already in the page's name section.
        let (_, description) = description.split_once("\n\n").unwrap_or_default();
        markdown::add(&mut page, description);
    }
    let (description, sections) = program
        .text
        .split_once("\n# ")
        .unwrap_or((program.text, ""));
    markdown::add(&mut page, description);

    page.section("Commands");
    for verb in verbs() {
        let mut term = Text::default();
        term.literal(verb.get_name());
        for operand in verb.get_positionals() {
            term.plain(" ");
            term.push(&usage(operand));
        }
        page.begin_item(&term);
        let about = verb.get_long_about().or(verb.get_about());
        markdown::add(&mut page, &sentence(about.map(ToString::to_string)));
        own_arguments(verb, &command).for_each(|argument| item(&mut page, argument));
        page.end_items(0);
    }
    page.section("Options");
    command
        .get_arguments()
        .for_each(|option| item(&mut page, option));
    page.section("Exit status");
    for (status, meaning) in program.exit {
        let mut term = Text::default();
        term.literal(&status.to_string());
        page.begin_item(&term);
        markdown::add(&mut page, meaning);
        page.end_items(0);
    }
    markdown::add(&mut page, &format!("# {sections}"));
    page.finish()
}

/// Returns what a program does, as a phrase that follows the name of its page.
fn about(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    let mut about = about.unwrap_or_default();
    if let Some(first) = about.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    about
}

/// Returns the command line of a verb, without the name of the program.
fn synopsis(command: &Command, verb: &Command) -> Text {
    let mut line = Text::default();
    if command.get_arguments().any(Arg::is_global_set) {
        line.plain("[");
        line.italic(true);
        line.plain("OPTION");
        line.italic(false);
        line.plain("...] ");
    }
    line.literal(verb.get_name());
    let options = own_arguments(verb, command).filter(|argument| !argument.is_positional());
    for argument in options.chain(verb.get_positionals()) {
        line.plain(" ");
        line.push(&usage(argument));
    }
    line
}

/// Returns the arguments of a verb, without those that all verbs have.
fn own_arguments<'c>(verb: &'c Command, command: &'c Command) -> impl Iterator<Item = &'c Arg> {
    let of_all = |argument: &Arg| {
        let mut others = command.get_arguments();
        others.any(|other| other.get_id() == argument.get_id())
    };
    verb.get_arguments()
        .filter(move |argument| !of_all(argument))
}

/// Returns the placeholder for the value of an argument.
fn value(argument: &Arg) -> Option<Text> {
    if !argument.get_action().takes_values() {
        return None;
    }
    let mut text = Text::default();
    text.italic(true);
    match argument.get_value_names() {
        Some(names) => {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            text.plain(&names.join(" "));
        }
        None => text.plain(&argument.get_id().as_str().to_uppercase()),
    }
    text.italic(false);
    if matches!(argument.get_action(), ArgAction::Append) {
        text.plain("...");
    }
    Some(text)
}

/// Returns an option as it is written on a command line.
fn option(argument: &Arg) -> Text {
    let mut text = Text::default();
    if let Some(short) = argument.get_short() {
        text.literal(&format!("-{short}"));
    }
    if let Some(long) = argument.get_long() {
        if !text.is_empty() {
            text.plain(", ");
        }
        text.literal(&format!("--{long}"));
    }
    if let Some(value) = value(argument) {
        text.plain(" ");
        text.push(&value);
    }
    text
}

/// Returns an argument as it appears in a synopsis.
fn usage(argument: &Arg) -> Text {
    let mut inner = Text::default();
    if argument.is_last_set() {
        inner.literal("--");
        inner.plain(" ");
    }
    match (argument.get_long(), argument.get_short()) {
        (_, Some(short)) => inner.literal(&format!("-{short}")),
        (Some(long), None) => inner.literal(&format!("--{long}")),
        (None, None) => {}
    }
    if let Some(value) = value(argument) {
        if !argument.is_positional() {
            inner.plain(" ");
        }
        inner.push(&value);
    }
    if argument.is_required_set() {
        return inner;
    }
    let mut text = Text::default();
    text.plain("[");
    text.push(&inner);
    text.plain("]");
    text
}

/// Adds an item that explains an argument and its possible values.
fn item(page: &mut Page, argument: &Arg) {
    let open = page.items();
    page.begin_item(&match argument.is_positional() {
        true => value(argument).unwrap_or_default(),
        false => option(argument),
    });
    let mut help = sentence(Some(help(argument)));
    let takes_value = argument.get_action().takes_values();
    let defaults = argument.get_default_values().iter().filter(|_| takes_value);
    for default in defaults {
        help.push_str(&format!(" Default: `{}`.", default.to_string_lossy()));
    }
    if let Some(variable) = argument.get_env() {
        let variable = variable.to_string_lossy();
        help.push_str(&format!(" The variable `{variable}` also sets it."));
    }
    markdown::add(page, &help);
    let words = argument.get_possible_values();
    for word in words.iter().filter(|_| takes_value) {
        let mut term = Text::default();
        term.literal(word.get_name());
        page.begin_item(&term);
        markdown::add(page, &sentence(word.get_help().map(ToString::to_string)));
        page.end_items(open + 1);
    }
    page.end_items(open);
}

/// Returns the description of an argument.
fn help(argument: &Arg) -> String {
    if argument.get_id() == "help" {
        // clap's own text fits only one of the two forms.
        return "Print a short help (`-h`) or a long one".to_owned();
    }
    let help = argument.get_long_help().or(argument.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    // A default that depends on something is part of the text, and is then written as clap shows
    // other defaults.
    let default = help
        .strip_suffix(']')
        .and_then(|help| help.rsplit_once(" [default: "));
    match default {
        Some((help, default)) => format!("{help}. Default: {default}"),
        None => help,
    }
}

/// Makes a sentence of a help text, which has no period at its end.
fn sentence(help: Option<String>) -> String {
    let mut help = help.unwrap_or_default();
    if !help.is_empty() && !help.ends_with('.') {
        help.push('.');
    }
    help
}
