//! Waits for jobs, and shows each of their steps in a line.

use std::time::Duration;

use futures_util::StreamExt;
use zbus::OwnedObjectPath;

use super::client::ManagerClient;
use super::error::CtlError;
use super::screen::Line;
use super::{render, reports};
use crate::cli::exit;
use crate::status::{JobState, JobStatus};

/// How often the state of a job is asked for without a signal: no signal of the manager tells of a
/// new step.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until all jobs have ended, unless `no_block` is set. Fails if one of them was not done.
pub(super) async fn for_jobs(
    client: &ManagerClient,
    jobs: Vec<OwnedObjectPath>,
    no_block: bool,
) -> Result<(), CtlError> {
    let mut line = Line::new();
    let mut failures = Vec::new();
    for job in jobs.iter().filter(|_| !no_block) {
        tokio::select! {
            ended = end_of(client, job, &mut line) => {
                let mut ended = ended?;
                reports::add_to_job(client, job, &mut ended).await;
                let message = render::ended(&ended);
                match ended.state {
                    JobState::Done => line.finish(&message),
                    _ => {
                        line.clear();
                        failures.push(message);
                    }
                }
            }
            _ = tokio::signal::ctrl_c() => {
                line.clear();
                return Err(CtlError::new(exit::INTERRUPTED, "no longer waiting; the job goes on, see smoothctl status"));
            }
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(CtlError::new(1, failures.join("\n")))
    }
}

async fn end_of(
    client: &ManagerClient,
    job: &OwnedObjectPath,
    line: &mut Line,
) -> Result<JobStatus, CtlError> {
    let mut signals = client.signals().await?;
    loop {
        let status = client.job(job).await?;
        if status.state != JobState::Running {
            return Ok(status);
        }
        line.show(&render::step(&status));
        tokio::select! {
            signal = signals.next() => if signal.is_none() {
                return Err(CtlError::new(exit::UNAVAILABLE, "smoothserve went away"));
            },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
