//! What to type instead of words that smoothctl does not have, and that people try because another
//! program has them. Pure.

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::grammar::Smoothctl;

/// Commands of other programs, and what does the same here. NAME stands for the further words that
/// were typed.
const INSTEAD: [(&[&str], &str); 20] = [
    (
        &["deploy", "release", "publish", "ship", "push"],
        "put the new version in the place of the old one, then run `smoothctl reload`",
    ),
    (
        &["rollback", "revert", "undo", "downgrade"],
        "put the earlier version in the place of this one, then run `smoothctl reload`",
    ),
    (
        &["scale"],
        "set `instance_count` in the file of the service, then run `smoothctl reload`",
    ),
    (
        &["enable", "disable", "mask", "unmask"],
        "set `enabled` in the file of the service, then run `smoothctl reload`",
    ),
    (
        &["add", "create", "new", "install", "link"],
        "write a file for the service, then run `smoothctl reload`",
    ),
    (
        &["delete", "remove", "rm", "del", "destroy"],
        "remove the file of the service, then run `smoothctl reload`",
    ),
    (
        &["edit", "set", "set-property"],
        "change the file of the service, which `smoothctl status NAME` names, then run \
         `smoothctl reload`",
    ),
    (
        &[
            "daemon-reload",
            "apply",
            "reread",
            "update",
            "graceful",
            "sync",
        ],
        "use `smoothctl reload`",
    ),
    (
        &[
            "reload-or-restart",
            "try-restart",
            "try-reload-or-restart",
            "condrestart",
            "rolling",
        ],
        "use `smoothctl restart NAME`",
    ),
    (&["kill", "drain", "down"], "use `smoothctl stop NAME`"),
    (&["up", "launch"], "use `smoothctl start NAME`"),
    (
        &[
            "show",
            "info",
            "describe",
            "inspect",
            "ps",
            "top",
            "monit",
            "is-active",
            "is-failed",
            "is-enabled",
            "list-instances",
            "health",
        ],
        "use `smoothctl status NAME`",
    ),
    (
        &["cat", "config"],
        "`smoothctl status NAME` names the file of the service",
    ),
    (
        &["ls", "list-units", "list-services", "services"],
        "use `smoothctl list`",
    ),
    (&["log", "journal", "tail"], "use `smoothctl logs NAME`"),
    (
        &["test", "configtest", "validate", "verify", "lint"],
        "use `smoothctl check`",
    ),
    (&["run", "serve"], "use `smoothserve run`"),
    (
        &["upgrade", "self-update"],
        "install the new package; `systemctl restart smoothserve` replaces smoothserve itself",
    ),
    (&["help", "commands"], "use `smoothctl --help`"),
    (&["version"], "use `smoothctl --version`"),
];

/// Options of other programs, and what to know about them here.
const OPTIONS: [(&[&str], &str); 6] = [
    (
        &["--now", "--wait"],
        "every command waits until its work is done",
    ),
    (
        &["--force"],
        "`smoothctl restart NAME` replaces instances that do not answer, too",
    ),
    (
        &["--user"],
        "if you run a smoothserve of your own, smoothctl asks that one",
    ),
    (&["--system"], "use `--bus system`"),
    (
        &["--no-pager"],
        "only logs are paged, and not by `smoothctl logs NAME -- --no-pager`",
    ),
    (&["--quiet"], "send the output to /dev/null"),
];

