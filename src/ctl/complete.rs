//! Completion: what a shell shows at Tab.
//!
//! The files that are installed for the shells run smoothctl with the words of the command line and
//! [`COMPLETE_VARIABLE`]. smoothctl then never prints an error, never starts a smoothserve that
//! does not run, and never lets a person wait.

use std::ffi::{OsStr, OsString};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};
use clap_complete::{ArgValueCompleter, CompleteEnv, CompletionCandidate};

use super::client::ManagerClient;
use super::grammar::Smoothctl;
use super::render;
use crate::bus::Bus;
use crate::cli::RunDir;
use crate::status::Snapshot;

/// The environment variable that names the shell that asks. Nobody has set it by chance.
pub const COMPLETE_VARIABLE: &str = "SMOOTHCTL_COMPLETE";

/// The time smoothserve has to answer.
const LIMIT: Duration = Duration::from_millis(500);

/// Returns false if no shell asks; otherwise answers it and returns true. There must be no other
/// thread yet.
pub fn answer() -> bool {
    if std::env::var_os(COMPLETE_VARIABLE).is_none() {
        return false;
    }
    let folder = std::env::current_dir().ok();
    // It fails where there is nothing to complete.
    let _ = CompleteEnv::with_factory(command)
        .var(COMPLETE_VARIABLE)
        .try_complete(std::env::args_os(), folder.as_deref());
    true
}

/// The command line of smoothctl, with completers for the names of services. The order of commands
/// and arguments is that of the grammar: positional arguments count by it.
fn command() -> Command {
    Smoothctl::command().mut_subcommands(|verb| {
        let completer = match verb.get_name() {
            "status" | "logs" => ArgValueCompleter::new(service),
            "start" | "stop" | "restart" => ArgValueCompleter::new(service_or_all),
            _ => return verb,
        };
        verb.mut_args(|argument| match argument.get_id().as_str() {
            "name" | "names" => argument.add(completer.clone()),
            _ => argument,
        })
    })
}

/// Lists the services whose names begin with this, and that are not on the command line yet.
fn service(begin: &OsStr) -> Vec<CompletionCandidate> {
    services(begin, false)
}

/// Lists what [`service`] does, and `all`, the word for all services.
fn service_or_all(begin: &OsStr) -> Vec<CompletionCandidate> {
    services(begin, true)
}

/// Lists services, each with its state. If anything goes wrong there are none.
fn services(begin: &OsStr, has_all: bool) -> Vec<CompletionCandidate> {
    let typed = typed_names();
    if typed.iter().any(|name| name == "all") {
        return Vec::new();
    }
    let (send, answer) = mpsc::channel();
    // The whole program ends without waiting for a thread that has not ended.
    thread::spawn(move || drop(send.send(snapshot())));
    let snapshot = answer
        .recv_timeout(LIMIT)
        .ok()
        .flatten()
        .unwrap_or_default();
    let services = snapshot.services.iter();
    let mut candidates: Vec<CompletionCandidate> = services
        .filter(|(name, _)| !typed.contains(name))
        .map(|(name, service)| {
            CompletionCandidate::new(name).help(Some(render::in_short(service).into()))
        })
        .collect();
    if has_all && typed.is_empty() && !candidates.is_empty() {
        candidates.push(CompletionCandidate::new("all").help(Some("all services".into())));
    }
    let begin = begin.as_encoded_bytes();
    candidates.retain(|candidate| candidate.get_value().as_encoded_bytes().starts_with(begin));
    candidates
}

/// Asks the smoothserve that the command line is for, if it runs.
fn snapshot() -> Option<Snapshot> {
    let (run_dir, bus) = destination()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        let client = ManagerClient::connect_to_running(&run_dir, bus).await?;
        let (_, snapshot) = client.dump().await.ok()?;
        Some(snapshot)
    })
}

/// Reads where smoothserve is from what is typed so far.
fn destination() -> Option<(RunDir, Bus)> {
    let found = parsed(typed_words())?;
    let bus = *found.get_one::<Bus>("bus")?;
    Some((RunDir::from_arg_matches(&found).ok()?, bus))
}

/// Returns the names of services on the command line, but for the word that is completed.
fn typed_names() -> Vec<String> {
    let mut words = typed_words();
    let index = std::env::var("_CLAP_COMPLETE_INDEX").ok();
    let index = index.and_then(|index| index.parse().ok());
    // fish names no index, and cuts the command line off behind the word that is completed.
    let completed: usize = index.unwrap_or(words.len().saturating_sub(1));
    if completed < words.len() {
        words.remove(completed);
    }
    let verb = parsed(words);
    let verb = verb.as_ref().and_then(|found| found.subcommand());
    let names = verb.and_then(|(_, found)| found.try_get_many::<String>("names").ok().flatten());
    names.into_iter().flatten().cloned().collect()
}

/// Returns the words of the command line, the name of the program first. The files for the shells
/// put them behind the first `--`.
fn typed_words() -> Vec<OsString> {
    let words = std::env::args_os().skip_while(|word| word != "--");
    words.skip(1).collect()
}

fn parsed(words: Vec<OsString>) -> Option<ArgMatches> {
    let typed = Smoothctl::command().ignore_errors(true);
    typed.try_get_matches_from(words).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_for_services_completes_their_names() {
        let command = command();
        for verb in ["status", "logs", "start", "stop", "restart"] {
            let verb = command.find_subcommand(verb).unwrap();
            let mut positionals = verb.get_positionals();
            let argument = positionals.next().unwrap();
            assert!(argument.get::<ArgValueCompleter>().is_some(), "{verb}");
        }
    }

    #[test]
    fn completers_change_no_order() {
        let order = |command: &Command| -> Vec<String> {
            let verbs = command.get_subcommands();
            let line = |verb: &Command| {
                let arguments = verb
                    .get_arguments()
                    .map(|argument| argument.get_id().as_str());
                format!("{verb}: {}", arguments.collect::<Vec<_>>().join(" "))
            };
            verbs.map(line).collect()
        };
        assert_eq!(order(&command()), order(&Smoothctl::command()));
    }
}
