//! The order of words on a command line: what a person types, put into the order of the grammar.
//! Pure.

/// The verbs of smoothctl, in the order of the grammar.
const VERBS: [&str; 8] = [
    "status", "list", "start", "stop", "restart", "reload", "logs", "check",
];

/// Options that take a value in a word of its own.
const WITH_VALUE: [&str; 6] = ["--run-dir", "--bus", "-n", "--lines", "-S", "--since"];

/// Puts the verb before the names, and translates the arguments of smoothtool. The error is a line
/// to print.
pub(super) fn arrange(arguments: &[String]) -> Result<Vec<String>, String> {
    let (program, rest) = arguments.split_first().ok_or("no arguments at all")?;
    let is_smoothtool = program.rsplit('/').next() == Some("smoothtool");
    let rest = if is_smoothtool {
        from_smoothtool(rest)?
    } else {
        verb_first(rest)
    };
    Ok(std::iter::once("smoothctl".to_owned())
        .chain(rest)
        .collect())
}

/// Puts the verb first: makes `restart --no-block shop` of `--no-block shop restart`. If several
/// words are verbs and the first word is none, it is not clear which one is meant.
fn verb_first(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    let mut plain = Vec::new();
    let mut is_value = false;
    for (index, word) in words.iter().enumerate() {
        if word == "--" {
            break;
        }
        if !is_value && !word.starts_with('-') {
            plain.push(index);
        }
        is_value = WITH_VALUE.contains(&word.as_str());
    }
    let is_verb = |index: &usize| VERBS.contains(&words[*index].as_str());
    let mut verbs = plain.iter().copied().filter(is_verb);
    let verb = match (verbs.next(), verbs.next()) {
        (Some(verb), Some(_)) if plain.first() != Some(&verb) => None,
        (verb, _) => verb,
    };
    if let Some(verb) = verb {
        let verb = words.remove(verb);
        words.insert(0, verb);
    }
    words
}

/// Translates `-restart shop`, `-restart=shop` and `--restart shop`, with `-force` anywhere. That
/// asked for a restart without the checks of a safe one; smoothserve's restarts are all safe.
fn from_smoothtool(words: &[String]) -> Result<Vec<String>, String> {
    const USAGE: &str = "usage: smoothtool -start|-stop|-restart NAME|all [-force]";
    let mut verb = None;
    let mut names = Vec::new();
    for word in words {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            names.push(word.clone());
            continue;
        };
        let (flag, value) = flag
            .split_once('=')
            .map_or((flag, None), |(flag, value)| (flag, Some(value)));
        match flag {
            "start" | "stop" | "restart" if verb.is_none() => {
                verb = Some(flag.to_owned());
                names.extend(value.map(str::to_owned));
            }
            "force" => {}
            _ => return Err(USAGE.to_owned()),
        }
    }
    match verb {
        Some(verb) if !names.is_empty() => Ok(std::iter::once(verb).chain(names).collect()),
        _ => Err(USAGE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::*;
    use crate::ctl::Smoothctl;

    fn arranged(words: &str) -> Result<String, String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        arrange(&words).map(|words| words.join(" "))
    }

    #[test]
    fn the_verb_may_stand_behind_the_names() {
        for (typed, meant) in [
            ("smoothctl", "smoothctl"),
            ("smoothctl restart shop blog", "smoothctl restart shop blog"),
            ("smoothctl shop restart", "smoothctl restart shop"),
            (
                "smoothctl shop blog restart --no-block",
                "smoothctl restart shop blog --no-block",
            ),
            (
                "smoothctl shop -n stop logs -f",
                "smoothctl logs shop -n stop -f",
            ),
            (
                "smoothctl --no-block --run-dir status shop stop",
                "smoothctl stop --no-block --run-dir status shop",
            ),
            (
                "smoothctl -l status shop stop",
                "smoothctl status -l shop stop",
            ),
            (
                "smoothctl logs shop -- -p status",
                "smoothctl logs shop -- -p status",
            ),
            // A service may be named like a verb: then the verb comes first.
            ("smoothctl stop start", "smoothctl stop start"),
            ("smoothctl shop", "smoothctl shop"),
        ] {
            assert_eq!(arranged(typed).unwrap(), meant);
        }
    }

    #[test]
    fn the_words_are_those_of_the_grammar() {
        let command = Smoothctl::command();
        let verbs: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        assert_eq!(verbs, VERBS);
        let commands = std::iter::once(&command).chain(command.get_subcommands());
        let options = commands.flat_map(Command::get_opts);
        let mut with_value: Vec<String> = options
            .filter(|option| option.get_action().takes_values())
            .flat_map(|option| {
                let short = option.get_short().map(|short| format!("-{short}"));
                let long = option.get_long().map(|long| format!("--{long}"));
                short.into_iter().chain(long)
            })
            .collect();
        with_value.sort();
        let mut expected = WITH_VALUE;
        expected.sort_unstable();
        assert_eq!(with_value, expected);
    }

    #[test]
    fn smoothtool_is_understood() {
        for (typed, meant) in [
            (
                "/usr/bin/smoothtool -restart shop",
                "smoothctl restart shop",
            ),
            ("smoothtool -restart=shop -force", "smoothctl restart shop"),
            ("smoothtool --force --stop all", "smoothctl stop all"),
        ] {
            assert_eq!(arranged(typed).unwrap(), meant);
        }
        for wrong in [
            "smoothtool",
            "smoothtool -restart",
            "smoothtool -start a -stop b",
            "smoothtool -x a",
        ] {
            assert!(
                arranged(wrong)
                    .unwrap_err()
                    .starts_with("usage: smoothtool"),
                "{wrong}"
            );
        }
    }
}
