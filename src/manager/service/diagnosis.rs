//! The diagnosis of a failed instance, as text for people: what happened, and the instance's last
//! output.

use std::net::SocketAddr;
use std::rc::Rc;

use crate::events;
use crate::manager::event::{Diagnosis, Event, Reports};
use crate::manager::host::sockets;
use crate::manager::process::{Members, Process};
use crate::manager::rollout::InstanceFailure;
use crate::printable::printable_line;
use crate::status::FailureReport;

/// The number of lines of an instance's output that are quoted in a diagnosis. The error of a Node
/// program stands before ten lines about where it happened.
const QUOTED_LINES: usize = 20;

/// Adds the last lines that a process has written to a diagnosis, and the causes that they and the
/// machine confirm, and reports it as [`Event::Diagnosed`].
pub(super) fn gather(mut diagnosis: Diagnosis, process: Option<Rc<Process>>, reports: Reports) {
    tokio::task::spawn_local(async move {
        if let Some(process) = process {
            let suspicion = diagnosis.suspicion.take();
            // At once, before another instance of the service has the port.
            let address = suspicion.as_ref().and_then(|suspicion| suspicion.address);
            let holder = match address {
                Some(address) => holder(address, process.members()).await,
                None => None,
            };
            let lines = process.last_lines().await;
            let argument = suspicion.and_then(|suspicion| suspicion.argument);
            let argument = argument.and_then(|argument| misunderstood(&argument, &lines));
            for cause in holder.into_iter().chain(argument) {
                diagnosis.message += &format!("; {cause}");
            }
            for line in &lines[lines.len().saturating_sub(QUOTED_LINES)..] {
                let source = process.output();
                let line = printable_line(line);
                diagnosis.output.push(format!("{source}: {line}"));
            }
        }
        let _ = reports.send(Event::Diagnosed(diagnosis));
    });
}

/// Says which other program has the port of an instance that has failed.
async fn holder(address: SocketAddr, members: Members) -> Option<String> {
    let look = tokio::task::spawn_blocking(move || sockets::holder(address, &members.pids()));
    let holder = look.await.ok().flatten()?;
    let port = address.port();
    Some(format!("address in use: port {port} is taken by {holder}"))
}

/// Says that the program has probably not understood an argument that smoothserve has chosen. Does
/// not quote what the instance has written.
fn misunderstood(argument: &str, lines: &[String]) -> Option<String> {
    lines
        .iter()
        .any(|line| is_about_an_argument(line))
        .then(|| {
            format!(
                "it gets the argument `{argument}`, because `args` is not set, and seems not to \
                 know it; set `args` to what it understands, as in `args: [\"--port\", \"{{port}}\"]`"
            )
        })
}

/// Returns true for a line in which a program refuses an argument, in the words of the usual
/// libraries.
fn is_about_an_argument(line: &str) -> bool {
    let line = line.to_lowercase();
    let has_one_of = |words: &[&str]| words.iter().any(|word| line.contains(word));
    let names = ["option", "argument", "flag", "switch", "parameter"];
    let refuses = [
        "unknown",
        "unrecognized",
        "unrecognised",
        "invalid",
        "illegal",
        "bad",
        "unexpected",
        "no such",
        "not defined",
        "unsupported",
        "not recognized",
        "ambiguous",
    ];
    has_one_of(&["-port", "ort="]) || (has_one_of(&names) && has_one_of(&refuses))
}

/// Logs a diagnosis with its report.
pub(super) fn log(diagnosis: &Diagnosis, report: &FailureReport) {
    let Diagnosis {
        service,
        instance,
        generation,
        ..
    } = diagnosis;
    let error = report.text();
    match diagnosis.failure {
        InstanceFailure::Crashed => tracing::error!(
            message_id = events::INSTANCE_CRASHED,
            service,
            instance,
            generation,
            error,
            "instance crashed"
        ),
        _ => tracing::error!(
            message_id = events::INSTANCE_FAILED,
            service,
            instance,
            generation,
            error,
            "instance failed to start"
        ),
    }
    if diagnosis.gave_up {
        tracing::error!(
            message_id = events::ROLLOUT_ABORTED,
            service,
            generation,
            error,
            "rollout aborted, the previous version keeps serving"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_which_a_program_refuses_its_argument_are_known() {
        for line in [
            "flag provided but not defined: -port",
            "error: unexpected argument '-p' found",
            "shop: error: unrecognized arguments: -port=9001",
            "node: bad option: -port=9001",
            "Unknown option: -p",
            "getopt: invalid option -- 'p'",
            "Error: No such option: -p",
            "python3: can't open file '/srv/-port=9001'",
        ] {
            assert!(is_about_an_argument(line), "{line}");
        }
        for line in [
            "no such table: orders",
            "connection refused",
            "panic: nil map",
            "",
        ] {
            assert!(!is_about_an_argument(line), "{line}");
        }
    }
}
