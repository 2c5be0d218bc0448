//! The diagnosis of a failed instance, as text for people: what happened, and the instance's last
//! output.

use std::rc::Rc;

use crate::events;
use crate::manager::event::{Diagnosis, Event, Reports};
use crate::manager::process::Process;
use crate::manager::rollout::InstanceFailure;
use crate::printable::printable_line;
use crate::status::FailureReport;

/// The number of lines of an instance's output that are quoted in a diagnosis.
const QUOTED_LINES: usize = 5;

/// Adds the last lines that a process has written to a diagnosis, and reports it as
/// [`Event::Diagnosed`].
pub(super) fn gather(mut diagnosis: Diagnosis, process: Option<Rc<Process>>, reports: Reports) {
    tokio::task::spawn_local(async move {
        if let Some(process) = process {
            let lines = process.last_lines().await;
            for line in &lines[lines.len().saturating_sub(QUOTED_LINES)..] {
                let source = process.output();
                let line = printable_line(line);
                diagnosis.output.push(format!("{source}: {line}"));
            }
        }
        let _ = reports.send(Event::Diagnosed(diagnosis));
    });
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