/// Returns a sentence about a command line that was not understood, with the nearest right one;
/// `None` if clap's own words are as good. `arguments` are those that clap has seen.
pub(super) fn instead(error: &clap::Error, arguments: &[String]) -> Option<String> {
    let word = |kind: ContextKind| match error.get(kind)? {
        ContextValue::String(word) => Some(word.clone()),
        _ => None,
    };
    let verb = arguments.get(1).map_or("", String::as_str);
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let unknown = word(ContextKind::InvalidSubcommand)?;
            Some(for_command(&unknown, &arguments[1..]))
        }
        ErrorKind::UnknownArgument => {
            let unknown = word(ContextKind::InvalidArg)?;
            Some(for_argument(&unknown, verb, &arguments[1..]))
        }
        ErrorKind::MissingRequiredArgument if verb == "logs" => Some(
            "logs needs the name of a service: `smoothctl logs NAME`; \
             `journalctl -u smoothserve.slice` shows all"
                .to_owned(),
        ),
        ErrorKind::MissingRequiredArgument => Some(format!(
            "{verb} needs the name of a service, or `all`: `smoothctl {verb} NAME`"
        )),
        _ => None,
    }
}

/// Returns the hint for a command line whose verb is unknown. The verb may also stand behind the
/// names.
fn for_command(unknown: &str, words: &[String]) -> String {
    let plain = || words.iter().filter(|word| !word.starts_with('-'));
    let names = |typed: &str| -> Option<String> {
        let names = plain().filter(|word| *word != typed).map(String::as_str);
        let names: Vec<&str> = names.collect();
        (!names.is_empty()).then(|| names.join(" "))
    };
    for word in plain() {
        let mut known = INSTEAD.iter();
        if let Some((_, hint)) = known.find(|(words, _)| words.contains(&word.as_str())) {
            let names = names(word).unwrap_or("NAME".to_owned());
            return format!(
                "there is no command `{word}`: {}",
                hint.replace("NAME", &names)
            );
        }
    }
    let nearest = plain().filter_map(|word| Some((nearest_verb(word)?, word)));
    // Of equal ones, the first.
    let nearest = nearest.min_by(|((a, _), _), ((b, _), _)| a.total_cmp(b));
    let Some(((share, verb), word)) = nearest else {
        return format!(
            "there is no command `{unknown}`: `smoothctl --help` lists all, and \
             `smoothctl status {unknown}` shows a service of that name"
        );
    };
    let line = match takes_names(&verb) {
        true => format!(
            "smoothctl {verb} {}",
            names(word).unwrap_or("NAME".to_owned())
        ),
        false => format!("smoothctl {verb}"),
    };
    match share < LIKELY {
        true => format!("there is no command `{word}`: use `{line}`"),
        // A service may have a name that is like a command, such as `shop`.
        false => format!(
            "there is no command `{word}`: use `smoothctl status {word}` for a service of that name, \
             or `{line}`"
        ),
    }
}

/// Returns the hint for an argument that a verb does not take.
fn for_argument(unknown: &str, verb: &str, words: &[String]) -> String {
    if !unknown.starts_with('-') {
        return match verb {
            "reload" => format!(
                "reload takes no name, because it finds what has changed: use `smoothctl reload`, \
                 or `smoothctl restart {unknown}` to replace all instances"
            ),
            _ => format!("{verb} does not take `{unknown}`: see `smoothctl {verb} --help`"),
        };
    }
    let name = unknown.split('=').next().unwrap_or_default();
    let known = OPTIONS.iter().find(|(names, _)| names.contains(&name));
    let of = match words.iter().any(|word| word == verb) && !verb.starts_with('-') {
        true => format!("smoothctl {verb}"),
        false => "smoothctl".to_owned(),
    };
    match known {
        Some((_, hint)) => format!("there is no option {name}: {hint}"),
        None => format!("there is no option {name}: see `{of} --help`"),
    }
}

/// The share of wrong letters in a word below which a verb is meant for sure.
const LIKELY: f64 = 0.2;

/// Returns the verb that a word is most likely meant for, with the share of wrong letters.
fn nearest_verb(word: &str) -> Option<(f64, String)> {
    let command = Smoothctl::command();
    let verbs = command.get_subcommands().map(|verb| verb.get_name());
    let distances = verbs.map(|verb| (strsim::damerau_levenshtein(verb, word), verb));
    let (distance, verb) = distances.filter(|(distance, _)| *distance <= 2).min()?;
    let share = distance as f64 / word.chars().count() as f64;
    (share < 0.5).then(|| (share, verb.to_owned()))
}

