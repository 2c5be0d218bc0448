//! The page of a program, from the definition of its command line.

use clap::{Arg, ArgAction, Command};

use crate::markdown;
use crate::page::{Page, Text};

/// What the definition of a command line does not say.
pub struct Program {
    /// The section of the manual.
    pub section: u8,
    /// Markdown. What stands before its first heading belongs to the description.
    pub text: &'static str,
    /// Exit statuses and what they mean.
    pub exit: &'static [(u8, &'static str)],
}

/// The page of a program.
pub fn page(mut command: Command, program: &Program) -> String {
    command.build();
    let name = command.get_name().to_owned();
    let about = command.get_about().map(ToString::to_string);
    let about = about.unwrap_or_default();
    let mut begin = about.chars();
    let first = begin.next().map(|letter| letter.to_ascii_lowercase());
    let about: String = first.into_iter().chain(begin).collect();
    let mut page = Page::new(&name, program.section, &about);

    let visible: Vec<&Command> = command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .collect();
    page.section("Synopsis");
    for verb in &visible {
        let mut line = Text::default();
        for argument in own_arguments(verb, Some(&command)) {
            line.plain(" ");
            line.push(&usage(argument));
        }
        page.synopsis(&format!("{name} {}", verb.get_name()), &line);
    }
    page.section("Description");
    if let Some(description) = command.get_long_about() {
        let description = description.to_string();
        // Its first line is the name's.
        let description = description.split_once("\n\n").map_or("", |(_, rest)| rest);
        markdown::add(&mut page, description);
    }
    let (description, rest) = program
        .text
        .split_once("\n# ")
        .unwrap_or((program.text, ""));
    markdown::add(&mut page, description);

    page.section("Commands");
    for verb in &visible {
        let mut term = Text::default();
        term.literal(verb.get_name());
        for operand in verb.get_positionals() {
            term.plain(" ");
            term.push(&usage(operand));
        }
        page.begin_item(&term);
        let about = verb.get_long_about().or(verb.get_about());
        explain(
            &mut page,
            about.map(ToString::to_string).unwrap_or_default(),
        );
        own_arguments(verb, Some(&command)).for_each(|argument| item(&mut page, argument));
        page.end_items(0);
    }
    page.section("Options");
    own_arguments(&command, None).for_each(|argument| item(&mut page, argument));
    page.section("Exit status");
    for (status, meaning) in program.exit {
        let mut term = Text::default();
        term.literal(&status.to_string());
        page.begin_item(&term);
        markdown::add(&mut page, meaning);
        page.end_items(0);
    }
    if !rest.is_empty() {
        markdown::add(&mut page, &format!("# {rest}"));
    }
    page.finish()
}

/// The arguments of a command without those that are the same for all commands.
fn own_arguments<'c>(
    command: &'c Command,
    parent: Option<&'c Command>,
) -> impl Iterator<Item = &'c Arg> {
    let is_of_all = move |argument: &&Arg| {
        parent.is_some_and(|parent| {
            parent
                .get_arguments()
                .any(|other| other.get_id() == argument.get_id())
        })
    };
    command
        .get_arguments()
        .filter(move |argument| !argument.is_hide_set() && !is_of_all(argument))
}

/// What stands for the value of an argument.
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

/// How an option is written.
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

/// The place of an argument in a command line.
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

fn item(page: &mut Page, argument: &Arg) {
    let term = match argument.is_positional() {
        true => value(argument).unwrap_or_default(),
        false => option(argument),
    };
    let open = page.items();
    page.begin_item(&term);
    let mut help = sentence(help(argument));
    let defaults = argument.get_default_values();
    if argument.get_action().takes_values() && !defaults.is_empty() {
        let defaults: Vec<_> = defaults
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        help.push_str(&format!(" Default: `{}`.", defaults.join(" ")));
    }
    if let Some(variable) = argument.get_env() {
        help.push_str(&format!(
            " Also by the variable `{}`.",
            variable.to_string_lossy()
        ));
    }
    explain(page, help);
    if argument.get_action().takes_values() {
        for possible in argument.get_possible_values() {
            let mut term = Text::default();
            term.literal(possible.get_name());
            let inner = page.items();
            page.begin_item(&term);
            let help = possible.get_help().map(ToString::to_string);
            explain(page, help.unwrap_or_default());
            page.end_items(inner);
        }
    }
    page.end_items(open);
}

/// What the definition says about an argument.
fn help(argument: &Arg) -> String {
    if argument.get_id() == "help" {
        // clap's own words are about the other of both.
        return "Print a short help (`-h`) or a long one".to_owned();
    }
    let help = argument.get_long_help().or(argument.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    // As clap shows defaults, where it does not know them.
    match help
        .strip_suffix(']')
        .and_then(|help| help.rsplit_once(" [default: "))
    {
        Some((help, default)) => format!("{help}. Default: {default}"),
        None => help,
    }
}

fn explain(page: &mut Page, help: String) {
    markdown::add(page, &sentence(help));
}

/// The help of a command line has no stop at its end.
fn sentence(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('.') {
        text.push('.');
    }
    text
}
