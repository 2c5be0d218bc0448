//! Why an instance has failed, as people want to read it: what happened, and its own last words.

use std::time::{Instant, SystemTime};

use super::Service;
use crate::events;
use crate::manager::rollout::{Failure, InstanceId};
use crate::manager::{Event, World, status};

/// A failed instance, with all that is known of the cause.
#[derive(Debug)]
pub struct Diagnosis {
    /// Its service.
    pub service: String,
    instance: String,
    generation: u64,
    failure: Failure,
    /// Its generation was given up.
    gave_up: bool,
    at: SystemTime,
    message: String,
}

/// Lines of an instance's output that are quoted in a failure.
const QUOTED_LINES: usize = 5;

impl Service {
    /// Gathers what is known of a failure, which takes a moment if it is in the journal, and reports it to
    /// [`Service::diagnosed`].
    pub(super) fn failed(
        &mut self,
        id: InstanceId,
        generation: u64,
        failure: Failure,
        gave_up: bool,
        world: &mut World,
    ) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        if failure == Failure::Crashed {
            self.crashes += 1;
        }
        let mut diagnosis = Diagnosis {
            service: self.spec.name.clone(),
            instance: instance.label.clone(),
            generation,
            failure,
            gave_up,
            at: SystemTime::now(),
            message: instance.describe(failure, self.spec.start_timeout),
        };
        let process = instance.process();
        let reports = world.reports.clone();
        tokio::task::spawn_local(async move {
            if let Some(process) = process {
                let lines = process.last_lines().await;
                for line in &lines[lines.len().saturating_sub(QUOTED_LINES)..] {
                    diagnosis.message += &format!("\n  {}: {line}", process.output());
                }
            }
            let _ = reports.send(Event::Diagnosed(diagnosis));
        });
    }

    /// Logs a failure with its cause, and fails the jobs that it ends.
    pub fn diagnosed(&mut self, diagnosis: Diagnosis, world: &mut World) {
        let Diagnosis {
            service,
            instance,
            generation,
            failure,
            gave_up,
            at,
            message,
        } = diagnosis;
        let error = message.as_str();
        match failure {
            Failure::Crashed => tracing::error!(
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
        if gave_up {
            tracing::error!(
                message_id = events::ROLLOUT_ABORTED,
                service,
                generation,
                error,
                "rollout aborted, the previous version keeps serving"
            );
        }
        world
            .jobs
            .failed(&service, generation, error, Instant::now());
        world.changed.insert(service);
        self.last_error = Some(status::Failure { at, message });
    }
}
