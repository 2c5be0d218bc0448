//! Completion: what a shell shows at Tab.
//!
//! The files that are installed for the shells run smoothctl with the words of the command line and
//! [`COMPLETE_VARIABLE`]. smoothctl then never prints an error, never starts a smoothserve that
//! does not run, and never lets a person wait.

use std::ffi::OsStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{Command, CommandFactory, FromArgMatches};
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

/// Lists the services whose names begin with this.
fn service(begin: &OsStr) -> Vec<CompletionCandidate> {
    beginning_with(begin, services())
}

/// Lists what [`service`] does, and `all`, the word for all services.
fn service_or_all(begin: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = services();
    if !candidates.is_empty() {
        candidates.push(CompletionCandidate::new("all").help(Some("all services".into())));
    }
    beginning_with(begin, candidates)
}

fn beginning_with(
    begin: &OsStr,
    mut candidates: Vec<CompletionCandidate>,
) -> Vec<CompletionCandidate> {
    let begin = begin.as_encoded_bytes();
    candidates.retain(|candidate| candidate.get_value().as_encoded_bytes().starts_with(begin));
    candidates
}

/// Lists all services, each with its state. If anything goes wrong there are none.
fn services() -> Vec<CompletionCandidate> {
    let (send, answer) = mpsc::channel();
    // The whole program ends without waiting for a thread that has not ended.
    thread::spawn(move || drop(send.send(snapshot())));
    let snapshot = answer
        .recv_timeout(LIMIT)
        .ok()
        .flatten()
        .unwrap_or_default();
    let services = snapshot.services.iter();
    let candidates = services.map(|(name, service)| {
        CompletionCandidate::new(name).help(Some(render::in_short(service).into()))
    });
    candidates.collect()
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
    // The files for the shells put the words that are typed behind the first `--`.
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let typed = Smoothctl::command().ignore_errors(true);
    let found = typed.try_get_matches_from(words).ok()?;
    let bus = *found.get_one::<Bus>("bus")?;
    Some((RunDir::from_arg_matches(&found).ok()?, bus))
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
