//! What a shell shows at Tab.
//!
//! The files that are installed for the shells run smoothctl with the words of the command line and [`VARIABLE`]. It
//! never prints an error then, never starts a smoothserve that does not run, and never lets a person wait.

use std::ffi::OsStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use clap_complete::{CompleteEnv, CompletionCandidate};

use super::client::Client;
use super::render;
use crate::cli::{RunDir, Smoothctl};
use crate::manager::dbus::Bus;
use crate::manager::status::Snapshot;

/// Names the shell that asks. Nobody has set it by chance.
pub const VARIABLE: &str = "SMOOTHCTL_COMPLETE";

/// How long smoothserve has to answer.
const LIMIT: Duration = Duration::from_millis(500);

/// Answers if it is a shell that asks. There must be no other thread yet.
pub fn answer() -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let folder = std::env::current_dir().ok();
    // It fails where there is nothing to complete.
    let _ = CompleteEnv::with_factory(Smoothctl::command)
        .var(VARIABLE)
        .try_complete(std::env::args_os(), folder.as_deref());
    true
}

/// The services whose names begin with this.
pub(crate) fn service(begin: &OsStr) -> Vec<CompletionCandidate> {
    beginning_with(begin, services())
}

/// The same, and the word for all services.
pub(crate) fn service_or_all(begin: &OsStr) -> Vec<CompletionCandidate> {
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

/// All services, each with its state. Whatever goes wrong, there are none.
fn services() -> Vec<CompletionCandidate> {
    let (send, answer) = mpsc::channel();
    // The whole program ends without waiting for a thread that has not ended.
    thread::spawn(move || send.send(snapshot()));
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

/// The state of the smoothserve that the command line is for, if it runs.
fn snapshot() -> Option<Snapshot> {
    let (run_dir, bus) = destination()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        let client = Client::connect_to_running(&run_dir, bus).await?;
        let (_, snapshot) = client.dump().await.ok()?;
        Some(snapshot)
    })
}

/// What the command line says so far about where smoothserve is.
fn destination() -> Option<(RunDir, Bus)> {
    // The shells' files put it behind the first `--`.
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let typed = Smoothctl::command().ignore_errors(true);
    let found = typed.try_get_matches_from(words).ok()?;
    let bus = *found.get_one::<Bus>("bus")?;
    Some((RunDir::from_arg_matches(&found).ok()?, bus))
}