fn takes_names(verb: &str) -> bool {
    let command = Smoothctl::command();
    let verb = command.find_subcommand(verb);
    let positionals = verb.into_iter().flat_map(|verb| verb.get_positionals());
    positionals
        .filter_map(|argument| argument.get_value_names())
        .any(|names| names.iter().any(|name| name == "NAME"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::words;
    use super::*;

    fn hint(line: &str) -> Option<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let words = words::arrange(&words).unwrap();
        instead(&Smoothctl::try_parse_from(&words).unwrap_err(), &words)
    }

    #[test]
    fn a_wrong_command_gets_the_nearest_right_one() {
        for (line, expected) in [
            (
                "smoothctl restrat shop blog",
                "there is no command `restrat`: use `smoothctl restart shop blog`",
            ),
            (
                "smoothctl shop restrat",
                "there is no command `restrat`: use `smoothctl restart shop`",
            ),
            (
                "smoothctl relaod",
                "there is no command `relaod`: use `smoothctl reload`",
            ),
            (
                "smoothctl shop scale 5",
                "there is no command `scale`: set `instance_count` in the file of the service, then \
                 run `smoothctl reload`",
            ),
            (
                "smoothctl log -f shop",
                "there is no command `log`: use `smoothctl logs shop`",
            ),
            (
                "smoothctl log",
                "there is no command `log`: use `smoothctl logs NAME`",
            ),
            (
                "smoothctl shop",
                "there is no command `shop`: use `smoothctl status shop` for a service of that name, \
                 or `smoothctl stop NAME`",
            ),
            (
                "smoothctl xyzzy",
                "there is no command `xyzzy`: `smoothctl --help` lists all, and \
                 `smoothctl status xyzzy` shows a service of that name",
            ),
            (
                "smoothctl reload shop",
                "reload takes no name, because it finds what has changed: use `smoothctl reload`, or \
                 `smoothctl restart shop` to replace all instances",
            ),
            (
                "smoothctl restart --gently shop",
                "there is no option --gently: see `smoothctl restart --help`",
            ),
            (
                "smoothctl --gently",
                "there is no option --gently: see `smoothctl --help`",
            ),
            (
                "smoothctl --system status",
                "there is no option --system: use `--bus system`",
            ),
            (
                "smoothctl restart",
                "restart needs the name of a service, or `all`: `smoothctl restart NAME`",
            ),
            (
                "smoothctl logs -f",
                "logs needs the name of a service: `smoothctl logs NAME`; \
                 `journalctl -u smoothserve.slice` shows all",
            ),
        ] {
            assert_eq!(hint(line).as_deref(), Some(expected));
        }
        assert_eq!(hint("smoothctl --bus tram status"), None);
        assert_eq!(hint("smoothctl --version"), None);
    }

    /// Every command line that a hint gives is one that smoothctl understands.
    #[test]
    fn hints_are_right() {
        let hints = INSTEAD.iter().chain(&OPTIONS).map(|(_, hint)| *hint);
        let mut lines = 0;
        for hint in hints {
            let spans = hint.split('`').skip(1).step_by(2);
            for line in spans.filter(|span| span.starts_with("smoothctl ")) {
                lines += 1;
                let parsed = Smoothctl::try_parse_from(line.split(' '));
                let is_right = parsed.as_ref().is_ok_and(|parsed| parsed.verb.is_some())
                    || parsed.is_err_and(|error| !error.use_stderr());
                assert!(is_right, "{line}");
            }
        }
        assert!(lines > 10, "{lines}");
        let command = Smoothctl::command();
        for (words, _) in INSTEAD {
            for word in words {
                assert!(
                    command.find_subcommand(word).is_none(),
                    "{word} is a command"
                );
            }
        }
    }
}
